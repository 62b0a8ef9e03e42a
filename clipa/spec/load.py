"""TOML to typed, checked values: recipes, cluster profiles, project files, and `--set a.b=v` overrides.

Errors name the file, the key, what is allowed, and the closest key that exists.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from clipa.errors import ConfigError, did_you_mean
from clipa.spec.cluster import Cluster, Dataset, Project
from clipa.spec.explain import explain
from clipa.spec.family import FAMILIES, PRESETS
from clipa.spec.job import PHASE_KINDS, Recipe
from clipa.spec.limits import DEEPEST, LONGEST_KEY, parse_toml, shortened
from clipa.spec.published import About
from clipa.spec.toml_lines import line_of

_T = TypeVar("_T", bound=msgspec.Struct)
_BARE_VALUE = re.compile(r"^\s*(?P<key>[\w-]+)\s*=\s*(?P<value>[^\s\"'\[{#]\S*)\s*(?:#.*)?$")
_ABOUT = tuple(field.name for field in msgspec.structs.fields(About))


class LoadedRecipe(NamedTuple):
    """A recipe, the file it came from, the SHA-256 of what it says after overrides, and what is known about it."""

    recipe: Recipe
    path: Path
    digest: str
    about: About = About()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe; its name defaults to the file's.

    Raises:
        ConfigError: the file, a key, a value or an override is wrong.
    """
    table = _read_toml(path, "recipe")
    for override in overrides:
        _apply(table, override, where=str(path))
    try:
        about, recipe = _checked(table, path)
    except ConfigError as error:
        raise _with_line(_blame(error, overrides, where=str(path)), path) from error
    return LoadedRecipe(recipe, path, hashlib.sha256(msgspec.json.encode(recipe)).hexdigest(), about)


def _checked(table: dict[str, Any], path: Path) -> tuple[About, Recipe]:
    about = _convert({key: table.pop(key) for key in _ABOUT if key in table}, About, where=str(path))
    _default_kinds(table, where=str(path))
    _apply_preset(table, where=str(path))
    _apply_family(table)
    table.setdefault("name", path.stem)
    recipe = _convert(table, Recipe, where=str(path)).settled()
    _check_published(about, recipe, where=str(path))
    return about, recipe


def _blame(error: ConfigError, overrides: Sequence[str], where: str) -> ConfigError:
    """The same error, said of the override that brought the wrong key or value, where one did: not of the file."""
    key = error.where.removeprefix(f"{where}: ")
    for override in reversed(overrides):
        path = override.partition("=")[0].replace(" ", "")
        if key and (path == key or (path.startswith(f"{key}.") and error.what.startswith("unknown key"))):
            return ConfigError(error.what, where=f"--set {override}", allowed=error.allowed, hint=error.hint)
    return error


def _with_line(error: ConfigError, path: Path) -> ConfigError:
    """Return the same error with the line of its key in the file, if the error names one."""
    key = error.where.removeprefix(f"{path}: ")
    try:
        line = line_of(path.read_text(encoding="utf-8-sig"), key) if key != error.where else None
    except (OSError, UnicodeDecodeError):
        line = None
    if line is None:
        return error
    return ConfigError(error.what, where=f"{path}:{line}: {key}", allowed=error.allowed, hint=error.hint)


def _check_published(about: About, recipe: Recipe, where: str) -> None:
    for number, published in enumerate(about.published):
        if published.after and published.after not in recipe.phases:
            raise ConfigError(
                f"no phase {published.after!r} in this recipe",
                where=f"{where}: published[{number}].after",
                allowed=", ".join(recipe.phases),
                hint=did_you_mean(published.after, recipe.phases),
            )


def load_cluster(path: Path) -> Cluster:
    """Read a cluster profile; its name defaults to the file's.

    Raises:
        ConfigError: the file, a key or a value is wrong.
    """
    table = _read_toml(path, "cluster profile")
    table.setdefault("name", path.stem)
    cluster = _convert_file(table, Cluster, path)
    return msgspec.structs.replace(cluster, datasets=_anchored_all(cluster.datasets, path))


def load_project(path: Path) -> Project:
    """Read `clipa.toml` or the user's `config.toml`.

    Raises:
        ConfigError: the file, a key or a value is wrong.
    """
    project = _convert_file(_read_toml(path, "project file"), Project, path)
    return msgspec.structs.replace(project, datasets=_anchored_all(project.datasets, path))


def _anchored_all(datasets: dict[str, str | Dataset], path: Path) -> dict[str, str | Dataset]:
    return {
        name: anchored(bound, path.parent)
        if isinstance(bound, str)
        else msgspec.structs.replace(bound, url=anchored(bound.url, path.parent))
        for name, bound in datasets.items()
    }


def anchored(url: str, folder: Path) -> str:
    """A URL or path as it was written in a file of `folder`: a relative path is relative to that file.

    What stages the data runs elsewhere, so a path that depends on where a command was typed must not get into a plan.
    """
    if not url or "://" in url or url.startswith(("/", "~")):
        return url
    return os.path.abspath(folder / url)


def _read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot read the {what}: {reason}", where=str(path)) from error
    try:
        text = raw.decode("utf-8-sig")  # editors on Windows write a byte-order mark
    except UnicodeDecodeError as error:
        raise ConfigError(f"the {what} is not UTF-8 text (byte {error.start})", where=str(path)) from error
    try:
        return parse_toml(text, str(path), what)
    except tomllib.TOMLDecodeError as error:
        hint = _unquoted(text, str(error))
        raise ConfigError(f"the {what} is not valid TOML: {error}", where=str(path), hint=hint) from error


