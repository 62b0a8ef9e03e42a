"""The one door to the Docker SDK. Values in, values out; the SDK's errors become ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, ParamSpec, TypeVar

import docker.errors
import msgspec
import requests.exceptions

import docker
from clipa.errors import InputError, LaunchError
from clipa.image.progress import Event, Raw, events
from clipa.image.reference import parse, parse_tag

LABEL = "org.clipa."
_OCI = "org.opencontainers.image."
_ANSWER_S = 20
_WORK_S = 24 * 3600
"""The SDK's patience between two lines of long work: a quiet step of a build, or `save` until its first byte."""
_CURES = (
    "1. the daemon does not run: sudo systemctl start docker",
    "2. this user may not use it: sudo usermod -aG docker $USER, then log in again",
    "3. it is somewhere else: export DOCKER_HOST=unix:///run/user/UID/docker.sock (rootless), or tcp://HOST:2376 (TLS)",
)

P = ParamSpec("P")
T = TypeVar("T")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as the daemon has it.

    `id` is the digest of its configuration; `digests` are what registries call it (empty until it was pushed or
    pulled); `bytes` is its size with all layers; `created` is ISO 8601.
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    bytes: int
    created: str
    platform: str
    revision: str = ""
    version: str = ""
    source: str = ""
    base: str = ""
    variant: str = ""
    code: str = ""
    content: str = ""

    @property
    def is_clipas(self) -> bool:
        """Whether `clipa image build` made it: base images' labels are inherited, so only this one counts."""
        return bool(self.content)


class LayerSize(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an image's history that holds bytes."""

    bytes: int
    step: str


def _translated(work: Callable[P, T]) -> Callable[P, T]:
    """Turn the SDK's errors into a LaunchError that keeps the daemon's own words."""

    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except docker.errors.APIError as error:
            raise LaunchError(f"the Docker daemon refuses: {error.explanation or error}") from error
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            raise LaunchError(f"the Docker daemon does not go on: {error}", hint="docker info") from error

    return wrapped


def connect() -> Engine:
    """The daemon that DOCKER_HOST names, else the machine's own.

    Raises:
        InputError: none answers; the three usual cures are in the hint.
    """
    host = os.environ.get("DOCKER_HOST", "") or "unix:///var/run/docker.sock"
    try:
        client = docker.from_env(timeout=_ANSWER_S)
        client.ping()
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            "no Docker daemon answers", where=host, hint="\n  " + "\n  ".join((*_CURES, f"it says: {reason}"))
        ) from error
    return Engine(client)


class Engine:
    """A Docker daemon."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    @_translated
    def find(self, reference: str) -> Image | None:
        """An image by tag, digest or id; None where the daemon has none."""
        try:
            return _image(self._client.images.get(reference))
        except docker.errors.ImageNotFound:
            return None

    @_translated
    def images(self) -> list[Image]:
        """The images that `clipa image build` made, newest first."""
        found = [_image(one) for one in self._client.images.list(filters={"label": f"{LABEL}content"})]
        return sorted((one for one in found if one.is_clipas), key=lambda one: one.created, reverse=True)

    def build(
        self, context: IO[bytes], dockerfile: str, tag: str, args: Mapping[str, str],
        platform: str = "", no_cache: bool = False, network: str = "",
    ) -> Iterator[Event]:  # fmt: skip
        """Build a context (a tar). Failures come as a `Failed` event: the classic builder raises nothing."""
        stream = self._stream(
            self._client.api.build, fileobj=context, custom_context=True, dockerfile=dockerfile, tag=tag,
            buildargs=dict(args), platform=platform or None, nocache=no_cache, network_mode=network or None, rm=True,
            forcerm=True, timeout=_WORK_S,
        )  # fmt: skip
        return events(stream)

    def pull(self, reference: str, platform: str = "") -> Iterator[Event]:
        """Fetch an image."""
        asked = parse(reference)
        tag = asked.digest or asked.tag or "latest"
        return events(self._stream(self._client.api.pull, asked.name, tag=tag, platform=platform or None, stream=True))

    def push(self, reference: str) -> Iterator[Event]:
        """Send an image to its registry; the last event has the digest."""
        asked = parse(reference)
        return events(self._stream(self._client.api.push, asked.name, tag=asked.tag or "latest", stream=True))

    def _stream(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Raw]:
        self._be_patient()
        raws: Iterator[object] = iter(_translated(call)(*args, decode=True, **kwargs))
        advance = _translated(lambda: next(raws, None))
        while (raw := advance()) is not None:
            yield msgspec.convert(raw, Raw, strict=False)

    def _be_patient(self) -> None:
        self._client.api.timeout = _WORK_S

    @_translated
    def tag(self, reference: str, name: str) -> None:
        """Give an image another name; `parse_tag` has read it."""
        asked = parse_tag(name)
        self._client.images.get(reference).tag(asked.name, asked.tag or "latest")

    @_translated
    def layers(self, reference: str) -> list[LayerSize]:
        """The steps of an image that hold bytes, the base's first."""
        history = self._client.images.get(reference).history()
        return [LayerSize(bytes=one["Size"], step=_step(one["CreatedBy"])) for one in reversed(history) if one["Size"]]

    @_translated
    def save(self, image: Image) -> Iterator[bytes]:
        """The bytes of a `docker save` archive, with one of the image's names in it."""
        self._be_patient()
        name = image.tags[0] if image.tags else False
        chunks: Iterator[bytes] = self._client.images.get(image.id).save(named=name)
        return chunks

    @_translated
    def remove(self, reference: str) -> None:
        """Remove a name of an image, and the image with its last one."""
        self._client.images.remove(reference)

    @_translated
    def in_use(self) -> set[str]:
        """The ids of images that a container, running or not, was made from."""
        return {one.attrs["ImageID"] for one in self._client.containers.list(all=True, sparse=True)}

    def close(self) -> None:
        """Let go of the connection."""
        with contextlib.suppress(Exception):
            self._client.close()


def _image(found: Any) -> Image:
    attrs = found.attrs
    labels = (attrs.get("Config") or {}).get("Labels") or {}
    return Image(
        id=attrs["Id"],
        tags=tuple(tag for tag in attrs.get("RepoTags") or () if not tag.startswith("<none>")),
        digests=tuple(d for d in attrs.get("RepoDigests") or () if not d.startswith("<none>")),
        bytes=attrs.get("Size", 0),
        created=attrs.get("Created", ""),
        platform=f"{attrs.get('Os', '')}/{attrs.get('Architecture', '')}",
        revision=labels.get(f"{_OCI}revision", ""),
        version=labels.get(f"{_OCI}version", ""),
        source=labels.get(f"{_OCI}source", ""),
        base=labels.get(f"{_OCI}base.name", ""),
        variant=labels.get(f"{LABEL}variant", ""),
        code=labels.get(f"{LABEL}code", ""),
        content=labels.get(f"{LABEL}content", ""),
    )


def _step(text: str) -> str:
    return " ".join(text.removeprefix("/bin/sh -c #(nop) ").removeprefix("/bin/sh -c ").split())
