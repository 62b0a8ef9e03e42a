"""What goes into an image, and the tag that follows from it: same content, same tag, no build."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from clipa.errors import ConfigError, MissingPart
from clipa.spec.user_paths import expand_user

DOCKERFILE = "docker/Dockerfile"
ALLOWED = (
    "clipa",
    "jobs",
    "cluster",
    DOCKERFILE,
    "docker/lock-*.txt",
    "docker/words",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
"""The build context, as paths and patterns in the checkout; `.dockerignore` allows the same."""
_LEFT_OUT = ("__pycache__",)
REPOSITORY = "clipa"
TAG_LENGTH = 16
"""Hex digits of the content's digest in a tag: 64 bits, no clash among any number of images that anyone makes."""

_SECRET_NAME = re.compile(r"(?i)(token|secret|passw|credential|private|api_?key|access_?key|auth)")
_SECRET_VALUE = re.compile(r"://[^/@\s]+@|^(ghp_|gho_|github_pat_|glpat-|hf_|sk-|xox[bp]-|AKIA|ASIA)|-----BEGIN ")
WAYS = frozenset(
    {f"PIP_{name}" for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS")}
    | {f"{name}_PROXY" for name in ("HTTP", "HTTPS", "FTP", "ALL", "NO")}
    | {f"{name}_proxy" for name in ("http", "https", "ftp", "all", "no")}
)
"""Arguments that say how the build reaches what the lock file names, not what goes in: no part of the tag."""
OWN_ARGS = frozenset({"BASE_IMAGE", "VARIANT", "SOURCE", "REVISION", "VERSION", "CODE", "CONTENT"})


class Context(NamedTuple):
    """The files of a build: (path in the context, path on disk), sorted, and the digest of names, modes and bytes."""

    files: tuple[tuple[str, Path], ...]
    digest: str


def checkout(source: Path | None) -> Path:
    """The folder of clipa's sources to build from: the one given, else the one this clipa runs from.

    Raises:
        MissingPart: this clipa was installed from a wheel, which holds no Dockerfile.
        ConfigError: the folder given is no checkout of clipa.
    """
    folder = expand_user(source).absolute() if source else Path(__file__).resolve().parents[2]
    if (folder / DOCKERFILE).is_file() and (folder / "pyproject.toml").is_file():
        return folder
    if source:
        raise ConfigError("no checkout of clipa", where=str(folder), allowed=f"a folder with {DOCKERFILE}")
    raise MissingPart("an image is built from a checkout of clipa, and this one was installed without its sources",
                      where=str(folder), hint="git clone clipa, then: clipa image build --source FOLDER")  # fmt: skip


def read(folder: Path) -> Context:
    """The build context of a checkout: an allow list, without what Python leaves behind."""
    files: dict[str, Path] = {}
    for pattern in ALLOWED:
        for found in sorted(folder.glob(pattern)):
            inside = [found] if found.is_file() else sorted(p for p in found.rglob("*") if p.is_file())
            files |= {str(path.relative_to(folder)): path for path in inside if not _left_out(path)}
    ordered = tuple(sorted(files.items()))
    return Context(ordered, _digest(ordered))


def code_digest(package: Path) -> str:
    """The digest of a package's Python files: equal for a checkout, a wheel and an image that hold the same code."""
    files = [(str(p.relative_to(package)), p) for p in package.rglob("*.py") if not _left_out(p)]
    return _digest(sorted(files), modes=False)


def own_code() -> str:
    """The code digest of the clipa that runs."""
    return code_digest(Path(__file__).resolve().parents[1])


def tag(content: str, base: str, variant: str, args: Mapping[str, str], platform: str) -> str:
    """The tag of an image: `clipa:<variant>-<digest>`.

    Args:
        content: digest of the context.
        base: the base image, resolved: a registry digest, else an image id.
        variant: which lock file, `cuda` or `cpu`.
        args: the user's build arguments; `WAYS` don't count.
        platform: as given, `linux/arm64`; empty for the daemon's own.
    """
    words = [
        content,
        base,
        variant,
        platform,
        *(f"{key}={value}" for key, value in sorted(args.items()) if key not in WAYS),
    ]
    return f"{REPOSITORY}:{variant}-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:TAG_LENGTH]}"


def build_args(words: Sequence[str], where: str = "--build-arg") -> dict[str, str]:
    """`KEY=VALUE` words as build arguments.

    Raises:
        ConfigError: not KEY=VALUE, a key that clipa sets itself, or something that looks like a secret: arguments
            stay in the history of the image and in the builder's cache.
    """
    found: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ConfigError(f"{word.partition('=')[0]!r} is no build argument", where=where,
                              allowed="KEY=VALUE")  # fmt: skip
        if key in OWN_ARGS:
            raise ConfigError(f"{key} is set by clipa", where=where, hint="see --base and --variant")
        if _SECRET_NAME.search(key) or _SECRET_VALUE.search(value):
            raise ConfigError(
                f"{key} looks like a secret, and build arguments stay in an image's history",
                where=where,
                hint="the build needs no secret; for a private index, set up pip in a base image of your own (--base)",
            )
        found[key] = value
    return found


def pack(context: Context, out: IO[bytes]) -> int:
    """Write the context as a tar that depends on its content alone (no times, no owners); its size in bytes."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in context.files:
            raw = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            member.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            tar.addfile(member, io.BytesIO(raw))
    size = out.tell()
    out.seek(0)
    return size


def _left_out(path: Path) -> bool:
    return any(part in _LEFT_OUT for part in path.parts)


def _digest(files: Sequence[tuple[str, Path]], modes: bool = True) -> str:
    total = hashlib.sha256()
    for name, path in files:
        mode = "x" if modes and os.access(path, os.X_OK) else "-"
        total.update(f"{name}\0{mode}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
