"""Where a run came from: code, packages and machine. Names and versions only, never values of the environment."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import msgspec

from clipa import __version__
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec.plan import Code, Record

DIFF_LIMIT = 1 << 20
"""Bytes of a dirty tree's diff that are kept."""


class Git(Record, frozen=True, kw_only=True):
    """The state of a git checkout; `diff_cut` says that diff.patch does not hold all of it."""

    folder: str
    revision: str
    branch: str
    remote: str
    dirty: bool
    untracked: tuple[str, ...] = ()
    diff_cut: bool = False


class Environment(Record, frozen=True, kw_only=True):
    """Packages and machine."""

    python: str
    clipa: str
    packages: dict[str, str]
    host: str
    system: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]


def write(run: RunDir) -> None:
    """Write provenance/ of a run: git.json and diff.patch of clipa's own checkout, and environment.json."""
    git, diff = _git()
    if git:
        write_whole(run.provenance / "git.json", _json(git))
    if diff:
        write_whole(run.provenance / "diff.patch", diff)
    write_whole(run.provenance / "environment.json", _json(_environment()))


def code() -> Code:
    """The revision of clipa that runs."""
    git, _ = _git()
    return Code(version=__version__, revision=git.revision if git else "", dirty=git.dirty if git else False)


def _json(record: Record) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


@lru_cache(maxsize=1)
def _git() -> tuple[Git | None, bytes]:
    folder = Path(__file__).resolve().parent.parent.parent
    if not (folder / ".git").exists():
        return None, b""
    revision = _ask(folder, "rev-parse", "HEAD").decode().strip()
    if not revision:
        return None, b""
    status = _ask(folder, "status", "--porcelain").decode(errors="replace").splitlines()
    diff = _ask(folder, "diff", "HEAD", "--no-ext-diff") if status else b""
    remote = _ask(folder, "config", "--get", "remote.origin.url").decode(errors="replace").strip()
    git = Git(
        folder=str(folder),
        revision=revision,
        branch=_ask(folder, "rev-parse", "--abbrev-ref", "HEAD").decode(errors="replace").strip(),
        remote=re.sub(r"(?<=://)[^/@]*@", "", remote),
        dirty=bool(status),
        untracked=tuple(line[3:] for line in status if line.startswith("??"))[:1000],
        diff_cut=len(diff) > DIFF_LIMIT,
    )
    return git, diff[:DIFF_LIMIT]


def _ask(folder: Path, *words: str) -> bytes:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return b""


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from importlib import metadata

    packages = {str(d.metadata["Name"]): d.version for d in metadata.distributions() if d.metadata["Name"]}
    return Environment(
        python=sys.version.split()[0],
        clipa=__version__,
        packages=dict(sorted(packages.items())),
        host=socket.gethostname(),
        system=platform.platform(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
    )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _gpus() -> tuple[str, ...]:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line for line in listed.stdout.splitlines() if line.startswith("GPU "))
