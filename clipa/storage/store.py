"""The one door to fsspec and its stores (s3fs, gcsfs, adlfs, huggingface_hub). Their errors become ours; URLs in
messages carry no credentials.

Reads are ranged, with our own length check and retries: s3fs's `get` leaves files of the right size full of holes
when a connection breaks (s3fs PR 1007), and `generic.rsync` passes over errors.
"""

from __future__ import annotations

import base64
import binascii
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from clipa.errors import ClipaError, InputError, StorageError
from clipa.registry.run_dir import copy_whole, write_whole
from clipa.spec.cluster import Dataset
from clipa.storage import causes, options
from clipa.storage import pattern as patterns
from clipa.storage.causes import Absent, Refused
from clipa.storage.patience import Patience
from clipa.storage.pattern import redacted
from clipa.terminal import say

PART = 8 << 20
"""Bytes of one ranged read."""
_STREAM = 1 << 20
_SILENT_S = 5.0
_PACKAGES = "s3://, file://, memory://, http(s)://; gs:// with gcsfs, az:// with adlfs, hf:// with huggingface_hub"
_PLAIN_PATHS: dict[str, Callable[[str], str]] = {
    # scheme: what fsspec makes of a URL, where that needs nothing of its package
    "s3": lambda url: url.partition("://")[2],
    "s3a": lambda url: url.partition("://")[2],
    "http": str,
    "https": str,
}
_CONDITIONAL = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Stores that write an object only if there is none."""
_T = TypeVar("_T")


class Changed(StorageError):
    """An object that is no longer what was pinned."""


class NoRanges(Exception):
    """The server sent more than the range that was asked for: it knows no ranges."""


class Entry(NamedTuple):
    """One object: its name relative to the store's URL, its size in bytes, the store's word for its version, and
    `kind:hex` of its bytes (`md5`, `sha256`, `crc32c`) where the store tells one.
    """

    name: str
    size: int
    version: str
    digest: str = ""


class Store:
    """The objects under one URL: a folder, or a folder and a pattern for the names in it."""

    def __init__(self, source: Dataset | str) -> None:
        source = Dataset(url=source) if isinstance(source, str) else source
        url = source.url
        if "://" not in url:
            url = "file://" + os.path.abspath(os.path.expanduser(url))
        self._base, self.pattern = patterns.split(url)
        self._secret = (url, source.endpoint)
        self.source = source
        self.scheme = options.scheme_of(url)
        self.url = redacted(self._base)
        self._silent = True
        self._options = options.for_fsspec(source)
        if self.scheme in _PLAIN_PATHS:
            # s3fs, aiohttp and botocore are 0.4 CPU seconds, and FastStore can do without them.
            self._root = _PLAIN_PATHS[self.scheme](self._base).rstrip("/")
        else:
            self._root = str(type(self._fs)._strip_protocol(self._base)).rstrip("/")

    @functools.cached_property
    def _fs(self) -> Any:
        """The file system of fsspec, opened when it is first needed."""
        import fsspec

        # What they cannot do they raise, and we say it; they would print it as well, with a traceback.
        for name in ("gcsfs", "azure"):
            logging.getLogger(name).addHandler(logging.NullHandler())
        try:
            return fsspec.get_filesystem_class(self.scheme)(**self._options)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"cannot open {self.scheme}:// URLs: {redacted(str(error), *self._secret)}",
                where=self.url,
                allowed=_PACKAGES,
            ) from error

    @property
    def local_folder(self) -> Path | None:
        """The folder on this machine's file systems that the URL means; None for any other store."""
        return Path(self._root) if self.scheme == "file" else None

    @property
    def bucket(self) -> str:
        """The bucket or container, as fsspec sees it: the first part of the path."""
        return self._root.partition("/")[0]

    @property
    def address(self) -> str:
        """The URL with what may be secret in it: for a client, never for a message."""
        return self._base

    def list(self) -> list[Entry]:
        """Every object under the URL, sorted by name; folders below it are entered.

        Raises:
            InputError: the URL does not exist or may not be read.
            StorageError: the store does not answer.
        """
        fits = patterns.matcher(self.pattern) if self.pattern else bool
        entries = [entry for entry in self._found() if fits(entry.name)]
        absent = patterns.missing(self.pattern, (entry.name for entry in entries)) if self.pattern else []
        if absent:
            raise InputError(
                f"{len(absent)} of the shards that the URL names are missing, first {absent[0]}", where=self.url
            )
        return sorted(entries)

    def _found(self) -> Sequence[Entry]:
        if self.scheme in ("http", "https"):
            return self._found_by_http()
        found = self._call(lambda: self._fs.find(self._root, detail=True), self.url)
        return [self._entry(str(path), info) for path, info in found.items() if info.get("type") != "directory"]

    def _found_by_http(self) -> Sequence[Entry]:
        """Most servers list nothing, and where one does, the page has no sizes: each object is asked for."""
        if self.pattern and not any(mark in self.pattern for mark in "*?["):
            names = patterns.expand_braces(self.pattern)
        else:
            paths = self._call(lambda: self._fs.find(self._root + "/"), self.url)
            names = [str(path)[len(self._root) :].lstrip("/") for path in paths]

        def ask(name: str) -> Entry | None:
            try:
                return self.entry(name)
            except Absent:
                return None

        with ThreadPoolExecutor(8) as pool:
            return [entry for entry in pool.map(ask, names) if entry]

    def read(self, name: str) -> bytes:
        """A whole object."""
        return b"".join(self.chunks(name, self.entry(name).size))

    def entry(self, name: str) -> Entry:
        """Size and version of an object now."""
        path = self._path(name)
        return self._entry(path, self._call(lambda: self._fs.info(path), self._shown(name)))

    def _entry(self, path: str, info: dict[str, Any]) -> Entry:
        name = path[len(self._root) :].lstrip("/")
        if info.get("size") is None:
            raise StorageError("the store does not say how large it is", where=self._shown(name))
        return Entry(name, int(info["size"]), _version(path, info), _digest(info))

    def blocks(self, name: str, size: int, start: int = 0, version: str = "") -> Iterator[bytes | memoryview]:
        """The same as `chunks`, for who needs each piece only until the next: it may be written over then."""
        return self.chunks(name, size, start, version)

    def chunks(self, name: str, size: int, start: int = 0, version: str = "") -> Iterator[bytes]:
        """The bytes of an object of known size from `start` on, in order, in pieces of at most `PART`.

        `version` is what the object should have; only transports that can ask for a version look at it.
        """
        for at in range(start, size, PART):
            try:
                data = self.read_range(name, at, min(size, at + PART))
            except NoRanges:
                yield from self._whole(name, size, at)
                return
            yield data

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes start..end of an object, exactly so many."""

        def once() -> bytes:
            data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
            if len(data) == end - start:
                return data
            if (size := self.entry(name).size) < end:
                raise StorageError(f"it has {size:,} bytes, {end:,} were expected", where=self._shown(name))
            if len(data) > end - start and self.scheme in ("http", "https"):
                raise NoRanges
            raise TimeoutError(f"got {len(data)} of {end - start} bytes")

        return self._call(once, self._shown(name))

    def _whole(self, name: str, size: int, at: int) -> Iterator[bytes]:
        """The same from a server that knows no ranges: a read from its first byte, again when it breaks."""
        patience = Patience()
        while at < size:
            try:
                with self._fs.open(self._path(name), "rb", block_size=0) as file:
                    left = at
                    while left and (chunk := file.read(min(left, _STREAM))):
                        left -= len(chunk)
                    while at < size and (chunk := file.read(min(size - at, _STREAM))):
                        at += len(chunk)
                        patience.progress()
                        yield chunk
                if at < size:
                    raise TimeoutError(f"the connection ended after {at} of {size} bytes")
            except Exception as error:
                if not patience.pause(error):
                    raise self.translated(error, self._shown(name)) from error

    def etag_is_md5(self, name: str) -> bool:
        """Whether an ETag of S3 says anything of the bytes: those of objects under SSE-KMS and SSE-C do not."""
        if self.scheme not in ("s3", "s3a"):
            return True
        bucket, _, key = self._path(name).partition("/")
        try:
            head: dict[str, Any] = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
        except Exception:
            return True
        return not str(head.get("ServerSideEncryption", "")).startswith("aws:kms") and not head.get(
            "SSECustomerAlgorithm"
        )

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        if self.scheme in ("http", "https"):
            # fsspec says no to whatever goes wrong. S3 without the right to list says 403 of what is not there.
            try:
                self.entry(name)
            except (Absent, Refused):
                return False
            return True
        return bool(self._call(lambda: self._fs.exists(self._path(name)), self._shown(name)))

    def write(self, name: str, data: bytes | Path) -> None:
        """Write an object whole or not at all, from memory or from a local file.

        Raises:
            InputError: the store refuses access.
            StorageError: it could not be written.
        """
        path = self._path(name)
        if self.scheme == "file":
            self._write_here(Path(path), data, name)
        elif isinstance(data, bytes):
            self._call(lambda: self._fs.pipe_file(path, data), self._shown(name))
        else:
            # One put, or a multipart upload in pieces of 50 MiB that counts only once it is completed.
            self._call(lambda: self._fs.put_file(str(data), path), self._shown(name))

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a small object if there is none of that name; whether it was written.

        Stores that know no such condition write it after a look: two writers at the same moment may both succeed there.
        """
        path = self._path(name)
        if self.scheme not in _CONDITIONAL:
            return self._write_after_a_look(name, data)

        def once() -> str:
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return "PreconditionFailed"
            except Exception as error:
                # s3fs makes an EIO of it, which would be tried again for two minutes.
                code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
                if code in ("PreconditionFailed", "ConditionalRequestConflict", "NotImplemented"):
                    return str(code)
                raise
            return ""

        refused = self._call(once, self._shown(name))
        return self._write_after_a_look(name, data) if refused == "NotImplemented" else not refused

    def _write_after_a_look(self, name: str, data: bytes) -> bool:
        if self.exists(name):
            return False
        self.write(name, data)
        return True

    def _write_here(self, path: Path, data: bytes | Path, name: str) -> None:
        try:
            if isinstance(data, bytes):
                write_whole(path, data)
            else:
                copy_whole(data, path)
        except OSError as error:
            if error.filename == str(data):
                raise
            raise StorageError(f"cannot write: {error.strerror}", where=self._shown(name)) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _call(self, work: Callable[[], _T], where: str) -> _T:
        """Do it, again with growing pauses while the trouble may pass, and in our words when it does not."""
        patience = Patience()
        while True:
            try:
                done = work()
                self._silent = False
                return done
            except (ClipaError, NoRanges):
                raise
            except Exception as raised:
                error = causes.real(raised) if self.scheme in ("http", "https", "hf") else raised
                self._complain(error, where, patience)
                if not patience.pause(error):
                    raise self.translated(error, where) from error

    def _complain(self, error: Exception, where: str, patience: Patience) -> None:
        """Say what is the matter where nobody has ever answered: a mistyped name is not worth two silent minutes."""
        if self._silent and patience.waited > _SILENT_S and patience.left > 0:
            self._silent = False
            what = self.translated(error, where).what
            say(f"{where}: {what}; trying for {patience.left:.0f} s more", err=True)

    def translated(self, error: Exception, where: str) -> ClipaError:
        """A library's error in our words."""
        # s3fs says "None" where the server gave a code and no sentence; botocore's own error names the code.
        said = redacted(str(error.__cause__ or error), *self._secret)
        return causes.translated(error, self.scheme, where, said)


