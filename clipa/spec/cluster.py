"""Where to train: the cluster profile, and how a dataset's name is bound to a URL."""

from __future__ import annotations

from typing import Literal

from clipa.spec.base import Struct, require
from clipa.spec.child_environment import is_reserved
from clipa.spec.container import Container
from clipa.spec.slurm import LONGEST_MINUTES, Slurm
from clipa.spec.trackers import require_known

SCHEMA = 1
LOCAL_MINUTES = 24 * 60


class Dataset(Struct, frozen=True, kw_only=True):
    """A dataset's URL and how to reach it. Credentials come from the store's own usual places, never from here.

    `endpoint`, `region` and `profile` apply to `s3://` (`endpoint` to `gs://` too), `requester_pays` to `s3://` and
    `gs://`, `anonymous` to every object store.

    `access`: `stage` copies it to the cache first, `stream` reads it from the store while training, `auto` streams what
    does not fit the cache's limit.
    """

    url: str
    anonymous: bool = False
    endpoint: str = ""
    region: str = ""
    profile: str = ""
    requester_pays: bool = False
    access: Literal["stage", "stream", "auto"] = "stage"

    def __post_init__(self) -> None:
        require(bool(self.url), "url is empty")


class Cluster(Struct, frozen=True, kw_only=True):
    """One place to run. Paths may use `~` and `$VARIABLES`; they are expanded where `clipa` is called.

    `gpus` is "auto" (all that the machine has) or a number, 0 for CPU; one process a GPU. On a CPU: `processes` ranks.
    Both count for each of the `nodes`. `time_limit_minutes` (1440 unless given) is the local machine's, for
    each phase; on SLURM it is refused, since `time` in `[slurm]` says that.
    `hang_minutes`: an attempt without a sign of progress for so long is ended and tried again (0: never).
    `cache_limit_gib`: what staging keeps in the cache at most, 0 for any number.
    For `clipa plan`: `gpu_model` is a name of clipa.spec.hardware, or any other with `gpu_memory_gb` and `gpu_tflops`
    (dense bf16, in 1e12 FLOP/s; MFU is measured against it too) beside it; `gpu_price` is in dollars for one GPU and
    one hour.
    `trackers` of experiments are told of every run; without it those of `clipa.toml`, else TensorBoard alone.
    `readers`: who may read the files of runs; without it, whom the umask lets. Nobody else can ever write them.
    `publish`: a URL to which checkpoints and results go, below the run's id.
    """

    backend: Literal["local", "slurm"] = "local"
    name: str = ""
    description: str = ""
    run_root: str = ""
    cache: str = ""
    nodes: int = 1
    cache_limit_gib: float = 0.0
    publish: str | Dataset = ""
    readers: Literal["", "me", "group", "all"] = ""
    gpus: Literal["auto"] | int = "auto"
    gpu_model: str = ""
    gpu_memory_gb: float = 0.0
    gpu_tflops: float = 0.0
    gpu_price: float = 0.0
    processes: int = 1
    threads: int = 0
    loader_workers: int = 1
    max_attempts: int = 5
    time_limit_minutes: int | None = None
    hang_minutes: float = 15.0
    env: dict[str, str] = {}
    datasets: dict[str, str | Dataset] = {}
    slurm: Slurm | None = None
    container: Container | None = None
    trackers: tuple[str, ...] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        require(1 <= self.schema <= SCHEMA, f"schema {self.schema} is newer than this clipa reads ({SCHEMA})")
        require(1 <= self.nodes <= 4096, f"nodes must be 1..4096, got {self.nodes}")
        if self.backend == "slurm":
            require(self.slurm is not None, 'backend = "slurm" needs a [slurm] table with at least time = "HH:MM:SS"')
            require(
                self.time_limit_minutes is None,
                "time_limit_minutes is the local machine's: on SLURM give time in [slurm] (of one job; a longer "
                "training goes on in the next one) and total_hours (of all jobs of a run together)",
            )
            require(self.gpus != "auto", "gpus must be a number on SLURM: the GPUs of one node, 0 for the CPU")
        else:
            require(self.slurm is None, 'the [slurm] table needs backend = "slurm"')
            require(self.nodes == 1, f"nodes must be 1 on the local machine, got {self.nodes}")
        require(self.gpus == "auto" or 0 <= self.gpus <= 64, f'gpus must be "auto" or 0..64, got {self.gpus}')
        require(
            0 <= self.cache_limit_gib <= 2**32,
            f"cache_limit_gib must be >= 0 (0: no limit) and at most 2^32, got {self.cache_limit_gib}",
        )
        for key in ("gpu_memory_gb", "gpu_tflops", "gpu_price"):
            require(0 <= getattr(self, key) < 1e6, f"{key} must be >= 0, got {getattr(self, key)}")
        require(1 <= self.processes <= 256, f"processes must be 1..256, got {self.processes}")
        require(0 <= self.threads <= 1024, f"threads must be 0..1024 (0: share the cores), got {self.threads}")
        require(0 <= self.loader_workers <= 128, f"loader_workers must be 0..128, got {self.loader_workers}")
        require(1 <= self.max_attempts <= 1000, f"max_attempts must be 1..1000, got {self.max_attempts}")
        limit = self.time_limit_minutes
        require(
            limit is None or 1 <= limit <= LONGEST_MINUTES,
            f"time_limit_minutes must be 1..{LONGEST_MINUTES} (a year), got {limit}",
        )
        require_known(self.trackers)
        require(0 <= self.hang_minutes <= 1e6, f"hang_minutes must be >= 0 (0: never), got {self.hang_minutes}")
        for key, value in self.env.items():
            require(
                key.replace("_", "a").isalnum() and not key[0].isdigit(),
                f"env: {key!r} is not the name of an environment variable",
            )
            require(
                not is_reserved(key),
                f"env: {key} says which process of a run a child is: clipa sets it for every child itself",
            )
            require("\0" not in value, f"env.{key}: a NUL byte cannot stand in an environment variable")

    @property
    def local_minutes(self) -> int:
        """Wall-clock limit of a phase on the local machine."""
        return self.time_limit_minutes or LOCAL_MINUTES


class Project(Struct, frozen=True, kw_only=True):
    """`clipa.toml`: the defaults of a project, or of a user (`config.toml` in the user's config folder).

    `trusted`, in the user's file alone: folders whose project files are used though others can write to them.
    """

    recipe: str = ""
    cluster: str = ""
    run_root: str = ""
    trusted: tuple[str, ...] = ()
    datasets: dict[str, str | Dataset] = {}
    trackers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_known(self.trackers)
