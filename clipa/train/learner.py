"""What learns: the model of one rank, its optimizer, and what one step does to them."""

from __future__ import annotations

import torch

from clipa.attempt.devices import Ranks, autocast, precision_of
from clipa.data.augment import Colours
from clipa.data.pipeline import Batch
from clipa.model.clip import Clip
from clipa.model.loss import LOSSES, ClipOutput
from clipa.reduction.image import PatchSelection, decoded_size
from clipa.spec.card import card_of
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan
from clipa.train.feed import moved
from clipa.train.finite import Finite
from clipa.train.gradients import norms
from clipa.train.metrics import StepOutcome
from clipa.train.optim import lr_at, make_optimizer
from clipa.train.parallel import fit_out, is_shared_out, spread, whole
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
        # The convolution of the patches has one shape a phase: cuDNN tries which way is quickest, as in open_clip. What
        # it finds may differ from attempt to attempt.
        torch.backends.cudnn.benchmark = not self.phase.deterministic
        if self.phase.deterministic:
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(plan.seed)
        self.model = self._blank_model().to(ranks.device)
        fit_out(self.model, self.phase, ranks.device)
        self._parallel = spread(self.model, self.phase, ranks, self.precision)
        self.optimizer = make_optimizer(self.model, self.phase.optim, ranks.device)
        self.finite = Finite(ranks.device)
        self._colours = Colours(self.phase.image, plan.seed, ranks.device)
        self._selection = PatchSelection(self.phase.image, plan.model.image.patch, plan.seed, ranks.device)
        self._loss = LOSSES[self.phase.loss]
        if ranks.world > 1:
            self._warm_up()

    def learn(self, batch: Batch, step: int) -> StepOutcome:
        """One optimizer step, number `step` of 0..steps-1: forward, loss, backward, step.

        The host does not wait for the device. A step that is not finite changes nothing but `finite`, see there.
        """
        offset = self.plan.model.traits.warmup_offset
        lr = lr_at(step, self.plan.steps, self.plan.warmup_steps, self.phase.optim.lr, offset)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(
            self._forward, self._parallel, moved(batch, self.ranks.device), self._loss, self.phase.micro_batch
        )
        mean = self.ranks.total(loss.clone()) / self.ranks.world
        sizes = norms(self.model)
        self.optimizer.found_inf = self.finite.judge(mean, sizes.all, step)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.model.clamp()
        return StepOutcome(mean, sizes, lr, whole(self.model.logit_scale.detach()).exp())

    def unshared(self) -> Clip:
        """The model with all its weights on this rank: itself, or a copy where they are shared out."""
        if not is_shared_out(self.model):
            return self.model
        copy = self._blank_model().to(self.ranks.device)
        own = copy.state_dict()
        for name, weight in self.model.state_dict().items():
            own[name].copy_(whole(weight))  # one at a time: there is room for the model twice, not three times
        return copy

    def _blank_model(self) -> Clip:
        card = card_of(self.plan)
        return Clip(self.plan.model, card.image_size, card.text_tokens, card.positions, card.loss)

    def _warm_up(self) -> None:
        """A step whose gradients are thrown away.

        After its first backward pass DDP sorts its buckets anew, in the order in which gradients came. The order
        within a bucket decides in which order three or more ranks are added up: a resumed run would differ from one
        that went on in the last bit of its first step. So both have their first backward pass here.
        """
        share = self.phase.batch // self.ranks.world
        rows = min(self.phase.micro_batch or share, share)
        size = decoded_size(self.phase.image)
        blank = Batch(
            torch.zeros((rows, 3, size, size), dtype=torch.uint8),
            torch.zeros((rows, self.phase.text.tokens), dtype=torch.int64),
            torch.arange(rows),
        )
        backward(self._forward, self._parallel, moved(blank, self.ranks.device), self._loss, 0)
        self.optimizer.zero_grad(set_to_none=True)

    def _forward(self, batch: Batch) -> ClipOutput:
        """Samples through the towers. Every random choice about one is a function of its position, so it can repeat."""
        images, kept = self._colours(batch.images, batch.positions), self._selection(batch.positions)
        with autocast(self.precision, self.ranks.device):
            output: ClipOutput = self._parallel(images, batch.tokens, kept)
        return output
