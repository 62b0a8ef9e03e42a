"""What kind of failure it was: a table of words against the error and the last lines of the logs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from clipa.host.children import last_lines
from clipa.registry.cause import without_addresses
from clipa.registry.run_dir import RunDir

LINES = 60
"""Lines of each log that are looked at, from its end."""
OTHER = "code"

_TABLE: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(words, re.IGNORECASE))
    for cause, words in (
        ("hang", r"it hangs: no sign of progress"),
        ("GPU memory", r"CUDA out of memory|torch\.OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"),
        ("host memory", r"oom[-_ ]?kill|out[ _]of[ _]memory|MemoryError|cannot allocate memory|"
                        r"DataLoader worker .* killed by signal: Killed|bus error.*shared memory"),
        ("storage", r"no space left|disk quota exceeded|stale file handle|input/output error|read-only file system|"
                    r"the checkpoint cannot be written|cannot write: |bytes free: .* short"),
        ("node", r"failed its check|node failed|\bxid\b|uncorrectable ECC|fallen off the bus|CUDA error: .*device|"
                 r"CUDA driver|NVML"),
        ("rendezvous", r"EADDRINUSE|address already in use|client socket has timed out"),
        ("network", r"\bNCCL\b|ncclSystemError|gloo|connection (?:closed|reset) by peer|broken pipe|watchdog caught|"
                    r"the server cannot be reached|the proxy does not answer"),
        ("data", r"\.tar\b|shard|cannot be decoded|not an image|no caption|DataError"),
        ("time", r"wall-clock limit|time limit"),
        ("outside", r"ended by SIG|left without a word"),
    )
)  # fmt: skip
"""First match wins. Memory before network: the rank that ran out of it is why the others lost their connections."""

_WEAK = {"network", "outside"}
"""Causes that are often only an echo of another rank's failure: a log that says more goes before them."""


class Blame(NamedTuple):
    """A cause, and the line that says so."""

    cause: str
    line: str


def blame(error: str, logs: Iterable[str]) -> Blame:
    """The cause of a failure by its error, else by the newest telling line of the logs."""
    first = _match(error.splitlines())
    if first and first.cause not in _WEAK:
        return first
    found = [match for line in logs if (match := _match([line]))]
    strong = [match for match in found if match.cause not in _WEAK]
    if strong:
        return min(strong, key=lambda match: _RANK[match.cause])
    return first or (found[-1] if found else Blame(OTHER, error.strip().partition("\n")[0]))


_RANK = {cause: number for number, (cause, _) in enumerate(_TABLE)}


def _match(lines: Iterable[str]) -> Blame | None:
    for cause, words in _TABLE:
        for line in lines:
            if words.search(line):
                return Blame(cause, line.strip()[:500])
    return None


def blamed(run: RunDir, attempt: int, outcome: str, error: str) -> Blame:
    """Why an attempt failed or was killed; two empty words where it did neither. The line is what the error lacks."""
    if outcome not in ("failed", "killed"):
        return Blame("", "")
    found = blame(error, logs_of(run, attempt))
    return found._replace(line="" if found.line in error else without_addresses(found.line))


def logs_of(run: RunDir, attempt: int) -> list[str]:
    """The last lines of everything that an attempt's processes wrote to their error output."""
    files = sorted(run.logs(attempt).glob("*.err")) + sorted(run.logs(attempt).glob("submitit/*.err"))
    return [line for path in files for line in last_lines(path, LINES)]
