"""TensorBoard's event files, scalars alone. Written here: three messages of protobuf, in a format that has not changed
since 2016, do not need a dependency on every node (a test reads them with TensorBoard's own reader).

The format: https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto (and
summary.proto), each record framed by its length and two masked CRC-32C (tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan
from clipa.tell.stream import Back, Told

_SESSION_START = b"\x08\x01"
"""SessionLog {status: START}: TensorBoard forgets what it has of the steps from this event's on."""


class TensorBoard:
    """One file of this process in `<run>/tensorboard`; files of earlier processes stay.

    A process that begins where an earlier one ended first says that steps from there on are told anew, so that nothing
    shows twice, whatever the earlier one had written when it was killed.
    """

    def __init__(self, run: RunDir, _plan: Plan, told: int) -> None:
        folder = run.tensorboard
        folder.mkdir(parents=True, exist_ok=True)
        # Read in the order of their names: by second, then by nanosecond.
        now = time.time_ns()
        self._path = folder / f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}.{socket.gethostname()}"
        self._file = open(self._path, "xb")  # noqa: SIM115 - as long as the process
        self._write(_float64(1, time.time()) + _bytes(3, b"brain.Event:2"))
        self.back(Back(time.time(), told))

    def back(self, back: Back) -> None:
        """From the step after this one on, all is told anew."""
        self._write(_float64(1, back.t) + _varint(2, max(0, back.step + 1)) + _bytes(7, _SESSION_START))

    def tell(self, told: Told) -> None:
        """Add the values of one step."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _float32(2, value)) for name, value in told.values.items()
        )
        self._write(_float64(1, told.t) + _varint(2, told.step) + _bytes(5, summary))

    def flush(self) -> None:
        """Hand what was told to the file system."""
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))


def _key(field: int, wire: int) -> bytes:
    return bytes([field << 3 | wire])


def _varint(field: int, value: int) -> bytes:
    return _key(field, 0) + _raw_varint(value)


def _raw_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _raw_varint(len(value)) + value


def _float64(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _float32(field: int, value: float) -> bytes:
    try:
        return _key(field, 5) + struct.pack("<f", value)
    except OverflowError:
        return _key(field, 5) + struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _table() -> list[int]:
    """Of CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        rows.append(byte)
    return rows


_TABLE = _table()


def _masked(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def files(folder: Path) -> list[Path]:
    """The event files of a folder, in the order in which TensorBoard reads them."""
    return sorted(folder.glob("events.out.tfevents.*"))
