"""The exact words of each runtime. Options are those of docker-run(1), apptainer-exec(1) and pyxis' README."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import ConfigError
from clipa.host import container, containers, runtime
from clipa.spec.container import Container, Mount, Pinned, parse_mount
from clipa.spec.load import load_cluster

ENV = {"RANK": "0", "CLIPA_STOP_FILE": "/tmp/clipa-x/stop", "SECRET": "s3cret value"}
ARGV = ["/host/venv/bin/python", "-m", "clipa.train", "/runs/r-pretrain", "--attempt", "2"]
RANK = runtime.Rank(
    "r-pretrain", 2, 1, "/tmp/clipa-x", ("GPU-1", "GPU-2"), {"memlock": "-1"}, "1000:100", "/cache", "n7", 8, "42-1", 2
)


def _pinned(**changes: object) -> Pinned:
    settings = Container(image="clipa:cuda-1", env=("SECRET",), shm="8g")
    pinned = Pinned(
        runtime="docker",
        reference="clipa:cuda-1",
        identity="sha256:abc",
        digest="sha256:abc",
        kind="id",
        mounts=(Mount("/runs", "/runs", True), Mount("/data", "/inside", False)),
        settings=settings,
    )
    return msgspec.structs.replace(pinned, **changes)


DOCKER = """docker run --rm --init --name clipa-r-pretrain-2-1 --network host --label org.clipa.run=r-pretrain --label
org.clipa.attempt=2 --workdir / --shm-size 8g --user 1000:100 --ulimit memlock=-1 --gpus '"device=GPU-1,GPU-2"'
--mount type=bind,source=/runs,target=/runs --mount type=bind,source=/data,target=/inside,readonly
--mount type=bind,source=/tmp/clipa-x,target=/tmp/clipa-x,readonly --env CLIPA_STOP_FILE --env PYTHONPATH --env RANK
--env SECRET --env TORCHINDUCTOR_CACHE_DIR --env TRITON_CACHE_DIR --entrypoint /opt/clipa/bin/python sha256:abc
-m clipa.train /runs/r-pretrain --attempt 2"""
APPTAINER = """apptainer exec --containall --no-home --writable-tmpfs --pwd / --nv
--bind /runs:/runs:rw --bind /data:/inside:ro
--bind /tmp/clipa-x:/tmp/clipa-x:ro --bind /dev/shm:/dev/shm:rw /images/clipa.sif /opt/clipa/bin/python
-m clipa.train /runs/r-pretrain --attempt 2"""
PYXIS = """srun --overlap --mem=0 --nodes=1 --ntasks=1 --nodelist=n7 --cpus-per-task=8 --export=ALL --unbuffered
--kill-on-bad-exit=1 --container-image=/images/clipa.sqsh --container-name=clipa-42-1-1
--container-mounts=/runs:/runs,/data:/inside:ro,/tmp/clipa-x:/tmp/clipa-x:ro --container-workdir=/
--no-container-mount-home --container-writable
--container-env=CLIPA_STOP_FILE,PYTHONPATH,RANK,SECRET,TORCHINDUCTOR_CACHE_DIR,TRITON_CACHE_DIR --gres=gpu:2
/opt/clipa/bin/python -m clipa.train /runs/r-pretrain --attempt 2"""


@pytest.mark.parametrize(
    ("name", "identity", "golden"),
    [
        ("docker", "sha256:abc", DOCKER),
        ("apptainer", "/images/clipa.sif", APPTAINER),
        ("pyxis", "/images/clipa.sqsh", PYXIS),
    ],
)
def test_golden(name: str, identity: str, golden: str) -> None:
    command = runtime.wrap(_pinned(runtime=name, identity=identity), ARGV, ENV, RANK)
    assert shlex.join(command.argv).split() == shlex.join(shlex.split(golden)).split()
    assert "s3cret" not in shlex.join(command.argv), "values go by the environment"
    prefix = "APPTAINERENV_" if name == "apptainer" else ""
    assert command.env[f"{prefix}SECRET"] == "s3cret value"
    assert command.env[f"{prefix}TRITON_CACHE_DIR"] == "/cache/triton"


def test_without_a_container_nothing_changes() -> None:
    assert runtime.wrap(None, ARGV, ENV, RANK) == (ARGV, ENV)


def test_a_snapshot_goes_before_the_images_code() -> None:
    command = runtime.wrap(_pinned(code="/runs/.code/1"), ARGV, ENV, RANK)
    assert command.env["PYTHONPATH"] == "/runs/.code/1"
    assert runtime.wrap(_pinned(), ARGV, ENV, RANK).env["PYTHONPATH"] == "", "and never the host's"


def test_gpus() -> None:
    assert "--gpus" not in runtime.wrap(_pinned(), ARGV, ENV, RANK._replace(gpus=())).argv
    sif = _pinned(runtime="apptainer", identity="/a.sif")
    assert "--nv" not in runtime.wrap(sif, ARGV, ENV, RANK._replace(gpus=())).argv
    assert "--nv" in runtime.wrap(sif, ARGV, ENV, RANK._replace(gpus=None)).argv, "the scheduler has chosen some"


@given(st.integers(-64, 255))
def test_exit_codes(code: int) -> None:
    assert runtime.exit_code(None, code) == code
    inside = runtime.exit_code(_pinned(), code)
    assert inside == (128 - code if 128 < code <= 192 else code)
    assert runtime.exit_code(_pinned(), None) is None


@pytest.mark.parametrize(
    ("word", "mount"),
    [
        ("/a", Mount("/a", "/a")),
        ("/a:rw", Mount("/a", "/a", True)),
        ("/a:/b", Mount("/a", "/b")),
        ("/a:/b:ro", Mount("/a", "/b")),
        ("$HOME/x:/b:rw", Mount("$HOME/x", "/b", True)),
    ],
)
def test_mounts(word: str, mount: Mount) -> None:
    assert parse_mount(word) == mount


@pytest.mark.parametrize("word", ["", "a", "a:/b", "/a:b", "/a:/b:/c", "/a,b", "/a:/b:rx", '/a"'])
def test_mounts_that_cannot_be(word: str) -> None:
    with pytest.raises(ValueError, match="mounts"):
        parse_mount(word)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('image = ""', "image"),
        ('image = "--privileged"', "image"),
        ('image = "a"\nshm = "lots"', "shm"),
        ('image = "a"\nuser = "root"', "user"),
        ('image = "a"\nworkdir = "x"', "workdir"),
        ('image = "a"\nenv = ["A=B"]', "env"),
        ('image = "a"\nulimits = { memlock = "much" }', "ulimits"),
        ('image = "a"\nmounts = ["data"]', "mounts"),
        ('image = "a"\nruntime = "podman"', "runtime"),
        ('image = "a"\nmount = []', 'did you mean "mounts"'),
    ],
)
def test_a_bad_table_is_refused(tmp_path: object, line: str, said: str) -> None:
    from pathlib import Path

    from clipa.errors import ConfigError

    profile = Path(str(tmp_path)) / "p.toml"
    profile.write_text(f"[container]\n{line}\n")
    with pytest.raises(ConfigError, match=said):
        load_cluster(profile)


def test_caches_that_cannot_be_written_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "made"))
    assert containers.writable_caches("/c") == {"TRITON_CACHE_DIR": "/c/triton"}
    monkeypatch.delenv("TRITON_CACHE_DIR")
    assert containers.writable_caches("/c") == {}, "what nobody names has torch's own place"


def test_a_folder_for_temporary_files_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    container.require_temporary_folder()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where Python ends when no other can be written
    monkeypatch.setenv("CLIPA_IN_CONTAINER", "1")
    with pytest.raises(ConfigError, match="--tmpfs /tmp"):
        container.require_temporary_folder()


def test_runs_in_the_container_itself_are_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPA_IN_CONTAINER", "1")
    assert "-v RUNS:/" in container.forgotten_volume(Path("/"))
    assert container.forgotten_volume(Path("/proc")) == "", "another file system"
    monkeypatch.delenv("CLIPA_IN_CONTAINER")
    assert container.forgotten_volume(Path("/")) == ""
