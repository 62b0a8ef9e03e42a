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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.registry import local_disk
from clipa.registry.jobs import Absence, Job, Jobs, is_of
from clipa.registry.run_dir import write_whole
from clipa.registry.state import Facts
from clipa.slurm.nodelist import expand
from clipa.spec.plan import Record
from clipa.spec.slurm import Slurm

QUERY_S = 2.0
"""Seconds that a question may take: `clipa status` is not to hang where slurmctld or slurmdbd does."""
ACT_S = 20.0
FRESH_S = 1.5
"""An answer so young is used again, also by another clipa: watching must not flood slurmctld (submitit#1759)."""
FORGET_S = 30 * 86400.0
_SQUEUE = "%i|%T|%r|%S|%j"
_SACCT = "JobID,State,Start,JobName"
_FIELD = re.compile(r"(?:^| )(JobName|JobState|Reason|StartTime|Restarts)=(\S*)")
"""Of `scontrol show job -o`."""
_ASKED = 8
"""Jobs that are looked up one by one in one question, so that a look stays quick."""
_CLEAN = re.compile(r"(?:SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SCANCEL|PMI|PMIX|SUBMITIT)_")
_ENV_KEPT = ("SLURM_CONF",)


class Said(NamedTuple):
    """What a command printed; `trouble` is empty when it succeeded."""

    out: str
    trouble: str = ""


class _Memory(Record, frozen=True, kw_only=True):
    """What was last heard of one scheduler. `t`: when squeue answered (Unix time); `absent`: jobs that it lacked."""

    t: float = 0.0
    jobs: tuple[Job, ...] = ()
    absent: dict[str, Absence] = {}


class Site(NamedTuple):
    """Which SLURM is meant: its configuration (empty: this machine's), and a cluster of it (empty: its default)."""

    conf: str
    cluster: str = ""

    def argv(self, tool: str, *words: str) -> list[str]:
        """Return the command line of a tool that asks this cluster."""
        return [tool, *(["-M", self.cluster] if self.cluster else []), *words]


def site_of(facts: Facts) -> Site:
    """Return the SLURM that took a run's job, or that will: a cluster of several is known once it took the job."""
    assert facts.plan.slurm is not None
    return site_of_plan(facts.plan.slurm, facts.slurm_cluster)


def site_of_plan(settings: Slurm, cluster: str = "") -> Site:
    """Return the SLURM of a profile; `cluster` is the one that took the job, where that is known."""
    wanted = settings.directives.get("clusters") or settings.directives.get("cluster")
    return Site(expanded(settings.conf), cluster or (wanted if isinstance(wanted, str) else ""))


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
    """Return what SLURM says of the jobs of runs: one question for each cluster, however many runs."""
    wanted: dict[Site, list[Facts]] = {}
    for facts in runs:
        if facts.plan.slurm is not None and facts.ended is None:
            wanted.setdefault(site_of(facts), []).append(facts)
    answers = {}
    for site, mine in wanted.items():
        jobs = _ask_one(site, mine)
        answers.update({facts.plan.run: jobs for facts in mine})
    return answers


def jobs_of(facts: Facts) -> Jobs:
    """Return what SLURM says of the jobs of one run, whether it is over or not."""
    return _ask_one(site_of(facts), [facts])


def _ask_one(site: Site, runs: Sequence[Facts]) -> Jobs:
    users = sorted({_owner(facts.path) for facts in runs})
    path = _memory_file(site, users)
    memory = _recall(path)
    now = time.time()
    # An answer that is older than a job says nothing of it: that it is not listed would look like its end.
    if 0 <= now - memory.t < FRESH_S and not _missing(runs, memory.jobs):
        return Jobs(jobs=memory.jobs, absent=memory.absent)
    argv = site.argv("squeue", "-h", "-a", "-r", "-t", "all", "-u", ",".join(users), "-o", _SQUEUE)
    said = command(argv, site.conf, QUERY_S)
    if said.trouble:
        return Jobs(jobs=memory.jobs, trouble=said.trouble, absent=memory.absent)
    listed = parse_squeue(said.out, now)
    over = [job for job in memory.jobs if job.phase == "over" and now - job.t < FORGET_S]
    for source in (_ask_accounting, _ask_controller):
        if missing := _missing(runs, [*over, *listed]):
            over += source(site, missing, now)
    jobs = tuple({(job.id, job.name): job for job in [*over, *listed]}.values())
    absent = {f.slurm_job: _longer(memory.absent.get(f.slurm_job), now) for f in _missing(runs, jobs)}
    _remember(path, _Memory(t=now, jobs=jobs, absent=absent))
    return Jobs(jobs=jobs, absent=absent)


def _missing(runs: Iterable[Facts], jobs: Sequence[Job]) -> list[Facts]:
    """Return the runs whose recorded job is not among these, by its id and its name."""
    named = {(job.id, job.name): job for job in jobs}
    by_id: dict[str, list[Job]] = {}
    for job in named.values():
        by_id.setdefault(job.id, []).append(job)

    def is_there(facts: Facts) -> bool:
        return any(is_of(facts.plan.run, job, facts.elements) for job in by_id.get(facts.slurm_job, ()))

    return [facts for facts in runs if facts.slurm_job and not is_there(facts)]


