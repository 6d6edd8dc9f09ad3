"""Residual layers from a semidefinite programme: SLL and its special case, CPL."""

from __future__ import annotations

from abc import abstractmethod
from math import sqrt
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.checks import check_cone, check_sizes
from wellposed.core.activations import Activation, ReLU
from wellposed.nn.explicit import ExplicitLayer, Hidden


class DescentLayer(ExplicitLayer):
    """``y = x - 2 W^T [t] phi(W x + b)`` with ``[1/t] >= W W^T``.

    Slopes in [0, 1] give ``dz^T [t] dz <= dz^T [t] W dx``, hence
    ``|dy|^2 <= |dx|^2 - 4 dz^T [t] ( [1/t] - W W^T ) [t] dz``. For a monotone ``phi`` it is a step
    of gradient descent on a convex function.

    Args:
        n_in: Length of input and output.
        n_hidden: Neurons; as many as inputs by default.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: The activation leaves the cone.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int | None = None,
        *,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = n_in if n_hidden is None else n_hidden
        check_sizes(n_in=n_in, n_hidden=hidden)
        self.n_in, self.n_hidden = n_in, hidden
        self.activation = check_cone(activation or ReLU())
        self.weight = nn.Parameter(torch.empty(hidden, n_in, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(hidden, dtype=dtype))
        nn.init.uniform_(self.weight, -sqrt(3 / n_in), sqrt(3 / n_in))

    @abstractmethod
    def scales(self) -> Tensor:
        """``t``, positive, with ``[1/t] >= W W^T``; shape (n_hidden,)."""

    @override
    def explicit(self) -> Hidden:
        t = self.scales()
        K = -2 * (self.weight.mT * t)
        return Hidden(self.weight, self.bias, K, 2 * t, self.activation, shortcut=True)

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_hidden}, {self.activation.name}"


@final
class SLL(DescentLayer):
    """``1/t_i = sum_j |W W^T|_ij q_j / q_i`` with ``q = exp(asinh(s))``: diagonal dominance [1].

    A row of zeros has a large ``t`` and no effect, instead of a division by zero.

    References:
        [1] Araujo, Havens, Delattre, Allauzen, Hu. A unified algebraic perspective on Lipschitz
        neural networks. ICLR 2023, arXiv 2303.03169, theorem 3.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int | None = None,
        *,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n_in, n_hidden, activation=activation, dtype=dtype)
        self.log_q = nn.Parameter(torch.zeros(self.n_hidden, dtype=dtype))

    @override
    def scales(self) -> Tensor:
        W = self.weight
        q = torch.asinh(self.log_q).exp()
        info = torch.finfo(W.dtype)
        # an entry of W W^T is off by at most n u times the lengths of its two rows
        length = torch.linalg.vector_norm(W, dim=1)
        unit = 2 * (self.n_in + self.n_hidden + 16) * info.eps
        rounded = unit * length * (length @ q)
        return q / ((W @ W.mT).abs() @ q + rounded + sqrt(info.tiny))


@final
class CPL(DescentLayer):
    """``t_i = 1 / ||W||_2^2`` for all neurons: a convex potential layer [1].

    The norm is that of the singular values, not an estimate from below.

    References:
        [1] Meunier, Delattre, Araujo, Allauzen. A dynamical system perspective for Lipschitz neural
        networks. ICML 2022, arXiv 2110.12690.
    """

    @override
    def scales(self) -> Tensor:
        W = self.weight
        info = torch.finfo(W.dtype)
        gram = W @ W.mT if len(W) <= W.shape[1] else W.mT @ W
        unit = 4 * (self.n_in + self.n_hidden + 16) * info.eps
        top = torch.linalg.eigvalsh(gram)[-1] + unit * W.square().sum() + sqrt(info.tiny)
        return top.reciprocal().expand(self.n_hidden)
