"""The limits of what a settings file may hold, so that no number or nesting in it costs memory, time or a traceback."""

from __future__ import annotations

import math
import tomllib
from typing import Any

from clipa.errors import ConfigError

LARGEST_FILE = 1 << 20
LARGEST_INTEGER = (1 << 63) - 1
"""What JSON readers, SQLite and torch hold."""
DEEPEST = 32
"""Tables and lists in one another; clipa's own settings need 5."""
LONGEST_KEY = 255
"""Characters of a key; names of datasets and variables are keys too."""
SHOWN = 60
"""Characters of a value that an error repeats."""
_DIGITS = "Exceeds the limit"
"""How Python's int() begins its refusal of more than 4,300 digits."""


def parse_toml(text: str, where: str, what: str) -> dict[str, Any]:
    """Return the table that a TOML text holds.

    Raises:
        tomllib.TOMLDecodeError: it is not TOML.
        ConfigError: it is larger, deeper, or holds other numbers than clipa takes.
    """
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"the {what} is too large", where=where, allowed=f"at most {LARGEST_FILE >> 20} MiB")
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        if isinstance(error, tomllib.TOMLDecodeError) or not str(error).startswith(_DIGITS):
            raise
        raise _too_long(where) from error
    require_bounded(table, where)
    return table


def require_bounded(table: dict[str, Any], where: str) -> None:
    """Refuse a table that is nested too deeply, or that holds a number that no setting can have.

    Raises:
        ConfigError: naming the key.
    """
    left: list[tuple[str, object, int]] = [("", table, 0)]
    while left:
        key, value, depth = left.pop()
        at = f"{where}: {key}" if key else where
        if depth > DEEPEST:
            raise _too_deep(where)
        if isinstance(value, dict):
            if long := next((name for name in value if len(name) > LONGEST_KEY), ""):
                raise ConfigError("no key is so long", where=f"{where}: {shortened(long)}",
                                  allowed=f"{LONGEST_KEY} characters")  # fmt: skip
            left += [(f"{key}.{name}" if key else str(name), item, depth + 1) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(key, item, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise _too_long(at)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{value} is not a number that a setting can have", where=at, allowed="finite numbers")


def shortened(text: str) -> str:
    """Return a text that an error repeats, without what would fill the screen."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _too_deep(where: str) -> ConfigError:
    return ConfigError("tables or lists are nested too deeply", where=where, allowed=f"{DEEPEST} levels")


def _too_long(where: str) -> ConfigError:
    return ConfigError("a whole number is too large", where=where, allowed="at most 2^63 - 1 (9.2e18)")
