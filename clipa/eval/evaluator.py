"""Scores weights on the sets of a plan, and records each result once, as one file and one event."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

import clipa
from clipa.attempt.devices import Ranks
from clipa.data.scored import View
from clipa.errors import DataError
from clipa.eval.job import Bench, Job, Outcome
from clipa.eval.prompts import settled
from clipa.eval.retrieval import associate, retrieve
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

SCHEMA = 2
_TASKS: dict[Task, Callable[[Job], Outcome]] = {
    "classification": classify,
    "multilabel": multilabel,
    "retrieval": retrieve,
    "association": associate,
}


class Result(Record, frozen=True, kw_only=True):
    """One evaluation, as it is written. Metrics in percent; `metric` names the one that stands for the set.

    `weights` is the SHA-256 of the weights' file (empty between checkpoints), `run` and `step` where they come from,
    `clipa` and `revision` the code that scored them.
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
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    canonical: bool
    precision: str
    seconds: float
    clipa: str
    revision: str = ""
    schema: int = SCHEMA


class _Written(Record, frozen=True, kw_only=True):
    """What is read back of a result, to know whether it is of the same weights."""

    weights: str = ""


class Evaluator:
    """Scores a model on the evaluation sets of a plan. Results that are there already are not made again."""

    def __init__(self, run: RunDir, plan: Plan, attempt: int, ranks: Ranks, precision: str) -> None:
        self.run = run
        self.plan = plan
        self.attempt = attempt
        self.ranks = ranks
        self.precision = precision

    def score(
        self, model: Clip, card: Card, digest: str, sets: Sequence[str], sizes: Sequence[int], batch: int,
        log: events.EventWriter | None, resize: Resize = "shorter",
    ) -> None:  # fmt: skip
        """Score every set at every image size (pixels); rank 0 writes the results and the events.

        Raises:
            DataError: a set that cannot be scored as it is.
            StorageError: its bytes cannot be read.
        """
        was_training = model.training
        model.eval()
        bench = Bench(self.run, self.plan, self.ranks, self.precision, model, card, digest, batch)
        for name in sets:
            for size in sizes:
                if self.ranks.any(self.ranks.is_first and self._is_done(card.step, name, size, digest)):
                    continue
                job = Job(name, self.plan.evals[name], _view(card, size, resize), bench)
                result = self._one(job)
                if log is not None:
                    self._record(result, log)
        model.train(was_training)

    def _is_done(self, step: int, name: str, size: int, digest: str) -> bool:
        for path in self.run.evals.glob(f"*-{step:09d}-{name}-{size}.json"):
            try:
                if msgspec.json.decode(path.read_bytes(), type=_Written).weights == digest:
                    return True
            except (OSError, msgspec.MsgspecError):
                continue
        return False

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
        print(
            f"{result.task} {result.set} at {size} px: {described(result.metrics, result.metric)} "
            f"of {result.samples} images, {result.seconds:.1f} s",
            flush=True,
        )


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
