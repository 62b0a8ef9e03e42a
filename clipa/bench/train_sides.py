"""Who takes part in `clipa bench train`: clipa's own learner, and open_clip. The one door to open_clip's trainer.

Every side is a function that takes one optimizer step. open_clip's is the body of `open_clip_train.train`'s
`train_one_epoch`, with its own model, loss, autocast, gradient scaler and optimizer; its defaults are read from its own
argument parser. It gets the float images that its loader would have made, in the same pinned memory as our bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from clipa.attempt.devices import Ranks
from clipa.bench.train_case import Size, Work
from clipa.data.pipeline import Batch, normalise
from clipa.errors import MissingPart
from clipa.model import open_clip_config
from clipa.model.open_clip_names import to_open_clip
from clipa.model.torchvision_guard import import_torchvision
from clipa.spec.card import card_of
from clipa.train.learner import Learner


class Contender(NamedTuple):
    """One side. `step` takes the number of a step and returns its loss, on the device."""

    name: str
    how: str
    step: Callable[[int], torch.Tensor]


class Flags(NamedTuple):
    """How open_clip is called: what differs between its defaults and its best."""

    name: str
    words: tuple[str, ...]


DEFAULTS = Flags("open_clip, defaults", ())
SAME = {
    "bf16": Flags("open_clip, our precision", ("--precision=amp_bf16",)),
    "fp32": Flags("open_clip, our precision", ("--precision=fp32",)),
}
BEST = Flags("open_clip, best flags", ("--precision=amp_bf16", "--local-loss", "--gather-with-grad", "--torchcompile"))


def ours(work: Work, size: Size, batches: list[Batch], name: str = "clipa") -> tuple[Contender, Learner]:
    """The whole step of clipa: colours, every loss checked, the norm of the gradients."""
    learner = Learner(work.plan(size), Ranks(0, 1, work.device))

    def step(number: int) -> torch.Tensor:
        outcome = learner.learn(batches[number % len(batches)], number)
        return torch.as_tensor(outcome.loss)

    phase = learner.phase
    is_compiled = phase.compile == "on" or (phase.compile == "auto" and work.device.type == "cuda")
    more = (["compiled"] if is_compiled else []) + ([f"recomputed {phase.recomputed:.0%}"] if phase.recomputed else [])
    return Contender(name, ", ".join([learner.precision, *more]), step), learner


class _OpenClip(NamedTuple):
    """The parts of open_clip that are used."""

    model: Callable[..., nn.Module]
    loss: Callable[..., nn.Module]
    parse: Callable[[list[str]], Any]
    autocast: Callable[..., Any]
    version: str


def open_clip() -> _OpenClip:
    """open_clip, as it is installed here.

    Raises:
        MissingPart: it is not, or without its trainer.
    """
    try:
        import_torchvision()
        import open_clip as package
        from open_clip.loss import ClipLoss
        from open_clip.model import CLIP
        from open_clip_train.params import parse_args
        from open_clip_train.precision import get_autocast
    except ImportError as error:
        raise MissingPart(
            f"the comparison needs open_clip with its trainer, which cannot be imported: {error}",
            hint="pip install 'open_clip_torch>=2.32'",
        ) from error
    return _OpenClip(CLIP, ClipLoss, parse_args, get_autocast, package.__version__)


def theirs(work: Work, size: Size, batches: list[Batch], flags: Flags, start: dict[str, torch.Tensor]) -> Contender:
    """open_clip's step on the same batches, from the same weights, in one pass.

    Args:
        work: the phase.
        size: of the batches.
        batches: uint8, normalised here as open_clip's loader does.
        flags: of its command line.
        start: our weights.

    Raises:
        ConfigError: a model that open_clip cannot compute.
    """
    parts = open_clip()
    asked = parts.parse(["--model=ViT-B-16", *flags.words])
    model = _model(parts, work, size, start)
    original = model.to(work.device).train()
    optimizer = _optimizer(original, work, asked)
    # The arguments of ClipLoss on one process; in several the flags decide how features are gathered.
    loss = parts.loss(local_loss=asked.local_loss, gather_with_grad=asked.gather_with_grad, cache_labels=True)
    model = torch.compile(original) if asked.torchcompile else original  # type: ignore[assignment]
    device = work.device
    autocast = parts.autocast(asked.precision, device_type=device.type)
    scaler = torch.amp.GradScaler(device=device.type) if asked.precision == "amp" else None
    phase = work.phase
    inputs = [(_floats(batch, phase.image.mean, phase.image.std), batch.tokens) for batch in batches]

    def step(number: int) -> torch.Tensor:
        images, tokens = (t.to(device, non_blocking=True) for t in inputs[number % len(inputs)])
        optimizer.zero_grad()
        with autocast():
            losses = loss(**model(images, tokens), output_dict=True)
            total = torch.stack(list(losses.values())).sum()
        if scaler is None:
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        else:
            scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
        with torch.no_grad():
            original.logit_scale.clamp_(0, math.log(100))  # type: ignore[operator]
        return total.detach()

    how = ", ".join([asked.precision, *(["compiled"] if asked.torchcompile else [])])
    return Contender(flags.name, how, step)


def _model(parts: _OpenClip, work: Work, size: Size, start: dict[str, torch.Tensor]) -> nn.Module:
    """open_clip's CLIP of the phase's sizes, with our weights."""
    plan = work.plan(size)
    config = msgspec.to_builtins(open_clip_config.config_of(card_of(plan)).model_cfg)
    budget = work.budget
    if budget.image_tokens < budget.patches:
        config["vision_cfg"]["patch_dropout"] = 1 - budget.image_tokens / budget.patches
    model = parts.model(**config, output_dict=True)
    model.load_state_dict(to_open_clip(plan.model, start))
    return model


def _optimizer(model: nn.Module, work: Work, asked: Any) -> torch.optim.Optimizer:
    """AdamW as open_clip_train.main makes it: two groups, and nothing said about fused or foreach."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in _trained(model):
        is_other = parameter.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))
        (others if is_other else decayed).append(parameter)
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": asked.wd}]
    rate = work.phase.optim.lr / max(1, work.phase.optim.warmup_samples // work.phase.batch)
    return torch.optim.AdamW(groups, lr=rate, betas=(asked.beta1, asked.beta2), eps=asked.eps)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _floats(batch: Batch, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    images = normalise(batch.images, mean, std)
    return images.pin_memory() if batch.images.is_pinned() else images
