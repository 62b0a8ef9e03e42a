"""Batches to the device, beside what it computes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from clipa.data.pipeline import Batch


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on the device.

    On a GPU the copy of a batch has a stream of its own: while the device computes a step, the host is ahead of it and
    sends the next batch, so that two are there at a time. What computes waits for the copy, the host does not.
    """
    if device.type != "cuda":
        for batch in batches:
            yield moved(batch, device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = moved(batch, device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for tensor in (sent.images, sent.tokens, sent.positions):
            tensor.record_stream(computing)  # or its memory could be given away while the step reads it
        yield sent


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; from pinned memory the host does not wait."""
    images, tokens, positions = (t.to(device, non_blocking=True) for t in (batch.images, batch.tokens, batch.positions))
    return batch._replace(images=images, tokens=tokens, positions=positions)
