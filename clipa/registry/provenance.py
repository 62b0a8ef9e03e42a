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
from typing import NamedTuple

import msgspec

from clipa import __version__
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec.plan import Code, Record

DIFF_LIMIT = 1 << 20
"""Bytes of a dirty tree's diff that are kept."""
UNTRACKED_LIMIT = 1000
"""Names of untracked files that are kept."""
_GIT_S = 10.0
_NVIDIA_S = 20.0


class Git(Record, frozen=True, kw_only=True):
    """The state of a git checkout. `diff_bytes` is the size of the whole diff; `diff_cut`: diff.patch is shorter."""

    folder: str
    revision: str
    branch: str
    remote: str
    dirty: bool
    untracked: tuple[str, ...] = ()
    untracked_cut: bool = False
    diff_bytes: int = 0
    diff_cut: bool = False


class Environment(Record, frozen=True, kw_only=True):
    """Packages and machine."""

    python: str
    clipa: str
    packages: dict[str, str]
    host: str
    system: str
    kernel: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]


class Checkout(NamedTuple):
    """A git checkout and its diff to the last commit, cut at DIFF_LIMIT."""

    git: Git
    diff: bytes


def write(run: RunDir) -> None:
    """Write provenance/ of a run: git.json and diff.patch of clipa's own checkout, and environment.json."""
    checkout = _own_checkout()
    if checkout:
        write_whole(run.provenance / "git.json", _json(checkout.git))
        if checkout.diff:
            write_whole(run.provenance / "diff.patch", checkout.diff)
    write_whole(run.provenance / "environment.json", _json(_environment()))


def code() -> Code:
    """The revision of clipa that runs."""
    checkout = _own_checkout()
    if checkout is None:
        return Code(version=__version__)
    return Code(version=__version__, revision=checkout.git.revision, dirty=checkout.git.dirty)


@lru_cache(maxsize=1)
def _own_checkout() -> Checkout | None:
    """The checkout that clipa is imported from; None for an installed wheel."""
    folder = Path(__file__).resolve().parent.parent.parent
    return read_checkout(folder) if (folder / ".git").exists() else None


def read_checkout(folder: Path) -> Checkout | None:
    """The state of a checkout; None without git, or without a commit."""
    status = _ask(folder, "status", "--porcelain=v2", "--branch", "-z").decode(errors="replace").split("\0")
    head = dict(line[2:].split(" ", 1) for line in status if line.startswith("# branch."))
    revision = head.get("branch.oid", "")
    if not re.fullmatch("[0-9a-f]{40,64}", revision):
        return None
    changes = [line for line in status if line and not line.startswith("#")]
    untracked = [line[2:] for line in changes if line.startswith("? ")]
    diff = _ask(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv") if changes else b""
    git = Git(
        folder=str(folder),
        revision=revision,
        branch=head.get("branch.head", ""),
        remote=without_credentials(_ask(folder, "config", "--get", "remote.origin.url").decode(errors="replace")),
        dirty=bool(changes),
        untracked=tuple(untracked[:UNTRACKED_LIMIT]),
        untracked_cut=len(untracked) > UNTRACKED_LIMIT,
        diff_bytes=len(diff),
        diff_cut=len(diff) > DIFF_LIMIT,
    )
    return Checkout(git, diff[:DIFF_LIMIT])


def without_credentials(url: str) -> str:
    """A remote's URL without user, password, query and fragment. `git@host:path` holds no secret and stays."""
    url = re.sub(r"(?<=://)[^/]*@", "", url.strip())
    return re.sub(r"[?#].*", "", url, flags=re.DOTALL) if "://" in url else url


def _ask(folder: Path, *words: str) -> bytes:
    """The output of a git command that only reads; empty when there is no git or it fails."""
    # A container often runs as another user than the one who owns the checkout, which git refuses by default; and
    # inside a git hook these variables point to another repository.
    trust = ["-c", f"safe.directory={folder}", "-c", "core.fsmonitor=false", "--no-optional-locks"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *trust, *words],
            capture_output=True,
            timeout=_GIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _json(record: Record) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        python=sys.version.split()[0],
        clipa=__version__,
        packages=_packages(),
        host=socket.gethostname(),
        system=_system(),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
    )


def _packages() -> dict[str, str]:
    """Name -> version of every installed package; one whose metadata are damaged is left out."""
    from importlib import metadata

    found = {}
    for package in metadata.distributions():
        try:
            found[str(package.metadata["Name"])] = str(package.version)
        except Exception:  # noqa: S112 - anything may lie in site-packages, and none of it may stop a submission
            continue
    return dict(sorted(found.items()))


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _gpus() -> tuple[str, ...]:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.startswith("GPU "))
