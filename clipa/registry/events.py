"""Events: typed records, appended as JSON lines. One writer a file; a torn last line is normal and is passed over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from clipa.registry.line_writer import LineWriter
from clipa.registry.run_dir import RunDir


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events: `t` is Unix time in seconds, `attempt` the attempt that it belongs to."""

    t: float
    attempt: int


class Submitted(Event, frozen=True, kw_only=True, tag="submitted"):
    """The attempt was handed to the scheduler as `job`: locally a pid, whose process the other fields identify (see
    clipa.registry.liveness), so that a job that dies before its first word can be told from one that is slow to start;
    with `scheduler` "slurm" it is SLURM's job id, on `cluster` (empty: the default cluster of its configuration).
    """

    job: str
    scheduler: str = ""
    cluster: str = ""
    host: str = ""
    start_ticks: int = 0
    boot_id: str = ""
    pid_namespace: str = ""


class Waiting(Event, frozen=True, kw_only=True, tag="waiting"):
    """The attempt waits; `reason` is for people ("GPU 0 is leased to run ..."). An empty one: it waits no more."""

    reason: str


class Queued(Event, frozen=True, kw_only=True, tag="queued"):
    """A supervisor holds the run until `behind`, the run before it, is done. The fields identify the supervisor."""

    host: str
    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: str
    behind: str = ""


class Started(Event, frozen=True, kw_only=True, tag="started"):
    """A supervisor took the attempt. The fields identify its process beyond doubt (see clipa.registry.liveness).

    `job`: SLURM's job id; `nodes`: the names of all its nodes.
    """

    host: str
    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: str
    job: str = ""
    nodes: tuple[str, ...] = ()


class NodeStarted(Event, frozen=True, kw_only=True, tag="node-started"):
    """The supervisor of a node beside the first one took up its part."""

    node: int
    name: str


class NodeEnded(Event, frozen=True, kw_only=True, tag="node-ended"):
    """How a node beside the first one ended its part. `retry`: whether trying again could help."""

    node: int
    name: str
    outcome: Literal["done", "failed", "killed", "stopped"]
    error: str = ""
    retry: bool = True


class Meeting(Event, frozen=True, kw_only=True, tag="meeting"):
    """Where the ranks of several nodes meet in this attempt: the first node holds the port."""

    address: str
    port: int


class BadNode(Event, frozen=True, kw_only=True, tag="bad-node"):
    """A node failed its check before the ranks were started on it."""

    name: str
    why: str


class Requeued(Event, frozen=True, kw_only=True, tag="requeued"):
    """The attempt goes back to the queue; written before that is tried, so that nothing is lost when it fails.

    `means`: `scontrol` (the same job), `sbatch` (a successor), `later` (by the owner's next clipa command).
    """

    means: str
    why: str = ""


class Staged(Event, frozen=True, kw_only=True, tag="staged"):
    """The attempt's shards are on disk."""

    shards: int
    fetched_bytes: int
    seconds: float


class Arriving(Event, frozen=True, kw_only=True, tag="arriving"):
    """So many shards (and bytes) of those that the attempt reads are staged; the rest comes while it trains."""

    shards: int
    of_shards: int
    bytes: int
    of_bytes: int


class Published(Event, frozen=True, kw_only=True, tag="published"):
    """A checkpoint is whole at `url` (no credentials in it); its size in bytes, and what the upload took in seconds."""

    step: int
    url: str
    bytes: int
    seconds: float


class PublishEnded(Event, frozen=True, kw_only=True, tag="publish-ended"):
    """The publisher left: whether every whole checkpoint, the last one first, and all results are at the plan's URL.

    `step`: the newest whole checkpoint here, 0 where there is none; `why`: what went wrong, in its words.
    """

    whole: bool
    step: int = 0
    why: str = ""


class Spawned(Event, frozen=True, kw_only=True, tag="spawned"):
    """The ranks run: the process groups that the supervisor started, so that a cancel can reach them."""

    pids: tuple[int, ...]
    start_ticks: tuple[int, ...]


class Resolved(Event, frozen=True, kw_only=True, tag="resolved"):
    """The starting weights of the attempt: the plan's reference, the folder it meant and the digest of the weights."""

    ref: str
    path: str
    digest: str


class Begun(Event, frozen=True, kw_only=True, tag="begun"):
    """The trainer is ready for its first step. `step` > 0: resumed from that checkpoint."""

    step: int
    steps: int
    device: str
    precision: str
    processes: int
    params: int


class Step(Event, frozen=True, kw_only=True, tag="step"):
    """Progress, every few steps. `samples_per_s`, `data_wait` (share of time, 0..1) and `mfu`: since the last one.

    A gradient's norm is None where it was not finite: JSON has no word for that, and the step is an event all the same.
    What an older clipa did not write is None too.

    Attributes:
        grad_norm_image, grad_norm_text: of the towers.
        samples_per_s_device: of one GPU, or of one process on a CPU.
        mfu: model FLOPs utilisation, 0..1, of the dense bf16 peak; None on a CPU and on an unknown GPU.
        memory_gib: the most that the first rank has held so far: tensors on its GPU, else resident memory.
        eta_s: seconds that the rest of the phase takes at this speed.
        trained_s, waited_s: seconds that all steps so far have taken, over all attempts, and those of them that were
            spent waiting for data; without evaluations, checkpoints and steps that were lost.
    """

    step: int
    samples: int
    loss: float
    lr: float
    logit_scale: float
    grad_norm: float | None
    samples_per_s: float
    data_wait: float
    grad_norm_image: float | None = None
    grad_norm_text: float | None = None
    samples_per_s_device: float | None = None
    mfu: float | None = None
    memory_gib: float | None = None
    eta_s: float | None = None
    trained_s: float | None = None
    waited_s: float | None = None


