"""Where the ranks of several nodes meet: printed by the batch script on the first node, as ADDRESS:PORT.

    python -m clipa.launch.meeting [--interface ib0]

The port is free at this moment; should another process take it before the first rank does, the attempt fails and the
next one meets elsewhere.
"""

from __future__ import annotations

import argparse
import fcntl
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915  # netdevice(7)


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
    parser = argparse.ArgumentParser(prog="clipa.launch.meeting")
    parser.add_argument("--interface", default="")
    arguments = parser.parse_args()
    try:
        print(meeting(arguments.interface))
    except OSError as error:
        print(f"no meeting point on interface {arguments.interface}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
