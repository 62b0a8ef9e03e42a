"""The one door to obstore: the cheapest way to stream an object from S3, GCS, Azure or HTTPS (docs/benchmarks.md).
For a server with an address of its own it signs the URL, and `wire` reads what lies there.

Two rules, both measured: the synchronous API only (the asynchronous one aborts at interpreter exit in 1 of 4 runs,
PyO3/pyo3-async-runtimes#40), and only in a process of its own that never forks (after a fork even a fresh store
hangs). So nothing but the staging processes may import this module.

What obstore cannot do, the ranged reads of `Store` do: after an error they read the next range, and say in their
words what is wrong when they fail too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from clipa.errors import StorageError
from clipa.spec.cluster import Dataset
from clipa.spec.user_paths import expand_user
from clipa.storage import options
from clipa.storage.digest import is_etag
from clipa.storage.patience import Patience
from clipa.storage.store import PART, Changed, Entry, Store
from clipa.storage.wire import Unexpected, Wire
from clipa.terminal import say

_PIECE = 256 << 10
"""Bytes a piece: 0.73 CPU seconds a GiB; 64 KiB 0.77, 1 MiB 0.89, 8 MiB 2.71 (page faults)."""
_UPLOAD_PART = 16 << 20
_UPLOAD_PATIENCE_S = 15.0
"""After so long without success the other way of uploading tries its luck, for as long as stores are given."""
_MOST_PARTS = 9_999
"""S3 takes 10,000."""
_MOST_FAILURES = 8
"""Failures after which a process that has not got a single byte by obstore reads by ranges only."""
_CLIENT = {"connect_timeout": "10s", "read_timeout": "20s", "timeout": "6h"}
"""A stalled connection fails after `read_timeout`; `timeout` is for a whole object, and 30 s where it is not given."""
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Where both are set and no profile is asked for, they are what botocore would find first; obstore reads them too."""
_SIGNED_FOR = timedelta(hours=1)
"""A signed URL is asked for at once; the clocks of both sides may differ a little."""
_RETRY = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}


def open_store(source: Dataset) -> Store:
    """A store that reads through obstore where it is installed and understands the source, and by ranges where not.

    `CLIPA_TRANSPORT=fsspec` asks for ranges, `obstore` for obstore where `wire` would be cheaper.
    """
    store = Store(source)
    make = _MAKERS.get(store.scheme)
    if make is None or _asked_for() == "fsspec":
        return store
    try:
        return FastStore(source, make(store))
    except ImportError:
        return store
    except Exception as error:
        say(f"obstore is not used for {store.url}: {store.translated(error, store.url).what}", err=True)
        return store


def _asked_for() -> str:
    return os.environ.get("CLIPA_TRANSPORT", "")


