"""Pure: what SLURM is asked for. clipa.launch.submit has submitit make the batch script from it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.registry.jobs import name_of
from clipa.registry.ownership import own_folder
from clipa.registry.run_dir import RunDir
from clipa.slurm.site_setup import setup_lines
from clipa.spec.child_environment import settings_of
from clipa.spec.plan import Plan
from clipa.spec.slurm import Slurm

SIGNAL = "USR2"
ANSWERS = ("0", "10", "11")
"""Exit codes of the tail (see there); with any other it could not work, and the script requeues without it."""
ARRAYS = ".arrays"
"""Folder of a run root that holds a folder for each job array."""
_PLAIN = (
    "partition", "account", "qos", "reservation", "constraint", "nodelist", "gres", "mem", "licenses", "mail_type",
    "mail_user", "nice",
)  # fmt: skip


class Member(NamedTuple):
    """One run in a job array: the number (index) of its element, and the attempt with which that begins."""

    number: int
    run: RunDir
    attempt: int
    submission: int

    @property
    def folder(self) -> Path:
        """Where submitit keeps the files of this element."""
        return self.run.logs(self.attempt) / "submitit"


class Batch(NamedTuple):
    """One job: the attempt that it begins with, and what stands around it.

    `submission`: the attempt from which attempts are counted; `code`: the folder of the snapshot; `python`: the
    interpreter on the nodes; `after`: the job that must have ended well; `avoid`: nodes to keep off.
    With `members` it is an array of this name, whose elements differ in their runs alone: the plan is the first one's,
    `after` is the array whose element of the same index must have ended well, and `lead_s` is the longest of all.
    """

    plan: Plan
    run: RunDir
    attempt: int
    submission: int
    code: Path
    python: str
    after: str = ""
    avoid: tuple[str, ...] = ()
    array: str = ""
    members: tuple[Member, ...] = ()
    lead_s: int = 0

    @property
    def chdir(self) -> Path:
        """The job's working directory: that of its run, or the run root."""
        return self.run.path.parent if self.members else self.run.path

    @property
    def folder(self) -> Path:
        """Where submitit keeps the job's files; one folder a job. An array's has a link INDEX to each element's."""
        if self.members:
            return own_folder(self.run.path.parent, ARRAYS) / self.array
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
        "signal": f"{SIGNAL}@{batch.lead_s or batch.plan.limits.lead_s}",
        "open-mode": "append",
        "chdir": str(batch.chdir),
        "requeue" if site.requeue else "no-requeue": True,
        "comment": _comment(batch, site.comment),
    }
    if batch.members:
        limit = f"%{batch.plan.at_once}" if batch.plan.at_once else ""
        found["array"] = ",".join(str(member.number) for member in batch.members) + limit
        found["job-name"] = batch.array
    if avoid := ",".join(filter(None, [site.exclude, *batch.avoid])):
        found["exclude"] = avoid
    if batch.after:
        kind = "aftercorr" if batch.members else "afterok"
        found |= {"dependency": f"{kind}:{batch.after}", "kill-on-invalid-dep": "yes"}
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
    """What the job carries for whoever finds it: its run and attempt, or its sweep and phase, as JSON."""
    said: dict[str, str | int] = {"clipa": batch.plan.run, "attempt": batch.attempt}
    if batch.members:
        said = {"clipa": batch.plan.group, "phase": batch.plan.phase}
    if image := batch.plan.container:
        said["image"] = image.digest
    return msgspec.json.encode(said | ({"note": note} if note else {})).decode()


def setup(batch: Batch) -> list[str]:
    """Lines of bash before the step."""
    site = batch.plan.slurm
    assert site is not None
    python = shlex.quote(batch.python)
    code = f"PYTHONPATH={shlex.quote(str(batch.code))} PYTHONSAFEPATH=1"
    tail = f"{python} -m clipa.launch.tail {_run_of(batch)}"
    lines = [*_element(batch), *_guard(batch), *setup_lines(site.setup, f"{code} {tail}")]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(settings_of(batch.plan.env).items())]
    lines += [
        f"export {code}",
        "# Had the submitter died before submitit gave the task its final name, the job would look for it in vain.",
        f"[ -e {task_of(batch)} ] || ln -s task.pkl {task_of(batch)}",
    ]
    if batch.plan.world.nodes > 1:
        interface = f" --interface {shlex.quote(site.interface)}" if site.interface else ""
        lines += [
            f'CLIPA_MEETING="$({python} -m clipa.host.meeting{interface})" || exit 1',
            "export CLIPA_MEETING",
        ]
    return [*lines, f'clipa_tail() {{ {tail} "$@"; }}', "trap 'clipa_tail asked' TERM"]


def _guard(batch: Batch) -> list[str]:
    """Stop a job whose code or task others own or can write to by now (clipa.spec.trust, in bash)."""
    executed = f"{shlex.quote(str(batch.code))} {folder_of(batch)}/"
    wrong = '! -type l \\( ! -uid "$(id -u)" ! -uid 0 -o -perm /022 \\)'
    return [
        f'clipa_wrong="$(find {executed} -ignore_readdir_race {wrong} -print -quit 2>/dev/null || :)"',
        'if [ -n "$clipa_wrong" ]; then',
        '  echo "clipa: $clipa_wrong: not executed, because others own it or can write to it" >&2; exit 1',
        "fi",
    ]


def _element(batch: Batch) -> list[str]:
    """The run of an element, by its index."""
    if not batch.members:
        return []
    cases = [
        f"  {m.number}) clipa_run=({shlex.join([str(m.run.path), str(m.attempt), str(m.submission)])}) ;;"
        for m in batch.members
    ]
    return ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]


def _run_of(batch: Batch) -> str:
    """Run, attempt and submission, as words of bash."""
    if batch.members:
        return '"${clipa_run[@]}"'
    return shlex.join([str(batch.run.path), str(batch.attempt), str(batch.submission)])


def job_of(batch: Batch) -> str:
    """The job's id, in bash. An element is never called by its SLURM_JOB_ID: the last one's is that of the whole
    array, and what is done to that is done to all of them.
    """
    return '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if batch.members else '"$SLURM_JOB_ID"'


def folder_of(batch: Batch) -> str:
    """Where submitit finds the job's task, in bash."""
    folder = shlex.quote(str(batch.folder))
    return f'{folder}/"$SLURM_ARRAY_TASK_ID"' if batch.members else folder


def task_of(batch: Batch) -> str:
    """The file of the job's task, as submitit calls it, in bash."""
    return f"{folder_of(batch)}/{job_of(batch)}_submitted.pkl"


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
            f"scontrol requeue {job_of(batch)} ;; esac",
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


def per_element(batch: Batch, text: str) -> str:
    """Submitit's script with the output of each element in the folder of its run, through the array's link."""
    if not batch.members:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(
        line.replace("/%j_", "/%a/%A_%a_") if line.startswith(("#SBATCH", "srun ")) else line for line in lines
    )


def _kept(text: str, names: Sequence[str]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for line in text.splitlines():
        key, _, value = line.removeprefix("#SBATCH --").partition("=")
        if line.startswith("#SBATCH --") and key in names:
            found[key] = shlex.split(value)[0]
    return found
