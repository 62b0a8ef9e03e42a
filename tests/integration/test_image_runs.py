"""Docker and nothing else: whole pipelines inside the image, stopped, killed, resumed, and read from outside."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clipa.registry import events
from clipa.registry.run_dir import RunDir
from tests.services.digits import PLACE

if TYPE_CHECKING:
    from tests.services.engine import Engine

pytest_plugins = ["tests.services.engine", "tests.services.digits"]
pytestmark = pytest.mark.timeout(1800)  # the first test builds the image

SMALL = (
    *("--set", "phases.pretrain.samples=1280", "--set", "phases.pretrain.optim.warmup_samples=640"),
    *("--set", "phases.finetune.samples=1280", "--set", "phases.finetune.optim.warmup_samples=640"),
)
LONG = ("--set", "phases.pretrain.samples=200000", "--set", "phases.pretrain.checkpoint.every_samples=1280")


class Box:
    """A machine that has nothing but Docker."""

    def __init__(self, engine: Engine, image: str, runs: Path) -> None:
        self.engine, self.image, self.runs = engine, image, runs
        runs.mkdir()
        runs.chmod(0o1777)

    def has(self, digits: Path) -> None:
        """The demo's data as an earlier container has left them."""
        shutil.copytree(digits, self.runs / ".cache" / PLACE)
        for path in (self.runs / ".cache", *(self.runs / ".cache").rglob("*")):
            os.chown(path, 12345, 6789)

    def words(self, *words: str, user: str = "12345:6789") -> list[str]:
        limits = ["--network", "none", "--user", user, "-v", f"{self.runs}:/runs", "-e", "OMP_NUM_THREADS=1"]
        return [*limits, self.image, *words]

    def run(self, *words: str, user: str = "12345:6789") -> str:
        return self.engine.docker("run", "--rm", *self.words(*words, user=user))

    def start(self, *words: str, options: Sequence[str] = ()) -> str:
        return self.engine.docker("run", "--detach", *options, *self.words(*words))

    def end(self, container: str) -> tuple[int, str]:
        """The exit code and the log of a container; it is removed."""
        code = int(self.engine.docker("wait", container))
        log = self.engine.logs(container)
        self.engine.docker("rm", container)
        return code, log

    def said(self) -> str:
        """The last words of every container that is here."""
        return "\n".join(self.engine.logs(one)[-1500:] for one in self.engine.docker("ps", "-aq").split())

    def status(self, *words: str) -> list[dict[str, Any]]:
        """As a second container under another user sees it."""
        return list(json.loads(self.run("status", *words, "--json", user="4321:4321"))["runs"])

    def run_dir(self, run: str) -> RunDir:
        return RunDir(self.runs / run)

    def until(self, what: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)


@pytest.fixture
def box(engine: Engine, image: str, tmp_path: Path) -> Box:
    tmp_path.chmod(0o755)
    return Box(engine, image, tmp_path / "runs")


def _begun(run: RunDir, attempt: int) -> list[int]:
    return [e.step for e in events.read(run.event_file(attempt, "train")) if isinstance(e, events.Begun)]


def test_a_pipeline_as_any_user_with_dockers_small_shared_memory_and_no_rights_at_all(box: Box) -> None:
    least = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    container = box.start("submit", "pipeline", "demo", *SMALL, options=least)
    code, log = box.end(container)
    assert code == 0, log
    assert "it ends with this container" in log
    assert "run directories:" in log, "--wait is implied"
    found = box.status()
    assert [s["state"] for s in found] == ["DONE"] * 3
    assert found[2]["scores"][0]["samples"] == 360
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in box.runs.rglob("*")}
    assert owners == {(12345, 6789)}
    assert not box.engine.docker("ps", "--all", "--quiet")


def test_stop_saves_kill_loses_little_and_both_resume(box: Box, digits: Path) -> None:
    box.has(digits)
    container = box.start("submit", "pretrain", "demo", "--name", "long", *LONG)
    box.until(lambda: len(list(box.runs.glob("*/checkpoints/step-*/COMPLETE"))) >= 1)
    (run,) = [box.run_dir(path.name) for path in box.runs.iterdir() if (path / "plan.json").is_file()]
    began = time.monotonic()
    box.engine.docker("stop", "--time", "60", container)
    assert time.monotonic() - began < 30, "it left by itself"
    code, _ = box.end(container)
    assert code == 128 + 15
    (stopped,) = box.status("long")
    assert stopped["state"] == "INTERRUPTED"
    assert "SIGTERM" in stopped["why"]
    saved = run.complete_checkpoints()[-1][0]
    assert saved == stopped["step"], "a stop costs nothing"

    container = box.start("resume", "long")
    box.until(lambda: bool(_begun(run, 2)) and run.complete_checkpoints()[-1][0] > saved)
    assert _begun(run, 2) == [saved]
    box.engine.docker("kill", container)
    assert box.end(container)[0] == 137
    # Another container cannot know yet, since the heart beat just now; unless the kernel gave it the number of the
    # dead one's pid namespace, and then it does.
    assert box.status("long")[0]["state"] in ("RUNNING", "INTERRUPTED")
    for beat in (run.path / "heartbeat").iterdir():
        os.utime(beat, (time.time() - 600,) * 2)
    assert box.status("long")[0]["state"] == "INTERRUPTED"
    saved = run.complete_checkpoints()[-1][0]

    container = box.start("submit", "pretrain", "demo", "--name", "long", *LONG)
    box.until(lambda: bool(_begun(run, 3)))
    assert _begun(run, 3) == [saved], "the same name goes on with the same work"
    box.engine.docker("stop", "--time", "60", container)
    assert box.end(container)[0] == 128 + 15


def test_the_cuda_image_without_a_gpu_says_so(box: Box, digits: Path) -> None:
    box.has(digits)
    words = ["run", "--rm", "--env", "CLIPA_VARIANT=cuda"]
    asked = box.words("submit", "pretrain", "demo", "--dry-run")
    with pytest.raises(AssertionError) as refused:
        box.engine.docker(*words, *asked)
    assert ": 2\n" in str(refused.value)
    assert "--gpus all" in str(refused.value)
    assert "--cluster cpu" in str(refused.value)
    assert "on cpu" in box.engine.docker(*words, *asked, "--cluster", "cpu")


def test_a_folder_that_cannot_be_written_is_named(box: Box) -> None:
    box.runs.chmod(0o755)
    with pytest.raises(AssertionError, match="run root cannot be written") as refused:
        box.run("submit", "pretrain", "demo")
    assert f"docker run --user {box.runs.stat().st_uid}:{box.runs.stat().st_gid}" in str(refused.value)
    with pytest.raises(AssertionError, match="--tmpfs /tmp"):
        box.engine.docker("run", "--rm", "--read-only", *box.words("submit", "pretrain", "demo"))