def _version(path: str, info: dict[str, Any]) -> str:
    generation = info.get("generation")
    etag = generation or info.get("ETag") or info.get("etag") or info.get("blob_id")
    if etag:
        return str(etag).strip('"')
    # A time tells versions of one object apart, not two objects: with its path, `a/0.tar` is never taken for `b/0.tar`.
    stamp = info.get("mtime") or info.get("LastModified") or info.get("Last-Modified") or info.get("created") or ""
    # memory:// says it as a number when listed and as a date when asked.
    # Of http:// that path is the URL, and this goes into manifests and records.
    return f"{stamp.timestamp() if isinstance(stamp, datetime) else stamp} {redacted(path)}"


def _digest(info: dict[str, Any]) -> str:
    """`kind:hex` where a store keeps a digest of the whole object: hf (LFS), GCS, Azure. Empty where it does not."""
    lfs = info.get("lfs")
    sha256 = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", "")) if lfs else ""
    if sha256:
        return f"sha256:{sha256}"
    md5 = info.get("md5Hash") or (info.get("content_settings") or {}).get("content_md5")
    if found := _hex(md5, 16):
        return f"md5:{found}"
    found = _hex(info.get("crc32c"), 4)
    return f"crc32c:{found}" if found else ""


def _hex(value: Any, length: int) -> str:
    """A digest of so many bytes that a store tells as bytes or in base64; empty where it is none."""
    try:
        raw = base64.b64decode(value) if isinstance(value, str) else bytes(value or b"")
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) == length else ""
