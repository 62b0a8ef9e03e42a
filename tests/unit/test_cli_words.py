from __future__ import annotations

from pathlib import Path

import pytest

from clipa.cli import words
from clipa.registry.roots import known_roots, remember


def test_runs_are_found_where_the_project_file_is_wrong(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words._root_here.cache_clear()
    remember(tmp_path / "runs")
    (tmp_path / "clipa.toml").write_text('[datasets]\nlaion = { ulr = "s3://b/x" }\n')
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert words.roots() == list(known_roots())
    said = capsys.readouterr().err
    assert "clipa.toml" in said
    assert "ulr" in said
    assert said.count("are shown") == 1, "said once, however often it looks"
    words._root_here.cache_clear()
