"""Emoji with their names: what is drawn, what is kept from training, and that it is the same every time."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from clipa.data.tokenizer import tokenizer
from clipa.errors import MissingPart
from clipa.made import demo, emoji
from clipa.made.emoji import FONT, Glyph, drawing, glyphs, is_unseen
from clipa.reduction.draws import Draws, Purpose

needs_font = pytest.mark.skipif(not FONT.is_file(), reason="the emoji font (fonts-noto-color-emoji) is not installed")


def test_without_the_font_the_package_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(emoji, "FONT", Path("/nowhere/font.ttf"))
    emoji._font.cache_clear()
    with pytest.raises(MissingPart, match="not installed"):
        emoji.glyphs()
    assert demo.main([str(tmp_path / "emoji"), "--of", "emoji"]) == 2
    assert "apt-get install fonts-noto-color-emoji" in capsys.readouterr().err
    assert not (tmp_path / "emoji").exists()


@pytest.fixture(scope="module")
def all_glyphs():
    return glyphs([range(0x1F440, 0x1F4A0), range(0x1F600, 0x1F650)])


@needs_font
def test_names_are_unicodes_and_every_glyph_looks_different(all_glyphs):
    names = {glyph.text: glyph.name for glyph in all_glyphs}
    assert names["\U0001f600"] == "grinning face"
    assert names["\U0001f44d\U0001f3fe"] == "thumbs up sign, medium-dark skin tone"
    assert len(set(names.values())) == len(all_glyphs) > 300
    assert len({emoji._drawn(glyph.text, emoji._font()).tobytes() for glyph in all_glyphs}) == len(all_glyphs)


@needs_font
def test_what_is_unseen_is_a_known_character_in_a_known_tone(all_glyphs):
    unseen = [glyph for glyph in all_glyphs if is_unseen(glyph)]
    seen = {glyph.text for glyph in all_glyphs if not is_unseen(glyph)}
    assert 0.1 < len(unseen) / sum(len(glyph.text) == 2 for glyph in all_glyphs) < 0.3
    assert all(glyph.text[0] in seen for glyph in unseen)
    assert {glyph.text[1] for glyph in unseen} == {text[1] for text in seen if len(text) == 2}


@needs_font
def test_samples_of_a_split_are_drawn_anew_and_the_same_every_time(all_glyphs):
    few = [all_glyphs[0], next(glyph for glyph in all_glyphs if is_unseen(glyph))]
    train, again, test, unseen = (
        list(emoji._samples(*w, few)) for w in (("train", 0), ("train", 0), ("test", 2), ("unseen", 3))
    )
    assert train == again
    assert [members["cls"] for _, members in train] == [b"0"] * 12
    assert [members["cls"] for _, members in unseen] == [b"1"] * 8
    assert len({members["jpg"] for _, members in [*train, *test]}) == 16
    image = Image.open(io.BytesIO(train[0][1]["jpg"]))
    assert (image.size, image.mode) == ((64, 64), "RGB")
    assert few[0].name.encode() in train[0][1]["txt"]


@needs_font
def test_the_whole_glyph_is_on_the_picture():
    glyph = Glyph("\U0001f600", "grinning face")
    boxes = set()
    for position in range(30):
        image = drawing(glyph, Draws(0, position, Purpose.CAPTION))
        ground = Image.new("RGB", image.size, image.getpixel((0, 0)))
        left, top, right, bottom = ImageChops.difference(image, ground).getbbox()
        assert min(right - left, bottom - top) >= 34, "a round face that is cut is narrower"
        boxes.add((left, top, right, bottom))
    assert len(boxes) > 20


def test_names_fit_the_recipes_text():
    names = ["smiling face with open mouth and tightly-closed eyes", "raised back of hand, medium-light skin tone"]
    rows = tokenizer("clip-bpe").encode(names, 16)
    assert (rows[:, -1] == 0).all()
