"""The one place where a rich console is made: markup and emoji codes are off, and control characters are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from clipa.terminal import printable

WIDE = 160


class SafeConsole(Console):
    """A console that takes every string for text from outside: its style is given apart, as `Text` or `style=`."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text: no markup, no emoji codes, control characters as escapes."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and escape what a `Text` that was made elsewhere may still hold."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console(err: bool = False) -> Console:
    """Return the console of stdout, or with `err` of stderr; wide enough not to cut tables when nobody watches."""
    stream = sys.stderr if err else sys.stdout
    watched = stream is not None and stream.isatty()
    return SafeConsole(stderr=err, markup=False, emoji=False, highlight=False, width=None if watched else WIDE)
