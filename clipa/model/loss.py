"""The contrastive losses over the global batch: softmax (CLIP) and sigmoid (SigLIP). No matrix of the whole batch.

Every rank compares its own rows with the columns of all ranks, a block of rows at a time. A block's gradients are
taken in the forward pass, while its similarities are there, so that nothing of a block is kept and nothing is computed
twice.

Memory of one rank, besides the features: at most AT_ONCE numbers for a block of similarities, whatever the batch, and
the gathered columns with their gradients: 4 * world * b * d numbers (half of that for the sigmoid). In fp32, with
65,536 pairs of width 768: 268 MB + 805 MB. The matrix alone would be 17 GB, and autograd keeps four of its kind.
docs/benchmarks.md has it measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch.nn import functional

LossName: TypeAlias = Literal["softmax", "sigmoid"]

AT_ONCE = 2**26
"""Similarities in memory at once: 268 MB in fp32, 1,024 rows of 65,536 columns."""


class ClipOutput(NamedTuple):
    """What the towers make of a batch.

    `image` and `text` are normalised features [b, d], row i of one belonging to row i of the other; `scale`, of shape
    (1,), multiplies their cosine similarities; `bias`, of shape (1,), is added to them: the sigmoid's models have one.
    """

    image: torch.Tensor
    text: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None = None


Loss: TypeAlias = Callable[[ClipOutput], torch.Tensor]


def softmax_loss(output: ClipOutput) -> torch.Tensor:
    """InfoNCE: symmetric cross-entropy of this rank's rows against all ranks' columns, as a mean over the rows.

    The mean of all ranks' losses is the loss of the global batch; with DDP's mean so are the gradients.
    Source: arXiv 2103.00020, figure 3.
    """
    image, text, scale, _ = output
    first = _first_row(image)
    by_image = _Softmax.apply(image, gather(text), scale, first)  # type: ignore[no-untyped-call]
    by_text = _Softmax.apply(text, gather(image), scale, first)  # type: ignore[no-untyped-call]
    loss: torch.Tensor = (by_image + by_text) / (2 * image.shape[0])
    return loss


def sigmoid_loss(output: ClipOutput) -> torch.Tensor:
    """SigLIP: every pair is a question of its own, does it belong together? Summed over columns, a mean over the rows.

    The mean of all ranks' losses is the loss of the global batch; with DDP's mean so are the gradients.
    Source: arXiv 2303.15343, algorithm 1.
    """
    image, text, scale, bias = output
    assert bias is not None, "this model was made without a bias"
    total = _Sigmoid.apply(image, gather(text), scale, bias, _first_row(image))  # type: ignore[no-untyped-call]
    loss: torch.Tensor = total / image.shape[0]
    return loss


LOSSES: Mapping[LossName, Loss] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def gather(rows: torch.Tensor) -> torch.Tensor:
    """[b, d] of every rank as [world * b, d], with gradient; the rows themselves on one process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered: torch.Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def _first_row(rows: torch.Tensor) -> int:
    """The column of all ranks in which this rank's first row finds its partner."""
    return dist.get_rank() * rows.shape[0] if dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of ranks. The gradient of a row is the sum of what every rank says about it.

    torch has two ways of its own; both are deprecated in 2.13.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        if grads[0].is_cuda:
            own = grads[0].new_empty((ctx.count, *grads[0].shape[1:]))
            dist.reduce_scatter_tensor(own, grads[0].contiguous())
            return own
        total = grads[0].clone(memory_format=torch.contiguous_format)  # gloo of torch 2.6 has no reduce-scatter
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.count
        return total[first : first + ctx.count]


class _Softmax(torch.autograd.Function):
    """The sum over rows of the cross-entropy of scale * rows @ columns.T, row i belonging to column first + i."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, first: int) -> torch.Tensor:
        total = rows.new_zeros(())
        grads = _Gradients(rows, columns)
        for part, own in _blocks(rows, columns, first, AT_ONCE):
            logits = torch.mm(rows[part], columns.T).mul_(scale)
            logits -= logits.amax(dim=1, keepdim=True)
            partner = logits.gather(1, own)
            total += -partner.sum()
            weights = logits.exp_()
            sums = weights.sum(dim=1, keepdim=True)
            total += sums.log().sum()
            if any(ctx.needs_input_grad):
                weights /= sums
                weights.scatter_add_(1, own, torch.full_like(partner, -1.0))
                grads.add(part, weights)
            del logits, weights  # or the next block would be made beside this one
        ctx.save_for_backward(*grads.scaled(scale))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(saved * grads[0] for saved in ctx.saved_tensors[:3]), None


class _Sigmoid(torch.autograd.Function):
    """The sum over rows and columns of -log sigmoid(+-(scale * rows @ columns.T + bias)), + for the pairs."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, first: int
    ) -> torch.Tensor:
        total, bias_grad = rows.new_zeros(()), torch.zeros_like(bias)
        grads = _Gradients(rows, columns)
        for part, own in _blocks(rows, columns, first, AT_ONCE // 4):  # log-sigmoid makes three more
            wrong = torch.mm(rows[part], columns.T).mul_(scale).add_(bias)
            _negate(wrong, own)  # now every entry is how wrong the answer is: -log sigmoid(-wrong) is its loss
            total -= functional.logsigmoid(-wrong).sum()
            if any(ctx.needs_input_grad):
                weights = wrong.sigmoid_()
                _negate(weights, own)
                grads.add(part, weights)
                bias_grad += weights.sum()
                del weights
            del wrong
        ctx.save_for_backward(*grads.scaled(scale), bias_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(saved * grads[0] for saved in ctx.saved_tensors), None


def _negate(matrix: torch.Tensor, own: torch.Tensor) -> None:
    matrix.scatter_(1, own, -matrix.gather(1, own))


def _blocks(
    rows: torch.Tensor, columns: torch.Tensor, first: int, at_once: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of the rows, and [rows of the slice, 1] the column of each row's partner."""
    step = max(1, at_once // columns.shape[0])
    for start in range(0, rows.shape[0], step):
        stop = min(start + step, rows.shape[0])
        yield slice(start, stop), torch.arange(first + start, first + stop, device=rows.device)[:, None]


class _Gradients:
    """The gradients of a sum over entries of scale * rows @ columns.T, gathered block by block."""

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.of_rows, self.of_columns = torch.zeros_like(rows), torch.zeros_like(columns)

    def add(self, part: slice, weights: torch.Tensor) -> None:
        """Add a block: `weights` [rows of the part, columns] are the derivatives by the entries."""
        torch.mm(weights, self.columns, out=self.of_rows[part])
        self.of_columns.addmm_(weights.T, self.rows[part])

    def scaled(self, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradients by rows, columns and scale."""
        # The scale's is the sum of weights * cosines: the rows' own gradient, projected on the rows.
        of_scale = (self.rows * self.of_rows).sum().reshape(scale.shape)
        return self.of_rows.mul_(scale), self.of_columns.mul_(scale), of_scale
