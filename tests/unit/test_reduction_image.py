"""Which patches are kept, and that the tower computes with those and no others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipa.model.clip import Clip
from clipa.reduction.image import PatchSelection, decoded_size, gather_patches, spread
from clipa.spec.inputs import ImageInput
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.spec.tokens import kept_tokens, settled, window_of

KINDS = ("random", "grid", "block")


def kept(reduction: str, size: int, tokens: int, positions: list[int], seed: int = 0) -> list[list[int]]:
    found = PatchSelection(ImageInput(size=size, tokens=tokens, reduction=reduction), 16, seed)(torch.tensor(positions))
    assert found is not None
    assert found.dtype == torch.int64
    return found.tolist()


def possible(reduction: str, grid: int) -> list[int]:
    found = []
    for tokens in range(1, grid * grid + 1):
        try:
            settled(ImageInput(size=grid * 16, tokens=tokens, reduction=reduction), 16)
            found.append(tokens)
        except ValueError:
            pass
    return found


@given(st.integers(1, 16), st.integers(1, 32))
def test_a_resized_image_has_the_tokens_of_the_budget(side: int, patch: int) -> None:
    image = ImageInput(size=side * patch)
    assert (decoded_size(image) // patch) ** 2 == kept_tokens(image, patch) == side**2


@pytest.mark.parametrize("reduction", KINDS)
@pytest.mark.parametrize("grid", [1, 2, 3, 4, 6, 9, 14, 16])
def test_every_possible_number_is_kept_exactly(reduction: str, grid: int) -> None:
    for tokens in possible(reduction, grid)[:40]:
        if tokens == grid * grid:
            continue
        for row in kept(reduction, grid * 16, tokens, [0, 1, 2, 77]):
            assert len(set(row)) == tokens
            assert row == sorted(row)
            assert row[0] >= 0
            assert row[-1] < grid * grid


@pytest.mark.parametrize("reduction", ["resize", *KINDS])
def test_all_patches_are_no_selection(reduction: str) -> None:
    selection = PatchSelection(ImageInput(size=64, tokens=16, reduction=reduction), 16, 0)
    assert selection(torch.arange(3)) is None


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**50), min_size=1, max_size=9), st.sampled_from(KINDS))
def test_what_is_kept_depends_on_seed_and_position_alone(seed: int, positions: list[int], reduction: str) -> None:
    together = kept(reduction, 224, 49, positions, seed)
    assert together == [kept(reduction, 224, 49, [position], seed)[0] for position in positions]


def test_random_keeps_every_patch_equally_often_and_no_two_samples_alike() -> None:
    rows = kept("random", 64, 4, list(range(4000)))
    counts = torch.bincount(torch.tensor(rows).flatten(), minlength=16)
    assert counts.sum() == 16_000
    assert 880 < counts.min() <= counts.max() < 1120  # 1000 +- 27 is expected
    assert len({tuple(row) for row in rows}) > 1500  # of 1820 that there are; 1620 +- 14 is expected
    assert rows[:50] != kept("random", 64, 4, list(range(50)), seed=1)


def test_grid_keeps_the_same_corner_of_every_window_and_each_corner_equally_often() -> None:
    seen = []
    for row in kept("grid", 224, 49, list(range(2000))):
        places = {(patch // 14 % 2, patch % 14 % 2) for patch in row}
        assert len(places) == 1
        seen += list(places)
        assert {(patch // 28, patch % 14 // 2) for patch in row} == {(a, b) for a in range(7) for b in range(7)}
    assert all(400 < seen.count((a, b)) < 600 for a in (0, 1) for b in (0, 1))  # 500 +- 19 is expected


@pytest.mark.parametrize("tokens", [64, 128, 192])
def test_grid_keeps_the_fractions_of_the_second_paper(tokens: int) -> None:
    # H/14 at 224 px: 256 patches, 75 %, 50 % and 25 % of them dropped (arXiv 2306.15658, table 2).
    image = settled(ImageInput(size=224, tokens=tokens, reduction="grid"), 14)
    assert window_of(16, tokens).side == 2
    found = PatchSelection(image, 14, 0)(torch.arange(50))
    assert found is not None
    for row in found.tolist():
        whole = {(patch // 32, patch % 16 // 2) for patch in row}
        assert len(row) == tokens
        assert len(whole) == 64
    if tokens == 128:  # a chessboard: the two places of a window are opposite corners
        assert all(len({(patch // 16 + patch % 16) % 2 for patch in row}) == 1 for row in found.tolist())


def test_block_is_one_square_and_lies_everywhere() -> None:
    corners = []
    for row in kept("block", 64, 4, list(range(3000))):
        corner = row[0]
        assert row == [corner, corner + 1, corner + 4, corner + 5]
        assert corner % 4 < 3
        corners.append(corner)
    assert sorted(set(corners)) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert all(250 < corners.count(c) < 420 for c in set(corners))  # 333 +- 17 is expected


@given(st.integers(1, 8))
def test_spread_is_an_order_of_all_places(side: int) -> None:
    assert sorted(spread(side)) == [(row, column) for row in range(side) for column in range(side)]


def test_spread_starts_with_opposite_corners() -> None:
    assert spread(2)[:2] == [(0, 0), (1, 1)]
    assert spread(4)[:4] == [(0, 0), (2, 2), (0, 2), (2, 0)]


def test_gathered_patches_are_the_pixels_of_their_place() -> None:
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float64).view(2, 3, 6, 6)
    found = gather_patches(images, torch.tensor([[0, 8], [4, 5]]), 2)
    assert torch.equal(found[0, 1], images[0, :, 4:6, 4:6].flatten())
    assert torch.equal(found[1, 0], images[1, :, 2:4, 2:4].flatten())
    assert torch.equal(found[1, 1], images[1, :, 2:4, 4:6].flatten())


def small_clip(pool: str = "cls") -> Clip:
    torch.manual_seed(0)
    model = Model(
        embed_dim=32,
        image=ImageTower(patch=16, width=64, layers=2, heads=2, pool=pool),
        text=TextTower(width=32, layers=1, heads=2),
    )
    return Clip(model, 64, 8, "learnable").double()


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_the_tower_sees_kept_patches_with_their_own_positions_and_nothing_else(pool: str) -> None:
    clip = small_clip(pool).train()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    chosen = torch.tensor([[0, 3, 5, 9, 15], [1, 2, 3, 4, 5], [6, 7, 8, 10, 11]])
    found = clip.image(images, chosen)
    # The other patches' pixels do not matter, those of the kept ones do.
    mask = torch.zeros(3, 16, dtype=torch.bool).scatter(1, chosen, True).view(3, 1, 4, 4)
    wide = mask.repeat_interleave(16, 2).repeat_interleave(16, 3)
    noise = torch.randn_like(images)
    assert torch.equal(clip.image(torch.where(wide, images, noise), chosen), found)
    assert not torch.allclose(clip.image(torch.where(wide, noise, images), chosen), found)
    # The order is harmless, the place is not.
    torch.testing.assert_close(clip.image(images, chosen.flip(1)), found, rtol=0, atol=1e-12)
    assert not torch.allclose(clip.image(images.roll(16, 2), (chosen + 4) % 16), found)
    # Keeping all is the whole image.
    every = torch.arange(16).expand(3, 16)
    torch.testing.assert_close(clip.image(images, every), clip.image(images), rtol=0, atol=1e-12)


def test_the_class_token_is_always_kept_and_dropped_patches_get_no_gradient() -> None:
    clip = small_clip().train()
    clip.image(torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([[0, 5], [5, 6]])).sum().backward()
    moved = clip.image.trunk.pos_embed.grad[0].abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [0, 1, 6, 7]
    assert clip.image.trunk.cls_token.grad.abs().sum() > 0


def test_an_evaluated_image_keeps_every_patch() -> None:
    with pytest.raises(AssertionError, match="every patch"):
        small_clip().eval().image(torch.zeros(1, 3, 64, 64, dtype=torch.float64), torch.tensor([[1]]))


@pytest.mark.long
@pytest.mark.parametrize("reduction", KINDS)
def test_selection_and_tower_compile_without_graph_breaks(reduction: str) -> None:
    clip = small_clip().float().train()
    selection = PatchSelection(ImageInput(size=64, tokens=4, reduction=reduction), 16, 2**63 - 1)
    images, positions = torch.randn(5, 3, 64, 64), torch.arange(5) * 1_234_567_891

    def features(images: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = selection(positions)
        assert chosen is not None
        return chosen, clip.image(images, chosen)

    expected = features(images, positions)
    found = torch.compile(features, fullgraph=True)(images, positions)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-5)
