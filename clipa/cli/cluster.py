"""`clipa cluster`: the places where work can run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from clipa.spec.user_paths import expand_user

app = typer.Typer(help="Clusters.", epilog="Example: clipa cluster dev up", no_args_is_help=True, rich_markup_mode=None)
dev = typer.Typer(
    help="A real SLURM on this machine, with made-up nodes and GPUs.",
    epilog="Example: clipa cluster dev up --nodes 4",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dev, name="dev")

Folder = Annotated[
    str, typer.Argument(metavar="[DIR]", help="Its folder: state, logs, configuration.", show_default=True)
]
HOME = "~/.clipa-slurm-dev"


@app.callback()
def _group() -> None:
    """Clusters."""


@app.command(epilog="Example: clipa cluster init mine.toml")
def init(
    file: Annotated[str, typer.Argument(help="The profile to write.")],
    partition: Annotated[
        str, typer.Option("--partition", "-p", help="One of the site's; else the one with GPUs.")
    ] = "",
    conf: Annotated[str, typer.Option("--conf", help="SLURM_CONF of another cluster.")] = "",
) -> None:
    """Write a first profile of the SLURM cluster that this machine belongs to."""
    from clipa.cli import show
    from clipa.slurm import site

    path = expand_user(file)
    path = path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml")
    text = site.profile(site.ask(conf), partition)
    site.write_profile(path, text if not conf else text.replace("[slurm]\n", f'[slurm]\nconf = "{conf}"\n'))
    show.note(f"{path}\nnext: clipa doctor --cluster {path}")


@dev.callback()
def _dev() -> None:
    """A real SLURM on this machine, with made-up nodes and GPUs."""


@dev.command(epilog="Example: clipa cluster dev up --nodes 4 --gpus 8")
def up(
    folder: Folder = HOME,
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Number of slurmd.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, max=64, help="Made-up GPUs of each node.")] = 8,
    accounting: Annotated[bool, typer.Option("--accounting", help="With slurmdbd, so that sacct works.")] = False,
) -> None:
    """Bring it up (1 s; with accounting 5 s the first time). Needs the packages slurm-wlm and munge, no root."""
    options = ["--nodes", str(nodes), "--gpus", str(gpus), *(["--accounting"] if accounting else [])]
    raise typer.Exit(_run("up", folder, options))


@dev.command(epilog="Example: clipa cluster dev down")
def down(folder: Folder = HOME) -> None:
    """End its jobs and exactly the daemons that `up` started; the folder stays."""
    raise typer.Exit(_run("down", folder))


@dev.command(epilog="Example: clipa cluster dev status")
def status(folder: Folder = HOME) -> None:
    """What runs of it. Exit code 1: it is not up."""
    raise typer.Exit(_run("status", folder))


def _run(what: str, folder: str, options: Sequence[str] = ()) -> int:
    from clipa.spec import catalog

    return subprocess.run([sys.executable, str(catalog.dev_cluster()), what, folder, *options], check=False).returncode
