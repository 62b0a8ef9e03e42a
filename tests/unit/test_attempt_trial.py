"""The small all-reduce before the ranks: who is blamed, and the real thing in a few processes."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.attempt import trial
from clipa.host.meeting import Reservation
from clipa.registry.trial import Report


@given(st.integers(2, 40))
def test_everybody_is_in_every_round_once_and_has_two_neighbours(world: int) -> None:
    rounds = trial.rounds(world)
    for groups in rounds[:2]:
        assert sorted(rank for group in groups for rank in group) == list(range(world))
    for groups in rounds[2:]:
        ranks = [rank for group in groups for rank in group]
        assert len(ranks) == len(set(ranks)), "nobody is in two pairs of a round"
    met = {frozenset(group) for groups in rounds[2:] for group in groups}
    for rank in range(world if world > 2 else 0):
        assert sum(rank in pair for pair in met) == 2


@given(st.integers(3, 40), st.data())
def test_the_one_at_fault_is_named_and_nobody_else(world: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, world - 1))
    said = [
        {rank: "broken" if culprit in group and len(group) > 1 else "" for group in groups for rank in group}
        for groups in trial.rounds(world)
    ]
    assert trial.blame(world, said) == {culprit: "broken"}


def test_with_two_nodes_nobody_can_be_named_unless_it_fails_alone() -> None:
    assert trial.blame(2, [{0: "", 1: ""}, {0: "late", 1: "late"}]) == {}
    assert trial.blame(2, [{0: "", 1: "no such interface"}]) == {1: "no such interface"}


def _run(world: int, broken: int | None, seconds: int = 60) -> list[subprocess.CompletedProcess[str]]:
    with Reservation("127.0.0.1", 0) as place:
        processes = []
        for rank in range(world):
            env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(place.port), "OMP_NUM_THREADS": "1"}  # fmt: skip
            if rank == broken:
                env["GLOO_SOCKET_IFNAME"] = "nosuch0"
            argv = [sys.executable, "-m", "clipa.attempt.trial", "--device", "cpu", "--seconds", str(seconds)]
            processes.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        done = []
        for process in processes:
            out, err = process.communicate(timeout=200)
            done.append(subprocess.CompletedProcess([], process.returncode, out, err))
    return done


@pytest.mark.parametrize("broken", [None, 1])
def test_two_processes(broken: int | None) -> None:
    done = _run(2, broken)
    report = msgspec.json.decode(done[0].stdout, type=Report)
    assert [one.returncode for one in done] == ([0, 0] if broken is None else [1, 1]), done
    assert list(report.bad) == ([] if broken is None else [broken])
    assert bool(report.why) == (broken is not None)
