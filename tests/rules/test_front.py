"""What a newcomer meets: README, help texts, recipes and profiles."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from clipa.cli.main import app
from clipa.spec import catalog
from clipa.spec.load import load_cluster, load_recipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    children = getattr(command, "commands", {})
    found = [(path, command)]
    for name, child in children.items():
        found += _commands(child, (*path, name))
    return found


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "clipa")
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    assert "Example: clipa" in (COMMANDS[path].epilog or "")


def _readme_lines() -> list[str]:
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", README, re.DOTALL)
    lines = [line.removeprefix("$ ").strip() for block in blocks for line in block.splitlines()]
    return [line.partition("  #")[0] for line in lines if line.startswith("clipa ")]


def test_readme_has_commands() -> None:
    assert len(_readme_lines()) >= 5


@pytest.mark.parametrize("line", _readme_lines())
def test_readme_command_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in COMMANDS:
        path = (*path, words.pop(0))
    command = COMMANDS[path]
    known = {option for parameter in command.params for option in parameter.opts}
    assert path, f"no such command: {line}"
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{word} is no option of {' '.join(path)}"


def test_readme_names_the_two_commands_and_every_room() -> None:
    assert "make demo" in README
    assert "make test" in README
    rooms = [path.name for path in (ROOT / "clipa").iterdir() if (path / "__init__.py").is_file()]
    for room in rooms:
        assert re.search(rf"^\s*{room}/", README, re.MULTILINE), f"the README's tree lacks clipa/{room}/"
    for named in re.findall(r"^  (\w+)/  ", README, re.MULTILINE):
        assert named in rooms, f"the README's tree names clipa/{named}/, which is not there"


@pytest.mark.parametrize("name", catalog.recipes())
def test_recipe_loads_and_says_how_to_run_it(name: str) -> None:
    path = catalog.recipes()[name]
    load_recipe(path)
    header = path.read_text().partition("\n[")[0]
    for word in ("run:", "needs:", "expect:"):
        assert word in header, f"the header of {path.name} does not say {word}"


@pytest.mark.parametrize("name", catalog.clusters())
def test_profile_loads(name: str) -> None:
    load_cluster(catalog.clusters()[name])


def test_there_is_a_demo() -> None:
    assert catalog.DEMO_RECIPE in catalog.recipes()
    assert catalog.DEFAULT_CLUSTER in catalog.clusters()
