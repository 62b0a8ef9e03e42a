"""What a SLURM site says of itself, and a first profile from that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.errors import InputError, LaunchError
from clipa.slurm.scheduler import command
from clipa.spec.counted import counted
from clipa.spec.slurm import minutes_of

_SINFO = "%P|%a|%l|%D|%c|%m|%G"
_GPU = re.compile(r"gpu:(?:([^:(,]+):)?(\d+)")
_LONGEST_DEFAULT = 24 * 60


class Partition(NamedTuple):
    """A partition: its limit in minutes (0: none), nodes, and of its largest nodes cores, memory in MB and GPUs."""

    name: str
    default: bool
    up: bool
    minutes: int
    nodes: int
    cpus: int
    memory_mb: int
    gpu_type: str
    gpus: int


class Site(NamedTuple):
    """A cluster: its partitions, and what `scontrol show config` says."""

    partitions: tuple[Partition, ...]
    config: Mapping[str, str]

    @property
    def warns(self) -> bool:
        """Whether a preemption sends the job's own signal (slurm.conf(5): the parameter moved in 23.02)."""
        said = self.config.get("SlurmctldParameters", "") + "," + self.config.get("PreemptParameters", "")
        return "send_user_signal" in said

    @property
    def requeues(self) -> bool:
        """Whether jobs may be requeued."""
        return self.config.get("JobRequeue", "1") != "0"

    @property
    def accounts(self) -> bool:
        """Whether there is an accounting that sacct can read."""
        return self.config.get("AccountingStorageType", "").rpartition("/")[2] not in ("", "none", "(null)")


def ask(conf: str) -> Site:
    """Ask `sinfo` and `scontrol`.

    Raises:
        LaunchError: they do not answer.
    """
    listed, shown = command(["sinfo", "-h", "-o", _SINFO], conf), command(["scontrol", "show", "config"], conf)
    for said in (listed, shown):
        if said.trouble:
            raise LaunchError(
                f"SLURM does not answer: {said.trouble}",
                where=conf or "SLURM_CONF, or /etc/slurm/slurm.conf",
                hint="type this where sinfo works, or set conf in [slurm] of the profile",
            )
    return Site(parse_sinfo(listed.out), parse_config(shown.out))


def parse_sinfo(text: str) -> tuple[Partition, ...]:
    """The partitions of `sinfo -h -o '%P|%a|%l|%D|%c|%m|%G'`: one line for each kind of node in each."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 6)]
        if len(fields) < 7 or not fields[0]:
            continue
        name, up, limit, nodes, cpus, memory, gres = fields
        gpu = _GPU.search(gres)
        new = Partition(
            name.rstrip("*"), name.endswith("*"), up == "up", _limit(limit), _number(nodes), _number(cpus),
            _number(memory), (gpu[1] or "") if gpu else "", int(gpu[2]) if gpu else 0,
        )  # fmt: skip
        old = found.get(new.name)
        best = max(filter(None, [old, new]), key=lambda p: (p.gpus, p.cpus, p.memory_mb))
        found[new.name] = best._replace(nodes=new.nodes + (old.nodes if old else 0))
    return tuple(found.values())


def parse_config(text: str) -> dict[str, str]:
    """The `Key = value` lines of `scontrol show config`."""
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def _limit(text: str) -> int:
    try:
        return minutes_of(text)
    except ValueError:
        return 0  # "infinite", "n/a"


def profile(site: Site, wanted: str) -> str:
    """The text of a first profile.

    Raises:
        InputError: no such partition.
    """
    chosen = _choose(site.partitions, wanted)
    minutes = min(chosen.minutes or _LONGEST_DEFAULT, _LONGEST_DEFAULT)
    version = site.config.get("SLURM_VERSION", "?")
    cluster = site.config.get("ClusterName", "?")
    lines = [
        f"# A first profile of the cluster {cluster} (SLURM {version}), by clipa cluster init.",
        "# run:    clipa submit pipeline RECIPE --cluster THIS_FILE --dry-run",
        "# needs:  run_root on a file system that all nodes share; clipa in an environment that they see",
        "# where:  clipa doctor --cluster THIS_FILE checks all of it on a node",
        "#",
        "# partitions here:",
        *(f"#   {_describe(p)}" for p in site.partitions),
        'backend = "slurm"',
        f'description = "{chosen.name} of {cluster}"',
        '# run_root = "/shared/you/clipa/runs"',
        '# cache = "/shared/you/clipa/cache"',
        "nodes = 1",
        f"gpus = {chosen.gpus}",
        f"threads = {max(1, min(8, chosen.cpus // max(1, chosen.gpus) // 4))}",
        f"loader_workers = {max(1, min(16, chosen.cpus // max(1, chosen.gpus) // 2))}",
        "max_attempts = 5",
        "",
        "[slurm]",
        f'partition = "{chosen.name}"',
        f'time = "{minutes // 1440}-{minutes % 1440 // 60:02}:{minutes % 60:02}:00"',
        *([f'gpu_type = "{chosen.gpu_type}"'] if chosen.gpu_type else []),
        f"cpus = {max(1, chosen.cpus)}",
        'mem = "0"                # all of a node',
        f"requeue = {str(site.requeues).lower()}"
        + ("" if site.requeues else "          # this site forbids it: successors are submitted instead"),
        '# account = ""',
        '# setup = ["module load cuda"]',
    ]
    return "\n".join(lines) + "\n"


def _choose(partitions: Sequence[Partition], wanted: str) -> Partition:
    if wanted:
        for partition in partitions:
            if partition.name == wanted:
                return partition
    if wanted or not partitions:
        raise InputError(
            f"no partition {wanted!r}",
            where="--partition",
            allowed=", ".join(p.name for p in partitions) or "none here",
        )
    return max(partitions, key=lambda p: (p.up, p.gpus > 0, p.default, p.gpus * p.nodes))


def _describe(p: Partition) -> str:
    gpus = f", {counted(p.gpus, f'{p.gpu_type} GPU'.strip())} each" if p.gpus else ""
    limit = f"at most {p.minutes} minutes" if p.minutes else "no time limit"
    flags = " (default)" if p.default else "" if p.up else " (down)"
    return f"{p.name}{flags}: {counted(p.nodes, 'node')}, {p.cpus} cores, {p.memory_mb / 1024:.0f} GiB{gpus}, {limit}"


def write_profile(path: Path, text: str) -> None:
    """Write a new file; an existing one stays as it is.

    Raises:
        InputError: there is one, or it cannot be written.
    """
    try:
        with open(path, "x") as file:
            file.write(text)
    except FileExistsError:
        raise InputError("there is such a file already", where=str(path), hint="choose another name") from None
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from error
