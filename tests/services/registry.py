"""A real registry (Debian's docker-registry) on loopback: open, with a password or a server of tokens; TLS or not."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jwt
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.services.require import require

PACKAGES = "docker-registry squashfs-tools"
USER, PASSWORD, IDENTITY = "me", "pass-w0rd-of-the-test", "identity-of-the-test"
_HASHED = "$2b$04$abcdefghijklmnopqrstuuYUnWbKEgPJSez0hSlsDs9dkrJnaB.M."  # bcrypt, the only one that the registry takes
_CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_SERVICE = "the-registry"


@contextlib.contextmanager
def serving(folder: Path, auth: Literal["none", "password", "token"] = "none", tls: bool = False) -> Iterator[str]:
    """Its address. What is in it lies in the folder; `folder/ca.pem` signs what needs a signature."""
    program = shutil.which("docker-registry")
    require(program is not None, f"docker-registry not installed: apt-get install --no-install-recommends {PACKAGES}")
    with contextlib.ExitStack() as stack:
        address = f"127.0.0.1:{_free_port()}"
        settings: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
            "http": {"addr": address},
        }
        identity = _identity(folder) if tls or auth == "token" else None
        if identity and tls:
            settings["http"]["tls"] = {"certificate": str(identity.certificate), "key": str(identity.key)}
        if auth == "password":
            (folder / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        if identity and auth == "token":
            realm = stack.enter_context(_tokens(identity))
            settings["auth"] = {"token": {"realm": realm, "service": _SERVICE, "issuer": "test",
                                          "rootcertbundle": str(identity.certificate)}}  # fmt: skip
        config = folder / f"{address}.yml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        server = subprocess.Popen([str(program), "serve", str(config)], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE)  # fmt: skip
        stack.callback(_end, server)
        _until_it_listens(server, address)
        yield address


def put(address: str, name: str, tag: str, labels: Mapping[str, str], files: bytes = b"") -> str:
    """Send an image of one layer; the digest of its manifest."""
    config = {"architecture": "amd64", "os": "linux", "config": {"Labels": dict(labels)}, "rootfs": {"type": "layers"}}
    blobs = [json.dumps(config).encode(), files or bytes(1024)]  # two empty blocks: a tar without files
    for blob in blobs:
        begun = requests.post(f"http://{address}/v2/{name}/blobs/uploads/", timeout=10)
        sign = "&" if "?" in begun.headers["Location"] else "?"
        url = f"{begun.headers['Location']}{sign}digest={_digest(blob)}"
        assert requests.put(url, data=blob, timeout=10).status_code == 201
    kinds = (_CONFIG, "application/vnd.oci.image.layer.v1.tar")
    entries = [{"mediaType": k, "digest": _digest(b), "size": len(b)} for k, b in zip(kinds, blobs, strict=True)]
    return put_manifest(address, name, tag, MANIFEST, {"config": entries[0], "layers": entries[1:]})


def put_manifest(address: str, name: str, tag: str, kind: str, inside: Mapping[str, object]) -> str:
    """Send a manifest or an index; its digest."""
    raw = json.dumps({"schemaVersion": 2, "mediaType": kind, **inside}).encode()
    url = f"http://{address}/v2/{name}/manifests/{tag}"
    answer = requests.put(url, data=raw, headers={"Content-Type": kind}, timeout=10)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Docker-Content-Digest"] == _digest(raw)
    return _digest(raw)


def auths(*hosts: str, password: str = PASSWORD) -> str:
    """What `docker login` writes into config.json."""
    word = base64.b64encode(f"{USER}:{password}".encode()).decode()
    return json.dumps({"auths": {host: {"auth": word} for host in hosts}})


@dataclass(frozen=True)
class Identity:
    """A certificate for 127.0.0.1 that signs itself, and its key."""

    certificate: Path
    key: Path


def _identity(folder: Path) -> Identity:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    found = Identity(folder / "ca.pem", folder / "key.pem")
    found.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return found


@contextlib.contextmanager
def _tokens(identity: Identity) -> Iterator[str]:
    """A server that gives tokens, signed for the registry, to who knows the password or the identity token."""
    body = "".join(identity.certificate.read_text().splitlines()[1:-1])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            self.give(urllib.parse.urlsplit(self.path).query, self.headers.get("Authorization") == f"Basic {word}")

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked = dict(urllib.parse.parse_qsl(form))
            good = asked.get("refresh_token") == IDENTITY and asked.get("grant_type") == "refresh_token"
            self.give(form, good, "access_token")

        def give(self, query: str, is_known: bool, called: str = "token") -> None:
            asked = dict(urllib.parse.parse_qsl(query))
            kind, name, actions = asked["scope"].split(":")
            now = int(time.time())
            claims = {"iss": "test", "aud": asked["service"], "sub": USER, "exp": now + 60, "nbf": now - 60, "iat": now,
                      "access": [{"type": kind, "name": name, "actions": actions.split(",")}]}  # fmt: skip
            token = jwt.encode(claims, identity.key.read_text(), algorithm="RS256", headers={"x5c": [body]})
            raw = json.dumps({called: token}).encode() if is_known else b'{"details": "incorrect username or password"}'
            self.send_response(200 if is_known else 401)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Handler) as address:
        yield f"http://{address}/token"


@contextlib.contextmanager
def listening(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of an HTTP server on loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_it_listens(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                return
        assert server.poll() is None, server.stderr and server.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(20)


def _digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"
