"""Sending an image to a registry, and the name that it has there for ever."""

from __future__ import annotations

from collections.abc import Callable

from clipa.errors import LaunchError
from clipa.image.engine import Engine, Image
from clipa.image.progress import Event, Failed, Made
from clipa.image.reference import parse


def push(engine: Engine, image: Image, name: str, watch: Callable[[Event], None]) -> str:
    """Push; `NAME@sha256:...`, as the registry knows it now.

    Raises:
        LaunchError: the registry refuses, or says no digest.
    """
    engine.tag(image.id, name)
    digest = ""
    for event in engine.push(name):
        watch(event)
        if isinstance(event, Failed):
            raise LaunchError(f"the push failed: {event.error}", where=name, hint="docker login, then again")
        if isinstance(event, Made):
            digest = event.digest or digest
    if not digest:
        raise LaunchError("the registry said no digest", where=name)
    return parse(name).at(digest)
