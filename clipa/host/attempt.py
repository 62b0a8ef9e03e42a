"""One attempt of one run, on one machine: lease, stage, start the ranks, watch them, and say how it ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from clipa.errors import ClipaError, InputError
from clipa.host import arriving, containers, devices, hang, publishing, render, scratch, telling
from clipa.host.bad_nodes import at_fault
from clipa.host.blame import blamed
from clipa.host.children import Child, last_lines
from clipa.host.completion import missing_work
from clipa.host.decide import Verdict
from clipa.host.meeting import Reservation
from clipa.registry import events, records
from clipa.registry.cause import without_addresses
from clipa.registry.disk_errors import disk_words
from clipa.registry.liveness import own_identity
from clipa.registry.run_dir import RunDir
from clipa.spec.child_environment import settings_of
from clipa.spec.counted import counted
from clipa.spec.plan import Plan
from clipa.terminal import say

TICK_S = 0.1
BEAT_S = 2.0
FOLLOW_S = 5.0
"""Seconds that the other ranks get after one has failed: a collective never returns for them."""


_LAST_WORDS_S = 3600.0
"""How long the end of an attempt is tried on a bad disk: a local supervisor holds nothing meanwhile."""
_LAST_WORDS_ON_SLURM_S = 300.0
"""The same where the nodes of a job wait for it."""
_AFTER_REQUEST_S = 5.0


class Place(NamedTuple):
    """Where a supervisor works: this machine, or one node of a job.

    `node`: the number of the node, 0 is the one that leads; `job`: SLURM's id; `nodes`: the names of all nodes;
    `address`, `port`: where the ranks of several nodes meet; `lead_s`: so long before the time is over it leaves.
    """

    scheduler: Literal["local", "slurm"] = "local"
    node: int = 0
    job: str = ""
    nodes: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    port: int = 0
    lead_s: float = 0.0

    @property
    def leads(self) -> bool:
        """Whether this is the node that speaks for the attempt."""
        return self.node == 0


class Attempt:
    """Runs one claimed attempt to its end. `leaving` is asked at every tick; a true answer ends the attempt soon."""

    def __init__(
        self, run: RunDir, plan: Plan, attempt: int, submission: int, leaving: Leaving, place: Place | None = None
    ) -> None:
        self.run = run
        self.plan = plan
        self.attempt = attempt
        self.submission = submission
        self.leaving = leaving
        self.place = place or Place()
        writer = "supervisor" if self.place.leads else f"node-{self.place.node}"
        self.log = events.EventWriter(run, attempt, writer, reserve=True)
        self._beat_due = 0.0
        self._deadline = time.monotonic() + 60 * plan.limits.time_limit_minutes - self.place.lead_s
        self._stop_file = Path()
        self._asked_at: float | None = None
        self._remote = publishing.Remote()

    def execute(self) -> Verdict:
        """Run the attempt and record its end; the caller decides what follows."""
        self._announce()
        folder = scratch.make(self.run, self.attempt)
        self._stop_file = folder / "stop"
        try:
            with contextlib.ExitStack() as held:
                lease = self._lease()
                if isinstance(lease, Verdict):
                    return lease
                held.enter_context(devices.released_at_end(lease))
                held.enter_context(containers.swept(self.plan))
                if failed := self._trial():
                    return failed
                if staged := self._stage():
                    return staged
                if self.plan.kind == "stage":
                    return Verdict("done")
                if self.place.leads:
                    beside = (self.run, self.plan, self.attempt, folder, self.tick, self._leave_by)
                    self._remote = held.enter_context(publishing.alongside(*beside))
                    held.enter_context(telling.alongside(*beside))
                return self._ranks(lease, held)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _announce(self) -> None:
        place, me = self.place, own_identity()
        if not place.leads:
            self.log.write(events.NodeStarted, node=place.node, name=place.nodes[place.node])
            return
        self.log.write(
            events.Started,
            host=me.host,
            pid=me.pid,
            start_ticks=me.start_ticks,
            boot_id=me.boot_id,
            pid_namespace=me.pid_namespace,
            job=place.job,
            nodes=place.nodes,
        )

    def end(self, verdict: Verdict, final: bool) -> None:
        """Record the end of the attempt, or of this node's part in it. The log stays open: see `close`."""
        if self.place.leads:
            cause = blamed(self.run, self.attempt, verdict.outcome, verdict.error)
            self.log.write(
                events.Ended,
                outcome=verdict.outcome,
                final=final,
                error=without_addresses(verdict.error),
                retry=verdict.retry,
                cause=cause.cause,
                evidence=cause.line,
                remote=self._remote.whole,
                not_remote=self._remote.why,
            )
        else:
            outcome = "stopped" if verdict.outcome in ("cancelled", "blocked") else verdict.outcome
            node = self.place.node
            self.log.write(
                events.NodeEnded,
                node=node,
                name=self.place.nodes[node],
                outcome=outcome,
                error=without_addresses(verdict.error),
                retry=verdict.retry,
            )

    def close(self) -> None:
        """Close the log. The last words are tried for long where the disk is bad: without them the run is not over."""
        local = self.place.scheduler == "local"
        deadline = time.monotonic() + (_LAST_WORDS_S if local else _LAST_WORDS_ON_SLURM_S)
        while not self.log.flush() and time.monotonic() < deadline and not self.asked():
            self.tick()
            time.sleep(TICK_S)
        try:
            self.log.close(0.0 if time.monotonic() > deadline else _AFTER_REQUEST_S)
        except OSError as error:
            say(error, err=True)

    def wait(self, reason: str) -> None:
        """Say why the attempt that follows waits; an empty reason: it waits no more."""
        self.log.write(events.Waiting, reason=reason)

    def _lease(self) -> devices.Lease | Verdict:
        need = self.plan.world.gpus
        if not need or self.place.scheduler != "local":
            return devices.Lease((), ())  # SLURM has leased them
        candidates = devices.gpus(os.environ.get(devices.VISIBLE))
        if len(candidates) < need:
            return Verdict("failed", f"the plan needs {need} GPUs, nvidia-smi lists {len(candidates)} here")
        said = ""
        while True:
            lease = devices.try_lease(
                Path(self.plan.run_root), candidates, need, containers.holder(self.plan), containers.cleared
            )
            if isinstance(lease, devices.Lease):
                return lease
            if lease != said:
                self.log.write(events.Waiting, reason=lease)
                said = lease
            if why := self.asked():
                return why
            self.tick()
            time.sleep(1.0)

    def _stage(self) -> Verdict | None:
        """Run the staging child; None when the data are on disk."""
        logs = self.run.logs(self.attempt)
        env = {**settings_of(self.plan.env), "CLIPA_STOP_FILE": str(self._stop_file)}
        node = self.place.node
        argv = render.stage_argv(self.run, self.attempt, node, early=bool(self.plan.early))
        name = f"stage-{node}" if node else "stage"
        child = Child(argv, env, logs / f"{name}.log", logs / f"{name}.err")
        return self._watch([child], "staging")

    def _trial(self) -> Verdict | None:
        """One small all-reduce across the nodes; None when they can work together."""
        plan, place = self.plan, self.place
        if plan.slurm is None or plan.world.nodes == 1 or not plan.slurm.allreduce_s:
            return None
        rank = render.Rank(place.node, 0, place.address, place.port)
        gpus: list[str] | None = None if plan.world.gpus else []
        env = render.rank_env(plan, rank, str(self._stop_file), gpus)
        env["WORLD_SIZE"] = str(plan.world.nodes)
        out = self.run.logs(self.attempt) / f"trial-{place.node}.log"
        number = plan.world.processes + place.node  # no rank's: it is the name of a container
        at = containers.At(self.run.id, self.attempt, number, str(self._stop_file.parent), gpus)
        child = containers.starter(plan, self._note)(render.trial_argv(plan), env, at, out)
        verdict = self._watch([child], "the all-reduce across the nodes")
        if verdict is None or verdict.outcome != "failed":
            return verdict
        if not place.leads:
            return Verdict("stopped", f"{verdict.error}: the first node says why", retry=True)
        return at_fault(self.run, out, place.nodes, verdict.error, self.log)

    def _ranks(self, lease: devices.Lease, held: contextlib.ExitStack) -> Verdict:
        logs, place, local = self.run.logs(self.attempt), self.place, self.plan.world.local
        self._name_shortfall()
        port = place.port
        if not port and local > 1:
            port = held.enter_context(Reservation(place.address, 0)).port
        gpus = [gpu.uuid for gpu in lease.gpus] if place.scheduler == "local" or not self.plan.world.gpus else None
        beside = arriving.alongside(self.run, self.plan, self.attempt, place.node, self._stop_file.parent)
        more = held.enter_context(beside)
        argv = render.rank_argv(self.plan, self.run, self.attempt)
        start = containers.starter(self.plan, self._note)
        children = []
        for index in range(local):
            rank = render.Rank(place.node * local + index, index, place.address, port)
            env = {**render.rank_env(self.plan, rank, str(self._stop_file), gpus), **more}
            out = logs / f"rank-{rank.number}.log"
            at = containers.At(self.run.id, self.attempt, rank.number, str(self._stop_file.parent), gpus)
            children.append(start(argv, env, at, out))
        if place.leads:
            self.log.write(events.Spawned, pids=tuple(child.pid for child in children), start_ticks=_ticks(children))
        watch = hang.Watch(self.run, self.attempt, 60 * self.plan.limits.hang_minutes, time.monotonic())
        return self._watch(children, self.plan.phase, watch) or self._completed()

    def _completed(self) -> Verdict:
        """The verdict on ranks that all ended with code 0: done only where the work is there."""
        if not self.place.leads:
            return Verdict("done")
        missing = missing_work(self.run, self.plan, self.attempt)
        if not missing:
            return Verdict("done")
        return Verdict("failed", f"{self.plan.phase} ended with code 0, but {missing}", retry=True)

    def _leave_by(self) -> float | None:
        """Until when everything must have left; None while nobody asks. Saving and publishing share the time."""
        if self._asked_at is None and self.asked():
            self._asked_at = time.monotonic()
        return None if self._asked_at is None else self._asked_at + self.plan.limits.leave_s

    def _note(self, text: str) -> None:
        self.log.write(events.Noted, text=text)

    def _name_shortfall(self) -> None:
        """Fewer cores than the plan counts on: newer `srun` gives one unless it is told (srun(1), --cpus-per-task)."""
        usable, world = len(os.sched_getaffinity(0)), self.plan.world
        need = world.local * world.threads
        if self.place.scheduler == "slurm" and usable < need:
            have = counted(usable, "core")
            text = f"{have} for {need} threads on this node: slower; raise cpus in [slurm], or lower threads"
            self.log.write(events.Noted, text=text)

    def _watch(self, children: list[Child], what: str, progress: hang.Watch | None = None) -> Verdict | None:
        """Wait for the children; None when all ended well."""
        asked: Verdict | None = None
        hung = ""
        kill_at = float("inf")
        try:
            while any(child.poll() is None for child in children):
                self.tick()
                now = time.monotonic()
                if asked is None and (asked := self.asked()):
                    self._ask_to_leave(asked)
                    kill_at = min(kill_at, self._leave_by() or now)
                if progress and not asked and not hung and (hung := progress.stuck(now)):
                    self._note(hung)
                    hang.dump(children)
                    kill_at = min(kill_at, time.monotonic() + hang.DUMP_S)
                if any(child.poll() not in (None, 0, render.RESUMABLE) for child in children):
                    kill_at = min(kill_at, now + FOLLOW_S)
                if now > kill_at:
                    for child in children:
                        if child.poll() is None:
                            child.signal(signal.SIGKILL)
                time.sleep(TICK_S)
        finally:
            for child in children:
                child.sweep()
        if hung and any(child.poll() for child in children):
            return Verdict("failed", hung, retry=True)
        return self._verdict(children, asked, what)

    def _ask_to_leave(self, asked: Verdict) -> None:
        """Write the stop file. It counts by being there, which costs no space."""
        try:
            self._stop_file.write_text(asked.error or asked.outcome)
        except OSError as error:
            if not self._stop_file.exists():
                self._note(f"{disk_words(error, self._stop_file.parent)}: its processes cannot be asked to leave")

    def _verdict(self, children: list[Child], asked: Verdict | None, what: str) -> Verdict | None:
        codes = [child.poll() for child in children]
        if all(code == 0 for code in codes):
            return None
        if asked:
            return asked
        by_signal = [
            code for code, child in zip(codes, children, strict=True) if code and code < 0 and not child.signalled
        ]
        if by_signal:
            name = signal.Signals(-by_signal[0]).name
            return Verdict("killed", f"{what} was ended by {name} from outside", retry=True)
        bad = next((i for i, code in enumerate(codes) if code not in (0, render.RESUMABLE)), None)
        if bad is None:
            return Verdict("stopped", f"{what} left by itself, resumable", retry=True)
        error = self._own_words() or "\n".join(last_lines(children[bad].err)) or f"{what} exited with code {codes[bad]}"
        return Verdict("failed", error, retry=codes[bad] != 2)

    def _own_words(self) -> str:
        ended = [
            e for e in events.read(self.run.event_file(self.attempt, "train")) if isinstance(e, events.TrainerEnded)
        ]
        return ended[-1].error if ended and ended[-1].outcome == "failed" else ""

    def asked(self) -> Verdict | None:
        """Return why this attempt should leave now, if it should."""
        again = self.place.scheduler == "slurm"  # what SLURM asks for is to go on later
        if stop := records.asked_to_cancel(self.run, self.submission):
            return Verdict("cancelled", f"cancelled by {stop.by}")
        if records.read_stop(self.run, self.attempt):
            return Verdict("stopped", "asked to leave by its stop file")
        if self.leaving.reason:
            return Verdict("stopped", self.leaving.reason, retry=again)
        if time.monotonic() > self._deadline:
            limit = self.plan.limits.time_limit_minutes
            return Verdict("stopped", f"its time limit of {limit} minutes is over", retry=again)
        return None

    def tick(self) -> None:
        """Show signs of life, and write events again that a bad disk refused. Every loop that waits calls it."""
        now = time.monotonic()
        if now >= self._beat_due:
            self.run.beat(self.attempt, "node" if self.place.leads else f"node-{self.place.node}")
            self._beat_due = now + BEAT_S
            self.log.flush()
            self.leaving.tend()


class Leaving:
    """Whether the supervisor itself was asked to leave (a signal), and what it looks after meanwhile."""

    def __init__(self) -> None:
        self.reason = ""

    def install(self) -> None:
        """Turn every "please leave" into a reason. submitit installs handlers of its own first: ours replace them."""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _note(self, number: int, _frame: object) -> None:
        self.reason = f"its supervisor received {signal.Signals(number).name}"

    def tend(self) -> None:
        """Called every few seconds while an attempt runs."""


def guarded(work: Callable[[], Verdict]) -> Verdict:
    """What `work` says; an error that it raises is the verdict, so that the run and those behind it hear of it."""
    try:
        return work()
    except ClipaError as error:
        return Verdict("failed", str(error), retry=not isinstance(error, InputError))
    except Exception as error:
        traceback.print_exc()
        return Verdict("failed", f"its supervisor failed: {type(error).__name__}: {error}", retry=True)


def _ticks(children: list[Child]) -> tuple[int, ...]:
    from clipa.registry.liveness import identity_of

    identities = [identity_of(child.pid) for child in children]
    return tuple(identity.start_ticks if identity else 0 for identity in identities)
