"""The recipes are the published ones: each field against the authors', every point of the law, and the docs' table.

`CLIPA_TEST_WRITE=1 pytest tests/rules/test_published.py` writes the table into docs/recipes.md.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipa.data import imagenet
from clipa.spec import catalog
from clipa.spec.family import PRESETS
from clipa.spec.job import Recipe, TrainPhase
from clipa.spec.load import LoadedRecipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- published: begin (written by tests/rules/test_published.py) -->\n", "<!-- published: end -->\n"
GPUS = 8
LAION_400M = 407_332_084

RECIPES = {name: load_recipe(path) for name, path in catalog.recipes().items() if name.startswith(("clipa", "scaling"))}


def _said() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in tomllib.loads((ROOT / "docs" / "published.toml").read_text())["phase"]:
        for name in entry["of"]:
            found.setdefault(name, {}).update({key: value for key, value in entry.items() if key != "of"})
    for said in found.values():
        if "batch_per_gpu" in said:
            said["batch"] = said.pop("batch_per_gpu") * GPUS
        if "epochs" in said:
            said["samples"] = said.pop("epochs") * LAION_400M
        if "steps" in said:
            said["samples"] = said.pop("steps") * said["batch"]
    return found


SAID = _said()
PHASES = {
    f"{name}.{word}": (loaded.recipe, phase)
    for name, loaded in RECIPES.items()
    for word, phase in loaded.recipe.phases.items()
    if isinstance(phase, TrainPhase)
}


def _mask(recipe: Recipe, phase: TrainPhase) -> float:
    patches = (phase.image.size // recipe.model.image.patch) ** 2
    return round(1 - phase.image.tokens / patches, 2) if phase.image.reduction == "random" else 0.0


def _prompts(recipe: Recipe, phase: TrainPhase) -> int:
    [used] = [recipe.evals[name] for name in phase.evaluate.sets]
    return len(imagenet.templates(canonical=used.canonical))


FIELDS: dict[str, tuple[str, Callable[[Recipe, TrainPhase], Any]]] = {
    "batch": ("batch", lambda r, p: p.batch),
    "samples": ("samples", lambda r, p: p.samples),
    "lr": ("peak rate", lambda r, p: p.optim.lr),
    "warmup": ("warm-up, steps", lambda r, p: p.optim.warmup_samples / p.batch),
    "pixels": ("px", lambda r, p: p.image.size),
    "mask": ("masked", _mask),
    "text": ("text tokens", lambda r, p: p.text.tokens),
    "strategy": ("text", lambda r, p: p.text.reduction),
    "crop": ("crop", lambda r, p: p.image.crop_area[0]),
    "jitter": ("jitter", lambda r, p: p.image.jitter is not None),
    "positions": ("positions", lambda r, p: p.positions),
    "pool": ("pool", lambda r, p: r.model.image.pool),
    "interpolation": ("images", lambda r, p: p.image.interpolation),
    "augment": ("crops, jitter", lambda r, p: p.image.augment),
    "init": ("start", lambda r, p: r.model.traits.init),
    "evaluated": ("evaluated, steps", lambda r, p: p.evaluate.every_samples / p.batch),
    "prompts": ("prompts", _prompts),
    "decay": ("decay of", lambda r, p: p.optim.decay),
    "weight_decay": ("decay", lambda r, p: p.optim.weight_decay),
    "beta2": ("beta2", lambda r, p: p.optim.beta2),
    "eps": ("eps", lambda r, p: p.optim.eps),
    "resize": ("evaluated", lambda r, p: p.evaluate.resize),
}


def test_every_phase_has_its_source() -> None:
    assert set(SAID) == set(PHASES)


@pytest.mark.parametrize("name", PHASES)
def test_every_value_is_the_published_one(name: str) -> None:
    said, ours = SAID[name], {key: value(*PHASES[name]) for key, (_, value) in FIELDS.items()}
    unknown = set(said) - set(FIELDS) - {"source", "differs"}
    assert not unknown
    differ = {key for key in FIELDS if key in said and not _same(ours[key], said[key])}
    assert differ == set(said.get("differs", {})), {key: (ours[key], said[key]) for key in differ}


def _same(ours: Any, said: Any) -> bool:
    return bool(ours == pytest.approx(said, rel=1e-9)) if isinstance(said, float) else bool(ours == said)


# ------------------------------------------------------------------------------------------------ every point is there

IMAGE_TOKENS = (16, 36, 49, 100, 196)
POINTS = [
    *((f"scaling-{size}16", {"image": n}) for size in "sbl" for n in IMAGE_TOKENS),
    *(("scaling-h14", {"image": n}) for n in (16, 25, 36)),
    *(
        ("scaling-b16", {"image": 49, "text": n, "strategy": how})
        for how in ("truncate", "random", "block", "syntax")
        for n in (4, 8, 16, 32)
    ),
    *(("scaling-l16", {"image": 49, "reduction": how}) for how in ("resize", "random", "grid", "block")),
]


def _points(loaded: LoadedRecipe) -> list[dict[str, Any]]:
    found = []
    for published in loaded.about.published:
        phase = load_recipe(loaded.path, published.set).recipe.phases["pretrain"]
        assert isinstance(phase, TrainPhase)
        found.append(
            {
                "image": phase.image.tokens,
                "reduction": phase.image.reduction,
                "text": phase.text.tokens,
                "strategy": phase.text.reduction,
                "known": published.top1 is not None or bool(published.note),
            }
        )
    return found


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("scaling")])
def test_every_point_of_the_law_stands_in_a_recipe_once(name: str) -> None:
    found = _points(RECIPES[name])
    assert all(point["known"] for point in found)
    usual = PHASES[f"{name}.pretrain"][1]
    for wanted in [point for recipe, point in POINTS if recipe == name]:
        full = {"text": usual.text.tokens, "strategy": usual.text.reduction, "reduction": "resize", **wanted}
        same = [point for point in found if {**point, **full} == point]
        assert len(same) == 1, f"{wanted} stands {len(same)} times in {name}"


@pytest.mark.parametrize("name", RECIPES)
def test_what_was_published_is_about_phases_that_are_there(name: str) -> None:
    loaded = RECIPES[name]
    assert loaded.about.published
    for published in loaded.about.published:
        recipe = load_recipe(loaded.path, published.set).recipe
        assert isinstance(recipe.phases[published.after], TrainPhase)
        data = {phase.data for phase in recipe.phases.values() if isinstance(phase, TrainPhase)}
        assert data <= set(loaded.about.datasets)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_words_are_its_numbers(name: str) -> None:
    """The header names every published number, and a comment "# N steps" is that of its line."""
    loaded = RECIPES[name]
    text = loaded.path.read_text()
    header = re.sub(r"\n#\s*", " ", text.partition("\ndescription")[0])
    for said in loaded.about.published:
        if len(said.set) == 2 and said.set[0].startswith("phases.pretrain.image"):
            continue  # the strategies of reduction stand in their entries alone
        for number in (
            f"{said.top1:.1f}" if said.top1 else "",
            *(f"{n:,.0f}" for n in (said.gpu_hours, said.dollars) if n),
        ):
            assert number in header, f"{loaded.path.name}: {number}, published {said.set} after {said.after}"
    batches = [phase.batch for phase in loaded.recipe.phases.values() if isinstance(phase, TrainPhase)]
    for samples, steps in re.findall(r"samples = ([\d_]+).*?# +([\d,]+) steps", text):
        found = {math.ceil(int(samples.replace("_", "")) / batch) for batch in batches}
        assert int(steps.replace(",", "")) in found, f"{loaded.path.name}: {samples} samples are not {steps} steps"


def test_presets_are_used() -> None:
    used = {_preset(loaded.recipe) for loaded in RECIPES.values()}
    assert used == set(PRESETS)


def _preset(recipe: Recipe) -> str:
    return next(
        name
        for name, preset in PRESETS.items()
        if (preset.patch, preset.image.width) == (recipe.model.image.patch, recipe.model.image.width)
    )


# ------------------------------------------------------------------------------------------------ the table of the docs


def _cell(name: str, key: str) -> str:
    said, ours = SAID[name], FIELDS[key][1](*PHASES[name])
    text = _shown(ours)
    if key not in said:
        return f"{text} °"
    return text if _same(ours, said[key]) else f"**{text}** (source: {_shown(said[key])})"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not (value.is_integer() and value):
        return f"{value:g}".replace("e-0", "e-") if value else "0"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _table() -> str:
    heads = ["recipe", "phase", *(title for title, _ in FIELDS.values())]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    before = ""
    for name in PHASES:
        recipe, _, phase = name.partition(".")
        shown = f"`{recipe}`" if recipe != before else ""
        before = recipe
        lines.append("| " + " | ".join([shown, phase, *(_cell(name, key) for key in FIELDS)]) + " |")
    lines += ["", "Departures, in bold above:", ""]
    for name, said in SAID.items():
        lines += [f"- `{name}`, {FIELDS[key][0]}: {why}." for key, why in said.get("differs", {}).items()]
    lines += [
        "",
        "| recipe | with | after | ImageNet top-1 | A100-hours | dollars | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, loaded in RECIPES.items():
        for p in loaded.about.published:
            changed = ", ".join(f"`{word.removeprefix('phases.')}`" for word in p.set) or "as it stands"
            score = f"{p.top1:.1f}" if p.top1 is not None else "not published"
            hours = f"{p.gpu_hours:,.0f}" if p.gpu_hours else "-"
            dollars = f"{p.dollars:,.0f}" if p.dollars else "-"
            source = f"{p.source}; {p.note}" if p.note else p.source
            lines.append(f"| `{name}` | {changed} | {p.after} | {score} | {hours} | {dollars} | {source} |")
    return "\n".join(lines) + "\n"


def test_the_docs_table_is_that_of_the_recipes() -> None:
    page = PAGE.read_text()
    head, begin, rest = page.partition(BEGIN)
    old, end, tail = rest.partition(END)
    assert begin, f"{PAGE.name} has no line {BEGIN!r}"
    assert end, f"{PAGE.name} has no line {END!r}"
    if os.environ.get("CLIPA_TEST_WRITE"):
        PAGE.write_text(head + begin + _table() + end + tail)
        return
    assert old == _table(), "run: CLIPA_TEST_WRITE=1 pytest tests/rules/test_published.py"
