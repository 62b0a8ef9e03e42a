"""From what a person types to runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clipa.errors import UnknownRun, did_you_mean
from clipa.registry.state import RunStatus
from clipa.spec.user_paths import expand_user

LATEST = "latest"
LISTED = 8
"""Candidates that an error names."""
_ALL = "clipa runs list"


def find(statuses: Sequence[RunStatus], word: str) -> list[RunStatus]:
    """The runs that a word means: a run's id or the start of it, a group's id, a `--name`, a run directory, `latest`.

    Args:
        statuses: all runs, oldest first.
        word: what was typed.

    Raises:
        UnknownRun: it fits nothing, or runs of several groups.
    """
    word = word.strip()
    if not statuses:
        raise UnknownRun("there are no runs yet", where=word, hint="clipa submit pipeline")
    for meaning in _MEANINGS:
        if found := meaning(statuses, word):
            return found
    begins = [s for s in statuses if word and s.run.startswith(word)]
    groups = dict.fromkeys(s.group for s in begins)
    if len(groups) > 1:
        candidates = [*groups][-LISTED:]
        left = f" and {len(groups) - LISTED} older ones" if len(groups) > LISTED else ""
        raise UnknownRun(
            f"{word!r} is the start of runs in {len(groups)} groups", allowed=", ".join(candidates) + left, hint=_ALL
        )
    if begins:
        return begins
    if (expand_user(word) / "plan.json").is_file():
        root = Path(os.path.realpath(os.path.expanduser(word))).parent
        raise UnknownRun("a run, but of a run root that is not known here", where=word,
                         hint=f"CLIPA_RUN_ROOT={root} clipa status")  # fmt: skip
    known = dict.fromkeys([LATEST, *(w for s in reversed(statuses) for w in (s.name, s.group, s.run) if w)])
    raise UnknownRun(f"no run {word!r}", hint=" ".join(filter(None, [did_you_mean(word, known), _ALL])))


def _latest(statuses: Sequence[RunStatus], word: str) -> list[RunStatus]:
    if word != LATEST:
        return []
    own = [s for s in statuses if not s.owner] or statuses  # of a shared run root, the newest of one's own
    return _group(statuses, own[-1].group)


def _id(statuses: Sequence[RunStatus], word: str) -> list[RunStatus]:
    return [s for s in statuses if s.run == word]


def _group(statuses: Sequence[RunStatus], word: str) -> list[RunStatus]:
    found = [s for s in statuses if s.group == word]
    return [s for s in found if not s.owner] or found  # a stranger's run may say that it is of this group


def _name(statuses: Sequence[RunStatus], word: str) -> list[RunStatus]:
    """The newest group of that name."""
    named = [s for s in statuses if s.name and s.name == word]
    mine = [s for s in named if not s.owner] or named
    return _group(mine, mine[-1].group) if mine else []


def _path(statuses: Sequence[RunStatus], word: str) -> list[RunStatus]:
    """A run directory, by any path that leads there."""
    if os.sep not in word and word not in (os.curdir, os.pardir):
        return []
    path = os.path.realpath(os.path.expanduser(word))
    named = [s for s in statuses if s.run == os.path.basename(path)]
    return [s for s in named if os.path.realpath(Path(s.root) / s.run) == path]


_MEANINGS: tuple[Callable[[Sequence[RunStatus], str], list[RunStatus]], ...] = (_latest, _id, _group, _name, _path)
