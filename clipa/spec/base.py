"""The base of everything that a person writes in TOML, and how it says what is wrong."""

from __future__ import annotations

import msgspec


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that a person writes in TOML: frozen, and strict about unknown keys."""


def require(ok: bool, message: str) -> None:
    """Raise ValueError, which msgspec turns into a ValidationError that names the path of the table."""
    if not ok:
        raise ValueError(message)


def require_name(where: str, name: str) -> None:
    """Names of phases and sets become names of folders and files."""
    ok = name.isascii() and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 40
    require(ok, f"{where}: use letters, digits, - and _ (at most 40) in a name")
