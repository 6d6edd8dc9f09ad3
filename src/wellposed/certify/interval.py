"""Interval enclosures of a network in the max norm: from outside, and post-fixed points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.box import equilibrium_box, resolve_bound, value_slack
from wellposed.certify.fallback import injection
from wellposed.certify.loop import Loop
from wellposed.certify.relax import neurons_of
from wellposed.certify.system import Neurons
from wellposed.core.activations import Activation
from wellposed.core.affine import Affine
from wellposed.core.boxes import Box
from wellposed.core.network import Network
from wellposed.core.operators import Dense
from wellposed.core.sets import Region
from wellposed.core.spectra import TINY, UNIT, outward, rounding


@final
@dataclass(frozen=True, eq=False)
class _Mixed(Activation):
    """The activation of a network with identity neurons among the others."""

    neurons: Neurons
    name: ClassVar[str] = "mixed"

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        low, high = self.neurons.activation.slopes
        return min(low, 1.0), max(high, 1.0)

    @property
    @override
    def homogeneous(self) -> bool:
        return self.neurons.activation.homogeneous

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return self.neurons(v)

    @override
    def slope(self, v: Tensor) -> Tensor:
        return torch.where(self.neurons.linear, 1.0, self.neurons.activation.slope(v))

    @override
    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.neurons.image(lower, upper)

    @override
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.neurons.slope_range(lower, upper)


def _phi(network: Network) -> Activation:
    neurons = Neurons(network.activation, network.linear)
    return _Mixed(neurons) if bool(network.linear.any()) else network.activation


def loop_of(network: Network) -> Loop:
    """The componentwise bound of a network as a function of the injection ``q = U x + b``.

    Raises:
        NotCertifiableError: The network contracts in no weighted max norm, or slopes leave [0, 1].
    """
    neurons_of(network)
    eye = Dense(torch.eye(network.n, dtype=torch.float64))
    return Loop(Affine(Dense(network.W), eye, torch.zeros_like(network.b), _phi(network)))


@torch.no_grad()
def interval_enclosure(
    network: Network,
    region: Region,
    *,
    steps: int = 100,
    rtol: float = 1e-9,
    loop: Loop | None = None,
) -> Box:
    """Preactivations of all equilibria over each region, shape (B, n); sound at any step.

    The injections of a region form a box; from there on it is `equilibrium_box`, whose outer start
    is the componentwise Lipschitz box around an approximate equilibrium, so that the result is
    never wider. For a box of inputs this is the embedded network of that function.

    Args:
        network: A contraction in a weighted max norm; slopes in [0, 1].
        region: Inputs, flat, shape (B, d).
        steps: Of iteration, at most; 0 gives the image of the Lipschitz box.
        rtol: At which a sample stops, as in `equilibrium_box`.
        loop: `loop_of` the network, if it is at hand.

    Raises:
        NotCertifiableError: The network contracts in no weighted max norm.
    """
    loop = loop or loop_of(network)
    return equilibrium_box(
        loop.affine, injection(network, region), steps=steps, rtol=rtol, loop=loop
    ).preactivation


@torch.no_grad()
def interval_image(network: Network, region: Region, box: Box) -> Box:
    """Bounds of the ``v'`` with ``v'_i = W_ii phi(v'_i) + sum_{j != i} W_ij phi(v_j) + q_i``.

    ``q = U x + b``. For all ``v`` in `box` and inputs of `region`; an equilibrium is its own
    ``v'``. Where some ``d W_ii`` reaches 1 for a slope d, the diagonal is treated like the rest.

    Args:
        network: Any network, well posed or not.
        region: Inputs, flat, shape (B, d).
        box: Preactivations, shape (B, n).
    """
    return image_of(network, injection(network, region), box)


def image_of(network: Network, q: Box, box: Box) -> Box:
    """`interval_image` for the box ``q`` of the injections."""
    phi = _phi(network)
    low, high = phi.image(box.lower.double(), box.upper.double())
    reach = torch.maximum(box.lower.abs(), box.upper.abs()).double()
    slack = value_slack(phi, reach, torch.maximum(low.abs(), high.abs()))
    z = Box(low - slack, high + slack)
    own = network.W.diagonal()
    solvable = all(bool((1 - d * own > 1e-9).all()) for d in phi.slopes)
    W = network.W - torch.diag(own) if solvable else network.W
    middle = z.centre
    gamma = 2 * rounding(network.n + 8)
    value = middle @ W.mT
    spread = outward((z.radius + gamma * middle.abs()) @ W.abs().mT, network.n)
    low, high = value - spread + q.lower, value + spread + q.upper
    slack = 4 * UNIT * (value.abs() + spread + q.lower.abs() + q.upper.abs()) + TINY
    low, high = low - slack, high + slack
    if not solvable or not bool(own.any()):
        return Box(low, high)
    return Box(resolve_bound(phi, own, low, -1.0), resolve_bound(phi, own, high, 1.0))


def post_fixed(network: Network, region: Region, box: Box) -> Tensor:
    """Whether the interval image of each box lies inside it, rounding included; shape (B,).

    Then (Brouwer) every input of the region has an equilibrium with preactivation in the box, and
    for a well-posed network that is the only one. Iterates that approach a box from inside fail
    this test, however small their last step.
    """
    image = interval_image(network, region, box)
    return ((image.lower >= box.lower) & (image.upper <= box.upper)).all(1)