def _unquoted(text: str, error: str) -> str:
    """Return the hint for a value that lacks quotes, such as `time = 1-00:00:00` or `data = s3://bucket`."""
    line = re.search(r"at line (\d+)", error)
    found = _BARE_VALUE.match(text.splitlines()[int(line[1]) - 1]) if line else None
    return f'text needs quotes: {found["key"]} = "{found["value"]}"' if found else ""


def _apply(table: dict[str, Any], override: str, where: str) -> None:
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise ConfigError(
            f"cannot read the override {shortened(override)!r}",
            where="--set",
            allowed="KEY.KEY=VALUE, for example --set phases.pretrain.batch=512",
        )
    override, key = shortened(override), shortened(key)
    if any(len(part) > LONGEST_KEY for part in path):
        raise ConfigError("no key is so long", where=f"--set {key}", allowed=f"{LONGEST_KEY} characters")
    if len(path) > DEEPEST:
        raise ConfigError("tables are nested too deeply", where=f"--set {key}", allowed=f"{DEEPEST} levels")
    if path[0] not in table and path[0] in table.get("phases", {}):
        raise ConfigError(f"unknown key {path[0]!r}", where=f"--set {override}",
                          hint=f"did you mean --set phases.{override.strip()}?")  # fmt: skip
    here: Any = table
    for depth, part in enumerate(path[:-1]):
        if part not in here and depth == 1 and path[0] == "phases":
            raise ConfigError(
                f"no phase {part!r} in this recipe",
                where=f"--set {key}",
                allowed=", ".join(here),
                hint=did_you_mean(part, here),
            )
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            raise ConfigError(f"{'.'.join(path[: depth + 1])} is not a table", where=f"--set {key} ({where})")
    here[path[-1]] = _value(text, f"--set {key}")


def _value(text: str, where: str) -> object:
    """A TOML value; a bare word is a string, so that `--set phases.pretrain.data=s3://b/x` needs no quotes.

    `./x` and `../x` are relative to where the command is typed (in the file they are relative to the file).
    """
    try:
        return parse_toml(f"value = {text}", where, "value")["value"]
    except tomllib.TOMLDecodeError:
        word = text.strip()
        return os.path.abspath(word) if word.startswith(("./", "../")) else word


def _default_kinds(table: dict[str, Any], where: str) -> None:
    """A phase named pretrain, finetune or eval is of that kind; any other name must say its kind."""
    phases = table.get("phases")
    if not isinstance(phases, dict):
        return
    for name, phase in phases.items():
        if not isinstance(phase, dict):
            continue
        if name in PHASE_KINDS:
            phase.setdefault("kind", name)
        kind = phase.get("kind")
        if kind not in PHASE_KINDS:
            said = "does not say its kind" if kind is None else f"has the unknown kind {kind!r}"
            raise ConfigError(
                f"phase {name!r} {said}",
                where=f"{where}: phases.{name}.kind",
                allowed=", ".join(PHASE_KINDS),
                hint=did_you_mean(str(kind or name), PHASE_KINDS) or f'add kind = "finetune" under [phases.{name}]',
            )


def _apply_preset(table: dict[str, Any], where: str) -> None:
    """`model.preset` stands for the numbers of a published size; what is written beside it goes before."""
    model = table.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return
    name = model.pop("preset")
    if name not in PRESETS:
        raise ConfigError(
            f"unknown model size {name!r}",
            where=f"{where}: model.preset",
            allowed=", ".join(PRESETS),
            hint=did_you_mean(str(name), PRESETS),
        )
    preset = PRESETS[name]
    model.setdefault("embed_dim", preset.embed_dim)
    for key, size, more in (("image", preset.image, {"patch": preset.patch}), ("text", preset.text, {})):
        tower = model.setdefault(key, {})
        if isinstance(tower, dict):
            numbers = {"width": size.width, "layers": size.layers, "heads": size.heads}
            model[key] = {**more, **numbers, "mlp_ratio": round(size.mlp / size.width, 4), **tower}


def _apply_family(table: dict[str, Any]) -> None:
    """What the family fixes or prefers, where the recipe does not say: written into the recipe, so into its digest."""
    model = table.get("model")
    own = FAMILIES.get(model.get("family", "v1")) if isinstance(model, dict) else None
    if own is None or not isinstance(model, dict):
        return
    for key, name, value in (("image", "pool", own.pools[0]), ("text", "tokenizer", own.tokenizer)):
        if isinstance(model.get(key), dict):
            model[key].setdefault(name, value)
    phases = table.get("phases")
    for phase in phases.values() if isinstance(phases, dict) else ():
        image = phase.get("image") if isinstance(phase, dict) else None
        if isinstance(image, dict):
            image.setdefault("interpolation", own.interpolation)
            image.setdefault("augment", own.augment)
            image.setdefault("crop_ratio", list(own.crop_ratio))
            image.setdefault("mean", list(own.mean))
            image.setdefault("std", list(own.std))


def _convert_file(table: dict[str, Any], to: type[_T], path: Path) -> _T:
    try:
        return _convert(table, to, where=str(path))
    except ConfigError as error:
        raise _with_line(error, path) from error


def _convert(table: dict[str, Any], to: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(copy.deepcopy(table), to)
    except msgspec.ValidationError as error:
        raise explain(str(error), table, to, where) from error
