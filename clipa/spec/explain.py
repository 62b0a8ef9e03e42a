"""Translate msgspec's errors: the path of the key in the file, what is allowed, and the closest key that exists."""

from __future__ import annotations

import datetime
import re
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec

from clipa.errors import ConfigError, did_you_mean
from clipa.spec.job import Eval, Finetune, Pretrain

_AT_PATH = re.compile(r" - at `(?:key in )?\$?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<key>[^`]*)`")
_MISSING = re.compile(r"^Object missing required field `(?P<key>[^`]*)`")
_NO_SUCH_WORD = re.compile(r"^Invalid enum value '(?P<value>[^']*)'")
_WRONG_TYPE = re.compile(r"^Expected `(?P<wanted>[^`]*)`(?: of length (?P<length>\d+))?, got (?P<got>.*)$", re.DOTALL)
_MUST_BE = re.compile(
    r"^(?:(?P<table>phases\.[\w-]+): )?(?P<key>[a-z_0-9]+(?:\.[a-z_0-9]+)*) must be (?P<allowed>.+), got (?P<got>.+)$",
    re.DOTALL,
)
"""The sentence in which the checks of `clipa.spec` say that a value is out of range."""
_PHASE_TYPES: dict[str, type[msgspec.Struct]] = {"pretrain": Pretrain, "finetune": Finetune, "eval": Eval}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text in quotes",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
}


def explain(message: str, table: dict[str, Any], to: type[msgspec.Struct], where: str) -> ConfigError:
    """Return msgspec's error as one of ours.

    Args:
        message: the text of msgspec's `ValidationError`.
        table: the TOML that was converted.
        to: the type that it was converted to.
        where: the file.
    """
    match = _AT_PATH.search(message)
    text = _AT_PATH.sub("", message)
    path = _named_path(match.group("path").lstrip(".") if match else "", table, to)
    if found := _UNKNOWN.match(text):
        known = _fields_at(path, table, to)
        key = found.group("key")
        hint = did_you_mean(key, known)
        return ConfigError(f"unknown key {key!r}", where=_at(where, path, key), allowed=", ".join(known), hint=hint)
    if found := _MISSING.match(text):
        key = found.group("key")
        return ConfigError(f"the key {key!r} is missing", where=_at(where, path, key))
    if found := _NO_SUCH_WORD.match(text):
        words = _words(_type_at(path, table, to))
        hint = did_you_mean(found.group("value"), words)
        return ConfigError(
            f"invalid value {found.group('value')!r}", where=_at(where, path), allowed=", ".join(words), hint=hint
        )
    if found := _WRONG_TYPE.match(text):
        fitting = _words(_type_at(path, table, to)) or _fields_at(path, table, to)
        return _wrong_type(found, _value_at(path, table), fitting, _at(where, path))
    if found := _MUST_BE.match(text):
        key, got = found.group("key", "got")
        path = ".".join(filter(None, (path, found.group("table"))))
        allowed = found.group("allowed")
        hint = did_you_mean(got.strip("'"), re.findall(r"[\w-]+", allowed)) if got.startswith("'") else ""
        return ConfigError(f"{key} cannot be {got}", where=_at(where, path, key), allowed=allowed, hint=hint)
    text = text[:1].lower() + text[1:] if text.startswith(("Expected", "Invalid")) else text
    return ConfigError(text, where=_at(where, path))


def _at(where: str, *keys: str) -> str:
    path = ".".join(filter(None, keys))
    return f"{where}: {path}" if path else where


def _wrong_type(found: re.Match[str], value: object, fitting: list[str], where: str) -> ConfigError:
    """Return the error for a value of the wrong type, with the way to write the right one where that is known."""
    wanted = [_TYPES.get(word, word) for word in found.group("wanted").split(" | ") if word != "null"]
    length = f" of {found.group('length')} values" if found.group("length") else ""
    got = found.group("got").strip("`")
    said = _TYPES.get(got, got)
    if length:
        said = f"{got} of them"
    elif isinstance(value, str | int | float | datetime.date | datetime.time):
        said = f"{said} ({value!r})" if isinstance(value, str) else f"{said} ({value})"
    return ConfigError(
        f"expected {' or '.join(wanted)}{length}, got {said}",
        where=where,
        allowed="" if fitting == ["a number"] else ", ".join(fitting),
        hint=_spelling(found.group("wanted").split(" | "), value),
    )


def _spelling(wanted: list[str], value: object) -> str:
    """Return how to write a value that is right but for its spelling in TOML; empty if there is no such way."""
    if "str" in wanted and isinstance(value, int | float | datetime.date | datetime.time):
        return f'quote it: "{value}"'  # 01:30:00 without quotes is a time of day in TOML
    if "int" in wanted and isinstance(value, float) and value.is_integer():
        return f"write it as a whole number: {int(value):_}"
    if isinstance(value, str) and {"int", "float"} & {*wanted}:
        try:
            float(value)
        except ValueError:
            return ""
        return f"without quotes: {value}"
    return ""


def _value_at(path: str, table: dict[str, Any]) -> object:
    here: Any = table
    for part in path.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here


def _words(to: Any) -> list[str]:
    """Return the values of a type that is a choice of words, possibly with a number among them."""
    if get_origin(to) is Literal:
        return [str(word) for word in get_args(to)]
    if to in (int, float):
        return ["a number"]
    return [word for part in get_args(to) for word in _words(part)]


def _named_path(path: str, table: dict[str, Any], to: type[msgspec.Struct]) -> str:
    """Msgspec writes `[...]` for the key of a dict: find the entry that is wrong by converting each alone."""
    if "[...]" not in path:
        return path
    head, _, tail = path.partition("[...]")
    here: Any = table
    for part in filter(None, head.split(".")):
        here = here.get(part, {}) if isinstance(here, dict) else {}
    entries = here.items() if isinstance(here, dict) else ()
    name = next((str(name) for name, value in entries if _is_wrong(value, _type_at(f"{head}.{name}", table, to))), "")
    return f"{head}.{name}{tail}"


def _is_wrong(value: object, to: object) -> bool:
    try:
        msgspec.convert(value, to)
    except msgspec.ValidationError:
        return True
    return False


def _type_at(path: str, table: dict[str, Any], to: Any) -> Any:
    """The type that the struct `to` wants at a dotted path of the table; a union of phases is settled by `kind`."""
    here: Any = table
    for part in filter(None, path.split(".")):
        here = here.get(part) if isinstance(here, dict) else None
        if isinstance(to, type) and issubclass(to, msgspec.Struct):
            to = next((f.type for f in msgspec.structs.fields(to) if f.encode_name == part), object)
        elif get_origin(to) is dict:
            to = get_args(to)[1]
        if isinstance(here, dict) and here.get("kind") in _PHASE_TYPES:
            to = _PHASE_TYPES[here["kind"]]
        elif isinstance(here, dict) and isinstance(to, UnionType):
            to = next((t for t in get_args(to) if isinstance(t, type) and issubclass(t, msgspec.Struct)), to)
    return to


def _fields_at(path: str, table: dict[str, Any], to: type[msgspec.Struct]) -> list[str]:
    """The keys that the table at this path may hold."""
    found = _type_at(path, table, to)
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        return []
    names = [field.encode_name for field in msgspec.structs.fields(found)]
    return sorted([*names, "kind"] if found in _PHASE_TYPES.values() else names)
