"""The supervisor of one node of a SLURM job. The first node speaks for the attempt.

What follows an attempt is not decided here but by the tail of the batch script (clipa.launch.tail), which survives
this process. So only the first node leaves with a code other than 0, after its words are written; another node does
so only when it failed, and then SLURM ends the step at once (`--kill-on-bad-exit`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clipa.errors import InputError
from clipa.host import bad_nodes, render
from clipa.host.attempt import Attempt, Leaving, Place, guarded
from clipa.host.decide import Verdict, is_done
from clipa.host.meeting import Reservation
from clipa.host.pause import Watch, take_when_possible
from clipa.host.supervisor import close
from clipa.registry import events, records
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.run_dir import RunDir
from clipa.slurm.nodelist import expand
from clipa.slurm.scheduler import expanded
from clipa.spec.plan import Plan
from clipa.terminal import say

LAG_S = 60.0
"""Seconds until what another host has written is seen for certain: NFS clients may trail by so much (nfs(5))."""


_DISK_S = 600.0
"""How long the nodes of a job wait for a run root that cannot be written."""


class Job(NamedTuple):
    """Where in its job a process is, from the environment of `srun` (srun(1), OUTPUT ENVIRONMENT VARIABLES)."""

    id: str
    restart: int
    node: int
    nodes: tuple[str, ...]
    meeting: str


def own_id() -> str:
    """SLURM's id of the job; of an element of an array as `ARRAY_INDEX`: the SLURM_JOB_ID of the last element is that
    of the array, and what is done to that is done to all of them.
    """
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def own_job() -> Job:
    """The job that this process belongs to."""
    env = os.environ
    return Job(
        id=own_id(),
        restart=int(env.get("SLURM_RESTART_COUNT", "0")),
        node=int(env.get("SLURM_PROCID", "0")),
        nodes=tuple(expand(env.get("SLURM_JOB_NODELIST", ""))) or (env.get("SLURMD_NODENAME", "?"),),
        meeting=env.get("CLIPA_MEETING", ""),
    )


class OnNode:
    """What submitit pickles for SLURM: a path and two numbers, importable by name.

    It has no `checkpoint` method: submitit's own requeue would run in this process, which may be gone or in a place
    without `scontrol`.
    """

    def __init__(self, path: str, attempt: int, submission: int) -> None:
        self.path = path
        self.attempt = attempt
        self.submission = submission

    def __call__(self) -> str:
        """Run this node's part of the attempt. Leaves with another code than 0 where the work is not done."""
        leaving = Leaving()
        leaving.install()
        os.chdir("/")
        survive_full_logs()
        job = own_job()
        node = Node(RunDir(self.path), self.attempt + job.restart, self.submission, job, leaving)
        code = node.execute()
        if code:
            raise SystemExit(code)
        return "done"


