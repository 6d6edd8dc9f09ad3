"""The dense network: what it accepts, what it computes, and its digest."""

from __future__ import annotations

import pytest
import torch

from wellposed.core.activations import GELU, LeakyReLU, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.errors import NotCertifiableError, ShapeError


def parts(n: int = 3, d: int = 2, q: int = 4) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g) for s in ((n, n), (n, d), (n,), (q, n), (q,))]


def test_shapes_and_precision() -> None:
    W, U, b, C, c = parts()
    W.requires_grad_()
    network = Network.of(W, U, b, C, c)
    assert (network.n, network.d, network.q) == (3, 2, 4)
    assert isinstance(network.activation, ReLU)
    for held, given in ((network.W, W), (network.U, U), (network.b, b), (network.C, C)):
        assert held.dtype == torch.float64
        assert not held.requires_grad
        assert torch.equal(held, given.detach().double())
    assert network.D.shape == (4, 2)
    assert not bool(network.D.any())
    assert not bool(network.linear.any())
    half = Network.of(*(t.detach().half() for t in parts()))
    assert half.W.dtype == torch.float64


@pytest.mark.parametrize(
    ("place", "shape"),
    [(0, (3, 2)), (0, (2, 2)), (1, (4, 2)), (2, (4,)), (3, (4, 2)), (4, (3,))],
)
def test_shapes_that_do_not_fit_are_named(place: int, shape: tuple[int, ...]) -> None:
    given = parts()
    given[place] = torch.zeros(shape)
    with pytest.raises(ShapeError, match="expected"):
        Network.of(*given)


def test_wrong_dimensions_direct_and_mask() -> None:
    given = parts()
    with pytest.raises(ShapeError, match="matrices"):
        Network.of(given[0][0], *given[1:])
    with pytest.raises(ShapeError, match="`D`"):
        Network.of(*given, D=torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="`linear`"):
        Network.of(*given, linear=torch.zeros(2) > 0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", range(5))
def test_weights_that_are_not_finite_are_refused(place: int, bad: float) -> None:
    given = parts()
    given[place].flatten()[0] = bad
    with pytest.raises(NotCertifiableError, match=f"`{'WUbCc'[place]}`"):
        Network.of(*given)
    with pytest.raises(NotCertifiableError, match="`D`"):
        Network.of(*parts(), D=torch.full((4, 2), bad))


def test_slopes_are_exact_numbers() -> None:
    """0.7 in float32 is less than 0.7: a slope must not pass through it."""
    linear = torch.tensor([True, False, False])
    network = Network.of(*parts(), activation=LeakyReLU(0.7), linear=linear)
    assert network.slope.tolist() == [1.0, 0.7, 0.7]
    assert Network.of(*parts()).slope.tolist() == [0.0, 0.0, 0.0]
    for kind in (Tanh(), GELU()):
        with pytest.raises(NotCertifiableError, match=kind.name):
            _ = Network.of(*parts(), activation=kind).slope


def test_what_it_computes() -> None:
    W, U, b, C, c = (t.double() for t in parts())
    D = torch.randn(4, 2).double()
    linear = torch.tensor([True, False, False])
    network = Network.of(W, U, b, C, c, D=D, activation=LeakyReLU(0.5), linear=linear)
    z, x = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    torch.testing.assert_close(network.preactivation(z, x), z @ W.mT + x @ U.mT + b)
    torch.testing.assert_close(network.output(z, x), z @ C.mT + x @ D.mT + c)
    v = torch.tensor([[-2.0, -2.0, 2.0]]).double()
    assert network.phi(v).tolist() == [[-2.0, -1.0, 2.0]]
    s = network.slope
    assert torch.equal(network.phi(v), torch.maximum(v, s * v))


def test_every_number_changes_the_digest() -> None:
    first = Network.of(*parts())
    seen = {first.digest()}
    assert Network.of(*(t.double() for t in parts())).digest() in seen  # the precision does not
    for place in range(5):
        for k in range(parts()[place].numel()):
            changed = parts()
            entry = changed[place].flatten()
            changed[place] = changed[place].clone().double()
            changed[place].view(-1)[k] = torch.nextafter(
                entry[k].double(), torch.tensor(9.0).double()
            )
            seen.add(Network.of(*changed).digest())
    total = sum(t.numel() for t in parts())
    assert len(seen) == 1 + total
    for other in (
        Network.of(*parts(), activation=LeakyReLU(0.1)),
        Network.of(*parts(), linear=torch.tensor([True, False, False])),
        Network.of(*parts(), D=torch.eye(4)[:, :2]),
    ):
        assert other.digest() not in seen
        seen.add(other.digest())


def test_the_digest_does_not_depend_on_memory_layout() -> None:
    W, U, b, C, c = parts()
    strided = torch.zeros(3, 6)[:, ::2]
    strided.copy_(W)
    assert Network.of(strided, U, b, C, c).digest() == Network.of(W, U, b, C, c).digest()
    turned = W.mT.contiguous().mT
    assert Network.of(turned, U, b, C, c).digest() == Network.of(W, U, b, C, c).digest()
