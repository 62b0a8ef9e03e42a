"""How many tokens an image has, and what a recipe that asks for impossible ones is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import ConfigError
from clipa.spec.inputs import ImageInput, ImageReduction
from clipa.spec.load import load_recipe
from clipa.spec.tokens import kept_tokens, nearest_tokens, settled, window_of

ROOT = Path(__file__).resolve().parents[2]
REDUCTIONS: tuple[ImageReduction, ...] = ("resize", "random", "grid", "block")
reductions = st.sampled_from(REDUCTIONS)


@given(reductions, st.integers(1, 30), st.integers(1, 32), st.integers(1, 1000))
def test_an_input_is_settled_or_refused_with_numbers_that_are_not(
    reduction: ImageReduction, grid: int, patch: int, tokens: int
) -> None:
    image = ImageInput(size=grid * patch, tokens=tokens, reduction=reduction)
    try:
        found = settled(image, patch)
    except ValueError as error:
        near = str(error).partition("nearest: ")[2].strip(")").partition(";")[0].split(", ")
        assert str(tokens) not in near
        assert near
        for number in near:
            again = settled(ImageInput(size=grid * patch, tokens=int(number), reduction=reduction), patch)
            assert kept_tokens(again, patch) == int(number)
        return
    assert (found.size, found.tokens) == (grid * patch, tokens)
    assert settled(found, patch) == found
    assert tokens <= grid * grid


@given(st.integers(1, 40), st.integers(1, 32))
def test_one_of_size_and_tokens_is_enough_to_resize(grid: int, patch: int) -> None:
    by_size = settled(ImageInput(size=grid * patch), patch)
    by_tokens = settled(ImageInput(tokens=grid * grid), patch)
    assert by_size == by_tokens
    assert (by_size.size, by_size.tokens) == (grid * patch, grid * grid)


@given(reductions, st.integers(1, 30), st.integers(1, 1000))
def test_the_nearest_numbers_are_the_nearest(reduction: ImageReduction, grid: int, tokens: int) -> None:
    near = nearest_tokens(reduction, grid, tokens)
    distances = [abs(number - tokens) for number in near]
    assert distances == sorted(distances)
    assert 1 <= len(set(near)) == len(near) <= 4
    if reduction != "resize":
        possible = [n for n in range(1, grid * grid + 1) if _is_possible(reduction, grid, n)]
        assert min(abs(n - tokens) for n in possible) == distances[0]


def _is_possible(reduction: ImageReduction, grid: int, tokens: int) -> bool:
    try:
        settled(ImageInput(size=grid, tokens=tokens, reduction=reduction), 1)
    except ValueError:
        return False
    return True


@given(st.integers(1, 40), st.integers(1, 1600))
def test_a_window_solves_exactly_what_grid_can_keep(grid: int, tokens: int) -> None:
    window = window_of(grid, tokens)
    assert (window.kept == tokens) == _is_possible("grid", grid, tokens)
    if window.kept and window.side > 1:
        assert grid % window.side == 0
        assert window.per_window * (grid // window.side) ** 2 == tokens
        assert window.side == 2 or 2 * window.side <= grid


@pytest.mark.parametrize(
    ("grid", "dropped", "side", "per_window"),
    # CLIPA-v1: 75 % of 14 x 14; CLIPA-v2, table 2: 25, 50 and 75 % of 16 x 16.
    [(14, 0.75, 2, 1), (16, 0.25, 2, 3), (16, 0.5, 2, 2), (16, 0.75, 2, 1), (24, 0.75, 2, 1)],
)
def test_the_windows_of_the_papers(grid: int, dropped: float, side: int, per_window: int) -> None:
    window = window_of(grid, round(grid * grid * (1 - dropped)))
    assert (window.side, window.per_window) == (side, per_window)


@pytest.mark.parametrize(
    ("pixels", "patch", "tokens"),
    [(224, 16, 196), (160, 16, 100), (112, 16, 49), (96, 16, 36), (64, 16, 16),
     (336, 14, 576), (224, 14, 256), (84, 14, 36), (70, 14, 25), (56, 14, 16)],
)  # fmt: skip
def test_the_sizes_of_the_papers(pixels: int, patch: int, tokens: int) -> None:
    assert settled(ImageInput(size=pixels), patch).tokens == tokens
    assert settled(ImageInput(tokens=tokens), patch).size == pixels


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            "{ size = 224, tokens = 300, reduction = 'random' }",
            "random cannot keep 300 tokens of 196 patches (224 px / 16) (nearest: 193, 194, 195, 196)",
        ),
        (
            "{ size = 224, tokens = 50, reduction = 'grid' }",
            "grid cannot keep 50 tokens of 196 patches (224 px / 16) (nearest: 44, 48, 49, 52)",
        ),
        (
            "{ size = 224, tokens = 50, reduction = 'block' }",
            "block cannot keep 50 tokens of 196 patches (224 px / 16) (nearest: 25, 36, 49, 64)",
        ),
        (
            "{ size = 224, tokens = 49 }",
            "resize cannot keep 49 tokens of 196 patches (224 px / 16) (nearest: 196; 49 tokens are 112 px)",
        ),
        ("{ tokens = 50 }", "resize cannot keep 50 tokens with patch 16 (nearest: 25, 36, 49, 64)"),
        ("{ size = 100 }", "image.size cannot be 100\nallowed: a multiple of model.image.patch 16 (nearest: 96)"),
        ("{ size = 7 }", "image.size cannot be 7\nallowed: a multiple of model.image.patch 16 (nearest: 16)"),
        ("{ size = 224, reduction = 'grid' }", "reduction grid needs both: size (pixels of the image) and tokens"),
    ],
)
def test_a_recipe_that_asks_for_impossible_tokens_is_refused(image: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(ROOT / "jobs" / "clipa-b16-i50-t16.toml", [f"phases.pretrain.image={image}"])
    assert message in str(caught.value)
    assert "pretrain" in str(caught.value)
