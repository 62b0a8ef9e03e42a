"""The science grid: equal compute, and the table."""

import pytest

from clipa.bench.science import RECIPES, TOKENS, Point, equal_compute, table
from clipa.spec import budget, catalog
from clipa.spec.load import load_recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_number_of_tokens_costs_the_same(recipe):
    costs = []
    for tokens in TOKENS:
        words = [f"phases.pretrain.image.tokens={tokens}", f"phases.pretrain.samples={equal_compute(recipe, tokens)}"]
        loaded = load_recipe(catalog.find_recipe(recipe), words).recipe
        costs.append(budget.phase_budget(loaded.model, loaded.phases["pretrain"]).flops)
    assert max(costs) / min(costs) < 1.01


def test_the_models_differ_in_nothing_but_size():
    small, large = (load_recipe(catalog.find_recipe(recipe)).recipe for recipe in RECIPES)
    assert small.phases == large.phases
    assert small.model.text == large.model.text
    assert small.model.image.width < large.model.image.width


def test_the_table_has_means_and_spreads_small_model_first():
    points = [
        Point(recipe=recipe, tokens=tokens, seed=seed, samples=100, flops=2e9, scores={"a": 50.0 + seed}, seconds=1)
        for recipe in ("x-large", "x-small") for tokens in (16, 4) for seed in (0, 2)
    ]  # fmt: skip
    assert table(points).splitlines() == [
        "| model | image tokens | samples | FLOPs | seeds | a |",
        "|---|---|---|---|---|---|",
        "| small | 4 | 100 | 2.0e+09 | 2 | 51.0 ± 1.4 |",
        "| small | 16 | 100 | 2.0e+09 | 2 | 51.0 ± 1.4 |",
        "| large | 4 | 100 | 2.0e+09 | 2 | 51.0 ± 1.4 |",
        "| large | 16 | 100 | 2.0e+09 | 2 | 51.0 ± 1.4 |",
    ]
