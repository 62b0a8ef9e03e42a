"""Import torchvision beside a torch that it was not built for.

PyPI's torchvision for Linux is the CUDA build. With a CPU torch its operators do not load, and its import then fails
(`operator torchvision::nms does not exist`) where it registers shapes for them. timm needs only its transforms, which
work: so, while it is first imported, and only then, registrations for `torchvision::*` that fail are passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def import_torchvision() -> None:
    """Import torchvision, with or without its operators."""
    real = torch.library.register_fake

    def tolerant(name: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(name).startswith("torchvision::") or _is_loaded(str(name)):
            return real(name, *args, **kwargs)
        return _keep

    torch.library.register_fake = tolerant
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = real


def _is_loaded(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name.partition("::")[2])


def _keep(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
