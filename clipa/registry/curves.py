"""Accuracy against compute, from the registry: one mark for each pipeline of a group. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from clipa.registry.state import Facts, RunStatus, Score
from clipa.spec.budget import PhaseBudget, phase_budget
from clipa.spec.plan import Plan, Record
from clipa.spec.published import Published

TOKEN_KEYS = ("image.tokens", "image.size", "text.tokens")
"""Keys of a sweep that move a mark along its line; every other key makes a line of its own."""


class Mark(Record, frozen=True, kw_only=True):
    """One pipeline that was scored.

    Attributes:
        series: the line that it belongs to.
        point: what a sweep changed for it.
        image_tokens, text_tokens: of its first training phase, without the class token.
        compute: forward multiply-adds of all its training phases up to the score, as the papers plot them.
        value: the score, in percent; `set`, `size` (pixels) and `metric` say of what.
        run: whose weights were scored.
        published: the authors', not ours.
    """

    series: str
    image_tokens: int
    text_tokens: int
    compute: int
    value: float
    set: str
    size: int
    metric: str
    run: str = ""
    point: tuple[str, ...] = ()
    published: bool = False

    @property
    def label(self) -> str:
        """What is written beside it."""
        return f"{self.image_tokens}"


class Curves(Record, frozen=True, kw_only=True):
    """All marks of some groups, in the order of their lines and compute, and the runs that have no score to show."""

    marks: tuple[Mark, ...]
    left_out: tuple[str, ...] = ()


def curves(statuses: Sequence[RunStatus], facts: Mapping[str, Facts], wanted: str = "") -> Curves:
    """The marks of these runs.

    Args:
        statuses: the runs of the groups, oldest first.
        facts: of all runs, by id: starting weights may come from other groups.
        wanted: the evaluation set to plot; empty: the set that the last phase of each pipeline scored last.
    """
    parents = {facts[s.run].plan.parent for s in statuses if s.kind in ("pretrain", "finetune")}
    scored: set[str] = set()
    marks, left_out = [], []
    for ends in (True, False):  # a pipeline's last phase speaks for it; where that has no score, the one before
        for status in reversed(statuses):
            chain = _chain(status.run, facts)
            if scored & {plan.run for plan in chain} or (ends and status.run in parents):
                continue
            score = _score(status.scores, wanted)
            if score is not None and (mark := _mark(chain, score)) is not None:
                marks.append(mark)
                scored |= {plan.run for plan in chain}
    for status in statuses:
        if status.run not in scored:
            left_out.append(f"{status.run} {status.state.value}")
    several = {plan.recipe for plan in (facts[s.run].plan for s in statuses)}
    named = [_named(mark, facts[mark.run].plan, len(several) > 1) for mark in marks]
    return Curves(marks=tuple(sorted(named, key=lambda m: (m.series, m.compute))), left_out=tuple(left_out))


def _chain(run: str, facts: Mapping[str, Facts]) -> list[Plan]:
    """The plans that led to a run, the first one first, itself last."""
    chain: list[Plan] = []
    here = run
    while here in facts and all(plan.run != here for plan in chain):
        plan = facts[here].plan
        chain.insert(0, plan)
        here = plan.parent or (plan.init.run if plan.init else "")
    return chain


def _score(scores: Sequence[Score], wanted: str) -> Score | None:
    """The newest score of the wanted set; at several sizes the largest."""
    named = [s for s in scores if not wanted or s.set == wanted]
    if not named:
        return None
    step = max(s.step for s in named)
    last = [s for s in named if s.step == step]
    return max((s for s in last if s.set == last[-1].set), key=lambda s: s.size)


def _mark(chain: Sequence[Plan], score: Score) -> Mark | None:
    budgets = [b for b in (phase_budget(plan.model, plan.settings) for plan in chain) if b is not None]
    if not budgets:
        return None
    return Mark(
        series=chain[-1].recipe,
        image_tokens=budgets[0].image_tokens,
        text_tokens=budgets[0].text_tokens,
        compute=sum(b.compute for b in budgets),
        value=score.value,
        set=score.set,
        size=score.size,
        metric=score.metric,
        run=chain[-1].run,
        point=chain[-1].point,
    )


def _named(mark: Mark, plan: Plan, several: bool) -> Mark:
    """The mark with the name of its line: the recipe, and what the sweep changed besides tokens."""
    others = [word for word in plan.point if not word.partition("=")[0].endswith(TOKEN_KEYS)]
    shown = [word.removeprefix("phases.") for word in others]
    words = [plan.recipe] if several or not shown else []
    return msgspec.structs.replace(mark, series=", ".join([*words, *shown]))


def reported(recipe: str, results: Iterable[tuple[Published, PhaseBudget]]) -> list[Mark]:
    """The authors' own marks of a recipe, where they plot one: each result with the budget of its first phase."""
    return [
        Mark(
            series=f"{recipe}, published",
            image_tokens=budget.image_tokens,
            text_tokens=budget.text_tokens,
            compute=round(said.compute),
            value=said.top1,
            set="imagenet-val",
            size=0,
            metric="top1",
            point=said.set,
            published=True,
        )
        for said, budget in results
        if said.compute and said.top1 is not None
    ]
