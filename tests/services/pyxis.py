#!/usr/bin/env python3
"""A stand-in for `srun` with pyxis: holds a command against what pyxis documents, then runs it without a container.

Run as a program it is `srun`: words that begin with `--container-` are checked by the table below (pyxis 0.24's README,
its option list and its rules for values) and taken out. With CLIPA_TEST_SRUN, the rest goes to that srun; without, the
command runs here. An srun without any container option is passed on as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_PATH = r"/[^:,]+"
OPTIONS = {
    "--container-image": rf"{_PATH}|([^#@/]+@)?([^#]+#)?[A-Za-z0-9][^#\s]*",
    "--container-mounts": rf"{_PATH}(:{_PATH}(:[a-z+]+)?)?(,{_PATH}(:{_PATH}(:[a-z+]+)?)?)*",
    "--container-workdir": r"/.*",
    "--container-name": r"[A-Za-z0-9._-]+(:(auto|create|exec|no_exec))?",
    "--container-env": r"[A-Za-z_][A-Za-z0-9_]*(,[A-Za-z_][A-Za-z0-9_]*)*",
    "--container-writable": None,
    "--container-readonly": None,
    "--container-remap-root": None,
    "--no-container-remap-root": None,
    "--container-mount-home": None,
    "--no-container-mount-home": None,
    "--container-entrypoint": None,
    "--no-container-entrypoint": None,
}
"""Option -> what its value must look like; None: it takes none."""


def faults(words: list[str]) -> list[str]:
    """What pyxis would refuse, or would not do."""
    found = []
    for word in words:
        name, sign, value = word.partition("=")
        if "container" not in name or not name.startswith("--"):
            continue
        if name not in OPTIONS:
            found.append(f"no such option: {name}")
            continue
        wanted = OPTIONS[name]
        if bool(sign) != (wanted is not None) or (wanted and not re.fullmatch(wanted, value)):
            found.append(f"{name} has a bad value: {value}")
        if name == "--container-image" and value.startswith("/") and not Path(value).is_file():
            found.append(f"no such image: {value}")
        if name == "--container-mounts":
            found += [f"no such source: {one}" for one in value.split(",") if not os.path.exists(one.split(":")[0])]
        if name == "--container-env":
            found += [f"not set: {one}" for one in value.split(",") if one not in os.environ]
    return found


def main() -> None:
    """Check, then run."""
    words = sys.argv[1:]
    options = [word for word in words if word.startswith("--")]
    command = words[next((n for n, word in enumerate(words) if not word.startswith("-")), len(words)) :]
    real = os.environ.get("CLIPA_TEST_SRUN", "")
    if any("container" in word.partition("=")[0] for word in options[: len(words) - len(command)]):
        if wrong := faults(words[: len(words) - len(command)]):
            sys.exit("pyxis: " + "; ".join(wrong))
        with open(os.environ["CLIPA_TEST_PYXIS_LOG"], "a") as log:
            print(" ".join(words), file=log)
        words = [w for w in words[: len(words) - len(command)] if "container" not in w.partition("=")[0]] + command
    if real:
        os.execv(real, [real, *words])
    sys.exit(subprocess.call(command))


if __name__ == "__main__":
    main()