class FastStore(Store):
    """A store whose objects are streamed by obstore."""

    def __init__(self, source: Dataset, far: Any) -> None:
        super().__init__(source)
        self._far = far
        self._failures = 0
        self._works = False
        self._wire = Wire()
        self._plain = _is_plain(self)

    def _found(self) -> Sequence[Entry]:
        """As `Store` finds them. What obstore finds nothing for, or an error, is the other way's to put into words."""
        if self.scheme not in ("s3", "s3a"):
            return super()._found()
        import obstore

        prefix = self._key("")
        try:
            found = [meta for batch in obstore.list(self._far, prefix=prefix) for meta in batch]
            entries = [self._told(meta["path"].removeprefix(prefix), meta) for meta in found]
        except Exception:
            return super()._found()
        # obstore drops the slash of `x.tar/`, an empty object that stands for a folder.
        doubtful = any(not entry.size and entry.name.endswith(".tar") for entry in entries)
        return super()._found() if doubtful or not entries else entries

    def entry(self, name: str) -> Entry:
        """Size and version of an object now."""
        if self.scheme not in _TELL_ALL:
            return super().entry(name)
        import obstore

        try:
            return self._told(name, obstore.head(self._far, self._key(name)))
        except Exception:
            return super().entry(name)

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        import obstore

        try:
            obstore.head(self._far, self._key(name))
        except FileNotFoundError:
            return False
        except Exception:
            return super().exists(name)
        return True

    def _told(self, name: str, meta: Any) -> Entry:
        """What fsspec tells of the same object."""
        if not meta["e_tag"]:
            raise StorageError("it does not tell enough", where=self._shown(name))
        return Entry(name, int(meta["size"]), str(meta["e_tag"]).strip('"'))

    def chunks(self, name: str, size: int, start: int = 0, version: str = "") -> Iterator[bytes]:
        """The bytes of an object of known size from `start` on, in order, in pieces of at most `PART`."""
        return map(bytes, self.blocks(name, size, start, version))

    def blocks(self, name: str, size: int, start: int = 0, version: str = "") -> Iterator[bytes | memoryview]:
        """The same, for who needs each piece only until the next: it may be written over then."""
        at = start
        while at < size:
            if self._works or self._failures < _MOST_FAILURES:
                try:
                    for piece in self._stream(name, at, size, version):
                        at += len(piece)
                        self._works = True
                        yield piece
                except Exception as error:
                    self._require_same(error, name, version)
                    self._fail(error)
            if at < size:
                # Ranged: with patience, and with errors that say what is wrong.
                upto = min(size, at + PART)
                for piece in super().chunks(name, upto, at):
                    at += len(piece)
                    yield piece

    def write(self, name: str, data: bytes | Path) -> None:
        """Write an object whole or not at all: files in parts of 16 MiB or what 9,999 parts need, four at a time."""
        if isinstance(data, bytes) or self.scheme in ("http", "https"):
            super().write(name, data)
            return
        import obstore

        part = max(_UPLOAD_PART, -(-data.stat().st_size // _MOST_PARTS))
        patience = Patience(_UPLOAD_PATIENCE_S)
        while True:
            try:
                obstore.put(self._far, self._key(name), data, chunk_size=part, max_concurrency=4)
                return
            except FileNotFoundError:
                raise
            except Exception as error:
                if not patience.pause(error):
                    super().write(name, data)  # it says what is wrong, or does it after all
                    return

    def _stream(self, name: str, start: int, end: int, version: str) -> Iterator[bytes | memoryview]:
        url = self._plain_url(name)
        if url:
            return self._wire.stream(url, start, end, version if is_etag(version) else "")
        return self._streamed(name, start, end, version)

    def _plain_url(self, name: str) -> str:
        """Where an object is read without more than a URL; empty where there is more to it."""
        if not self._plain or self._wire.hopeless:
            return ""
        if self.scheme in ("http", "https"):
            return f"{self._root}/{quote(name)}"
        import obstore

        return str(obstore.sign(self._far, "GET", self._key(name), _SIGNED_FOR))

    def _streamed(self, name: str, start: int, end: int, version: str) -> Iterator[bytes]:
        import obstore

        wanted: dict[str, Any] = {"range": (start, end)}
        if is_etag(version) or (self.scheme in _AZURE and version):
            wanted["if_match"] = f'"{version}"'
        elif self.scheme in _GCS and version.isdecimal():
            wanted["version"] = version
        at = start
        for piece in obstore.get(self._far, self._key(name), options=wanted).stream(min_chunk_size=_PIECE):
            at += len(piece)
            if at > end:
                raise StorageError("it sent more than was asked for", where=self._shown(name))
            yield piece
        if at < end:
            raise TimeoutError(f"got {at - start} of {end - start} bytes")

    def _key(self, name: str) -> str:
        """Its name in the bucket; of "", what all names there begin with."""
        if self.scheme in ("http", "https"):
            return name
        _, _, prefix = self._root.partition("/")
        return f"{prefix}/{name}" if prefix else name

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == _MOST_FAILURES and not self._works:
            said = self.translated(error, self.url).what
            say(f"obstore is not used any more for {self.url}: {said}", err=True)

    def _require_same(self, error: Exception, name: str, version: str) -> None:
        changed = type(error).__name__ == "PreconditionError"
        changed = changed or (isinstance(error, Unexpected) and error.status == 412)
        if self.scheme not in _TELL_ALL and (changed or isinstance(error, FileNotFoundError)):
            # GCS does not find a generation that is gone; Azure's 412 may also be of a blob that is.
            changed = self.entry(name).version != version
        if changed:
            raise Changed(
                "it is no longer the version that is pinned",
                where=self._shown(name),
                hint="the object was changed: write the dataset again, or submit a new run",
            ) from error


def _is_plain(store: Store) -> bool:
    source = store.source
    address = options.endpoint_of(source) if store.scheme in ("s3", "s3a") else store.address
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.query or parts.username:
        return False
    through_a_proxy = parts.scheme in getproxies() or "all" in getproxies()
    return not (_asked_for() == "obstore" or through_a_proxy or source.requester_pays or source.anonymous)


class _Credentials:
    """Credentials as botocore finds them: environment, profile, SSO, instance. obstore knows no profiles."""

    def __init__(self, profile: str) -> None:
        import botocore.session

        found = botocore.session.Session(profile=profile or None).get_credentials()
        if found is None:
            raise StorageError("no credentials")
        self._found = found

    def __call__(self) -> dict[str, Any]:
        frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=15),
        }


