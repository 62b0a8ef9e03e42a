"""WordNet's files, from which the table of word classes was made."""

from __future__ import annotations

from pathlib import Path

from tests.services.require import require

PACKAGES = "wordnet-base"
FOLDER = Path("/usr/share/wordnet")


def wordnet() -> Path:
    """The folder of WordNet 3.0; skips where it is not installed, and fails in CI."""
    require((FOLDER / "cntlist.rev").is_file(), f"WordNet is not installed: apt-get install {PACKAGES}")
    return FOLDER
