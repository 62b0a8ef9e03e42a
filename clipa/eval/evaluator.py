"""Scores weights on the sets of a plan, and records each result once, as one file and one event."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import clipa
from clipa.attempt.devices import Ranks
from clipa.attempt.pulse import Pulse
from clipa.data.scored import View
from clipa.errors import ClipaError, DataError, StorageError
from clipa.eval.job import Bench, Job, Outcome
from clipa.eval.probe import probe
from clipa.eval.prompts import settled
from clipa.eval.retrieval import associate, retrieve
from clipa.eval.suite import Suite, members, summed_up, written
from clipa.eval.zeroshot import classify, multilabel
from clipa.model.clip import Clip
from clipa.registry import events
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec.card import Card
from clipa.spec.evalset import MAIN_METRICS, Task, label
from clipa.spec.family import FAMILIES
from clipa.spec.job import Resize
from clipa.spec.model import Model
from clipa.spec.plan import Plan, Record
from clipa.terminal import say

SCHEMA = 2
_TASKS: dict[Task, Callable[[Job], Outcome]] = {
    "classification": classify,
    "multilabel": multilabel,
    "retrieval": retrieve,
    "association": associate,
    "probe": probe,
}


class Result(Record, frozen=True, kw_only=True):
    """One evaluation, as it is written. Metrics in percent; `metric` names the one that stands for the set.

    `weights` is the SHA-256 of the weights' file (empty between checkpoints), `run` and `step` where they come from,
    `clipa` and `revision` the code that scored them; `chosen` is what a probe settled on,
    `without_images` the classes of which the set has no image.
    """

    set: str
    task: Task
    samples: int
    metric: str
    value: float
    metrics: dict[str, float]
    model: Model
    text_tokens: int
    weights: str
    run: str
    step: int
    preprocessing: View
    manifest: str
    train_manifest: str
    chosen: dict[str, float]
    without_images: tuple[str, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    canonical: bool
    precision: str
    seconds: float
    clipa: str
    revision: str = ""
    schema: int = SCHEMA


class Evaluator:
    """Scores a model on the evaluation sets of a plan. Results that are there already are not made again."""

    def __init__(self, run: RunDir, plan: Plan, attempt: int, ranks: Ranks, precision: str, pulse: Pulse) -> None:
        self.run = run
        self.plan = plan
        self.attempt = attempt
        self.ranks = ranks
        self.precision = precision
        self.pulse = pulse

    def score(
        self, model: Clip, card: Card, digest: str, sets: Sequence[str], sizes: Sequence[int], batch: int,
        log: events.EventWriter | None, resize: Resize = "shorter", stop_file: Path | None = None,
    ) -> bool:  # fmt: skip
        """Score every set at every image size (pixels); rank 0 writes the results and the events.

        Returns:
            Whether all is done. False: `stop_file` was there between two sets; the next call goes on.

        Raises:
            DataError: a set that cannot be scored as it is.
            StorageError: its bytes cannot be read.
        """
        was_training = model.training
        model.eval()
        failed: list[tuple[str, ClipaError]] = []
        bench = Bench(self.run, self.plan, self.ranks, self.precision, model, card, digest, batch, self.pulse)
        for name in sets:
            names = members(self.plan.evals, name)
            for size in sizes:
                for member in names:
                    if self.ranks.any(self.ranks.is_first and stop_file is not None and stop_file.exists()):
                        return False
                    job = Job(member, self.plan.evals[member], _view(card, size, resize), bench)
                    try:
                        self._score_one(job, log)
                    except (DataError, StorageError) as error:
                        # Ranks that wait for one another in the same set cannot leave it one by one.
                        if self.ranks.world > 1 or len(names) == len(sets) == len(sizes) == 1:
                            raise
                        failed.append((f"{member} at {size} px", error))
                        say(f"{member} at {size} px cannot be scored: {error.what}")
                if log is not None and names != [name]:
                    self._sum_up(name, names, bench, size, log)
        model.train(was_training)
        self.pulse.at("")
        if failed:
            reasons = "; ".join(f"{name}: {error.what}" for name, error in failed)
            first = failed[0][1]
            raise type(first)(
                f"the other sets are scored, these cannot be: {reasons}",
                where=first.where, allowed=first.allowed, hint=first.hint,
            )  # fmt: skip
        return True

    def _score_one(self, job: Job, log: events.EventWriter | None) -> None:
        card, digest = job.bench.card, job.bench.digest
        done = self.ranks.is_first and written(self.run, card.step, job.name, job.view.size, digest) is not None
        if self.ranks.any(done):
            return
        self.pulse.at(f"evaluating {job.name}")
        result = self._one(job)
        if log is not None:
            self._record(result, log)

    def _sum_up(self, suite: str, names: Sequence[str], bench: Bench, size: int, log: events.EventWriter) -> None:
        """Write a suite's averages; an event only where none of its sets is missing."""
        card = bench.card
        found = summed_up(bench, suite, names, size)
        file = self.run.eval_file(self.attempt, card.step, suite, size)
        write_whole(file, msgspec.json.format(msgspec.json.encode(found), indent=2))
        say(_summary(found))
        if not found.missing:
            log.write(
                events.Scored,
                step=card.step,
                set=suite,
                size=size,
                samples=sum(member.samples for member in found.members.values()),
                task=found.task,
                metric="average",
                value=found.averages["average"],
                metrics=found.averages,
                seconds=0.0,
            )

    def _one(self, job: Job) -> Result:
        began = time.monotonic()
        outcome = _TASKS[job.data.task](job)
        card, data, prompts = job.bench.card, job.data, settled(job.data)
        metric = data.metric or MAIN_METRICS[data.task]
        if metric not in outcome.metrics:
            raise DataError(
                f"{metric} cannot be computed of this set", where=f"evaluation set {job.name}",
                allowed=", ".join(outcome.metrics), hint="top5 needs five classes; give another metric in the recipe",
            )  # fmt: skip
        return Result(
            set=job.name,
            task=data.task,
            samples=outcome.samples,
            metric=metric,
            value=outcome.metrics[metric],
            metrics=dict(outcome.metrics),
            model=card.model,
            text_tokens=card.text_tokens,
            weights=job.bench.digest,
            run=card.run,
            step=card.step,
            preprocessing=job.view,
            manifest=data.data.manifest,
            train_manifest=data.train.manifest if data.train else "",
            chosen=dict(outcome.chosen),
            without_images=tuple(prompts.classes[number] for number in outcome.empty),
            classes=prompts.classes,
            templates=prompts.templates,
            canonical=prompts.canonical,
            precision=self.precision,
            seconds=time.monotonic() - began,
            clipa=clipa.__version__,
            revision=self.plan.code.revision,
        )

    def _record(self, result: Result, log: events.EventWriter) -> None:
        size = result.preprocessing.size
        file = self.run.eval_file(self.attempt, result.step, result.set, size)
        write_whole(file, msgspec.json.format(msgspec.json.encode(result), indent=2))
        log.write(
            events.Scored,
            step=result.step,
            set=result.set,
            size=size,
            samples=result.samples,
            task=result.task,
            metric=result.metric,
            value=result.value,
            metrics=result.metrics,
            seconds=result.seconds,
        )
        say(
            f"{result.task} {result.set} at {size} px: {described(result.metrics, result.metric)} "
            f"of {result.samples} images, {result.seconds:.1f} s",
        )
        if result.without_images:
            say(
                f"  {len(result.without_images)} classes have no image: {', '.join(result.without_images[:5])}",
            )


def _summary(found: Suite) -> str:
    lines = [f"suite {found.set} at {found.size} px: {len(found.members)} sets"]
    if found.averages:
        lines[0] += ", " + described(found.averages, next(iter(found.averages)))
    if found.missing:
        lines.append(f"  no average over all: {len(found.missing)} sets are missing: {', '.join(found.missing)}")
    if found.other_sizes:
        lines.append(f"  not as many samples as DataComp's own copy: {', '.join(found.other_sizes)}")
    return "\n".join(lines)


def described(metrics: dict[str, float], main: str) -> str:
    """All metrics in a line, the main one first."""
    names = [main, *(name for name in metrics if name != main)]
    return ", ".join(f"{label(name)} {metrics[name]:.2f} %" for name in names)


def _view(card: Card, size: int, resize: Resize) -> View:
    return View(
        size=size,
        resize=resize,
        interpolation=FAMILIES[card.model.family].interpolation,
        mean=card.mean,
        std=card.std,
    )
