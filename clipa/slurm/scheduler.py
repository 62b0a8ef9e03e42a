"""SLURM's own commands: one batched question with a time limit, and the few acts beside `sbatch`.

Nothing here raises because SLURM fails: an answer that does not come is "don't know", with the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.registry import local_disk
from clipa.registry.jobs import Job, Jobs
from clipa.registry.run_dir import write_whole
from clipa.registry.state import Facts
from clipa.slurm.nodelist import expand
from clipa.spec.plan import Record

QUERY_S = 2.0
"""Seconds that a question may take: `clipa status` is not to hang where slurmctld or slurmdbd does."""
ACT_S = 20.0
FRESH_S = 1.5
"""An answer so young is used again, also by another clipa: watching must not flood slurmctld (submitit#1759)."""
FORGET_S = 30 * 86400.0
_SQUEUE = "%i|%T|%r|%S|%j"
_SACCT = "JobID,State,Start,JobName"
_CLEAN = re.compile(r"(?:SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SCANCEL|PMI|PMIX|SUBMITIT)_")
_ENV_KEPT = ("SLURM_CONF",)


class Said(NamedTuple):
    """What a command printed; `trouble` is empty when it succeeded."""

    out: str
    trouble: str = ""


class _Memory(Record, frozen=True, kw_only=True):
    """What was last heard of one scheduler. `t`: when squeue answered (Unix time)."""

    t: float = 0.0
    jobs: tuple[Job, ...] = ()


def environment(conf: str) -> dict[str, str]:
    """Our own environment without what a job, or a user's defaults for SLURM's commands, would put into it."""
    kept = {k: v for k, v in os.environ.items() if k in _ENV_KEPT or not _CLEAN.match(k)}
    return {**kept, "SLURM_CONF": expanded(conf)} if conf else kept


def expanded(path: str) -> str:
    """A path of the profile with `~` and `$VARIABLES`."""
    return os.path.expanduser(os.path.expandvars(path))


def command(argv: Sequence[str], conf: str, limit: float = ACT_S) -> Said:
    """Run one of SLURM's commands, for `limit` seconds at most."""
    if conf and not os.path.isfile(expanded(conf)):
        return Said("", f"{expanded(conf)} is not there")  # scontrol of SLURM 22.05 tries for 59 s before it says so
    try:
        process = subprocess.Popen(
            argv, env=environment(conf), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", process_group=0, cwd="/",
        )  # fmt: skip
    except OSError as error:
        missing = f"{argv[0]} is not installed here"
        return Said("", missing if isinstance(error, FileNotFoundError) else f"{argv[0]}: {error.strerror}")
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Said("", f"{argv[0]} did not answer within {limit:g} s")
    if process.returncode:
        words = err.strip().splitlines() or [f"exit code {process.returncode}"]
        return Said(out, f"{argv[0]}: {words[-1].removeprefix(f'{argv[0]}: ')}")
    return Said(out)


def ask(runs: Sequence[Facts]) -> Mapping[str, Jobs]:
    """What SLURM says of the jobs of runs: one question for each cluster, however many runs."""
    wanted: dict[str, list[Facts]] = {}
    for facts in runs:
        if facts.plan.slurm is not None and facts.ended is None:
            wanted.setdefault(expanded(facts.plan.slurm.conf), []).append(facts)
    answers = {}
    for conf, mine in wanted.items():
        jobs = _ask_one(conf, mine)
        answers.update({facts.plan.run: jobs for facts in mine})
    return answers


def jobs_of(facts: Facts) -> Jobs:
    """What SLURM says of the jobs of one run, whether it is over or not."""
    assert facts.plan.slurm is not None
    return _ask_one(expanded(facts.plan.slurm.conf), [facts])


def _ask_one(conf: str, runs: Sequence[Facts]) -> Jobs:
    users = sorted({_owner(facts.path) for facts in runs})
    path = _memory_file(conf, users)
    memory = _recall(path)
    now = time.time()
    remembered = {job.id for job in memory.jobs}
    # An answer that is older than a job says nothing of it: that it is not listed would look like its end.
    if 0 <= now - memory.t < FRESH_S and all(f.slurm_job in remembered for f in runs if f.slurm_job):
        return Jobs(jobs=memory.jobs)
    said = command(["squeue", "-h", "-a", "-r", "-t", "all", "-u", ",".join(users), "-o", _SQUEUE], conf, QUERY_S)
    if said.trouble:
        return Jobs(jobs=memory.jobs, trouble=said.trouble)
    listed = {job.id: job for job in parse_squeue(said.out, now)}
    gone = [facts for facts in runs if facts.slurm_job and facts.slurm_job not in listed]
    known = {job.id: job for job in memory.jobs if job.phase == "over" and now - job.t < FORGET_S}
    if missing := [facts for facts in gone if facts.slurm_job not in known]:
        known |= _ask_accounting(conf, missing, now)
    jobs = tuple({**known, **listed}.values())
    _remember(path, _Memory(t=now, jobs=jobs))
    return Jobs(jobs=jobs)


def _ask_accounting(conf: str, runs: Sequence[Facts], now: float) -> dict[str, Job]:
    """What sacct remembers of jobs that squeue no longer lists; nothing where it fails: that is never "failed"."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(f.queued or now for f in runs) - 3600))
    ids = ",".join(sorted({facts.slurm_job for facts in runs}))
    said = command(["sacct", "-X", "-n", "-P", "-D", "-S", since, "-j", ids, "-o", _SACCT], conf, QUERY_S)
    # The newest record of a requeued job comes last. A job that is not over is one that slurmdbd is late with.
    return {job.id: job for job in parse_sacct(said.out, now) if job.phase == "over"} if not said.trouble else {}


def parse_squeue(text: str, now: float) -> list[Job]:
    """The jobs of `squeue -h -o '%i|%T|%r|%S|%j'`; lines of another shape are passed over."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) == 5 and fields[0].strip():
            ident, word, reason, start, name = (field.strip() for field in fields)
            jobs.append(_job(ident, word, reason, start, name, "squeue", now))
    return jobs


def parse_sacct(text: str, now: float) -> list[Job]:
    """The jobs of `sacct -X -n -P -o JobID,State,Start,JobName`; lines of another shape are passed over."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 3)
        if len(fields) == 4 and fields[0].strip():
            ident, word, start, name = (field.strip() for field in fields)
            jobs += [_job(one, word, "", start, name, "sacct", now) for one in idents(ident)]
    return jobs


def idents(text: str) -> list[str]:
    """The jobs of an id as SLURM writes it: elements that have not run share a line, `12_[3-5,9%2]`."""
    base, bracket, rest = text.partition("_[")
    if not bracket:
        return [text]
    try:
        found = expand(f"[{rest.rstrip(']').partition('%')[0]}]")
    except ValueError:
        return []
    return [f"{base}_{index}" for index in found if index.isdecimal()]  # a long list is cut off: "12_[1,3,5,..."


def _job(ident: str, word: str, reason: str, start: str, name: str, source: str, now: float) -> Job:
    word, _, by = word.partition(" by ")  # sacct: "CANCELLED by 1000"
    return Job(
        id=ident, name=name, word=word.rstrip("+"), reason=reason.strip("()"), start=_moment(start),
        by=_user(by.strip()), source=source, t=now,
    )  # fmt: skip


def _moment(text: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None  # "N/A", "Unknown"


def _user(number: str) -> str:
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (ValueError, KeyError, OverflowError):
        return number


def _owner(path: str) -> str:
    try:
        return _user(str(os.stat(path).st_uid))
    except OSError:
        return _user(str(os.getuid()))


def _memory_file(conf: str, users: Sequence[str]) -> Path | None:
    key = "\0".join([conf, os.environ.get("SLURM_CONF", ""), *users])
    with contextlib.suppress(OSError, RuntimeError):
        return local_disk.cache_folder() / f"slurm-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    return None


def _recall(path: Path | None) -> _Memory:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Memory) if path else _Memory()
    except (OSError, msgspec.MsgspecError):
        return _Memory()


def _remember(path: Path | None, memory: _Memory) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            write_whole(path, msgspec.json.encode(memory))


def describe_job(ident: str, conf: str) -> Job | None:
    """One job, asked now; None when that is not to be had."""
    said = command(["squeue", "-h", "-r", "-t", "all", "-j", ident, "-o", _SQUEUE], conf)
    return next((job for job in parse_squeue(said.out, time.time()) if job.id == ident), None)


def requeue(ident: str, conf: str) -> Said:
    """Put a job back into the queue, under the same id."""
    return command(["scontrol", "requeue", ident], conf)


def cancel(idents: Sequence[str], conf: str) -> Said:
    """End jobs."""
    return command(["scancel", "--quiet", *idents], conf) if idents else Said("")


def release(ident: str, conf: str) -> Said:
    """Let a held job go on."""
    return command(["scontrol", "release", ident], conf)


def repoint(child: str, parent: str, conf: str) -> Said:
    """Have a pending job wait for another one."""
    return command(["scontrol", "update", f"jobid={child}", f"dependency=afterok:{parent}"], conf)


def test_only(script: Path, conf: str) -> Said:
    """SLURM's own check of a script, without making a job; `out` is its prediction."""
    argv = ["sbatch", "--test-only", str(script)]
    try:
        done = subprocess.run(
            argv, env=environment(conf), capture_output=True, text=True, timeout=ACT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        return Said("", "sbatch is not installed here")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Said("", f"sbatch: {error}")
    words = done.stderr.strip().removeprefix("sbatch: ")
    return Said("", words) if done.returncode else Said(words)
