"""The demo's data, made once a session: 3.5 s of processor time that every test with a home of its own would spend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clipa

PLACE = f"clipa/demo/digits-{clipa.__version__}"
"""Where clipa looks for them, below the user's cache."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their folder; not to be written to."""
    folder = tmp_path_factory.mktemp("digits") / "made"
    subprocess.run([sys.executable, "-m", "clipa.made.demo", str(folder), "--of", "digits"], check=True, cwd="/")
    return folder


@pytest.fixture
def has_digits(digits: Path, home: Path) -> None:
    """The user of this test has them already."""
    shutil.copytree(digits, home / ".cache" / PLACE, copy_function=os.link)
