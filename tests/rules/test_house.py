"""The rules of the house, each held by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "clipa").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

DOORS = {
    "submitit": {"clipa/launch/submit.py"},
    "docker": {"clipa/image/engine.py", "clipa/image/login.py"},
    "requests": {"clipa/image/engine.py", "clipa/image/registry.py"},
    "fsspec": {"clipa/storage/store.py"},
    "s3fs": {"clipa/storage/store.py"},
    "webdataset": {"clipa/data/wds.py"},
    "timm": {"clipa/model/towers.py"},
    "torchvision": {"clipa/model/torchvision_guard.py"},
    "sklearn": {"clipa/made/digits.py"},
    "xxhash": {"clipa/storage/digest.py"},
    "obstore": {"clipa/storage/fast.py"},
    "nltk": {"clipa/reduction/nltk_tagger.py"},
    "tokenizers": {"clipa/data/wordpiece.py"},
    "huggingface_hub": {"clipa/data/wordpiece.py"},
    "wandb": {"clipa/tell/wandb_tracker.py"},
    "trackio": {"clipa/tell/trackio_tracker.py"},
    "mlflow": {"clipa/tell/mlflow_tracker.py"},
    "sqlite3": {"clipa/registry/index.py"},
}
HEAVY = ("torch", "numpy", "s3fs", "fsspec", "submitit", "docker", "sqlite3", "timm", "botocore", "aiohttp")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("library", DOORS)
def test_one_door(library: str) -> None:
    users = {_name(path) for path in SOURCES if library in _imports(path)}
    assert users <= DOORS[library], f"{library} is imported outside its door: {users - DOORS[library]}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE, "this file wants to be two"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines, and wants to be two"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_unsafe_and_no_bag(path: Path) -> None:
    assert path.stem not in {"utils", "common", "helpers", "misc"}, "name the concept"
    text = path.read_text()
    for word in ("shell=True", "os.system(", "pickle.load", "TO" + "DO", "FIX" + "ME"):
        assert word not in text, f"{word} stands in {_name(path)}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_current_and_home_folder_are_asked_for_in_one_place_which_knows_that_they_may_be_missing(path: Path) -> None:
    text = path.read_text()
    for word in ("Path.cwd()", "Path.home()", ".expanduser()", "os.getcwd()"):
        assert word not in text or _name(path) == "clipa/spec/user_paths.py", f"{word} stands in {_name(path)}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_torch_files_are_read_in_one_place_without_unpickling(path: Path) -> None:
    text = path.read_text()
    assert text.count("torch.load(") == (1 if _name(path) == "clipa/attempt/weights.py" else 0)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("weights_only") == "True"


STARTS_PYTHON = {"clipa/interpreter.py", "clipa/launch/probe.py", "clipa/bench/submit.py"}
"""The node's interpreter is another one; the benchmark names the command that a user would type."""


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_python_is_started_without_the_current_folder_on_its_path(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        started = isinstance(node, ast.Constant) and node.value == "-m"
        assert not started or _name(path) in STARTS_PYTHON, "use module_argv of clipa.interpreter"


def test_the_front_door_is_cheap() -> None:
    code = f"import sys, clipa.cli.main; print([m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]", f"`clipa --help` imports {loaded}"


def test_import_contracts() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_no_leaks() -> None:
    words = ("/wo" + "rk/", "fa" + "rm-", "/tmp/" + "bash_jobs")
    for word in words:
        done = subprocess.run(["git", "grep", "-nI", word], cwd=ROOT, capture_output=True, text=True, check=False)
        assert not done.stdout, done.stdout


def test_changelog_has_this_version() -> None:
    from clipa import __version__

    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
