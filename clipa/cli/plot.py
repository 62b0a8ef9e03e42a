"""`clipa runs plot`: accuracy against compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipa.cli import words
from clipa.terminal import say_document

if TYPE_CHECKING:
    from clipa.registry.curves import Curves, Mark
    from clipa.registry.picture import Scene

FORMATS = (".svg", ".png")


def register(group: typer.Typer) -> None:
    """Put the command into the group of `clipa runs`."""
    group.command("plot", epilog="Example: clipa runs plot --group digits-law --out law.svg")(plot)


def plot(
    groups: Annotated[
        list[str],
        typer.Option("--group", "-g", help="A group's id or name; may be repeated.", autocompletion=words.complete_run),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Draw it into this .svg or .png file.")] = None,
    on: Annotated[str, typer.Option("--set", help="The evaluation set; else the one scored last.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Accuracy against compute of the runs of a sweep, and the authors' own where they plot the recipe."""
    from clipa.cli import show
    from clipa.launch import picture
    from clipa.registry.curves import curves

    if out is not None:
        picture.require_format(out, FORMATS)
    scan = words.everything()
    chosen = words.chosen(groups, scan.statuses)
    found = curves(chosen, scan.facts, on)
    picture.require_marks(found, chosen, groups, on)
    marks = [*found.marks, *picture.published({scan.facts[m.run].plan.recipe for m in found.marks}, found)]
    if out is not None:
        picture.draw(_scene(marks, groups), out)
        show.note(f"drawn into {out}")
    if json:
        say_document("clipa.plot/1", marks=marks, left_out=found.left_out)
        return
    _print(marks, found)


def _print(marks: list[Mark], found: Curves) -> None:
    from rich import box
    from rich.table import Table

    from clipa.cli import show
    from clipa.cli.costs import power

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, collapse_padding=True)
    for title in ("line", "image tokens", "text tokens", "MACs", "score", "to the most MACs"):
        table.add_column(title, justify="left" if title == "line" else "right", no_wrap=True)
    before = ""
    for mark in marks:
        line = [m for m in marks if m.series == mark.series]
        most = max(line, key=lambda m: m.compute)
        cheaper = f"{most.compute / mark.compute:.1f}x less, " if mark is not most else ""
        apart = f"{cheaper}{mark.value - most.value:+.1f}" if len(line) > 1 else ""
        shown, before = ("" if mark.series == before else mark.series), mark.series
        score = f"{mark.value:.1f} %"
        table.add_row(shown, str(mark.image_tokens), str(mark.text_tokens), power(mark.compute), score, apart)
    show.console().print(table)
    of = dict.fromkeys(f"{m.metric} of {m.set} at {m.size} px" for m in marks if not m.published)
    show.note(f"{'; '.join(of)}. MACs: multiply-adds of the forward pass x samples, as the papers plot them")
    for words_ in found.left_out:
        show.note(f"no score to show: {words_}")


def _scene(marks: list[Mark], groups: list[str]) -> Scene:
    from clipa.registry.picture import Series, chart
    from clipa.spec.evalset import label

    series = []
    for name in dict.fromkeys(mark.series for mark in marks):
        mine = [mark for mark in marks if mark.series == name]
        twin = name.removesuffix(", published") if mine[0].published else ""
        points = tuple((float(m.compute), m.value, m.label) for m in mine)
        series.append(Series(name=name, points=points, hollow=mine[0].published, twin=twin))
    ours = next(mark for mark in marks if not mark.published)
    below = "marks: image tokens of the first phase, without the class token"
    below += "; hollow: published" if any(mark.published for mark in marks) else ""
    return chart(
        title=f"Accuracy against compute: {', '.join(groups)}",
        below=below,
        x_name="multiply-adds of the forward pass x samples",
        y_name=f"{ours.set}, {label(ours.metric)}, %",
        series=series,
    )
