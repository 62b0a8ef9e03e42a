"""The gradients of a step, in one pass of the towers or in several: the same gradients, in less memory.

The contrastive loss needs the features of the whole batch, so it cannot be averaged over micro-batches. In several
passes the features come first, without a graph; the loss is taken on them, and gives each feature its gradient; then
every micro-batch passes again, and takes its features' gradients back to the weights (GradCache, arXiv 2101.06983).
It costs one more forward pass of the towers: 4/3 of the FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clipa.data.pipeline import Batch
from clipa.model.loss import ClipOutput, Loss


def backward(
    forward: Callable[[Batch], ClipOutput], module: nn.Module, batch: Batch, loss: Loss, at_once: int
) -> torch.Tensor:
    """Add the gradients of the loss of a batch to the parameters; returns the loss.

    Under DDP ranks exchange gradients once, in the last backward pass; under FSDP2 in each.

    Args:
        forward: a batch through the towers; what it does to a sample depends on nothing but the sample, its position
            and the weights, so that both passes see the same.
        module: what `forward` calls, DDP or not.
        batch: this rank's share of the step.
        loss: of the features of the whole share.
        at_once: samples that pass at once; 0: all.
    """
    parts = split(batch, at_once)
    if len(parts) == 1:
        value = loss(forward(batch))
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()
    with torch.no_grad():
        whole = _joined([forward(part) for part in parts])
    value = loss(whole)
    value.backward()  # type: ignore[no-untyped-call]
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        with nullcontext() if is_last else _alone(module):
            _hand_back(forward(part), whole, slice(number * at_once, (number + 1) * at_once), is_last)
    return value.detach()


def split(batch: Batch, at_once: int) -> list[Batch]:
    """Parts of at most `at_once` samples, in order."""
    count = len(batch.images)
    if not 0 < at_once < count:
        return [batch]
    rows = (slice(first, first + at_once) for first in range(0, count, at_once))
    return [batch._replace(images=batch.images[r], tokens=batch.tokens[r], positions=batch.positions[r]) for r in rows]


def _joined(outputs: list[ClipOutput]) -> ClipOutput:
    """One output of all rows, whose tensors are leaves that take a gradient."""
    last = outputs[-1]
    return ClipOutput(
        _leaf(torch.cat([output.image for output in outputs])),
        _leaf(torch.cat([output.text for output in outputs])),
        _leaf(last.scale),
        None if last.bias is None else _leaf(last.bias),
    )


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_()


def _hand_back(output: ClipOutput, whole: ClipOutput, rows: slice, is_last: bool) -> None:
    """From the features' gradients to the weights'; the scale's and the bias's are handed back once."""
    pairs = [(output.image, whole.image, rows), (output.text, whole.text, rows)]
    if is_last:
        pairs.append((output.scale, whole.scale, slice(None)))
        pairs += [] if output.bias is None or whole.bias is None else [(output.bias, whole.bias, slice(None))]
    trained = [
        (tensor, leaf.grad[part]) for tensor, leaf, part in pairs if tensor.requires_grad and leaf.grad is not None
    ]
    tensors, grads = zip(*trained, strict=True)
    torch.autograd.backward(tensors, grads)


def _alone(module: nn.Module) -> AbstractContextManager[None]:
    # FSDP2 adds up shard by shard in every pass: the gradient of the whole model would be what it is there to avoid.
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
