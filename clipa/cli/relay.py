"""Commands that need clipa's training part: start the module that does the work, and relay its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from clipa.errors import InputError
from clipa.interpreter import module_argv
from clipa.spec import training_part
from clipa.spec.user_paths import current_folder

if TYPE_CHECKING:
    import msgspec


def run_module(module: str, *words: str, what: str = "", request: msgspec.Struct | None = None) -> NoReturn:
    """Run a module of clipa in a process of its own, and leave with its exit code.

    Args:
        module: its name.
        words: its arguments.
        what: what needs the training part, for the message where it is not installed; empty if nothing does.
        request: written to its standard input as JSON.

    Raises:
        MissingPart: the training part is needed, and not installed here.
        InputError: the current folder was deleted (torch cannot be imported there).
    """
    import subprocess

    import msgspec

    from clipa.spec.child_environment import tool_environment

    if what:
        training_part.require(what)
    if current_folder() is None:
        raise InputError("the current folder was deleted", hint="cd to a folder that exists")
    stdin = None if request is None else subprocess.PIPE
    process = subprocess.Popen(module_argv(module, *words), stdin=stdin, env=tool_environment())
    try:
        process.communicate(None if request is None else msgspec.json.encode(request))
    except KeyboardInterrupt:  # the terminal sent it to the module too, which ends by itself
        process.wait()
    raise typer.Exit(process.returncode)
