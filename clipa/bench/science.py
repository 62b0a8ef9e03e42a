"""Accuracy against image tokens, for a small and a large model: `python -m clipa.bench.science [--seeds 0 1 2]`.

Both recipes are trained at every number of image tokens with the same FLOPs in pre-training, so fewer tokens see more
samples, then fine-tuned alike on all tokens. Runs are those of `clipa submit pipeline`, trained one after the other in
this process: starting processes would take longer than training. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import msgspec
import torch

from clipa.attempt.devices import Ranks
from clipa.attempt.process import Session
from clipa.errors import ClipaError, told
from clipa.host.supervisor import close
from clipa.launch.create import create
from clipa.launch.prepare import Prepared, prepare
from clipa.launch.request import settle
from clipa.registry import events
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import scan
from clipa.spec import budget, catalog
from clipa.spec.job import TrainPhase
from clipa.spec.load import load_recipe
from clipa.spec.plan import Plan, Record
from clipa.staging.stage import stage_run
from clipa.terminal import say
from clipa.train.trainer import Trainer

RECIPES = ("science-digits-small", "science-digits-large")
TOKENS = (4, 16)


class Point(Record, frozen=True, kw_only=True):
    """One pipeline of the grid. `scores` are the zero-shot top-1 of its evaluation sets, `seconds` its wall time."""

    recipe: str
    tokens: int
    seed: int
    samples: int
    flops: float
    scores: dict[str, float]
    seconds: float


class _Task(NamedTuple):
    recipe: str
    tokens: int
    seed: int


def equal_compute(recipe: str, tokens: int) -> int:
    """Samples that cost at `tokens` what the recipe's own pre-training costs at its own tokens."""
    path = catalog.find_recipe(recipe)
    own, other = (load_recipe(path, words).recipe for words in ([], [f"phases.pretrain.image.tokens={tokens}"]))
    costs = [budget.phase_budget(r.model, r.phases["pretrain"]) for r in (own, other)]
    assert costs[0] is not None
    assert costs[1] is not None
    return round(costs[0].flops / costs[1].flops_per_sample)


def run(task: _Task) -> Point:
    """Train and score one point of the grid."""
    began = time.monotonic()
    samples = equal_compute(task.recipe, task.tokens)
    words = [f"seed={task.seed}", f"phases.pretrain.image.tokens={task.tokens}", f"phases.pretrain.samples={samples}"]
    request = settle("pipeline", task.recipe, "local", words, None, "", lambda: scan([])).request
    cluster = msgspec.structs.replace(request.cluster, gpus=0, processes=1, threads=1, loader_workers=0)
    prepared = prepare(request._replace(cluster=cluster))
    for plan, folder in zip(prepared.plans, create(prepared), strict=True):
        _train(plan, folder)
    first = prepared.plans[0]
    assert isinstance(first.settings, TrainPhase)
    spent = budget.phase_budget(first.model, first.settings)
    assert spent is not None
    return Point(
        recipe=task.recipe,
        tokens=task.tokens,
        seed=task.seed,
        samples=spent.samples,
        flops=float(spent.flops),
        scores=_scores(prepared),
        seconds=time.monotonic() - began,
    )


def _train(plan: Plan, folder: RunDir) -> None:
    assert folder.claim(1)
    stage_run(folder, 1)
    log = events.EventWriter(folder, 1, "train")
    torch.set_num_threads(plan.world.threads)
    Trainer(Session(folder, plan, 1, log), Ranks(0, 1, torch.device("cpu"))).train()
    log.write(events.TrainerEnded, outcome="done", step=plan.steps, error="")
    log.close()
    close(folder, 1, "done", "")


class _Score(Record, frozen=True, kw_only=True):
    set: str
    value: float


def _scores(prepared: Prepared) -> dict[str, float]:
    last = RunDir(Path(prepared.plans[-1].run_root) / prepared.plans[-1].run)
    found = [msgspec.json.decode(path.read_bytes(), type=_Score) for path in sorted(last.evals.glob("*.json"))]
    return {score.set: score.value for score in found}


def table(points: Sequence[Point]) -> str:
    """The grid as a Markdown table: mean and standard deviation over the seeds, in percent."""
    sets = sorted({name for point in points for name in point.scores})
    lines = [
        f"| model | image tokens | samples | FLOPs | seeds | {' | '.join(sets)} |",
        "|---|---|---|---|---|" + "---|" * len(sets),
    ]
    for recipe, tokens in sorted({(p.recipe, p.tokens) for p in points}, key=_small_first):
        group = [p for p in points if (p.recipe, p.tokens) == (recipe, tokens)]
        cells = [_spread([p.scores[name] for p in group]) for name in sets]
        name = recipe.rpartition("-")[2]
        lines.append(
            f"| {name} | {tokens} | {group[0].samples:,} | {group[0].flops:.1e} | {len(group)} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _small_first(key: tuple[str, int]) -> tuple[bool, str, int]:
    return not key[0].endswith("-small"), *key


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="python -m clipa.bench.science", description="accuracy against image tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--to", type=Path, default=Path("science"), help="folder of the results")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    points = []
    try:
        for task in (_Task(r, t, s) for s in options.seeds for r in options.recipes for t in options.tokens):
            file = options.to / f"{task.recipe}-{task.tokens}-{task.seed}.json"
            if not file.is_file():
                part = file.with_suffix(f".{os.getpid()}")
                part.write_bytes(msgspec.json.encode(run(task)))
                os.replace(part, file)
            points.append(msgspec.json.decode(file.read_bytes(), type=Point))
    except ClipaError as error:
        return told(error)
    say(table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
