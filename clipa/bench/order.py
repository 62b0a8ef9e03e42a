"""`python -m clipa.bench.order`: what a dataset of LAION-400M's size costs before its first batch.

The manifest is made up, no shard is read. `resume` is the first batch of a step in the middle of the third epoch, by a
loader that knows nothing of the steps before it. One process reads all of the lanes here; of 256 a rank of 64 has four.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from clipa.data.index import Part
from clipa.data.order import Mixture, Order
from clipa.data.shards import Coming, Reader, open_coming
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest, Shard
from clipa.terminal import say

_SAMPLES = 10_000
_BATCH = 32_768
T = TypeVar("T")


def _timed(name: str, work: Callable[[], T]) -> T:
    began = time.perf_counter(), time.process_time()
    made = work()
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    say(f"{name:28} {wall:8.3f} s, {cpu:7.3f} s of the processor")
    return made


def main() -> None:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="clipa.bench.order", description=__doc__)
    parser.add_argument("--shards", type=int, default=41_408)
    parser.add_argument("--lanes", type=int, default=1)
    arguments = parser.parse_args()
    shards, lanes = arguments.shards, arguments.lanes
    rows = (
        Shard(name=f"{n:05d}.tar", size=3 << 28, version=f"{n:032x}", samples=_SAMPLES - n % 7) for n in range(shards)
    )
    manifest = Manifest(url="s3://bucket/data", shards=tuple(rows))
    raw = _timed("plan: manifest written", lambda: manifests.encode(manifest))
    _timed("plan: digest", lambda: manifest.digest)
    say(f"{'manifest':28} {len(raw) / 2**20:8.1f} MiB")
    read = _timed("start: manifest read", lambda: manifests.decode(raw))
    nowhere = Path("/nowhere")
    opened = _timed("start: shards opened", lambda: open_coming(read, nowhere, Coming(nowhere, nowhere)))
    reader = _timed("start: reader", lambda: Reader(opened, Part.CAPTION))
    pickled = _timed("start: sent to a worker", lambda: pickle.dumps(reader))
    say(f"{'message to a worker':28} {len(pickled) / 2**20:8.1f} MiB")
    order = _timed("start: order", lambda: Mixture([Order(reader.sizes(), 1, lanes=lanes)], [1.0], _BATCH))
    _timed("start: first batch's numbers", lambda: order.at(0, _BATCH))
    fresh = Mixture([Order(reader.sizes(), 1, lanes=lanes)], [1.0], _BATCH)
    step = (5 * reader.samples // 2) // _BATCH
    _timed("start: first shards", lambda: list(islice(fresh.readings(step, range(lanes)), 4 * lanes)))
    _timed("resume: in the third epoch", lambda: fresh.at(step * _BATCH, (step + 1) * _BATCH))
    say(f"{'peak memory':28} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:8.0f} MiB")


if __name__ == "__main__":
    main()
