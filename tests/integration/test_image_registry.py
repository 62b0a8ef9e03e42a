"""Registries without a daemon, on a real one: what a tag is, who may ask, and the file that is made of it, once."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clipa.errors import ConfigError, InputError
from clipa.image import registry
from clipa.image.context import own_code
from clipa.image.reference import parse
from clipa.launch import pin
from clipa.spec.container import Pinned
from clipa.spec.load import load_cluster
from tests.services import enroot
from tests.services import registry as service
from tests.services.require import require

CLIPA = str(Path(sys.executable).parent / "clipa")
LABELS = {"org.clipa.code": "c1", "org.opencontainers.image.revision": "r1", "org.clipa.content": "d1"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in all registries of this file: me/clipa:1 and an index of it, me/clipa:many."""
    folder = tmp_path_factory.mktemp("store")
    with service.serving(folder) as address:
        one = service.put(address, "me/clipa", "1", LABELS)
        entry = {"mediaType": service.MANIFEST, "digest": one, "size": 1, "platform": {"os": "linux"}}
        many = service.put_manifest(address, "me/clipa", "many", service.INDEX, {"manifests": [entry]})
    (folder / "digests").write_text(json.dumps({"1": one, "many": many}))
    return folder


@pytest.fixture(scope="module")
def digests(store: Path) -> dict[str, str]:
    return dict(json.loads((store / "digests").read_text()))


def _ask(address: str, name: str = "me/clipa:1", patience: float = 10.0) -> str:
    return registry.digest_of(parse(f"{address}/{name}"), patience)


def _refusal(address: str, name: str = "me/clipa:1", patience: float = 10.0) -> str:
    with pytest.raises(InputError) as refused:
        _ask(address, name, patience)
    for secret in (service.PASSWORD, service.IDENTITY, "Basic ", "Bearer "):
        assert secret not in f"{refused.value!r}{refused.value}"
    return str(refused.value)


def test_what_a_tag_is(store: Path, digests: dict[str, str]) -> None:
    with service.serving(store) as address:
        assert {tag: _ask(address, f"me/clipa:{tag}") for tag in digests} == digests, (
            "the digest of an index is its own"
        )
        assert "no image of this name and tag" in _refusal(address, "me/clipa:2")
        assert "me/nobody:latest" in _refusal(address, "me/nobody")


@pytest.mark.parametrize("auth", ["password", "token"])
def test_who_may_ask(store: Path, digests: dict[str, str], home: Path, auth: str) -> None:
    docker, apptainer = home / ".docker" / "config.json", home / ".apptainer" / "docker-config.json"
    for file in (docker, apptainer):
        file.parent.mkdir()
    with service.serving(store, auth) as address:  # type: ignore[arg-type]
        (home / ".netrc").write_text(f"machine 127.0.0.1 login {service.USER} password {service.PASSWORD}\n")
        assert f"docker login {address}" in _refusal(address), "~/.netrc is not asked behind our back"
        apptainer.write_text(service.auths(address))
        assert _ask(address) == digests["1"]
        docker.write_text(service.auths(f"http://{address}", password="wrong"))
        assert "401" in _refusal(address), "Docker's come first"
        docker.write_text(service.auths(address))
        assert _ask(address) == digests["1"]


