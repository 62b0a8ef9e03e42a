"""Errors of two attempts compared: without what differs each time, such as addresses, process numbers and times."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)|(?<![\w.])0x[0-9a-fA-F]{6,16}\b")
_VARYING = tuple(
    (re.compile(pattern, re.IGNORECASE), word)
    for pattern, word in (
        (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID"),
        (r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", "TIME"),
        (r"\b(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? [\w ]{3,12}\d\d:\d\d:\d\d(?: \w+)?(?: \d{4})?", "TIME"),
        (r"\b\d\d:\d\d:\d\d(?:[.,]\d+)?\b", "TIME"),
        (r"\b(?:\d+(?:\.\d+)?|\.\d+) ?(?:ms|us|ns|s|sec|secs|second|seconds|min|minutes|h|hours)\b", "DURATION"),
        (r"\b(pid|process|child|thread|worker|tid|ppid)([ =:#(\[]{1,2})\d+", r"\1\2N"),
        (r"\bpid\(s\) \d+(?:, ?\d+)*", "pid(s) N"),
        (r"/proc/\d+", "/proc/N"),
        (r"\b(port|socket|fd)([ =:]{1,2})\d+", r"\1\2N"),
        (r"(\b(?:\d{1,3}\.){3}\d{1,3}|\blocalhost|\[[0-9a-f:]+\]):\d{2,5}\b", r"\1:PORT"),
        (r"((?:/tmp|/var/tmp|/dev/shm)/)(?:tmp|pymp-|torch_|clipa-)[\w.-]+", r"\1NAME"),
        (r"\b(?:tmp|pymp-)[a-z0-9_]{8}\b", "NAME"),
        (r"\.\d+\.\d+\.part\b", ".part"),
        (r"\b(request ?-?id|x-amz-request-id|x-amz-id-2|hostid|trace-?id)([\"' =:>]{1,4})[\w+/=-]+", r"\1\2ID"),
    )
)


def without_addresses(error: str) -> str:
    """Return an error as people see it: `<_io.BytesIO object>` instead of `<_io.BytesIO object at 0x7f...>`."""
    return _ADDRESS.sub(lambda found: "" if found[0].startswith(" at") else "0x...", error)


def normalized(error: str) -> str:
    """Return the cause that an error names, for comparison with another attempt's.

    Only what a machine makes up anew each time is taken out. Numbers that say what is wrong stay: shard 12 is not
    shard 13, 404 is not 500, step 30 is not step 60, and 3 of 8 bytes are not 4 of 8.
    """
    text = without_addresses(error)
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return " ".join(text.split())
