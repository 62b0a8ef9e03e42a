"""Where runs and staged data go."""

from __future__ import annotations

import os
from pathlib import Path

from clipa.spec.cluster import Cluster
from clipa.spec.user_paths import user_folder


def folders(cluster: Cluster, default_run_root: str) -> tuple[Path, Path]:
    """(run root, cache): CLIPA_RUN_ROOT, the profile, the project or user, built in."""
    cache = cluster.cache or str(user_folder("cache"))
    return run_root_folder(cluster, default_run_root), _expand(cache)


def run_root_folder(cluster: Cluster, default_run_root: str) -> Path:
    """Return the run root: CLIPA_RUN_ROOT, the profile's, the project's or user's, or the built-in one.

    Raises:
        ConfigError: none is named, and the user has no home folder.
    """
    run_root = os.environ.get("CLIPA_RUN_ROOT") or cluster.run_root or default_run_root
    return _expand(run_root or str(user_folder("data") / "runs"))


def _expand(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(os.path.expandvars(path))))
