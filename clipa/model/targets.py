"""Where converted weights go: a checkpoint folder of ours, or a folder that open_clip loads as `local-dir:`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from clipa.attempt.weights import File, sha256, write_tensors
from clipa.data.tokenizer import tokenizer
from clipa.data.wordpiece import WordPiece
from clipa.errors import ConfigError
from clipa.model import open_clip_config
from clipa.model.open_clip_names import to_open_clip
from clipa.model.sources import Source
from clipa.registry.run_dir import sync_folder, write_whole
from clipa.spec.card import CARD_NAME, COMPLETE_NAME, WEIGHTS_NAME

Form: TypeAlias = Literal["clipa", "open_clip"]
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"


def write(source: Source, folder: Path, form: Form) -> None:
    """Write the folder whole or not at all.

    Raises:
        ConfigError: it exists already, open_clip cannot express the model, or BERT's vocabulary is not here.
        OSError: the disk failed.
    """
    if folder.exists():
        raise ConfigError("there is something already", where=str(folder), hint="give a folder that does not exist yet")
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        _WRITERS[form](source, part)
        os.replace(part, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write_checkpoint(source: Source, folder: Path) -> None:
    write_tensors(folder / WEIGHTS_NAME, source.weights)
    write_whole(folder / CARD_NAME, msgspec.json.format(msgspec.json.encode(source.card), indent=2))
    shutil.copymode(folder / CARD_NAME, folder / WEIGHTS_NAME)  # safetensors writes for the owner alone
    files = {path.name: File(size=path.stat().st_size, sha256=sha256(path)) for path in sorted(folder.iterdir())}
    write_whole(folder / COMPLETE_NAME, msgspec.json.encode(files))


def _write_open_clip(source: Source, folder: Path) -> None:
    config = open_clip_config.config_of(source.card)
    words = tokenizer(source.card.model.text.tokenizer)
    if isinstance(words, WordPiece):  # CLIP's own byte pairs come with open_clip
        words.save(folder)
    write_tensors(folder / OPEN_CLIP_WEIGHTS, to_open_clip(source.card.model, source.weights))
    write_whole(folder / open_clip_config.NAME, msgspec.json.format(msgspec.json.encode(config), indent=2))
    shutil.copymode(folder / open_clip_config.NAME, folder / OPEN_CLIP_WEIGHTS)  # as above


_WRITERS: dict[Form, Callable[[Source, Path], None]] = {"clipa": _write_checkpoint, "open_clip": _write_open_clip}


def notes_of(source: Source, form: Form) -> tuple[str, ...]:
    """What changes by going there, in sentences."""
    if form == "clipa":
        return source.notes
    traits = source.card.model.traits
    notes = [*source.notes]
    if traits.new_grid == "recomputed":
        notes.append(
            "at another image size open_clip interpolates the positions, CLIPA-v2 recomputes them: "
            "convert once for each size (--image-size)"
        )
    if traits.tokenizer == "bert-wordpiece":
        notes.append(
            "the folder's tokenizer has no [SEP], as published; open_clip's own for ViT-*-CLIPA keeps its place"
        )
    return tuple(notes)
