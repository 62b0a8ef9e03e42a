"""What goes into an image, and the tag that follows."""

from __future__ import annotations

import io
import os
import tarfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clipa.errors import ConfigError, MissingPart
from clipa.image import context

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "clipa/a.py": "print(1)\n",
    "clipa/room/b.py": "x = 2\n",
    "jobs/demo.toml": "",
    "docker/Dockerfile": "FROM x\n",
    "docker/lock-cpu.txt": "torch==1\n",
    "pyproject.toml": "",
}


def _tree(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_only_the_allow_list_goes_in(tmp_path: Path) -> None:
    folder = _tree(tmp_path)
    for name in ("secret.env", ".git/config", "runs/x/plan.json", "clipa/__pycache__/a.pyc", "docker/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no")
    assert [name for name, _ in context.read(folder).files] == sorted(FILES)


def test_the_dockerignore_is_the_same_list() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert sorted(lines[1:-1]) == sorted(f"!{pattern}" for pattern in context.ALLOWED)
    assert lines[-1] == "**/__pycache__", "the last line that fits decides"


@pytest.mark.parametrize("name", [name for name in FILES if name != "docker/Dockerfile"])
def test_every_file_changes_the_digest_and_times_do_not(tmp_path: Path, name: str) -> None:
    folder = _tree(tmp_path)
    before = context.read(folder).digest
    os.utime(folder / name, (1, 1))
    assert context.read(folder).digest == before
    (folder / name).write_text("changed")
    assert context.read(folder).digest != before
    (folder / name).write_text(FILES[name])
    (folder / name).chmod(0o755)
    assert context.read(folder).digest != before, "a file's x bit goes into the image"
    (folder / name).chmod(0o644)
    (folder / name).rename(folder / f"{name}.txt")
    assert context.read(folder).digest != before


def test_the_tar_is_the_same_bytes_for_the_same_content(tmp_path: Path) -> None:
    packed = []
    for name in ("one", "two"):
        folder = _tree(tmp_path / name)
        os.utime(folder / "clipa" / "a.py", (len(packed), 5))
        out = io.BytesIO()
        context.pack(context.read(folder), out)
        packed.append(out.getvalue())
    assert packed[0] == packed[1]
    with tarfile.open(fileobj=io.BytesIO(packed[0])) as tar:
        assert tar.getnames() == sorted(FILES)


def test_the_digest_of_code_is_about_python_files_alone(tmp_path: Path) -> None:
    package = _tree(tmp_path) / "clipa"
    before = context.code_digest(package)
    (package / "notes.md").write_text("words")
    (package / "a.py").chmod(0o755)
    assert context.code_digest(package) == before, "a wheel holds no x bits, and other files do not run"
    (package / "a.py").write_text("print(2)\n")
    assert context.code_digest(package) != before


PARTS = st.tuples(st.text(max_size=9), st.text(max_size=9), st.sampled_from(["cuda", "cpu"]), st.text(max_size=9))


@given(PARTS, PARTS, st.dictionaries(st.text("AB", min_size=1, max_size=3), st.text(max_size=4), max_size=3))
def test_a_tag_is_a_function_of_all_its_parts(
    one: tuple[str, str, str, str], two: tuple[str, str, str, str], args: dict[str, str]
) -> None:
    def tag(parts: tuple[str, str, str, str], the_args: dict[str, str]) -> str:
        return context.tag(parts[0], parts[1], parts[2], the_args, parts[3])

    assert tag(one, args) == tag(one, dict(reversed(args.items())))
    if one != two and chr(0) not in "".join(one + two):
        assert tag(one, {}) != tag(two, {})
    assert tag(one, {**args, "Z": "1"}) != tag(one, args)
    assert tag(one, {**args, "PIP_INDEX_URL": "x", "https_proxy": "y"}) == tag(one, args), "ways are no content"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("noequals", "no build argument"),
        ("=x", "no build argument"),
        ("a b=x", "no build argument"),
        ("VARIANT=cpu", "--variant"),
        ("HF_TOKEN=abc", "secret"),
        ("AWS_SECRET_ACCESS_KEY=abc", "secret"),
        ("PIP_INDEX_URL=https://me:word@index.example/simple", "secret"),
        ("X=ghp_0123456789", "secret"),
        ("X=-----BEGIN RSA PRIVATE KEY-----", "secret"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        context.build_args([word])
    assert said in str(caught.value)
    value = word.partition("=")[2]
    assert len(value) < 4 or value not in str(caught.value), "the value is not repeated"


def test_plain_arguments_pass() -> None:
    words = ["PIP_INDEX_URL=https://index.example/simple", "HTTP_PROXY=http://proxy:3128", "EMPTY="]
    assert context.build_args(words) == dict(word.split("=", 1) for word in words)


def test_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no checkout"):
        context.checkout(tmp_path)
    monkeypatch.setattr(context, "__file__", str(tmp_path / "site-packages/clipa/image/context.py"))
    with pytest.raises(MissingPart, match="without its sources"):
        context.checkout(None)


@pytest.mark.parametrize("variant", ["cuda", "cpu"])
def test_the_lock_files_hold_what_the_project_needs(variant: str) -> None:
    """A dependency that was added to pyproject.toml is in the image only after `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docker" / f"lock-{variant}.txt").read_text()
    lines = [line.rstrip(" \\") for line in text.splitlines() if line and line[0] not in "# "]
    locked: dict[str, list[Requirement]] = {}
    for line in lines:
        locked.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    extras = [word for extra in ("train", "fast") for word in project["optional-dependencies"][extra]]
    for word in (*project["dependencies"], *extras, "hatchling"):
        wanted = Requirement(word)
        found = locked.get(canonicalize_name(wanted.name), [])
        versions = [next(iter(pin.specifier)).version.partition("+")[0] for pin in found]
        assert versions, f"{wanted.name} is not in docker/lock-{variant}.txt: make lock"
        assert all(version in wanted.specifier for version in versions), f"{wanted} is locked at {versions}: make lock"
    assert "://" not in text, "no line names an index"
    assert ("nvidia-" in text) == (variant == "cuda")
    assert ("--hash=" in text) == (variant == "cuda")
