"""What a SLURM site needs to be told: the `[slurm]` table of a cluster profile."""

from __future__ import annotations

import re

import msgspec

from clipa.spec.base import Struct, require

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
LONGEST_MINUTES = 365 * 24 * 60
LONGEST_TIME = 32
"""Characters of a time."""
_DIRECTIVE = re.compile(r"[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OURS = ("job-name", "output", "error", "nodes", "ntasks-per-node", "signal", "dependency", "open-mode", "array")
"""Directives that clipa itself depends on: they are no place for a site's own values."""


class StageJob(Struct, frozen=True, kw_only=True):
    """The `[slurm.stage]` table: with it, staging is a job of its own on one node, before the first phase, and the GPUs
    are not held meanwhile. The cache must then be one that all nodes share.

    Keys are those of `[slurm]`. With a partition of its own, what `[slurm]` says of nodes (`constraint`, `exclude`,
    `nodelist`, `reservation`) is not taken over; without one it is.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: int | str = 24 * 60
    cpus: int = 2
    mem: str = "4G"
    licenses: str = ""
    directives: dict[str, str | int | bool] = {}

    def __post_init__(self) -> None:
        minutes_of(self.time)
        _require_one_line(self)
        _require_directives(self.directives)
        require(0 <= self.cpus <= 4096, f"cpus must be 0..4096, got {self.cpus}")


class Slurm(Struct, frozen=True, kw_only=True):
    """Every directive that a site may want, and the environment of its jobs.

    Attributes:
        time: wall-clock limit of one job: minutes, or as in `sbatch --time` ("1-00:00:00"). Always finite.
        gpu_type: with `gpus` of the profile it becomes `--gpus-per-node=TYPE:N`.
        gres: given instead of `--gpus-per-node`, as it stands.
        mem: memory of a node as in `sbatch --mem`; "0" is all of it.
        cpus: cores of a node. 0: what the site gives.
        setup: lines of bash before anything else on the first node: `module load`, `source`.
        python: the interpreter on the nodes; the one that submits unless given.
        pass_env: names of variables that are taken along from the submitter's environment, for secrets too.
        secrets: a file of NAME=VALUE lines, mode 0600, read on the nodes and given to the processes that work.
        interface: network interface whose address the ranks meet at.
        scratch: node-local folder for temporary files; `$VARIABLES` are the node's.
        conf: SLURM_CONF of another cluster than this machine's own.
        requeue: whether jobs may be requeued; where not, a successor is submitted.
        grace_s: seconds between a preemption's warning and its kill (GraceTime of the partition). 0: not known.
        write_mb_s: what one process writes to the run root, in MB/s: how long a checkpoint takes.
        lost_after_s: a job that SLURM's answers lack, without a word that it ended, counts as gone after so long.
        total_hours: a run that has held nodes for longer in all is not tried again.
        bad_node_hours: for so long a node that failed its check is excluded.
        allreduce_s: patience of the small all-reduce across the nodes before the ranks start. 0: none.
        srun: further arguments of `srun`.
        directives: changes (`"mem" = "200G"`), adds or removes (`"hint" = false`) any directive, last.
        stage: staging as a job of its own.
    """

    time: int | str
    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    exclude: str = ""
    nodelist: str = ""
    gres: str = ""
    gpu_type: str = ""
    mem: str = ""
    cpus: int = 0
    exclusive: bool = False
    nice: int | None = None
    comment: str = ""
    licenses: str = ""
    mail_type: str = ""
    mail_user: str = ""
    setup: tuple[str, ...] = ()
    python: str = ""
    pass_env: tuple[str, ...] = ()
    secrets: str = ""
    interface: str = ""
    scratch: str = ""
    conf: str = ""
    requeue: bool = True
    grace_s: int = 0
    write_mb_s: float = 200.0
    lost_after_s: float = 120.0
    total_hours: float = 28 * 24.0
    bad_node_hours: float = 12.0
    allreduce_s: int = 120
    srun: tuple[str, ...] = ()
    directives: dict[str, str | int | bool] = {}
    stage: StageJob | None = None

    def __post_init__(self) -> None:
        minutes_of(self.time)
        _require_one_line(self)
        for name in self.pass_env:
            require(_VARIABLE.fullmatch(name) is not None, f"pass_env: {name!r} is not the name of a variable")
        _require_directives(self.directives)
        require(not (self.gres and self.gpu_type), "gres and gpu_type say the same thing: give one of them")
        require(0 <= self.cpus <= 4096, f"cpus must be 0..4096, got {self.cpus}")
        require(0 <= self.grace_s <= 10**6, f"grace_s must be 0..1000000, got {self.grace_s}")
        require(0 < self.write_mb_s <= 1e9, f"write_mb_s must be > 0 and at most 1e9, got {self.write_mb_s}")
        require(0 < self.total_hours <= 1e6, f"total_hours must be > 0 and at most 1e6, got {self.total_hours}")
        lost = self.lost_after_s
        require(0 < lost <= 86_400, f"lost_after_s must be above 0 and at most 86400, got {lost}")
        require(0 <= self.allreduce_s <= 3600, f"allreduce_s must be 0..3600 (0: none), got {self.allreduce_s}")
        require(0 <= self.bad_node_hours <= 1e6, f"bad_node_hours must be 0..1e6, got {self.bad_node_hours}")

    @property
    def minutes(self) -> int:
        """The wall-clock limit in minutes, rounded up."""
        return minutes_of(self.time)

    @property
    def for_staging(self) -> Slurm:
        """What the job that stages asks for: a few cores of one node, no GPU."""
        own = self.stage or StageJob()
        elsewhere = bool(own.partition)
        return msgspec.structs.replace(
            self,
            stage=None,
            time=own.time,
            partition=own.partition or self.partition,
            account=own.account or self.account,
            qos=own.qos or ("" if elsewhere else self.qos),
            constraint=own.constraint or ("" if elsewhere else self.constraint),
            exclude="" if elsewhere else self.exclude,
            nodelist="" if elsewhere else self.nodelist,
            reservation="" if elsewhere else self.reservation,
            cpus=own.cpus,
            mem=own.mem,
            licenses=own.licenses,
            gres="",
            gpu_type="",
            exclusive=False,
            srun=(),
            directives=own.directives,
        )


def _require_one_line(table: Struct) -> None:
    for name in table.__struct_fields__:
        for value in _texts(getattr(table, name)):
            require(
                not any(mark in value for mark in "\n\r\0"),
                f"{name}: a line break or NUL would end the directive early: {value!r}",
            )


def _require_directives(directives: dict[str, str | int | bool]) -> None:
    for name in directives:
        require(_DIRECTIVE.fullmatch(name) is not None, f"directives: {name!r} is not a long option of sbatch")
        require(name not in OURS, f"directives: {name} belongs to clipa; not to change: {', '.join(OURS)}")


def minutes_of(time: int | str) -> int:
    """A time as sbatch takes it, in minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S (sbatch(1), --time).

    Raises:
        ValueError: not a time, zero (SLURM then leaves the job pending for ever), or longer than a year.
    """
    match = _TIME.fullmatch(str(time).strip()) if len(str(time)) <= LONGEST_TIME else None
    allowed = 'minutes, or "HH:MM:SS", or "D-HH:MM:SS"'
    require(match is not None, f"time {time!r} is not a finite time: {allowed}")
    assert match is not None
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    total = int(match["days"] or 0) * 1440 + hours * 60 + minutes + -(-seconds // 60)
    require(0 < total <= LONGEST_MINUTES, f"time {time!r} must be longer than 0 and at most a year: {allowed}")
    return total


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple):
        return [text for text in value if isinstance(text, str)]
    if isinstance(value, dict):
        return [text for text in value.values() if isinstance(text, str)]
    return []