def _longer(absence: Absence | None, now: float) -> Absence:
    """Return an absence with one answer more."""
    if absence is None or now < absence.since:  # the clock was set back: count anew
        return Absence(since=now, answers=1)
    return Absence(since=absence.since, answers=absence.answers + 1)


def _ask_accounting(site: Site, runs: Sequence[Facts], now: float) -> list[Job]:
    """Return what sacct remembers of jobs that squeue does not list; nothing where it fails: that is no end."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(f.queued or now for f in runs) - 3600))
    ids = ",".join(sorted({facts.slurm_job for facts in runs}))
    argv = site.argv("sacct", "-X", "-n", "-P", "-D", "-S", since, "-j", ids, "-o", _SACCT)
    said = command(argv, site.conf, QUERY_S)
    # The newest record of a requeued job comes last. A job that is not over is one that slurmdbd is late with.
    return [job for job in parse_sacct(said.out, now) if job.phase == "over"] if not said.trouble else []


def _ask_controller(site: Site, runs: Sequence[Facts], now: float) -> list[Job]:
    """Return what the controller says of jobs that squeue does not list, of the first `_ASKED` of them.

    Sites put a cache before squeue; few do before scontrol.
    """
    found = []
    for facts in runs[:_ASKED]:
        answer = look_up(facts.slurm_job, site, QUERY_S)
        if answer.trouble:
            break  # it does not answer: the others are not asked for as long each
        found += [answer.job] if answer.job else []
    return found


class Answer(NamedTuple):
    """What the controller said of one job: the job, or None for an id that it does not know; or why there is none."""

    job: Job | None
    trouble: str = ""
    restarts: int = 0


def look_up(ident: str, site: Site, limit: float = ACT_S) -> Answer:
    """Ask the controller for one job by its id."""
    said = command(site.argv("scontrol", "show", "job", "-o", ident), site.conf, limit)
    if said.trouble:
        return Answer(None) if "invalid job id" in said.trouble.lower() else Answer(None, said.trouble)
    fields = dict(_FIELD.findall(said.out.partition("\n")[0]))
    if "JobState" not in fields:
        return Answer(None, "scontrol gave an answer that cannot be read")
    job = _job(ident, fields["JobState"], fields.get("Reason", ""), fields.get("StartTime", ""),
               fields.get("JobName", ""), "scontrol", time.time())  # fmt: skip
    restarts = fields.get("Restarts", "0")
    return Answer(job, restarts=int(restarts) if restarts.isdecimal() else 0)


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


def _memory_file(site: Site, users: Sequence[str]) -> Path | None:
    key = "\0".join([*site, os.environ.get("SLURM_CONF", ""), *users])
    with contextlib.suppress(OSError, RuntimeError):
        return local_disk.cache_folder() / f"slurm-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    return None


def _recall(path: Path | None) -> _Memory:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Memory) if path else _Memory()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Memory()


def _remember(path: Path | None, memory: _Memory) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            write_whole(path, msgspec.json.encode(memory))


def describe_job(ident: str, site: Site) -> Job | None:
    """Return one job, asked now by its id; None when that is not to be had."""
    said = command(site.argv("squeue", "-h", "-r", "-t", "all", "-j", ident, "-o", _SQUEUE), site.conf)
    return next((job for job in parse_squeue(said.out, time.time()) if job.id == ident), None)


def named(name: str, site: Site) -> tuple[list[Job], str]:
    """Return the jobs of a name that are not over, asked now, and why that is not to be had (else empty)."""
    said = command(site.argv("squeue", "-h", "-a", "-r", "-n", name, "-o", _SQUEUE), site.conf)
    found = [job for job in parse_squeue(said.out, time.time()) if job.name == name and job.phase != "over"]
    return found, said.trouble


def requeue(ident: str, site: Site) -> Said:
    """Put a job back into the queue, under the same id."""
    return command(site.argv("scontrol", "requeue", ident), site.conf)


def cancel(idents: Sequence[str], site: Site, name: str = "") -> Said:
    """End jobs by their ids, and by their name where one is given: an id must then belong to a job of that name.

    Without ids, all jobs of this user with this name are ended.
    """
    if not idents and not name:
        return Said("")
    return command(site.argv("scancel", "--quiet", *([f"--name={name}"] if name else []), *idents), site.conf)


def release(ident: str, site: Site) -> Said:
    """Let a held job go on."""
    return command(site.argv("scontrol", "release", ident), site.conf)


def repoint(child: str, parent: str, site: Site) -> Said:
    """Have a pending job wait for another one."""
    argv = site.argv("scontrol", "update", f"jobid={child}", f"dependency=afterok:{parent}")
    return command(argv, site.conf)


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
