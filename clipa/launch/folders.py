"""Where runs and staged data go."""

from __future__ import annotations

import os
from pathlib import Path

from clipa.spec import catalog
from clipa.spec.cluster import Cluster


def folders(cluster: Cluster, default_run_root: str) -> tuple[Path, Path]:
    """(run root, cache): CLIPA_RUN_ROOT, the profile, the project or user, built in."""
    run_root = os.environ.get("CLIPA_RUN_ROOT") or cluster.run_root or default_run_root
    cache = cluster.cache or str(catalog.user_folder("cache"))
    return _expand(run_root or str(catalog.user_folder("data") / "runs")), _expand(cache)


def _expand(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(os.path.expandvars(path))))
