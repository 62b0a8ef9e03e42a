"""A real SLURM on this machine: several slurmd with made-up GPUs, munge, on request slurmdbd. No systemd, no root.

    python3 cluster/dev up [DIR] [--nodes 4] [--gpus 8] [--accounting]
    python3 cluster/dev down [DIR]               end what `up` started, and nothing else
    python3 cluster/dev status [DIR]
    python3 cluster/dev crash [DIR] node2        SIGKILL a node with everything on it, or slurmctld, slurmdbd, ...
    python3 cluster/dev start [DIR] node2        boot it again

DIR is ~/.clipa-slurm-dev unless given: state, logs and configuration, and nothing is written elsewhere. Two clusters
in two folders live side by side. Needs Debian's or Ubuntu's slurm-wlm and munge; with --accounting also slurmdbd and
mariadb-server-core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from daemons import Daemons, kill_what_is_left
from layout import Layout, Options
from processes import DevError, Process, ask, descendants, is_alive, wait_for

DEFAULT = "~/.clipa-slurm-dev"
_NEEDS = {
    "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "srun": "slurm-wlm", "munged": "munge",
}  # fmt: skip
_NEEDS_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}


def _recorded(layout: Layout) -> dict[str, list[int]]:
    try:
        return dict(json.loads(layout.record.read_text()))
    except (OSError, ValueError):
        return {}


def _is_up(record: dict[str, list[int]]) -> bool:
    return "supervisor" in record and is_alive(Process(*record["supervisor"]))


def up(layout: Layout, options: Options) -> None:
    """Bring a cluster up, unless it is; what a killed one left is cleared first."""
    record = _recorded(layout)
    if _is_up(record):
        print(f"already up: export SLURM_CONF={layout.conf}")
        return
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    needs = {**_NEEDS, **(_NEEDS_ACCOUNTING if options.accounting else {})}
    if lacking := sorted({package for name, package in needs.items() if not shutil.which(name, path=path)}):
        raise DevError(f"not installed: apt-get install --no-install-recommends {' '.join(lacking)}")
    kill_what_is_left(record)
    ports = layout.write(options)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        Daemons(layout, options, ports).serve(writer)
    os.close(writer)
    answer = os.read(reader, 1000)
    if answer != b"ok":
        layout.record.unlink(missing_ok=True)
        raise DevError(f"{answer.decode() or 'the supervisor died'}; see {layout.folder}/log")
    gpus = f" with {options.gpus} made-up {options.gpu_type} GPUs each" if options.gpus else ""
    print(f"{options.nodes} nodes{gpus}: export SLURM_CONF={layout.conf}")


def down(layout: Layout) -> None:
    """Take a cluster down."""
    record = _recorded(layout)
    if not record:
        print(f"not up: {layout.folder}")
        return
    if _is_up(record):
        supervisor = Process(*record["supervisor"])
        try:
            request(layout, "down")
        except OSError:
            os.kill(supervisor.pid, signal.SIGTERM)
        wait_for("down", lambda: not is_alive(supervisor), 60)
        return
    kill_what_is_left(record)
    layout.record.unlink(missing_ok=True)


def request(layout: Layout, line: str) -> None:
    """Have the supervisor do something."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(90)
        connection.connect(layout.control_socket)
        connection.sendall(line.encode())
        answer = connection.recv(1000).decode()
    if answer != "ok":
        raise DevError(answer or "the supervisor left without an answer")


def status(layout: Layout) -> bool:
    """Print what runs; whether the cluster is up."""
    record = _recorded(layout)
    if not _is_up(record):
        print(f"not up: {layout.folder}")
        return False
    print(f"up: export SLURM_CONF={layout.conf}")
    for name, (pid, start) in record.items():
        below = len(descendants(pid)) if is_alive(Process(pid, start)) else 0
        print(f"  {name:12} process {pid}: {f'{below} below it' if below else 'dead'}")
    print(ask("sinfo", env=layout.environment(), timeout=5), end="")
    return True


def main() -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="cluster/dev", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["up", "down", "status", "crash", "start"])
    parser.add_argument("folder", nargs="?", default=DEFAULT)
    parser.add_argument("names", nargs="*")
    defaults = Options()
    for name, default in defaults._asdict().items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    given = parser.parse_args()
    layout = Layout(Path(given.folder).expanduser())
    options = Options(**{name: getattr(given, name) for name in defaults._fields})
    try:
        if given.command == "up":
            up(layout, options)
        elif given.command == "down":
            down(layout)
        elif given.command == "status":
            return 0 if status(layout) else 1
        else:
            request(layout, " ".join([given.command, *given.names]))
    except (DevError, OSError) as error:
        print(f"cluster/dev: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
