"""Several passes of the towers give the gradients of one, in float64: on one process and on four, both losses."""

import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from clipa.data.pipeline import Batch
from clipa.model.loss import LOSSES, ClipOutput
from clipa.train.passes import backward, split

ROWS, SIZE, TOKENS = 24, 4, 5
EXACT = {"rtol": 0, "atol": 1e-12}


class Towers(nn.Module):
    """Two small towers that are not linear in their weights, in float64."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 9), nn.GELU(), nn.Linear(9, 6))
        self.text = nn.Sequential(nn.Embedding(50, 7), nn.Flatten(), nn.Linear(7 * TOKENS, 6))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.logit_bias = nn.Parameter(torch.full((1,), -2.0)) if name == "sigmoid" else None
        self.double()

    def forward(self, images, tokens):
        unit = (functional.normalize(x, dim=-1) for x in (self.image(images), self.text(tokens)))
        return ClipOutput(*unit, self.logit_scale.exp(), self.logit_bias)


def _batch(first=0, last=ROWS):
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (ROWS, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)
    tokens = torch.randint(0, 50, (ROWS, TOKENS), generator=draw)
    return Batch(images[first:last], tokens[first:last], torch.arange(100, 100 + ROWS)[first:last])


def _gradients(name, module, batch, at_once):
    """The loss and all gradients; which pixels are kept is drawn by position, as reductions and jitter are."""

    def forward(part):
        kept = (part.positions[:, None, None, None] + torch.arange(SIZE)) % 3 > 0
        return module(part.images.double() / 255 * kept, part.tokens)

    module.zero_grad()
    loss = backward(forward, module, batch, LOSSES[name], at_once)
    grads = {key.removeprefix("module."): p.grad for key, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss, **grads}


@pytest.mark.parametrize("at_once", [1, 5, 8, 23])
@pytest.mark.parametrize("name", LOSSES)
def test_several_passes_give_the_gradients_of_one(name, at_once):
    module = Towers(name)
    whole = {key: value.clone() for key, value in _gradients(name, module, _batch(), 0).items()}
    assert len(whole) == 1 + len(list(module.parameters()))
    for key, value in _gradients(name, module, _batch(), at_once).items():
        torch.testing.assert_close(value, whole[key], msg=lambda text, key=key: f"{key}: {text}", **EXACT)


def test_no_pass_holds_the_graph_of_more_than_a_part():
    module, largest = Towers("softmax"), []
    module.register_forward_hook(lambda _m, args, _out: largest.append((len(args[0]), torch.is_grad_enabled())))
    _gradients("softmax", module, _batch(), 5)
    assert largest == [(n, False) for n in (5, 5, 5, 5, 4)] + [(n, True) for n in (5, 5, 5, 5, 4)]


@pytest.mark.parametrize(("at_once", "sizes"), [(0, [24]), (24, [24]), (99, [24]), (10, [10, 10, 4])])
def test_parts_are_the_batch_in_order(at_once, sizes):
    batch, parts = _batch(), split(_batch(), at_once)
    assert [len(part.images) for part in parts] == sizes
    for field in ("images", "tokens", "positions"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))


def _rank(rank, world, port, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    share = ROWS // world
    batch = _batch(rank * share, (rank + 1) * share)
    found = {}
    for name in LOSSES:
        module, exchanged = DistributedDataParallel(Towers(name)), []
        module.register_comm_hook(exchanged, _counted)
        found[name] = {k: v.clone() for k, v in _gradients(name, module, batch, 4).items()}
        dist.all_reduce(found[name]["loss"].div_(world))
        assert len(exchanged) == 1, "ranks exchange gradients once a step"
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def _counted(exchanged: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    exchanged.append(1)
    mean = bucket.buffer().div_(dist.get_world_size())
    dist.all_reduce(mean)  # waited for here: a callback in gloo's thread may outlive the interpreter, which then aborts
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(mean)
    return done


def test_four_processes_in_several_passes_give_the_gradients_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["4", str(port), str(tmp_path / "found")]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), *words]) for rank in range(4)]
    assert [rank.wait(120) for rank in ranks] == [0] * 4
    for name, found in torch.load(tmp_path / "found", weights_only=True).items():
        whole = _gradients(name, Towers(name), _batch(), 0)
        assert set(found) == set(whole)
        for key, value in found.items():
            torch.testing.assert_close(value, whole[key], msg=lambda text, key=key: f"{key}: {text}", **EXACT)


if __name__ == "__main__":
    _rank(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
