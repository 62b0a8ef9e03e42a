"""What the weights of a training are a function of: the part of its plan that all its attempts have in common.

A checkpoint holds it whole, where a digest would do to tell it from another plan's: so an error can name the key that
differs, and a newer clipa, whose plans have more keys, still finds it the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from clipa.spec.job import Checkpoints, Evaluate, Finetune, Pretrain, TrainPhase
from clipa.spec.model import Model
from clipa.spec.plan import Plan, Record

_FREE: dict[str, object] = {
    "micro_batch": 0, "parallel": "ddp", "recompute": 0.0, "compile": "auto", "deterministic": False,
    "checkpoint": Checkpoints(), "evaluate": Evaluate(), "log_every_samples": 0, "bad_samples": 0.1,
    "on_nan": "stop", "on_spike": "note",
}  # fmt: skip
"""Keys of a phase that say how it is trained, watched and kept, not what: a resumed run may have others."""
_SHOWN = 3


class Essence(Record, frozen=True, kw_only=True):
    """What is trained, on what, from where. `init`: the starting weights."""

    model: Model
    settings: Pretrain | Finetune
    seed: int
    steps: int
    warmup_steps: int
    manifests: tuple[str, ...] = ()
    init: str = ""


def essence_of(plan: Plan) -> Essence:
    """The essence of the plan of a training phase."""
    assert isinstance(plan.settings, TrainPhase)
    return Essence(
        model=plan.model,
        settings=msgspec.structs.replace(plan.settings, **_FREE),
        seed=plan.seed,
        steps=plan.steps,
        warmup_steps=plan.warmup_steps,
        manifests=tuple(data.manifest for data in plan.trained_on),
        init=plan.init.ref if plan.init is not None else "",
    )


def differences(there: Essence, here: Essence) -> str:
    """The first keys that differ, with both values; empty where none does."""
    left, right = dict(_flat("", msgspec.to_builtins(there))), dict(_flat("", msgspec.to_builtins(here)))
    keys = [key for key in {**right, **left} if left.get(key) != right.get(key)]
    said = [
        f"{key.removeprefix('settings.')} is {_word(left.get(key))} there, {_word(right.get(key))} here" for key in keys
    ]
    more = f", and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return "; ".join(said[:_SHOWN]) + more


def _word(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(f"{name}.{key}" if name else str(key), inner)
