"""Outputs at single points of networks whose matrices are not formed, with their errors."""

from __future__ import annotations

from math import inf
from typing import NamedTuple, final

import torch
from torch import Tensor

from wellposed.certify.blocks import INPUT, Block
from wellposed.certify.box import value_slack
from wellposed.certify.lower import Lowered
from wellposed.certify.monotone import modulus
from wellposed.certify.wellposed import check_slopes
from wellposed.core.affine import Affine
from wellposed.core.inverse import Memo
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Operator
from wellposed.core.scalar import Activation
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.errors import NotCertifiableError
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.splitting import PeacemanRachford

_CLOSE = Stopping(rtol=1e-13, max_evaluations=3000)
_BATCH = 200


@final
class Near(NamedTuple):
    """Values and proved bounds ``|value - true value| <= error``, componentwise.

    Args:
        value: Shape (B, n), float64.
        error: The same shape; infinite where nothing is proved.
    """

    value: Tensor
    error: Tensor


@final
class Points:
    """Outputs of a network of monotone blocks, a point at a time.

    Blocks are evaluated in order. That of an equilibrium ``z = phi(A z + q)``, with ``q`` known to
    an error ``e``, is solved by operator splitting and judged by what was reached: for
    ``rho = |z - phi(A z + q)|`` with its rounding and ``e`` added, and ``m`` the proved modulus of
    ``I - A`` in the metric ``Lam``,

        |z - z*|  <=  rho + || |A| rho ||_Lam / ( m sqrt(Lam_i) ).

    Args:
        lowered: The network; its weights need not be exact, as for linear bounds.

    Raises:
        NotCertifiableError: A block is not shown to be monotone in the metric that it comes with,
            or slopes leave [0, 1].
    """

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self.activation = lowered.system.neurons.activation
        check_slopes(self.activation)
        self._loops = [
            None if block.feedback is None else _Loop(block.feedback, block, self.activation)
            for block in lowered.system.blocks
        ]

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Near:
        """The last block at points, taken as exact, in the coordinates of the system.

        Args:
            x: Shape (B, d), float64.
        """
        parts = [self._few(rows) for rows in x.split(_BATCH)]
        return Near(torch.cat([p.value for p in parts]), torch.cat([p.error for p in parts]))

    @torch.no_grad()
    def gaps(self, x: Tensor, label: Tensor) -> Box:
        """Proved bounds of ``y_label - y_j``, shape (B, q); 0 at the label itself."""
        y, error = self.outputs(x)
        own = label[:, None]
        value = y.gather(1, own) - y
        slack = outward(error.gather(1, own) + error + 2 * UNIT * value.abs(), 4)
        mine = torch.nn.functional.one_hot(label, y.shape[1]).bool()
        big = torch.finfo(torch.float64).max
        lower = (value - slack).nan_to_num(-big, -big, -big).masked_fill(mine, 0.0)
        upper = (value + slack).nan_to_num(big, big, big).masked_fill(mine, 0.0)
        return Box(lower, upper)

    def _few(self, x: Tensor) -> Near:
        known: list[Near] = []
        exact = Near(x, torch.zeros_like(x))
        for block, loop in zip(self.lowered.system.blocks, self._loops, strict=True):
            pre = _fed(block, known, exact)
            if loop is not None:
                known.append(loop.solve(pre))
            elif block.linear:
                known.append(pre)
            else:
                known.append(_elementwise(self.activation, pre))
        return known[-1]


@final
class _Loop:
    """One equilibrium block."""

    def __init__(self, A: Operator, block: Block, activation: Activation) -> None:
        self.A, self.activation, self.shape = A, activation, block.shape
        metric = torch.ones(1) if block.metric is None else block.metric
        channels = metric.double().expand(block.size).reshape(block.shape[0], -1)[:, 0]
        self.lam = channels.reshape(-1, *[1] * (len(block.shape) - 1))
        # the modulus says nothing about inputs: any operator of the right shape will do
        self.modulus = modulus(Affine(A, A, torch.zeros(1), activation, metric=self.lam))
        self.memo = Memo()
        if not self.modulus > 0:
            raise NotCertifiableError(
                f"The margin of monotonicity in the 2-norm is {self.modulus:.4g}, expected above "
                "0: no bound of the distance to an equilibrium follows from a residual.",
                hint="train a cell that is monotone by construction (`LbenConv2d`).",
            )

    def solve(self, pre: Near) -> Near:
        """The equilibrium for preactivations from outside."""
        q = pre.value.reshape(-1, *self.shape)
        map_ = AffineMap(self.A, q, self.activation, memo=self.memo)
        z = solve(map_, torch.zeros_like(q), PeacemanRachford(), _CLOSE).value
        v = self.A.apply(z) + q
        image = self.activation(v)
        size = self.A.absolute()
        flow = size.apply(z.abs()) + q.abs() + z.abs()
        blur = rounding(self.A.terms + 8) * flow + value_slack(self.activation, v, image)
        rho = outward((z - image).abs() + blur + pre.error.reshape(q.shape), 8)
        spread = outward(size.apply(rho), self.A.terms)
        axes = tuple(range(1, z.ndim))
        total = outward((spread.square() * self.lam).sum(axes, keepdim=True), z[0].numel() + 8)
        far = total.sqrt() / (self.modulus * self.lam.sqrt()) * (1 + 16 * UNIT)
        error = outward(rho + far, 4).nan_to_num(inf, inf)
        return Near(z.flatten(1), error.flatten(1))


def _fed(block: Block, known: list[Near], exact: Near) -> Near:
    """What the links of a block add up to."""
    value, size = block.bias.expand(len(exact.value), -1), block.bias.abs()
    error, terms = torch.zeros_like(value), 8
    for link in block.links:
        source = exact if link.source == INPUT else known[link.source]
        value = value + link.apply(source.value)
        size = size + link.absolute(source.value.abs())
        error = error + outward(link.absolute(source.error), link.terms)
        terms += link.terms + 1
    whole = error + rounding(terms) * outward(size, terms)
    return Near(value, outward(whole, 8).nan_to_num(inf, inf))


def _elementwise(activation: Activation, pre: Near) -> Near:
    value = activation(pre.value)
    return Near(value, outward(pre.error + value_slack(activation, pre.value, value), 4))
