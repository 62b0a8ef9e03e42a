"""The local machine with `runtime = "docker"`: the supervisor on the host starts ranks in containers, for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clipa.host import containers, devices, runtime
from clipa.registry import events
from clipa.registry.run_dir import RunDir
from clipa.spec import plan as plans
from clipa.spec.container import Container, Pinned

if TYPE_CHECKING:
    from tests.services.engine import Engine

pytest_plugins = ["tests.services.engine", "tests.services.digits"]
pytestmark = pytest.mark.timeout(1800)  # the first test builds the image

CLIPA = str(Path(sys.executable).parent / "clipa")
SMALL = (
    *("--set", "phases.pretrain.samples=1280", "--set", "phases.pretrain.optim.warmup_samples=640"),
    *("--set", "phases.finetune.samples=1280", "--set", "phases.finetune.optim.warmup_samples=640"),
    *("--set", "phases.pretrain.evaluate.sets=[]", "--set", "phases.finetune.evaluate.sets=[]"),
)
LONG = ("--set", "phases.pretrain.samples=200000", "--set", "phases.pretrain.checkpoint.every_samples=1280")


class Project:
    """A folder with a profile that names an image."""

    def __init__(self, folder: Path, engine: Engine, image: str) -> None:
        self.folder, self.engine = folder, engine
        (folder / "clipa.toml").write_text('cluster = "here.toml"\nrun_root = "runs"\n')
        self.profile(f'image = "{image}"\nulimits = {{}}\n')  # each that is tried costs a container

    def profile(self, lines: str, processes: int = 1, more: str = "") -> None:
        cache = self.folder / "cache"
        start = more + f"gpus = 0\nthreads = 1\nprocesses = {processes}\nloader_workers = 1\nmax_attempts = 3\n"
        text = f'{start}cache = "{cache}"\n[container]\n{lines}'
        (self.folder / "here.toml").write_text(text)

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [CLIPA, *words], cwd=self.folder, env=self.engine.environment, capture_output=True, text=True, timeout=900,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def submit(self, *words: str) -> list[str]:
        return list(json.loads(self.run("submit", *words, "--json"))["runs"])

    def status(self, run: str) -> dict[str, Any]:
        return dict(json.loads(self.run("status", run, "--json"))["runs"][0])

    def run_dir(self, run: str) -> RunDir:
        return RunDir(self.folder / "runs" / run)

    def containers(self, run: str) -> list[str]:
        return self.engine.docker("ps", "--all", "--quiet", *runtime.labels(run)).split()

    def hang(self, run: str, image: str) -> str:
        """A container of the run that does not leave by itself, as a trainer does that sees a newer attempt."""
        label = f"{runtime.LABEL}run={run}"
        words = ["--network", "none", "--label", label, "--entrypoint", "sleep", image, "1000"]
        return self.engine.docker("run", "--detach", *words)[:12]

    def until(self, what: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "not reached"
            time.sleep(0.1)


@pytest.fixture
def project(tmp_path: Path, engine: Engine, image: str, has_digits: None) -> Project:
    return Project(tmp_path, engine, image)


def _begun(run: RunDir, attempt: int) -> list[int]:
    return [e.step for e in events.read(run.event_file(attempt, "train")) if isinstance(e, events.Begun)]


def test_a_pipeline_in_containers_of_two_ranks(project: Project, image: str) -> None:
    project.profile(f'image = "{image}"\n', processes=2)
    runs = project.submit("pipeline", "demo", *SMALL, "--set", "phases.pretrain.shuffle_window=1000")
    project.run("wait", *runs)
    found = json.loads(project.run("status", *runs, "--json"))["runs"]
    assert [s["state"] for s in found] == ["DONE"] * 3
    ident = project.engine.docker("image", "inspect", "--format", "{{.Id}}", image)
    for run in runs:
        plan = plans.decode(project.run_dir(run).plan.read_bytes())
        assert plan.container is not None
        assert (plan.container.identity, plan.container.kind) == (ident, "id")
        assert plan.container.code == "", "the image has the very code that runs here"
        record = json.loads((project.run_dir(run).provenance / "image.json").read_text())
        assert record["digest"] == ident
        assert not project.containers(run)
    # It began on its first shards: the host staged, and the container said in which order and made their indexes.
    arrived = [e for e in events.read(project.run_dir(runs[0]).event_file(1, "arrive")) if e]
    assert [(e.shards, e.of_shards) for e in arrived][-1] == (4, 4)  # type: ignore[union-attr]
    assert not list((project.folder / "cache" / "streamed").iterdir())
    shown = project.run("runs", "show", runs[0])
    assert ident in shown
    assert "its own code" in shown
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (project.folder / "runs").rglob("*")}
    assert owners == {(os.getuid(), os.getgid())}
    refused = [e for e in events.read(project.run_dir(runs[0]).event_file(1, "supervisor")) if "ulimit" in str(e)]
    can = project.engine.docker("run", "--rm", "--network", "none", "--ulimit", "memlock=-1", "--entrypoint", "true",
                                image, check=False)  # fmt: skip
    assert can == ""
    assert len(refused) <= 1


def test_kills_are_survived_and_no_container_is_left(project: Project, image: str) -> None:
    project.profile(f'image = "{image}"\nulimits = {{}}\n', processes=2)
    (run,) = project.submit("pretrain", "demo", *LONG)
    folder = project.run_dir(run)
    project.until(lambda: len(folder.complete_checkpoints()) >= 1)
    first = project.containers(run)
    assert len(first) == 2
    project.engine.docker("kill", first[0])
    project.until(lambda: bool(_begun(folder, 2)))
    assert _begun(folder, 2)[0] > 0, "the second attempt starts from a checkpoint"
    assert not set(first) & set(project.containers(run)), "the other rank's container went too"

    second = project.containers(run)
    started = [e for e in events.read(folder.event_file(2, "supervisor")) if isinstance(e, events.Started)]
    os.kill(started[0].pid, signal.SIGKILL)
    project.until(lambda: project.status(run)["state"] == "INTERRUPTED", 60)
    assert project.containers(run) == second, "containers outlive kill -9 of their supervisor"
    second.append(project.hang(run, image))
    project.run("resume", run)
    project.until(lambda: bool(_begun(folder, 3)))
    assert not set(second) & set(project.containers(run)), "found by their label, and removed"
    project.run("cancel", run)
    assert project.status(run)["state"] == "CANCELLED"
    project.until(lambda: not project.containers(run), 60)


@pytest.mark.long
def test_a_hang_in_containers_leaves_the_stacks_of_every_rank(project: Project, image: str) -> None:
    """Asked for through the clients on the host: `docker run` hands the signal on to the rank inside."""
    project.profile(f'image = "{image}"\n', processes=2, more="hang_minutes = 1\n")
    (run,) = project.submit("pretrain", "demo", *LONG)
    folder = project.run_dir(run)
    project.until(lambda: bool(folder.complete_checkpoints()))
    ranks = [line.split() for name in project.containers(run)
             for line in project.engine.docker("top", name, "-eo", "pid,args").splitlines()
             if "clipa.train" in line and "init" not in line]  # fmt: skip
    assert len(ranks) == 2
    os.kill(int(ranks[0][0]), signal.SIGSTOP)
    project.until(lambda: bool(_begun(folder, 2)), 400)
    (ended,) = [e for e in events.read(folder.event_file(1, "supervisor")) if isinstance(e, events.Ended)]
    assert (ended.outcome, ended.cause) == ("failed", "hang")
    for rank in range(2):
        stacks = (folder.logs(1) / f"rank-{rank}.err").read_text()
        assert "Thread 0x" in stacks, rank
        assert "trainer.py" in stacks, rank
    project.run("cancel", run)
    project.until(lambda: not project.containers(run), 60)


def test_a_missing_image_is_refused_with_the_command(project: Project) -> None:
    project.profile('image = "clipa:mine"\n[container.build]\nvariant = "cpu"\nbase = "b:1"\nnetwork = "host"\n')
    said = project.run("submit", "pretrain", "demo", code=2)
    assert "clipa image build --variant cpu --base b:1 --network host --tag clipa:mine" in said
    assert "--build" in said
    project.profile('image = "clipa:mine"\n[container.build.args]\nINDEX_TOKEN = "hf_1234"\n')
    said = project.run("submit", "pretrain", "demo", code=2)
    assert "container.build.args: INDEX_TOKEN looks like a secret" in said
    assert "hf_1234" not in said
    project.profile('image = "registry.example/clipa:1"\n')
    assert "docker pull registry.example/clipa:1" in project.run("submit", "pretrain", "demo", code=2)
    assert not [path for path in (project.folder / "runs").iterdir() if (path / "plan.json").exists()]


def test_an_image_of_this_machine_alone_is_refused_for_a_cluster(project: Project, image: str) -> None:
    site = "nodes = 2\ngpus = 0\nprocesses = 1\n[slurm]\ntime = 10\ncpus = 2\n"
    for name, said in ((image, "on this machine alone"), ("clipa:nobody", "there is no image")):
        (project.folder / "here.toml").write_text(f'backend = "slurm"\n{site}[container]\nimage = "{name}"\n')
        refusal = project.run("submit", "pretrain", "demo", "--build", code=2)  # never for minutes, and then in vain
        assert said in refusal
        assert "clipa image push" in refusal


def test_a_mount_is_checked_before_anything_is_queued(project: Project, image: str) -> None:
    project.profile(f'image = "{image}"\nmounts = ["/no/such/folder"]\n')
    said = project.run("submit", "pretrain", "demo", code=2)
    assert "/no/such/folder" in said
    assert "container.mounts" in said


def test_a_tag_that_moved_and_an_image_that_is_gone(project: Project, image: str) -> None:
    project.engine.docker("tag", image, "here/moving:1")
    project.profile('image = "here/moving:1"\n')
    (run,) = project.submit("pretrain", "demo", *LONG)
    project.run("cancel", run)
    project.engine.docker("tag", "clipa-test/base:bookworm", "here/moving:1")
    said = subprocess.run([CLIPA, "resume", run], cwd=project.folder, env=project.engine.environment,
                          capture_output=True, text=True, check=True).stderr  # fmt: skip
    assert "here/moving:1 is" in said
    assert "goes on with" in said
    project.until(lambda: bool(project.containers(run)))
    plan = project.run_dir(run).plan
    pinned = json.loads(plan.read_text())["container"]["identity"]
    assert project.engine.docker("inspect", "--format", "{{.Image}}", project.containers(run)[0]) == pinned
    started = [
        e for e in events.read(project.run_dir(run).event_file(2, "supervisor")) if isinstance(e, events.Started)
    ]
    os.kill(started[0].pid, signal.SIGKILL)
    project.until(lambda: project.status(run)["state"] == "INTERRUPTED", 60)
    project.hang(run, image)
    project.run("cancel", run)
    assert not project.containers(run), "what a killed supervisor left behind goes with cancel too"
    plan.write_text(plan.read_text().replace(pinned, "sha256:" + "0" * 64))
    assert "gone from this machine" in project.run("resume", run, code=2)


def test_other_code_is_mounted_and_goes_first(project: Project, image: str, tmp_path: Path) -> None:
    """What the plan says when image and host differ: here the host's code, one comment longer."""
    copy = tmp_path / "other"
    for name in ("clipa", "jobs", "cluster"):
        shutil.copytree(Path(runtime.__file__).parents[2] / name, copy / name)
    (copy / "clipa" / "__init__.py").open("a").write("# changed\n")
    env = {**project.engine.environment, "PYTHONPATH": str(copy)}
    words = [CLIPA, "submit", "pretrain", "demo", *SMALL, "--wait", "--json"]
    done = subprocess.run(words, cwd=project.folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = [path for path in (project.folder / "runs").iterdir() if (path / "plan.json").is_file()]
    plan = plans.decode((run / "plan.json").read_bytes())
    assert plan.container is not None
    assert (Path(plan.container.code) / "clipa" / "__init__.py").read_text().endswith("# changed\n")
    words = [
        "run",
        "--rm",
        "-v",
        f"{plan.container.code}:/c:ro",
        "-e",
        "PYTHONPATH=/c",
        "--entrypoint",
        "python",
        image,
    ]
    assert project.engine.docker(*words, "-c", "import clipa; print(clipa.__file__)") == "/c/clipa/__init__.py"


def test_the_request_for_gpus_reaches_the_engine(engine: Engine, image: str) -> None:
    """The engine has a hook that does nothing, so the container sees what was asked for, and no GPU."""
    settings = Container(image=image, ulimits={})
    pinned = Pinned(runtime="docker", reference=image, identity=image, digest="", kind="id", settings=settings)
    rank = runtime.Rank("gpu-test", 1, 0, "/tmp", ("GPU-11111111", "GPU-22222222"))
    code = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])"
    command = runtime.wrap(pinned, ["python", "-c", code], {}, rank)
    env = {**engine.environment, **command.env}
    done = subprocess.run(command.argv, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip() == "GPU-11111111,GPU-22222222", done.stderr
    assert not engine.docker("ps", "--all", "--quiet", *runtime.labels("gpu-test"))


def test_who_leases_a_gpu_after_a_killed_supervisor_finds_no_container_on_it(
    project: Project, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a killed supervisor is free, its container works on: it is removed, or the GPU counts as taken."""
    gpus = [devices.Gpu(0, "x", "GPU-1")]
    hold = (
        "import os, signal; from pathlib import Path; from clipa.host import devices;"
        f"devices.try_lease(Path({str(tmp_path)!r}), [devices.Gpu(0, 'x', 'GPU-1')], 1, 'run old in docker');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", hold], check=False)
    left = project.hang("old", image)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    said = devices.try_lease(tmp_path, gpus, 1, "run new", containers.cleared)
    assert "run old in docker, which has died" in str(said)
    assert project.containers("old") == [left], "it could not be reached"
    monkeypatch.setenv("DOCKER_HOST", project.engine.host)
    lease = devices.try_lease(tmp_path, gpus, 1, "run new", containers.cleared)
    assert isinstance(lease, devices.Lease)
    assert project.containers("old") == []
    with devices.released_at_end(lease):
        assert "leased to run new" in str(devices.try_lease(tmp_path, gpus, 1, "x", containers.cleared))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert isinstance(devices.try_lease(tmp_path, gpus, 1, "x", containers.cleared), devices.Lease), "ended in order"
