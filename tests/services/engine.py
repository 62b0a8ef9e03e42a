"""A real Docker engine that the tests start, and a base image made from Debian packages: no registry is asked.

The engine runs without a bridge and without iptables, so nothing in the machine's network changes; builds and
containers use the host's network or none. Everything lies under one temporary folder and is ended by its pid. The base
and the wheel of torch are kept in the user's cache. Cold, the whole of it (base, wheel, engine, image) takes 2-4
minutes on 2 cores; warm, about a minute, because every session builds the image anew, which is the test.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.services.require import require

PACKAGES = "docker.io mmdebstrap"
LENT = "CLIPA_TEST_DOCKER_HOST"
"""For a quick turn while you write tests: the DOCKER_HOST of an engine that keeps its layers."""
BASE = "clipa-test/base:bookworm"
_SUITE = "bookworm"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_START_S = 60.0
_ROOT = Path(__file__).resolve().parents[2]
# Taken before the tests move HOME away.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipa-tests"


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    folder: Path
    host: str
    base: str = BASE

    @property
    def environment(self) -> dict[str, str]:
        """What a client must find in its environment."""
        return {**os.environ, "DOCKER_HOST": self.host}

    def docker(self, *words: str, check: bool = True, timeout: float = 600) -> str:
        """The output of the docker command line."""
        done = subprocess.run(
            ["docker", *words], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"docker {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def logs(self, container: str) -> str:
        """Both streams of a container."""
        words = ["docker", "logs", container]
        return subprocess.run(
            words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout


@contextlib.contextmanager
def running() -> Iterator[Engine]:
    """An engine for as long as the block lasts, with the base image in it."""
    if LENT in os.environ:
        lent = Engine(Path(tempfile.gettempdir()), os.environ[LENT])
        _import_base(lent)
        yield lent
        return
    lacking = [name for name in ("dockerd", "docker", "mmdebstrap") if shutil.which(name) is None]
    require(not lacking, f"{', '.join(lacking)} not installed: apt-get install --no-install-recommends {PACKAGES}")
    require(os.geteuid() == 0, "dockerd needs root")
    folder = Path(tempfile.mkdtemp(prefix="eng-"))  # short: a socket's path must stay below 108 bytes
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_unmount, folder)
        engine = Engine(folder, f"unix://{folder}/docker.sock")
        daemon = _start(folder)
        stack.callback(_stop, engine, daemon)
        _until_it_answers(engine, daemon)
        _import_base(engine)
        yield engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """One engine for the whole session."""
    with running() as started:
        yield started


@pytest.fixture(scope="session")
def wheels() -> Iterator[str]:
    """The URL of a folder with the CPU build of torch, which PyPI does not have."""
    folder = CACHE / "wheels"
    if not list(folder.glob("torch-*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        pin = next(line for line in _lock().splitlines() if line.startswith("torch=="))
        got = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), pin],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        require(got.returncode == 0, f"the CPU build of torch cannot be had: {got.stderr[-300:]}")
    handler = partial(_Quiet, directory=str(folder))
    with _server(handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="session")
def image(engine: Engine, wheels: str) -> str:
    """The project's image, built by `clipa image build` on the base from Debian packages; its tag."""
    words = ["--variant", "cpu", "--base", BASE, "--network", "host", "--build-arg", f"PIP_FIND_LINKS={wheels}"]
    built = subprocess.run(
        [sys.executable, "-m", "clipa.cli.main", "image", "build", *words],
        env=engine.environment, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return built.stdout.strip()


def _server(handler: partial[http.server.SimpleHTTPRequestHandler]) -> http.server.ThreadingHTTPServer:
    """On the same port each time where it is free: the URL is a build argument, and decides what is made anew."""
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 18_932), handler)
    except OSError:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _lock() -> str:
    return (_ROOT / "docker" / "lock-cpu.txt").read_text()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    # A do-nothing hook makes the engine take requests for GPUs, so that the request's path can be followed.
    hook = folder / "bin" / "nvidia-container-runtime-hook"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\ncat >/dev/null\n")
    hook.chmod(0o755)
    words = [
        "dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
        "-H", f"unix://{folder}/docker.sock", "--bridge=none", "--iptables=false", "--ip6tables=false",
        "--ip-forward=false", "--ip-masq=false", "--log-level=warn", "--shutdown-timeout=5",
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PATH": f"{hook.parent}:{os.environ['PATH']}"},
        )  # fmt: skip


def _until_it_answers(engine: Engine, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while subprocess.run(["docker", "version"], env=engine.environment, capture_output=True, check=False).returncode:
        said = (engine.folder / "log").read_text()[-500:]
        require(daemon.poll() is None, f"dockerd does not run here: {said}")
        assert time.monotonic() < deadline, f"dockerd does not answer: {said}"
        time.sleep(0.1)


def _stop(engine: Engine, daemon: subprocess.Popen[bytes]) -> None:
    if left := engine.docker("ps", "--all", "--quiet", check=False).split():
        engine.docker("rm", "--force", *left, check=False)
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _unmount(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)


def _import_base(engine: Engine) -> None:
    """Debian with its package manager, from the machine's own mirror, with the machine's own certificates.

    The certificates make pip work behind a proxy that opens TLS: they belong to the base, not to the Dockerfile.
    """
    base = CACHE / f"base-{_SUITE}.tar"
    if not base.is_file():
        base.parent.mkdir(parents=True, exist_ok=True)
        part = base.with_name(f".{os.getpid()}.tar")
        extra = sorted(Path("/usr/local/share/ca-certificates").glob("*.crt"))
        hooks = [f"--customize-hook=copy-in {' '.join(map(str, extra))} /usr/local/share/ca-certificates",
                 '--customize-hook=chroot "$1" update-ca-certificates'] if extra else []  # fmt: skip
        made = subprocess.run(
            ["mmdebstrap", "--quiet", "--format=tar", "--variant=apt", "--include=ca-certificates", *hooks, _SUITE,
             str(part), *mirror()], capture_output=True, text=True, check=False,
        )  # fmt: skip
        require(made.returncode == 0, f"no base image: {made.stderr[-300:]}")
        part.rename(base)
    changes = ['CMD ["/bin/bash"]', *(f"ENV {name}={_CERTIFICATES}" for name in ("PIP_CERT", "SSL_CERT_FILE"))]
    if engine.docker("images", "--quiet", BASE):
        return
    engine.docker("import", *(word for change in changes for word in ("--change", change)), str(base), BASE)


def mirror() -> list[str]:
    """The machine's own Debian mirror, from its own configuration."""
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=False
    )
    return sorted(set(asked.stdout.split()))[:1]
