"""A dataset's options in the words of each store's fsspec package. Pure but for the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from clipa.errors import InputError
from clipa.spec.cluster import Dataset
from clipa.storage.pattern import redacted

_NEVER_CACHED = {"use_listings_cache": False, "skip_instance_cache": True}


def scheme_of(url: str) -> str:
    """The scheme of a URL; a path is `file`."""
    return url.partition("://")[0] if "://" in url else "file"


def endpoint_of(source: Dataset) -> str:
    """The endpoint of an S3 dataset: its own, or that of the environment, as boto3 reads it."""
    return source.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


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


def _gcs(source: Dataset) -> dict[str, Any]:
    return {
        **({"token": "anon"} if source.anonymous else {}),
        **({"endpoint_url": source.endpoint} if source.endpoint else {}),
        "requester_pays": source.requester_pays,
        **_NEVER_CACHED,
    }


def _azure(source: Dataset) -> dict[str, Any]:
    # The account comes from AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING, as adlfs reads them.
    return {"anon": source.anonymous, **_NEVER_CACHED}


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
}
