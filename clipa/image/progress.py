"""Pure: the daemon's stream of JSON lines, as values."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

LAST_LINES = 20
_STEP = re.compile(r"^Step (\d+)/(\d+) : (.*)", re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Bytes(msgspec.Struct, frozen=True):
    """How far a transfer is; 0 where the daemon does not say."""

    current: int = 0
    total: int = 0


class Aux(msgspec.Struct, frozen=True):
    """What the daemon hands over beside the text: the image's id, or the digest that a registry gave it."""

    id: str = msgspec.field(name="ID", default="")
    digest: str = msgspec.field(name="Digest", default="")


class Raw(msgspec.Struct, frozen=True):
    """One line of the stream as the Docker Engine API writes it."""

    stream: str = ""
    status: str = ""
    id: str = ""
    error: str = ""
    progress: Bytes | None = msgspec.field(name="progressDetail", default=None)
    aux: Aux | None = None


class Step(msgspec.Struct, frozen=True, tag=True):
    """A step of the Dockerfile begins."""

    number: int
    total: int
    text: str


class Output(msgspec.Struct, frozen=True, tag=True):
    """A line that a step printed."""

    text: str


class Cached(msgspec.Struct, frozen=True, tag=True):
    """The step was made before."""


class Layer(msgspec.Struct, frozen=True, tag=True):
    """A layer goes to or comes from a registry: its short id, what happens to it, bytes."""

    id: str
    status: str
    current: int
    total: int


class Made(msgspec.Struct, frozen=True, tag=True):
    """The id of the image, or its registry digest after a push."""

    id: str = ""
    digest: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The daemon gave up: what it says, the step it was in, and that step's last lines."""

    error: str
    step: str = ""
    lines: tuple[str, ...] = ()


Event = Step | Output | Cached | Layer | Made | Failed


def events(raws: Iterable[Raw]) -> Iterator[Event]:
    """Read a stream. Nothing follows a `Failed`."""
    step = ""
    lines: deque[str] = deque(maxlen=LAST_LINES)
    for raw in raws:
        if raw.error:
            yield Failed(raw.error, step, tuple(lines))
            return
        if raw.aux and (raw.aux.id or raw.aux.digest):
            yield Made(raw.aux.id, raw.aux.digest)
        elif raw.id and raw.status:
            where = raw.progress or Bytes()
            yield Layer(raw.id, raw.status, where.current, where.total)
        elif begins := _STEP.match(raw.stream):
            step = " ".join(begins[3].split())
            lines.clear()
            yield Step(int(begins[1]), int(begins[2]), step)
        else:
            for line in _ANSI.sub("", raw.stream or raw.status).replace("\r", "\n").splitlines():
                if line.strip() == "---> Using cache":
                    yield Cached()
                elif line.strip() and not line.startswith(" --->"):
                    lines.append(line.rstrip())
                    yield Output(line.rstrip())
