"""`python -m clipa.bench.front_door`: how long `clipa --help` and `clipa status` take, as whole processes."""

from __future__ import annotations

import statistics
import subprocess
import time

from clipa.interpreter import module_argv
from clipa.terminal import say

ROUNDS = 20
COMMANDS = (("--help",), ("submit", "--help"), ("status",), ("plan", "demo"))


def main() -> None:
    """Print the median, the fastest and the slowest of each command, in milliseconds."""
    say(f"{'command':24} {'median':>8} {'min':>8} {'max':>8}  ms, {ROUNDS} runs")
    for words in COMMANDS:
        taken = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            subprocess.run(module_argv("clipa.cli.main", *words), capture_output=True, check=True)
            taken.append(1000 * (time.perf_counter() - began))
        line = f"{statistics.median(taken):8.0f} {min(taken):8.0f} {max(taken):8.0f}"
        say(f"{'clipa ' + ' '.join(words):24} {line}")


if __name__ == "__main__":
    main()
