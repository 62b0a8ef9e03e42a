"""A small line chart as a scene of shapes, and the scene as SVG. Pure; `clipa.made.raster` makes pixels of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from clipa.spec.plan import Record
from clipa.terminal import one_line

INK, GREY, GRID = "#222222", "#777777", "#e4e4e4"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d3a9b", "#7f7f00")
"""Told apart by colour-blind eyes too (Okabe and Ito)."""
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Line(Record, frozen=True, kw_only=True):
    """A line through points, in pixels from the upper left corner."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0
    dashed: bool = False


class Dot(Record, frozen=True, kw_only=True):
    """A disc, or a ring where `hollow`."""

    x: float
    y: float
    radius: float
    colour: str
    hollow: bool = False


class Words(Record, frozen=True, kw_only=True):
    """A line of text; `y` is its base line, `anchor` the part of it that stands at `x`."""

    x: float
    y: float
    text: str
    size: float = 12.0
    colour: str = INK
    anchor: str = "start"
    bold: bool = False


class Scene(Record, frozen=True, kw_only=True):
    """A picture of `width` x `height` pixels, its shapes from back to front."""

    width: int
    height: int
    lines: tuple[Line, ...]
    dots: tuple[Dot, ...]
    words: tuple[Words, ...]


class Series(Record, frozen=True, kw_only=True):
    """One line of the chart: (x, y, label) from left to right. `twin` takes the colour of the line of that name."""

    name: str
    points: tuple[tuple[float, float, str], ...]
    hollow: bool = False
    twin: str = ""


