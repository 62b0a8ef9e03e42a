"""`clipa reduce show`: the picture shows what training keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipa.data.tokenizer import tokenizer
from clipa.made import picture, scene
from clipa.reduction.image import PatchSelection
from clipa.reduction.text import TokenSelection
from clipa.spec.catalog import recipes
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.load import load_recipe

ODD = "Рыжий кот 🐈 chrysanthemums, don't sit on the supercalifragilistic ledge & 東京 — 1984 " + "word " * 500


def sizes(recipe: str = "clipa-b16-i50-t16", *changes: str) -> picture.Sizes:
    return picture.sizes_of(load_recipe(recipes()[recipe], changes).recipe)


def clipa(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "clipa.cli.main", "reduce", "show", *words]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_patches_are_those_that_training_keeps() -> None:
    for kept in picture.kept_patches(sizes()):
        assert int(kept.mask.sum()) == 49
        if kept.reduction == "resize":
            assert (kept.size, tuple(kept.mask.shape)) == (112, (7, 7))
            continue
        image = ImageInput(size=224, tokens=49, reduction=kept.reduction)
        chosen = PatchSelection(image, 16, picture.SEED)(torch.tensor([picture.POSITION]))
        assert kept.mask.flatten().nonzero().flatten().tolist() == chosen[0].tolist()


def test_the_words_are_those_that_training_keeps() -> None:
    words = tokenizer("clip-bpe")
    caption = scene.CAPTION + " with chrysanthemums"
    shown = picture.kept_words(sizes("clipa-l16-i37-t8"), caption)
    for reduction, found in shown.items():
        select = TokenSelection(words, TextInput(tokens=8, reduction=reduction), picture.SEED)
        row = select([caption], [picture.POSITION])[0].tolist()
        ids = [id_ for word, kept in zip(words.words(caption), found, strict=True) for id_ in word.ids[: kept.kept]]
        assert sorted(row[1 : row.index(words.end)]) == sorted(ids)
        assert sum(word.kept for word in found) == 6


def test_a_number_that_a_reduction_cannot_keep_becomes_the_nearest() -> None:
    found = picture.kept_patches(
        sizes("clipa-b16-i50-t16", "phases.pretrain.image={size=224,tokens=50,reduction='random'}")
    )
    assert {kept.reduction: int(kept.mask.sum()) for kept in found} == {
        "resize": 49, "random": 50, "grid": 49, "block": 49}  # fmt: skip


def test_a_patch_is_drawn_where_it_is_kept(tmp_path: Path) -> None:
    red = tmp_path / "red.png"
    Image.new("RGB", (300, 200), (200, 0, 0)).save(red)
    drawn = picture.show(red, "a red wall", "clipa-b16-i50-t16", "", [], tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(drawn))
    pixels = np.asarray(drawn)
    top, side = (122 + 32) * 2, picture.PANEL * 2
    for column, kept in enumerate(picture.kept_patches(sizes()), start=1):
        left = (picture.MARGIN + column * (picture.PANEL + picture.GAP)) * 2
        grid = len(kept.mask)
        for row in range(grid):
            for at in range(grid):
                y, x = top + (2 * row + 1) * side // (2 * grid), left + (2 * at + 1) * side // (2 * grid)
                seen = bool(pixels[y, x, 0] > 150 and pixels[y, x, 1] < 60)
                assert seen == bool(kept.mask[row, at]), (kept.reduction, row, at)


@pytest.mark.parametrize("caption", ["", ODD], ids=["empty", "odd"])
@pytest.mark.parametrize("recipe", ["demo", "clipa-l16-i37-t8"])
def test_any_caption_can_be_drawn(caption: str, recipe: str, tmp_path: Path) -> None:
    drawn = picture.show(None, caption, recipe, "", [], tmp_path / "out.png")
    assert drawn.width == 2 * picture.WIDTH
    assert 1400 < drawn.height < 3600


def test_the_command_draws_the_picture_of_the_readme(tmp_path: Path) -> None:
    done = clipa("--recipe", "clipa-b16-i50-t16", "--set", "phases.pretrain.text.tokens=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "reductions.png: 2480 x 1604 pixels\n"
    assert [path.name for path in tmp_path.iterdir()] == ["reductions.png"]
    committed = Path(__file__).resolve().parents[2] / "docs" / "reductions.png"
    ours, theirs = (np.asarray(Image.open(path)).astype(float) for path in (tmp_path / "reductions.png", committed))
    assert np.abs(ours - theirs).mean() < 0.5  # of 255: the edges of letters differ between versions of FreeType


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["missing.jpg"], 2, "missing.jpg: cannot read the image: No such file or directory"),
        (["text.jpg"], 1, "text.jpg: "),
        (["--out", "nowhere/out.png"], 2, "nowhere/out.png: cannot write the picture: No such file or directory"),
        (["--recipe", "nonesuch"], 2, "nonesuch"),
        (["--phase", "eval"], 2, "demo has no training phase 'eval'\nallowed: pretrain, finetune"),
        (["--set", "phases.pretrain.text.tokens=1"], 2, "tokens cannot be 1\nallowed: 3..1024"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    assert picture.main(words) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.jpg"]


def test_the_command_relays_a_refusal(tmp_path: Path) -> None:
    done = clipa("missing.jpg", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: missing.jpg: cannot read the image: No such file or directory\n",
    )
