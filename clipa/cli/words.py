"""What the user's words mean here: defaults, clusters, runs; and what the shell may complete."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipa.errors import ConfigError

if TYPE_CHECKING:
    from clipa.registry.scan import Scan
    from clipa.registry.state import RunStatus

_PLAIN = re.compile(r"[\w./@+:,=-]+", re.ASCII)


def roots() -> list[Path]:
    """Every run root known to this user, and the one that is in force here; where a file that should name that one
    cannot be read, that is said, and the others remain: runs are looked at and ended from anywhere.
    """
    from clipa.registry.roots import known_roots

    return sorted({*known_roots(), *_root_here()})


@functools.cache
def _root_here() -> tuple[Path, ...]:
    from clipa.cli import show

    try:
        return (run_root(),)
    except ConfigError as error:
        show.note(f"{error}\nruns below the run roots that were used before are shown, not those below one named there")
        return ()


def remark_on_root(root: Path) -> str:
    """Return a remark for a run root that `clipa status` will not find from elsewhere; empty if it will."""
    from clipa.registry.roots import known_roots, reason_not_remembered

    if root in known_roots():
        return ""
    reason = reason_not_remembered() or "the user's config folder is not usable"
    return f"note: this run root is not remembered ({reason}). From another shell: CLIPA_RUN_ROOT={root} clipa status"


def no_runs() -> str:
    """Return what `clipa status` says where there are no runs, with the run roots that were searched."""
    from clipa.registry.roots import reason_not_remembered

    where = ", ".join(str(root) for root in roots()) or "any known run root"
    reason = reason_not_remembered()
    elsewhere = f"\nRun roots cannot be remembered ({reason}); another one: CLIPA_RUN_ROOT=FOLDER clipa status"
    return f"no runs yet in {where}. Start one: clipa submit pipeline --wait{elsewhere if reason else ''}"


def run_root() -> Path:
    """The run root that is in force here."""
    from clipa.launch.folders import run_root_folder
    from clipa.spec import catalog
    from clipa.spec.load import load_cluster

    settled = catalog.defaults()
    return run_root_folder(load_cluster(catalog.find_cluster(settled.cluster)), settled.run_root)


def everything(settle: bool = False) -> Scan:
    """All runs under all known roots. `settle`: what nothing else brings further is brought further first."""
    from clipa.launch.look import look, look_and_settle

    return look_and_settle(roots()) if settle else look(roots())


def chosen(words: Sequence[str], statuses: Sequence[RunStatus]) -> list[RunStatus]:
    """The runs that the words mean, each once, oldest first; all of them without words."""
    from clipa.registry.find import find

    if not words:
        return list(statuses)
    wanted = {status.run for word in words for status in find(statuses, word)}
    return [status for status in statuses if status.run in wanted]


def complete_run(incomplete: str) -> list[str]:
    """Run ids, groups and names for the shell."""
    from clipa.registry.scan import scan

    try:
        found = scan(roots()).statuses  # without asking SLURM: the shell waits
    except Exception:
        return []
    words = ["latest", *(s.run for s in reversed(found)), *(s.name for s in found if s.name)]
    return _offered(words, incomplete)


def _offered(words: Iterable[str], incomplete: str) -> list[str]:
    """Complete with plain words alone: a shell evaluates what it is offered, and names come from anybody."""
    return [word for word in dict.fromkeys(words) if word.startswith(incomplete) and _PLAIN.fullmatch(word)]


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes for the shell: those that ship with clipa, and files."""
    from clipa.spec import catalog

    return _offered((*catalog.recipes(), *_files(incomplete)), incomplete)


def complete_cluster(incomplete: str) -> list[str]:
    """Cluster profiles for the shell: those that ship with clipa, and files."""
    from clipa.spec import catalog

    return _offered((*catalog.clusters(), *_files(incomplete)), incomplete)


def _files(incomplete: str) -> list[str]:
    folder = Path(incomplete).parent if "/" in incomplete else Path()
    try:
        return sorted(str(path) for path in folder.iterdir() if path.suffix == ".toml")
    except OSError:
        return []
