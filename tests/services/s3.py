"""An S3 server in a process of its own: moto's, which speaks real HTTP."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.services.loopback import free_port, until_answers
from tests.services.require import require


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a running S3 server."""
    require(importlib.util.find_spec("moto") is not None, "needs moto[server]")
    port = free_port()
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_answers(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def new_bucket(server: str) -> str:
    """The name of a fresh bucket."""
    name = f"b{uuid.uuid4().hex[:12]}"
    with urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT"), timeout=10):
        return name


def client(server: str, key: str = "key", secret: str = "secret") -> Any:
    """A plain botocore client: the tests' own way in, past the code that they test."""
    import botocore.session

    make = botocore.session.get_session().create_client
    return make("s3", "us-east-1", endpoint_url=server, aws_access_key_id=key, aws_secret_access_key=secret)
