"""The cache: what goes when there is too much, and what never does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipa.registry import events, records
from clipa.registry.liveness import own_identity
from clipa.staging.cache import About, listing, sweep, use
from clipa.staging.claims import Claims
from clipa.staging.meeting import ALIVE, make, meeting_place
from clipa.storage.dataset import index
from clipa.storage.store import Store
from tests.services.stage_runs import make_run, write_shards

KIB = 1 << 10
RUNS = {"live": True, "over": False}


def _live(run: Path) -> bool:
    return RUNS[run.name]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three datasets of 64 KiB, `a` used first, `c` last."""
    for used, name in enumerate("abc", 1000):
        folder = tmp_path / "staged" / name
        use(folder, About(url=f"s3://bucket/{name}", bytes=64 * KIB, shards=1))
        (folder / "0.tar").write_bytes(os.urandom(64 * KIB))
        os.utime(folder / ".used", (used, used))
    return tmp_path


def _names(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "staged").iterdir())


def test_the_least_recently_used_is_listed_and_goes_first(cache: Path) -> None:
    assert [(c.url, c.shards, c.bytes) for c in listing(cache, _live)] == [
        (f"s3://bucket/{name}", 1, 64 * KIB) for name in "abc"
    ]
    swept = sweep(cache, 150 * KIB, by=_live)
    assert [Path(c.path).name for c in swept.removed] == ["a"]
    assert _names(cache) == ["b", "c"]
    assert sweep(cache, 150 * KIB, by=_live).removed == ()


def test_a_dry_run_says_the_same_and_does_nothing(cache: Path) -> None:
    assert [Path(c.path).name for c in sweep(cache, 0, dry_run=True, by=_live).removed] == ["a", "b", "c"]
    assert _names(cache) == ["a", "b", "c"]


def test_what_a_live_run_needs_stays(cache: Path) -> None:
    for name, run in (("a", "live"), ("b", "over")):
        use(cache / "staged" / name, About(url=f"s3://bucket/{name}", bytes=1, shards=1), Path("/runs") / run)
    swept = sweep(cache, 0, by=_live)
    assert _names(cache) == ["a"]
    assert list(swept.kept.values()) == ["needed by live"]


def test_what_somebody_is_filling_stays(cache: Path) -> None:
    filler = Claims(cache / "staged" / "a")
    assert filler.be_present()
    assert list(sweep(cache, 0, by=_live).kept.values()) == ["somebody is filling it"]
    filler.close()
    assert sweep(cache, 0, by=_live).kept == {}
    assert _names(cache) == []


def test_a_run_that_comes_between_the_look_and_the_act_keeps_its_data(cache: Path) -> None:
    asked = []

    def comes_late(run: Path) -> bool:
        asked.append(run)
        return len(asked) > 1

    use(cache / "staged" / "a", About(url="s3://b/a", bytes=1, shards=1), Path("/runs/late"))
    sweep(cache, 0, by=comes_late)
    assert _names(cache) == ["a"]


def test_what_could_not_be_fetched_again_stays(cache: Path) -> None:
    (cache / "staged" / "a" / ".about.json").unlink()
    use(cache / "staged" / "b", About(url="memory://x", bytes=1, shards=1))
    assert len(sweep(cache, 0, by=_live).kept) == 2
    assert _names(cache) == ["a", "b"]


def test_what_is_about_to_be_used_stays_and_torn_removals_are_finished(cache: Path) -> None:
    (cache / "staged" / ".evicted-0123" / "sub").mkdir(parents=True)
    sweep(cache, 0, keep=[str(cache / "staged" / "b")], by=_live)
    assert _names(cache) == ["b"]


def test_old_torn_records_of_killed_writers_are_swept_and_young_ones_stay(cache: Path) -> None:
    folder, about = cache / "staged" / "a", About(url="s3://b/other", bytes=1, shards=1)
    (folder / ".pins").mkdir()
    for at in (folder / "..about.json.1.2.part", folder / ".pins" / ".live.1.2.part"):
        at.touch()
        os.utime(at, (1, 1))
        at.with_name(at.name.replace(".1.", ".9.")).touch()
    use(folder, about, Path("/runs/live"))
    left = sorted(path.name for path in folder.rglob("*.part"))
    assert left == ["..about.json.9.2.part", ".live.9.2.part"]


