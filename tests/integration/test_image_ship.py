"""Images on the road, on a real engine: a registry, files, and clearing up."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clipa.image.engine import Image
from clipa.image.prune import unneeded
from tests.services.registry import serving

if TYPE_CHECKING:
    from tests.services.engine import Engine

pytest_plugins = ["tests.services.engine", "tests.services.apptainer"]
CLIPA = [str(Path(sys.executable).parent / "clipa"), "image"]


def clipa(engine: Engine, *words: str, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [*CLIPA, *words], env=engine.environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def small(engine: Engine) -> Iterator[str]:
    """An image of a few bytes that says it is clipa's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("hello")
        member.size = 5
        tar.addfile(member, io.BytesIO(os.urandom(5)))
    words = ["docker", "import", "--change", "LABEL org.clipa.content=abc org.clipa.code=c1", "-", "clipa:small"]
    subprocess.run(words, input=packed.getvalue(), env=engine.environment, check=True, capture_output=True)
    yield "clipa:small"
    engine.docker("rmi", "--force", "clipa:small", check=False)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A real registry on loopback, which the engine trusts without TLS."""
    with serving(tmp_path) as address:
        yield address


def test_push_says_the_name_that_never_moves(engine: Engine, small: str, registry: str) -> None:
    out, _ = clipa(engine, "push", small, f"{registry}/me/clipa:1")
    name, _, digest = out.strip().partition("@")
    assert name == f"{registry}/me/clipa"
    assert digest.startswith("sha256:")
    found = json.loads(clipa(engine, "inspect", small, "--json")[0])["image"]
    assert found["digests"] == [out.strip()]
    ident = found["id"]
    engine.docker("rmi", "--force", ident)
    engine.docker("pull", out.strip())
    assert engine.docker("image", "inspect", "--format", "{{.Id}}", out.strip()) == ident, "the very image comes back"
    engine.docker("rmi", "--force", ident)


def test_a_push_that_fails_is_named(engine: Engine, small: str) -> None:
    _, said = clipa(engine, "push", small, "127.0.0.1:1/me/clipa:1", code=1)
    assert "127.0.0.1:1/me/clipa" in said
    engine.docker("rmi", "127.0.0.1:1/me/clipa:1")


def test_export_writes_once_and_whole(engine: Engine, small: str, tmp_path: Path) -> None:
    file = tmp_path / "clipa.tar"
    out, _ = clipa(engine, "export", small, str(file))
    before = file.stat().st_mtime_ns
    record = json.loads(file.with_name("clipa.tar.json").read_text())
    assert record["digest"] in out
    assert record["code"] == "c1"
    assert "there already" in clipa(engine, "export", small, str(file))[1]
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:-100])
    clipa(engine, "export", small, str(file))
    assert file.stat().st_mtime_ns != before, "a damaged file is written anew"
    assert {path.name for path in tmp_path.iterdir()} == {"clipa.tar", "clipa.tar.json", ".clipa.tar.lock"}
    ident = engine.docker("image", "inspect", "--format", "{{.Id}}", small)
    engine.docker("rmi", "--force", ident)
    engine.docker("load", "--input", str(file))
    assert engine.docker("image", "inspect", "--format", "{{.Id}}", small) == ident


def test_export_knows_its_files_and_tools(engine: Engine, small: str, tmp_path: Path) -> None:
    assert ".sif" in clipa(engine, "export", small, str(tmp_path / "clipa.zip"), code=2)[1]
    if shutil.which("enroot") is None:
        assert "enroot is not installed" in clipa(engine, "export", small, str(tmp_path / "clipa.sqsh"), code=2)[1]
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_prune_on_the_engine(engine: Engine, small: str) -> None:
    _, said = clipa(engine, "prune", "--keep", "1000")
    assert said.startswith("0 images")
    container = engine.docker("create", "--network", "none", small, "x")
    names = {
        name
        for one in json.loads(clipa(engine, "prune", "--keep", "0", "--dry-run", "--json")[0])["images"]
        for name in one["tags"]
    }
    assert small not in names, "a container was made from it"
    engine.docker("rm", container)
    names = {
        name
        for one in json.loads(clipa(engine, "prune", "--keep", "0", "--dry-run", "--json")[0])["images"]
        for name in one["tags"]
    }
    assert small in names


def _image(number: int, *digests: str) -> Image:
    return Image(id=f"sha256:{number}", tags=(), digests=digests, bytes=1, created=str(number), platform="")


def test_what_is_needed_stays() -> None:
    images = [_image(5), _image(4, "r/c@sha256:d4"), _image(3), _image(2), _image(1)]
    assert [one.id for one in unneeded(images, (), (), 2)] == ["sha256:1", "sha256:2", "sha256:3"]
    assert [one.id for one in unneeded(images, ("sha256:1", "r/c@sha256:d4"), ("sha256:3",), 1)] == ["sha256:2"]
    assert unneeded(images, (), (), 9) == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_apptainer_brings_a_registrys_tag_once_without_a_daemon(
    engine: Engine, small: str, registry: str, apptainer: Path, tmp_path: Path
) -> None:
    pushed = clipa(engine, "push", small, f"{registry}/me/clipa:1")[0].strip()
    env = {**os.environ, "PATH": f"{apptainer}:{os.environ['PATH']}", "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    (tmp_path / "clipa.toml").write_text('cluster = "here.toml"\nrun_root = "runs"\n')

    def submit(image: str, code: int = 0) -> str:
        (tmp_path / "here.toml").write_text(f'gpus = 0\n[container]\nruntime = "apptainer"\nimage = "{image}"\n')
        argv = [CLIPA[0], "submit", "pretrain", "demo", "--dry-run"]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    first = submit(f"{registry}/me/clipa:1")
    (file,) = (tmp_path / "runs" / ".images").glob("*.sif")
    record = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert (record["image"], record["code"]) == (pushed, "c1")
    assert str(file) in first
    before = file.stat().st_mtime_ns
    submit(pushed)
    assert file.stat().st_mtime_ns == before
    gone = pushed[:-4] + "0000"
    assert gone in submit(gone, code=1)
    assert len(list((tmp_path / "runs" / ".images").glob("*.sif"))) == 1
