"""`clipa submit`: plan, say, submit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipa.cli import words

if TYPE_CHECKING:
    from clipa.launch.request import Submission

app = typer.Typer(
    help="Plan and submit phases of a recipe.",
    epilog="Example: clipa submit pipeline demo --wait",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Recipe = Annotated[
    str | None,
    typer.Argument(help="A recipe's name or file.", autocompletion=words.complete_recipe, show_default=False),
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="A profile's name or file.", autocompletion=words.complete_cluster),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; may be repeated.")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="RUN|PATH|URL", help="Starting weights.", autocompletion=words.complete_run),
]
Name = Annotated[str, typer.Option("--name", help="A name for the submission; the same name is never run twice.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and what would be submitted, and stop.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the work; Ctrl-C stops following, not the work.")]
Build = Annotated[bool, typer.Option("--build", help="Build the profile's image where it is missing.")]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


@app.command(epilog="Example: clipa submit pretrain demo --set phases.pretrain.samples=20000")
def pretrain(
    recipe: Recipe = None, cluster: Cluster = None, set_: Set = None, from_: From = None, name: Name = "",
    dry_run: DryRun = False, wait: Wait = False, build: Build = False, json: Json = False,
) -> None:  # fmt: skip
    """Submit the pretrain phase: few tokens, from random weights."""
    _submit("pretrain", recipe, cluster, set_, from_, name, dry_run, wait, build, json)


@app.command(epilog="Example: clipa submit finetune demo --from latest")
def finetune(
    recipe: Recipe = None, cluster: Cluster = None, set_: Set = None, from_: From = None, name: Name = "",
    dry_run: DryRun = False, wait: Wait = False, build: Build = False, json: Json = False,
) -> None:  # fmt: skip
    """Submit the fine-tune phases: full tokens, from the newest DONE pretrain run or --from."""
    _submit("finetune", recipe, cluster, set_, from_, name, dry_run, wait, build, json)


@app.command("eval", epilog="Example: clipa submit eval demo --from RUN --wait")
def evaluate(
    recipe: Recipe = None, cluster: Cluster = None, set_: Set = None, from_: From = None, name: Name = "",
    dry_run: DryRun = False, wait: Wait = False, build: Build = False, json: Json = False,
) -> None:  # fmt: skip
    """Submit the eval phases: score the newest DONE training run, or --from."""
    _submit("eval", recipe, cluster, set_, from_, name, dry_run, wait, build, json)


@app.command(epilog="Example: clipa submit pipeline jobs/demo.toml --cluster local --wait")
def pipeline(
    recipe: Recipe = None, cluster: Cluster = None, set_: Set = None, from_: From = None, name: Name = "",
    dry_run: DryRun = False, wait: Wait = False, build: Build = False, json: Json = False,
) -> None:  # fmt: skip
    """Submit all phases of a recipe, in order: pretrain, fine-tune, eval."""
    _submit("pipeline", recipe, cluster, set_, from_, name, dry_run, wait, build, json)


def finish(submission: Submission, wait: bool, json: bool, holds: bool = False) -> None:
    """Follow submitted runs if asked to, print the document if asked to, and leave with the right exit code."""
    from clipa.cli import show
    from clipa.cli.follow import follow

    runs = [run.run for run in submission.runs]
    followed = follow(runs, Path(submission.root), quiet=json, holds=holds) if wait or holds else None
    if json:
        show.submission_document(submission, followed.runs if followed else None)
    if followed:
        raise typer.Exit(followed.code)


def _submit(
    what: str, recipe: str | None, cluster: str | None, overrides: list[str] | None, from_: str | None, name: str,
    dry_run: bool, wait: bool, build: bool, json: bool,
) -> None:  # fmt: skip
    from clipa.cli import show
    from clipa.host import container
    from clipa.launch import request

    settled = request.settle(what, recipe, cluster, overrides or [], from_, name, words.everything)
    settled = settled._replace(request=settled.request._replace(build=build, say=show.note))
    container.require_temporary_folder()
    container.refuse_forgotten_gpus(settled.request.cluster)
    for note in settled.notes:
        show.note(note)
    if dry_run:
        prepared = request.prepare(settled.request)
        show.dry_run(prepared, json)
        return
    submission = request.submit(settled.request)
    for remark in (container.forgotten_volume(Path(submission.root)), words.remark_on_root(Path(submission.root))):
        if remark:
            show.note(remark)
    holds = container.ends_with_us()
    if not json:
        show.submitted(submission, holds)
    finish(submission, wait, json, holds)
