"""The trainer: a loop that can be read aloud."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from clipa.attempt.devices import Ranks
from clipa.attempt.process import RESUMABLE, Session
from clipa.attempt.pulse import Pulse
from clipa.attempt.weights import Found, read_tensors, resolve
from clipa.data.faults import Bad
from clipa.data.pinned import open_pinned, streamed
from clipa.data.pipeline import Batch, ShardSet, train_batches
from clipa.errors import TrainError
from clipa.eval.evaluator import Evaluator
from clipa.registry import events
from clipa.spec.card import WEIGHTS_NAME, card_of
from clipa.spec.job import TrainPhase
from clipa.train import checkpoint
from clipa.train.feed import feed
from clipa.train.learner import Learner
from clipa.train.metrics import Meter
from clipa.train.parallel import put
from clipa.train.poll import Poll, Word
from clipa.train.saver import Saver
from clipa.train.yardstick import yardstick


class Trainer:
    """One attempt of one training phase, on one rank."""

    def __init__(self, session: Session, ranks: Ranks) -> None:
        assert isinstance(session.plan.settings, TrainPhase)
        self.session = session
        self.plan = session.plan
        self.phase = session.plan.settings
        self.ranks = ranks
        self.pulse = Pulse(session.run, session.attempt, writes=session.log is not None)
        self.learner = Learner(self.plan, ranks)
        self.saver = Saver(session, ranks)
        self.step = self._start()
        self.evaluator = Evaluator(session.run, self.plan, session.attempt, ranks, self.learner.precision, self.pulse)
        self.meter = Meter(self.plan, self.pulse, session.log, yardstick(self.plan, ranks))
        self._save_due = time.monotonic() + 60 * self.phase.checkpoint.every_minutes
        self.poll = Poll(ranks, self._look)

    def train(self) -> int:
        """Train to the end of the phase, or until asked to leave. Returns the exit code."""
        with self.saver:
            return self._train()

    def _train(self) -> int:
        self._announce()
        for batch in self._batches():
            outcome = self.learner.learn(batch, self.step)
            self.step += 1
            self.meter.after_step(self.step, outcome)
            is_scored = self._every(self.phase.evaluate.every_samples) and self.step < self.plan.steps
            if is_scored:
                self._evaluate()
            word = self.poll.ask(self.step)
            self._require_finite(word.bad)
            keeps_best = is_scored and bool(self.phase.checkpoint.keep_best)
            if word.save or keeps_best or self._every(self.phase.checkpoint.every_samples):
                self._save()
            if word.leave:
                self._save_now()
                return RESUMABLE
        self._save_now()
        self._evaluate()
        return 0

    def _batches(self) -> Iterator[Batch]:
        """The batches that are left, with the time that each was waited for."""
        assert self.plan.data is not None
        if self.plan.data.access == "stream":
            self.pulse.at("waiting for the first shards", self.step)
            meet = self.ranks.barrier
            with streamed(self.session.run, self.plan, self.session.attempt, self.step, meet) as stream:
                yield from self._batches_of(stream.shards, stream.tell)
            return
        self.pulse.at("indexing the data", self.step)
        digests = [data.manifest for data in (self.plan.data, *self.plan.mixed)]
        if self.ranks.is_first:
            for digest in digests:
                open_pinned(self.session.run, self.plan, digest, self.pulse.beat)
        self.ranks.barrier()  # the first rank has written the shards' indices
        shards, *mixed = (open_pinned(self.session.run, self.plan, digest) for digest in digests)
        yield from self._batches_of(shards, lambda _: None, mixed)

    def _batches_of(
        self, shards: ShardSet, tell: Callable[[int], None], mixed: Sequence[ShardSet] = ()
    ) -> Iterator[Batch]:
        batches = train_batches(
            shards,
            self.phase,
            mixed=mixed,
            tell=self._tell_bad,
            tokenizer_name=self.plan.model.text.tokenizer,
            seed=self.plan.seed,
            rank=self.ranks.rank,
            world=self.ranks.world,
            start_step=self.step,
            stop_step=self.plan.steps,
            workers=self.plan.world.loader_workers,
            pin=self.ranks.device.type == "cuda",
        )
        self.pulse.at("waiting for the first batch")
        self.meter.restart_clock()
        began = time.monotonic()
        for batch in feed(batches, self.ranks.device):
            self.meter.data_waited(time.monotonic() - began)
            yield batch
            tell(self.step)
            began = time.monotonic()

    def _tell_bad(self, bad: Bad) -> None:
        """Samples that could not be used, in a file of this rank's own."""
        log = events.EventWriter(self.session.run, self.session.attempt, f"data-{self.ranks.rank}")
        log.write(events.BadData, rank=self.ranks.rank, **bad._asdict())
        log.close()

    def _start(self) -> int:
        """The weights to start from: this run's newest checkpoint, else the plan's, else random. Returns the step."""
        run = self.session.run
        if self.ranks.is_first:
            checkpoint.drop_leftovers(run)
        whole = checkpoint.newest_whole(run) if self.ranks.is_first else None
        # One rank reads every byte to verify it, the others take its word.
        (step,) = self.ranks.greatest((checkpoint.step_of(whole) if whole else -1,))
        if step >= 0:
            checkpoint.load(run.step_dir(step), self.learner.model, self.learner.optimizer)
            self.saver.stored = (step, whole.digest if whole else "")
            return step
        if self.plan.init is not None:
            found = resolve(self.plan, self.plan.init)
            self._record_start(self.plan.init.ref, found)
            put(self.learner.model, self.learner.model.fitted(read_tensors(found.path / WEIGHTS_NAME)))
        return 0

    def _record_start(self, ref: str, found: Found) -> None:
        if self.session.log:
            self.session.log.write(events.Resolved, ref=ref, path=str(found.path), digest=found.digest)

    def _announce(self) -> None:
        if not self.session.log:
            return
        params = sum(p.numel() for p in self.learner.model.parameters())
        self.session.log.write(
            events.Begun,
            step=self.step,
            steps=self.plan.steps,
            device=str(self.ranks.device),
            precision=self.learner.precision,
            processes=self.ranks.world,
            params=params,
        )
        print(
            f"{self.plan.run} attempt {self.session.attempt}: step {self.step} of {self.plan.steps}, "
            f"{params:,} parameters, {self.ranks.world} process(es) on {self.ranks.device}, {self.learner.precision}",
            flush=True,
        )

    def _every(self, samples: int) -> bool:
        return samples > 0 and self.step % max(1, samples // self.phase.batch) == 0

    def _look(self) -> Word:
        """What this rank sees by itself. Files and clocks are the first one's to see."""
        first = self.ranks.is_first
        return Word(
            leave=first and self.session.stop_file.exists(),
            save=first and time.monotonic() > self._save_due,
            bad=self.learner.finite.seen(),
        )

    def _require_finite(self, bad: int) -> None:
        """Stop where a step was not finite: it was not applied, and nothing is saved after it."""
        if bad:
            raise TrainError(
                f"the loss or its gradient is not finite at step {bad}",
                where=self.plan.run,
                hint="the last checkpoint is kept; lower optim.lr or lengthen optim.warmup_samples",
            )

    def _save(self) -> None:
        """Begin to write a checkpoint, unless a whole one of this step is there already."""
        self._require_finite(self.learner.finite.read())
        self._save_due = time.monotonic() + 60 * self.phase.checkpoint.every_minutes
        self.pulse.at("saving")
        self.saver.save(self.step, self.learner.model, self.learner.optimizer)
        self.pulse.at("")
        self.meter.restart_clock()

    def _save_now(self) -> None:
        """Have a whole checkpoint of this step."""
        self._save()
        self.pulse.at("saving")
        self.saver.finish(self.step)
        self.pulse.at("")

    def _evaluate(self) -> None:
        """Score the weights as they are now."""
        evaluate = self.phase.evaluate
        if evaluate.sets:
            card = card_of(self.plan, self.step)
            sizes = evaluate.sizes or (card.image_size,)
            digest = (
                self.saver.stored[1] if self.saver.stored[0] == self.step else ""
            )  # between checkpoints weights have none
            self.evaluator.score(
                self.learner.unshared(),
                card,
                digest,
                evaluate.sets,
                sizes,
                evaluate.batch,
                self.session.log,
                evaluate.resize,
            )
            self.meter.restart_clock()
