"""Checkpoints and results of runs at a URL: names there, and the newest checkpoint that is whole.

    <url>/<run>/plan.json, evals/*.json            results
    <url>/<run>/checkpoints/step-<n>/...           as in the run directory; COMPLETE is written last, and only if absent

There is no pointer to the latest: stores disagree on compare-and-swap (Ceph 16 answers 412 to a correct quoted ETag).
The newest is the one with the highest step among those whose COMPLETE is there.
"""

from __future__ import annotations

import re

import msgspec

from clipa.errors import InputError
from clipa.spec import card
from clipa.spec.cluster import Dataset
from clipa.storage.store import Store

_STEP = re.compile(rf"(?:checkpoints/)?(step-(\d{{1,18}}))/{card.COMPLETE_NAME}")


def checkpoint_name(folder: str) -> str:
    """The name of a checkpoint's folder below its run's URL."""
    return f"checkpoints/{folder}"


def whole_checkpoint(source: Dataset) -> Dataset:
    """The checkpoint that a URL means: itself, or the newest whole one of the run that was published there.

    Raises:
        InputError: neither is there.
        StorageError: the store does not answer.
    """
    store = Store(source)
    if store.exists(card.COMPLETE_NAME):
        return source
    found = [(int(match[2]), entry.name) for entry in store.list() if (match := _STEP.fullmatch(entry.name))]
    if not found:
        raise InputError(
            "neither a checkpoint nor a published run",
            where=store.url,
            allowed=f"a folder with {card.COMPLETE_NAME}, or one with checkpoints/step-*/{card.COMPLETE_NAME}",
        )
    name = max(found)[1].removesuffix(f"/{card.COMPLETE_NAME}")
    return msgspec.structs.replace(source, url=f"{source.url.rstrip('/')}/{name}")
