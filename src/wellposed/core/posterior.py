"""How far an iterate is from its fixed point, proved afterwards for whatever solver made it."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.core.maps import AffineMap
from wellposed.core.spectra import perron, rounding


@torch.no_grad()
def affine_error_bound(map_: AffineMap, z: Tensor, fz: Tensor) -> Tensor | None:
    """``|z_i - z*_i| <= eta_i || r + rounding ||_{max,eta} / (1 - factor)``, the largest over i.

    With ``r = z - psi(A z + q)`` on the canonical form, ``|psi'| <= gain`` and
    ``factor = || [gain] A ||`` in the ``eta``-weighted max norm; ``eta`` is the Perron vector. The
    computed residual is within ``gain gamma_k (|A| |z| + |q|)`` of the true one, which is added.

    Args:
        map_: The map, in any form; its canonical form is measured.
        z: Iterates, one a row.
        fz: The map's values there; recomputed if `map_` is not canonical.

    Returns:
        One bound a sample, float64; `None` if the canonical map is no contraction.
    """
    work = map_.canonical()
    gain = work.gain()
    contraction = perron(work.operator, gain)
    if contraction.factor >= 1:
        return None
    value = work(z) if work is not map_ else fz
    size = work.operator.absolute().to(torch.float64).detach()
    # the residual was formed in the precision of the state, so its rounding unit counts
    slack = gain * size.apply(z.double().abs(), work.offset.double().abs())
    slack = 2 * rounding(work.operator.terms + 8, z.dtype) * (slack + value.double().abs())
    gap = (value.double() - z.double()).abs() + slack
    weighted = (gap / contraction.eta).flatten(1).amax(1)
    return weighted * float(contraction.eta.amax()) / (1 - contraction.factor) * (1 + 1e-12)
