"""A recipe's cost as people read it: quantities down, phases across, so that it fits 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipa.cli import show
from clipa.spec.cost import Cost, PhaseCost, Place, Rate, implied_mfu, phases_until, sum_of
from clipa.spec.job import TrainPhase
from clipa.spec.load import LoadedRecipe
from clipa.spec.points import Point
from clipa.spec.published import Published

Cell: TypeAlias = Callable[[TrainPhase, PhaseCost], str]
_NONE = "-"


def print_plan(loaded: LoadedRecipe, cost: Cost, published: Sequence[Published], out: Console | None = None) -> None:
    """The whole plan, wrapped to the console's width."""
    out = out or show.console()
    place, recipe = cost.place, loaded.recipe
    out.print(_grid([(recipe.name, recipe.description), ("", _where(place))], word="bold"))
    out.print()
    out.print(_table(loaded, cost, published))
    out.print()
    out.print(_grid(notes(loaded, cost, published), word="dim", text="dim"))


def _where(place: Place) -> str:
    if place.gpu is None:
        return f"cluster {place.cluster}: no GPU is known, so hours and dollars are not (try --cluster a100)"
    price = f"${place.price:g} a GPU-hour" if place.price else "no gpu_price in the profile"
    return f"cluster {place.cluster}: {place.gpus} x {place.gpu.model}, {price}"


def _grid(rows: Sequence[tuple[str, str]], word: str = "", text: str = "") -> Table:
    """A word and a text that wraps beside it."""
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column()
    for left, right in rows:
        grid.add_row(Text(left, style=word), Text(right, style=text))
    return grid


def _table(loaded: LoadedRecipe, cost: Cost, published: Sequence[Published]) -> Table:
    phases = {n: p for n, p in loaded.recipe.phases.items() if isinstance(p, TrainPhase)}
    several = len(phases) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for name in phases:
        table.add_column(name, justify="right", no_wrap=True)
    if several:
        table.add_column("total", justify="right", no_wrap=True)
    for rows in (_WHAT, _COST, _NEEDS) if cost.place.gpu else (_WHAT, _DISK):
        for title, cell, total in rows:
            cells = [cell(phase, cost.phases[name]) for name, phase in phases.items()]
            if any(cells):
                table.add_row(title, *cells, *([total(cost)] if several else []))
        table.add_section()
    for title, of in _SAID:
        by_phase = {p.after or list(phases)[-1]: of(p, cost) for p in published}
        cells = [by_phase.get(name, "") for name in phases]
        if any(cell not in ("", _NONE) for cell in cells):
            table.add_row(title, *cells, *([""] if several else []))
    return table


def _nothing(_: Cost) -> str:
    return ""


def _tokens(phase: TrainPhase, c: PhaseCost) -> str:
    how = "" if phase.image.reduction == "resize" else f" {phase.image.reduction}"
    return f"{c.budget.image_tokens}{how}"


_WHAT: tuple[tuple[str, Cell, Callable[[Cost], str]], ...] = (
    ("image, pixels a side", lambda p, c: str(p.image.size), _nothing),
    ("image tokens", _tokens, _nothing),
    ("text tokens", lambda p, c: f"{p.text.tokens} {p.text.reduction}", _nothing),
    ("batch", lambda p, c: f"{p.batch:,}", _nothing),
    ("steps", lambda p, c: f"{c.budget.steps:,}", lambda t: f"{sum(c.budget.steps for c in t.phases.values()):,}"),
    (
        "samples",
        lambda p, c: count(c.budget.samples),
        lambda t: count(sum(c.budget.samples for c in t.phases.values())),
    ),
    ("parameters", lambda p, c: count(c.budget.params), _nothing),
    ("train FLOPs a sample", lambda p, c: count(c.budget.flops_per_sample), _nothing),
    ("train FLOPs", lambda p, c: power(c.budget.flops), lambda t: power(t.flops)),
)
_COST: tuple[tuple[str, Cell, Callable[[Cost], str]], ...] = (
    ("samples/s of a GPU", lambda p, c: f"{c.rate.samples_per_s:,.0f}" if c.rate else _NONE, _nothing),
    ("of its peak", lambda p, c: _share(c), _nothing),
    ("GPU-hours", lambda p, c: _number(c.gpu_hours), lambda t: _number(t.gpu_hours)),
    (
        "wall time",
        lambda p, c: show.span(c.hours * 3600 if c.hours is not None else None),
        lambda t: show.span(t.hours * 3600 if t.hours is not None else None),
    ),
    ("dollars", lambda p, c: _number(c.dollars), lambda t: _number(t.dollars)),
)
_DISK: tuple[tuple[str, Cell, Callable[[Cost], str]], ...] = (
    ("checkpoints on disk", lambda p, c: size(c.checkpoint_bytes), lambda t: size(t.checkpoint_bytes)),
)
_NEEDS: tuple[tuple[str, Cell, Callable[[Cost], str]], ...] = (
    ("memory of a GPU", lambda p, c: size(c.memory_bytes), _nothing),
    ("  micro-batch", lambda p, c: f"{c.micro_batch:,}", _nothing),
    ("  recomputed", lambda p, c: f"{c.recompute:.0%}" if c.recompute else "", _nothing),
    ("loader cores", lambda p, c: _NONE if c.loader_cores is None else f"{c.loader_cores:,}", _nothing),
    *_DISK,
)
_SAID: tuple[tuple[str, Callable[[Published, Cost], str]], ...] = (
    ("published: top-1", lambda p, c: f"{p.top1:.1f} %" if p.top1 is not None else _NONE),
    ("  GPU-hours to here", lambda p, c: _number(p.gpu_hours)),
    ("  dollars to here", lambda p, c: _number(p.dollars)),
    ("  of an A100's peak", lambda p, c: _percent(implied_mfu(c, p))),
    ("  MACs to here", lambda p, c: power(p.compute)),
)


