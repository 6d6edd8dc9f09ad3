"""Counter-examples: inputs found by descent on the network, believed only after an error bound."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from wellposed.certify.dual import Rows
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.wellposed import Wellposed
from wellposed.core.network import Network
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.verify.bounding import Ascent

_SETTLE = 30  # steps of the splitting for a state in a search


@torch.no_grad()
def proved_values(network: Network, wellposed: Wellposed, rows: Rows, x: Tensor) -> Tensor:
    """Upper bounds of ``r z*(x) + s x + t`` at the true equilibria of the inputs.

    The computed value plus ``|r| error`` with the proved error of the state, plus rounding.

    Args:
        network: Explicit weights.
        wellposed: Witness of its well-posedness.
        rows: One row an input.
        x: Shape (N, d), float64, taken as exact.

    Returns:
        Shape (N,); infinite where no equilibrium was found.
    """
    z, error = equilibrium(network, x, wellposed)
    value = rows.offset + (rows.state * z).sum(1)
    size = rows.offset.abs() + (rows.state * z).abs().sum(1)
    if rows.input is not None:
        value = value + (rows.input * x).sum(1)
        size = size + (rows.input * x).abs().sum(1)
    slack = 2 * rounding(network.n + network.d + 8) * size
    slack = outward(slack + outward((rows.state.abs() * error).sum(1), network.n), 4)
    upper = value + slack
    return (upper + 2 * UNIT * upper.abs()).nan_to_num(torch.inf, torch.inf, torch.inf)


@final
class Probe:
    """Descends from an input to a corner of the region, and again: the network is affine on cells.

    Args:
        ascent: The open neurons, the region and the rows.
    """

    def __init__(self, ascent: Ascent) -> None:
        self.ascent = ascent

    def improve(self, row: Tensor, x: Tensor, rounds: int = 2) -> tuple[Tensor, Tensor]:
        """The best inputs met, shape (N, d), and the computed values there, shape (N,)."""
        best_x, best = x, torch.full((len(x),), torch.inf, dtype=x.dtype)
        for turn in range(rounds + 1):
            v, value = self.ascent.evaluate(row, x, _SETTLE)
            better = value < best
            best, best_x = torch.where(better, value, best), torch.where(better[:, None], x, best_x)
            if turn < rounds:
                x = self.ascent.descend(row, v, _SETTLE)
        return best_x, best
