"""The supervisor of one cluster: starts its daemons, answers requests, and ends exactly what it started.

Every process of the cluster is a descendant of it, and it is a child subreaper; each daemon hangs below a shim that
is one too. So a daemon, its slurmstepd and tasks that called setsid are all found in /proc, and are killed by pid.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from layout import Layout, Options, Ports, node_names
from processes import (
    DevError,
    adopt_orphans,
    answers,
    ask,
    command_of,
    descendants,
    identify,
    is_alive,
    kill_below,
    reap,
    send,
    wait_for,
)

_SQL = Path("/usr/share/mysql")
_UP = {"idle", "mix", "alloc", "comp"}
_MARIADB = (
    "--no-defaults", "--lc-messages-dir=/usr/share/mysql", "--loose-skip-performance-schema", "--skip-log-bin",
    "--innodb-buffer-pool-size=128M", "--innodb-log-file-size=48M", "--innodb-flush-log-at-trx-commit=0",
    "--innodb-lock-wait-timeout=900",
)  # fmt: skip


class Daemons:
    """The daemons of one cluster, by name: munged, mariadbd, slurmdbd, slurmctld, node1, node2, ..."""

    def __init__(self, layout: Layout, options: Options, ports: Ports) -> None:
        self.layout = layout
        self.options = options
        self.ports = ports
        self.shims: dict[str, int] = {}
        self._old: dict[str, list[int]] = {}  # shims whose daemon died and left job steps behind
        self.nodes = node_names(options)
        self._environment = layout.environment()
        self._private: list[int] = []  # descriptors that no daemon may inherit

    def up(self) -> None:
        """Start everything and wait until every node takes jobs."""
        database = ["mariadbd", "slurmdbd"] if self.options.accounting else []
        for name in ("munged", *database, "slurmctld", *self.nodes):
            self.start(name)
        wait_for("the nodes", self._nodes_are_up, 30, 0.05)

    def _nodes_are_up(self) -> bool:
        states = ask("sinfo", "-h", "-N", "-o", "%t", env=self._environment).split()
        return bool(states) and set(states) <= _UP

    def start(self, name: str) -> None:
        """Start one daemon, unless it runs, and wait until it answers."""
        if self._runs(name):
            return
        starter = self._STARTERS.get(name)
        if starter is None and name not in self.nodes:
            raise DevError(f"no daemon {name!r}: munged, mariadbd, slurmdbd, slurmctld, {', '.join(self.nodes)}")
        if starter is None:
            (self.layout.folder / "spool" / name).mkdir(exist_ok=True)
            self._spawn(name, "slurmd", "-D", "-N", name)
        else:
            starter(self)

    def crash(self, name: str) -> None:
        """SIGKILL a daemon, as a power cut would: for a node its job steps and tasks too."""
        if name not in self.shims:
            raise DevError(f"no daemon {name!r}: {', '.join(self.shims)}")
        for shim in (*self._old.pop(name, []), self.shims[name]):
            kill_below(shim)

    def stop(self, name: str, seconds: float) -> None:
        """SIGTERM, then SIGKILL."""
        if shim := self.shims.get(name):
            send(shim, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while descendants(shim) and time.monotonic() < deadline:
                reap()
                time.sleep(0.02)
            kill_below(shim)

    def down(self) -> None:
        """End the jobs, then the daemons, then whatever is left."""
        if self._runs("slurmctld"):
            self._end_jobs()
        for name in self.nodes:
            if shim := self.shims.get(name):
                send(shim, signal.SIGTERM)
        deadline = time.monotonic() + 2
        while any(self._runs(name) for name in self.nodes) and time.monotonic() < deadline:
            reap()
            time.sleep(0.02)
        for name in self.nodes:
            self.stop(name, 0)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.stop(name, 10)
        kill_below(os.getpid())

    def _end_jobs(self) -> None:
        me = getpass.getuser()
        for state in (["--state=PENDING"], []):
            ask("scancel", "--quiet", *state, "--user", me, env=self._environment, timeout=5)
        deadline = time.monotonic() + self.options.kill_wait + 1
        while ask("squeue", "-h", env=self._environment, timeout=5).strip() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _runs(self, name: str) -> bool:
        """Whether the daemon itself lives: job steps of a node outlive its slurmd."""
        program = "slurmd" if name in self.nodes else name
        return name in self.shims and any(command_of(pid) == program for pid in descendants(self.shims[name]))

    def _start_munged(self) -> None:
        folder = self.layout.folder / "munge"
        self._spawn(
            "munged", "munged", "-F", f"--socket={self.layout.munge_socket}", f"--key-file={folder}/munge.key",
            f"--log-file={folder}/munged.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/seed",
            "--num-threads=4",
        )  # fmt: skip
        self._wait("munged", lambda: answers(self.layout.munge_socket))

    def _start_mariadbd(self) -> None:
        folder = self.layout.folder
        options = [*_MARIADB, f"--datadir={folder}/mysql", f"--user={getpass.getuser()}"]
        if not (folder / "mysql" / "mysql").is_dir():
            _make_database(options, self.layout.log("mariadb-bootstrap"))
        where = [f"--socket={folder}/run/mysql.sock", f"--pid-file={folder}/run/mysql.pid"]
        self._spawn("mariadbd", "mariadbd", *options, "--skip-networking", *where)
        self._wait("mariadbd", lambda: answers(f"{folder}/run/mysql.sock"))

    def _start_slurmdbd(self) -> None:
        self._environment["MYSQL_UNIX_PORT"] = f"{self.layout.folder}/run/mysql.sock"
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._wait("slurmdbd", lambda: answers(("127.0.0.1", self.ports.database)))

    def _start_slurmctld(self) -> None:
        self._spawn("slurmctld", "slurmctld", "-D")
        self._wait("slurmctld", lambda: answers(("127.0.0.1", self.ports.controller)))
        self._wait("slurmctld", lambda: "is UP" in ask("scontrol", "ping", env=self._environment))

    _STARTERS: dict[str, Callable[[Daemons], None]] = {
        "munged": _start_munged,
        "mariadbd": _start_mariadbd,
        "slurmdbd": _start_slurmdbd,
        "slurmctld": _start_slurmctld,
    }

    def _wait(self, name: str, test: Callable[[], bool]) -> None:
        def ready() -> bool:
            if test():
                return True
            if not self._runs(name):
                time.sleep(0.1)
                if not self._runs(name):
                    tail = self.layout.log(name).read_text().strip().splitlines()[-1:]
                    raise DevError(f"{name} ended: {''.join(tail)}")
            return False

        wait_for(name, ready)

    def _spawn(self, name: str, *argv: str) -> None:
        """Fork a shim, a subreaper of its own, that runs a daemon: what is below it is that daemon's."""
        pid = os.fork()
        if pid == 0:
            try:
                self._be_shim(name, argv)
            except BaseException as error:
                with open(self.layout.log(name), "a") as log:
                    log.write(f"cluster/dev: {error!r}\n")
            os._exit(0)
        if name in self.shims:
            self._old.setdefault(name, []).append(self.shims[name])
        self.shims[name] = pid
        self.save()

    def _be_shim(self, name: str, argv: tuple[str, ...]) -> None:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in self._private:
            os.close(descriptor)
        adopt_orphans()
        with open(self.layout.log(name), "ab") as out:
            daemon = subprocess.Popen(
                argv, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, cwd=self.layout.folder / "log",
            )  # fmt: skip
        signal.signal(signal.SIGTERM, lambda *_: send(daemon.pid, signal.SIGTERM))
        with contextlib.suppress(ChildProcessError):
            while True:  # as long as any descendant lives
                os.waitpid(-1, 0)

    def save(self) -> None:
        """Record what runs, so that `down` finds it even when this process is gone."""
        old = {f"{name} before {pid}": pid for name, pids in self._old.items() for pid in pids}
        everything = {"supervisor": os.getpid(), **self.shims, **old}
        found = {name: process for name, pid in everything.items() if (process := identify(pid))}
        part = self.layout.record.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(self.layout.record)

    def serve(self, ready: int) -> None:
        """The life of the supervisor: bring the cluster up, say so on `ready`, answer requests until told to end."""
        self._private = [ready]
        self._detach()
        try:
            self.save()
            self.up()
            listener = self._listen()
            os.write(ready, b"ok")
        except BaseException as error:
            self.down()
            os.write(ready, f"{error}".encode())
            os._exit(1)
        os.close(ready)
        self._private = [listener.fileno()]
        asked_to_end: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(1))
        while not asked_to_end:
            reap()
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                if self._answer(connection):
                    break
        self.down()
        for path in (Path(self.layout.control_socket), self.layout.record):
            path.unlink(missing_ok=True)
        os._exit(0)

    def _detach(self) -> None:
        adopt_orphans()
        os.setsid()
        log = os.open(self.layout.log("supervisor"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)

    def _listen(self) -> socket.socket:
        Path(self.layout.control_socket).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.layout.control_socket)
        os.chmod(self.layout.control_socket, 0o600)
        listener.listen(8)
        listener.settimeout(0.5)
        return listener

    def _answer(self, connection: socket.socket) -> bool:
        """Serve one request; True when it asks to end."""
        with connection:
            connection.settimeout(5)
            try:
                word, *names = connection.recv(1000).decode().split()
                if word == "down":
                    connection.sendall(b"ok")
                    return True
                action = {"crash": self.crash, "start": self.start}[word]
                for name in names:
                    action(name)
                connection.sendall(b"ok")
            except Exception as error:
                with contextlib.suppress(OSError):
                    connection.sendall(str(error).encode() or b"?")
        return False


def _make_database(options: list[str], log: Path) -> None:
    """MariaDB's own tables and SLURM's account, without the server package: `mariadbd --bootstrap`."""
    names = ("mysql_system_tables.sql", "mysql_system_tables_data.sql")
    text = "create database mysql;\nuse mysql;\n" + "".join((_SQL / name).read_text() for name in names)
    text += (
        "create database if not exists slurm_acct_db;\nflush privileges;\n"
        "create user if not exists slurm@localhost identified by 'slurm';\n"
        "grant all on slurm_acct_db.* to slurm@localhost;\n"
    )
    with open(log, "w") as out:
        subprocess.run(["mariadbd", *options, "--bootstrap"], input=text, text=True, stdout=out, stderr=out, check=True)


def kill_what_is_left(record: dict[str, list[int]]) -> None:
    """After a supervisor that was killed: its shims go on without it, and are found by their identity."""
    from processes import Process

    for name, (pid, start) in record.items():
        while name != "supervisor" and is_alive(Process(pid, start)) and descendants(pid):
            kill_below(pid)
            time.sleep(0.02)
