"""What learns: the model of one rank, its optimizer, and what one step does to them."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from clipa.attempt.devices import Ranks, autocast, precision_of
from clipa.data.augment import Colours
from clipa.data.pipeline import Batch
from clipa.model.clip import Clip
from clipa.model.loss import LOSSES, ClipOutput
from clipa.reduction.image import PatchSelection
from clipa.spec.card import card_of
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan
from clipa.train.finite import Finite
from clipa.train.gradients import norms
from clipa.train.metrics import StepOutcome
from clipa.train.optim import lr_at, make_optimizer
from clipa.train.passes import backward


class Learner:
    """A model that learns batch by batch. Its weights are random until others are loaded into it, on every rank.

    Args:
        plan: of a training phase.
        ranks: the processes that learn together.
    """

    def __init__(self, plan: Plan, ranks: Ranks) -> None:
        assert isinstance(plan.settings, TrainPhase)
        self.plan = plan
        self.phase = plan.settings
        self.ranks = ranks
        self.precision = precision_of(self.phase.precision, ranks.device)
        torch.manual_seed(plan.seed)
        card = card_of(plan)
        model = Clip(plan.model, card.image_size, card.text_tokens, card.positions, card.loss)
        self.model = model.to(ranks.device)
        self.optimizer = make_optimizer(self.model, self.phase.optim, ranks.device)
        self.finite = Finite(ranks.device)
        self._parallel = DistributedDataParallel(self.model) if ranks.world > 1 else self.model
        self._colours = Colours(self.phase.image, plan.seed, ranks.device)
        self._selection = PatchSelection(self.phase.image, plan.model.image.patch, plan.seed, ranks.device)
        self._loss = LOSSES[self.phase.loss]

    def learn(self, batch: Batch, step: int) -> StepOutcome:
        """One optimizer step, number `step` of 0..steps-1: forward, loss, backward, step.

        The host does not wait for the device. A step that is not finite changes nothing but `finite`, see there.
        """
        lr = lr_at(step, self.plan.steps, self.plan.warmup_steps, self.phase.optim.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(self._forward, self._parallel, self._on_device(batch), self._loss, self.phase.micro_batch)
        mean = self.ranks.total(loss.clone()) / self.ranks.world
        sizes = norms(self.model)
        self.optimizer.found_inf = self.finite.judge(mean, sizes.all, step)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.model.clamp()
        return StepOutcome(mean, sizes, lr, self.model.logit_scale.detach().exp())

    def _forward(self, batch: Batch) -> ClipOutput:
        """Samples through the towers. Every random choice about one is a function of its position, so it can repeat."""
        images, kept = self._colours(batch.images, batch.positions), self._selection(batch.positions)
        with autocast(self.precision, self.ranks.device):
            output: ClipOutput = self._parallel(images, batch.tokens, kept)
        return output

    def _on_device(self, batch: Batch) -> Batch:
        images, tokens, positions = (
            t.to(self.ranks.device, non_blocking=True) for t in (batch.images, batch.tokens, batch.positions)
        )
        return batch._replace(images=images, tokens=tokens, positions=positions)
