"""What a person reads about runs: which score, which log, which reasons."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clipa.cli import show
from clipa.cli.tail import telling
from clipa.host.children import last_lines
from clipa.launch.prepare import Prepared
from clipa.registry.events import Step
from clipa.registry.run_dir import RunDir
from clipa.registry.state import BadSamples, RunStatus, Score, State
from clipa.spec import plan as plans
from tests.services.train_runs import make_run


def status(phase: str, state: State, parent: str = "", root: Path = Path("/nowhere"), why: str = "w") -> RunStatus:
    return RunStatus(
        run=f"g-{phase}", group="g", name="", phase=phase, kind="pretrain", recipe="r", cluster="local", root=str(root),
        state=state, why=why, attempt=1, attempts=1, step=0, steps=9, samples=0, percent=0.0, samples_per_s=None,
        loss=None, scores=(), eta_s=None, created=0.0, age_s=0.0, started=None, ended=None, beat_age_s=None,
        parent=parent, image_tokens=4, text_tokens=8, image_size=8, hint=f"clipa resume g-{phase}",
    )  # fmt: skip


def scored(step: int, *sizes: int) -> tuple[Score, ...]:
    return tuple(
        Score(set="held-out", size=size, step=step, samples=9, metric="top1", value=float(size), metrics={})
        for size in sizes
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((), "-"),
        (scored(9, 8, 16), "held-out top-1 8.0% @8"),
        (scored(9, 16, 32), "held-out top-1 32.0% @32"),
        (scored(5, 8) + scored(9, 16), "held-out top-1 16.0% @16"),
    ],
    ids=["none", "its own size", "none at its own size", "the newest step"],
)
def test_the_score_of_a_phase_is_the_one_at_its_own_size(scores: tuple[Score, ...], said: str) -> None:
    assert show.score(msgspec.structs.replace(status("pretrain", State.DONE), scores=scores)) == said


def test_waiting_for_data_is_told_of_the_last_steps_and_of_all() -> None:
    step = Step(t=0.0, attempt=2, step=9, samples=72, loss=1.0, lr=0.1, logit_scale=14.0, grad_norm=1.0,
                samples_per_s=8.0, data_wait=0.5)  # fmt: skip
    assert show.rates(step, "process")[1].endswith("waiting for data 50%")
    told = msgspec.structs.replace(step, trained_s=7260.0, waited_s=726.0)
    assert show.rates(told, "process")[1].endswith("waiting for data 50% (10% of 2h01m of training in all)")


def test_phases_that_share_the_fate_of_the_one_before_are_passed_over() -> None:
    def found(first: State, second: State) -> list[str]:
        lines = show.reasons([status("a", first), status("b", second, parent="g-a")])
        return [line for line in lines if not line.startswith(" ")]

    assert found(State.FAILED, State.BLOCKED) == ["g-a: w"]
    assert found(State.CANCELLED, State.CANCELLED) == ["g-a: w"]
    assert found(State.RUNNING, State.QUEUED) == ["g-a: w"]
    assert found(State.FAILED, State.FAILED) == ["g-a: w", "g-b: w"]
    assert found(State.RUNNING, State.CANCELLED) == ["g-a: w", "g-b: w"]
    assert show.reasons([status("b", State.BLOCKED, parent="g-a")]) == ["g-b: w", "    clipa resume g-b"]


@pytest.mark.parametrize("state", [State.DONE, State.RUNNING])
def test_samples_that_could_not_be_used_are_said_by_kind_whatever_the_state(state: State) -> None:
    bad = BadSamples(kinds={"image": 1_200, "caption": 3}, shards={"a/0.tar": 1_203})
    found = msgspec.structs.replace(status("a", state, why=""), hint="", bad=bad)
    assert show.reasons([found]) == [
        "g-a: 1,203 samples could not be used and were replaced (image 1,200, caption 3); by shard: clipa runs show g-a"
    ]


@pytest.mark.parametrize(
    ("states", "logs", "wanted"),
    [
        ("DONE RUNNING QUEUED", 2, 1),
        ("DONE FAILED BLOCKED", 2, 1),
        ("DONE DONE DONE", 3, 2),
        ("DONE QUEUED QUEUED", 1, 1),
        ("CANCELLED CANCELLED CANCELLED", 1, 0),
        ("BLOCKED BLOCKED BLOCKED", 0, 0),
    ],
)
def test_the_log_of_a_pipeline_is_that_of_the_phase_that_tells_most(
    tmp_path: Path, states: str, logs: int, wanted: int
) -> None:
    phases = [status(f"p{n}", State[word], root=tmp_path) for n, word in enumerate(states.split())]
    for phase in phases[:logs]:
        run = RunDir(tmp_path / phase.run)
        (run.path / "attempts").mkdir(parents=True)
        (run.path / "attempts" / "1").touch()
        run.logs(1).mkdir(parents=True)
        (run.logs(1) / "rank-0.log").write_text("step 1\n")
    assert telling(phases) is phases[wanted]


def test_the_last_lines_are_as_many_as_were_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [f"step {n} " + "x" * 200 for n in range(1000)]
    log.write_text("\n".join(lines) + "\n\n")
    assert last_lines(log, 5) == lines[-5:]
    assert last_lines(log, 300) == lines[-300:]
    assert last_lines(log, 5000) == lines
    assert last_lines(tmp_path / "none", 5) == []


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_says_what_the_plans_remark_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    plan = plans.decode(make_run(tmp_path, "one").plan.read_bytes())
    show.dry_run(Prepared((plan,), {}, ("pretrain: each of 4 nodes reads all of laion",)), as_json)
    said = capsys.readouterr()
    assert "pretrain: each of 4 nodes reads all of laion\n" in said.err
    assert "each of 4 nodes" not in said.out
