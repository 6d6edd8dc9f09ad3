"""The contained zonotope, a baseline: right up to rounding, and no sharper than the closed form."""

from __future__ import annotations

import pytest
import torch

from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.contained import contained_zonotope
from wellposed.certify.zonotope import zonotope_enclosure, zonotope_margins
from wellposed.core.activations import Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, ShapeError


def draw(activation: Tanh | None = None) -> Network:
    g = torch.Generator().manual_seed(0)
    F, S = (torch.randn(10, 10, generator=g) / 10**0.5 for _ in range(2))
    W = torch.eye(10) * 0.2 - F.mT @ F + S - S.mT
    return Network.of(W, torch.randn(10, 4, generator=g), torch.randn(10, generator=g),
                      torch.randn(3, 10, generator=g), torch.zeros(3),
                      activation=activation)  # fmt: skip


@pytest.mark.parametrize("eps", [0.001, 0.01, 0.05])
def test_a_contained_zonotope_holds_the_states(eps: float) -> None:
    network = draw()
    g = torch.Generator().manual_seed(1)
    region = Box.around(torch.randn(1, 4, generator=g), eps)
    found = contained_zonotope(network, region)
    assert found.contained
    x = region.centre + region.radius * torch.randn(2000, 4, generator=g).sign().double()
    z = network.phi(approximate_equilibrium(network, x))
    assert ((z @ network.C.mT).amin(0) >= found.minimum(network.C) - 1e-9).all()
    reach = found.generators.abs().sum(1)
    assert ((z - found.centre).abs() <= reach + 1e-9).all()
    if eps == 0.001:
        closed = zonotope_enclosure(network, region).preactivation
        margins = zonotope_margins(network, region, closed, network.C[None])[0]
        assert torch.allclose(found.minimum(network.C), margins, rtol=1e-3)


def test_too_few_steps_are_no_containment() -> None:
    assert not contained_zonotope(draw(), Box.around(torch.zeros(1, 4), 0.01), steps=5).contained


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="One region"):
        contained_zonotope(draw(), Box.around(torch.zeros(2, 4), 0.01))
    with pytest.raises(ConfigError, match="proximal"):
        contained_zonotope(draw(Tanh()), Box.around(torch.zeros(1, 4), 0.01))
