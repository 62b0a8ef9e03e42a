"""What a person sees while an image is built or shipped: steps, layers, bytes."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from clipa.cli import show
from clipa.image.progress import Cached, Event, Layer, Output, Step
from clipa.terminal import say

_OVER = ("complete", "exists", "pushed", "mounted")


class Watcher:
    """Draws events: a bar a step and a layer on a terminal, else plain lines. Everything goes to stderr."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._plain = quiet or not sys.stderr.isatty()
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), DownloadColumn(),
            TransferSpeedColumn(), TimeElapsedColumn(), console=show.console(err=True), transient=True,
            disable=self._plain,
        )  # fmt: skip

    def __enter__(self) -> Watcher:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Step(number=number, total=total, text=text):
                self._say(f"{number:2}/{total} {text[:120]}")
            case Cached():
                self._say("      made before")
            case Output(text=text):
                if not self._plain:
                    self._bars.console.print(f"      {text[:150]}", style="dim")
            case Layer():
                self._layer(event)
            case _:
                pass

    def _say(self, text: str) -> None:
        if self._plain and not self._quiet:
            say(text, err=True)
        elif not self._plain:
            self._bars.console.print(text)

    def _layer(self, layer: Layer) -> None:
        over = any(word in layer.status.lower() for word in _OVER)
        if layer.id not in self._tasks:
            self._tasks[layer.id] = self._bars.add_task(layer.id, total=None)
            self._say(f"      layer {layer.id}: {layer.status}") if self._plain else None
        if over:
            self._bars.remove_task(self._tasks[layer.id]) if not self._plain else None
            self._tasks.pop(layer.id)
            return
        self._bars.update(
            self._tasks[layer.id],
            description=f"{layer.id} {layer.status}",
            completed=layer.current,
            total=layer.total or None,
        )
