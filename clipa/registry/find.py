"""From what a person types to runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipa.errors import UnknownRun, did_you_mean
from clipa.registry.state import RunStatus

LATEST = "latest"


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
    if word == LATEST:
        return _group(statuses, statuses[-1].group)
    for exact in ([s for s in statuses if s.run == word], _group(statuses, word), _named(statuses, word)):
        if exact:
            return exact
    if "/" in word:
        path = Path(word).expanduser().absolute()
        found = [s for s in statuses if Path(s.root) / s.run == path]
        if found:
            return found
    begins = [s for s in statuses if word and s.run.startswith(word)]
    groups = {s.group for s in begins}
    if len(groups) == 1:
        return begins
    if groups:
        raise UnknownRun(f"{word!r} fits several runs", allowed=", ".join(s.run for s in begins[:8]))
    known = [LATEST, *(s.run for s in statuses), *(s.name for s in statuses if s.name)]
    raise UnknownRun(f"no run {word!r}", hint=did_you_mean(word, known) or "clipa runs list shows all runs")


def _group(statuses: Sequence[RunStatus], group: str) -> list[RunStatus]:
    return [s for s in statuses if s.group == group]


def _named(statuses: Sequence[RunStatus], name: str) -> list[RunStatus]:
    mine = [s for s in statuses if s.name and s.name == name]
    return _group(mine, mine[-1].group) if mine else []
