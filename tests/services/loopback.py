"""Servers on loopback: a free port, a certificate, and the wait until somebody listens."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

START_S = 60.0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def certify(folder: Path) -> Path:
    """Key and certificate for 127.0.0.1 in one file, `server.pem`; the certificate alone is `server.crt` beside it."""
    key, certificate, both = folder / "server.key", folder / "server.crt", folder / "server.pem"
    # Not a CA: rustls refuses a CA's certificate as a server's.
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    names += ["-addext", "basicConstraints=critical,CA:FALSE"]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*argv, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


def until_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server that was started takes connections."""
    deadline = time.monotonic() + START_S
    while not _answers(port):
        assert process.poll() is None, f"{process.args} died at its start"
        assert time.monotonic() < deadline, f"{process.args} does not answer after {START_S} s"
        time.sleep(0.05)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
