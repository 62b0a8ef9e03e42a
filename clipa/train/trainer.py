"""The trainer: a loop that can be read aloud."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch.nn.parallel import DistributedDataParallel

from clipa.attempt.devices import Ranks, autocast, precision_of
from clipa.attempt.process import RESUMABLE, Session
from clipa.attempt.weights import Found, read_tensors, resolve
from clipa.data.augment import Colours
from clipa.data.pinned import open_pinned
from clipa.data.pipeline import Batch, train_batches
from clipa.errors import TrainError
from clipa.eval.evaluator import Evaluator
from clipa.model.clip import Clip
from clipa.model.loss import LOSSES, ClipOutput
from clipa.reduction.image import PatchSelection
from clipa.registry import events
from clipa.spec.card import WEIGHTS_NAME, card_of
from clipa.spec.job import TrainPhase
from clipa.train import checkpoint
from clipa.train.metrics import Meter, StepOutcome
from clipa.train.optim import lr_at, make_optimizer
from clipa.train.passes import backward


class Trainer:
    """One attempt of one training phase, on one rank."""

    def __init__(self, session: Session, ranks: Ranks) -> None:
        assert isinstance(session.plan.settings, TrainPhase)
        self.session = session
        self.plan = session.plan
        self.phase = session.plan.settings
        self.ranks = ranks
        self.precision = precision_of(self.phase.precision, ranks.device)
        torch.manual_seed(self.plan.seed)
        card = card_of(self.plan)
        model = Clip(self.plan.model, card.image_size, card.text_tokens, card.positions, card.loss)
        self.model = model.to(ranks.device)
        self.colours = Colours(self.phase.image, self.plan.seed, ranks.device)
        self.selection = PatchSelection(self.phase.image, self.plan.model.image.patch, self.plan.seed, ranks.device)
        self.loss = LOSSES[self.phase.loss]
        self.optimizer = make_optimizer(self.model, self.phase.optim, ranks.device)
        self._stored = (-1, "")  # step and digest of the newest checkpoint that this attempt has written or verified
        self.step = self._start()
        self.parallel = DistributedDataParallel(self.model) if ranks.world > 1 else self.model
        self.evaluator = Evaluator(session.run, self.plan, session.attempt, ranks, self.precision)
        self.meter = Meter(
            session.run, session.attempt, session.log, self.plan.steps, self.phase.batch, self.phase.log_every_samples
        )
        self._save_due = time.monotonic() + 60 * self.phase.checkpoint.every_minutes

    def train(self) -> int:
        """Train to the end of the phase, or until asked to leave. Returns the exit code."""
        self._announce()
        for batch in self._batches():
            outcome = self._learn(batch)
            self.step += 1
            self.meter.after_step(self.step, outcome)
            if self._every(self.phase.evaluate.every_samples) and self.step < self.plan.steps:
                self._evaluate()
            if self._wants_checkpoint():
                self._save()
            if self.ranks.any(self.ranks.is_first and self.session.stop_file.exists()):
                self._save()
                return RESUMABLE
        self._save()
        self._evaluate()
        return 0

    def _learn(self, batch: Batch) -> StepOutcome:
        """One optimizer step: forward, loss, backward, step."""
        lr = lr_at(self.step, self.plan.steps, self.plan.warmup_steps, self.phase.optim.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(self._forward, self.parallel, self._on_device(batch), self.loss, self.phase.micro_batch)
        mean = self._require_finite(loss)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.optimizer.step()
        self.model.clamp()
        return StepOutcome(mean, norm, lr, self.model.logit_scale.detach().exp())

    def _forward(self, batch: Batch) -> ClipOutput:
        """Samples through the towers. Every random choice about one is a function of its position, so it can repeat."""
        images, kept = self.colours(batch.images, batch.positions), self.selection(batch.positions)
        with autocast(self.precision, self.ranks.device):
            output: ClipOutput = self.parallel(images, batch.tokens, kept)
        return output

    def _on_device(self, batch: Batch) -> Batch:
        images, tokens, positions = (
            t.to(self.ranks.device, non_blocking=True) for t in (batch.images, batch.tokens, batch.positions)
        )
        return batch._replace(images=images, tokens=tokens, positions=positions)

    def _require_finite(self, loss: torch.Tensor) -> float:
        """The loss of the global batch, checked before the optimizer steps; the same answer on every rank."""
        mean = float(self.ranks.total(loss.clone())) / self.ranks.world
        if not math.isfinite(mean):
            raise TrainError(
                f"the loss is {mean} at step {self.step + 1}",
                where=self.plan.run,
                hint="the last checkpoint is kept; lower optim.lr or lengthen optim.warmup_samples",
            )
        return mean

    def _batches(self) -> Iterator[Batch]:
        """The batches that are left, with the time that each was waited for."""
        assert self.plan.data is not None
        if self.ranks.is_first:
            open_pinned(self.session.run, self.plan, self.plan.data.manifest)
        self.ranks.barrier()  # the first rank has written the shards' indices
        shards = open_pinned(self.session.run, self.plan, self.plan.data.manifest)
        batches = train_batches(
            shards,
            self.phase,
            tokenizer_name=self.plan.model.text.tokenizer,
            seed=self.plan.seed,
            rank=self.ranks.rank,
            world=self.ranks.world,
            start_step=self.step,
            stop_step=self.plan.steps,
            workers=self.plan.world.loader_workers,
            pin=self.ranks.device.type == "cuda",
        )
        self.meter.restart_clock()
        began = time.monotonic()
        for batch in batches:
            self.meter.data_waited(time.monotonic() - began)
            yield batch
            began = time.monotonic()

    def _start(self) -> int:
        """The weights to start from: this run's newest checkpoint, else the plan's, else random. Returns the step."""
        run = self.session.run
        if self.ranks.is_first:
            checkpoint.drop_leftovers(run)
        if whole := checkpoint.newest_whole(run):
            state = checkpoint.load(whole.path, self.model, self.optimizer)
            self._stored = (state.step, whole.digest)
            return state.step
        if self.plan.init is not None:
            found = resolve(self.plan, self.plan.init)
            self._record_start(self.plan.init.ref, found)
            self.model.load(read_tensors(found.path / WEIGHTS_NAME))
        return 0

    def _record_start(self, ref: str, found: Found) -> None:
        if self.session.log:
            self.session.log.write(events.Resolved, ref=ref, path=str(found.path), digest=found.digest)

    def _announce(self) -> None:
        if not self.session.log:
            return
        params = sum(p.numel() for p in self.model.parameters())
        self.session.log.write(
            events.Begun,
            step=self.step,
            steps=self.plan.steps,
            device=str(self.ranks.device),
            precision=self.precision,
            processes=self.ranks.world,
            params=params,
        )
        print(
            f"{self.plan.run} attempt {self.session.attempt}: step {self.step} of {self.plan.steps}, "
            f"{params:,} parameters, {self.ranks.world} process(es) on {self.ranks.device}, {self.precision}",
            flush=True,
        )

    def _every(self, samples: int) -> bool:
        return samples > 0 and self.step % max(1, samples // self.phase.batch) == 0

    def _wants_checkpoint(self) -> bool:
        late = self.ranks.is_first and time.monotonic() > self._save_due
        return self._every(self.phase.checkpoint.every_samples) or self.ranks.any(late)

    def _save(self) -> None:
        """Write a checkpoint, unless a whole one of this step is there already."""
        self._save_due = time.monotonic() + 60 * self.phase.checkpoint.every_minutes
        if self.ranks.is_first and self._stored[0] != self.step:
            samples = self.step * self.phase.batch
            saved = checkpoint.save(
                self.session.run, self.plan, self.session.attempt, self.step, samples, self.model, self.optimizer
            )
            if self.session.log:
                self.session.log.write(events.Saved, step=self.step, bytes=saved.bytes, seconds=saved.seconds)
            self._stored = (self.step, saved.digest)
            checkpoint.prune(self.session.run, self.phase.checkpoint.keep, self.plan.steps)
        self.ranks.barrier()
        self.meter.restart_clock()

    def _evaluate(self) -> None:
        """Score the weights as they are now."""
        evaluate = self.phase.evaluate
        if evaluate.sets:
            card = card_of(self.plan, self.step)
            sizes = evaluate.sizes or (card.image_size,)
            digest = self._stored[1] if self._stored[0] == self.step else ""  # between checkpoints weights have none
            self.evaluator.score(
                self.model, card, digest, evaluate.sets, sizes, evaluate.batch, self.session.log, evaluate.resize
            )
            self.meter.restart_clock()
