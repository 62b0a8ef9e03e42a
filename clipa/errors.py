"""The error tree. Every error says what went wrong, where, what is allowed, and the next command.

ClipaError                 base; `exit_code` is what the command line returns
├── InputError        2    the user's input is wrong, nothing was changed
│   ├── ConfigError        a recipe, a cluster profile, clipa.toml or --set
│   ├── UnknownRun         no such run, or more than one fits
│   └── MissingPart        an optional part of clipa is not installed here
└── WorkError         1    the input was fine, the work failed
    ├── StorageError       bytes could not be listed, read or written
    ├── DataError          shards, captions or images that cannot be used
    ├── LaunchError        a job could not be started, stopped or followed
    └── TrainError         training or evaluation cannot go on
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable

from clipa.terminal import printable, send


class ClipaError(Exception):
    """Base of all errors that clipa raises on purpose.

    Args:
        what: one sentence, what is wrong.
        where: file, key, run or URL that it is about.
        allowed: the values or range that would be right.
        hint: the next thing to do, best a command.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", allowed: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.allowed = allowed
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.allowed:
            lines.append(f"allowed: {self.allowed}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class InputError(ClipaError):
    """The user's input is wrong; nothing was changed."""

    exit_code = 2


class ConfigError(InputError):
    """A recipe, cluster profile, project file or override that cannot be used."""


class UnknownRun(InputError):
    """A run that does not exist, or a name that fits several."""


class MissingPart(InputError):
    """An optional part of clipa that is not installed in this environment."""


class WorkError(ClipaError):
    """The input was fine, the work failed."""


class StorageError(WorkError):
    """Bytes that could not be listed, read, checked or written."""


class DataError(WorkError):
    """Shards, captions or images that cannot be used."""


class LaunchError(WorkError):
    """A job that could not be started, stopped or followed."""


class TrainError(WorkError):
    """Training or evaluation cannot go on."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"?` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""


def told(error: ClipaError) -> int:
    """Print an error as every command does, and return its exit code; `CLIPA_DEBUG` adds where it came from."""
    if os.environ.get("CLIPA_DEBUG"):
        send(printable(traceback.format_exc()), err=True)
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    mark = "\x1b[1;31merror:\x1b[0m" if colour else "error:"
    send(f"{mark} {printable(str(error))}\n", err=True)
    return error.exit_code
