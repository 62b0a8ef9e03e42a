"""Hostile text on its way to a terminal."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from clipa.cli.console import console
from clipa.terminal import LogText, json_text, log_line, one_line, printable, say, say_json

HOSTILE = "a[/x][red]b[link=http://evil]c:smile:\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9b31m\u202egnp\r\udcff"
ANYTHING = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@settings(max_examples=60)
@given(ANYTHING)
def test_no_control_character_passes_the_door(text: str) -> None:
    assert not _ACTIVE.search(printable(text))
    assert not _ACTIVE.search(one_line(text))
    assert "\n" not in one_line(text)
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", ["plain", "größer 日本語", "👩‍👩‍👧", "two\nlines\tand a tab", "[bold]"])
def test_plain_text_is_not_changed(text: str) -> None:
    assert printable(text) == text


def test_escapes_can_be_read() -> None:
    assert one_line("\x1b[2J\n\u202e\udcff\ud800") == r"\x1b[2J\x0a\u202e\xff\ud800"


@settings(max_examples=60)
@given(ANYTHING, ANYTHING)
def test_json_stays_valid_and_holds_no_control(key: str, text: str) -> None:
    for written in (json_text({key: [text]}), json_text({key: [text]}, indent=2)):
        assert not _ACTIVE.search(written)
        found = json.loads(written)
        if not any("\ud800" <= c <= "\udfff" for c in key + text):
            assert found == {key: [text]}


@pytest.mark.parametrize("make", [str, Text], ids=["str", "Text"])
def test_a_console_shows_markup_and_controls_as_they_are(
    make: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table(box=None)
    table.add_column("name")
    table.add_row(make(HOSTILE), style="green")
    out = console()
    out.print(table, make(HOSTILE))
    said = capsys.readouterr().out
    assert said.count("a[/x][red]b[link=http://evil]c:smile:") == 2
    assert r"\x1b]52;c;" in said
    assert not _ACTIVE.search(re.sub(r"\x1b\[[0-9;]*m", "", said))


def test_a_stream_without_unicode_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("größer", 7, end="!\n")
    assert raw.getvalue() == b"gr\\xf6\\xdfer 7!\n"
    say_json({"größer": "日本\U0001f600\x1b"})
    assert json.loads(raw.getvalue().splitlines()[-1]) == {"größer": "日本\U0001f600\x1b"}
    monkeypatch.setattr(sys, "stdout", None)
    say("nobody listens")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b[38;5;8mgray", "\x1b[38;5;8mgray\x1b[0m"),
        ("\x1b[8mhidden", "hidden"),
        ("\x1b[1;8mhidden", "hidden"),
        ("\x1b[2J\x1b[1;1Hhome", "home"),
        ("\x1b]0;title\x07\x1b]52;c;cm0=\x1b\\x", "x"),
        ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
        ("\x9b2Jx\x9d0;t\x9cy", "xy"),
        ("\x1b]52;c;never ended", r"\x1b]52;c;never ended"),
        ("a\tb", "a\tb"),
    ],
)
def test_a_log_keeps_its_colors_alone(line: str, shown: str) -> None:
    assert log_line(line) == shown


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, 60))
def test_a_growing_log_is_safe_however_it_is_cut(raw: bytes, at: int) -> None:
    log = LogText()
    said = log.add(raw[:at]) + log.add(raw[at:]) + log.rest()
    assert not _ACTIVE.search(re.sub(r"\x1b\[[0-9;:]*m", "", said))


def test_a_sequence_in_two_chunks_is_one() -> None:
    log = LogText()
    assert log.add(b"\x1b[3") + log.add(b"1mred\nrest") + log.rest() == "\x1b[31mred\x1b[0m\nrest"