class Axis(Record, frozen=True, kw_only=True):
    """A scale from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, here = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (here - low) / (high - low)


WIDTH, HEIGHT = 760, 470
LEFT, RIGHT, TOP, BOTTOM = 62, 160, 76, 56
LOG_FROM = 3.0
"""Compute that spans more than this factor is shown on a logarithmic scale."""


def chart(title: str, below: str, x_name: str, y_name: str, series: Sequence[Series]) -> Scene:
    """The chart of some lines, each named at its right end.

    Raises:
        ValueError: there is no point to show.
    """
    xs = [x for line in series for x, _, _ in line.points]
    ys = [y for line in series for _, y, _ in line.points]
    if not xs:
        raise ValueError("there is no point to show")
    across, up = _across(xs), _up(ys)
    lines = [Line(points=((LEFT, up.at(t)), (WIDTH - RIGHT, up.at(t))), colour=GRID) for t in up.ticks]
    words = [Words(x=LEFT - 8, y=up.at(t) + 4, text=f"{t:g}", colour=GREY, anchor="end") for t in up.ticks]
    lines.append(Line(points=((LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)), colour=GREY))
    for tick in across.ticks:
        x = across.at(tick)
        lines.append(Line(points=((x, HEIGHT - BOTTOM), (x, HEIGHT - BOTTOM + 5)), colour=GREY))
        words.append(Words(x=x, y=HEIGHT - BOTTOM + 19, text=_power(tick), colour=GREY, anchor="middle"))
    words += [
        Words(x=LEFT - 40, y=26, text=title, size=17, bold=True),
        Words(x=LEFT - 40, y=45, text=below, colour=GREY),
        Words(x=LEFT - 40, y=TOP - 4, text=y_name, colour=GREY),
        Words(x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 14, text=x_name, colour=GREY, anchor="middle"),
    ]
    colours = _colours(series)
    drawn, dots, labels = _lines(series, colours, across, up)
    ends = _apart([(up.at(line.points[-1][1]) + 4, line.name, colours[line.name]) for line in series])
    right = max(across.at(x) for x in xs)
    names = [Words(x=right + 14, y=y, text=name, colour=colour, bold=True) for y, name, colour in ends]
    return Scene(width=WIDTH, height=HEIGHT, lines=(*lines, *drawn), dots=dots, words=(*words, *labels, *names))


def _colours(series: Sequence[Series]) -> dict[str, str]:
    own = [line.name for line in series if not line.twin]
    found = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(own)}
    return found | {line.name: found.get(line.twin, GREY) for line in series if line.twin}


def _lines(
    series: Sequence[Series], colours: dict[str, str], across: Axis, up: Axis
) -> tuple[tuple[Line, ...], tuple[Dot, ...], tuple[Words, ...]]:
    lines, dots, labels = [], [], []
    for one in series:
        colour = colours[one.name]
        at = tuple((across.at(x), up.at(y)) for x, y, _ in one.points)
        if len(at) > 1:
            lines.append(Line(points=at, colour=colour, width=1.5 if one.hollow else 2.2, dashed=one.hollow))
        for (x, y), (_, _, label) in zip(at, one.points, strict=True):
            dots.append(Dot(x=x, y=y, radius=4.2, colour=colour, hollow=one.hollow))
            if not one.twin or one.twin not in colours:  # the marks of a twin are those of its line
                labels.append(Words(x=x, y=y - 10, text=label, size=10.5, anchor="middle"))
    return tuple(lines), tuple(dots), tuple(labels)


def _apart(ends: list[tuple[float, str, str]], gap: float = 15.0) -> list[tuple[float, str, str]]:
    """Names at their heights, moved down where two would overlap."""
    placed: list[tuple[float, str, str]] = []
    for y, name, colour in sorted(ends):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, name, colour))
    return placed


def _across(xs: Sequence[float]) -> Axis:
    low, high = min(xs), max(xs)
    start, end = float(LEFT + 14), float(WIDTH - RIGHT - 10)
    if low > 0 and high / low > LOG_FROM:
        ticks = [
            m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
        ]
        inside = [t for t in ticks if low <= t <= high]
        few = [t for t in inside if f"{t:e}"[0] == "1"] if len(inside) > 7 else inside
        return Axis(low=low, high=high, start=start, end=end, ticks=tuple(few), log=True)
    pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    return Axis(low=low, high=high, start=start, end=end, ticks=_nice(low, high))


def _up(ys: Sequence[float]) -> Axis:
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.12 or 1.0
    low, high = low - pad, high + pad
    return Axis(low=low, high=high, start=float(HEIGHT - BOTTOM), end=float(TOP + 6), ticks=_nice(low, high))


def _nice(low: float, high: float, wanted: int = 6) -> tuple[float, ...]:
    """Round numbers between low and high, about `wanted` of them."""
    raw = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw)
    first = math.ceil(low / step)
    return tuple(round(n * step, 10) for n in range(first, math.floor(high / step) + 1))


def _power(value: float) -> str:
    """5e18 for large numbers, else the number."""
    if not value or 0.01 <= abs(value) < 1e5:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _words(text: str) -> str:
    """Escape text for XML, which knows no control characters and no U+FFFE or U+FFFF."""
    return escape(one_line(text).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd"))


def to_svg(scene: Scene) -> str:
    """The scene as a self-contained SVG document."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{scene.width}" height="{scene.height}" '
        f'viewBox="0 0 {scene.width} {scene.height}" font-family="{FONT}">'
    )
    body = [f'<rect width="{scene.width}" height="{scene.height}" fill="white"/>']
    for line in scene.lines:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        body.append(
            f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="{line.width:g}"{dash}/>'
        )
    for dot in scene.dots:
        fill, edge = ("white", f' stroke="{dot.colour}" stroke-width="1.6"') if dot.hollow else (dot.colour, "")
        body.append(f'<circle cx="{dot.x:.1f}" cy="{dot.y:.1f}" r="{dot.radius:g}" fill="{fill}"{edge}/>')
    for text in scene.words:
        weight = ' font-weight="bold"' if text.bold else ""
        body.append(
            f'<text x="{text.x:.1f}" y="{text.y:.1f}" font-size="{text.size:g}" fill="{text.colour}" '
            f'text-anchor="{text.anchor}"{weight}>{_words(text.text)}</text>'
        )
    return "\n".join([head, *body, "</svg>"]) + "\n"
