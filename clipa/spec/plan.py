"""The plan: one phase of a recipe resolved against a cluster. Frozen; round-trips through JSON.

A plan holds everything that a training process needs, so that `python -m clipa.train RUN_DIR` replays a run by hand.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from clipa.spec.cluster import Dataset
from clipa.spec.container import Pinned
from clipa.spec.evalset import Names, Task
from clipa.spec.job import Phase, Stage
from clipa.spec.model import Model
from clipa.spec.slurm import Slurm

SCHEMA = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all that clipa writes and reads back. Unknown keys are ignored: a newer clipa may have written them."""


class Data(Record, frozen=True, kw_only=True):
    """A dataset as pinned by a plan: where it is, and the digest of its manifest (see clipa.storage.manifest).

    `layout`: `shards` are staged; `folder`: class folders on this machine's disks, read where they are.
    `early`: training begins with the first of its shards, and the others are staged meanwhile.
    """

    name: str
    source: Dataset
    manifest: str
    shards: int
    bytes: int
    samples: int | None = None
    layout: Literal["shards", "folder"] = "shards"
    access: Literal["stage", "stream"] = "stage"
    early: bool = False


class EvalData(Record, frozen=True, kw_only=True):
    """An evaluation set as pinned by a plan; the other fields are those of `clipa.spec.evalset.EvalSet`, settled.

    `classes` and `templates` are empty where `names` stands for them. `suite` is the name of the table under [evals]
    that a set is part of, `member` its name in that suite.
    """

    data: Data
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    task: Task = "classification"
    metric: str = ""
    group: int = 0
    names: Names = ""
    folders: tuple[str, ...] = ()
    canonical: bool = False
    train: Data | None = None
    suite: str = ""
    member: str = ""


class Weights(Record, frozen=True, kw_only=True):
    """Where a run's starting weights come from: another run's final checkpoint, or a folder by path or URL.

    `source` says how a URL is reached.
    """

    ref: str
    run: str = ""
    source: Dataset | None = None

    @property
    def is_run(self) -> bool:
        """Whether the reference is `run:<id>@final`."""
        return bool(self.run)


class World(Record, frozen=True, kw_only=True):
    """The processes of one attempt, those of all nodes together, the same number on each.

    `gpus` > 0 means one process a GPU; else `processes` ranks on the CPU. `gpu_tflops`: the peak that MFU is measured
    against, of one GPU; 0: by the name of the GPU (clipa.spec.hardware).
    """

    processes: int
    nodes: int = 1
    gpus: int = 0
    threads: int = 1
    loader_workers: int = 1
    gpu_tflops: float = 0.0

    @property
    def local(self) -> int:
        """Processes of one node."""
        return self.processes // self.nodes

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """The kind of device that every rank uses."""
        return "cuda" if self.gpus else "cpu"


class Limits(Record, frozen=True, kw_only=True):
    """When the supervisor gives up, and how long leaving takes.

    `max_attempts` counts attempts of a submission that failed or were killed, `time_limit_minutes` is the wall clock
    of one job, `total_minutes` that of all attempts together (0: no such limit). `lead_s`: so long before the end of
    its time a job is asked to leave; `leave_s`: so long its processes have to save. `hang_minutes`: the longest time
    without a sign of progress before an attempt is taken to hang (0: for ever).
    """

    max_attempts: int
    time_limit_minutes: int
    total_minutes: int = 0
    lead_s: int = 0
    leave_s: float = 60.0
    hang_minutes: float = 0.0


class Code(Record, frozen=True, kw_only=True):
    """The revision of clipa that made the plan: git sha, or the package version outside a checkout."""

    version: str
    revision: str = ""
    dirty: bool = False


class Plan(Record, frozen=True, kw_only=True):
    """One phase of a recipe resolved against a cluster.

    `run` is the id of the run, `group` the id shared by all phases that were submitted together, `phase` the phase's
    name in the recipe. `parent` is the run that must be DONE first. `steps` and `warmup_steps` are the phase's
    budget in optimizer steps (0 for an evaluation). `point` is what a sweep changed for this run, as `--set` takes
    it; `element` is the number of that point, from 1, and on SLURM its index in the job array, of which `at_once`
    elements run at the same time (0: no limit). `stages` is what a run that only stages brings,
    `mixed` the datasets of a mixture after its first one, `data`.
    """

    run: str
    group: str
    created: float
    recipe: str
    recipe_digest: str
    phase: str
    cluster: str
    backend: Literal["local", "slurm"]
    model: Model
    settings: Phase | Stage
    world: World
    limits: Limits
    code: Code
    run_root: str
    cache: str
    cache_limit: int = 0
    publish: Dataset | None = None
    name: str = ""
    seed: int = 0
    parent: str = ""
    data: Data | None = None
    evals: dict[str, EvalData] = {}
    stages: tuple[Data, ...] = ()
    mixed: tuple[Data, ...] = ()
    init: Weights | None = None
    steps: int = 0
    warmup_steps: int = 0
    env: dict[str, str] = {}
    slurm: Slurm | None = None
    container: Pinned | None = None
    point: tuple[str, ...] = ()
    element: int = 0
    at_once: int = 0
    trackers: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def datasets(self) -> tuple[Data, ...]:
        """Everything that the phase reads."""
        found = [
            *self.stages,
            self.data,
            *self.mixed,
            *(data for e in self.evals.values() for data in (e.data, e.train)),
        ]
        return tuple(data for data in found if data is not None)

    @property
    def trained_on(self) -> tuple[Data, ...]:
        """The datasets of a training phase, in the order of its portions."""
        return (self.data, *self.mixed) if self.data else ()

    @property
    def early(self) -> tuple[Data, ...]:
        """The datasets that are staged while the phase trains."""
        before = {data.manifest for e in self.evals.values() for data in (e.data, e.train) if data is not None}
        return tuple(data for data in self.trained_on if data.early and data.manifest not in before)

    @property
    def kind(self) -> Literal["pretrain", "finetune", "eval", "stage"]:
        """The kind of the phase."""
        kind: Literal["pretrain", "finetune", "eval", "stage"] = self.settings.__struct_config__.tag  # type: ignore[assignment]
        return kind


def encode(plan: Plan) -> bytes:
    """The plan as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n"


def decode(raw: bytes) -> Plan:
    """A plan from JSON.

    Raises:
        msgspec.MsgspecError: not a plan (torn, foreign, or of a schema without the fields that this version needs).
    """
    return msgspec.json.decode(raw, type=Plan)
