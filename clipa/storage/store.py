"""The one door to fsspec and s3fs. Their errors become ours; URLs in messages carry no credentials.

Reads are ranged, with our own length check and retries: s3fs's `get` leaves files of the right size full of holes
when a connection breaks (s3fs PR 1007), and `generic.rsync` passes over errors.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from clipa.errors import InputError, StorageError
from clipa.registry.run_dir import write_whole
from clipa.spec.cluster import Dataset

PART = 8 << 20
"""Bytes of one ranged read."""
_GIVE_UP_S = 60.0
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_NAMES = 1_000_000
_T = TypeVar("_T")


class Entry(NamedTuple):
    """One object: its name relative to the store's URL, its size in bytes, and the store's word for its version."""

    name: str
    size: int
    version: str


def redacted(url: str) -> str:
    """A URL without user and password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "***@", url)


def expand_braces(pattern: str) -> list[str]:
    """`{000..127}` and `{a,b}` as bash expands them.

    Raises:
        InputError: more than a million names, or a range that is not one.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    body = match.group(1)
    first, dots, last = body.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        low, high = int(first), int(last)
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        if abs(high - low) >= _MOST_NAMES:
            raise InputError("the pattern names more than a million shards", where=pattern)
        numbers = range(low, high + 1) if low <= high else range(low, high - 1, -1)
        words = [str(number).zfill(width) for number in numbers]
    elif "," in body:
        words = body.split(",")
    else:
        raise InputError(f"cannot read {{{body}}}", where=pattern, allowed="{00000..00127} or {a,b}")
    names = [head + word + rest for word in words for rest in expand_braces(tail)]
    if len(names) > _MOST_NAMES:
        raise InputError("the pattern names more than a million shards", where=pattern)
    return names


class Store:
    """The objects under one URL: a folder, or a folder and a pattern for the names in it."""

    def __init__(self, source: Dataset | str) -> None:
        source = Dataset(url=source) if isinstance(source, str) else source
        url = source.url
        if "://" not in url:
            url = "file://" + os.path.abspath(os.path.expanduser(url))
        base, _, last = url.rpartition("/")
        self.pattern = last if any(mark in last for mark in "*?{[") else ""
        self._base = base if self.pattern else url.rstrip("/")
        if any(mark in self._base for mark in "*?{["):
            raise InputError("a pattern may stand in the last part of the URL only", where=redacted(url))
        self.scheme = url.partition("://")[0]
        self.url = redacted(self._base)
        self._fs, self._root = self._open(source)

    def _open(self, source: Dataset) -> tuple[Any, str]:
        import fsspec

        try:
            kind: type[Any] = fsspec.get_filesystem_class(self.scheme)
            filesystem = kind(**_options(self.scheme, source))
            return filesystem, str(kind._strip_protocol(self._base)).rstrip("/")
        except (ValueError, ImportError) as error:
            raise InputError(
                f"cannot open {self.scheme}:// URLs: {error}",
                where=self.url,
                allowed="s3://, file://, memory://, and every scheme whose fsspec package is installed (gcsfs, adlfs)",
            ) from error

    def list(self) -> list[Entry]:
        """Every object under the URL, sorted by name; folders below it are entered.

        Raises:
            InputError: the URL does not exist or may not be read.
            StorageError: the store does not answer.
        """
        found = self._call(lambda: self._fs.find(self._root, detail=True), self.url)
        wanted = set(expand_braces(self.pattern)) if "{" in self.pattern else None
        entries = []
        for path, info in found.items():
            name = str(path)[len(self._root) :].lstrip("/")
            if self.pattern and not any(fnmatchcase(name, p) for p in (wanted or {self.pattern})):
                continue
            entries.append(Entry(name, int(info.get("size") or 0), _version(info)))
        if wanted and (missing := sorted(w for w in wanted if "*" not in w)) and len(missing) > len(entries):
            absent = sorted(set(missing) - {entry.name for entry in entries})
            raise InputError(f"{len(absent)} of {len(missing)} shards are missing, first {absent[0]}", where=self.url)
        return sorted(entries)

    def read(self, name: str) -> bytes:
        """A whole object."""
        return b"".join(self.chunks(name, self.size(name)))

    def size(self, name: str) -> int:
        """Size of an object in bytes."""
        return int(self._call(lambda: self._fs.info(self._path(name)), self._shown(name))["size"])

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of an object of known size, in parts of `PART`."""
        for start in range(0, size, PART):
            yield self.read_range(name, start, min(size, start + PART))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes start..end of an object, exactly so many."""

        def once() -> bytes:
            data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
            if len(data) != end - start:
                raise TimeoutError(f"got {len(data)} of {end - start} bytes")
            return data

        return self._call(once, self._shown(name))

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        return bool(self._call(lambda: self._fs.exists(self._path(name)), self._shown(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write an object whole or not at all."""
        if self.scheme == "file":
            try:
                write_whole(Path(self._path(name)), data)
            except OSError as error:
                raise StorageError(f"cannot write: {error.strerror}", where=self._shown(name)) from error
            return
        self._call(lambda: self._fs.pipe_file(self._path(name), data), self._shown(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _call(self, work: Callable[[], _T], where: str) -> _T:
        """Do it, again with growing pauses while the trouble may pass, and in our words when it does not."""
        deadline = time.monotonic() + _GIVE_UP_S
        for again in range(1000):
            try:
                return work()
            except FileNotFoundError as error:
                raise InputError(
                    "there is nothing at this URL", where=where, hint="check the URL and the endpoint"
                ) from error
            except PermissionError as error:
                raise InputError(
                    "the store refuses access",
                    where=where,
                    hint="check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID)",
                ) from error
            except Exception as error:
                pause = random.uniform(0, min(8.0, 0.2 * 2**again))  # noqa: S311
                if not _may_pass(error) or time.monotonic() + pause > deadline:
                    raise StorageError(f"the store failed: {type(error).__name__}: {error}", where=where) from error
                time.sleep(pause)
        raise AssertionError("unreachable")


def _options(scheme: str, source: Dataset) -> dict[str, Any]:
    if scheme not in ("s3", "s3a"):
        return {"skip_instance_cache": True}
    endpoint = source.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    client: dict[str, Any] = {"region_name": source.region} if source.region else {}
    # Stores other than AWS refuse the checksums that botocore adds by default (boto/boto3#4392).
    config = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return {
        "anon": source.anonymous,
        "profile": source.profile or None,
        "endpoint_url": endpoint or None,
        "client_kwargs": client,
        "config_kwargs": {"retries": {"max_attempts": 2}, **(config if endpoint else {})},
        "skip_instance_cache": True,
    }


def _version(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return str(stamp)


def _may_pass(error: Exception) -> bool:
    """Time-outs, resets and 5xx may pass; everything else will be the same the next time."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        import errno

        return error.errno in (errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT)
    return (
        type(error).__module__.partition(".")[0] in ("aiohttp", "botocore", "aiobotocore")
        and "NoCredentials" not in type(error).__name__
    )
