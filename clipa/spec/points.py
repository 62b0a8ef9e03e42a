"""The reported results of a recipe, each with the recipe as changed for it."""

from __future__ import annotations

from typing import NamedTuple

from clipa.spec.load import LoadedRecipe, load_recipe
from clipa.spec.published import Published


class Point(NamedTuple):
    """A reported result, and what was trained for it."""

    published: Published
    loaded: LoadedRecipe

    @property
    def after(self) -> str:
        """The phase whose weights were scored."""
        return self.published.after or next(reversed(self.loaded.recipe.phases))


def points(loaded: LoadedRecipe) -> list[Point]:
    """Every reported result of the recipe's file.

    Raises:
        ConfigError: the changes of one of them do not fit the recipe.
    """
    return [Point(published, load_recipe(loaded.path, published.set)) for published in loaded.about.published]


def reported(loaded: LoadedRecipe) -> list[Published]:
    """The results that were reported for exactly this recipe, with the changes that were made to it."""
    return [point.published for point in points(loaded) if point.loaded.digest == loaded.digest]