def _region(source: Dataset) -> str:
    """Where the bucket is: said here, in the environment, or in the user's configuration, which botocore reads."""
    said = source.region or os.environ.get("AWS_REGION")
    if not said and not source.profile and not os.environ.get("AWS_PROFILE"):
        said = os.environ.get("AWS_DEFAULT_REGION")
    config = expand_user(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config")
    if not said and (source.profile or config.exists()):
        import botocore.session

        said = botocore.session.Session(profile=source.profile or None).get_config_variable("region")
    return said or "us-east-1"


def _s3(store: Store) -> Any:
    from obstore.store import S3Store

    source, endpoint = store.source, options.endpoint_of(store.source)
    given: dict[str, Any] = {"region": _region(source)}
    if endpoint:
        given["endpoint"] = endpoint
    if source.anonymous:
        given["skip_signature"] = True
    elif source.profile or not all(os.environ.get(name) for name in _KEYS):
        given["credential_provider"] = _Credentials(source.profile)
    if source.requester_pays:
        given["request_payer"] = True
    client = {**_CLIENT, "allow_http": endpoint.startswith("http://")}
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle and endpoint.startswith("https://"):
        with open(bundle, "rb") as file:
            client["root_certificate"] = file.read()
    return S3Store(store.bucket, client_options=client, retry_config=_RETRY, **given)


def _gcs(store: Store) -> Any:
    from obstore.store import GCSStore

    source, endpoint = store.source, options.endpoint_of(store.source)
    if source.requester_pays:
        raise StorageError("requester_pays is read by gcsfs")
    given: dict[str, Any] = {"base_url": endpoint} if endpoint else {}
    if source.anonymous:
        given["skip_signature"] = True
    elif options.is_emulated(source):
        given["bearer_token"] = "none"  # noqa: S105  (it asks for none, but obstore writes nothing without one)
    else:
        given.update(_google_credentials())
    client = {**_CLIENT, "allow_http": endpoint.startswith("http://")}
    return GCSStore(store.bucket, client_options=client, retry_config=_RETRY, **given)


def _google_credentials() -> dict[str, Any]:
    """Credentials as gcsfs finds them: Google's own search, else none, for a public bucket."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from obstore.auth.google import GoogleCredentialProvider

    try:
        found, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
    except DefaultCredentialsError:
        return {"skip_signature": True}
    return {"credential_provider": GoogleCredentialProvider(found)}


def _azure(store: Store) -> Any:
    from obstore.store import AzureStore

    account = options.azure_account(store.source)
    given: dict[str, Any] = {"account_name": account.name}
    if account.endpoint:
        given["endpoint"] = account.endpoint
    if store.source.anonymous:
        given["skip_signature"] = True
    elif account.key:
        given["account_key"] = account.key
    elif account.sas:
        given["sas_key"] = account.sas
    else:
        from obstore.auth.azure import AzureCredentialProvider

        given["credential_provider"] = AzureCredentialProvider()
    client = {**_CLIENT, "allow_http": account.endpoint.startswith("http://")}
    return AzureStore(store.bucket, client_options=client, retry_config=_RETRY, **given)


def _http(store: Store) -> Any:
    from obstore.store import HTTPStore

    client = {**_CLIENT, "allow_http": store.scheme == "http"}
    return HTTPStore.from_url(store.address, client_options=client, retry_config=_RETRY)


_GCS, _AZURE = ("gs", "gcs"), ("az", "abfs", "abfss")
_TELL_ALL = ("s3", "s3a", "http", "https")
"""Stores that have no more to tell of an object than its size and ETag."""
_MAKERS: dict[str, Callable[[Store], Any]] = {
    "s3": _s3,
    "s3a": _s3,
    **dict.fromkeys(_GCS, _gcs),
    **dict.fromkeys(_AZURE, _azure),
    "http": _http,
    "https": _http,
}
