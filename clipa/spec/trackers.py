"""The trackers of experiments that can be told of a run: who writes to each, and what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clipa.spec.base import require


class Known(NamedTuple):
    """A tracker: the module and the class that write to it, and the package that these import.

    `repeats`: whether it takes steps that an attempt does again, and forgets what it had of them.
    """

    module: str
    door: str
    package: str = ""
    repeats: bool = False


TRACKERS: dict[str, Known] = {
    "tensorboard": Known("clipa.tell.tensorboard", "TensorBoard", repeats=True),
    "wandb": Known("clipa.tell.wandb_tracker", "Wandb", "wandb"),
    "trackio": Known("clipa.tell.trackio_tracker", "Trackio", "trackio"),
    "mlflow": Known("clipa.tell.mlflow_tracker", "Mlflow", "mlflow"),
}
DEFAULT: tuple[str, ...] = ("tensorboard",)


def require_known(names: Sequence[str] | None) -> None:
    """Refuse a name that is no tracker's; None is no choice.

    Raises:
        ValueError: with the names that there are.
    """
    for name in names or ():
        require(name in TRACKERS, f"trackers must be of {', '.join(TRACKERS)}, got {name!r}")
