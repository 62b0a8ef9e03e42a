"""The one door to submitit. Submission goes through a detached process, so that nothing hangs on the terminal.

LocalExecutor's controller shares the session, the process group and the output of its caller. So a small process of
a new session, its streams on files, makes the submission and leaves: `python -m clipa.launch.submit FOLDER TASK...`.
It answers with one line of JSON on the file descriptor that it is given.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clipa.errors import LaunchError
from clipa.host.devices import VISIBLE
from clipa.host.node import OnNode
from clipa.host.supervisor import Supervise, Task
from clipa.interpreter import module_argv, protect
from clipa.registry.liveness import Identity, identity_of
from clipa.registry.ownership import UMASK, files_like
from clipa.slurm import sbatch, scheduler, submission
from clipa.slurm.site_setup import MODULE_VARIABLES
from clipa.slurm.submission import Submitted
from clipa.spec.child_environment import child_environment, without_slurm
from clipa.spec.plan import Record

_ANSWER_S = 60.0
_KEPT = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "SLURM_CONF", UMASK, *MODULE_VARIABLES)
"""What jobs get of the submitter's environment, beside `pass_env`: what stands there belongs to the login node."""
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


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
    with files_like(Path(tasks[0].path)):
        return _submit_local(tasks, folder, minutes)


