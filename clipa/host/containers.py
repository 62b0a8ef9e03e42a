"""The supervisor's hands on containers: which limits the engine grants, exit codes, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.host import runtime
from clipa.host.children import Child
from clipa.spec.child_environment import settings_of
from clipa.spec.container import Pinned
from clipa.spec.plan import Plan

_ENGINE_S = 60.0


class ContainedChild(Child):
    """A client of a runtime; its exit codes are those of the process inside."""

    def __init__(self, pinned: Pinned, argv: Sequence[str], env: Mapping[str, str], out: Path, err: Path) -> None:
        super().__init__(argv, env, out, err)
        self._pinned = pinned

    def poll(self) -> int | None:
        """The exit code, negative for a signal, inside or outside; None while it runs."""
        return runtime.exit_code(self._pinned, super().poll())


class At(NamedTuple):
    """One rank of one attempt on this machine; see `runtime.Rank`."""

    run: str
    attempt: int
    rank: int
    scratch: str
    gpus: Sequence[str] | None


Start = Callable[[Sequence[str], Mapping[str, str], At, Path], Child]


def starter(plan: Plan, note: Callable[[str], None]) -> Start:
    """What starts a rank of this plan: as it is, or in its container. `note` is told what the engine does not grant."""
    pinned = plan.container
    if pinned is None:
        caches = writable_caches(plan.cache)
        return lambda argv, env, _at, out: Child(argv, {**caches, **env}, out, out.with_suffix(".err"))
    limits, refused = granted(pinned)
    if refused:
        note(refused)

    def start(argv: Sequence[str], env: Mapping[str, str], at: At, out: Path) -> Child:
        rank = runtime.Rank(
            *at,
            limits=limits,
            user=user_of(pinned),
            cache=plan.cache,
            node=os.environ.get("SLURMD_NODENAME", ""),
            cpus=plan.world.threads + plan.world.loader_workers,
            job=_job(),
            node_gpus=plan.world.local if plan.world.gpus else 0,
        )
        command = runtime.wrap(pinned, argv, {**passed_through(pinned), **env}, rank)
        return ContainedChild(pinned, command.argv, command.env, out, out.with_suffix(".err"))

    return start


def writable_caches(cache: str) -> dict[str, str]:
    """Other places for what torch.compile keeps, where the environment names such that cannot be written: the image's
    /cache under `docker run --read-only`, or as another user has left it.
    """
    named = {name: os.environ[name] for name in runtime.COMPILED if name in os.environ}
    return {name: f"{cache}/{runtime.COMPILED[name]}" for name, place in named.items() if not _can_be_written(place)}


def _can_be_written(place: str) -> bool:
    try:
        os.makedirs(place, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK | os.X_OK)


def _job() -> str:
    """SLURM's job and restart: a name that a preempted job left behind cannot be used again (pyxis issue 28)."""
    return f"{os.environ.get('SLURM_JOB_ID', '0')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


@contextlib.contextmanager
def swept(plan: Plan) -> Iterator[None]:
    """No container of the run before the block, and none after it.

    One may be there before: `kill -9` of a supervisor ends the client of its containers, not them.
    """
    remove_all(plan)
    try:
        yield
    finally:
        remove_all(plan)


def remove_all(plan: Plan) -> None:
    """Remove every container of a plan's run on this machine, found by its label."""
    if plan.container is None or plan.container.runtime != "docker":
        return
    found = _docker("ps", "--all", "--quiet", *runtime.labels(plan.run)).stdout.split()
    if found:
        _docker("rm", "--force", *found)


IN_DOCKER = " in docker"


def holder(plan: Plan) -> str:
    """What a lease on GPUs says of who has them."""
    return f"run {plan.run}{IN_DOCKER if plan.container and plan.container.runtime == 'docker' else ''}"


def cleared(before: str) -> bool:
    """Whether no container of a holder that died is left: `kill -9` of a supervisor ends the client of its containers,
    and they work on. All other processes of a supervisor die with it.
    """
    if not before.endswith(IN_DOCKER):
        return True
    mine = runtime.labels(before.removeprefix("run ").removesuffix(IN_DOCKER))
    if found := _docker("ps", "--all", "--quiet", *mine).stdout.split():
        _docker("rm", "--force", *found)
    left = _docker("ps", "--all", "--quiet", *mine)
    return left.returncode == 0 and not left.stdout.strip()


def granted(pinned: Pinned) -> tuple[dict[str, str], str]:
    """The ulimits of the profile that this engine grants, and a note on those that it refuses.

    memlock=-1 is what RDMA wants; an engine without CAP_SYS_RESOURCE cannot give it, and then the container does not
    start at all. So each is tried before it counts.
    """
    wanted = dict(pinned.settings.ulimits)
    if pinned.runtime != "docker" or not wanted or _starts(pinned, wanted):
        return wanted if pinned.runtime == "docker" else {}, ""
    good = {name: value for name, value in wanted.items() if _starts(pinned, {name: value})}
    refused = ", ".join(f"{name}={value}" for name, value in wanted.items() if name not in good)
    return good, f"the Docker engine does not grant ulimit {refused}: going on without"


def passed_through(pinned: Pinned) -> dict[str, str]:
    """The variables that the profile passes through, where they are set."""
    return settings_of({name: os.environ[name] for name in pinned.settings.env if name in os.environ})


def user_of(pinned: Pinned) -> str:
    """UID:GID for the container; empty for the image's own."""
    word = pinned.settings.user
    return {"me": f"{os.getuid()}:{os.getgid()}", "image": ""}.get(word, word)


def _starts(pinned: Pinned, limits: Mapping[str, str]) -> bool:
    words = runtime.probe(pinned, limits)
    return _docker(*words[1:]).returncode == 0


def _docker(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["docker", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ENGINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))
