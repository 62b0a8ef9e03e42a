"""Every JSON document is described in docs/json.md, and nothing else is."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from clipa.bench.train_facts import Report as TrainReport
from clipa.cli.transfer import DOCUMENTS
from clipa.data.doctor import Report
from clipa.data.shrink import Shrunk
from clipa.image.file import Exported
from clipa.made.splits import Written
from clipa.model.convert import Converted
from clipa.registry.state import RunStatus
from clipa.staging.cache import Swept

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "json.md").read_text()
STRUCTS: dict[str, type] = {
    "clipa.bench-train/1": TrainReport,
    "clipa.data-doctor/1": Report,
    "clipa.data-shrink/1": Shrunk,
    "clipa.data-demo/1": Written,
    "clipa.cache-eviction/1": Swept,
    "clipa.image-file/1": Exported,
    "clipa.weights/1": Converted,
    **{schema: event for event, schema in DOCUMENTS.items()},
}
"""Documents whose fields are those of a struct."""


def _written() -> dict[str, set[str]]:
    """Return the schema and the literal fields of every document in the code."""
    found: dict[str, set[str]] = defaultdict(set, {"clipa.data-event/1": {"event"}})
    for path in (ROOT / "clipa").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say_document":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found[first.value] |= {word.arg for word in node.keywords if word.arg}
    for schema, struct in STRUCTS.items():
        found[schema] |= {field.name for field in msgspec.structs.fields(struct)}
    return found


def _section(schema: str) -> str:
    return re.split(r"^(?:`clipa\.|#)", PAGE.partition(f"`{schema}`:")[2], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("schema", sorted(_written()))
def test_every_field_of_a_document_is_described(schema: str) -> None:
    missing = [name for name in _written()[schema] if f"`{name}`" not in _section(schema)]
    assert not missing, f"docs/json.md does not name {missing} of {schema}"


def test_no_document_is_described_that_there_is_not() -> None:
    assert set(re.findall(r"^`(clipa\.[a-z-]+/\d+)`:", PAGE, flags=re.MULTILINE)) == set(_written())


def test_every_field_of_a_run_status_is_described() -> None:
    missing = [field.name for field in msgspec.structs.fields(RunStatus) if f"`{field.name}`" not in PAGE]
    assert not missing, f"docs/json.md does not name {missing}"


def test_json_is_printed_in_one_way() -> None:
    users = {str(path.relative_to(ROOT)) for path in (ROOT / "clipa").rglob("*.py") if "say_json(" in path.read_text()}
    assert users == {"clipa/terminal.py", "clipa/cli/transfer.py", "clipa/attempt/trial.py"}, (
        "say_document has a schema"
    )
