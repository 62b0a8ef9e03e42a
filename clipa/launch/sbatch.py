"""Pure: what SLURM is asked for. clipa.launch.submit has submitit make the batch script from it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.registry.jobs import name_of
from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan
from clipa.spec.slurm import Slurm

SIGNAL = "USR2"
ANSWERS = ("0", "10", "11")
"""Exit codes of the tail (see there); with any other it could not work, and the script requeues without it."""
_PLAIN = (
    "partition", "account", "qos", "reservation", "constraint", "nodelist", "gres", "mem", "licenses", "mail_type",
    "mail_user", "nice",
)  # fmt: skip


class Batch(NamedTuple):
    """One job: the attempt that it begins with, and what stands around it.

    `submission`: the attempt from which attempts are counted; `code`: the folder of the snapshot; `python`: the
    interpreter on the nodes; `after`: the job that must have ended well; `avoid`: nodes to keep off.
    """

    plan: Plan
    run: RunDir
    attempt: int
    submission: int
    code: Path
    python: str
    after: str = ""
    avoid: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where submitit keeps the job's files; one folder a job."""
        return self.run.logs(self.attempt) / "submitit"


def directives(batch: Batch) -> dict[str, str | int]:
    """Every `#SBATCH --key=value`, after the profile's own changes; an empty value stands for a bare flag."""
    site = batch.plan.slurm
    assert site is not None
    world = batch.plan.world
    found = of_site(site, world.gpus // world.nodes)
    found |= {
        "job-name": name_of(batch.plan.run, batch.attempt),
        "nodes": world.nodes,
        "ntasks-per-node": 1,
        "time": site.minutes,
        "signal": f"{SIGNAL}@{batch.plan.limits.lead_s}",
        "open-mode": "append",
        "chdir": str(batch.run.path),
        "requeue" if site.requeue else "no-requeue": True,
        "comment": _comment(batch, site.comment),
    }
    if avoid := ",".join(filter(None, [site.exclude, *batch.avoid])):
        found["exclude"] = avoid
    if batch.after:
        found |= {"dependency": f"afterok:{batch.after}", "kill-on-invalid-dep": "yes"}
    found |= site.directives
    return {key: "" if value is True else value for key, value in found.items() if value is not False}


def of_site(site: Slurm, gpus: int) -> dict[str, str | int | bool]:
    """The directives that a profile alone decides, for nodes with so many GPUs."""
    found: dict[str, str | int | bool] = {
        name.replace("_", "-"): value for name in _PLAIN if (value := getattr(site, name)) not in ("", None)
    }
    if gpus and not site.gres:
        found["gpus-per-node"] = ":".join(filter(None, [site.gpu_type, str(gpus)]))
    if site.cpus:
        found["cpus-per-task"] = site.cpus
    if site.exclusive:
        found["exclusive"] = True
    return found


def _comment(batch: Batch, note: str) -> str:
    """What the job carries for whoever finds it: its run and attempt, as JSON."""
    said: dict[str, str | int] = {"clipa": batch.plan.run, "attempt": batch.attempt}
    if image := batch.plan.container:
        said["image"] = image.digest
    return msgspec.json.encode(said | ({"note": note} if note else {})).decode()


def setup(batch: Batch) -> list[str]:
    """Lines of bash before the step."""
    site = batch.plan.slurm
    assert site is not None
    python = shlex.quote(batch.python)
    folder = shlex.quote(str(batch.folder))
    lines = [*site.setup]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(batch.plan.env.items())]
    lines += [
        f"export PYTHONPATH={shlex.quote(str(batch.code))} PYTHONSAFEPATH=1",
        "# Had the submitter died before submitit gave the task its final name, the job would look for it in vain.",
        f'[ -e {folder}/"$SLURM_JOB_ID"_submitted.pkl ] || ln -s task.pkl {folder}/"$SLURM_JOB_ID"_submitted.pkl',
    ]
    if batch.plan.world.nodes > 1:
        interface = f" --interface {shlex.quote(site.interface)}" if site.interface else ""
        lines += [
            f'CLIPA_MEETING="$({python} -m clipa.launch.meeting{interface})" || exit 1',
            "export CLIPA_MEETING",
        ]
    tail = shlex.join(
        [batch.python, "-m", "clipa.launch.tail", str(batch.run.path), str(batch.attempt), str(batch.submission)]
    )
    return [*lines, f'clipa_tail() {{ {tail} "$@"; }}', "trap 'clipa_tail asked' TERM"]


def srun(batch: Batch) -> list[str]:
    """Arguments of `srun` beside those of submitit: a dead rank ends the step at once (submitit leaves it running),
    and the cores are said again, since srun no longer takes them from the job (SLURM 22.05 and later).
    """
    site = batch.plan.slurm
    assert site is not None
    cores = [f"--cpus-per-task={site.cpus}"] if site.cpus else []
    return ["--kill-on-bad-exit=1", *cores, *site.srun]


WAIT = """clipa_srun=$!
wait "$clipa_srun"; clipa_rc=$?
while [ "$clipa_rc" -gt 128 ] && kill -0 "$clipa_srun" 2>/dev/null; do wait "$clipa_srun"; clipa_rc=$?; done"""
"""The step runs in the background: bash runs a trap only between two commands, and SIGTERM is not to wait for it."""


def teardown(batch: Batch) -> list[str]:
    """Lines of bash after the step: the decision what follows survives a dead supervisor."""
    site = batch.plan.slurm
    assert site is not None
    lines = ["trap '' TERM", 'clipa_tail ended "$clipa_rc"; clipa_code=$?']
    if site.requeue:
        again = batch.plan.limits.max_attempts - 1
        lines += [
            "# Without a working Python the job still goes on, as often as attempts are allowed.",
            f'case "$clipa_code" in {"|".join(ANSWERS)}) ;; *) [ "${{SLURM_RESTART_COUNT:-0}}" -lt {again} ] && '
            'scontrol requeue "$SLURM_JOB_ID" ;; esac',
        ]
    return [*lines, 'exit "$clipa_code"']


def assemble(text: str, wanted: dict[str, str | int], command: str) -> str:
    """Submitit's script with exactly the wanted directives, and its step in the background.

    Args:
        text: what submitit made.
        wanted: every directive, an empty value for a bare flag.
        command: the line of the step.
    """
    ours = {**wanted, **_kept(text, ("output", "error"))}
    block = [
        f"#SBATCH --{key}" + (f"={shlex.quote(str(ours[key]))}" if ours[key] != "" else "") for key in sorted(ours)
    ]
    body = [line for line in text.splitlines() if not line.startswith("#SBATCH")]
    at = body.index("# Parameters") + 1
    body[at:at] = block
    step = next(number for number, line in enumerate(body) if line.startswith("srun ") and line.endswith(command))
    body[step] = f"{body[step]} &\n{WAIT}"
    return "\n".join(body) + "\n"


def _kept(text: str, names: Sequence[str]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for line in text.splitlines():
        key, _, value = line.removeprefix("#SBATCH --").partition("=")
        if line.startswith("#SBATCH --") and key in names:
            found[key] = shlex.split(value)[0]
    return found
