"""Where BERT's uncased vocabulary lies on a machine: asked before anything is queued, and by the training process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clipa.errors import ConfigError
from clipa.spec.user_paths import expand_user

VARIABLE = "CLIPA_BERT_VOCAB"
FILE = "vocab.txt"
HINT = (
    f"set {VARIABLE} to {FILE} of bert-base-uncased or to the folder that holds it, in the shell or under [env] of the "
    "cluster profile (huggingface-cli download google-bert/bert-base-uncased vocab.txt fetches it where there is a "
    "network; docker/words/README.md puts it into an image)"
)
_HUB_NAMES = ("google-bert/bert-base-uncased", "bert-base-uncased")


def find_vocabulary(environment: Mapping[str, str]) -> Path:
    """The file of BERT's uncased vocabulary: where `CLIPA_BERT_VOCAB` says, else in the hub's cache. No network.

    Args:
        environment: of the process that will read it.

    Raises:
        ConfigError: it is in neither place.
    """
    if named := environment.get(VARIABLE, ""):
        path = expand_user(named)
        path = path / FILE if path.is_dir() else path
        if path.is_file():
            return path
        raise ConfigError("BERT's vocabulary is not there", where=f"{VARIABLE}={named}", hint=HINT)
    for name in _HUB_NAMES:
        if found := _cached(_hub_cache(environment), name):
            return found
    raise ConfigError(
        "the tokenizer bert-wordpiece needs BERT's uncased vocabulary, which is not on this machine",
        where=f"{VARIABLE} is not set, and the Hugging Face cache has no {_HUB_NAMES[0]}",
        hint=HINT,
    )


def _hub_cache(environment: Mapping[str, str]) -> Path:
    """The folder of the hub's cache (huggingface_hub, "Environment variables")."""
    if folder := environment.get("HF_HUB_CACHE"):
        return expand_user(folder)
    home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return expand_user(home) / "hub"


def _cached(cache: Path, name: str) -> Path | None:
    """The file of the newest revision that was downloaded (huggingface_hub, "Understand caching")."""
    folder = cache / f"models--{name.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = folder / "snapshots" / revision / FILE
    return path if path.is_file() else None