def test_a_login_kept_by_a_helper(
    store: Path, digests: dict[str, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's own protocol of helpers; a cloud's keeps a token that stands for a login."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    helper = tmp_path / "docker-credential-kept"
    config = home / ".docker" / "config.json"
    config.parent.mkdir()
    with service.serving(store, "token") as address:
        config.write_text(json.dumps({"credHelpers": {address: "kept"}}))
        assert "docker-credential-kept" in _refusal(address), "the helper is not there"
        for user, secret in ((service.USER, service.PASSWORD), ("<token>", service.IDENTITY)):
            said = json.dumps({"ServerURL": address, "Username": user, "Secret": secret})
            helper.write_text(f"#!/bin/sh\nhost=$(cat) && [ $1 = get ] && [ $host = {address} ] && echo '{said}'\n")
            helper.chmod(0o755)
            assert _ask(address) == digests["1"]
        config.write_text("no JSON of a config")
        assert "docker login" in _refusal(address)
        config.write_text(json.dumps({"auths": {address: {"auth": "!"}}}))
        assert "cannot be read" in _refusal(address)


def test_a_certificate_must_be_trusted(store: Path, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with service.serving(store, tls=True) as address:
        assert "REQUESTS_CA_BUNDLE" in _refusal(address)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(store / "ca.pem"))
        assert _ask(address) == digests["1"]


def test_a_registry_that_cannot_be_asked() -> None:
    class Busy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            name = self.path.split("/")[2]
            self.send_response({"busy": 429, "ill": 503}.get(name, 401))
            self.send_header("Retry-After", "37")
            odd = "Negotiate" if name == "odd" else 'Bearer realm="http://tokens.example/t",service="s"'
            self.send_header("WWW-Authenticate", odd)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with service.listening(Busy) as address:
        said = _refusal(address, "busy/clipa:1")
        assert "429" in said
        assert "in 37 s" in said
        assert "docker login" in said
        assert "503" in _refusal(address, "ill/clipa:1")
        assert "allowed: Basic, Bearer" in _refusal(address, "odd/clipa:1")
    assert "Connection refused" in _refusal(address)

    class Silent(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            time.sleep(1.0)

    with service.listening(Silent) as address:
        assert "does not answer" in _refusal(address, patience=0.3)


def test_a_password_is_never_sent_unencrypted_to_elsewhere() -> None:
    with pytest.raises(InputError, match="not encrypted"):
        registry._token(
            registry._Asked(parse("registry.example/me/clipa:1"), "https://registry.example", 1.0, None),  # type: ignore[arg-type]
            {"realm": "http://registry.example/token"},
            None,
        )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose profile wants pyxis, and the stand-in for enroot first on PATH."""
    require(shutil.which("mksquashfs") is not None, "squashfs-tools not installed")
    tool = tmp_path / "tools" / "enroot"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\n{Path(enroot.__file__).read_text()}")
    tool.chmod(0o755)
    (tmp_path / "tools" / "srun").symlink_to("/bin/true")  # asked for, and not started by a dry run
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("CLIPA_TEST_ENROOT_LOG", str(tmp_path / "enroot.log"))
    (tmp_path / "clipa.toml").write_text('cluster = "here.toml"\nrun_root = "runs"\n')
    return tmp_path


def _profile(folder: Path, image: str) -> Path:
    file = folder / "here.toml"
    file.write_text(f'gpus = 0\n[container]\nruntime = "pyxis"\nimage = "{image}"\n')
    return file


def _pin(folder: Path, image: str, say: pin.Say = pin.silent) -> Pinned:
    found = pin.pin(load_cluster(_profile(folder, image)), folder / "runs", folder / "cache", say)
    assert found is not None
    return found


def _refused(folder: Path, image: str, code: int) -> str:
    """What `clipa submit` says: the image comes before all else."""
    _profile(folder, image)
    argv = [CLIPA, "submit", "pretrain", "demo"]
    done = subprocess.run(argv, cwd=folder, text=True, capture_output=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_enroot_brings_a_tag_once_and_the_pin_says_what_it_was(project: Path, store: Path) -> None:
    log = project / "enroot.log"
    with service.serving(store) as address:
        image = f"{address}/me/clipa:moving"
        first = service.put(address, "me/clipa", "moving", LABELS)
        said: list[list[str]] = [[], []]
        both = [threading.Thread(target=_pin, args=(project, image, one.append)) for one in said]
        for one in both:
            one.start()
        for one in both:
            one.join(100)
        assert len(log.read_text().splitlines()) == 1, "two at a time, and one of them does it"
        assert log.read_text().split()[-1] == f"docker://{address}#me/clipa:{first}"
        assert sorted(len(one) for one in said) == [0, 1], "and says so"

        pinned = _pin(project, image)
        assert Path(pinned.identity) == project / "runs" / ".images" / f"{first[7:]}.sqsh"
        assert (pinned.reference, pinned.source) == (image, f"{address}/me/clipa@{first}")
        assert pinned.revision == "r1", "the labels are read from the file"
        assert pinned.code, "c1 is not the code that runs here"
        assert pin.moved([pinned]) == []

        second = service.put(address, "me/clipa", "moving", {**LABELS, "org.clipa.code": own_code()})
        (note,) = pin.moved([pinned])
        assert second[7:19] in note
        assert first[7:19] in note
        pin.check([pinned])
        now = _pin(project, image)
        assert Path(now.identity).name == f"{second[7:]}.sqsh"
        assert now.code == "", "the file has the very code that runs here"
        assert _pin(project, f"{address}/me/clipa@{first}").digest == pinned.digest
        assert len(log.read_text().splitlines()) == 2
    assert pin.moved([pinned]) == [], "a registry that is away keeps nobody from going on"
    Path(pinned.identity).write_bytes(b"hsqs")
    with pytest.raises(InputError, match="another one now"):
        pin.check([pinned])
    first_of_all = _pin(project, f"{address}/me/clipa@{second}")
    assert first_of_all == msgspec.structs.replace(
        now, reference=first_of_all.reference, settings=first_of_all.settings
    )


def test_what_cannot_be_brought_is_named(project: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service.serving(store) as address:
        assert "no image of this name and tag" in _refused(project, f"{address}/me/clipa:2", 2)
        gone = f"{address}/me/clipa@sha256:{'0' * 64}"
        assert "error code: HTTP Error 404" in _refused(project, gone, 1)
        assert "names neither one nor a registry" in _refused(project, "clipa:mine", 2)
        assert "no name of an image" in _refused(project, f"{address}/Me/clipa", 2)
        (project / "tools" / "enroot").unlink()
        assert "enroot is not installed" in _refused(project, f"{address}/me/clipa:1", 2)
    left = {path.suffix for path in (project / "runs" / ".images").iterdir()}
    assert left <= {".lock"}, "nothing half-written stays"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "-o", "/no/x.sqsh", f"docker://ghcr.io#me/clipa:sha256:{'0' * 64}"], ""),
        (["import", "--output", "/no/x.sqsh", "dockerd://" + "0" * 64], ""),
        (
            ["import", "--output", "/no/x.sqsh", f"docker://ghcr.io#me/clipa@sha256:{'0' * 64}"],
            "Invalid image reference",
        ),
        (["import", "--output", "/no/x.sqsh", "docker://ghcr.io/me/clipa:1"], "Invalid image reference"),
        (["import", "--force", "docker://ghcr.io#me/clipa:1"], "no such option"),
        (["import", "--output"], "wants a value"),
        (["fetch", "x"], "no such command"),
    ],
)
def test_the_stand_in_finds_faults(words: list[str], said: str) -> None:
    found = enroot.faults(words)
    assert (said in found[0]) if said else not found


def test_names() -> None:
    assert parse("ubuntu").api == ("registry-1.docker.io", "library/ubuntu")
    assert parse("docker.io/me/x:1").api == ("registry-1.docker.io", "me/x")
    for word in ("localhost:5000/c", "localhost/c", "127.0.0.1/c:1", "[::1]:5000/c"):
        assert parse(word).is_on_this_machine
    for word in ("ghcr.io/me/c", "localhost.example/c", "127.example/c", "me/c", "c"):
        assert not parse(word).is_on_this_machine
    for word in (
        "",
        "A",
        "a//b",
        "x/",
        "https://x/y",
        "a@sha256:1",
        "a:",
        "-a",
        "h.x/../y",
        "h.x/a b",
        "h.x/a;b",
        "$(x)/a.b",
    ):
        with pytest.raises(ConfigError):
            parse(word)
