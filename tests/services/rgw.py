"""A real S3 server: Ceph's object gateway with one monitor and one disk in memory, on loopback, all under one folder.

It checks signatures and multipart uploads as AWS does, speaks HTTPS, and can be killed and started again (0.2 s).
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services.loopback import certify
from tests.services.require import require

PACKAGES = "radosgw ceph-osd ceph-mon ceph-common"
_PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-osd", "ceph-mon", "ceph-authtool", "monmaptool", "openssl")
_START_S = 90.0
_KEYS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    "client.rgw.a": {"mon": "allow rw", "osd": "allow rwx"},
}
# 1 copy, few placement groups: the cluster has one disk. Deleted objects are freed after 3 s, not 2 h.
_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2}/0,v1:127.0.0.1:{mon_v1}/0]
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth allow insecure global id reclaim = false
keyring = {folder}/keyring
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
crash dir = {folder}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 2000
[mon]
mon data = {folder}/mon
mon data avail crit = 1
mon data avail warn = 2
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw.a]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{http} ssl_endpoint=127.0.0.1:{https} ssl_certificate={folder}/rgw.pem
rgw thread pool size = 32
rgw dynamic resharding = false
rgw run sync thread = false
rgw gc obj min wait = 3
rgw gc processor period = 3
rgw gc processor max time = 3
"""


@dataclass
class Rgw:
    """A running gateway. `certificate` is what a client must trust to use `https`."""

    folder: Path
    http: str
    https: str
    certificate: Path
    access_key: str = "testkey"
    secret_key: str = "testsecret"
    gateway: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """What an S3 client must find in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CA_BUNDLE": str(self.certificate),
        }

    def client(self) -> Any:
        """A plain botocore client: the tests' own way in, past the code that they test."""
        import botocore.session

        return botocore.session.get_session().create_client(
            "s3",
            "us-east-1",
            endpoint_url=self.http,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def new_bucket(self) -> str:
        """The name of a fresh bucket."""
        name = f"b{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def kill(self) -> None:
        """kill -9 of the gateway: open connections break, new ones are refused."""
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait()

    def start(self) -> None:
        """Start the gateway and wait until it answers."""
        self.gateway = _spawn(self.folder, ["radosgw", "-n", "client.rgw.a", "-f"])
        _until(lambda: _answers(self.http), self.gateway)


@contextlib.contextmanager
def running() -> Iterator[Rgw]:
    """A gateway for as long as the block lasts. Everything lies under one temporary folder and is ended by its pid."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    require(
        not lacking, f"{', '.join(lacking)} not installed: apt-get install --no-install-recommends {PACKAGES} openssl"
    )
    folder = Path(tempfile.mkdtemp(prefix="rgw-"))  # short: a socket's path must stay below 108 bytes
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        mon_v2, mon_v1, http, https = _free_ports(4)
        names = {"fsid": uuid.uuid4(), "mon_v2": mon_v2, "mon_v1": mon_v1, "http": http, "https": https}
        (folder / "ceph.conf").write_text(_CONF.format(folder=folder, **names))
        shutil.copy(certify(folder), folder / "rgw.pem")
        _start_cluster(folder, stack, str(names["fsid"]), f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]")
        rgw = Rgw(folder, f"http://127.0.0.1:{http}", f"https://127.0.0.1:{https}", folder / "server.crt")
        stack.callback(lambda: rgw.gateway and _end(rgw.gateway))
        rgw.start()
        keys = ["--access-key", rgw.access_key, "--secret-key", rgw.secret_key]
        _ceph(folder, ["radosgw-admin", "user", "create", "--uid", "t", "--display-name", "t", *keys])
        yield rgw


@pytest.fixture(scope="session")
def rgw() -> Iterator[Rgw]:
    """One gateway for the whole session: it takes seconds to start."""
    with running() as started:
        yield started


def _start_cluster(folder: Path, stack: contextlib.ExitStack, fsid: str, addresses: str) -> None:
    keyring = str(folder / "keyring")
    for number, (name, rights) in enumerate(_KEYS.items()):
        caps = [word for kind, right in rights.items() for word in ("--cap", kind, right)]
        create = ["--create-keyring"] if number == 0 else []
        _ceph(folder, ["ceph-authtool", keyring, *create, "--gen-key", "-n", name, *caps], conf=False)
    monmap = str(folder / "monmap")
    _ceph(folder, ["monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, monmap], conf=False)
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    _ceph(folder, ["ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring])
    mon = _spawn(folder, ["ceph-mon", "-i", "a", "-f"])
    stack.callback(_end, mon)
    osd_id = str(uuid.uuid4())
    # The client waits for the monitor by itself.
    _ceph(folder, ["ceph", "--connect-timeout", "30", "osd", "new", osd_id, "0"])
    _ceph(folder, ["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id])
    osd = _spawn(folder, ["ceph-osd", "-i", "0", "-f"])
    stack.callback(_end, osd)
    _until(lambda: b"1 up" in _ceph(folder, ["ceph", "--connect-timeout", "30", "osd", "stat"]), osd)


def _ceph(folder: Path, argv: list[str], conf: bool = True) -> bytes:
    argv = [argv[0], "-c", str(folder / "ceph.conf"), *argv[1:]] if conf else argv
    done = subprocess.run(argv, capture_output=True, timeout=_START_S, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')[-2000:]}"
    return done.stdout


def _spawn(folder: Path, argv: list[str]) -> subprocess.Popen[bytes]:
    argv = [argv[0], "-c", str(folder / "ceph.conf"), *argv[1:]]
    with open(folder / f"{argv[0]}.out", "ab") as out:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        assert process.poll() is None, f"{process.args} died with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} is not ready after {_START_S} s"
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ssl.SSLError):
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
