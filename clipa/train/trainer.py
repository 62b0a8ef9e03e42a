"""The trainer: a loop that can be read aloud."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from clipa.attempt.devices import Ranks
from clipa.attempt.process import RESUMABLE, Session
from clipa.attempt.pulse import Pulse
from clipa.attempt.weights import Found, read_tensors, resolve
from clipa.data.faults import Bad
from clipa.data.pinned import Opened, opened
from clipa.data.pipeline import Batch, train_batches
from clipa.eval.evaluator import Evaluator
from clipa.registry import events
from clipa.registry.skips import stretch
from clipa.registry.skips import write as write_skips
from clipa.spec.card import WEIGHTS_NAME, card_of
from clipa.spec.counted import counted
from clipa.spec.job import TrainPhase
from clipa.terminal import say
from clipa.train import checkpoint
from clipa.train.checkpoint import History
from clipa.train.feed import feed
from clipa.train.guard import LOOK_STEPS, Guard
from clipa.train.learner import Learner
from clipa.train.metrics import Counters, Meter, every_steps
from clipa.train.parallel import put
from clipa.train.poll import Poll, Word
from clipa.train.saver import Saver
from clipa.train.trouble import agreed, appeared, find, skip_for
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
        self.meter = Meter(self.plan, self.pulse, session.log, yardstick(self.plan, ranks), ranks.device)
        self._save_due = time.monotonic() + 60 * self.phase.checkpoint.every_minutes
        self.poll = Poll(ranks, self._look)
        self._look_every = min(LOOK_STEPS, every_steps(self.plan))

    def train(self) -> int:
        """Train to the end of the phase, or until asked to leave. Returns the exit code."""
        with self.saver:
            return self._train()

    def _train(self) -> int:
        self._announce()
        if self.step == 0 and "rollback" in (self.phase.on_nan, self.phase.on_spike):
            self._save_now()  # what to go back to before the first checkpoint
        for batch in self._batches():
            outcome = self.learner.learn(batch, self.step)
            self.step += 1
            self.meter.after_step(self.step, outcome)
            self.guard.add(self.step, outcome.loss)
            word = self.poll.ask(self.step)
            is_scored = self._every(self.phase.evaluate.every_samples) and self.step < self.plan.steps
            keeps_best = is_scored and bool(self.phase.checkpoint.keep_best)
            saves = word.save or keeps_best or self._every(self.phase.checkpoint.every_samples)
            if self._went_back(word.bad, saves or word.leave):
                continue
            if is_scored:
                self._evaluate()
            if saves:
                self._save()
            if word.leave:
                self._save_now()
                return RESUMABLE
        self._save_now()
        self._evaluate()
        return 0

    def _batches(self) -> Iterator[Batch]:
        """The batches that are left, with the time that each was waited for."""
        run, plan, attempt, ranks = self.session.run, self.plan, self.session.attempt, self.ranks
        self.pulse.at("opening the data", self.step)
        first = self.step + stretch(self.step, plan.steps, self.skips)[1]
        indexes = self.pulse.beat if ranks.is_first else None
        with opened(run, plan, attempt, first, ranks.barrier, indexes) as data:
            yield from self._batches_of(data)

    def _batches_of(self, data: Opened) -> Iterator[Batch]:
        """Batches until the last step; they begin anew, at other samples, where the training has gone back."""
        shards, *mixed = data.sets
        self.meter.begin(self._counted)
        while self.step < self.plan.steps:
            skips = self.skips
            stop, shift = stretch(self.step, self.plan.steps, skips)
            data.tell(self.step + shift)
            batches = train_batches(
                shards,
                self.phase,
                mixed=mixed,
                tell=self._tell_bad,
                tokenizer_name=self.plan.model.text.tokenizer,
                seed=self.plan.seed,
                rank=self.ranks.rank,
                world=self.ranks.world,
                start_step=self.step + shift,
                stop_step=stop + shift,
                workers=self.plan.world.loader_workers,
                pin=self.ranks.device.type == "cuda",
            )
            self.pulse.at("waiting for the first batch")
            asked: float | None = None
            for batch in feed(batches, self.ranks.device):
                if asked is None:
                    self.meter.go_on()  # the loader has started: no part of the training
                else:
                    self.meter.data_waited(time.monotonic() - asked)
                yield batch
                if self.skips is not skips:
                    break
                data.tell(self.step + shift)
                asked = time.monotonic()

    def _tell_bad(self, bad: Bad) -> None:
        """Samples that could not be used, in a file of this rank's own."""
        log = events.EventWriter(self.session.run, self.session.attempt, f"data-{self.ranks.rank}")
        log.write(events.BadData, rank=self.ranks.rank, **bad._asdict())
        with contextlib.suppress(OSError):  # a bad disk: the next one says it all again
            log.close(0.0)

    def _start(self) -> int:
        """The weights to start from: this run's newest checkpoint, else the plan's, else random. Returns the step."""
        run = self.session.run
        self.skips = agreed(self.ranks, run)
        self.guard = Guard()
        self._counted = Counters()
        if self.ranks.is_first:
            checkpoint.drop_leftovers(run)
        whole = checkpoint.newest_whole(run) if self.ranks.is_first else None
        # One rank reads every byte to verify it, the others take its word.
        (step,) = self.ranks.greatest((checkpoint.step_of(whole) if whole else -1,))
        if step >= 0:
            self._load(run.step_dir(step))
            self.saver.stored = (step, whole.digest if whole else "")
            return step
        if self.plan.init is not None:
            found = resolve(self.plan, self.plan.init)
            self._record_start(self.plan.init.ref, found)
            put(self.learner.model, self.learner.model.fitted(read_tensors(found.path / WEIGHTS_NAME)))
        return 0

    def _load(self, folder: Path) -> None:
        """Everything as it was after the step of a checkpoint."""
        state = checkpoint.load(folder, self.plan, self.learner.model, self.learner.optimizer)
        self.guard = Guard(state.losses)
        self._counted = state.counters

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
        say(
            f"{self.plan.run} attempt {self.session.attempt}: step {self.step} of {self.plan.steps}, "
            f"{params:,} parameters, {self.ranks.world} process(es) on {self.ranks.device}, {self.learner.precision}",
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

    def _went_back(self, bad: int, saves: bool) -> bool:
        """Look for trouble, do what the recipe says about it, and say whether the step is an older one now.

        A step that was not finite was not applied, and nothing is saved after it. All ranks look at the same steps and
        at the same numbers.
        """
        looks = saves or self.step % self._look_every == 0 or self.step == self.plan.steps
        if not (looks or bad):
            return False
        trouble = find(self.phase, bad or self.learner.finite.read(), self.guard)
        if trouble is None:
            return False
        if trouble.action == "note":
            self._note(trouble.what)
            return False
        self.saver.wait()
        to = self.saver.stored[0]
        skip = skip_for(trouble, to, self.skips, self.plan.run)
        if self.ranks.is_first:
            checkpoint.require_newest(self.session.run, self.session.attempt)
            write_skips(self.session.run, (*self.skips, skip))
        if self.session.log:
            self.session.log.write(events.WentBack, step=trouble.step, to=to, why=trouble.what)
        self._note(f"{trouble.what}: back to step {to}, and past the samples of {counted(skip.steps, 'step')}")
        self._return_to(to)
        self.skips = (*self.skips, skip)
        return True

    def _return_to(self, step: int) -> None:
        """Model, optimizer and all that looks at them as they were after a step that has a checkpoint."""
        self.pulse.at(f"going back to step {step}")
        self.learner.optimizer.state.clear()
        self._load(appeared(self.session.run, step))
        self.learner.finite.reset()
        self.poll = Poll(self.ranks, self._look)
        self.step = step
        self.ranks.barrier()
        self.meter.begin(self._counted)

    def _note(self, text: str) -> None:
        if self.session.log:
            self.session.log.write(events.Noted, text=text)
            say(text)

    def _save(self) -> None:
        """Begin to write a checkpoint, unless a whole one of this step is there already."""
        self._save_due = time.monotonic() + 60 * self.phase.checkpoint.every_minutes
        self.pulse.at("saving")
        with self.meter.apart():
            history = History(self.guard.history, self.meter.counters)
            self.saver.save(self.step, self.learner.model, self.learner.optimizer, history)
        self.pulse.at("")

    def _save_now(self) -> None:
        """Have a whole checkpoint of this step."""
        self._save()
        self.pulse.at("saving")
        with self.meter.apart():
            self.saver.finish(self.step)
        self.pulse.at("")

    def _evaluate(self) -> None:
        """Score the weights as they are now."""
        evaluate = self.phase.evaluate
        if not evaluate.sets:
            return
        card = card_of(self.plan, self.step)
        # Between checkpoints weights have no digest.
        digest = self.saver.stored[1] if self.saver.stored[0] == self.step else ""
        with self.meter.apart():
            self.evaluator.score(
                self.learner.unshared(),
                card,
                digest,
                evaluate.sets,
                evaluate.sizes or (card.image_size,),
                evaluate.batch,
                self.session.log,
                evaluate.resize,
            )
