"""Where the ranks of several nodes meet.

`python -m clipa.host.meeting [--interface ib0]` is called by the batch script on the first node, and prints
ADDRESS:PORT. The port is free at that moment; the supervisor of the first node then holds it (`Reservation`) until the
ranks have ended, or another one where it has been taken meanwhile, and says in an event which it is.
"""

from __future__ import annotations

import argparse
import fcntl
import socket
import struct
import sys
from types import TracebackType

from clipa.terminal import say

_SIOCGIFADDR = 0x8915  # netdevice(7)


class Reservation:
    """A port that nobody else gets. It is bound, but not listened on, with SO_REUSEADDR: so the store of
    torch.distributed, which sets that option too, can listen on it all the same, and Linux gives it to nobody who asks
    for any port, or for this one without the option (socket(7), ip(7)).
    """

    def __init__(self, address: str, wanted: int) -> None:
        """Hold the wanted port, or another one where that is taken."""
        self.address = address
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("", wanted))
        except OSError:
            self._socket.bind(("", 0))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def meeting(interface: str) -> str:
    """The address of this host, on that interface where one is named, and a free port.

    Raises:
        OSError: no such interface, or it has no IPv4 address.
    """
    address = _address_of(interface) if interface else socket.gethostname()
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{address}:{probe.getsockname()[1]}"


def _address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
    return socket.inet_ntoa(answer[20:24])


def main() -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="clipa.host.meeting")
    parser.add_argument("--interface", default="")
    arguments = parser.parse_args()
    try:
        say(meeting(arguments.interface))
    except OSError as error:
        say(f"no meeting point on interface {arguments.interface}: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
