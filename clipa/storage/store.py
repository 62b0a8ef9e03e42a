"""The one door to fsspec and s3fs. Their errors become ours; URLs in messages carry no credentials.

Reads are ranged, with our own length check and retries: s3fs's `get` leaves files of the right size full of holes
when a connection breaks (s3fs PR 1007), and `generic.rsync` passes over errors.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from clipa.errors import ClipaError, InputError, StorageError
from clipa.registry.run_dir import write_whole
from clipa.spec.cluster import Dataset
from clipa.storage import pattern as patterns
from clipa.storage.pattern import redacted

PART = 8 << 20
"""Bytes of one ranged read."""
_GIVE_UP_S = 60.0
"""How long one request may go without success. A range that arrives starts the clock anew."""
_MAY_PASS = frozenset(
    (errno.EIO, errno.EREMOTEIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE)
)
"""s3fs turns HTTP 500 into EREMOTEIO, 503 and SlowDown into EBUSY, and codes that it does not know into EIO."""
_WIRE_ERRORS = frozenset(
    [
        "HTTPClientError",
        "ConnectionError",
        "IncompleteReadError",
        "ResponseParserError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerDisconnectedError",
    ]
)
"""Class names in botocore and aiohttp for trouble on the way (no import of either: other stores do not have them)."""
_NO_CREDENTIALS = frozenset(["NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"])
_T = TypeVar("_T")


class Entry(NamedTuple):
    """One object: its name relative to the store's URL, its size in bytes, and the store's word for its version."""

    name: str
    size: int
    version: str


class Store:
    """The objects under one URL: a folder, or a folder and a pattern for the names in it."""

    def __init__(self, source: Dataset | str) -> None:
        source = Dataset(url=source) if isinstance(source, str) else source
        url = source.url
        if "://" not in url:
            url = "file://" + os.path.abspath(os.path.expanduser(url))
        self._base, self.pattern = patterns.split(url)
        self._secret = (url, source.endpoint)
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
                f"cannot open {self.scheme}:// URLs: {redacted(str(error), *self._secret)}",
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
        fits = patterns.matcher(self.pattern) if self.pattern else bool
        entries = []
        for path, info in found.items():
            name = str(path)[len(self._root) :].lstrip("/")
            if fits(name):
                entries.append(Entry(name, int(info.get("size") or 0), _version(str(path), info)))
        absent = patterns.missing(self.pattern, (entry.name for entry in entries)) if self.pattern else []
        if absent:
            raise InputError(
                f"{len(absent)} of the shards that the URL names are missing, first {absent[0]}", where=self.url
            )
        return sorted(entries)

    def read(self, name: str) -> bytes:
        """A whole object."""
        return b"".join(self.chunks(name, self.entry(name).size))

    def entry(self, name: str) -> Entry:
        """Size and version of an object now."""
        path = self._path(name)
        info = self._call(lambda: self._fs.info(path), self._shown(name))
        return Entry(name, int(info.get("size") or 0), _version(path, info))

    def chunks(self, name: str, size: int, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object of known size from `start` on, in parts of `PART`."""
        for at in range(start, size, PART):
            yield self.read_range(name, at, min(size, at + PART))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes start..end of an object, exactly so many."""

        def once() -> bytes:
            data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
            if len(data) == end - start:
                return data
            if (size := self.entry(name).size) < end:
                raise StorageError(f"it has {size:,} bytes, {end:,} were expected", where=self._shown(name))
            raise TimeoutError(f"got {len(data)} of {end - start} bytes")

        return self._call(once, self._shown(name))

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        return bool(self._call(lambda: self._fs.exists(self._path(name)), self._shown(name)))

    def write(self, name: str, data: bytes | Path) -> None:
        """Write an object whole or not at all, from memory or from a local file.

        Raises:
            InputError: the store refuses access.
            StorageError: it could not be written.
        """
        path = self._path(name)
        if self.scheme == "file":
            try:
                write_whole(Path(path), data if isinstance(data, bytes) else data.read_bytes())
            except OSError as error:
                raise StorageError(f"cannot write: {error.strerror}", where=self._shown(name)) from error
        elif isinstance(data, bytes):
            self._call(lambda: self._fs.pipe_file(path, data), self._shown(name))
        else:
            # One put, or a multipart upload in pieces of 50 MiB that counts only once it is completed.
            self._call(lambda: self._fs.put_file(str(data), path), self._shown(name))

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
            except ClipaError:
                raise
            except Exception as error:
                pause = random.uniform(0, min(8.0, 0.2 * 2**again))  # noqa: S311
                if not _may_pass(error) or time.monotonic() + pause > deadline:
                    raise self._ours(error, where) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _ours(self, error: Exception, where: str) -> ClipaError:
        names = {kind.__name__ for kind in type(error).__mro__}
        # s3fs says "None" where the server gave a code and no sentence; botocore's own error names the code.
        said = redacted(str(error.__cause__ or error), *self._secret)
        if isinstance(error, FileNotFoundError):
            return InputError("there is nothing at this URL", where=where, hint="check the URL and the endpoint")
        if isinstance(error, PermissionError) and self.scheme == "file":
            return InputError("the file system refuses access", where=where, hint="check owner and mode of the path")
        if isinstance(error, PermissionError) or names & _NO_CREDENTIALS:
            return InputError(
                f"the store refuses access: {said}",
                where=where,
                hint="check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID; anonymous = true for a public bucket)",
            )
        return StorageError(f"the store failed: {type(error).__name__}: {said}", where=where)


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
        "config_kwargs": {
            "retries": {"max_attempts": 2},
            # A stalled connection must fail well before `_GIVE_UP_S`, or nothing is tried again.
            "connect_timeout": 10,
            "read_timeout": 20,
            **(config if endpoint else {}),
        },
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }


def _version(path: str, info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    # A time tells versions of one object apart, not two objects: with its path, `a/0.tar` is never taken for `b/0.tar`.
    stamp = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    # memory:// says it as a number when listed and as a date when asked.
    return f"{stamp.timestamp() if isinstance(stamp, datetime) else stamp} {path}"


def _may_pass(error: Exception) -> bool:
    """Time-outs, resets and 5xx may pass; everything else will be the same the next time."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _MAY_PASS
    if type(error).__module__.partition(".")[0] not in ("aiohttp", "botocore", "aiobotocore"):
        return False
    return any(kind.__name__ in _WIRE_ERRORS for kind in type(error).__mro__)
