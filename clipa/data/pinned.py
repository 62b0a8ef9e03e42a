"""The data that a plan pins, opened where they were staged."""

from __future__ import annotations

from collections.abc import Callable

from clipa.data.shards import ShardSet, open_shards
from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest


def pinned_manifest(run: RunDir, digest: str) -> Manifest:
    """A manifest that a run's plan pins."""
    return manifests.decode(run.manifest(digest).read_bytes())


def open_pinned(run: RunDir, plan: Plan, digest: str, seen: Callable[[], None] | None = None) -> ShardSet:
    """The staged shards of a manifest that a plan pins; `seen` is called after each."""
    return open_shards(pinned_manifest(run, digest), manifests.staged_folder(plan.cache, digest), seen)
