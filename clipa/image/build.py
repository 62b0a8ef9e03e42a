"""`clipa image build`: plan the build, skip it where the tag is there, else act and watch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import clipa
from clipa.errors import ConfigError, LaunchError
from clipa.image import context as contexts
from clipa.image.context import Context
from clipa.image.engine import Engine, Image
from clipa.image.progress import Event, Failed
from clipa.registry import provenance

Variant = Literal["cuda", "cpu"]
DEFAULT_BASE = {"cuda": "nvidia/cuda:13.0.1-base-ubuntu24.04", "cpu": "debian:12-slim"}
EXTRA_INDEX = {"cuda": "", "cpu": "https://download.pytorch.org/whl/cpu"}
"""Where pip finds that build of torch, besides its default index; PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS replaces it."""

Watch = Callable[[Event], None]


class Request(NamedTuple):
    """What the user asked for."""

    source: Path | None = None
    variant: Variant = "cuda"
    base: str = ""
    args: Mapping[str, str] = {}
    platform: str = ""
    no_cache: bool = False
    network: str = ""


class Build(NamedTuple):
    """A build that is decided: everything that the daemon is told, and the tag that follows from it."""

    context: Context
    tag: str
    args: dict[str, str]
    request: Request


def plan(engine: Engine, request: Request, watch: Watch) -> Build:
    """Decide a build. The base is fetched when it isn't there, because the tag depends on what it resolves to.

    Raises:
        InputError: no checkout, a base that can't be had, arguments that can't be used.
    """
    folder = contexts.checkout(request.source)
    context = contexts.read(folder)
    base = request.base or DEFAULT_BASE[request.variant]
    resolved = _resolve(engine, base, request.platform, watch)
    args = dict(request.args)
    name = contexts.tag(context.digest, resolved, request.variant, args, request.platform)
    if EXTRA_INDEX[request.variant] and not {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL"} & set(args):
        args["PIP_EXTRA_INDEX_URL"] = EXTRA_INDEX[request.variant]
    args |= {"BASE_IMAGE": base, "VARIANT": request.variant, **_labels(folder, context)}
    return Build(context, name, args, request)


def act(engine: Engine, build: Build, watch: Watch) -> Image:
    """Build.

    Raises:
        LaunchError: a step failed; it and its last lines are in the message.
    """
    failed = None
    with tempfile.TemporaryFile() as packed:
        contexts.pack(build.context, packed)
        asked = build.request
        stream = engine.build(packed, contexts.DOCKERFILE, build.tag, build.args, asked.platform, asked.no_cache,
                              asked.network)  # fmt: skip
        for event in stream:
            watch(event)
            if isinstance(event, Failed):
                failed = event
    made = None if failed else engine.find(build.tag)
    if failed or made is None:
        raise _failure(failed or Failed("the daemon ended the build without an image"), build)
    return made


def _failure(failed: Failed, build: Build) -> LaunchError:
    lines = "".join(f"\n  | {line}" for line in failed.lines)
    return LaunchError(
        f"the build failed in: {failed.step or 'its first step'}{lines}\n  {failed.error}",
        where=build.tag,
        hint="a step that cannot reach a package index: --network host, or --build-arg PIP_INDEX_URL=...",
    )


def _resolve(engine: Engine, base: str, platform: str, watch: Watch) -> str:
    """What a base image is today: its registry digest, else its id."""
    found = engine.find(base)
    if found is None:
        reason = "it was fetched, and is not there"
        try:
            for event in engine.pull(base, platform):
                watch(event)
                reason = event.error if isinstance(event, Failed) else reason
        except LaunchError as error:
            reason = error.what
        found = engine.find(base)
        if found is None:
            raise ConfigError(
                f"the base image cannot be had: {reason}",
                where=base,
                hint="--base NAME takes any Ubuntu >= 24.04 or Debian >= 12 that is here or in a registry",
            )
    return found.digests[0].partition("@")[2] if found.digests else found.id


def _labels(folder: Path, context: Context) -> dict[str, str]:
    checkout = provenance.read_checkout(folder)
    revision = f"{checkout.git.revision}{'-dirty' if checkout.git.dirty else ''}" if checkout else ""
    return {
        "SOURCE": checkout.git.remote if checkout else "",
        "REVISION": revision,
        "VERSION": clipa.__version__,
        "CODE": contexts.code_digest(folder / "clipa"),
        "CONTENT": context.digest,
    }
