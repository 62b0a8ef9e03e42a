"""Pure: what is executed for a plan. The supervisor starts exactly this, and `--dry-run` prints it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence

from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan

_ROOM = {"pretrain": "clipa.train", "finetune": "clipa.train", "eval": "clipa.eval"}
RESUMABLE = 75
"""Exit code of a process that was asked to leave and can be resumed (EX_TEMPFAIL of sysexits.h)."""


def stage_argv(run: RunDir, attempt: int) -> list[str]:
    """The command that stages a run's data."""
    return [sys.executable, "-m", "clipa.storage.stage", str(run.path), "--attempt", str(attempt)]


def rank_argv(plan: Plan, run: RunDir, attempt: int) -> list[str]:
    """The command of every rank."""
    return [sys.executable, "-m", _ROOM[plan.kind], str(run.path), "--attempt", str(attempt)]


def rank_env(plan: Plan, rank: int, port: int, stop_file: str, gpu_uuids: Sequence[str]) -> dict[str, str]:
    """What a rank's environment adds to the supervisor's. One process needs no rendezvous."""
    env = {
        **plan.env,
        "CLIPA_STOP_FILE": stop_file,
        "OMP_NUM_THREADS": str(plan.world.threads),
        "CUDA_VISIBLE_DEVICES": ",".join(gpu_uuids),
        "PYTHONUNBUFFERED": "1",
    }
    if plan.world.processes > 1:
        env |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(plan.world.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return env


def describe(plans: Sequence[Plan], runs: Sequence[RunDir]) -> str:
    """Exactly what a submission to the local machine would start, as text."""
    lines = ["# one job through submitit's LocalExecutor, in a session of its own; its supervisor runs, in this order:"]
    for plan, run in zip(plans, runs, strict=True):
        env = rank_env(plan, 0, 0, "STOP_FILE", ["LEASED_GPU"] * plan.world.gpus)
        if plan.world.processes > 1:
            env["MASTER_PORT"] = "FREE_PORT"
        lines.append(
            f"# {plan.phase}: {plan.world.processes} process(es) on {plan.world.device}, "
            f"at most {plan.limits.max_attempts} attempts and {plan.limits.time_limit_minutes} minutes"
        )
        if plan.data or plan.evals:
            lines.append(shlex.join(stage_argv(run, 1)))
        lines.append(_shell(env, rank_argv(plan, run, 1)))
    return "\n".join(lines)


def _shell(env: Mapping[str, str], argv: Sequence[str]) -> str:
    words = [f"{key}={shlex.quote(value)}" for key, value in sorted(env.items())]
    return " ".join([*words, shlex.join(argv)])
