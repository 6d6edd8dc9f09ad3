"""Fixed points in the company of the rest of torch: copies, precision, checkpoints, processes."""

import copy
import io
import pickle
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from wellposed.cells.free import FreeCell
from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.gradients.implicit import Implicit
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping

EXACT = Stopping(rtol=1e-13, atol=1e-15, max_evaluations=3000)


class Mix(nn.Module):
    def __init__(self, n=6, dtype=None):
        super().__init__()
        self.inner = nn.Linear(n, n, dtype=dtype)
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


def net_of(kind="dense", dtype=None):
    torch.manual_seed(0)
    cell = NemonCell(6, 6, dtype=dtype) if kind == "dense" else FreeCell(Mix(dtype=dtype))
    return nn.Sequential(
        nn.Linear(5, 6, dtype=dtype), Equilibrium(cell), nn.Linear(6, 3, dtype=dtype)
    )


def gradients(net, x):
    net.zero_grad()
    net(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("kind", ["dense", "free"])
@pytest.mark.parametrize("moment", ["fresh", "after forward", "after backward"])
def test_copies_and_pickles(kind, moment):
    net, x = net_of(kind), torch.randn(4, 5)
    if moment != "fresh":
        y = net(x).square().sum()
        if moment == "after backward":
            y.backward()
            net.zero_grad()
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(buffer, weights_only=False),
        torch.optim.swa_utils.AveragedModel(net).module,
    ]
    reference = gradients(net, x)
    for twin in copies:
        assert twin[1].last is None
        assert all(torch.equal(a, b) for a, b in zip(gradients(twin, x), reference, strict=True))
        assert all(a is not b for a, b in zip(twin.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["dense", "free"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(kind, reentrant):
    net, x = net_of(kind, torch.float64), torch.randn(4, 5, dtype=torch.float64)
    reference = gradients(net, x)
    net.zero_grad()
    hidden = net[0](x)
    y = net[2](checkpoint(net[1], hidden, use_reentrant=reentrant))
    y.square().sum().backward()
    for p, g in zip(net.parameters(), reference, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-12)


class Halved(nn.Module):
    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def forward(self, raw):
        self.counter.append(1)
        return raw / 2


def test_parametrised_weights_of_an_affine_cell_are_formed_once():
    net, x, count = net_of(), torch.randn(4, 5), []
    parametrize.register_parametrization(net[1].cell, "T", Halved(count))
    count.clear()
    y = net(x)
    assert len(count) == 1
    y.sum().backward()
    assert len(count) == 1
    assert net[1].cell.parametrizations.T.original.grad.abs().sum() > 0


def test_parametrised_weights_of_a_free_cell_get_gradients():
    torch.manual_seed(0)
    mix = Mix(dtype=torch.float64)
    parametrize.register_parametrization(mix.inner, "weight", Halved([]))
    layer = Equilibrium(FreeCell(mix), stopping=EXACT, gradient=Implicit(rtol=1e-13))
    x = torch.randn(3, 6, dtype=torch.float64)
    original = mix.inner.parametrizations.weight.original
    (ours,) = torch.autograd.grad(layer(x).sum(), original)
    z = torch.zeros(3, 6, dtype=torch.float64)
    for _ in range(200):
        z = mix(z, x)
    (theirs,) = torch.autograd.grad(z.sum(), original)
    assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("kind", ["dense", "conv", "free"])
def test_mixed_precision_with_backward_outside(kind):
    torch.manual_seed(0)
    if kind == "conv":
        layer, x = Equilibrium(NemonConv2d(2, 3, image=(6, 6))), torch.randn(4, 2, 6, 6)
    else:
        layer, x = net_of(kind)[1], torch.randn(4, 6)
    reference = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for given in (x, x.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(given)
            loss = y.float().square().sum()
        assert y.dtype == torch.float32
        assert layer.last.residual.dtype == torch.float32
        assert layer.last.converged.all()
        ours = torch.autograd.grad(loss, list(layer.parameters()))
        for a, b in zip(ours, reference, strict=True):
            assert a.dtype == torch.float32
            assert (a - b).norm() <= 0.05 * b.norm() + 1e-6
        assert layer.last.adjoint.converged


def test_mixed_precision_of_the_whole_net():
    net, x = net_of(), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        net.eval()(x)


def _worker(rank, port, out):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    net = DistributedDataParallel(net_of(dtype=torch.float64))
    x, y = _data()
    loss = nn.functional.cross_entropy(net(x[rank::2]), y[rank::2])
    loss.backward()
    if not rank:
        torch.save([p.grad for p in net.module.parameters()], out)
    dist.destroy_process_group()


def _data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (8,), generator=generator)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    out = tmp_path / "gradients.pt"
    mp.spawn(_worker, args=(port, str(out)), nprocs=2, join=True)
    net = net_of(dtype=torch.float64)
    x, y = _data()
    nn.functional.cross_entropy(net(x), y).backward()
    for p, g in zip(net.parameters(), torch.load(out), strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-6, atol=1e-10)
