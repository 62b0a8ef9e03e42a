"""Text from outside reaches a terminal through one door: nothing else prints, and nothing reads markup."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "clipa").rglob("*.py"))
DOORS = {"clipa/terminal.py", "clipa/cli/console.py", "clipa/cli/streams.py"}
PIPES = {"clipa/staging/bring.py"}
"""Their stdout is a pipe to another process of ours, and carries JSON."""
PRINTERS = {"print", "typer.echo", "typer.secho", "click.echo", "Console", "rich.print", "Text.from_markup",
            "Text.from_ansi", "rich.print_json"}  # fmt: skip


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in SOURCES if _name(p) not in DOORS], ids=_name)
def test_everything_is_printed_through_the_terminal_door(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in PRINTERS, f"line {node.lineno}: {called}(...): use say() of clipa.terminal"
            written = called in {f"sys.{s}.{w}" for s in ("stdout", "stderr") for w in ("write", "buffer.write")}
            assert not written or _name(path) in PIPES, f"line {node.lineno}: {called}: use send() of clipa.terminal"
            marked = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg in ("markup", "emoji")}
            assert "True" not in marked.values(), f"line {node.lineno}: markup of text from outside"
            progress = called == "TextColumn"
            assert not progress or marked.get("markup") == "False", f"line {node.lineno}: TextColumn(markup=False)"
