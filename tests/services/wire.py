"""An S3 server behind a wire that breaks: fixtures of tests that read it by streams, or in ranges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services.faults import FaultProxy, fault_proxy
from tests.services.s3 import s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def streamed(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The wire, read as clipa chooses: by streams where obstore is installed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with fault_proxy(server) as running:
        yield running


@pytest.fixture
def proxy(streamed: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The wire, read in ranges; test_stage_fast.py has the same by streams."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("CLIPA_TRANSPORT", "fsspec")
    return streamed
