"""What ships with clipa, and where the user's defaults are: recipes, cluster profiles, project files, folders.

The order of defaults is: flag, `CLIPA_*`, `clipa.toml` upward from here, the user's config, built-in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.errors import ConfigError, did_you_mean
from clipa.spec.cluster import Cluster, Dataset, Project
from clipa.spec.load import load_project
from clipa.spec.trackers import DEFAULT
from clipa.spec.trust import distrust_in_place
from clipa.spec.user_paths import current_folder, expand_user, user_folder

DEMO_RECIPE = "demo"
DEFAULT_CLUSTER = "local"
PROJECT_FILE = "clipa.toml"


def _shipped(kind: str) -> Path:
    """`clipa/_shipped/<kind>` in a wheel, `<checkout>/<kind>` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    in_wheel = package / "_shipped" / kind
    return in_wheel if in_wheel.is_dir() else package.parent / kind


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe that ships with clipa."""
    return {path.stem: path for path in sorted(_shipped("jobs").glob("*.toml"))}


def clusters() -> dict[str, Path]:
    """Name -> file of every cluster profile that ships with clipa."""
    return {path.stem: path for path in sorted(_shipped("cluster").glob("*.toml"))}


def dev_cluster() -> Path:
    """The folder of the program that brings up a real SLURM on this machine: `python <folder> up`."""
    return _shipped("cluster") / "dev"


def find_recipe(word: str) -> Path:
    """The file of a recipe, by its name or path.

    Raises:
        ConfigError: neither a file nor a name that ships with clipa.
    """
    return _find(word, recipes(), "recipe", "clipa recipes")


def find_cluster(word: str) -> Path:
    """The file of a cluster profile, by its name or path.

    Raises:
        ConfigError: neither a file nor a name that ships with clipa.
    """
    return _find(word, clusters(), "cluster profile", "clipa doctor")


def _find(word: str, known: Mapping[str, Path], what: str, command: str) -> Path:
    path = expand_user(word)
    if path.suffix == ".toml" or os.sep in word:
        if path.is_file():
            return path.absolute()
        raise ConfigError(
            f"no such {what} file",
            where=word,
            allowed=f"a file, or one of: {', '.join(known)}",
            hint=did_you_mean(path.stem, known) or f"{command} lists what there is",
        )
    if word in known:
        return known[word]
    raise ConfigError(
        f"no {what} {word!r}",
        allowed=f"{', '.join(known)}, or the path of a .toml file",
        hint=did_you_mean(word, known) or f"{command} lists what there is",
    )


class Defaults(NamedTuple):
    """The settled defaults, and where the recipe and the cluster were named (for the message that says so)."""

    recipe: str
    recipe_from: str
    cluster: str
    cluster_from: str
    run_root: str
    datasets: dict[str, Dataset]
    trackers: tuple[str, ...]


def defaults(start: Path | None = None) -> Defaults:
    """Return the defaults in force for a command typed in the folder `start` (the current folder if not given).

    Raises:
        ConfigError: a project file that cannot be read, or that others may have written.
    """
    layers = _project_layers(start or current_folder())
    trusted = layers[-1][1].trusted if layers else ()
    environment = Project(
        recipe=os.environ.get("CLIPA_RECIPE", ""),
        cluster=os.environ.get("CLIPA_CLUSTER", ""),
        run_root=os.environ.get("CLIPA_RUN_ROOT", ""),
    )
    layers.insert(0, ("the environment", environment))
    layers.append(("built in", Project(recipe=DEMO_RECIPE, cluster=DEFAULT_CLUSTER)))
    recipe_from, recipe = next((where, layer.recipe) for where, layer in layers if layer.recipe)
    cluster_from, cluster = next((where, layer.cluster) for where, layer in layers if layer.cluster)
    datasets: dict[str, Dataset] = {}
    for _, layer in reversed(layers):
        datasets.update({name: as_dataset(value) for name, value in layer.datasets.items()})
    return Defaults(
        recipe=_beside(recipe, recipe_from, trusted),
        recipe_from=recipe_from,
        cluster=_beside(cluster, cluster_from, trusted),
        cluster_from=cluster_from,
        run_root=next((_beside_folder(layer.run_root, where) for where, layer in layers if layer.run_root), ""),
        datasets=datasets,
        trackers=next((layer.trackers for _, layer in layers if layer.trackers is not None), DEFAULT),
    )


def bound(defaults: Defaults, cluster: Cluster) -> dict[str, Dataset]:
    """Every name of a dataset that means something here: the cluster profile's win over the project's."""
    return {**defaults.datasets, **{name: as_dataset(value) for name, value in cluster.datasets.items()}}


def as_dataset(value: str | Dataset) -> Dataset:
    """A dataset given as a bare URL, as a table."""
    return Dataset(url=value) if isinstance(value, str) else value


def _project_layers(start: Path | None) -> list[tuple[str, Project]]:
    """Return the nearest project file upward from `start`, then the user's; either may be missing."""
    own, found = _user_config(), []
    mine = load_project(own) if own else Project()
    upward = [folder / PROJECT_FILE for folder in (start, *start.parents)] if start else []
    if nearest := next((path for path in upward if path.is_file()), None):
        _require_trust(nearest, "project file", mine.trusted)
        project = load_project(nearest)
        if project.trusted:
            raise ConfigError(
                "trusted is a key of your own config file, not of a project file", where=f"{nearest}: trusted"
            )
        found.append((str(nearest), project))
    return found + ([(str(own), mine)] if own else [])


def _user_config() -> Path | None:
    try:
        own = user_folder("config") / "config.toml"
    except ConfigError:
        return None  # a user without a home folder has no config file
    if not own.is_file():
        return None
    _require_trust(own, "config file", ())
    return own


def _require_trust(path: Path, what: str, trusted: Sequence[str]) -> None:
    """Refuse a file that decides what is executed and that somebody else may have put here (git's safe.directory).

    Raises:
        ConfigError: it is another user's, or others can write to it, and no folder in `trusted` holds it.
    """
    if any(path.is_relative_to(expand_user(folder)) for folder in trusted):
        return
    if why := distrust_in_place(path):
        raise ConfigError(
            f"this {what} was found, but it is not used: {why}. It could name programs that run as you",
            where=str(path),
            allowed="files and folders of yours or of root, which others cannot write to",
            hint="work in another folder; chmod go-w what is yours; or, if you know its author, add "
            f'trusted = ["{path.parent}"] to {user_folder("config") / "config.toml"}',
        )


def _beside(word: str, where: str, trusted: Sequence[str]) -> str:
    """Return the path of a recipe or profile that a project file names, relative to that file.

    It decides what is executed as much as the project file does, so the same rule holds for it.
    """
    if (word.endswith(".toml") or os.sep in word) and where.endswith(".toml"):
        path = Path(where).parent / expand_user(word)
        if path.is_file():
            _require_trust(path, "file named by a project file", trusted)
        return str(path)
    return word


def _beside_folder(word: str, where: str) -> str:
    path = expand_user(os.path.expandvars(word))
    return str(Path(where).parent / path) if where.endswith(".toml") else os.path.abspath(path)
