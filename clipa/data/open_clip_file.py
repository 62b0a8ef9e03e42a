"""The one door to open_clip: single files of it, without the package.

`import open_clip` pulls in torchvision, which fails where torchvision's build does not match torch's (CUDA build
with a CPU torch), and it takes seconds.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from clipa.errors import MissingPart


@cache
def open_clip_file(name: str) -> ModuleType:
    """A file of the installed open_clip as a module of its own, such as `tokenizer.py`.

    Raises:
        MissingPart: open_clip is not installed, or has no such file.
    """
    path = package_file("open_clip", name)
    spec = importlib.util.spec_from_file_location(f"clipa_open_clip_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_file(package: str, name: str) -> Path:
    """A file in the folder of an installed package, which is not imported.

    Raises:
        MissingPart: the package is not installed, or has no such file.
    """
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    if not folders:
        raise MissingPart(f"{package} is not installed here", hint="pip install 'clipa[train]'")
    path = Path(folders[0]) / name
    if not path.is_file():
        raise MissingPart(f"this {package} has no {name}", where=str(path), hint="pip install -U 'clipa[train]'")
    return path
