"""`clipa`: the commands and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated

import typer

from clipa import interpreter
from clipa.cli import bench, cluster, convert, data, image, inspect, plan, reduce, runs, streams, submit, sweep
from clipa.errors import ClipaError, InputError, StorageError, told
from clipa.spec.user_paths import current_folder
from clipa.terminal import say

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

app = typer.Typer(
    name="clipa",
    help="Train CLIP models with few tokens (CLIPA), on this machine or a cluster.",
    epilog="Example: clipa submit pipeline --wait",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(submit.app, name="submit")
app.add_typer(runs.group, name="runs")
app.add_typer(data.app, name="data")
app.add_typer(image.app, name="image")
app.add_typer(cluster.app, name="cluster")
app.add_typer(bench.app, name="bench")
app.add_typer(reduce.app, name="reduce")
runs.register(app)
plan.register(app)
sweep.register(app)
inspect.register(app)
convert.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from clipa import __version__

        say(f"clipa {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["CLIPA_DEBUG"] = "1"


def main() -> None:
    """Entry of the `clipa` command. Exit codes: 0 done, 1 the work failed, 2 the input is wrong."""
    if os.getpid() == 1:
        # The kernel ignores TERM for a process 1 without a handler, and `docker stop` would wait in vain.
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    streams.prepare()
    interpreter.protect()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except ClipaError as error:
        sys.exit(told(error))
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # Typer makes exit code 1 of it
            sys.exit(streams.exit_code_of_closed_pipe())
        raise
    except BrokenPipeError:
        sys.exit(streams.exit_code_of_closed_pipe())
    except OSError as error:
        sys.exit(told(_explained(error)))


def _explained(error: OSError) -> ClipaError:
    """Translate an error of the operating system that no command could foresee; any other is raised as it is."""
    if error.errno in _OF_DISKS:
        where = str(error.filename or "a folder that this command writes to")
        return StorageError(str(error.strerror), where=where, hint="df -h; clipa data gc removes staged data")
    if error.errno == errno.ENOENT and current_folder() is None:
        return InputError(
            "the current folder was deleted, and a relative path needs it",
            where=str(error.filename or ""),
            hint="cd to a folder that exists, or give absolute paths",
        )
    raise error


if __name__ == "__main__":
    main()
