"""Starting weights: from a run, a folder or a URL, found and checked before anything is queued."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from clipa.errors import ConfigError, UnknownRun
from clipa.registry.find import find
from clipa.registry.run_dir import RunDir
from clipa.registry.state import RunStatus, State
from clipa.spec import card as cards
from clipa.spec.cluster import Dataset
from clipa.spec.model import Model
from clipa.spec.plan import Weights
from clipa.spec.user_paths import expand_user
from clipa.storage.access import reached
from clipa.storage.published import whole_checkpoint

TRAINS = ("pretrain", "finetune")
"""Kinds of runs that have weights."""


def from_word(
    word: str, statuses: Sequence[RunStatus], run_root: Path, bound: Mapping[str, Dataset] | None = None
) -> Weights:
    """What the user gave to `--from`: a run, the path of a run or checkpoint folder, or a URL.

    A URL is reached as the dataset among `bound` that lies in the same bucket, and so is a name of `bound`.

    Raises:
        ConfigError: a folder without a whole checkpoint, or a run that trained nothing.
        InputError: a URL without a whole checkpoint.
        UnknownRun: no such run.
    """
    known = bound or {}
    if word in known and "://" in known[word].url:
        return _at_url(known[word])
    if "://" in word and not word.startswith("file://"):
        return _at_url(reached(word, known))
    path = expand_user(word.removeprefix("file://"))
    if path.is_dir():
        return _from_folder(path.absolute())
    if os.sep in word:
        raise ConfigError("no such folder", where=f"--from {word}")
    trained = [status for status in find(statuses, word) if status.kind in TRAINS]
    if not trained:
        raise ConfigError("that run trained nothing", where=f"--from {word}", hint="give a pretrain or finetune run")
    return _from_run(trained[-1], run_root)


def newest_done(
    statuses: Sequence[RunStatus], recipe: str, cluster: str, phases: Sequence[str], run_root: Path, what: str
) -> tuple[Weights, str]:
    """The newest DONE run among these phases of a recipe on a cluster, latest phase first; no other user's.

    Raises:
        UnknownRun: there is none; the message lists the runs of the recipe that there are.
    """
    mine = [s for s in statuses if s.recipe == recipe and s.cluster == cluster and not s.owner]
    for phase in reversed(phases):
        done = [s for s in mine if s.phase == phase and s.state is State.DONE]
        if done:
            newest = max(done, key=lambda status: status.created)
            return _from_run(newest, run_root), newest.run
    listed = ", ".join(f"{s.run} {s.state.value}" for s in mine if s.phase in phases) or "none"
    raise UnknownRun(
        f"no DONE run of {' or '.join(phases) or 'a training phase'} of the recipe {recipe} on {cluster} to start from",
        allowed=f"runs there: {listed}",
        hint=f"clipa submit {what} --from RUN|PATH|URL, or clipa submit pipeline",
    )


def check(weights: Weights, model: Model, run_root: Path) -> None:
    """Refuse weights of another model.

    Raises:
        ConfigError: naming both values.
    """
    raw = _card_bytes(weights, run_root)
    try:
        card = cards.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"the checkpoint's card cannot be read: {error}", where=weights.ref) from error
    cards.require_same_model(model, card.model, weights.ref)


def _at_url(source: Dataset) -> Weights:
    found = whole_checkpoint(source)
    return Weights(ref=found.url, source=found)


def _from_run(status: RunStatus, run_root: Path) -> Weights:
    folder = Path(status.root) / status.run
    _newest(RunDir(folder))
    if Path(status.root) == run_root:
        return Weights(ref=f"run:{status.run}@final", run=status.run)
    return Weights(ref=str(folder))


def _from_folder(path: Path) -> Weights:
    if (path / cards.COMPLETE_NAME).is_file():
        return Weights(ref=str(path))
    if RunDir(path).plan.is_file():
        _newest(RunDir(path))
        return Weights(ref=str(path))
    raise ConfigError(
        "neither a checkpoint nor a run",
        where=f"--from {path}",
        allowed=f"a folder with {cards.COMPLETE_NAME} and {cards.WEIGHTS_NAME}, or a run directory",
        hint=f"other weights are taken in by: clipa convert {shlex.quote(str(path))} NEW_FOLDER",
    )


def _newest(run: RunDir) -> Path:
    found = run.complete_checkpoints()
    if not found:
        raise ConfigError("the run has no whole checkpoint yet", where=run.id, hint=f"clipa status {run.id}")
    return found[-1][1]


def _card_bytes(weights: Weights, run_root: Path) -> bytes:
    if weights.is_run:
        return (_newest(RunDir(run_root / weights.run)) / cards.CARD_NAME).read_bytes()
    if "://" in weights.ref:
        from clipa.storage.store import Store

        return Store(weights.source or weights.ref).read(cards.CARD_NAME)
    folder = Path(weights.ref)
    folder = folder if (folder / cards.COMPLETE_NAME).is_file() else _newest(RunDir(folder))
    try:
        return (folder / cards.CARD_NAME).read_bytes()
    except OSError as error:
        raise ConfigError("the checkpoint has no card", where=str(folder), allowed=cards.CARD_NAME) from error
