"""Our towers take weights of another size."""

from types import SimpleNamespace

import pytest
import torch

from clipa.errors import TrainError
from clipa.model.clip import Clip
from clipa.model.posembed import resize_image, resize_text, sincos2d
from clipa.model.torchvision_guard import import_torchvision
from clipa.spec.model import ImageTower, Model, TextTower

import_torchvision()
from open_clip.model import resize_pos_embed, resize_text_pos_embed  # noqa: E402


def _model(pool="cls"):
    # ViT-B/16's widths at a reduced depth.
    return Model(
        embed_dim=512,
        image=ImageTower(patch=16, width=768, layers=2, heads=12, pool=pool),
        text=TextTower(width=512, layers=2, heads=8),
    )


def test_sincos_positions_are_those_of_mae():
    table = sincos2d(3, 8)
    assert table.shape == (10, 8)
    assert not table[0].any()
    row, column = 2, 1
    frequencies = torch.tensor([1.0, 10_000**-0.5])
    expected = torch.cat([(column * frequencies).sin(), (column * frequencies).cos(),
                          (row * frequencies).sin(), (row * frequencies).cos()])  # fmt: skip
    torch.testing.assert_close(table[1 + row * 3 + column], expected)


@pytest.mark.parametrize("grid", [2, 7])
def test_resized_positions_are_open_clips(grid):
    table = torch.randn(1 + 4 * 4, 6)
    image = {"visual.positional_embedding": table}
    resize_pos_embed(image, SimpleNamespace(visual=SimpleNamespace(grid_size=(grid, grid))))
    torch.testing.assert_close(resize_image(table, grid), image["visual.positional_embedding"], rtol=0, atol=1e-6)
    text = {"positional_embedding": table}
    resize_text_pos_embed(text, SimpleNamespace(positional_embedding=torch.zeros(8 * grid, 6)))
    torch.testing.assert_close(resize_text(table, 8 * grid), text["positional_embedding"], rtol=0, atol=1e-6)


def test_another_image_size_is_seen_with_resized_positions():
    torch.manual_seed(0)
    model = Model(embed_dim=8, image=ImageTower(patch=4, width=16, layers=1, heads=2),
                  text=TextTower(width=8, layers=1, heads=2))  # fmt: skip
    small, large = Clip(model, 8, 8, "sincos2d"), Clip(model, 16, 8, "learnable")
    large.load(small.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(small.encode_image(images), large.encode_image(images))


def test_weights_of_another_model_are_named():
    model = Clip(_small(), 8, 8, "learnable")
    weights = model.state_dict()
    with pytest.raises(TrainError, match=r"text\.ln_final\.bias"):
        model.load({name: weight for name, weight in weights.items() if name != "text.ln_final.bias"})
    with pytest.raises(TrainError, match="logit_scale is"):
        model.load(weights | {"logit_scale": torch.zeros(2)})


def test_resizing_keeps_the_class_row_and_constants():
    table = torch.cat([torch.full((1, 4), 9.0), torch.full((4, 4), 2.0)])
    bigger = resize_image(table, 6)
    assert bigger.shape == (37, 4)
    torch.testing.assert_close(bigger[0], table[0])
    torch.testing.assert_close(bigger[1:], torch.full((36, 4), 2.0))
    assert resize_text(torch.ones(8, 4), 32).shape == (32, 4)


def _small():
    return Model(embed_dim=8, image=ImageTower(patch=4, width=16, layers=1, heads=2),
                 text=TextTower(width=8, layers=1, heads=2))  # fmt: skip


def test_a_fixed_grid_is_promoted_to_a_trained_parameter():
    before, after = Clip(_small(), 8, 8, "sincos2d"), Clip(_small(), 16, 16, "learnable")
    assert not before.image.trunk.pos_embed.requires_grad
    after.load(before.state_dict())
    assert after.image.trunk.pos_embed.requires_grad
    torch.testing.assert_close(after.image.trunk.pos_embed[0], resize_image(sincos2d(2, 16), 4))


def test_a_fixed_grid_stays_fixed():
    before, after = Clip(_small(), 8, 8, "sincos2d"), Clip(_small(), 16, 16, "sincos2d")
    after.load(before.state_dict())
    torch.testing.assert_close(after.image.trunk.pos_embed[0], resize_image(sincos2d(2, 16), 4))
