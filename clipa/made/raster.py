"""A scene of clipa.registry.picture as PNG: `python -m clipa.made.raster OUT.png < scene.json`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
from PIL import Image, ImageDraw, ImageFont

from clipa.registry.picture import Line, Scene

FINER = 4
"""Drawn this many times larger and made smaller again: Pillow's lines and discs are not smoothed."""
SCALE = 2
"""Pixels of the PNG for one of the scene."""
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def rasterise(scene: Scene) -> Image.Image:
    """The scene as an RGB image of twice its size."""
    by = FINER * SCALE
    picture = Image.new("RGB", (scene.width * by, scene.height * by), "white")
    draw = ImageDraw.Draw(picture)
    for line in scene.lines:
        for piece in _pieces(line):
            scaled = [(x * by, y * by) for x, y in piece]
            draw.line(scaled, fill=line.colour, width=round(line.width * by), joint="curve")
    for dot in scene.dots:
        box = [(v * by) for v in (dot.x - dot.radius, dot.y - dot.radius, dot.x + dot.radius, dot.y + dot.radius)]
        draw.ellipse(box, fill="white" if dot.hollow else dot.colour, outline=dot.colour, width=round(1.6 * by))
    for text in scene.words:
        font = ImageFont.load_default(text.size * by)
        stroke = round(0.02 * text.size * by) if text.bold else 0
        draw.text((text.x * by, text.y * by), text.text, text.colour, font, _ANCHORS[text.anchor], stroke_width=stroke)
    return picture.resize((scene.width * SCALE, scene.height * SCALE), Image.Resampling.LANCZOS)


def _pieces(line: Line, dash: float = 5.0, gap: float = 4.0) -> list[list[tuple[float, float]]]:
    if not line.dashed:
        return [list(line.points)]
    pieces = []
    for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        at = 0.0
        while at < length:
            ends = [min(1.0, t / length) for t in (at, at + dash)]
            pieces.append([(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in ends])
            at += dash + gap
    return pieces


def main() -> None:
    """Entry of `python -m clipa.made.raster`."""
    parser = argparse.ArgumentParser(prog="clipa.made.raster")
    parser.add_argument("out", type=Path)
    scene = msgspec.json.decode(sys.stdin.buffer.read(), type=Scene)
    rasterise(scene).save(parser.parse_args().out, format="PNG")


if __name__ == "__main__":
    main()
