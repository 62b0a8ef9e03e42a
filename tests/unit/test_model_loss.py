"""Both losses against plain float64 references, on one process and several: values and gradients."""

import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from clipa.model import loss as losses
from clipa.model.loss import LOSSES, ClipOutput

ROWS, WIDTH = 12, 5
EXACT = {"rtol": 0, "atol": 1e-12}


def _inputs(sharpness=1.0):
    """Raw features, the scale and the bias."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)  # noqa: E731
    scale, bias = (torch.tensor([v], dtype=torch.float64) for v in (7.0 * sharpness, -3.0))
    return draw(), draw(), scale, bias


def _softmax_reference(image, text, scale, _bias):
    """Numpy-like pseudocode of arXiv 2103.00020, figure 3."""
    logits, labels = image @ text.T * scale, torch.arange(len(image))
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def _sigmoid_reference(image, text, scale, bias):
    """Algorithm 1 of arXiv 2303.15343."""
    labels = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -functional.logsigmoid(labels * (image @ text.T * scale + bias)).sum() / len(image)


REFERENCES = {"softmax": _softmax_reference, "sigmoid": _sigmoid_reference}


def _derived(loss, inputs, rows=slice(None)):
    """The loss of some rows, and the gradients of all that it depends on; features are normalised inside."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    unit = [functional.normalize(t[rows], dim=-1) for t in leaves[:2]]
    value = loss(*unit, *leaves[2:])
    value.backward()
    return [value.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in leaves)]


def _ours(name):
    return lambda *parts: LOSSES[name](ClipOutput(*parts))


@pytest.mark.parametrize("at_once", [2**26, 3 * ROWS, 1])
@pytest.mark.parametrize("sharpness", [1.0, 14.0])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_papers(name, sharpness, at_once, monkeypatch):
    monkeypatch.setattr(losses, "AT_ONCE", at_once)
    expected = _derived(REFERENCES[name], _inputs(sharpness))
    for mine, theirs in zip(_derived(_ours(name), _inputs(sharpness)), expected, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize("name", LOSSES)
def test_in_single_precision_a_sharp_loss_stays_exact_and_finite(name):
    """At the largest scale, with a hopeless batch: partners are opposites."""
    image = functional.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    parts = (image, -image, torch.tensor([100.0]), torch.tensor([-10.0]))
    single, double = (_derived(_ours(name), [p.to(kind) for p in parts]) for kind in (torch.float32, torch.float64))
    for rough, fine in zip(single, double, strict=True):
        # A logit of 100 is known to 6e-6, so a probability to that share of itself.
        assert (rough - fine).abs().max() <= 2e-5 * fine.abs().max()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_only_looked_at_takes_no_gradients(name, monkeypatch):
    monkeypatch.setattr(losses._Gradients, "add", None)
    image, text, scale, bias = _inputs()
    with torch.no_grad():
        assert LOSSES[name](ClipOutput(image, text, scale, bias)).isfinite()


def _rank(rank, world, port, out):
    torch.set_num_threads(1)
    losses.AT_ONCE = 2 * ROWS  # two rows a block, so that a rank of three has two blocks
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    share = ROWS // world
    found = {name: _derived(_ours(name), _inputs(), slice(rank * share, (rank + 1) * share)) for name in LOSSES}
    for part in [part for parts in found.values() for part in parts]:
        dist.all_reduce(part.div_(world))  # as DDP does: the mean over the ranks of losses and of gradients
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def test_loss_and_gradients_do_not_depend_on_the_number_of_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["4", str(port), str(tmp_path / "parts")]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), *words]) for rank in range(4)]
    assert [rank.wait(120) for rank in ranks] == [0] * 4
    for name, parts in torch.load(tmp_path / "parts", weights_only=True).items():
        for one, many in zip(_derived(REFERENCES[name], _inputs()), parts, strict=True):
            torch.testing.assert_close(many, one, **EXACT)


if __name__ == "__main__":
    _rank(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