class Node:
    """Works on one attempt on one node."""

    def __init__(self, run: RunDir, attempt: int, submission: int, job: Job, leaving: Leaving) -> None:
        self.run = run
        self.attempt = attempt
        self.submission = submission
        self.job = job
        self.leaving = leaving
        self.plan = records.read_plan(run)

    def execute(self) -> int:
        """Exit code: 0 done, or a part of it is; else not."""
        if is_done(self.run):
            return 0
        if not self._is_newest():
            say(f"attempt {self.attempt} is superseded by attempt {max(self.run.intents())}: leaving")
            return 1
        if self.job.node:
            return self._follow()
        if stop := records.asked_to_cancel(self.run, self.submission):
            close(self.run, self.attempt, "cancelled", f"cancelled by {stop.by}")
            return 1
        if not self._holds(lambda: self.attempt in self.run.intents() or self._intend()):
            return 1
        if self.plan.parent and not self._parent_is_done():
            close(self.run, self.attempt, "blocked", f"{self.plan.parent} is not done")
            return 1
        if not self._holds(lambda: self.run.claim(self.attempt)):
            return 1
        verdict = self._work()
        return 0 if verdict.outcome == "done" else render.RESUMABLE if verdict.retry else 1

    def _intend(self) -> bool:
        records.write_intent(self.run, self.attempt, self.submission, "restart")
        return True

    def _holds(self, take: Callable[[], bool]) -> bool:
        """Take a step towards the attempt, waiting for a disk that cannot be written. Say why if it is not taken."""
        log = events.EventWriter(self.run, self.attempt, "queue")

        def tick() -> None:
            self.run.beat(self.attempt, "node")
            log.flush()

        watch = Watch(self._asked, tick, lambda why: log.write(events.Waiting, reason=why))
        taken = take_when_possible(self.run, take, watch, limit_s=_DISK_S)
        with contextlib.suppress(OSError):
            log.close(0.0)
        if taken is not True:
            say(f"attempt {self.attempt}: {taken.error if taken else 'it has begun elsewhere'}: leaving", err=True)
        return taken is True

    def _asked(self) -> Verdict | None:
        if stop := records.asked_to_cancel(self.run, self.submission):
            return Verdict("cancelled", f"cancelled by {stop.by}")
        return Verdict("stopped", self.leaving.reason, retry=True) if self.leaving.reason else None

    def _is_newest(self) -> bool:
        return self.attempt >= max([0, *self.run.intents()])

    def _follow(self) -> int:
        """The part of another node than the first: as soon as that one has begun."""
        deadline = time.monotonic() + 2 * LAG_S
        while self.attempt not in self.run.claimed():
            if time.monotonic() > deadline or self.leaving.reason:
                return 0  # the first node says why
            time.sleep(0.2)
        return 1 if self._work().outcome in ("failed", "killed") else 0

    def _work(self) -> Verdict:
        with contextlib.ExitStack() as held:
            place = self._place(*self._meeting(held))
            work = Attempt(self.run, self.plan, self.attempt, self.submission, self.leaving, place)
            verdict = guarded(lambda: self._on_node(work))
            work.end(verdict, final=verdict.outcome in ("done", "cancelled"))
            work.close()
            return verdict

    def _on_node(self, work: Attempt) -> Verdict:
        self._prepare()
        return self._bad_node(work) or work.execute()

    def _bad_node(self, work: Attempt) -> Verdict | None:
        """Look at this node before anything is started on it, and remember one that is not fit."""
        why = bad_nodes.trouble(self.plan)
        if not why:
            return None
        name = self.job.nodes[self.job.node]
        work.log.write(events.BadNode, name=name, why=why)
        bad_nodes.remember(self.run.path.parent, name, why)
        return Verdict("killed", f"the node {name} failed its check: {why}", retry=True)

    def _prepare(self) -> None:
        if secrets := self.plan.slurm and self.plan.slurm.secrets:
            os.environ.update(read_secrets(Path(expanded(secrets))))
        _use_scratch(self.plan)

    def _meeting(self, held: contextlib.ExitStack) -> tuple[str, int]:
        """Where the ranks of all nodes meet. The first node holds the port, and tells the others, which wait for it."""
        address, _, port = self.job.meeting.rpartition(":")
        if len(self.job.nodes) == 1 or not port.isdecimal():
            return address or "127.0.0.1", int(port or 0)
        writer = "meeting"
        if self.job.node == 0:
            place = held.enter_context(Reservation(address, int(port)))
            log = events.EventWriter(self.run, self.attempt, writer)
            log.write(events.Meeting, address=place.address, port=place.port)
            log.close()
            return place.address, place.port
        deadline = time.monotonic() + LAG_S
        while time.monotonic() < deadline and not self.leaving.reason:
            for event in events.read(self.run.event_file(self.attempt, writer)):
                if isinstance(event, events.Meeting):
                    return event.address, event.port
            time.sleep(0.2)
        return address, int(port)

    def _place(self, address: str, port: int) -> Place:
        return Place(
            scheduler="slurm",
            node=self.job.node,
            job=self.job.id,
            nodes=self.job.nodes,
            address=address,
            port=port,
            lead_s=self.plan.limits.lead_s,
        )

    def _parent_is_done(self) -> bool:
        parent = RunDir(self.run.path.parent / self.plan.parent)
        deadline = time.monotonic() + LAG_S
        while not is_done(parent):
            if time.monotonic() > deadline or self.leaving.reason:
                return False
            time.sleep(0.5)
        return True


def read_secrets(path: Path) -> dict[str, str]:
    """NAME=VALUE lines of a file that nobody else can read. Nothing in it is executed.

    Raises:
        InputError: it cannot be read, or others can.
    """
    try:
        status = path.stat()
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (os.getuid(), 0):
            raise InputError("others can read the secrets", where=str(path), hint=f"chmod 600 {path}")
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"the secrets cannot be read: {error.strerror}", where=str(path)) from error
    pairs = [line.removeprefix("export ").partition("=") for line in lines if line.strip() and line.strip()[0] != "#"]
    if not all(equals and name.strip().isidentifier() for name, equals, _ in pairs):
        raise InputError("not NAME=VALUE", where=str(path), allowed="NAME=VALUE lines, # begins a comment")
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def _use_scratch(plan: Plan) -> None:
    """Temporary files of everything below this process go to the node-local folder of the profile."""
    if plan.slurm and plan.slurm.scratch:
        folder = Path(expanded(plan.slurm.scratch))
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
