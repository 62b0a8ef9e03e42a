"""Write docker/lock-cuda.txt and docker/lock-cpu.txt from pyproject.toml: `make lock`. Needs uv.

The image installs exactly these, without resolving anything (`pip install --no-deps`). No line names an index, so that
a mirror, a wheelhouse or PyPI can serve them. The CUDA list has hashes. The CPU list is the same without what CUDA
needs, with PyTorch's CPU build, which another index serves; no hashes, because pip wants them for all or for none.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA_ONLY = ("nvidia-", "cuda-", "triton")
BUILD = "hatchling"
HEAD = "# {what} Made by `make lock`; do not edit.\n"


def main() -> None:
    """Write both files."""
    found = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-", "--extra", "train", "--extra", "fast",
         "--universal", "--python-version", "3.11", "--constraint", "constraints-cpu.txt",
         "--generate-hashes", "--no-annotate", "--no-header", "--quiet"],
        cwd=ROOT, input=BUILD, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if found.returncode:
        sys.exit(found.stderr)
    cuda = found.stdout
    plain = re.sub(r" \\\n(?:    --hash=\S+(?: \\)?\n)+", "\n", cuda)
    lines = [line for line in plain.splitlines() if not line.startswith(CUDA_ONLY)]
    cpu = "\n".join(re.sub(r"^(torch==[0-9.]+)", r"\1+cpu", line) for line in lines) + "\n"
    (ROOT / "docker" / "lock-cuda.txt").write_text(HEAD.format(what="torch's CUDA build.") + cuda)
    (ROOT / "docker" / "lock-cpu.txt").write_text(HEAD.format(what="torch's CPU build.") + cpu)


if __name__ == "__main__":
    main()
