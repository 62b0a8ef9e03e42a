"""What makes logits of features: the scale and the bias of each loss, and the scale's range in each family."""

import math

import pytest
import torch

from clipa.model.clip import Clip
from clipa.spec.model import ImageTower, Model, TextTower


def _clip(loss, family="v1"):
    words = {"v1": ("cls", "clip-bpe"), "v2": ("gap-norm", "bert-wordpiece")}[family]
    model = Model(embed_dim=8, image=ImageTower(patch=4, width=16, layers=1, heads=2, pool=words[0]), family=family,
                  text=TextTower(width=8, layers=1, heads=2, tokenizer=words[1]))  # fmt: skip
    return Clip(model, 8, 8, "learnable", loss)


def test_scale_and_bias_start_as_published():
    plain, siglip = _clip("softmax"), _clip("sigmoid")
    assert plain.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert plain.logit_bias is None
    assert siglip.logit_scale.item() == pytest.approx(math.log(10))
    assert siglip.logit_bias.tolist() == [-10.0]
    output = siglip(torch.zeros(2, 3, 8, 8), torch.ones(2, 8, dtype=torch.long))
    assert output.bias is siglip.logit_bias


def test_the_bias_round_trips_and_another_loss_starts_its_logits_anew():
    trained, again, plain = _clip("sigmoid"), _clip("sigmoid"), _clip("softmax")
    torch.nn.init.constant_(trained.logit_bias, -4.0)
    torch.nn.init.constant_(trained.logit_scale, 3.0)
    again.load(trained.state_dict())
    assert again.logit_bias.item() == -4.0
    assert again.logit_scale.item() == 3.0
    plain.load(trained.state_dict())
    assert plain.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    fresh = _clip("sigmoid")
    fresh.load(plain.state_dict())
    assert fresh.logit_bias.item() == -10.0
    assert fresh.logit_scale.item() == pytest.approx(math.log(10))


@pytest.mark.parametrize(("family", "value", "kept"), [("v1", 9.0, 100.0), ("v1", -1.0, 1.0), ("v2", 5.0, math.e**5)])
def test_the_scale_is_clamped_as_the_family_says(family, value, kept):
    clip = _clip("softmax", family)
    torch.nn.init.constant_(clip.logit_scale, value)
    clip.clamp()
    assert clip.logit_scale.exp().item() == pytest.approx(kept)
