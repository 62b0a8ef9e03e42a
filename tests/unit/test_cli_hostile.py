"""Runs, names and logs that somebody else wrote, as the commands show them."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from clipa.cli import words
from clipa.cli.main import main
from clipa.registry.picture import Scene, Words, to_svg
from clipa.registry.roots import remember
from tests.unit.test_registry_state import PLAN

ESCAPES = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\u202e"
MARKUP = "[/x][red][link=http://evil]"
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def make(root: Path, run: str, **changes: object) -> Path:
    folder = root / run
    (folder / "events").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({**PLAN, "run_root": str(root), "run": run, **changes}))
    lines = [
        {"t": 1.0, "attempt": 1, "event": "queued"},
        {"t": 2.0, "attempt": 1, "event": "scored", "set": "[/nope]", "size": 8, "step": 1, "samples": 9,
         "seconds": 1.0, "metric": "top1", "value": 50.0, "metrics": {"[/m]": 50.0}},
        {"t": 3.0, "attempt": 1, "event": "ended", "outcome": "failed", "cause": "code", "final": True,
         "error": f"it broke {MARKUP}{ESCAPES}"},
    ]  # fmt: skip
    (folder / "events" / "1-supervisor.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def roots(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words._root_here.cache_clear()
    remember(tmp_path / "runs")
    monkeypatch.setenv("CLIPA_RUN_ROOT", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs", "good", name="plain")
    make(tmp_path / "runs", "marked", name=MARKUP, recipe=MARKUP, phase="[/p]")
    make(tmp_path / "runs", "escaped", name=f"a{ESCAPES}", recipe=f"r{ESCAPES}", group=f"g\n{ESCAPES}")
    return tmp_path / "runs"


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    monkeypatch.setattr(sys, "argv", ["clipa", *argv])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert not _ACTIVE.search(said.out + said.err)
    assert "Traceback" not in said.err
    return said.out


@pytest.mark.parametrize("argv", [["status"], ["status", "--json"], ["runs", "list"], ["runs", "show", "marked"],
                                  ["doctor"], ["doctor", "--json"], ["wait", "marked"]], ids=" ".join)  # fmt: skip
def test_a_hostile_name_neither_stops_a_command_nor_reaches_the_terminal(
    roots: Path, argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(capsys, monkeypatch, *argv)
    if "show" in argv:
        assert "[/nope]" in said
    if "doctor" not in argv:
        assert MARKUP in said or "marked" in argv
        assert "good" in said or "marked" in argv
    if "--json" in argv:
        assert json.loads(said)


def test_what_a_shell_is_offered_holds_nothing_that_it_would_run(roots: Path) -> None:
    make(roots, "$(touch x)`id`;'\"", name="a b")
    assert sorted(words.complete_run("")) == ["good", "latest", "marked", "plain"]


def test_hostile_words_in_a_picture_are_text(roots: Path) -> None:
    text = f"<script>\ufffe{MARKUP}{ESCAPES}\udcff"
    made = to_svg(Scene(width=9, height=9, lines=(), dots=(), words=(Words(x=1, y=1, text=text),)))
    found = ElementTree.fromstring(made.encode())
    assert [e.tag.partition("}")[2] for e in found] == ["rect", "text"]
    assert found[1].text.startswith("<script>")
