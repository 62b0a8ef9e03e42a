"""Pure: what is executed for a plan. The supervisor starts exactly this, and `--dry-run` prints it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.host import runtime
from clipa.interpreter import module_argv
from clipa.registry.run_dir import RunDir
from clipa.spec.child_environment import settings_of
from clipa.spec.plan import Data, Plan

_ROOM = {"pretrain": "clipa.train", "finetune": "clipa.train", "eval": "clipa.eval"}
RESUMABLE = 75
"""Exit code of a process that was asked to leave and can be resumed (EX_TEMPFAIL of sysexits.h)."""


class Rank(NamedTuple):
    """One process among all: its number, its number on its node, and where the ranks meet."""

    number: int = 0
    local: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def stage_argv(run: RunDir, attempt: int, node: int = 0, early: bool = False) -> list[str]:
    """The command that stages a run's data on one node; each has an event file of its own."""
    words = ["--writer", f"stage-{node}"] if node else []
    words += ["--early"] if early else []
    return module_argv("clipa.staging.stage", str(run.path), "--attempt", str(attempt), *words)


def arrive_argv(run: RunDir, attempt: int, node: int, folder: Path, until: Path) -> list[str]:
    """The command that stages what one node reads while it trains, until the file `until` is there."""
    words = ["--attempt", str(attempt), "--until", str(until), *([] if node else ["--tells"])]
    return module_argv("clipa.staging.arrive", str(run.path), str(folder), *words)


def publish_argv(run: RunDir, attempt: int, until: Path) -> list[str]:
    """The command that publishes a run's checkpoints and results until the file `until` is there."""
    return module_argv("clipa.staging.publish", str(run.path), "--attempt", str(attempt), "--until", str(until))


def tell_argv(run: RunDir, attempt: int, tracker: str, until: Path) -> list[str]:
    """The command that tells a tracker what a run records until the file `until` is there."""
    words = module_argv("clipa.tell", str(run.path), "--attempt", str(attempt))
    return [*words, "--tracker", tracker, "--until", str(until)]


def rank_argv(plan: Plan, run: RunDir, attempt: int) -> list[str]:
    """The command of every rank."""
    return module_argv(_ROOM[plan.kind], str(run.path), "--attempt", str(attempt))


def trial_argv(plan: Plan) -> list[str]:
    """The command of the all-reduce across the nodes; one process a node."""
    assert plan.slurm is not None
    options = ["--device", plan.world.device, "--seconds", str(plan.slurm.allreduce_s)]
    return module_argv("clipa.attempt.trial", *options)


def rank_env(plan: Plan, rank: Rank, stop_file: str, gpu_uuids: Sequence[str] | None) -> dict[str, str]:
    """Return what a rank's environment adds to the supervisor's.

    Which rank it is, is always said, also to the only one: an image or a profile may hold other values.

    Args:
        plan: the plan.
        rank: the rank.
        stop_file: path of the file that asks it to leave.
        gpu_uuids: the GPUs that it may see; None: those that SLURM has made visible.
    """
    env = {
        **settings_of(plan.env),
        "CLIPA_STOP_FILE": stop_file,
        "OMP_NUM_THREADS": str(plan.world.threads),
        "PYTHONUNBUFFERED": "1",
        "RANK": str(rank.number),
        "LOCAL_RANK": str(rank.local),
        "WORLD_SIZE": str(plan.world.processes),
    }
    if gpu_uuids is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_uuids)
    if plan.world.processes > 1:
        env |= {"MASTER_ADDR": rank.address, "MASTER_PORT": str(rank.port)}
    return env


def describe(plans: Sequence[Plan], runs: Sequence[RunDir]) -> str:
    """Exactly what a submission to the local machine would start, as text."""
    lines = ["# one job through submitit's LocalExecutor, in a session of its own; its supervisor runs, in this order:"]
    for plan, run in zip(plans, runs, strict=True):
        env = rank_env(plan, Rank(), "STOP_FILE", ["LEASED_GPU"] * plan.world.gpus)
        if plan.world.processes > 1:
            env["MASTER_PORT"] = "FREE_PORT"
        lines.append(
            f"# {plan.phase}: {plan.world.processes} process(es) on {plan.world.device}, "
            f"at most {plan.limits.max_attempts} attempts and {plan.limits.time_limit_minutes} minutes"
        )
        if plan.data or plan.evals:
            lines += [f"# {data.name}: {_how(data, plan)}, {data.bytes:,} bytes" for data in _datasets(plan)]
            lines.append(shlex.join(stage_argv(run, 1, early=bool(plan.early))))
            if plan.early:
                beside = arrive_argv(run, 1, 0, Path("FOLDER"), Path("SCRATCH/arrived"))
                lines.append(f"{shlex.join(beside)} &  # while it trains")
        rank = runtime.Rank(run.id, 1, 0, "SCRATCH", ["LEASED_GPU"] * plan.world.gpus)
        command = runtime.wrap(plan.container, rank_argv(plan, run, 1), env, rank)
        lines.append(_shell(command.env, command.argv))
    return "\n".join(lines)


def _datasets(plan: Plan) -> list[Data]:
    used = [plan.data, *plan.mixed, *(pinned.data for pinned in plan.evals.values())]
    return list({data.manifest: data for data in used if data}.values())


def _how(data: Data, plan: Plan) -> str:
    return "stage while it trains" if data in plan.early else data.access


def _shell(env: Mapping[str, str], argv: Sequence[str]) -> str:
    words = [f"{key}={shlex.quote(value)}" for key, value in sorted(env.items())]
    return " ".join([*words, shlex.join(argv)])
