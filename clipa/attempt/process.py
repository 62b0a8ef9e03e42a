"""What every training or evaluation process does around its work: arguments, the attempt, its last words."""

from __future__ import annotations

import argparse
import multiprocessing.util
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from clipa.attempt.launcher import launched
from clipa.attempt.pulse import Pulse, show_stacks_on_request
from clipa.errors import ClipaError, InputError
from clipa.registry import events, socket_folder
from clipa.registry.cause import without_addresses
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.run_dir import RunDir
from clipa.spec import plan as plans
from clipa.spec.plan import Plan
from clipa.terminal import say

RESUMABLE = 75
"""Exit code of a process that was asked to leave and can be resumed (EX_TEMPFAIL of sysexits.h)."""


_PATIENCE_S = 20.0
"""How long the last words are tried on a bad disk."""


class Session(NamedTuple):
    """One attempt as its processes see it; only rank 0 has an event log."""

    run: RunDir
    plan: Plan
    attempt: int
    log: events.EventWriter | None

    @property
    def stop_file(self) -> Path:
        """The file whose existence asks to leave; the supervisor gives a node-local one."""
        return Path(os.environ.get("CLIPA_STOP_FILE") or self.run.stop_file(self.attempt))


def run_process(name: str, kinds: Sequence[str], work: Callable[[Session], int]) -> int:
    """Parse the arguments, do the work, record how it ended.

    Exit codes: 0 done, 75 stopped and resumable, 1 failed, 2 the input is wrong.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description="run a plan's phase by hand")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, default=0, help="the claimed attempt; without it the next is claimed")
    arguments = parser.parse_args()
    survive_full_logs()
    show_stacks_on_request()
    _keep_sockets_in_scratch()
    try:
        session = _open(RunDir(arguments.run_dir.absolute()), arguments.attempt, kinds)
    except ClipaError as error:
        say(error, err=True)
        return error.exit_code
    try:
        code = work(session)
    except ClipaError as error:
        say(error, err=True)
        _last_words(session, "failed", str(error))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _last_words(session, "failed", f"{type(error).__name__}: {error}")
        return 1
    _last_words(session, "stopped" if code == RESUMABLE else "done", "")
    return code


def _keep_sockets_in_scratch() -> None:
    """Have multiprocessing make its folder (`pymp-*`) next to the stop file: the supervisor removes it after a kill -9.

    By hand there is no supervisor, and TMPDIR may be too long for a socket: then in another folder that is not.
    """
    scratch = os.path.dirname(os.environ.get("CLIPA_STOP_FILE", ""))
    usable = scratch and len(os.fsencode(scratch)) <= socket_folder.LONGEST and os.access(scratch, os.W_OK)
    before, tempfile.tempdir = tempfile.tempdir, scratch if usable else str(socket_folder.candidates()[0])
    try:
        multiprocessing.util.get_temp_dir()  # made once a process, and handed on to those that it starts
    finally:
        tempfile.tempdir = before


def leave(code: int) -> NoReturn:
    """End the process; after a failure at once, so that nothing holds it which waits for other ranks.

    The end of the interpreter tears down NCCL's communicators, and that hangs where a rank has died or has gone another
    way: the supervisor would not see that this one has failed.
    """
    if code in (0, RESUMABLE):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _open(run: RunDir, attempt: int, kinds: Sequence[str]) -> Session:
    try:
        plan = plans.decode(run.plan.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"not a run: {error}", where=str(run.plan)) from error
    if plan.kind not in kinds:
        raise InputError(f"this is a plan of {plan.kind}", where=str(run.plan), allowed=", ".join(kinds))
    process = launched()
    if attempt == 0 and process.world_size > 1:
        raise InputError(
            "several processes cannot claim one attempt by themselves",
            where="--attempt",
            hint=f"touch {run.claim_file(max([0, *run.claimed()]) + 1)}, and give that number to every process",
        )
    while attempt == 0:
        candidate = max([0, *run.claimed()]) + 1
        attempt = candidate if run.claim(candidate) else 0
    Pulse(run, attempt, process.is_first).at("starting")
    return Session(
        run, plan, attempt, events.EventWriter(run, attempt, "train", reserve=True) if process.is_first else None
    )


def _last_words(session: Session, outcome: str, error: str) -> None:
    if session.log is None:
        return
    step = session.run.beaten_step(session.attempt) or 0
    session.log.write(events.TrainerEnded, outcome=outcome, step=step, error=without_addresses(error))
    try:
        session.log.close(_PATIENCE_S)
    except OSError as lost:  # the supervisor judges by the exit code and by what is there
        say(lost, err=True)
