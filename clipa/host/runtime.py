"""Pure: how a rank's command is put into a container, one function a runtime. Values go by environment, not by argv.

The environment that comes back is what the runtime's own client needs to have: `docker run --env NAME`, apptainer's
APPTAINERENV_ and pyxis' `--container-env` all take values from there, so nothing of it shows in a process list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from clipa.spec.container import Mount, Pinned

LABEL = "org.clipa."
OOM_OR_KILL = 128
"""A container's exit code above this is 128 and the number of the signal that ended its first process."""


class Rank(NamedTuple):
    """What a runtime needs to know of one process beside its command.

    `scratch` is the node-local folder of the stop file. `gpus`: UUIDs of the leased GPUs; None where the scheduler has
    made its own visible. `limits`: the ulimits that this engine grants. For a nested srun: `node`, `cpus`, `job`, and
    `node_gpus`, those of all ranks of the node, because every rank sees them all and takes its own.
    """

    run: str
    attempt: int
    number: int
    scratch: str
    gpus: Sequence[str] | None = ()
    limits: Mapping[str, str] = {}
    user: str = ""
    cache: str = ""
    node: str = ""
    cpus: int = 1
    job: str = ""
    node_gpus: int = 0

    @property
    def name(self) -> str:
        """The container's name."""
        return f"clipa-{self.run}-{self.attempt}-{self.number}"


class Command(NamedTuple):
    """What is started, and what its environment adds."""

    argv: list[str]
    env: dict[str, str]


def wrap(pinned: Pinned | None, argv: Sequence[str], env: Mapping[str, str], rank: Rank) -> Command:
    """A rank's command in its container; as it is without one.

    Args:
        pinned: the plan's image.
        argv: the command; its first word is the host's interpreter.
        env: all that the process must find in its environment, what the profile passes through included.
        rank: what else the runtime must know.
    """
    if pinned is None:
        return Command(list(argv), dict(env))
    # Always said: a host's PYTHONPATH must not come in where the environment is imported (pyxis).
    inside = {**env, **_caches(rank), "PYTHONPATH": pinned.code}
    return _WRAPPERS[pinned.runtime](pinned, [pinned.settings.python, *argv[1:]], inside, rank)


def labels(run: str) -> list[str]:
    """The words that find every container of a run: `docker ps --filter`."""
    return ["--filter", f"label={LABEL}run={run}"]


def exit_code(pinned: Pinned | None, code: int | None) -> int | None:
    """A child's exit code with a signal inside the container shown as one outside: negative."""
    if pinned is None or code is None or not OOM_OR_KILL < code < OOM_OR_KILL + 65:
        return code
    return OOM_OR_KILL - code


def probe(pinned: Pinned, limits: Mapping[str, str]) -> list[str]:
    """A container that does nothing, to see whether the engine grants these ulimits."""
    words = [word for name, value in limits.items() for word in ("--ulimit", f"{name}={value}")]
    return ["docker", "run", "--rm", "--network", "none", *words, "--entrypoint", "/bin/true", pinned.identity]


def _caches(rank: Rank) -> dict[str, str]:
    """What torch.compile keeps from run to run."""
    if not rank.cache:
        return {}
    return {name: f"{rank.cache}/{folder}" for name, folder in COMPILED.items()}


COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}


def _mounts(pinned: Pinned, rank: Rank) -> list[Mount]:
    return [*pinned.mounts, Mount(rank.scratch, rank.scratch)]


def _none(_pinned: Pinned, argv: list[str], env: dict[str, str], _rank: Rank) -> Command:
    return Command(argv, env)


def _docker(pinned: Pinned, argv: list[str], env: dict[str, str], rank: Rank) -> Command:
    settings = pinned.settings
    words = ["docker", "run", "--rm", "--init", "--name", rank.name, "--network", "host"]
    words += ["--label", f"{LABEL}run={rank.run}", "--label", f"{LABEL}attempt={rank.attempt}"]
    words += ["--workdir", settings.workdir]
    words += ["--ipc", "host"] if settings.shm == "host" else ["--shm-size", settings.shm]
    words += ["--user", rank.user] if rank.user else []
    words += [word for name, value in rank.limits.items() for word in ("--ulimit", f"{name}={value}")]
    # Quotes inside the word: docker reads this value as a line of CSV.
    words += ["--gpus", f'"device={",".join(rank.gpus)}"'] if rank.gpus else []
    for mount in _mounts(pinned, rank):
        mode = "" if mount.writable else ",readonly"
        words += ["--mount", f"type=bind,source={mount.source},target={mount.target}{mode}"]
    words += [word for name in sorted(env) for word in ("--env", name)]
    return Command([*words, "--entrypoint", argv[0], pinned.identity, *argv[1:]], env)


def _apptainer(pinned: Pinned, argv: list[str], env: dict[str, str], rank: Rank) -> Command:
    """`--containall` keeps the host's environment, home and /tmp out; what the run needs comes in by name."""
    settings = pinned.settings
    words = ["apptainer", "exec", "--containall", "--no-home", "--writable-tmpfs", "--pwd", settings.workdir]
    words += [] if rank.gpus is not None and not rank.gpus else ["--nv"]
    for mount in [*_mounts(pinned, rank), Mount("/dev/shm", "/dev/shm", True)]:  # noqa: S108
        words += ["--bind", f"{mount.source}:{mount.target}:{'rw' if mount.writable else 'ro'}"]
    return Command([*words, pinned.identity, *argv], {f"APPTAINERENV_{name}": value for name, value in env.items()})


def _pyxis(pinned: Pinned, argv: list[str], env: dict[str, str], rank: Rank) -> Command:
    """A step of its own for each rank: the supervisor's step has no container, and keeps its hands on `scontrol`.

    `--mem=0`: that step has all of the job's memory, and on SLURM 22.05 `--overlap` alone does not share it ("Memory
    required by task is not available"). The image is always a file here, and its path absolute (pyxis issue 127).
    """
    settings = pinned.settings
    mounts = ",".join(f"{m.source}:{m.target}{'' if m.writable else ':ro'}" for m in _mounts(pinned, rank))
    words = ["srun", "--overlap", "--mem=0", "--nodes=1", "--ntasks=1", f"--nodelist={rank.node}"]
    words += [f"--cpus-per-task={rank.cpus}", "--export=ALL", "--unbuffered", "--kill-on-bad-exit=1"]
    words += [f"--container-image={pinned.identity}", f"--container-name=clipa-{rank.job}-{rank.number}"]
    words += [f"--container-mounts={mounts}", f"--container-workdir={settings.workdir}"]
    words += ["--no-container-mount-home", "--container-writable", f"--container-env={','.join(sorted(env))}"]
    words += [f"--gres=gpu:{rank.node_gpus}"] if rank.node_gpus else []
    return Command([*words, *argv], env)


_WRAPPERS: Mapping[str, Callable[[Pinned, list[str], dict[str, str], Rank], Command]] = {
    "none": _none,
    "docker": _docker,
    "apptainer": _apptainer,
    "pyxis": _pyxis,
}
