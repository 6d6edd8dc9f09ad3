"""How far an iterate is from the fixed point, proved after any solver's solve."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from wellposed.core.maps import AffineMap
from wellposed.core.spectra import UNIT, outward, perron, resolved_gain, rounding
from wellposed.core.spectral import two_norm_bracket


@torch.no_grad()
def affine_error_bound(map_: AffineMap, z: Tensor) -> Tensor | None:
    """``|z_i - z*_i| <= eta_i || r + rounding ||_{max,eta} / (1 - factor)``, the largest over i.

    With ``r = z - psi(A z + q)`` on the canonical form, ``|psi'| <= gain`` and
    ``factor = || [gain] A ||`` in the ``eta``-weighted max norm; ``eta`` is the Perron vector. The
    residual is formed anew in float64, whatever the precision of the solve; it is then within
    ``gain gamma_k (|A| |z| + |q|)`` of the true one, which is added. The fixed point meant is that
    of `map_` with its numbers taken as exact. Where the max norm does not contract, the 2-norm of
    the given form is tried, which bounds the largest component as well.

    Args:
        map_: The map, in any form; its canonical form is measured.
        z: Iterates, one a row.

    Returns:
        One bound a sample, float64, infinite where the iterate is not finite; `None` if the map is
        a contraction in neither norm.
    """
    work = map_.with_tensors(tuple(t.detach().double() for t in map_.tensors)).canonical()
    gain = resolved_gain(work.activation, work.feedback)
    contraction = perron(work.operator, gain)
    z = z.double()
    if contraction.factor >= 1:
        return _two_norm_error_bound(map_, z)
    gap = _residual(work, gain, z)
    weighted = (gap / contraction.eta).flatten(1).amax(1)
    bound = weighted * float(contraction.eta.amax()) / (1 - contraction.factor) * (1 + 1e-12)
    return bound.nan_to_num(inf)


def _two_norm_error_bound(map_: AffineMap, z: Tensor) -> Tensor | None:
    """``||z - z*||_2 <= ||f(z) - z||_2 / (1 - |phi'| ||A||_2)`` on the form at hand."""
    work = map_.with_tensors(tuple(t.detach().double() for t in map_.tensors))
    gain = resolved_gain(work.activation, work.feedback)
    factor = float(gain.amax()) * two_norm_bracket(work.operator).upper * (1 + 4 * UNIT)
    if not factor < 1:
        return None
    gap = _residual(work, gain, z).flatten(1)
    size = outward(torch.linalg.vector_norm(gap, dim=1), gap.shape[1])
    return (size / (1 - factor) * (1 + 1e-12)).nan_to_num(inf)


def _residual(work: AffineMap, gain: Tensor, z: Tensor) -> Tensor:
    """Upper bounds of ``|f(z) - z|``, elementwise, rounding included."""
    value = work(z)
    flow = outward(work.operator.absolute().apply(z.abs(), work.offset.abs()), work.operator.terms)
    # evaluating an activation that is not piecewise linear costs a few units of its argument
    slack = 2 * rounding(work.operator.terms + 40) * (gain * flow + value.abs() + z.abs())
    if not work.activation.homogeneous:
        spread = (gain / work.activation.steepest).clamp(min=1)
        slack = slack + 64 * UNIT * spread * (1 + z.abs())
    return (value - z).abs() + slack
