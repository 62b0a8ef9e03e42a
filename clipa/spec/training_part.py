"""Packages that training needs and the base install lacks: the extra `train` of pyproject.toml."""

from __future__ import annotations

import importlib.util

from clipa.errors import MissingPart

PACKAGES = ("torch", "timm", "webdataset", "open_clip", "tokenizers", "safetensors", "numpy", "PIL", "simplejpeg")
"""By the names under which they are imported; scikit-learn, which the demo's data alone need, is asked for there."""
INSTALL = "pip install 'clipa[train]'"


def missing() -> list[str]:
    """Return the packages of the training part that are not installed in this environment, without importing any."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def require(what: str, where: str = "") -> None:
    """Refuse to go on where a package of the training part is not installed.

    Args:
        what: what needs it.
        where: the environment that was looked at, where that is not plain.

    Raises:
        MissingPart: with the command that installs them.
    """
    if names := missing():
        raise MissingPart(f"{what} needs clipa's training part; not installed: {', '.join(names)}", where=where,
                          hint=INSTALL)  # fmt: skip
