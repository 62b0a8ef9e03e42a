"""Our towers compute what open_clip's compute."""

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
from open_clip.transformer import TextTransformer, VisionTransformer  # noqa: E402


def _model(pool="cls"):
    # ViT-B/16's widths at a reduced depth.
    return Model(
        embed_dim=512,
        image=ImageTower(patch=16, width=768, layers=2, heads=12, pool=pool),
        text=TextTower(width=512, layers=2, heads=8),
    )


@torch.no_grad()
def _loud(tower):
    """Weights at which a wrong GELU, epsilon, mask or pooling shows: with small ones all of them pass to 1e-5."""
    torch.manual_seed(0)
    for name, parameter in tower.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_(("bias" not in name) + 0.2 * torch.randn_like(parameter))
        elif "embed" in name or "cls" in name:
            parameter.copy_(0.02 * torch.randn_like(parameter))  # small inputs: epsilon matters beside their variance
        else:
            parameter.copy_(1.5 * parameter.shape[1] ** -0.5 * torch.randn_like(parameter))
    return tower.eval()


def _in_open_clips_words(tower):
    """The image tower's weights under the names of open_clip's VisionTransformer."""
    trunk = tower.trunk
    weights = {
        "class_embedding": trunk.cls_token[0, 0],
        "positional_embedding": trunk.pos_embed[0],
        "proj": trunk.head.weight.T,
        "conv1.weight": trunk.patch_embed.proj.weight,
    }
    for mine, name in (("norm_pre", "ln_pre"), ("norm", "ln_post")):
        weights |= {f"{name}.{k}": v for k, v in getattr(trunk, mine).state_dict().items()}
    pairs = {"norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "attn.proj": "attn.out_proj"}  # fmt: skip
    for number, block in enumerate(trunk.blocks):
        there = f"transformer.resblocks.{number}."
        weights[there + "attn.in_proj_weight"] = block.attn.qkv.weight
        weights[there + "attn.in_proj_bias"] = block.attn.qkv.bias
        for mine, name in pairs.items():
            module = block.get_submodule(mine)
            weights |= {there + f"{name}.{k}": v for k, v in module.state_dict().items()}
    return weights


@pytest.mark.parametrize(("pool", "theirs"), [("cls", "tok"), ("gap", "avg")])
def test_image_tower_agrees_with_open_clip(pool, theirs):
    ours = _loud(Clip(_model(pool), 64, 16, "learnable").image)
    other = VisionTransformer(64, 16, 768, 2, 12, 4.0, output_dim=512, pool_type=theirs).eval()
    weights = _in_open_clips_words(ours)
    assert set(weights) == set(other.state_dict())
    other.load_state_dict(weights)
    images = 0.1 * torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(*_unit(ours(images), other(images)), rtol=0, atol=1e-5)
    _assert_sensitive(ours, images)


def _unit(*features):
    return [torch.nn.functional.normalize(feature, dim=-1) for feature in features]


def test_text_tower_agrees_with_open_clip():
    ours = _loud(Clip(_model(), 32, 16, "learnable").text)
    other = TextTransformer(context_length=16, width=512, heads=8, layers=2, output_dim=512).eval()
    weights = {
        "token_embedding.weight": ours.token_embedding.weight,
        "positional_embedding": ours.positional_embedding,
        "text_projection": ours.projection.weight.T,
    } | {f"ln_final.{k}": v for k, v in ours.ln_final.state_dict().items()}
    pairs = {"ln_1": "ln_1", "ln_2": "ln_2", "fc_1": "mlp.c_fc", "fc_2": "mlp.c_proj", "proj": "attn.out_proj"}
    for number, block in enumerate(ours.blocks):
        there = f"transformer.resblocks.{number}."
        weights[there + "attn.in_proj_weight"] = block.qkv.weight
        weights[there + "attn.in_proj_bias"] = block.qkv.bias
        for mine, name in pairs.items():
            module = block.get_submodule(mine)
            weights |= {there + f"{name}.{k}": v for k, v in module.state_dict().items()}
    missing = other.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"attn_mask"}
    tokens = torch.randint(1, 40_000, (4, 16))
    tokens[torch.arange(4), torch.tensor([15, 9, 4, 2])] = 49_407
    with torch.no_grad():
        torch.testing.assert_close(*_unit(ours(tokens), other(tokens)), rtol=0, atol=1e-5)
    _assert_sensitive(ours, tokens)


@torch.no_grad()
def _assert_sensitive(tower, inputs):
    """The comparison above means something: another epsilon is seen by it."""
    right = tower(inputs)
    for module in tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    wrong = tower(inputs)
    assert (_unit(right)[0] - _unit(wrong)[0]).abs().max() > 3e-5


def test_sincos_positions_are_those_of_mae():
    table = sincos2d(3, 8)
    assert table.shape == (10, 8)
    assert not table[0].any()
    row, column = 2, 1
    frequencies = torch.tensor([1.0, 10_000**-0.5])
    expected = torch.cat([(column * frequencies).sin(), (column * frequencies).cos(),
                          (row * frequencies).sin(), (row * frequencies).cos()])  # fmt: skip
    torch.testing.assert_close(table[1 + row * 3 + column], expected)


def test_a_fresh_image_tower_is_as_large_as_open_clips():
    torch.manual_seed(0)
    ours = _in_open_clips_words(Clip(_model(), 64, 16, "learnable").image)
    theirs = VisionTransformer(64, 16, 768, 2, 12, 4.0, output_dim=512).state_dict()
    for name, weight in theirs.items():
        assert ours[name].std().item() == pytest.approx(weight.std().item(), rel=0.1, abs=1e-6), name


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


def test_a_fixed_grid_is_computed_anew():
    before, after = Clip(_small(), 8, 8, "sincos2d"), Clip(_small(), 16, 16, "sincos2d")
    after.load(before.state_dict())
    torch.testing.assert_close(after.image.trunk.pos_embed[0], sincos2d(4, 16))
