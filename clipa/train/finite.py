"""Whether every step so far was finite: judged on the device, looked at by the host when it has time.

A step whose loss or gradients are not finite is not applied, and neither is any after it: the fused optimizer takes a
flag that makes it skip (`found_inf`, torch's own means for loss scaling). So weights stay as they were before the first
bad step, without the host waiting for the device in the loop. torchtitan asserts on the device instead, which ends the
CUDA context: nobody could save or go back after that.
"""

from __future__ import annotations

import torch


class Finite:
    """Remembers the first bad step of one rank. All ranks judge the same numbers, so all remember the same.

    Args:
        device: where losses and gradients are.
    """

    def __init__(self, device: torch.device) -> None:
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)
        """The number, from 1, of the first step that was not finite; 0: none was."""
        self._ready: torch.cuda.Event | None = None
        self._copy = torch.zeros((), dtype=torch.int64, pin_memory=device.type == "cuda")

    def judge(self, loss: torch.Tensor, norm: torch.Tensor, step: int) -> torch.Tensor:
        """Judge step `step` (from 0) by the loss of the global batch and the norm of all gradients.

        Returns:
            What the optimizer wants to know: 1.0 where this step must not be applied, a float32 scalar.
        """
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self.first_bad = torch.where((self.first_bad == 0) & is_bad, step + 1, self.first_bad)
        return (self.first_bad > 0).float()

    def read(self) -> int:
        """The first bad step, or 0; waits for the device."""
        return int(self.first_bad)

    def seen(self) -> int:
        """The first bad step, or 0, as of the last call: never waits for the device."""
        if not self.first_bad.is_cuda:
            return self.read()
        if self._ready is not None and not self._ready.query():  # type: ignore[no-untyped-call]
            return 0
        found = int(self._copy) if self._ready is not None else 0
        self._copy.copy_(self.first_bad, non_blocking=True)
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._ready.record()
        return found

    def reset(self) -> None:
        """Forget: the weights are good ones again."""
        self.first_bad = torch.zeros_like(self.first_bad)
        self._ready = None
