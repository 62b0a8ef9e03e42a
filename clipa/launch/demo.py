"""The data that clipa makes by itself, made when a recipe first names them: `demo://digits/train`."""

from __future__ import annotations

import importlib.util
import subprocess

import clipa
from clipa.errors import ConfigError, MissingPart, StorageError
from clipa.interpreter import module_argv
from clipa.launch.pin import Say
from clipa.spec.child_environment import child_environment
from clipa.spec.user_paths import user_folder
from clipa.storage import manifest as manifests

MADE = {"digits": ("train", "val", "test"), "emoji": ("train", "val", "test", "unseen")}
"""The data that clipa makes by itself, and their splits (`clipa.made.demo`)."""
_MAKING = {
    "digits": "handwritten digits, 22 MiB, about 5 s",
    "emoji": "emoji and their names, 41 MiB, about 15 s",
}
"""What is made, and how long that took on one core (3 and 13 CPU seconds, and the start)."""


def bucket(url: str, say: Say) -> str:
    """The folder of a split of what clipa makes; its bucket is made on first use by `clipa data demo`."""
    kind, _, split = url.removeprefix("demo://").partition("/")
    if split not in MADE.get(kind, ()):
        allowed = (f"demo://{name}/{part}" for name, parts in MADE.items() for part in parts)
        raise ConfigError("no such demo data", where=url, allowed=", ".join(allowed))
    where = user_folder("cache") / "demo" / f"{kind}-{clipa.__version__}"
    if not all((where / name / manifests.MANIFEST_NAME).is_file() for name in MADE[kind]):
        say(f"making the data of {url}, once for this version of clipa: {_MAKING[kind]}, in {where}")
        make(str(where), kind)
    return str(where / split)


def make(url: str, kind: str = "digits") -> None:
    """Write a data set that clipa makes by itself to a URL.

    Raises:
        MissingPart: what the data are made of is not installed here.
        StorageError: the maker failed; its last words are in the message.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPart("the demo's data are made with scikit-learn, which is not installed here",
                          hint="pip install 'clipa[train]'")  # fmt: skip
    argv = module_argv("clipa.made.demo", url, "--of", kind)
    made = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", env=child_environment())
    if made.returncode == MissingPart.exit_code:
        raise MissingPart(made.stderr.strip()[-400:])
    if made.returncode:
        raise StorageError("the demo data could not be made", where=url, hint=made.stderr.strip()[-400:])
