"""A small all-reduce across the nodes before the ranks start, one process a node: it costs seconds, and says which node
is at fault where that can be told.

    RANK=NODE WORLD_SIZE=NODES MASTER_ADDR=... MASTER_PORT=... python -m clipa.attempt.trial --device cpu --seconds 120

Each node tries alone, then all together; where that fails, neighbours try in pairs: a node that fails with both of its
neighbours, where others do well, is at fault (with two nodes that cannot be told). The first process prints one line
of JSON, a Report. Exit code 0: the nodes can work together.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from clipa.registry.trial import Report
from clipa.terminal import say, say_json

ELEMENTS = 1 << 18
"""float32 numbers that are reduced: 1 MiB goes over the wire in pieces, as gradients do."""
_LAST_S = 5.0
_LIMIT = 6
"""The whole takes at most so many times the patience of one step."""


def rounds(world: int) -> list[list[tuple[int, ...]]]:
    """The groups of each round: everybody alone, all together, then pairs, each rank with both of its neighbours."""
    alone: list[tuple[int, ...]] = [(rank,) for rank in range(world)]
    found = [alone, [tuple(range(world))]]
    if world < 3:
        return found
    pairs: list[tuple[int, ...]] = [(rank, (rank + 1) % world) for rank in range(world)]
    whole = world - world % 2
    return [*found, pairs[:whole:2], pairs[1:whole:2], *([pairs[whole:]] if world % 2 else [])]


def blame(world: int, said: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """Rank -> why it is at fault, from what each rank said after each round (empty: it went well)."""
    alone = {rank: error for rank, error in said[0].items() if error}
    if alone or len(said) < 4:
        return alone
    good = {rank for results in said[2:] for rank, error in results.items() if not error}
    tried = {rank for results in said[2:] for rank in results}
    if not good:
        return {}
    return {rank: next(r[rank] for r in said[2:] if r.get(rank)) for rank in sorted(tried - good)}


class Trial:
    """One process of the trial."""

    def __init__(self, rank: int, world: int, device: torch.device, patience: timedelta) -> None:
        self.rank, self.world, self.device, self.patience = rank, world, device, patience
        self.store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=rank == 0, timeout=patience,
            wait_for_workers=False,
        )  # fmt: skip

    def run(self) -> Report:
        """All rounds that are needed. The report is whole on the first rank alone."""
        self.store.set(f"here/{self.rank}", "")
        report = Report()
        if self.rank == 0 and (missing := [rank for rank in range(self.world) if not self._has(f"here/{rank}")]):
            report = Report(bad=dict.fromkeys(missing, "it did not come to the meeting"), why="a node is missing")
        said: list[dict[int, str]] = []
        for number, groups in enumerate(rounds(self.world)):
            if not self._goes_on(number, report, said):
                break
            said.append(self._round(number, groups))
        errors = [error for results in said[:2] for error in results.values() if error]
        if self.rank == 0 and not report.why and errors:
            report = Report(bad=blame(self.world, said), why=errors[0])
        return self._agree(report)

    def _has(self, key: str) -> bool:
        try:
            self.store.wait([key], self.patience)
        except dist.DistError:
            return False
        return True

    def _goes_on(self, number: int, report: Report, said: Sequence[Mapping[int, str]]) -> bool:
        """Whether there is another round, as the first rank decides: pairs only after a failure of all together."""
        key = f"round/{number}"
        if self.rank == 0:
            failed = any(error for results in said for error in results.values())
            alone = bool(said) and any(said[0].values())
            self.store.set(key, "no" if report.why or alone or (number >= 2 and not failed) else "yes")
        return bool(self.store.get(key) == b"yes")

    def _round(self, number: int, groups: Sequence[tuple[int, ...]]) -> dict[int, str]:
        """What every rank said of its group; for the others than the first rank nothing."""
        for index, group in enumerate(groups):
            if self.rank in group:
                name = f"{number}/{index}"
                self.store.set(f"said/{number}/{self.rank}", self._reduce(name, group.index(self.rank), len(group)))
        if self.rank:
            return {}
        found = {}
        for rank in sorted(rank for group in groups for rank in group):
            key = f"said/{number}/{rank}"
            found[rank] = self.store.get(key).decode() if self._has(key) else "it did not answer"
        return found

    def _reduce(self, name: str, rank: int, size: int) -> str:
        """One group's all-reduce: empty, or why it failed."""
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        try:
            store = PrefixStore(name, self.store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=self.patience / 2)
            try:
                values = torch.ones(ELEMENTS, device=self.device)
                dist.all_reduce(values)
                wrong = int((values != size).sum())
            finally:
                dist.destroy_process_group()
        except Exception as error:
            return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        return f"the sum is wrong in {wrong} places" if wrong else ""

    def _agree(self, report: Report) -> Report:
        """The first rank's report, on every rank; the first leaves last, because the others ask it."""
        if self.rank == 0:
            self.store.set("report", msgspec.json.encode(report).decode())
            deadline = time.monotonic() + _LAST_S
            gone = [f"left/{rank}" for rank in range(1, self.world) if rank not in report.bad]
            while not all(self.store.check([key]) for key in gone) and time.monotonic() < deadline:
                time.sleep(0.05)
            return report
        report = msgspec.json.decode(self.store.get("report"), type=Report)
        self.store.set(f"left/{self.rank}", "")
        return report


def main() -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="clipa.attempt.trial")
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--seconds", type=int, required=True)
    given = parser.parse_args()
    os.environ.setdefault(
        "TORCH_NCCL_BLOCKING_WAIT", "1"
    )  # a collective that waits too long raises, where it is waited for
    faulthandler.dump_traceback_later(_LIMIT * given.seconds, exit=True)  # also where it hangs in a driver
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    try:
        report = Trial(rank, world, device, timedelta(seconds=given.seconds)).run()
    except dist.DistError as error:
        say(f"node {rank} has lost the meeting: {error}".partition("\n")[0], err=True)
        return 1
    if rank == 0:
        say_json(report)
    return 1 if report.why else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # at once: a communicator that hangs would hold the process
