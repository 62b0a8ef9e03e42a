"""The batch script, word by word. CLIPA_TEST_GOLDEN=write writes the golden files anew: read the diff then."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from clipa.launch.stage_job import with_stage
from clipa.launch.submit import job_environment, script
from clipa.registry.run_dir import RunDir
from clipa.slurm import sbatch
from clipa.spec import plan as plans
from clipa.spec.catalog import clusters
from clipa.spec.cluster import Dataset
from clipa.spec.job import Pretrain
from clipa.spec.load import load_cluster, load_recipe
from clipa.spec.plan import Code, Data, Limits, Plan, World
from clipa.spec.slurm import Slurm, StageJob

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = Slurm(
    time="2-00:00:00", partition="gpu", account="proj", qos="high", reservation="maint", constraint="a100&ib",
    exclude="bad[1-2]", nodelist="n[1-9]", gpu_type="a100", mem="200G", cpus=32, exclusive=True, nice=10,
    comment="it's mine", licenses="fs:1", mail_type="END", mail_user="a@b.org", setup=("module load cuda/12",),
    python="/opt/env/bin/python", interface="ib0", srun=("--mpi=none",),
    directives={"hint": "nomultithread", "nice": False, "mem": "100G", "overcommit": True},
)  # fmt: skip


def batch(slurm: Slurm, world: World, **changes: object) -> sbatch.Batch:
    recipe = load_recipe(ROOT / "jobs" / "demo.toml").recipe
    phase = recipe.phases["pretrain"]
    assert isinstance(phase, Pretrain)
    plan = Plan(
        run="20260101-000000-abcd-pretrain", group="20260101-000000-abcd", created=1.0, recipe="demo",
        recipe_digest="0", phase="pretrain", cluster="c", backend="slurm", model=recipe.model, settings=phase,
        world=world, limits=Limits(max_attempts=5, time_limit_minutes=slurm.minutes, lead_s=90), code=Code(version="0"),
        run_root="/shared/runs", cache="/shared/cache", slurm=slurm,
        env={"NCCL_DEBUG": "WARN", "ODD": "it's $HOME; rm -rf \"x\""},
    )  # fmt: skip
    run = RunDir("/shared/runs/20260101-000000-abcd-pretrain")
    made = sbatch.Batch(plan, run, 1, 1, Path("/shared/runs/.code/abc"), slurm.python or "/usr/bin/python3")
    return made._replace(**changes)  # type: ignore[arg-type]


def array(slurm: Slurm, world: World, **changes: object) -> sbatch.Batch:
    """The element of every second point, of attempts that differ."""
    made = batch(slurm, world, **changes)
    members = tuple(
        sbatch.Member(n, RunDir(f"/shared/runs/20260101-000000-abcd-{n:02d}-pretrain"), attempt, attempt)
        for n, attempt in ((1, 1), (3, 1), (12, 4))
    )
    plan = msgspec.structs.replace(made.plan, at_once=2)
    return made._replace(plan=plan, members=members, array="clipa-20260101-000000-abcd-pretrain-a1", lead_s=120)


CASES = {
    "array": array(Slurm(time=60, cpus=4), World(processes=2, nodes=2), after="77"),
    "everything": batch(EVERYTHING, World(processes=16, nodes=2, gpus=16), after="77", avoid=("n3",)),
    "least": batch(Slurm(time=60), World(processes=1)),
    "no-requeue": batch(
        Slurm(time=60, requeue=False, gres="gpu:2"), World(processes=2, gpus=2), attempt=3, submission=1
    ),
}


def _staged() -> tuple[Plan, ...]:
    """The plans of a pipeline of one phase, on a profile that names a partition for transfers."""
    site = msgspec.structs.replace(EVERYTHING, stage=StageJob(partition="transfer", time="06:00:00"))
    plan = batch(site, World(processes=16, nodes=2, gpus=16)).plan
    data = Data(name="d", source=Dataset(url="s3://b/d"), manifest="m", shards=2, bytes=9, samples=4)
    plan = msgspec.structs.replace(plan, data=data, cache="/shared/cache")
    return with_stage([plan], load_recipe(ROOT / "jobs" / "demo.toml").recipe)


def test_golden_of_the_job_that_stages() -> None:
    stage, first = _staged()
    run = RunDir(f"/shared/runs/{stage.run}")
    text = script(sbatch.Batch(stage, run, 1, 1, Path("/shared/runs/.code/abc"), "/usr/bin/python3"))
    path = GOLDEN / "sbatch-stage.sh"
    if os.environ.get("CLIPA_TEST_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    assert (stage.kind, stage.phase, stage.world.gpus, first.parent) == ("stage", "stage", 0, stage.run)
    assert [data.name for data in stage.datasets] == ["d"]
    assert plans.decode(plans.encode(stage)) == stage


def test_nothing_to_stage_is_no_job() -> None:
    (first,) = [plan for plan in _staged() if plan.kind != "stage"]
    alone = msgspec.structs.replace(first, data=None, parent="")
    assert with_stage([alone], load_recipe(ROOT / "jobs" / "demo.toml").recipe) == (alone,)
    assert alone.slurm is not None
    unasked = msgspec.structs.replace(first, parent="", slurm=msgspec.structs.replace(alone.slurm, stage=None))
    assert with_stage([unasked], load_recipe(ROOT / "jobs" / "demo.toml").recipe) == (unasked,)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"sbatch-{name}.sh"
    text = script(CASES[name])
    if os.environ.get("CLIPA_TEST_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_bash_takes_it(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script(CASES[name]), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_element_finds_its_run_by_its_index_and_calls_itself_by_it() -> None:
    """As bash reads the script: the lines before the step, for an element whose SLURM_JOB_ID is that of the array."""
    lines = [
        line for line in sbatch.setup(CASES["array"]) if "CLIPA_MEETING" not in line and "submitted.pkl" not in line
    ]
    tail = 'python() { echo "$@"; }; clipa_tail ended 3; echo ' + sbatch.job_of(CASES["array"])
    text = "\n".join([*lines, tail]).replace("/usr/bin/python3", "python")
    env = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_JOB_ID": "77", "SLURM_JOB_ID": "77", "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-eu", "-c", text], env=env, capture_output=True, text=True, check=True)
    run = "/shared/runs/20260101-000000-abcd-12-pretrain"
    assert done.stdout.splitlines() == [f"-m clipa.launch.tail {run} 4 4 ended 3", "77_12"]


def test_any_directive_can_be_changed_and_removed_and_no_wckey_is_asked_for() -> None:
    found = sbatch.directives(CASES["everything"])
    assert found["mem"] == "100G"
    assert "nice" not in found
    assert found["overcommit"] == ""
    assert found["exclude"] == "bad[1-2],n3"
    assert "wckey" not in script(CASES["everything"])


def test_an_environment_value_reaches_the_job_as_it_is() -> None:
    line = next(line for line in sbatch.setup(CASES["least"]) if "ODD" in line)
    done = subprocess.run(["bash", "-c", f"{line}; printenv ODD"], capture_output=True, text=True, check=True)
    assert done.stdout == 'it\'s $HOME; rm -rf "x"\n'


def test_the_login_nodes_environment_does_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SECRET", "TOKEN"):
        monkeypatch.setenv(name, "leak")
    made = batch(Slurm(time=1, pass_env=("TOKEN",), conf="/etc/other.conf"), World(processes=1))
    env = job_environment(made)
    assert {k for k, v in env.items() if v == "leak"} == {"TOKEN"}
    assert env["SLURM_CONF"] == "/etc/other.conf"
    assert "leak" not in script(made), "what is passed on stands in no script"


@pytest.mark.parametrize("name", [name for name, path in clusters().items() if load_cluster(path).slurm])
def test_shipped_profiles_render(name: str) -> None:
    cluster = load_cluster(clusters()[name])
    assert cluster.slurm
    assert cluster.gpus != "auto"
    world = World(processes=cluster.nodes * (cluster.gpus or cluster.processes), nodes=cluster.nodes)
    assert "#SBATCH --time=" in script(batch(cluster.slurm, world))
