"""`clipa bench submit [--cluster slurm-dev] [--recipe demo] [--rounds 8]`: what submitting a pipeline to SLURM costs.

Each round submits the pipeline with `clipa submit pipeline` (run folders, intents, pinned data, the copy of the code:
the latter two are there already after a first round that does not count), cancels it, and then hands the very same
scripts to a bare `sbatch`, held, one after the other with the same dependencies. Wall-clock seconds, a pair a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from clipa.slurm import scheduler
from clipa.spec import catalog
from clipa.spec.load import load_cluster
from clipa.terminal import say

GOAL_S, OVER_BARE_S = 2.0, 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every pair, and the medians."""
    parser = argparse.ArgumentParser(prog="clipa bench submit")
    parser.add_argument("--cluster", default="slurm-dev")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args(arguments)
    profile = load_cluster(catalog.find_cluster(given.cluster))
    if profile.slurm is None:
        sys.exit(f"{given.cluster} is no profile of SLURM")
    root = scheduler.expanded(profile.run_root) if profile.run_root else ""
    with tempfile.TemporaryDirectory(prefix="clipa-submit-", dir=root or None) as folder:
        bench = _Bench(given.recipe, given.cluster, profile.slurm.conf, Path(folder))
        bench.round()
        say(f"load {os.getloadavg()[0]:.1f}; seconds of clipa submit, of a bare sbatch of the same scripts")
        pairs = []
        for _ in range(given.rounds):
            pairs.append(bench.round())
            say(f"{pairs[-1][0]:6.3f} {pairs[-1][1]:6.3f}")
    ours, bare = ([pair[n] for pair in pairs] for n in (0, 1))
    over = statistics.median(a - b for a, b in pairs)
    say(f"median {statistics.median(ours):.3f} ({min(ours):.3f}-{max(ours):.3f}), goal {GOAL_S:g}; "
          f"bare {statistics.median(bare):.3f}; over it {over:.3f}, goal {OVER_BARE_S:g}")  # fmt: skip
    return 0


class _Bench:
    """One recipe on one cluster, under a run root of its own."""

    def __init__(self, recipe: str, cluster: str, conf: str, root: Path) -> None:
        self.words = ["submit", "pipeline", recipe, "--cluster", cluster, "--json"]
        self.env = {**scheduler.environment(conf), "CLIPA_RUN_ROOT": str(root)}
        self.root = root

    def round(self) -> tuple[float, float]:
        """Seconds of both ways."""
        began = time.monotonic()
        runs = json.loads(self._clipa(*self.words))["runs"]
        ours = time.monotonic() - began
        self._clipa("cancel", *runs)
        scripts = [next((self.root / run / "logs" / "1" / "submitit").glob("*_submission.sh")) for run in runs]
        began = time.monotonic()
        jobs: list[str] = []
        for script in scripts:
            after = [f"--dependency=afterok:{jobs[-1]}"] if jobs else []
            jobs.append(self._run("sbatch", "--parsable", "--hold", *after, str(script)).strip().partition(";")[0])
        bare = time.monotonic() - began
        self._run("scancel", *jobs)
        return ours, bare

    def _clipa(self, *words: str) -> str:
        return self._run(sys.executable, "-m", "clipa.cli.main", *words)

    def _run(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(argv)}: {done.stderr}")
        return done.stdout


if __name__ == "__main__":
    sys.exit(main())
