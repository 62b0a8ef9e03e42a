"""CPU and wall time of staging, beside s5cmd, rclone, aws and s3fs: `clipa bench stage URL [--endpoint URL]`.

Every tool is a process of its own that brings the same shards to a fresh folder, start-up included; the tools take
turns, after one round that is not counted. What came is compared with the listing by names and sizes. Tools that are
not installed are left out. clipa comes three times: verified by the digests of the manifest beside the shards
(`clipa data index URL --scan` writes it), by sizes and versions alone, and by ranges without obstore.

Where the server runs on the same machine, pin it and the tools to different cores: `taskset -c 1 SERVER`, `--core 0`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.errors import ClipaError, told
from clipa.interpreter import module_argv
from clipa.spec.cluster import Dataset
from clipa.storage.dataset import index
from clipa.storage.manifest import Manifest
from clipa.terminal import say

_S3FS = """
import sys, s3fs
url, endpoint, folder = sys.argv[1:]
store = s3fs.S3FileSystem(endpoint_url=endpoint or None, skip_instance_cache=True)
store.get(url.rstrip("/") + "/", folder + "/", recursive=True)
"""


class Job(NamedTuple):
    """What every tool is asked for."""

    url: str
    endpoint: str
    folder: Path


class Cost(NamedTuple):
    """One run: CPU seconds of all its processes, wall seconds, largest resident set in MiB."""

    cpu: float
    wall: float
    rss: float


def _clipa(*more: str) -> Callable[[Job], list[str]]:
    def argv(job: Job) -> list[str]:
        at = ["--endpoint", job.endpoint] if job.endpoint else []
        command = module_argv("clipa.cli.main", "data", "stage", job.url, "--to", str(job.folder))
        return [*command, "--json", *at, *more]

    return argv


def _s5cmd(job: Job) -> list[str]:
    at = ["--endpoint-url", job.endpoint] if job.endpoint else []
    return ["s5cmd", "--log", "error", *at, "--numworkers", "8", "cp", f"{job.url}/*", f"{job.folder}/"]


def _rclone(job: Job, *more: str) -> list[str]:
    remote = ":s3,provider=Ceph,env_auth=true" + (f',endpoint="{job.endpoint}"' if job.endpoint else "")
    path = job.url.removeprefix("s3://")
    bundle = os.environ.get("AWS_CA_BUNDLE")
    more = (*more, "--ca-cert", bundle) if bundle else more
    return ["rclone", "copy", "--transfers", "8", "--quiet", *more, f"{remote}:{path}", str(job.folder)]


def _aws(job: Job) -> list[str]:
    at = ["--endpoint-url", job.endpoint] if job.endpoint else []
    return ["aws", *at, "s3", "sync", "--quiet", job.url, str(job.folder)]


def _s3fs(job: Job) -> list[str]:
    return [sys.executable, "-c", _S3FS, job.url, job.endpoint, str(job.folder)]


_NOTHING: Mapping[str, str] = {}
_NO_BUNDLE = {"AWS_CA_BUNDLE": ""}
"""rclone refuses to start with it, and takes --ca-cert."""
_TOOLS: dict[str, tuple[str, Callable[[Job], list[str]], Mapping[str, str]]] = {
    # name: (the program it needs, its command, what its environment adds)
    "clipa, unverified": (sys.executable, _clipa("--check", "size"), _NOTHING),
    "clipa, verified": (sys.executable, _clipa(), _NOTHING),
    "clipa by ranges (fsspec), unverified": (
        sys.executable,
        _clipa("--check", "size"),
        {"CLIPA_TRANSPORT": "fsspec"},
    ),
    "s5cmd cp": ("s5cmd", _s5cmd, _NOTHING),
    "rclone copy (verifies MD5)": ("rclone", _rclone, _NO_BUNDLE),
    "rclone copy --ignore-checksum": ("rclone", lambda job: _rclone(job, "--ignore-checksum"), _NO_BUNDLE),
    "aws s3 sync": ("aws", _aws, _NOTHING),
    "s3fs get": (sys.executable, _s3fs, _NOTHING),
}


def measure(argv: Sequence[str], more: Mapping[str, str], core: str = "") -> Cost | str:
    """Run a command on these cores. Return what it and all that it waited for cost, or the last line if it failed."""
    argv = ["taskset", "-c", core, *argv] if core else argv
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(argv, env={**os.environ, **more}, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")
    return Cost(used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024)


def _require_all(manifest: Manifest, folder: Path, name: str) -> None:
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.size:
            raise SystemExit(f"{name}: {shard.name} is missing or cut")


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="clipa bench stage")
    parser.add_argument("url", help="s3://bucket/folder with shards")
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where to write (a temporary folder there)")
    parser.add_argument("--core", default="", help="cores that the tools are pinned to, as taskset takes them")
    arguments = parser.parse_args()
    try:
        manifest = index(Dataset(url=arguments.url, endpoint=arguments.endpoint))
    except ClipaError as error:
        raise SystemExit(told(error)) from None
    known = {
        name: tool for name, tool in _TOOLS.items() if name.startswith("clipa") or arguments.url.startswith("s3://")
    }
    tools = {name: tool for name, tool in known.items() if shutil.which(tool[0])}
    costs: dict[str, list[Cost]] = {name: [] for name in tools}
    for number in range(arguments.rounds + 1):
        for name, (_, command, more) in tools.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="clipa-bench-") as folder:
                job = Job(arguments.url.rstrip("/"), arguments.endpoint, Path(folder))
                cost = measure(command(job), more, arguments.core)
                if isinstance(cost, str):
                    say(f"{name}: failed: {cost}", err=True)
                    continue
                _require_all(manifest, Path(folder), name)
            if number:
                costs[name].append(cost)
    gib = manifest.bytes / 2**30
    say(f"{len(manifest.shards)} shards, {gib:.2f} GiB, medians of {arguments.rounds} rounds\n")
    say("| tool | CPU s/GiB | from .. to | wall s/GiB | peak RSS MiB |\n|---|---|---|---|---|")
    for name, found in costs.items():
        if not found:
            say(f"| {name} | failed | | | |")
            continue
        cpu = sorted(cost.cpu / gib for cost in found)
        wall = statistics.median(cost.wall / gib for cost in found)
        rss = max(cost.rss for cost in found)
        say(f"| {name} | {statistics.median(cpu):.2f} | {cpu[0]:.2f} .. {cpu[-1]:.2f} | {wall:.2f} | {rss:.0f} |")
    absent = [name for name in known if name not in tools]
    if absent:
        say(f"\nnot installed here: {', '.join(absent)}")
    if known.keys() != _TOOLS.keys():
        say("\nthe other tools copy from s3:// only")


if __name__ == "__main__":
    main()
