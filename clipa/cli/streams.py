"""Standard streams that cannot break a command: closed ones, and terminals that cannot show a character."""

from __future__ import annotations

import os
import sys
from typing import TextIO

_MODES = {0: "r", 1: "w", 2: "w"}
_NAMES = ("stdin", "stdout", "stderr")
_PIPE_CLOSED = 141
"""The exit code of a program that SIGPIPE ended, as shells report it."""


def prepare() -> None:
    """Open closed standard streams on /dev/null, and write characters that a stream cannot encode as escapes.

    A closed descriptor (`clipa status >&-`) would otherwise be given to the next file that is opened, and what is
    printed would end up in that file. The escapes hold for Python children too.
    """
    for descriptor, mode in _MODES.items():
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # descriptors are filled in order: this is the closed one
            os.set_inheritable(opened, True)
        if getattr(sys, _NAMES[descriptor]) is None:
            setattr(sys, _NAMES[descriptor], open(descriptor, mode, closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        _escape_unencodable(stream)
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:backslashreplace"


def _escape_unencodable(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:  # a test may have replaced the stream
        reconfigure(errors="backslashreplace")


def exit_code_of_closed_pipe() -> int:
    """Return the exit code for `clipa ... | head`, and keep the interpreter from complaining at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return _PIPE_CLOSED
