"""The learning rate and the decay masks, against open_clip's own code and the published rules."""

import importlib.util
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip_train.scheduler import cosine_lr

from clipa.model.clip import Clip
from clipa.model.open_clip_names import names
from clipa.spec.family import FAMILIES
from clipa.spec.job import Optim
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.train.optim import decayed, lr_at, make_optimizer


@given(st.integers(1, 500), st.data())
def test_the_rate_never_leaves_its_bounds_and_turns_once(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    rates = [lr_at(step, steps, warmup, 2.0) for step in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == 2.0


@given(st.integers(2, 40_000), st.data())
def test_the_rate_is_open_clips(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    step = data.draw(st.integers(0, steps - 1))
    theirs = cosine_lr(SimpleNamespace(param_groups=[]), 2.048e-3, warmup, steps)(step)
    assert lr_at(step, steps, warmup, 2.048e-3) == pytest.approx(theirs, rel=1e-12, abs=1e-18)


def test_the_rate_warms_up_linearly_and_ends_at_zero():
    assert [lr_at(step, 10, 4, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(10, 10, 4, 1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("family", ["v1", "v2", "v2-open_clip"])
def test_the_rate_of_a_family_is_its_sources(family):
    """The JAX code's create_learning_rate_schedule: cosine of the clipped progress, times min(1, step / warm-up)."""
    offset, steps, warmup = FAMILIES[family].warmup_offset, 50, 8
    for step in range(steps):
        progress = max(0.0, (step - warmup) / (steps - warmup))
        jax = 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, step / warmup)
        open_clip = cosine_lr(SimpleNamespace(param_groups=[]), 1.0, warmup, steps)(step)
        assert lr_at(step, steps, warmup, 1.0, offset) == pytest.approx(jax if family == "v2" else open_clip, abs=1e-12)


def _clip(family, loss="softmax"):
    words = {"v1": ("cls", "clip-bpe"), "v2": ("gap-norm", "bert-wordpiece")}[family]
    model = Model(embed_dim=8, image=ImageTower(patch=4, width=16, layers=2, heads=2, pool=words[0]), family=family,
                  text=TextTower(width=8, layers=1, heads=2, tokenizer=words[1]))  # fmt: skip
    return model, Clip(model, 8, 8, "learnable", loss)


def _open_clips_rule():
    """The rule as it stands in the program that trains with open_clip."""
    program = Path(importlib.util.find_spec("open_clip_train").origin).with_name("main.py").read_text()
    (text,) = re.findall(r"exclude = (lambda n, p: .*)", program)
    return eval(text)


_SHAPES = {"image.trunk.cls_token": lambda p: p[0, 0], "image.trunk.pos_embed": lambda p: p[0]}


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_matrices_are_those_that_open_clip_decays(family):
    model, clip = _clip(family)
    excluded, theirs = _open_clips_rule(), names(model)
    found = decayed(clip, "matrices")
    assert set(found) == set(theirs)
    for name, parameter in clip.named_parameters():
        as_theirs = _SHAPES.get(name, lambda p: p)(parameter)
        assert found[name] is not excluded(theirs[name], as_theirs), name
    assert found["text.token_embedding.weight"]
    assert found["image.trunk.pos_embed"]


_FLAX = (
    (r"image\.trunk\.cls_token", "img/cls"),
    (r"image\.trunk\.pos_embed", "img/pos_embedding"),
    (r"image\.trunk\.patch_embed\.proj\.weight", "img/embedding/kernel"),
    (r"text\.token_embedding\.weight", "txt/Embed_0/embedding"),
    (r"text\.positional_embedding", "txt/pos_embedding"),
    (r".*(norm_pre|norm1|norm2|norm|ln_1|ln_2|ln_final)\.weight", "LayerNorm/scale"),
    (r".*(qkv|proj|fc1|fc2|fc_1|fc_2|head|projection)\.weight", "Dense/kernel"),
    (r".*\.bias|logit_bias", "bias"),
    (r"logit_scale", "t"),
)
"""Our parameters by the names that flax gives such layers (big_vision's ViT and text transformer)."""


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_kernels_are_those_that_the_jax_code_decays(family):
    _, clip = _clip(family, "sigmoid")
    for name, is_decayed in decayed(clip, "kernels").items():
        flax = next(theirs for pattern, theirs in _FLAX if re.fullmatch(pattern, name))
        assert is_decayed is bool(re.fullmatch(".*/kernel", flax)), name


@pytest.mark.parametrize("rule", ["matrices", "kernels"])
def test_the_optimizer_decays_what_the_rule_says_and_trains_everything_once(rule):
    _, clip = _clip("v1", "sigmoid")
    optimizer = make_optimizer(clip, Optim(lr=1.0, weight_decay=0.3, decay=rule), torch.device("cpu"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {True: 0.3, False: 0.0}
    assert {n: decay[id(p)] for n, p in clip.named_parameters()} == {
        n: expected[v] for n, v in decayed(clip, rule).items()
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(clip.parameters()))
