"""Random faults on random small runs, each ending as the table in faults.py says.

    python -m tests.slurm.chaos --n 50 --results FILE [--seed 1] [--parallel 3] [--only NAME]
    python -m tests.slurm.chaos --table FILE

Resumable: what FILE has already is not run again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipa.registry import events
from tests.services.slurm import Slurm, running
from tests.slurm.faults import BY_NAME, TABLE, Fault
from tests.slurm.field import Field, make, until

CLUSTER = ("--nodes", "4", "--gpus", "0", "--cpus", "32", "--grace", "3")
PATIENCE_S = 900.0


class Chaos:
    """One project, one cluster, many runs."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        self.field = make(folder, slurm)
        self._lanes: Mapping[str, threading.Lock] = collections.defaultdict(threading.Lock)
        self._references: dict[int, str] = {}
        self._submitting = threading.Lock()
        for what, names in (("scontrol", ("scontrol",)), ("both", ("scontrol", "sbatch"))):
            tools = folder / f"broken-{what}"
            tools.mkdir()
            for name in names:
                (tools / name).write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
                (tools / name).chmod(0o755)

    def reference(self, nodes: int) -> str:
        """The digest of the weights that an undisturbed run on so many nodes ends with."""
        with self._lanes[f"reference {nodes}"]:
            if nodes in self._references:
                return self._references[nodes]
            run = self._submit(
                Fault("reference", _no_fault, profile=BY_NAME["nothing"].profile._replace(nodes=nodes)), 0
            )
            assert self._end(run) == "DONE"
            self._references[nodes] = self.field.digest(run)
        return self._references[nodes]

    def strike(self, fault: Fault, seed: int) -> dict[str, object]:
        """One run with one fault. Raises AssertionError where it does not end as it should."""
        chance = random.Random(seed)
        began = time.monotonic()
        with self._lane(fault.profile.lane):
            run = self._submit(fault, seed)
            if not fault.bad_data:
                self.field.at_step(run, chance.choice([1, 5, 20, 40, 80, 120]))
            fault.inject(self.field, run, chance)
            state = self._end(run)
        found = {"fault": fault.name, "seed": seed, "run": run, "state": state}
        self._verify(fault, run, state)
        attempts = len(self.field.dir(run).claimed())
        return {**found, "attempts": attempts, "seconds": round(time.monotonic() - began, 1)}

    def _submit(self, fault: Fault, seed: int) -> str:
        field, profile = self.field, fault.profile
        name = f"p{abs(hash(fault.name)) % 10**8}"
        words = ["--cluster", f"{name}.toml"]
        if fault.bad_data:
            words += ["--set", f"phases.pretrain.data={field.folder}/broken"]
        with field.quiet:
            field.profile(name, profile.partition, profile.nodes, 5, profile.table.format(folder=field.folder))
            (run,) = field.submit("pretrain", *words)
        return run

    @contextlib.contextmanager
    def _lane(self, name: str) -> Iterator[None]:
        with self._lanes[name] if name else contextlib.nullcontext():
            yield

    def _end(self, run: str) -> str:
        """Wait until a run is over, with a `clipa status` every few seconds, as its owner would."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status = self.field.status(run)
            if status["state"] in ("DONE", "FAILED", "CANCELLED", "BLOCKED"):
                return str(status["state"])
            assert time.monotonic() < deadline, f"not over in {PATIENCE_S:g} s: {status}"
            quick = time.monotonic() + 4
            while time.monotonic() < quick and not self._has_final_word(run):
                time.sleep(0.1)

    def _has_final_word(self, run: str) -> bool:
        return any(isinstance(e, events.Ended) and e.final for e in self.field.said(run, events.Ended))

    def _verify(self, fault: Fault, run: str, state: str) -> None:
        field = self.field
        status = field.status(run)
        assert state == fault.state, f"{state}, not {fault.state}: {status['why']}"
        assert fault.says in str(status["why"]), status["why"]
        until(lambda: not field.queue(run), f"{run}: an empty queue", 60)
        until(lambda: not field.left(run), f"{run}: no process is left", 30)
        again = field.status(run)
        assert again["state"] == state, f"it was {state}, and is {again['state']}"
        if state == "DONE":
            assert len(field.dir(run).claimed()) >= fault.attempts, "the fault did not strike"
            assert field.digest(run) == self.reference(fault.profile.nodes), "other weights than without the fault"


def _no_fault(field: Field, run: str, chance: random.Random) -> None:
    """Nothing."""


@contextlib.contextmanager
def started() -> Iterator[Chaos]:
    """A cluster and a project on it."""
    with running(*CLUSTER) as slurm, tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        chaos = Chaos(Path(folder), slurm)
        broken = Path(folder) / "broken"
        broken.mkdir()
        for shard in (Path(folder) / "bucket" / "train").iterdir():
            (broken / shard.name).write_bytes(shard.read_bytes()[:5000])
        yield chaos


def _done(results: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def campaign(count: int, results: Path, seed: int, parallel: int, only: str, minutes: float) -> int:
    """Run faults until `count` results are there, or the time is over. Returns the number that ended wrongly."""
    begun = {(r["fault"], r["seed"]) for r in _done(results)}
    faults = [BY_NAME[only]] if only else list(TABLE)
    wanted = [(faults[n % len(faults)], seed + n) for n in range(count)]
    todo = [(fault, number) for fault, number in wanted if (fault.name, number) not in begun]
    deadline = time.monotonic() + 60 * minutes
    write = threading.Lock()
    with tempfile.TemporaryDirectory() as home, started() as chaos:
        os.environ |= {"HOME": home, "OMP_NUM_THREADS": "1"}

        def one(fault: Fault, number: int) -> bool:
            if time.monotonic() > deadline:
                return True
            try:
                result: dict[str, object] = {**chaos.strike(fault, number), "right": True}
            except Exception as error:
                traceback.print_exc()
                result = {"fault": fault.name, "seed": number, "right": False, "error": f"{error}"[:2000]}
            with write, open(results, "a") as out:
                out.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)
            return bool(result["right"])

        with ThreadPoolExecutor(parallel) as pool:
            outcomes = list(pool.map(lambda pair: one(*pair), todo))
    return outcomes.count(False)


def table(results: Path) -> str:
    """The results as a table in Markdown."""
    rows = _done(results)
    lines = ["| fault | runs | must end | ended so | attempts | seconds (median) |", "|---|---|---|---|---|---|"]
    for fault in TABLE:
        mine = [row for row in rows if row["fault"] == fault.name]
        right = [row for row in mine if row["right"]]
        attempts = sorted({int(str(row["attempts"])) for row in right})
        seconds = sorted(float(str(row["seconds"])) for row in right)
        span = f"{attempts[0]}-{attempts[-1]}" if len(attempts) > 1 else "".join(map(str, attempts))
        median = f"{seconds[len(seconds) // 2]:.0f}" if seconds else "-"
        lines.append(f"| {fault.name} | {len(mine)} | {fault.state} | {len(right)} | {span or '-'} | {median} |")
    right = [row for row in rows if row["right"]]
    return "\n".join([*lines, f"| all | {len(rows)} | | {len(right)} | | |"])


def main() -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.chaos")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--results", type=Path, default=Path("chaos.jsonl"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing new after so long")
    parser.add_argument("--only", default="", choices=["", *BY_NAME])
    parser.add_argument("--table", type=Path, help="print the table of a file of results, and stop")
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return 0
    return int(campaign(given.n, given.results, given.seed, given.parallel, given.only, given.minutes) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
