"""The training step against the clock, and beside open_clip's: `clipa bench train [RECIPE] [--vs open_clip]`.

Warm-up is left out; sides take turns, window by window, in one process on the same batches; medians with their spread.
`--all` measures what the three academic pipelines need, on one GPU, within eight minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from clipa.errors import ClipaError, MissingPart, told
from clipa.terminal import say

_HINT = (
    "hint: without the compiler: --set phases.PHASE.compile=off; clipa --debug bench train ... shows where it failed"
)


def parser() -> argparse.ArgumentParser:
    """The options of the module; `clipa bench train` has the same."""
    made = argparse.ArgumentParser(prog="clipa bench train", description=__doc__)
    add = made.add_argument
    add("recipe", nargs="?", default="", help="name or file; default: clipa-l16-i37-t8 on a GPU, scaling-s16 on a CPU")
    add("--phase", default="", help="default: the first that trains")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    add("--vs", default="", choices=["", "open_clip"], help="measure beside it: its defaults, and its best flags")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--batch", type=int, default=0, help="samples a step; default: the recipe's on one of 8 GPUs, 32 on a CPU")
    add("--data", default="synthetic", help="synthetic, a folder of shards, or a dataset's name in clipa.toml")
    add("--workers", type=int, default=0, help="of the loader with --data; default: one for each core but one")
    add("--minutes", type=float, default=0.0, help="of windows for a case (default 0.5); with --all of everything (8)")
    add("--steps", type=int, default=0, help="steps a window; default: as many as last a second")
    add("--peak-tflops", type=float, default=0.0, help="the device's dense bf16 peak in 1e12 FLOP/s")
    add("--cores", type=int, default=0, help="of a node of 8 GPUs, for the projection; default 128")
    add("--all", action="store_true", help="B/16 and L/16 beside open_clip, fine-tunes, calibrations, projection")
    add("--profile", action="store_true", help="record some steps instead: a Chrome trace, and tables")
    add("--to", type=Path, default=Path("bench-train"), help="folder of what --profile writes")
    add("--json", action="store_true", help="print facts as JSON")
    add("--calibrations", type=Path, default=None, help="run root that takes calibrations")
    add("--write-calibration", action=argparse.BooleanOptionalAction, default=None, help="default: on GPUs")
    return made


def main(words: list[str] | None = None) -> int:
    """Entry of the module. Exit codes: 0 done, 1 the work failed, 2 the input is wrong."""
    arguments = parser().parse_args(words)
    try:
        try:
            from clipa.bench import train_call
        except ModuleNotFoundError as error:
            raise MissingPart(
                f"measuring the training step needs clipa's training part: {error}", hint="pip install 'clipa[train]'"
            ) from error
        return train_call.call(train_call.asked(arguments))
    except ClipaError as error:
        return told(error)
    except RuntimeError as error:  # of torch, whose compiler and drivers fail in many ways
        if os.environ.get("CLIPA_DEBUG"):
            traceback.print_exc()
        first = next(iter(str(error).strip().splitlines()), "")
        say(f"error: torch failed: {type(error).__name__}: {first}\n{_HINT}", err=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
