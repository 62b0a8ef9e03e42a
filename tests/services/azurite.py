"""Azure's own emulator of its blob storage, an npm package: signatures, ETags, block lists and MD5s as Azure has them.

Where it is not installed (`npm install -g azurite`, or in the folder that `AZURITE` names), tests skip. CI does
without: its install takes half a minute.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.loopback import free_port, until_answers

_ACCOUNT = "devstoreaccount1"
# Published: every Azurite has it.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Azurite:
    """A running server, reached at `url` (or through a proxy in front of it)."""

    url: str

    def environment(self, url: str = "", key: str = _KEY) -> Mapping[str, str]:
        """What a client must find in its environment."""
        words = {"AccountName": _ACCOUNT, "AccountKey": key, "BlobEndpoint": f"{url or self.url}/{_ACCOUNT}"}
        return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in words.items())}

    def new_container(self) -> str:
        """The name of a fresh container."""
        from azure.storage.blob import BlobServiceClient

        name = f"b{uuid.uuid4().hex[:12]}"
        text = self.environment()["AZURE_STORAGE_CONNECTION_STRING"]
        with BlobServiceClient.from_connection_string(text) as client:
            client.create_container(name)
        return name


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """One server for the whole session."""
    program = shutil.which("azurite-blob") or _beside()
    if not program or importlib.util.find_spec("adlfs") is None:
        pytest.skip("az:// needs Azurite and adlfs: npm install -g azurite; pip install adlfs")
    folder = Path(tempfile.mkdtemp(prefix="azurite-"))
    port = free_port()
    argv = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    process = subprocess.Popen(
        [*argv, "--skipApiVersionCheck", "--disableTelemetry"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until_answers(port, process)
        yield Azurite(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _beside() -> str:
    found = Path(os.environ.get("AZURITE", "/nonexistent")) / "node_modules" / ".bin" / "azurite-blob"
    return str(found) if found.exists() else ""
