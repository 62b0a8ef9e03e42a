"""The one door to submitit. Submission goes through a detached process, so that nothing hangs on the terminal.

LocalExecutor's controller shares the session, the process group and the output of its caller. So a small process of
a new session, its streams on files, makes the submission and leaves: `python -m clipa.launch.submit FOLDER TASK...`.
It answers with one line of JSON on the file descriptor that it is given.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

from clipa.errors import LaunchError
from clipa.launch.devices import VISIBLE
from clipa.launch.supervisor import Supervise, Task
from clipa.registry.liveness import Identity, identity_of
from clipa.spec.plan import Record

_ANSWER_S = 60.0


class Answer(Record, frozen=True, kw_only=True):
    """What the detached process says: the job that runs now, or why there is none."""

    job: Identity | None = None
    error: str = ""


def submit_local(tasks: Sequence[Task], folder: Path, minutes: int) -> Identity:
    """Hand a submission to this machine and return as soon as it runs.

    Args:
        tasks: the runs, in order.
        folder: where submitit keeps the job's files; one folder a submission, since its job ids are pids.
        minutes: wall-clock limit of the whole job.

    Raises:
        LaunchError: the job could not be started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    argv = [sys.executable, "-m", "clipa.launch.submit", str(folder), str(minutes), str(writer)]
    argv += [f"{task.submission}:{task.path}" for task in tasks]
    env = {**os.environ, VISIBLE: os.environ["CUDA_VISIBLE_DEVICES"]} if "CUDA_VISIBLE_DEVICES" in os.environ else None
    with open(folder / "submit.log", "ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            start_new_session=True,
            cwd="/",
            env=env,
        )
    os.close(writer)
    with open(reader, "rb") as pipe:
        line = pipe.readline()
    process.wait(timeout=_ANSWER_S)
    try:
        answer = msgspec.json.decode(line, type=Answer)
    except msgspec.MsgspecError:
        answer = Answer(error="it left without an answer")
    if answer.job is None:
        raise LaunchError(
            f"the job could not be started: {answer.error}",
            where=str(folder / "submit.log"),
            hint="clipa doctor",
        )
    return answer.job


def _detached(folder: Path, minutes: int, tasks: Sequence[Task]) -> Answer:
    import submitit

    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=minutes, tasks_per_node=1, signal_delay_s=120)
    job = executor.submit(Supervise(tasks))
    identity = identity_of(int(job.job_id))
    return Answer(job=identity) if identity else Answer(error="the job's process is gone already")


def main() -> None:
    """Entry of the detached process."""
    parser = argparse.ArgumentParser(prog="clipa.launch.submit")
    parser.add_argument("folder", type=Path)
    parser.add_argument("minutes", type=int)
    parser.add_argument("answer", type=int)
    parser.add_argument("tasks", nargs="+")
    arguments = parser.parse_args()
    os.set_inheritable(arguments.answer, False)
    tasks = [Task(path, int(number)) for number, path in (word.split(":", 1) for word in arguments.tasks)]
    try:
        answer = _detached(arguments.folder, arguments.minutes, tasks)
    except Exception as error:
        traceback.print_exc()
        answer = Answer(error=f"{type(error).__name__}: {error}")
    os.write(arguments.answer, msgspec.json.encode(answer) + b"\n")
    os.close(arguments.answer)


if __name__ == "__main__":
    main()
