from __future__ import annotations

from pathlib import Path

import pytest

from clipa.launch import demo
from clipa.storage import manifest as manifests


@pytest.mark.parametrize("kind", demo.MADE)
def test_what_is_made_on_first_use_is_said_and_once(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(url: str, kind: str) -> None:
        for split in demo.MADE[kind]:
            (Path(url) / split).mkdir(parents=True)
            (Path(url) / split / manifests.MANIFEST_NAME).touch()

    monkeypatch.setattr(demo, "make", make)
    said: list[str] = []
    for _ in range(2):
        assert demo.bucket(f"demo://{kind}/train", said.append).endswith("/train")
    (line,) = said
    assert f"demo://{kind}/train" in line
    assert "MiB, about" in line
