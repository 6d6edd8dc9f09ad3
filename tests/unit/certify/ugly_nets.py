"""Small networks with ugly weights, their equilibria, and inputs that try hard to break a bound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.fallback import lipschitz_box
from wellposed.certify.system import System
from wellposed.core.activations import Activation
from wellposed.core.network import Network
from wellposed.core.sets import Box, Region


def contracting(
    seed: int,
    n: int = 8,
    d: int = 3,
    *,
    activation: Activation | None = None,
    skew: float = 0.0,
    identities: bool = True,
) -> Network:
    """A contraction in a weighted max norm, float32 weights; scales are 10 to ``+-skew``."""
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=g)
    A = A / A.abs().sum(1, keepdim=True) * (0.3 + 0.6 * torch.rand(n, 1, generator=g))
    A = A - torch.diag(2 * torch.rand(n, generator=g) ** 4)
    scale = 10.0 ** (skew * (2 * torch.rand(n, generator=g) - 1))
    return Network.of(
        scale[:, None] * A / scale,
        scale[:, None] * torch.randn(n, d, generator=g),
        scale * torch.randn(n, generator=g) * 0.5,
        torch.randn(3, n, generator=g) / scale,
        torch.randn(3, generator=g),
        D=torch.randn(3, d, generator=g),
        activation=activation,
        linear=(torch.arange(n) % 4 == 3) & identities,
    )


def monotone(seed: int, n: int = 8, d: int = 3, *, activation: Activation | None = None) -> Network:
    """A monotone network that is no max-norm contraction."""
    g = torch.Generator().manual_seed(seed)
    F, S = (1.2 * torch.randn(n, n, generator=g) / n**0.5 for _ in range(2))
    return Network.of(
        torch.eye(n) * 0.2 - F.mT @ F + S - S.mT,
        torch.randn(n, d, generator=g),
        torch.randn(n, generator=g) * 0.5,
        torch.randn(3, n, generator=g),
        torch.randn(3, generator=g),
        activation=activation,
    )


def feedforward(seed: int, widths: Sequence[int], d: int = 3) -> Network:
    """A fully connected network of some layers, as one with a strictly block-triangular weight."""
    g = torch.Generator().manual_seed(seed)
    n = sum(widths)
    W, U = torch.zeros(n, n), torch.zeros(n, d)
    U[: widths[0]] = torch.randn(widths[0], d, generator=g)
    at = 0
    for before, width in zip(widths[:-1], widths[1:], strict=True):
        rows = slice(at + before, at + before + width)
        W[rows, at : at + before] = torch.randn(width, before, generator=g) / before**0.5
        at += before
    C = torch.zeros(3, n)
    C[:, at:] = torch.randn(3, widths[-1], generator=g)
    return Network.of(W, U, 0.3 * torch.randn(n, generator=g), C, torch.randn(3, generator=g))


def regions(seed: int, count: int, d: int = 3, radius: float = 0.1) -> Box:
    """Boxes of several sizes around random points."""
    g = torch.Generator().manual_seed(1000 + seed)
    sizes = radius * 10.0 ** -(torch.arange(count) % 3)
    return Box.around(torch.randn(count, d, generator=g), sizes[:, None].double())


def scope_of(network: Network, system: System, region: Region) -> Scope:
    """The scope of the Lipschitz box."""
    return Scope.of(system, region, lipschitz_box(network, region))


def random_rows(seed: int, count: int, network: Network) -> Rows:
    """Objectives in the scale of the network's outputs."""
    g = torch.Generator().manual_seed(2000 + seed)
    mix = torch.randn(count, network.q, generator=g).double()
    direct = torch.randn(count, network.d, generator=g).double()
    return Rows(mix @ network.C, direct, torch.randn(count, generator=g).double())


def descend(network: Network, region: Region, rows: Rows, steps: int = 4, seed: int = 0) -> Tensor:
    """For every region and its row: a random input, then corners along exact gradients.

    Returns:
        Inputs of shape (steps + 1, N, d), all in the region's box.
    """
    box = region.box
    g = torch.Generator().manual_seed(seed)
    share = torch.rand(box.lower.shape, generator=g).double()
    x = torch.minimum(box.lower + share * (box.upper - box.lower), box.upper)
    found = [x]
    for _ in range(steps):
        v = approximate_equilibrium(network, x)
        slope = torch.where(network.linear, 1.0, network.activation.slope(v))
        eye = torch.eye(network.n).double()
        system = eye - slope[:, :, None] * network.W
        adjoint = torch.linalg.solve(system.mT, rows.state[..., None])[..., 0]
        gradient = (adjoint * slope) @ network.U
        if rows.input is not None:
            gradient = gradient + rows.input
        x = torch.where(gradient > 0, box.lower, box.upper)
        found.append(x)
    return torch.stack(found)


def values(network: Network, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at the equilibria of inputs (..., N, d), and how much the computed value may err."""
    flat = x.reshape(-1, network.d)
    z = network.phi(approximate_equilibrium(network, flat)).reshape(*x.shape[:-1], network.n)
    value = rows.offset + (rows.state * z).sum(-1)
    size = rows.offset.abs() + (rows.state * z).abs().sum(-1)
    if rows.input is not None:
        value = value + (rows.input * x).sum(-1)
        size = size + (rows.input * x).abs().sum(-1)
    return value, 1e-9 * size + 1e-12
