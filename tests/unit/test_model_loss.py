"""The loss of several processes is the loss of one: values and gradients, in float64."""

import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from clipa.model import loss as losses
from clipa.model.loss import contrastive_loss

ROWS, WIDTH = 8, 5


def _inputs():
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)  # noqa: E731
    return draw(), draw(), torch.tensor([7.0], dtype=torch.float64)


def _run(image, text, scale, rows):
    image, text, scale = (t.clone().requires_grad_() for t in (image, text, scale))
    pick = lambda t: functional.normalize(t[rows], dim=-1)  # noqa: E731
    loss = contrastive_loss(pick(image), pick(text), scale)
    loss.backward()
    return [t.detach() for t in (loss, image.grad, text.grad, scale.grad)]


def _rank(rank, world, port, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    share = ROWS // world
    parts = _run(*_inputs(), slice(rank * share, (rank + 1) * share))
    for part in parts:
        dist.all_reduce(part)
    if rank == 0:
        # As DDP does: the mean over the ranks of losses and of gradients.
        torch.save([part / world for part in parts], out)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_loss_and_gradients_do_not_depend_on_the_number_of_processes(world, tmp_path):
    alone = _run(*_inputs(), slice(0, ROWS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(world), str(port), str(tmp_path / "parts")]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), *words]) for rank in range(world)]
    assert [rank.wait(120) for rank in ranks] == [0] * world
    for one, many in zip(alone, torch.load(tmp_path / "parts", weights_only=True), strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=1e-12)


if __name__ == "__main__":
    _rank(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])


def test_rows_in_parts_give_the_same_loss_and_gradients(monkeypatch):
    whole = _run(*_inputs(), slice(0, ROWS))
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 3)
    for one, many in zip(whole, _run(*_inputs(), slice(0, ROWS)), strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=1e-12)


def test_the_loss_is_that_of_the_paper():
    """numpy-like pseudocode of arXiv 2103.00020, figure 3."""
    image, text, scale = _inputs()
    image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
    logits, labels = image @ text.T * scale, torch.arange(ROWS)
    expected = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale), expected, rtol=0, atol=1e-12)
