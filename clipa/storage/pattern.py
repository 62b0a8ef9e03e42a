"""Which objects a dataset's URL means: a folder, one shard, or a pattern with globs and braces. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from typing import NamedTuple

from clipa.errors import InputError

_MARKS = "*?{["
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_NAMES = 1_000_000


class Split(NamedTuple):
    """A URL's folder, and what stands behind it when it is a pattern or one shard; else an empty string."""

    folder: str
    pattern: str


def split(url: str) -> Split:
    """The folder and the pattern of a URL.

    Raises:
        InputError: a pattern before the last part of the URL, or a query.
    """
    folder, _, last = url.rpartition("/")
    if "=" in last.partition("?")[2]:
        raise InputError(
            "a URL with a query is of one object, not of a folder of shards",
            where=redacted(url),
            allowed="https://HOST/FOLDER/{00000..00127}.tar",
            hint="a signed URL expires too: give the bucket's own URL (s3://, gs://, az://) and credentials",
        )
    pattern = last if any(mark in last for mark in _MARKS) or last.endswith(".tar") else ""
    folder = folder if pattern else url.rstrip("/")
    if any(mark in folder for mark in _MARKS):
        raise InputError("a pattern may stand in the last part of the URL only", where=redacted(url))
    return Split(folder, pattern)


_USER = re.compile(r"(abfss?)?://([^/\s]*)@")
"""What stands before the host: a user and a password, or one of Azure's containers."""
_QUERY = re.compile(r"(://[^\s\"'?]*\?)[^\s\"']*=[^\s\"']*")
"""A query that assigns something may hold a signature; `?.tar` is a pattern."""


def redacted(text: str, *urls: str) -> str:
    """A text without the user, the password and the query of the URLs in it, and without those of `urls` wherever they
    stand.
    """
    for url in urls:
        for user in _USER.finditer(url):
            if _hidden(user) != user[0]:
                text = text.replace(f"{user[2]}@", "***@")
                text = text.replace(user[2], "***") if ":" in user[2] else text
        for query in _QUERY.finditer(url):
            text = text.replace(query[0].partition("?")[2], "***")
    return _QUERY.sub(r"\1***", _USER.sub(_hidden, text))


def require_no_secret(url: str, where: str) -> None:
    """Refuse a URL that would carry a password or a signature into the records of a run.

    Raises:
        InputError: it has one.
    """
    if redacted(url) != url:
        raise InputError(
            "a password or a signature in a URL would be written into the run's records",
            where=f"{where}: {redacted(url)}",
            hint="keep it where the store's tools look: AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc for http(s)://",
        )


def _hidden(user: re.Match[str]) -> str:
    return user[0] if user[1] and ":" not in user[2] else f"{user[1] or ''}://***@"


def expand_braces(pattern: str) -> list[str]:
    """`{000..127}` and `{a,b}` as bash expands them, without steps and nesting.

    Raises:
        InputError: more than a million names, or braces that hold neither.
    """
    match = _BRACES.search(pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise InputError("a brace without its partner", where=pattern, allowed="{00000..00127} or {a,b}")
        return [pattern]
    words = _words(match.group(1), pattern)
    tails = expand_braces(pattern[match.end() :])
    if len(words) * len(tails) > _MOST_NAMES:
        raise InputError("the pattern names more than a million shards", where=pattern)
    head = pattern[: match.start()]
    if "{" in head or "}" in head:
        raise InputError("braces inside braces", where=pattern, allowed="{00000..00127} or {a,b}")
    return [head + word + tail for word in words for tail in tails]


def _words(body: str, pattern: str) -> list[str]:
    first, dots, last = body.partition("..")
    if dots and re.fullmatch(r"[0-9]{1,18}", first) and re.fullmatch(r"[0-9]{1,18}", last):
        low, high = int(first), int(last)
        if abs(high - low) >= _MOST_NAMES:
            raise InputError("the pattern names more than a million shards", where=pattern)
        # bash: one end with a leading zero pads all to the width of the longer end.
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        numbers = range(low, high + 1) if low <= high else range(low, high - 1, -1)
        return [str(number).zfill(width) for number in numbers]
    if "," in body:
        return body.split(",")
    raise InputError(f"cannot read {{{body}}}", where=pattern, allowed="{00000..00127} or {a,b}")


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name fits the pattern; one look-up a name for patterns without `*`, however many names they hold."""
    words = expand_braces(pattern)
    plain = {word for word in words if not any(mark in word for mark in "*?[")}
    globs = [re.compile(translate(word)) for word in words if word not in plain]
    return lambda name: name in plain or ("/" not in name and any(glob.match(name) for glob in globs))


def missing(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that the pattern spells out and that are not there, sorted."""
    words = {word for word in expand_braces(pattern) if not any(mark in word for mark in "*?[")}
    return sorted(words - set(names))