def _submit_local(tasks: Sequence[Task], folder: Path, minutes: int) -> Identity:
    folder.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    argv = module_argv("clipa.launch.submit", str(folder), str(minutes), str(writer))
    argv += [f"{task.submission}:{task.path}" for task in tasks]
    shell = {name: value for name, value in without_slurm(os.environ).items() if name != VISIBLE}
    if "CUDA_VISIBLE_DEVICES" in shell:
        shell[VISIBLE] = shell["CUDA_VISIBLE_DEVICES"]
    with open(folder / "submit.log", "ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            start_new_session=True,
            cwd="/",
            env=child_environment(inherited=shell),
        )
    os.close(writer)
    with open(reader, "rb") as pipe:
        line = pipe.readline()
    process.wait(timeout=_ANSWER_S)
    try:
        answer = msgspec.json.decode(line, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        answer = Answer(error="it left without an answer")
    if answer.job is None:
        raise LaunchError(
            f"the job could not be started: {answer.error}",
            where=str(folder / "submit.log"),
            hint="clipa doctor",
        )
    return answer.job


class UnansweredError(LaunchError):
    """SLURM may have taken a job or not: its answer was lost, and it cannot be asked."""


def submit_slurm(batch: sbatch.Batch) -> Submitted:
    """Hand one job, or one array, to SLURM. Returns its id and its cluster.

    Submitit's own `map_array` makes its script with another executor than its own, without our directives; so an array
    is one submission, whose elements find their tasks where those of a single job would.

    Raises:
        LaunchError: SLURM refused it, with its own words.
        UnansweredError: it may have taken it.
    """
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

    task = OnNode(str(batch.run.path), batch.attempt, batch.submission)
    try:
        executor = _executor(batch)
        batch.folder.mkdir(parents=True, exist_ok=True)
        for member in batch.members or (sbatch.Member(0, batch.run, batch.attempt, batch.submission),):
            spare = DelayedSubmission(OnNode(str(member.run.path), member.attempt, member.submission))
            spare.set_timeout(batch.plan.limits.time_limit_minutes, 0)
            member.folder.mkdir(parents=True, exist_ok=True)
            spare.dump(member.folder / "task.pkl")
            _close(member.folder)
            link = batch.folder / str(member.number)
            if batch.members and not link.is_symlink():
                link.symlink_to(os.path.relpath(member.folder, batch.folder))
        with files_like(batch.run.path), _only(job_environment(batch)):
            executor.submit(task)
        taken: Submitted = executor.answers[-1]
        return taken
    except (OSError, FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip().splitlines()
        words = [line for line in said if "error:" in line] or said[-1:] or [type(error).__name__]
        if not isinstance(error, OSError) and (found := _found_all_the_same(batch, str(error))):
            return found
        raise LaunchError(
            f"SLURM did not take the job: {'; '.join(words)}",
            where=batch.run.id,
            hint=_CURES.get(next((key for key in _CURES if key in str(error)), ""), "")
            or f"clipa doctor --cluster {batch.plan.cluster}",
        ) from error
    finally:
        _close(batch.folder)


def _close(folder: Path) -> None:
    """Keep tasks and scripts, which are executed later and name the environment of the job, to their owner."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in (".pkl", ".sh"):
            path.chmod(0o600)


_CURES = {
    "Invalid job array specification": "scontrol show config | grep MaxArraySize; sweep over fewer points at a time",
    "AssocMaxSubmitJobLimit": "sacctmgr show assoc shows the limit; submit again when older jobs are over",
    "QOSMaxSubmitJobPerUserLimit": "sacctmgr show qos shows the limit; submit again when older jobs are over",
}
"""What helps against sbatch's own words."""


def _found_all_the_same(batch: sbatch.Batch, error: str) -> Submitted | None:
    """Ask SLURM for the job by its name after trouble with sbatch: a lost or unreadable answer is no refusal.

    Raises:
        UnansweredError: it is not known whether there is a job.
    """
    assert batch.plan.slurm is not None
    site, name = scheduler.site_of_plan(batch.plan.slurm), str(sbatch.directives(batch)["job-name"])
    lost = _UNREADABLE in error or submission.may_be_lost(error)
    trouble = ""
    for pause in (0.0, 1.0, 2.0, 3.0) if lost else (0.0,):
        time.sleep(pause)  # the controller may take a job some seconds after sbatch gave up on it
        jobs, trouble = scheduler.named(name, site)
        if jobs:
            return Submitted(jobs[0].id.partition("_")[0] if batch.members else jobs[0].id, site.cluster)
    if not lost:
        return None
    raise UnansweredError(
        f"SLURM may have taken the job or not: {error.strip().splitlines()[-1] if error.strip() else 'no answer'}"
        + (f"; {trouble}" if trouble else f"; it lists no job named {name}"),
        where=batch.run.id,
        hint=f"clipa status takes the job over when SLURM lists it; squeue --me --name={name}",
    )


_UNREADABLE = "the answer of sbatch names no job"


def script(batch: sbatch.Batch) -> str:
    """The batch script that would be submitted."""
    executor = _executor(batch)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def job_environment(batch: sbatch.Batch) -> dict[str, str]:
    """The environment in which sbatch runs, and which it hands to the job: nothing of the login node's own."""
    site = batch.plan.slurm
    assert site is not None
    tools = shutil.which("sbatch")
    path = [str(Path(tools).parent)] if tools else []
    env = {name: os.environ[name] for name in (*_KEPT, *site.pass_env) if name in os.environ}
    env["PATH"] = ":".join(dict.fromkeys([*path, *_PATH.split(":")]))
    return {**env, "SLURM_CONF": scheduler.expanded(site.conf)} if site.conf else env


@contextlib.contextmanager
def _only(environment: Mapping[str, str]) -> Iterator[None]:
    """Nothing but this environment: submitit starts `sbatch` with that of its own process."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _executor(batch: sbatch.Batch) -> Any:
    """Submitit's executor for one job, with our directives instead of its own."""
    import submitit
    from submitit.core.utils import FailedSubmissionError

    answers: list[Submitted] = []

    def read(answer: str | bytes) -> str:
        text = answer if isinstance(answer, str) else answer.decode(errors="replace")
        found = submission.parse(text)
        if found is None:
            raise FailedSubmissionError(f"{_UNREADABLE}: {text.strip()[-200:]}")
        answers.append(found)
        return found.job

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
        _get_job_id_from_submission_command = staticmethod(read)

        @classmethod
        def affinity(cls) -> int:
            return 2  # a dry run needs no srun here; without sbatch a submission says so itself

        @property
        def _submitit_command_str(self) -> str:
            return f"{self.python} -u -m submitit.core._submit {sbatch.folder_of(batch)}"

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            text = sbatch.per_element(batch, super()._make_submission_file_text(command, uid))
            return sbatch.assemble(text, sbatch.directives(batch), command)

    executor = Executor(folder=batch.folder, max_num_timeout=0, python=shlex.quote(batch.python))
    executor.answers = answers
    executor.update_parameters(
        job_name=batch.run.id,
        time=batch.plan.limits.time_limit_minutes,
        nodes=batch.plan.world.nodes,
        ntasks_per_node=1,
        setup=sbatch.setup(batch),
        teardown=sbatch.teardown(batch),
        srun_args=sbatch.srun(batch),
        wckey=None,
    )
    return executor


def _detached(folder: Path, minutes: int, tasks: Sequence[Task]) -> Answer:
    import submitit

    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=minutes, tasks_per_node=1, signal_delay_s=120)
    job = executor.submit(Supervise(tasks))
    _close(folder)
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
    protect()  # submitit starts Python itself
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
