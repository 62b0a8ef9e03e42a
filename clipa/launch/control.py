"""Stopping and resuming what runs on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipa.errors import InputError, LaunchError
from clipa.host import containers
from clipa.host.process_tree import ProcessTree
from clipa.launch import create, pin
from clipa.launch.cancel_slurm import end_jobs
from clipa.launch.look import look
from clipa.launch.only_one import only_one
from clipa.registry import events, records
from clipa.registry.liveness import is_alive
from clipa.registry.ownership import require_own
from clipa.registry.run_dir import RunDir
from clipa.registry.state import Facts, RunStatus, State
from clipa.spec.plan import Plan

_MARGIN_S = 15.0
_END_S = 10.0
"""Seconds that the processes of a run get between TERM and KILL, and to be gone after that."""
PATIENCE_S = 75.0
"""Seconds that a run gets to leave by itself: the supervisor gives its processes 60 to save."""


_UNHELD = (State.INTERRUPTED, State.CANCELLED)


def cancel(runs: Sequence[RunStatus], patience: float = PATIENCE_S) -> list[RunStatus]:
    """Ask runs to leave and see that they do: first by their control file, then by ending their processes.

    Returns:
        Their states afterwards.
    """
    require_own([Path(run.root) / run.run for run in runs], "cancel")
    live = [run for run in runs if run.state.is_live or run.state is State.UNKNOWN]
    for run in reversed(live):
        folder = RunDir(Path(run.root) / run.run)
        records.write_stop(folder, max([1, *folder.intents()]), "cancel")
    wanted = {run.run for run in live}
    roots = sorted({Path(run.root) for run in runs})
    deadline = time.monotonic() + max([patience, *(_leave_s(run) + _MARGIN_S for run in live)])
    end_jobs(roots, wanted, waiting_only=True)
    _wake(live, look(roots).facts)
    while True:
        found = [s for s in look(roots).statuses if s.run in wanted]
        left = [s for s in found if s.state.is_live]
        if not left:
            break
        if time.monotonic() > deadline:
            for status in left:
                _end(RunDir(Path(status.root) / status.run))
            break
        time.sleep(0.1)
    unfinished = {run.run for run in runs if run.state is not State.DONE}
    end_jobs(roots, unfinished)  # a run that looks interrupted may have a job that nobody has listed
    _close_unheld(roots, unfinished)
    for run in runs:  # a supervisor that was killed left its containers behind
        if run.state is not State.DONE:
            with contextlib.suppress(LaunchError):  # of a plan that cannot be read, nothing more can be said
                containers.remove_all(_plan(run))
    everything = {run.run for run in runs}
    return [s for s in look(roots).statuses if s.run in everything]


def _leave_s(run: RunStatus) -> float:
    """Seconds that the processes of a run get to save: those of a large model need more than others."""
    try:
        return _plan(run).limits.leave_s
    except LaunchError:
        return 0.0


def _plan(run: RunStatus) -> Plan:
    return records.read_plan(RunDir(Path(run.root) / run.run))


def _tree(run: RunDir, facts: Facts | None) -> ProcessTree | None:
    """Return the processes of a run's newest attempt; None where its supervisor does not run on this machine."""
    if facts is None or facts.holder is None or is_alive(facts.holder) is not True:
        return None
    named = [(facts.holder.pid, facts.holder.start_ticks)]
    for event in events.read(run.event_file(facts.attempt, "supervisor")):
        if isinstance(event, events.Spawned):
            named += list(zip(event.pids, event.start_ticks, strict=False))
    return ProcessTree(run, named)


def _wake(runs: Sequence[RunStatus], facts: Mapping[str, Facts]) -> None:
    """Let stopped processes of runs go on: one that is stopped cannot hear that it is to leave."""
    for status in runs:
        if tree := _tree(RunDir(Path(status.root) / status.run), facts.get(status.run)):
            tree.wake()


def _end(run: RunDir) -> None:
    """End every process of a run's newest attempt on this machine."""
    tree = _tree(run, look([run.path.parent]).facts.get(run.id))
    if tree is not None and (left := tree.end(_END_S)):
        pids = " ".join(str(pid) for pid, _ in left)
        raise LaunchError("its processes cannot be ended", where=run.id, hint=f"ps -o pid,stat,wchan:20,args -p {pids}")


def _close_unheld(roots: Sequence[Path], wanted: set[str]) -> None:
    """Runs whose supervisor is gone cannot write their own end: the command that cancels them does."""
    for status in look(roots).statuses:
        if status.run in wanted and status.state in _UNHELD and status.ended is None:
            run = RunDir(Path(status.root) / status.run)
            writer = events.EventWriter(run, max([1, *run.intents()]), "cancel")
            writer.write(events.Ended, outcome="cancelled", final=True, error="cancelled while nothing ran")
            writer.close()


def resume(runs: Sequence[RunStatus]) -> list[RunStatus]:
    """Start the next attempt of runs that are neither DONE nor live, and of the phases behind them, group by group.

    Raises:
        InputError: there is nothing to resume, or the image that a run has pinned is gone.
        LaunchError: the job could not be started.
    """
    if all(run.state is State.DONE or run.state.is_live for run in runs):
        said = ", ".join(f"{run.run} is {run.state.value}" for run in runs)
        raise InputError("there is nothing to resume", where=said)
    require_own([Path(run.root) / run.run for run in runs], "resume")
    resumed: list[RunStatus] = []
    asked = {run.run for run in runs}
    for root in sorted({Path(run.root) for run in runs}):
        with only_one(root):
            for group in sorted({run.group for run in runs if Path(run.root) == root}):
                everything = [s for s in look([root]).statuses if s.group == group and not s.owner]
                first = next((i for i, s in enumerate(everything) if s.run in asked and _resumable(s)), None)
                if first is None:
                    continue  # this group is done, or another command has just resumed it
                again = [s for s in everything[first:] if _resumable(s)]
                paths = [Path(s.root) / s.run for s in again]
                require_own(paths, "resume")  # a stranger's run may say that it is of this group
                plans = [records.read_plan(RunDir(path)) for path in paths]
                pin.check(plan.container for plan in plans)
                jobs = {s.run: s.job for s in everything if s.state.is_live and s.job}
                tasks = create.resume(paths, jobs)
                create.start(tasks, plans, live=jobs)
                resumed += again
    if not resumed:
        raise InputError("there is nothing to resume: another command was quicker", hint="clipa status")
    return resumed


def moved_images(runs: Sequence[RunStatus]) -> list[str]:
    """What is to be said about the images of runs that will be resumed: tags that have moved since."""
    return pin.moved(_plan(s).container for s in runs if _resumable(s))


def _resumable(status: RunStatus) -> bool:
    return status.state is not State.DONE and not status.state.is_live
