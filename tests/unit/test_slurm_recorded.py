"""What real SLURMs print, replayed for everything that reads it.

Each folder of recorded/ holds the output of one version, recorded from daemons of that version (Debian's packages of
bullseye, bookworm, trixie and sid) that ran the same jobs: a chain, an array with a limit of one and one behind it,
element by element, a failed, a cancelled, a held, a requeued and a waiting one. sacct is recorded for 22.05 alone. The
states of the versions between are taken from squeue(1): test_slurm_scheduler.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from clipa.launch.submit import _executor
from clipa.registry.jobs import Element, Jobs, live_of
from clipa.slurm import scheduler, site
from tests.unit.test_slurm_sbatch import CASES

RECORDED = sorted((Path(__file__).parent / "recorded").glob("slurm-*"))
VERSIONS = pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)


def _read(folder: Path, name: str) -> str:
    return (folder / f"{name}.txt").read_text()


def test_there_are_several_versions() -> None:
    assert {"20.11.4", "22.05.8", "24.11.5", "26.05.5"} <= {folder.name.removeprefix("slurm-") for folder in RECORDED}


@VERSIONS
def test_the_queue(folder: Path) -> None:
    jobs = scheduler.parse_squeue(_read(folder, "squeue"), 1.0)
    assert len(jobs) == len(_read(folder, "squeue").splitlines())
    named = {(job.name, job.id.partition("_")[2]): job for job in jobs}

    def seen(name: str, index: str = "") -> tuple[str | None, str]:
        job = named[name, index]
        return job.phase, job.reason

    assert seen("clipa-g-pretrain-a1")[0] == "running"
    assert seen("clipa-g-finetune-a1") == ("queued", "Dependency")
    assert seen("odd|name") == ("over", "NonZeroExitCode")
    assert seen("held") == ("held", "JobHeldUser")
    assert seen("requeued") == ("queued", "BeginTime")
    assert seen("cancelled")[0] == "over"
    assert seen("clipa-h-pretrain-a1") == ("queued", "Resources")
    assert named["clipa-h-pretrain-a1", ""].start, "when it is expected to start"
    assert [seen("clipa-s-pretrain-a1", n)[0] for n in "1234"] == ["over", "running", "queued", "queued"]
    assert seen("clipa-s-pretrain-a1", "3")[1] == "JobArrayTaskLimit"
    assert seen("clipa-s-finetune-a2", "1") == ("over", "DependencyNeverSatisfied")
    assert [seen("clipa-s-finetune-a2", n) for n in "234"] == [("queued", "Dependency")] * 3


@VERSIONS
def test_an_orphan_is_found_and_asked_for_by_its_id(folder: Path) -> None:
    jobs = Jobs(jobs=tuple(scheduler.parse_squeue(_read(folder, "squeue"), 1.0)))
    element = Element(array="clipa-s-pretrain-a1", index=3)
    found = jobs.find("", "s-03-pretrain", "clipa-s-03-pretrain-a1", [element])
    assert found is not None
    assert live_of("s-03-pretrain", jobs.jobs, [element]) == [found]
    (one,) = scheduler.parse_squeue(_read(folder, "squeue-one"), 1.0)
    assert one == found


@VERSIONS
def test_a_site_profile(folder: Path) -> None:
    there = site.Site(site.parse_sinfo(_read(folder, "sinfo")), site.parse_config(_read(folder, "config")))
    gpu, long = there.partitions
    assert (gpu.name, gpu.default, gpu.up, gpu.minutes, gpu.nodes, gpu.cpus, gpu.gpu_type, gpu.gpus) == (
        "gpu", True, True, 1440, 2, 8, "h100", 2,
    )  # fmt: skip
    assert (long.name, long.minutes) == ("long", 0)
    assert there.config["SLURM_VERSION"] == folder.name.removeprefix("slurm-")
    assert (there.requeues, there.accounts, there.warns) == (True, False, False)
    assert 'partition = "gpu"' in site.profile(there, "")


@VERSIONS
def test_what_sbatch_says(folder: Path) -> None:
    executor = _executor(CASES["least"])
    assert executor._get_job_id_from_submission_command(_read(folder, "sbatch")) == _read(folder, "sbatch").split()[-1]
    assert _read(folder, "test-only").startswith("sbatch: Job ")
    assert "nosuch" in _read(folder, "test-only-bad")


@VERSIONS
def test_words_of_trouble_are_no_jobs(folder: Path) -> None:
    assert scheduler.parse_sacct(_read(folder, "sacct-none"), 1.0) == []
    assert scheduler.parse_squeue(_read(folder, "squeue-gone"), 1.0) == []


def test_accounting_of_22_05() -> None:
    (folder,) = [folder for folder in RECORDED if folder.name == "slurm-22.05.8"]
    jobs = scheduler.parse_sacct(_read(folder, "sacct"), 1.0)
    last = {job.id: (job.name, job.word, job.phase, job.by) for job in jobs if job.phase == "over"}
    assert last["1"] == ("clipa-g-pretrain-a1", "COMPLETED", "over", "")
    assert last["2"][0] == "odd|name"
    assert last["3_1"] == ("clipa-s-pretrain-a1", "CANCELLED", "over", "root")
    assert last["6"] == ("requeued", "COMPLETED", "over", ""), "the newest record of a requeued job counts"
    assert "3_2" not in last, "it runs"
