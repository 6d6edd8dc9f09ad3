"""Dense networks as systems: products with matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.adjoint import PeacemanRachford, contracts, jacobi
from wellposed.certify.system import Neurons, System
from wellposed.core.network import Network
from wellposed.core.operators import Dense
from wellposed.core.spectra import outward, perron


@final
@dataclass(frozen=True, eq=False)
class DenseSystem(System):
    """A `Network` seen from its adjoint side.

    Args:
        network: Explicit weights.
        metric: ``Lam > 0``, shape (n,), in which ``I - W`` is monotone if the network is no
            max-norm contraction; ones if absent. It only steers an iteration.
    """

    network: Network
    metric: Tensor | None = None

    @property
    @override
    def n(self) -> int:
        return self.network.n

    @property
    @override
    def d(self) -> int:
        return self.network.d

    @property
    @override
    def bias(self) -> Tensor:
        return self.network.b

    @cached_property
    def _neurons(self) -> Neurons:
        return Neurons(self.network.activation, self.network.linear)

    @property
    @override
    def neurons(self) -> Neurons:
        return self._neurons

    @property
    @override
    def terms(self) -> int:
        return self.n + self.d + 4

    @override
    def pull(self, p: Tensor) -> tuple[Tensor, Tensor]:
        return p @ self.network.W, p @ self.network.U

    @override
    def reach(self, z: Tensor, x: Tensor) -> Tensor:
        W, U = self._sizes
        return outward(z @ W.mT + x @ U.mT, self.terms)

    @cached_property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        return self.network.W.abs(), self.network.U.abs()

    @override
    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.W[index], self.network.U[index]

    @override
    def adjoint(self, row: Tensor, below: Tensor, above: Tensor) -> Tensor:
        if self._contracts:
            off, own = self._parts
            return jacobi(lambda p, r: torch.addmm(r, p, off), own, row, below, above)
        return self._splitting(row, below, above)

    @cached_property
    def _contracts(self) -> bool:
        off, own = self._parts
        if not bool(off.triu().any()):
            return True  # a feed-forward network: the iteration ends after its depth
        return contracts(own, lambda gain: perron(Dense(off), gain).factor)

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        return Dense(self.network.W).off_diagonal().matrix, self.network.W.diagonal()

    @cached_property
    def _splitting(self) -> PeacemanRachford:
        return PeacemanRachford.of(self.network.W, self.metric)
