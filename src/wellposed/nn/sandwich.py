"""The sandwich layer: a direct parametrisation of 1-Lipschitz layers."""

from __future__ import annotations

from math import sqrt
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.checks import check_cone, check_sizes
from wellposed.core.activations import Activation, ReLU
from wellposed.nn.explicit import ExplicitLayer, Hidden


@final
class Sandwich(ExplicitLayer):
    """``y = sqrt(2) A^T Psi phi( sqrt(2) Psi^-1 B x + b )`` with ``A A^T + B B^T = I`` [1].

    ``Z = X - X^T + Y^T Y``, ``A^T = (I + Z)^-1 (I - Z)``, ``B^T = -2 Y (I + Z)^-1`` for free
    ``X, Y`` (Cayley), ``Psi = diag(exp(asinh(p)))``. With ``w = Psi dz`` the slopes in [0, 1] give
    ``|w|^2 <= sqrt(2) w^T B dx``, hence
    ``|dy|^2 = 2 |w|^2 - 2 |B^T w|^2 <= 2 sqrt(2) |B^T w| |dx| - 2 |B^T w|^2 <= |dx|^2``.

    Args:
        n_in: Length of the input.
        n_out: Length of the output, and number of neurons.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: The activation leaves the cone.

    References:
        [1] Wang, Manchester. Direct parameterization of Lipschitz-bounded deep networks. ICML 2023,
        arXiv 2301.11526.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_out=n_out)
        self.n_in, self.n_out = n_in, n_out
        self.activation = check_cone(activation or ReLU())
        self.X = nn.Parameter(torch.empty(n_out, n_out, dtype=dtype))
        self.Y = nn.Parameter(torch.empty(n_in, n_out, dtype=dtype))
        self.log_psi = nn.Parameter(torch.zeros(n_out, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(n_out, dtype=dtype))
        nn.init.uniform_(self.X, -1 / sqrt(n_out), 1 / sqrt(n_out))
        nn.init.uniform_(self.Y, -sqrt(3 / n_in), sqrt(3 / n_in))

    @override
    def explicit(self) -> Hidden:
        # rounded in the precision of the parameters, the transform of large ones misses the bound
        At, Bt = (M.to(self.X) for M in cayley(self.X.double(), self.Y.double()))
        psi = torch.asinh(self.log_psi).exp()
        L = (sqrt(2) / psi)[:, None] * Bt.mT
        K = (sqrt(2) * psi) * At
        return Hidden(L, self.bias, K, psi.square(), self.activation, shortcut=False)

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_out}, {self.activation.name}"


def cayley(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """``A^T, B^T`` with ``A A^T + B B^T = I`` up to rounding, for free ``X, Y``.

    Args:
        X: Shape (n, n).
        Y: Shape (d, n).

    Returns:
        Shapes (n, n) and (d, n).
    """
    Z = X - X.mT + Y.mT @ Y
    eye = torch.eye(len(X), dtype=X.dtype, device=X.device)
    # (I + Z) has a symmetric part of at least I, so that it can always be inverted
    inverse = torch.linalg.inv(eye + Z)
    # (I + Z)^-1 (I - Z) without the product
    return 2 * inverse - eye, -2 * (Y @ inverse)