def notes(loaded: LoadedRecipe, cost: Cost, published: Sequence[Published]) -> list[tuple[str, str]]:
    """Where the numbers come from, and what is missing."""
    lines = []
    for name, held in cost.shard_bytes.items():
        facts = loaded.about.datasets.get(name)
        if facts is not None and held is not None:
            lines.append(("shards", f"{name} {size(held)} on disk, {count(facts.samples)} samples ({facts.source})"))
        else:
            lines.append(("shards", f"{name}: size not known; say it under [datasets.{_key(name)}] of the recipe"))
    lines += [("rate", words) for words in dict.fromkeys(_rate(c.rate) for c in cost.phases.values() if c.rate)]
    lines += [("memory", words) for words in _too_large(cost)]
    for p in published:
        lines.append(("published", f"after {p.after}: {p.source}" + (f" ({p.note})" if p.note else "")))
    lines.append(("counted", "image tokens without the class token; FLOPs forward + backward; no evaluations"))
    return lines


def _key(name: str) -> str:
    """A name as TOML wants it in the head of a table: a URL needs quotes."""
    return name if name.replace("-", "").replace("_", "").isalnum() else f'"{name}"'


def _rate(rate: Rate) -> str:
    if rate.source == "assumed":
        return (
            f"assumed, {100 * rate.mfu:.0f} % of the peak: the authors' GPU-hours give 17-28 %. --mfu assumes another"
        )
    return rate.source


def _too_large(cost: Cost) -> Iterator[str]:
    gpu = cost.place.gpu
    for name, c in cost.phases.items():
        if gpu is not None and c.memory_bytes > gpu.memory_gb * 1e9:
            yield (
                f"{name} needs {size(c.memory_bytes)}, {gpu.model} has {gpu.memory_gb:g} GB: "
                f'lower phases.{name}.micro_batch, give it recompute = "auto", or take more GPUs'
            )


def print_points(loaded: LoadedRecipe, priced: Sequence[tuple[Point, Cost]], out: Console | None = None) -> None:
    """Every reported result: what was changed, what it costs by our count, what was reported (`said`)."""
    out = out or show.console()
    rows = [_point(point, cost) for point, cost in priced]
    shown = [n for n, title in enumerate(_POINT) if title != "said" or any(row[n] != _NONE for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, collapse_padding=True)
    for n in shown:
        table.add_column(_POINT[n], justify="left" if n < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[row[n] for n in shown])
    out.print(_grid([(loaded.recipe.name, loaded.recipe.description)], word="bold"))
    out.print()
    out.print(table)
    out.print()
    lines = [("counted", "multiply-adds of the forward pass x samples, as the papers plot them")]
    sources: dict[str, None] = dict.fromkeys(_why(point.published) for point, _ in priced)
    lines += [("source", words) for words in sources]
    out.print(_grid(lines, word="dim", text="dim"))


def print_grid(points: Sequence[tuple[str, ...]], priced: Sequence[Cost], out: Console | None = None) -> None:
    """The points of a sweep, and what each costs."""
    out = out or show.console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, collapse_padding=True)
    for title in ("point", "image tokens", "train FLOPs", "GPU-h", "dollars"):
        table.add_column(title, justify="left" if title == "point" else "right", no_wrap=True)
    for point, c in zip(points, priced, strict=True):
        tokens = " > ".join(str(phase.budget.image_tokens) for phase in c.phases.values())
        words = "\n".join(word.removeprefix("phases.") for word in point)
        table.add_row(words, tokens, power(c.flops), _number(c.gpu_hours), _number(c.dollars))
    total = power(sum(c.flops for c in priced))
    hours, dollars = sum_of([c.gpu_hours for c in priced]), sum_of([c.dollars for c in priced])
    table.add_section()
    table.add_row(f"{len(points)} points", "", total, _number(hours), _number(dollars))
    out.print(table)


_POINT = ("changed", "after", "MACs", "said", "GPU-h", "said", "top-1")


def _point(point: Point, cost: Cost) -> tuple[str, ...]:
    said, until = point.published, phases_until(cost, point.after)
    return (
        "\n".join(word.removeprefix("phases.") for word in said.set) or "as it stands",
        point.after,
        power(sum(c.budget.compute for c in until)),
        power(said.compute),
        _number(sum_of([c.gpu_hours for c in until])),
        _number(said.gpu_hours),
        f"{said.top1:.1f} %" if said.top1 is not None else "none",
    )


def _why(published: Published) -> str:
    score = f"{published.top1:.1f} %" if published.top1 is not None else "none"
    return f"{published.source}" + (f" ({score}: {published.note})" if published.note else "")


def _share(c: PhaseCost) -> str:
    if c.rate is None:
        return _NONE
    return f"{100 * c.rate.mfu:.0f} % {'measured' if c.rate.measured else c.rate.source}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.0f} %"


def power(value: float | None) -> str:
    """A large number in three digits: 2.26e20."""
    return f"{value:.2e}".replace("e+", "e") if value else _NONE


def _number(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float) -> str:
    """A number in three or four digits: 2.44 G, 427.5 M."""
    unit, letter = next((found for found in _COUNTS if value >= found[0]), (1.0, ""))
    scaled = value / unit
    return f"{scaled:.3g} {letter}" if scaled < 100 else f"{scaled:.0f} {letter}" if letter else f"{value:.0f}"


def size(value: float) -> str:
    """Bytes in decimal units, as disks and GPUs are sold."""
    return f"{count(value)}B"
