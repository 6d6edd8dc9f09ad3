"""Contraction in the 2-norm: its factor is measured on the explicit weights, never promised."""

from __future__ import annotations

from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.contractive import ContractiveCell
from wellposed.cells.contractive_conv import ContractiveConv2d
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.lipschitz import Site, lipschitz_rule
from wellposed.certify.loop import EXACT, Loop, explicit_weights
from wellposed.certify.majorant import Majorant
from wellposed.core.affine import Affine
from wellposed.core.records import Certificate
from wellposed.core.spectra import UNIT, outward, resolved_gain
from wellposed.core.spectral import two_norm_bracket
from wellposed.errors import NotCertifiableError
from wellposed.nn.equilibrium import Equilibrium

_RULE = (
    "contraction in the 2-norm: largest slope times a verified bound of ||A||_2 (arXiv 2103.12803)"
)


@torch.no_grad()
def contraction(module: nn.Module) -> Certificate:
    """A proved factor below 1 by which ``z -> phi(A z + B x + b)`` contracts in the 2-norm.

    The equilibrium then exists and is unique for every input (Banach), plain iteration converges to
    it at this rate from anywhere, and ``||z - z*|| <= ||f(z) - z|| / (1 - factor)``
    (`Solution.error_bound` states it in the max norm, with rounding).

    Args:
        module: An affine cell, or an equilibrium layer around one. It is measured in float64 as it
            stands: a guarantee that was edited away is refused.

    Raises:
        NotCertifiableError: The factor is not below 1, a weight is not finite, or the module has
            no explicit weights.
    """
    cell = module.cell if isinstance(module, Equilibrium) else module
    if not isinstance(cell, AffineCell):
        raise refuse(
            cell,
            "",
            "it has no explicit weights whose norm could be measured",
            "use `ContractiveCell` or `ContractiveConv2d`.",
        )
    for part in (module, cell):
        check_genuine(part, lipschitz_rule.registry, "")
    factor = contraction_factor(explicit_weights(cell.explicit()))
    return Certificate("contraction", factor, "2", "2", _RULE, assumes=(EXACT,))


def contraction_factor(affine: Affine) -> float:
    """``|phi'| ||A||_2``, rounded up.

    Raises:
        NotCertifiableError: It is not below 1.
    """
    gain = float(resolved_gain(affine.activation, affine.feedback).amax())
    factor = gain * two_norm_bracket(affine.A).upper * (1 + 4 * UNIT)
    if not factor < 1:
        raise NotCertifiableError(
            f"The contraction factor in the 2-norm is at most {factor:.6g}, expected below 1: "
            f"slopes reach {gain:.4g} in absolute value.",
            hint="use `ContractiveCell` or `ContractiveConv2d` with an unedited `bound` below 1.",
        )
    return factor


@final
class Contracting(Majorant):
    """``||dz||_2 <= g ||B||_2 / (1 - g ||A||_2) ||du||_2`` for slopes up to ``g``.

    ``dz = D (A dz + B du)`` with a diagonal ``||D||_2 <= g``. Every row and column of the matrix
    between ``du`` and ``dz`` is then at most that long, so ``|J| v <= L ||v||_2`` componentwise;
    where the max norm contracts as well, its componentwise bound is used too.

    Args:
        affine: Explicit weights; they are measured as they are.

    Raises:
        NotCertifiableError: The cell is no contraction in the 2-norm.
    """

    assumes = (EXACT,)

    def __init__(self, affine: Affine) -> None:
        affine = explicit_weights(affine)
        super().__init__(affine.B.in_shape, affine.A.out_shape)
        self.affine = affine
        self.factor = contraction_factor(affine)
        try:
            self._loop = Loop(affine)
        except NotCertifiableError:
            self._loop = None

    @cached_property
    def _spectral(self) -> float:
        gain = float(resolved_gain(self.affine.activation, self.affine.feedback).amax())
        reach = gain * two_norm_bracket(self.affine.B).upper
        return reach / ((1 - self.factor) * (1 - 4 * UNIT)) * (1 + 8 * UNIT)

    @property
    @override
    def spectral(self) -> float:
        return self._spectral

    @override
    def apply(self, v: Tensor) -> Tensor:
        flat = self._flat(v, self.out_shape)
        return flat if self._loop is None else torch.minimum(flat, self._loop.apply(v))

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        flat = self._flat(c, self.in_shape)
        return flat if self._loop is None else torch.minimum(flat, self._loop.adjoint(c))

    def _flat(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = torch.linalg.vector_norm(v.flatten(1), dim=1)
        size = outward(size, v[0].numel()) * self.spectral * (1 + 4 * UNIT)
        return size.reshape(-1, *[1] * len(shape)).expand(-1, *shape).clone()

    @property
    @override
    def rule(self) -> str:
        return _RULE


def _contractive(module: ContractiveCell | ContractiveConv2d, site: Site) -> Majorant:
    affine = module.explicit()
    site.require(module, affine.B.in_shape)
    return Contracting(affine)


lipschitz_rule.register(ContractiveCell, _contractive)
lipschitz_rule.register(ContractiveConv2d, _contractive)