def test_an_empty_cache(tmp_path: Path) -> None:
    assert listing(tmp_path / "absent") == []
    assert sweep(tmp_path / "absent", 0).removed == ()


def test_a_runs_own_words_say_whether_it_lives(tmp_path: Path, cache: Path) -> None:
    store = Store(str(tmp_path / "bucket"))
    write_shards(store, 1, 100)
    run = make_run(tmp_path, store.source, index(store.source))
    use(cache / "staged" / "a", About(url="s3://b/a", bytes=1, shards=1), run.path)
    records.write_intent(run, 1, 1, "submit")
    assert [c.pinned_by for c in listing(cache)][-1] == ("r1",), "queued"
    run.claim(1)
    me = own_identity()
    log = events.EventWriter(run, 1, "supervisor")
    log.write(
        events.Started,
        host=me.host,
        pid=me.pid,
        start_ticks=me.start_ticks,
        boot_id=me.boot_id,
        pid_namespace=me.pid_namespace,
    )
    assert [c.pinned_by for c in listing(cache)][-1] == ("r1",), "running"
    log.write(events.Ended, outcome="done", final=True, error="")
    log.close()
    assert [c.pinned_by for c in listing(cache)][-1] == (), "done"


def test_two_sweeps_at_once(cache: Path) -> None:
    code = "import sys; from pathlib import Path; from clipa.staging.cache import sweep; sweep(Path(sys.argv[1]), 0)"
    both = [subprocess.Popen([sys.executable, "-c", code, cache], stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=60)[1] for process in both] == [b"", b""]
    assert _names(cache) == []


@pytest.fixture
def streamed(cache: Path) -> dict[str, Path]:
    """What three nodes had: of a run that lives, of one that was killed, and of one of an older clipa."""
    found = {name: meeting_place(cache, Path("/runs") / name, "node-0", 1) for name in ("live", "over")}
    for name, folder in found.items():
        make(folder, Path("/runs") / name)
    found["old"] = cache / "streamed" / "old.host" / "1"
    for folder in found.values():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "0.tar").write_bytes(os.urandom(64 * KIB))
        (folder / ALIVE).touch()
    return found


def _silent(folder: Path) -> None:
    for path in (folder / ALIVE, folder, folder.parent):
        os.utime(path, (1000, 1000))


def test_what_a_killed_run_streamed_is_listed_and_goes_whatever_the_limit(
    cache: Path, streamed: dict[str, Path]
) -> None:
    for folder in streamed.values():
        _silent(folder)
    found = {Path(c.path).name.partition(".")[0]: c for c in listing(cache, _live) if c.kind == "streamed"}
    assert {name: (c.url, c.shards, c.pinned_by) for name, c in found.items()} == {
        "live": ("/runs/live", 1, ("live",)), "over": ("/runs/over", 1, ()), "old": ("", 1, ()),
    }  # fmt: skip
    assert all(c.on_disk >= 64 * KIB for c in found.values())
    dry = sweep(cache, 10 << 20, dry_run=True, by=_live)
    assert len(dry.removed) == 2
    assert all(folder.exists() for folder in streamed.values())
    swept = sweep(cache, 10 << 20, by=_live)
    assert [c.path for c in swept.removed] == [c.path for c in dry.removed]
    assert list(swept.kept.values()) == ["needed by live"]
    assert _names(cache) == ["a", "b", "c"]
    assert [path.name.partition(".")[0] for path in (cache / "streamed").iterdir()] == ["live"]


def test_what_somebody_reads_stays_whoever_it_is(cache: Path, streamed: dict[str, Path]) -> None:
    swept = sweep(cache, 10 << 20, by=lambda _: False)
    assert swept.removed == ()
    assert set(swept.kept.values()) == {"somebody reads it"}
    assert all(folder.exists() for folder in streamed.values())


def test_the_room_of_what_a_live_run_is_still_staging_is_taken(cache: Path) -> None:
    """It trains already, and its shards come meanwhile: nobody else may have their place."""
    folder = cache / "staged" / "c"
    use(folder, About(url="s3://bucket/c", bytes=264 * KIB, shards=4), Path("/runs/live"))
    assert [Path(c.path).name for c in sweep(cache, 370 * KIB, dry_run=True, by=_live).removed] == ["a"]
    assert sweep(cache, 370 * KIB, dry_run=True, keep=[str(folder)], by=_live).removed == ()
    assert sweep(cache, 370 * KIB, dry_run=True, by=lambda _: False).removed == ()
