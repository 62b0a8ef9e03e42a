"""Asking SLURM: what it prints, what it prints otherwise, and what happens when it says nothing."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.registry.jobs import WORDS, Element, Job, Jobs, live_of
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import read
from clipa.registry.state import Facts
from clipa.slurm import scheduler, submission
from tests.unit.test_registry_state import PLAN, STARTED, make

SQUEUE = """\
12|PENDING|Dependency|N/A|clipa-g-finetune-a1
11|RUNNING|None|2026-11-25T13:40:13|clipa-g-pretrain-a1
9|CANCELLED|DependencyNeverSatisfied|N/A|clipa-g-eval-a2
8|PENDING|(Nodes required for job are DOWN, DRAINED or reserved)|2026-11-25T14:00:00|x
7_3|COMPLETING|TimeLimit|2026-11-25T13:00:00|odd|name
5|PENDING|BeginTime|2026-11-25T14:01:00|clipa-g-pretrain-a1
slurm_load_jobs error: something
"""
SACCT = """\
11|COMPLETED|2026-11-25T13:40:13|clipa-g-pretrain-a1
4|NODE_FAIL|2026-11-25T13:00:00|clipa-h-pretrain-a1
4|PENDING|Unknown|clipa-h-pretrain-a1
3|CANCELLED by 0|2026-11-25T13:00:00|x
2|CANCELLED+|2026-11-25T13:00:00|x
1|OUT_OF_MEMORY|2026-11-25T13:00:00|x
"""


def test_squeue_as_recorded() -> None:
    jobs = {job.id: job for job in scheduler.parse_squeue(SQUEUE, 5.0)}
    assert [*jobs] == ["12", "11", "9", "8", "7_3", "5"]
    assert (jobs["12"].phase, jobs["12"].start) == ("queued", None)
    assert jobs["11"].phase == "running"
    assert jobs["11"].start == time.mktime((2026, 11, 25, 13, 40, 13, 0, 0, -1))
    assert jobs["8"].reason.startswith("Nodes required")
    assert jobs["7_3"].name == "odd|name"
    assert jobs["9"].reason == "DependencyNeverSatisfied"


def test_sacct_as_recorded() -> None:
    jobs = scheduler.parse_sacct(SACCT, 5.0)
    assert [job.word for job in jobs] == [
        "COMPLETED", "NODE_FAIL", "PENDING", "CANCELLED", "CANCELLED", "OUT_OF_MEMORY",
    ]  # fmt: skip
    assert jobs[3].by == "root"
    assert all(job.phase for job in jobs)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12", ["12"]),
        ("12_4", ["12_4"]),
        ("12_[2]", ["12_2"]),
        ("12_[2-4,9%2]", ["12_2", "12_3", "12_4", "12_9"]),
        ("12_[1,3,5,...]", ["12_1", "12_3", "12_5"]),
        ("12_[oops", []),
    ],
)
def test_elements_that_share_a_line(text: str, found: list[str]) -> None:
    assert [job.id for job in scheduler.parse_sacct(f"{text}|CANCELLED|Unknown|x", 0)] == found


@given(st.text())
def test_no_output_breaks_the_parsers(text: str) -> None:
    for job in [*scheduler.parse_squeue(text, 0), *scheduler.parse_sacct(text, 0)]:
        assert job.id


def test_the_words_of_every_version_are_known() -> None:
    # squeue(1), JOB STATE CODES: 20.11, 22.05, 23.11, 24.11, 25.05
    said = """BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING
    PREEMPTED RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT
    STOPPED SUSPENDED TIMEOUT LAUNCH_FAILED POWER_UP_NODE RECONFIG_FAIL UPDATE_DB EXPEDITING"""
    assert set(said.split()) <= set(WORDS)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(scheduler, "FRESH_S", 0.0)
    return folder


def shim(tools: Path, name: str, script: str) -> None:
    (tools / name).write_text(f'#!/bin/sh\necho "$@" >>{tools}/{name}.calls\n{script}\n')
    (tools / name).chmod(0o755)


def run_facts(root: Path, name: str, job: str) -> Facts:
    run = make(root, [{**STARTED, "job": job}], name)
    plan = {**PLAN, "run": name, "run_root": str(root), "backend": "slurm", "slurm": {"time": 9}}
    RunDir(run.path).plan.write_bytes(msgspec.json.encode(plan))
    facts = read(run).facts
    assert facts is not None
    return facts


def test_one_question_however_many_runs(tools: Path, tmp_path: Path) -> None:
    shim(tools, "squeue", "printf '%s\\n' '1|RUNNING|None|N/A|clipa-r1-a1'")
    shim(tools, "sacct", "printf '%s\\n' '2|FAILED|Unknown|clipa-r2-a1'")
    runs = [run_facts(tmp_path / "runs", f"r{number}", str(number)) for number in range(1, 30)]
    answers = scheduler.ask(runs)
    found = answers["r1"].find("1", "r1")
    assert found is not None
    assert found.phase == "running"
    gone = answers["r2"].find("2", "r2")
    assert gone is not None
    assert (gone.word, gone.source) == ("FAILED", "sacct")
    assert answers["r3"].find("3", "r3") is None
    assert not answers["r3"].trouble
    assert len((tools / "squeue.calls").read_text().splitlines()) == 1
    assert len((tools / "sacct.calls").read_text().splitlines()) == 1


def test_an_answer_that_is_older_than_a_job_is_not_used_for_it(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "FRESH_S", 1000.0)
    shim(tools, "squeue", "printf '%s\\n' '1|RUNNING|None|N/A|clipa-r1-a1'")
    shim(tools, "sacct", "exit 1")
    first = run_facts(tmp_path / "runs", "r1", "1")
    assert scheduler.ask([first])["r1"].find("1", "r1")
    assert scheduler.ask([first])["r1"].find("1", "r1")
    calls = tools / "squeue.calls"
    assert len(calls.read_text().splitlines()) == 1, "a young answer is used again"
    shim(tools, "squeue", "printf '%s\\n' '1|RUNNING|None|N/A|clipa-r1-a1' '2|RUNNING|None|N/A|clipa-r2-a1'")
    second = run_facts(tmp_path / "runs", "r2", "2")
    assert scheduler.ask([first, second])["r2"].find("2", "r2"), "it was submitted after that answer"
    assert len(calls.read_text().splitlines()) == 2


@pytest.mark.parametrize("script", ["exit 1", "sleep 60", "echo nonsense", "kill -9 $$"])
def test_sacct_that_fails_or_hangs_is_no_news(tools: Path, tmp_path: Path, script: str) -> None:
    shim(tools, "squeue", "printf '%s\\n' '1|RUNNING|None|N/A|clipa-r1-a1'")
    shim(tools, "sacct", script)
    began = time.monotonic()
    jobs = scheduler.ask([run_facts(tmp_path / "runs", "r2", "2")])["r2"]
    assert time.monotonic() - began < scheduler.QUERY_S + 3
    assert jobs.find("2", "r2") is None
    assert not jobs.trouble, "squeue has answered: the job is not listed"
    assert jobs.absent["2"].answers == 1
    assert not jobs.is_gone("2", time.time() + 1e6, 1.0), "one answer without a job is no proof that it ended"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sleep 60", "did not answer within 2 s"),
        ("echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        (None, "not installed"),
    ],
)
def test_squeue_that_fails_leaves_the_last_known_state_with_its_age(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    facts = run_facts(tmp_path / "runs", "r1", "1")
    shim(tools, "squeue", "printf '%s\\n' '1|RUNNING|None|N/A|clipa-r1-a1'")
    before = scheduler.ask([facts])["r1"]
    (tools / "squeue").unlink()
    if script:
        shim(tools, "squeue", script)
    else:
        monkeypatch.setenv("PATH", str(tools))
    after = scheduler.ask([facts])["r1"]
    assert said in after.trouble
    assert after.find("1", "r1") == before.find("1", "r1"), "as it was, with the time at which it was so"


def test_an_element_is_found_by_its_arrays_name_and_its_index() -> None:
    place = Element(array="clipa-g-pretrain-a1", index=2)
    listed = [Job(id=f"7_{n}", name=place.array, word="PENDING") for n in (1, 2, 12, 22)]
    jobs = Jobs(
        jobs=(Job(id="6_2", name=place.array, word="FAILED"), *listed, Job(id="8_2", name="other", word="PENDING"))
    )
    found = jobs.find("", "g-02-pretrain", "clipa-g-02-pretrain-a1", [place])
    assert found is not None
    assert found.id == "7_2"
    assert [job.id for job in live_of("g-02-pretrain", jobs.jobs, [place])] == ["7_2"]


def test_an_orphan_is_found_by_its_name() -> None:
    jobs = Jobs(jobs=(Job(id="5", name="clipa-r-a1", word="FAILED"), Job(id="6", name="clipa-r-a1", word="PENDING")))
    found = jobs.find("", "r", "clipa-r-a1")
    assert found is not None
    assert found.id == "6"
    assert jobs.find("7", "r", "clipa-r-a1") is None, "the id counts where there is one"


def test_a_job_is_gone_after_several_answers_without_it_and_some_time(tools: Path, tmp_path: Path) -> None:
    shim(tools, "squeue", "exit 0")
    shim(tools, "sacct", "exit 1")
    shim(tools, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    facts = run_facts(tmp_path / "runs", "r2", "2")
    jobs = [scheduler.ask([facts])["r2"] for _ in range(3)][-1]
    assert jobs.absent["2"].answers == 3
    assert not jobs.is_gone("2", time.time(), 60.0)
    assert jobs.is_gone("2", time.time() + 61, 60.0)
    shim(tools, "squeue", "echo '2|RUNNING|None|N/A|clipa-r2-a1'")
    assert not scheduler.ask([facts])["r2"].absent, "a job that is listed again was never gone"


def test_the_controller_is_asked_for_a_job_that_a_cached_list_lacks(tools: Path, tmp_path: Path) -> None:
    shim(tools, "squeue", "exit 0")
    shim(tools, "sacct", "exit 1")
    shim(tools, "scontrol", "echo 'JobId=2 JobName=clipa-r2-a1 UserId=x JobState=RUNNING Reason=None Restarts=1'")
    jobs = scheduler.ask([run_facts(tmp_path / "runs", "r2", "2")])["r2"]
    found = jobs.find("2", "r2")
    assert found is not None
    assert (found.phase, found.source) == ("running", "scontrol")
    assert not jobs.absent
    assert scheduler.look_up("2", scheduler.Site("")).restarts == 1


def test_an_id_that_another_job_has_got_is_not_ours(tools: Path, tmp_path: Path) -> None:
    """A controller that lost its state counts from 1 again."""
    shim(tools, "squeue", "echo '2|RUNNING|None|N/A|somebody-else'")
    shim(tools, "sacct", "echo '2|COMPLETED|Unknown|older-still'")
    shim(tools, "scontrol", "echo 'JobId=2 JobName=somebody-else JobState=RUNNING Reason=None'")
    jobs = scheduler.ask([run_facts(tmp_path / "runs", "r2", "2")])["r2"]
    assert jobs.find("2", "r2") is None
    assert jobs.absent["2"].answers == 1


def test_the_cluster_that_took_a_job_is_asked_for_it(tools: Path, tmp_path: Path) -> None:
    shim(tools, "squeue", "[ \"$1 $2\" = '-M foo' ] && echo '2|RUNNING|None|N/A|clipa-r2-a1'")
    run = make(tmp_path / "runs", [{"event": "submitted", "job": "2", "scheduler": "slurm", "cluster": "foo"}], "r2")
    plan = {**PLAN, "run": "r2", "run_root": str(tmp_path), "backend": "slurm",
            "slurm": {"time": 9, "directives": {"clusters": "bar,foo"}}}  # fmt: skip
    RunDir(run.path).plan.write_bytes(msgspec.json.encode(plan))
    facts = read(run).facts
    assert facts is not None
    assert scheduler.ask([facts])["r2"].find("2", "r2")
    assert scheduler.site_of_plan(facts.plan.slurm).cluster == "bar,foo", "before a cluster has taken it"


@pytest.mark.parametrize(
    ("answer", "job"),
    [
        ("Submitted batch job 12\n", ("12", "")),
        ("Submitted batch job 12 on cluster foo", ("12", "foo")),
        ("Welcome! Your job 3 today\nSubmitted batch job 12\n", ("12", "")),
        ("12\n", ("12", "")),
        ("12;foo\n", ("12", "foo")),
        ("quota: 40 of 100\n12\n", ("12", "")),
        ("your job 3 today", None),
        ("12\n13\n", None),
        ("Submitted batch job 12\nSubmitted batch job 13\n", None),
        ("", None),
    ],
)
def test_the_answer_of_sbatch(answer: str, job: tuple[str, str] | None) -> None:
    found = submission.parse(answer)
    assert (tuple(found) if found else None) == job


@given(st.text())
def test_no_answer_of_sbatch_breaks_the_parser(text: str) -> None:
    found = submission.parse(text)
    assert found is None or found.job.isdecimal()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", True),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", False),
    ],
)
def test_which_errors_of_sbatch_leave_open_whether_there_is_a_job(error: str, lost: bool) -> None:
    assert submission.may_be_lost(error) is lost
