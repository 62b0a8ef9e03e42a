"""Emoji as image-text pairs: the glyphs of Debian's colour font, and their Unicode names.

Every glyph is drawn several times: turned, moved, scaled, on a plain background of any colour. `val` and `test` hold
other drawings of the glyphs of `train`; `unseen` holds glyphs that `train` lacks, each a known hand or person in a
known skin tone, which only the words can tell (compositional generalisation).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from clipa.errors import MissingPart
from clipa.made.splits import Made, Maker, Sample
from clipa.reduction.draws import Draws, Purpose

VERSION = 1
"""Raise it when a byte of the output changes: then older buckets are written again."""

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_STRIKE = 109
"""The one size in which the font has its bitmaps: 136 x 128 pixels."""

_BLOCKS = (range(0x1F32D, 0x1F380), range(0x1F400, 0x1F488), range(0x1F600, 0x1F650))
"""Food and plants, animals and people, faces: few enough to be learned in minutes on a CPU."""

_TONES = {
    "\U0001f3fb": "light skin tone",
    "\U0001f3fc": "medium-light skin tone",
    "\U0001f3fd": "medium skin tone",
    "\U0001f3fe": "medium-dark skin tone",
    "\U0001f3ff": "dark skin tone",
}
"""The five modifiers, by their short names (Unicode Technical Standard 51)."""

TEMPLATES = ("{c}", "an emoji of {c}")
_FRAMES = ("{n}", "{n}", "{n} emoji", "an emoji of {n}", "a drawing of {n}", "{n}, a small picture", "it shows {n}")
_SIZE = 64
_QUALITY = 92
_DRAWINGS = {"train": 12, "val": 2, "test": 4, "unseen": 8}
_UNSEEN_SHARE = 0.2
_SEED = 20_230_627


class Glyph(NamedTuple):
    """A character, or one with a skin tone, and its name."""

    text: str
    name: str


@cache
def _font() -> ImageFont.FreeTypeFont:
    if not FONT.is_file():
        raise MissingPart(
            "the colour font with the emoji is not installed", where=str(FONT),
            hint="apt-get install fonts-noto-color-emoji",
        )  # fmt: skip
    if not features.check("raqm"):
        raise MissingPart("this Pillow cannot join an emoji with its skin tone", hint="pip install --upgrade pillow")
    return ImageFont.truetype(str(FONT), _STRIKE, layout_engine=ImageFont.Layout.RAQM)


def _source() -> str:
    """The font's digest and the version of Unicode that names are taken from."""
    _font()  # or a missing font would be an error of the file system
    return f"{hashlib.sha256(FONT.read_bytes()).hexdigest()[:16]} unicode-{unicodedata.unidata_version}"


def glyphs(blocks: Sequence[range] = _BLOCKS) -> list[Glyph]:
    """Every symbol of some blocks that the font draws, and in five skin tones where it has them; no picture twice."""
    found: dict[bytes, Glyph] = {}
    for text in (chr(code) for block in blocks for code in block if unicodedata.category(chr(code)) == "So"):
        name = unicodedata.name(text).lower()
        plain = _picture(text)
        if plain is None:
            continue
        found.setdefault(plain, Glyph(text, name))
        if _picture(text + next(iter(_TONES))) in (None, plain):
            continue
        for tone, word in _TONES.items():
            if picture := _picture(text + tone):
                found.setdefault(picture, Glyph(text + tone, f"{name}, {word}"))
    return list(found.values())


def _picture(text: str) -> bytes | None:
    drawn = _drawn(text, _font())
    return None if drawn is None else repr(drawn.size).encode() + drawn.tobytes()


@cache
def _drawn(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """One glyph, cut to its ink; None where the font has none, or draws the tone beside the character."""
    canvas = Image.new("RGBA", (3 * _STRIKE, 2 * _STRIKE))
    ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    return canvas.crop(box) if box and box[2] - box[0] < 1.5 * _STRIKE else None


def drawing(glyph: Glyph, draws: Draws) -> Image.Image:
    """A glyph at a random place, size and angle on a plain background, 64 x 64 RGB."""
    drawn = _drawn(glyph.text, _font())
    assert drawn is not None
    turned = drawn.rotate(draws.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    side = draws.integer(18) + 42
    turned.thumbnail((side, side), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", (_SIZE, _SIZE), (draws.integer(256), draws.integer(256), draws.integer(256), 255))
    place = draws.integer(_SIZE - turned.width + 1), draws.integer(_SIZE - turned.height + 1)
    ground.alpha_composite(turned, place)
    return ground.convert("RGB")


def is_unseen(glyph: Glyph) -> bool:
    """Whether a glyph is kept from `train`: a share of those with a skin tone, chosen by their code points."""
    return len(glyph.text) > 1 and Draws(_SEED, _number(glyph), Purpose.SPLIT).uniform() < _UNSEEN_SHARE


def _number(glyph: Glyph) -> int:
    return int.from_bytes(glyph.text.encode("utf-16-be"), "big")


def _samples(split: str, place: int, all_glyphs: list[Glyph]) -> Iterator[Sample]:
    for label, glyph in enumerate(all_glyphs):
        if is_unseen(glyph) is not (split == "unseen"):
            continue
        for turn in range(_DRAWINGS[split]):
            draws = Draws(_SEED + place, _number(glyph) * 100 + turn, Purpose.CAPTION)
            buffer = BytesIO()
            drawing(glyph, draws).save(buffer, "JPEG", quality=_QUALITY)
            text = _FRAMES[draws.integer(len(_FRAMES))].format(n=glyph.name)
            members = {"jpg": buffer.getvalue(), "txt": text.encode(), "cls": str(label).encode()}
            yield f"{label:04d}_{turn}", members


def _make() -> Made:
    found = glyphs()
    return Made(
        splits={split: list(_samples(split, place, found)) for place, split in enumerate(_DRAWINGS)},
        classes=[glyph.name for glyph in found],
        templates=TEMPLATES,
    )


MAKER = Maker(version=VERSION, source=_source, captions=dict.fromkeys(_DRAWINGS, 1), make=_make)
