from __future__ import annotations

from pathlib import Path

import pytest

from clipa.launch import prepare
from clipa.storage import manifest as manifests


@pytest.mark.parametrize("kind", prepare._MADE)
def test_what_is_made_on_first_use_is_said_and_once(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(url: str, kind: str) -> None:
        for split in prepare._MADE[kind]:
            (Path(url) / split).mkdir(parents=True)
            (Path(url) / split / manifests.MANIFEST_NAME).touch()

    monkeypatch.setattr(prepare, "make_demo", make)
    said: list[str] = []
    for _ in range(2):
        assert prepare._demo_bucket(f"demo://{kind}/train", said.append).endswith("/train")
    (line,) = said
    assert f"demo://{kind}/train" in line
    assert "MiB, about" in line
