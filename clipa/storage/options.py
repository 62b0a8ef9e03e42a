"""A dataset's options in the words of each store's fsspec package. Pure but for the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from clipa.errors import InputError
from clipa.spec.cluster import Dataset
from clipa.storage.pattern import redacted

EMULATOR = "STORAGE_EMULATOR_HOST"
_ACCOUNT = re.compile(r"abfss?://[^/@]+@([^/.]+)\.")
_PROXIED = {"trust_env": True}
"""aiohttp looks at HTTP_PROXY, HTTPS_PROXY and NO_PROXY only when it is told to."""
_NEVER_CACHED = {"use_listings_cache": False, "skip_instance_cache": True}


def scheme_of(url: str) -> str:
    """The scheme of a URL; a path is `file`."""
    return url.partition("://")[0] if "://" in url else "file"


_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "s3a": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": (EMULATOR,),
    "gcs": (EMULATOR,),
}
"""Where boto3 and Google's clients look for an endpoint."""


def endpoint_of(source: Dataset) -> str:
    """The endpoint of an S3 or GCS dataset: its own, or that of the environment."""
    variables = _ENDPOINTS.get(scheme_of(source.url), ())
    found = source.endpoint or next((os.environ[name] for name in variables if os.environ.get(name)), "")
    return found if not found or "://" in found else f"http://{found}"


def is_emulated(source: Dataset) -> bool:
    """Whether GCS is an emulator's, which knows no credentials."""
    return not source.endpoint and bool(endpoint_of(source))


class Account(NamedTuple):
    """An account of Azure's blob storage, and what there is to open it; `endpoint` where it is not Azure's own."""

    name: str
    key: str
    sas: str
    endpoint: str
    connection: str


def azure_account(source: Dataset) -> Account:
    """The account of an Azure dataset: that of its URL (`abfss://container@account.dfs.core.windows.net/...`), else
    that of the environment, in the words of adlfs, of `az` and of a connection string.
    """
    connection = _first("AZURE_STORAGE_CONNECTION_STRING")
    said = dict(word.split("=", 1) for word in connection.split(";") if "=" in word)
    own = _ACCOUNT.match(source.url)
    if own and own[1] != said.get("AccountName"):
        connection, said = "", {}
    return Account(
        name=own[1]
        if own
        else said.get("AccountName") or _first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
        key=said.get("AccountKey") or _first("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"),
        sas=said.get("SharedAccessSignature") or _first("AZURE_STORAGE_SAS_TOKEN"),
        endpoint=said.get("BlobEndpoint", ""),
        connection=connection,
    )


def _first(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def for_fsspec(source: Dataset) -> dict[str, Any]:
    """Arguments of the file system.

    Raises:
        InputError: an option that this scheme does not know.
    """
    scheme = scheme_of(source.url)
    understood, make = _SCHEMES.get(scheme, ((), _plain))
    given = {
        "endpoint": source.endpoint,
        "region": source.region,
        "profile": source.profile,
        "anonymous": source.anonymous,
        "requester_pays": source.requester_pays,
    }
    for name, value in given.items():
        if value and name not in understood:
            raise InputError(
                f"{name} does not apply to {scheme}:// URLs",
                where=redacted(source.url),
                allowed=", ".join(understood) or "no options",
            )
    return make(source)


def _plain(source: Dataset) -> dict[str, Any]:
    return {"skip_instance_cache": True}


def _s3(source: Dataset) -> dict[str, Any]:
    endpoint = endpoint_of(source)
    client: dict[str, Any] = {"region_name": source.region} if source.region else {}
    # Stores other than AWS refuse the checksums that botocore adds by default (boto/boto3#4392).
    plain = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return {
        "anon": source.anonymous,
        "profile": source.profile or None,
        "endpoint_url": endpoint or None,
        "requester_pays": source.requester_pays,
        "client_kwargs": client,
        "config_kwargs": {
            "retries": {"max_attempts": 2},
            # A stalled connection must fail well before we give up, or nothing is tried again.
            "connect_timeout": 10,
            "read_timeout": 20,
            **(plain if endpoint else {}),
        },
        **_NEVER_CACHED,
    }


def _http(source: Dataset) -> dict[str, Any]:
    return {"client_kwargs": _PROXIED, "skip_instance_cache": True}


def _gcs(source: Dataset) -> dict[str, Any]:
    # gcsfs would ask what kind of bucket it is by gRPC, which is 60 s of silence where only HTTP gets through. It looks
    # at this when it is imported; zonal buckets need a "true" here.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    endpoint = endpoint_of(source)
    return {
        **({"token": "anon"} if source.anonymous or is_emulated(source) else {}),
        **({"endpoint_url": endpoint} if endpoint else {}),
        "requester_pays": source.requester_pays,
        "session_kwargs": _PROXIED,
        **_NEVER_CACHED,
    }


def _azure(source: Dataset) -> dict[str, Any]:
    account = azure_account(source)
    named = {"account_name": account.name} if account.name else {}
    if source.anonymous:
        return {**named, "anon": True, **_NEVER_CACHED}
    if account.connection:
        return {"connection_string": account.connection, "anon": False, **_NEVER_CACHED}
    secrets = {"account_key": account.key, "sas_token": account.sas}
    return {**named, **{name: value for name, value in secrets.items() if value}, "anon": False, **_NEVER_CACHED}


def _hf(source: Dataset) -> dict[str, Any]:
    # The token comes from HF_TOKEN or `hf auth login`.
    return {**({"token": False} if source.anonymous else {}), **_NEVER_CACHED}


_Make = Callable[[Dataset], dict[str, Any]]
_S3_OPTIONS = ("endpoint", "region", "profile", "anonymous", "requester_pays")
_GCS_OPTIONS = ("endpoint", "anonymous", "requester_pays")
_SCHEMES: dict[str, tuple[tuple[str, ...], _Make]] = {
    "s3": (_S3_OPTIONS, _s3),
    "s3a": (_S3_OPTIONS, _s3),
    "gs": (_GCS_OPTIONS, _gcs),
    "gcs": (_GCS_OPTIONS, _gcs),
    "az": (("anonymous",), _azure),
    "abfs": (("anonymous",), _azure),
    "abfss": (("anonymous",), _azure),
    "hf": (("anonymous",), _hf),
    "http": ((), _http),
    "https": ((), _http),
}
