"""`python -m clipa.bench.rebuild [ARGUMENTS OF clipa image build]`: how long an image takes after a change of code.

Copies the checkout that clipa runs from, builds its image, then changes a line and builds again, over and over. Where
the dependencies are not in the engine's cache the first build makes them, and its time says so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clipa.interpreter import module_argv
from clipa.terminal import say

ROUNDS = 5
CHECKOUT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Print the seconds of every build, and the median of those after a change."""
    words = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory(prefix="clipa-rebuild-") as folder:
        copy = Path(folder) / "clipa"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", CHECKOUT.as_uri(), str(copy)], check=True)
        say(f"first build       {_build(copy, words):6.2f} s")
        say(f"nothing changed   {_build(copy, words):6.2f} s")
        taken = []
        for number in range(ROUNDS):
            with open(copy / "clipa" / "errors.py", "a") as file:
                file.write(f"# change {number} at {time.time()}\n")  # a tag that no engine has built yet
            taken.append(_build(copy, words))
            say(f"a line changed    {taken[-1]:6.2f} s")
        spread = f"from {min(taken):.2f} to {max(taken):.2f}"
        say(f"median            {statistics.median(taken):6.2f} s of {ROUNDS}, {spread}")
    return 0


def _build(checkout: Path, words: list[str]) -> float:
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    began = time.monotonic()
    argv = module_argv("clipa.cli.main", "image", "build", *words)
    done = subprocess.run(argv, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