class WentBack(Event, frozen=True, kw_only=True, tag="went-back"):
    """The training went back from `step` to the checkpoint after step `to`; the samples between are passed over."""

    step: int
    to: int
    why: str


class Saved(Event, frozen=True, kw_only=True, tag="saved"):
    """A whole checkpoint."""

    step: int
    bytes: int
    seconds: float


class Scored(Event, frozen=True, kw_only=True, tag="scored"):
    """An evaluation result on `samples` images of `size` pixels, in percent.

    `metric` names the one of `metrics` that stands for the set, `value` is its value. An older clipa wrote `top1` and
    `top5` instead.
    """

    step: int
    set: str
    size: int
    samples: int
    seconds: float
    task: str = "classification"
    metric: str = ""
    value: float = 0.0
    metrics: dict[str, float] = {}
    top1: float | None = None
    top5: float | None = None


class TrainerEnded(Event, frozen=True, kw_only=True, tag="trainer-ended"):
    """How the training processes left, in their own words. `stopped`: asked to leave, can be resumed."""

    outcome: Literal["done", "stopped", "failed"]
    step: int
    error: str = ""


class Ended(Event, frozen=True, kw_only=True, tag="ended"):
    """The supervisor's verdict on the attempt.

    `failed`: an error of its own, `killed`: ended from outside (signal), `stopped`: asked to leave,
    `cancelled`: asked to leave by a person, `blocked`: the run that it waits for did not finish.
    `final`: no further attempt follows by itself. `retry`: whether trying again could help. `cause`: the kind of
    failure (clipa.host.blame), `evidence`: the line of a log that says so, where the error does not.
    `remote`: whether the last checkpoint and all results are at the plan's URL; None where it names none. `not_remote`:
    why they are not.
    """

    outcome: Literal["done", "failed", "killed", "stopped", "cancelled", "blocked"]
    final: bool
    error: str = ""
    retry: bool = True
    cause: str = ""
    evidence: str = ""
    remote: bool | None = None
    not_remote: str = ""


class BadData(Event, frozen=True, kw_only=True, tag="bad-data"):
    """Of the `seen` samples that a rank has read in this attempt, those that could not be used, and were replaced.

    `kinds` counts them by what is wrong (`image`, `bomb`, `caption`, `size`), `shards` by file, the 20 worst;
    `examples` names some, with the reason. A later event of the same rank stands for all before it.
    """

    rank: int
    seen: int
    kinds: dict[str, int]
    shards: dict[str, int]
    examples: tuple[str, ...] = ()


class Noted(Event, frozen=True, kw_only=True, tag="noted"):
    """Something that a person wants to know of while the attempt runs: `text`."""

    text: str


AnyEvent: TypeAlias = (
    Submitted
    | Queued
    | Waiting
    | Started
    | NodeStarted
    | NodeEnded
    | Meeting
    | BadNode
    | Noted
    | BadData
    | Requeued
    | Staged
    | Arriving
    | Published
    | PublishEnded
    | Spawned
    | Resolved
    | Begun
    | Step
    | WentBack
    | Saved
    | Scored
    | TrainerEnded
    | Ended
)

_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_encoder = msgspec.json.Encoder()


class EventWriter:
    """Appends events of one attempt to the file of one writer, one line each.

    A bad disk (full, read-only, failing) raises nothing: events wait in memory and are tried again with the next one.

    Args:
        run: the run directory.
        attempt: the attempt's number.
        writer: the one that writes this file.
        reserve: whether space for the last words is reserved, so that a full disk does not lose them.

    Raises:
        OSError: the file cannot be opened for a reason that is not the disk's.
    """

    def __init__(self, run: RunDir, attempt: int, writer: str, reserve: bool = False) -> None:
        self.attempt = attempt
        self._lines = LineWriter(run.event_file(attempt, writer), reserve)

    @property
    def trouble(self) -> str:
        """Why events wait in memory; empty while none do."""
        return self._lines.trouble

    def write(self, kind: type[Event], **fields: object) -> None:
        """Append one event; `t` and `attempt` are filled in."""
        event = kind(t=time.time(), attempt=self.attempt, **fields)
        self._lines.add(_encoder.encode(event) + b"\n", minor=kind in _MINOR, last=kind in _LAST_WORDS)

    def flush(self) -> bool:
        """Try again to write events that wait. Return whether none wait any more."""
        return self._lines.flush()

    def close(self, patience: float = 30.0) -> None:
        """Make the events durable and close the file, trying for `patience` seconds where the disk is bad.

        Raises:
            OSError: events are left that could not be written.
        """
        self._lines.close(patience)


_MINOR = (Step, Arriving)
"""Events of which a part may be dropped where a disk stays bad for so long that too many wait."""
_LAST_WORDS = (Ended, NodeEnded, TrainerEnded, Waiting)
"""Events that use the reserved space of a full disk."""


def parse(line: bytes) -> AnyEvent | None:
    """One line as an event; None for a torn line, and for an event of a newer clipa."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # msgspec lets invalid UTF-8 and a hundred thousand brackets through as errors of Python's own


def read(path: Path) -> Iterator[AnyEvent | None]:
    """The events of one file, oldest first; None in the place of each line that is not one."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return
    for line in raw.splitlines():
        if line.strip():
            yield parse(line)
