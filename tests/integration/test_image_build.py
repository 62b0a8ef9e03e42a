"""`clipa image` on a real engine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clipa.image import context

if TYPE_CHECKING:
    from tests.services.engine import Engine

pytest_plugins = ["tests.services.engine"]
pytestmark = pytest.mark.timeout(1800)  # the first test builds the image
ROOT = Path(__file__).resolve().parents[2]
CLIPA = [str(Path(sys.executable).parent / "clipa"), "image"]


def clipa(*words: str, env: Mapping[str, str], code: int = 0) -> str:
    done = subprocess.run([*CLIPA, *words], env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def _project(folder: Path, run: str) -> Path:
    """A checkout with a Dockerfile that takes no time."""
    for name in ("clipa", "jobs", "cluster", "docker"):
        (folder / name).mkdir(parents=True)
    (folder / "clipa" / "one.py").write_text("x = 1\n")
    (folder / "pyproject.toml").write_text("")
    (folder / "docker" / "Dockerfile").write_text(
        f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nRUN {run}\nCOPY clipa /clipa\nARG CONTENT\n"
        "LABEL org.clipa.content=${CONTENT}\n"
    )
    return folder


def test_the_image_says_what_it_is_and_can_be_found(engine: Engine, image: str) -> None:
    found = json.loads(clipa("inspect", image, "--json", env=engine.environment))["image"]
    assert found["tags"] == [image]
    assert found["variant"] == "cpu"
    assert found["base"] == engine.base
    assert found["content"] == context.read(ROOT).digest
    assert found["code"] == context.own_code()
    assert found["digests"] == [], "it was not pushed"
    assert len(found["revision"].removesuffix("-dirty")) == 40
    assert image in clipa("list", env=engine.environment)
    labels = json.loads(engine.docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.source"] is not None
    history = engine.docker("history", "--no-trunc", image)
    assert "PIP_FIND_LINKS" not in history, "what the dependencies came from is no part of the image"


@pytest.mark.parametrize("user", ["", "12345:6789", "0:0"])
def test_it_runs_as_any_user_and_is_whole(engine: Engine, image: str, user: str) -> None:
    words = ["--user", user] if user else []
    ask = "id -u; mkdir -p $XDG_CACHE_HOME/y $TRITON_CACHE_DIR/y && touch $HOME/x /runs/x && clipa doctor --json"
    ask += "" if user else " && python -c 'import clipa.train.trainer'"  # 4 s, and no matter of the user
    run = ["run", "--rm", "--network", "none", *words, "--entrypoint", "sh", image, "-c", ask]
    who, _, said = engine.docker(*run).partition("\n")
    assert who == (user.partition(":")[0] or "10001")
    findings = json.loads(said)["findings"]
    assert not [one for one in findings if one["state"] == "bad"], findings
    assert any(one["what"] == "training part installed" for one in findings)


def test_a_vocabulary_is_looked_for_in_the_image(engine: Engine, image: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    ask = "import os, clipa.storage.vocabulary as v; print(v.find_vocabulary(os.environ))"
    mount = ("-v", f"{tmp_path / 'vocab.txt'}:/opt/words/vocab.txt:ro")
    found = engine.docker("run", "--rm", "--network=none", *mount, "--entrypoint", "python", image, "-c", ask)
    assert found.strip() == "/opt/words/vocab.txt"
    assert "vocab.txt" in engine.docker(
        "run", "--rm", "--network=none", "--entrypoint", "cat", image, "/opt/words/README.md"
    )


@pytest.mark.long
def test_buildkit_makes_it_too(engine: Engine, wheels: str) -> None:
    """The SDK drives the classic builder alone; who types `docker build` has BuildKit today."""
    here = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}[platform.machine()]
    arguments = {"BASE_IMAGE": engine.base, "VARIANT": "cpu", "PIP_FIND_LINKS": wheels}
    words = ["build", "--platform", here, "--network", "host", "--file", str(ROOT / "docker" / "Dockerfile")]
    words += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    words += ["--tag", "clipa-test/buildkit", str(ROOT)]
    env = {**engine.environment, "DOCKER_BUILDKIT": "1"}
    clients = dict.fromkeys(filter(None, [shutil.which("docker"), shutil.which("docker", path="/usr/bin")]))
    for client in clients:
        done = subprocess.run([client, *words], env=env, capture_output=True, text=True, check=False)
        if "buildx component is missing" not in done.stderr:
            break
    else:
        pytest.skip("no docker client with BuildKit: " + ", ".join(clients))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ok    training part installed" in engine.docker(
        "run", "--rm", "--network", "none", "clipa-test/buildkit", "doctor"
    )


def test_a_compiler_for_torch_is_there(engine: Engine, image: str) -> None:
    code = "import sysconfig, pathlib; print((pathlib.Path(sysconfig.get_path('include')) / 'Python.h').is_file())"
    words = ["run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c"]
    assert (
        engine.docker(*words, f'gcc --version >/dev/null && g++ --version >/dev/null && python -c "{code}"') == "True"
    )


def test_gpus_come_in_whatever_the_base(engine: Engine, image: str) -> None:
    """Of the CUDA variant, whose wheels are gigabytes, only the stage that decides it; the base has none of this."""
    said = engine.docker("image", "inspect", "--format", "{{.Config.Env}}", image)
    assert "NVIDIA_VISIBLE_DEVICES=void" in said
    words = ["--target", "for-cuda", "--build-arg", f"BASE_IMAGE={engine.base}", "--network", "host", "--quiet"]
    made = engine.docker("build", *words, "--file", str(ROOT / "docker" / "Dockerfile"), str(ROOT))
    said = engine.docker("image", "inspect", "--format", "{{.Config.Env}}", made)
    assert "NVIDIA_VISIBLE_DEVICES=all" in said
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in said


def test_a_change_of_code_makes_the_last_layers_alone(engine: Engine, image: str, wheels: str, tmp_path: Path) -> None:
    for name, path in context.read(ROOT).files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    (tmp_path / "clipa" / "__init__.py").open("a").write("# changed\n")
    words = ["--variant", "cpu", "--base", engine.base, "--network", "host", "--source", str(tmp_path)]
    began = time.monotonic()
    done = subprocess.run([*CLIPA, "build", *words, "--build-arg", f"PIP_FIND_LINKS={wheels}"], env=engine.environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    print(f"a build after a change of code: {time.monotonic() - began:.1f} s")
    assert done.stdout.strip() != image
    steps = done.stderr.splitlines()
    for kept in ("RUN apt-get update", "--requirement /tmp/lock.txt", "COPY --from=dependencies"):
        at = next(number for number, line in enumerate(steps) if kept in line)
        assert steps[at + 1].strip() == "made before", kept
    layers = [
        json.loads(clipa("inspect", one, "--json", env=engine.environment))["layers"]
        for one in (image, done.stdout.strip())
    ]
    assert [layer["bytes"] for layer in layers[0]][:4] == [layer["bytes"] for layer in layers[1]][:4]
    assert sum(layer["bytes"] for layer in layers[1][4:]) < 20 << 20, "code is small"
    engine.docker("rmi", done.stdout.strip())


def test_same_content_same_tag_no_build(engine: Engine, tmp_path: Path) -> None:
    project = _project(tmp_path / "a", "echo made")
    words = ["build", "--source", str(project), "--base", engine.base, "--network", "none"]
    first = clipa(*words, env=engine.environment).strip()
    made = engine.docker("image", "inspect", "--format", "{{.Id}}", first)
    shutil.copytree(project, tmp_path / "b")
    os.utime(tmp_path / "b" / "clipa" / "one.py", (1, 1))
    again = ["build", "--source", str(tmp_path / "b"), *words[3:], "--tag", "here/other:1"]
    done = subprocess.run([*CLIPA, *again], env=engine.environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first
    assert "not built again" in done.stderr
    assert "Step" not in done.stderr
    assert engine.docker("image", "inspect", "--format", "{{.Id}}", "here/other:1") == made
    (project / "clipa" / "one.py").write_text("x = 2\n")
    assert clipa(*words, env=engine.environment).strip() != first
    assert clipa(*words, "--build-arg", "A=1", env=engine.environment).strip() != first


def test_a_failing_step_is_named_with_its_last_lines(engine: Engine, tmp_path: Path) -> None:
    project = _project(tmp_path / "a", "echo first words && echo no such wheel >&2 && exit 7")
    said = clipa(
        "build", "--source", str(project), "--base", engine.base, "--network", "none", env=engine.environment, code=1
    )
    assert "RUN echo first words" in said
    assert "| first words" in said
    assert "| no such wheel" in said
    assert "non-zero code: 7" in said
    assert not engine.docker("ps", "-aq"), "the failed step's container is removed"


def test_a_base_that_cannot_be_had(engine: Engine) -> None:
    said = clipa("build", "--base", "localhost:1/nosuch:1", env=engine.environment, code=2)
    assert "localhost:1/nosuch:1" in said
    assert "--base" in said


@pytest.mark.parametrize("words", [["build"], ["list"], ["inspect", "x"]])
def test_without_a_daemon_the_three_cures_are_named(tmp_path: Path, words: list[str]) -> None:
    env = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    said = clipa(*words, env=env, code=2)
    for cure in (str(tmp_path), "systemctl start docker", "usermod -aG docker", "DOCKER_HOST"):
        assert cure in said


def test_an_image_that_is_not_there(engine: Engine) -> None:
    assert "clipa image build" in clipa("inspect", "nosuch:1", env=engine.environment, code=2)
