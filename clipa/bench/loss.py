"""Memory and time of the contrastive losses: `python -m clipa.bench.loss [--width 128] [--batches 8192 16384]`.

Loss and gradients of one rank, each in a process of its own, whose resident memory is watched by the kernel. `plain`
is the formula as it is usually written: the whole matrix, and autograd.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch.nn import functional

from clipa.interpreter import module_argv
from clipa.model.loss import LOSSES, ClipOutput
from clipa.terminal import say

BATCHES = (8_192, 16_384, 32_768, 65_536)
PLAIN_UP_TO = 16_384
"""Beyond, the whole matrix with its copies wants more than a laptop has."""


def plain(output: ClipOutput) -> torch.Tensor:
    """Softmax loss with the matrix of the whole batch (open_clip's ClipLoss on one process)."""
    logits = output.scale * output.image @ output.text.T
    labels = torch.arange(len(logits))
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def _resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _one(name: str, batch: int, width: int) -> None:
    image, text = (functional.normalize(torch.randn(batch, width), dim=-1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor([value], requires_grad=True) for value in (14.0, -10.0))
    output = ClipOutput(image, text, scale, bias)
    loss = plain if name == "plain" else LOSSES[name]  # type: ignore[index]
    before, began = _resident_mb(), time.monotonic()
    loss(output).backward()  # type: ignore[no-untyped-call]
    say(f"| {name} | {batch:,} | {_resident_mb() - before:,.0f} MB | {time.monotonic() - began:.1f} s |")


def main() -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="python -m clipa.bench.loss", description="memory and time of the losses")
    parser.add_argument("--width", type=int, default=128, help="of the features")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="global batches")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _one(options.one, options.batches[0], options.width)
        return 0
    say(
        f"| loss, width {options.width} | batch | peak memory above the features | time |\n|---|---|---|---|",
    )
    for name in (*LOSSES, "plain"):
        for batch in options.batches:
            if name != "plain" or batch <= PLAIN_UP_TO:
                argv = module_argv("clipa.bench.loss", "--one", name, "--width", str(options.width))
                subprocess.run([*argv, "--batches", str(batch)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
