"""The files of one cluster: every path, and the configuration that is written from the templates."""

from __future__ import annotations

import getpass
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

from processes import DevError, free_ports

TEMPLATES = Path(__file__).resolve().parent / "templates"
LONGEST_PATH = 60
"""Bytes of the folder's path: slurmstepd's sockets below it have at most 108 (unix(7))."""
_FOLDERS = ("etc/plugstack.conf.d", "run", "log", "state", "spool", "dev", "munge", "mysql")


class Options(NamedTuple):
    """What a cluster looks like. Seconds where it says seconds."""

    nodes: int = 2
    gpus: int = 8
    gpu_type: str = "h100"
    cpus: int = 64
    memory_mb: int = 512_000
    accounting: bool = False
    kill_wait: int = 2
    grace: int = 5
    cred_expire: int = 5
    """A requeued job waits this + 1 s; 5 is the least that SLURM takes, 120 its default."""
    slurmd_timeout: int = 6
    message_timeout: int = 5
    requeue: bool = True
    min_job_age: int = 600


class Ports(NamedTuple):
    """The TCP ports of the controller, of slurmdbd, and of the first slurmd; the others follow."""

    controller: int
    database: int
    nodes: int


class Layout:
    """The folder of one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def conf(self) -> Path:
        """What SLURM_CONF must say."""
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> str:
        """Where munged listens."""
        return str(self.folder / "run" / "munge.sock")

    @property
    def control_socket(self) -> str:
        """Where the supervisor of the cluster listens."""
        return str(self.folder / "run" / "control")

    @property
    def record(self) -> Path:
        """The processes that `up` started."""
        return self.folder / "run" / "processes.json"

    def log(self, name: str) -> Path:
        """The output of one daemon."""
        return self.folder / "log" / f"{name}.out"

    def environment(self) -> dict[str, str]:
        """What the daemons get, and nothing else."""
        return {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": os.environ.get("HOME", "/"),
            "USER": getpass.getuser(),
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.conf),
        }

    def write(self, options: Options) -> Ports:
        """Make the folder ready for a start. Jobs and accounting of an earlier one stay.

        Raises:
            DevError: the path is too long for SLURM.
        """
        if len(os.fsencode(self.folder)) > LONGEST_PATH:
            raise DevError(f"{self.folder}: longer than {LONGEST_PATH} bytes, and SLURM makes sockets below it: "
                           "give a shorter one, for example /tmp/slurm-dev")  # fmt: skip
        for name in _FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, *(self.folder / name for name in _FOLDERS)):
            folder.chmod(0o755)
        _write_private(self.folder / "munge" / "munge.key", os.urandom(128))
        for number in range(options.gpus):
            link = self.folder / "dev" / f"nvidia{number}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")  # gres.conf wants a character device
        base = free_ports(options.nodes + 2)
        ports = Ports(base, base + 1, base + 2)
        values = self._values(options, ports)
        values["ACCOUNTING"] = (
            _fill("accounting.in", values)
            if options.accounting
            else "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none"
        )
        self.conf.write_text(_fill("slurm.conf.in", values))
        (self.folder / "etc" / "gres.conf").write_text(_fill("gres.conf.in", values) if options.gpus else "")
        (self.folder / "etc" / "plugstack.conf").write_text(f"include {self.folder}/etc/plugstack.conf.d/*.conf\n")
        database = self.folder / "etc" / "slurmdbd.conf"
        database.unlink(missing_ok=True)
        _write_private(database, _fill("slurmdbd.conf.in", values).encode())
        return ports

    def _values(self, options: Options, ports: Ports) -> dict[str, str]:
        last = options.nodes
        gpus = options.gpus
        return {
            "DIR": str(self.folder),
            "HOST": socket.gethostname(),
            "USER": getpass.getuser(),
            "CTLPORT": str(ports.controller),
            "DBDPORT": str(ports.database),
            "NODEPORTS": f"[{ports.nodes}-{ports.nodes + last - 1}]" if last > 1 else str(ports.nodes),
            "NODES": f"node[1-{last}]" if last > 1 else "node1",
            "CPUS": str(options.cpus),
            "MEM": str(options.memory_mb),
            "GPUTYPE": options.gpu_type,
            "LASTGPU": str(gpus - 1),
            "GRES": f"Gres=gpu:{options.gpu_type}:{gpus}" if gpus else "",
            "KILLWAIT": str(options.kill_wait),
            "GRACE": str(options.grace),
            "CREDEXPIRE": str(options.cred_expire),
            "SLURMDTIMEOUT": str(options.slurmd_timeout),
            "MSGTIMEOUT": str(options.message_timeout),
            "REQUEUE": str(int(options.requeue)),
            "MINJOBAGE": str(options.min_job_age),
        }


def node_names(options: Options) -> list[str]:
    """The names of the nodes, in order."""
    return [f"node{number}" for number in range(1, options.nodes + 1)]


def _fill(name: str, values: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], (TEMPLATES / name).read_text())


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, unless it is there."""
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
