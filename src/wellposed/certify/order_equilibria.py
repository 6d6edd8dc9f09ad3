"""Rules of `order` for equilibria and for layers with one hidden row of neurons."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from wellposed.cells.base import AffineCell
from wellposed.certify.enclose import enclose
from wellposed.certify.explicit import bare_linear, checked_weights
from wellposed.certify.guard import has_rule, refuse
from wellposed.certify.lipschitz import Site
from wellposed.certify.loop import explicit_weights
from wellposed.certify.majorant import Majorant
from wellposed.certify.monotone import monotone_majorant
from wellposed.certify.order import (
    LARGEST,
    add_signs,
    check_size,
    compose_signs,
    order_rule,
    signs_of,
    unit_inputs,
)
from wellposed.core.affine import Affine
from wellposed.core.operators import Operator
from wellposed.core.spectra import TINY, outward, rounding
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.explicit import ExplicitLayer
from wellposed.nn.lben import LBEN
from wellposed.nn.lben_conv import LBENConv

_UNKNOWN = float("nan")

# --- equilibria -------------------------------------------------------------------------------


@order_rule.register
def _cell(module: AffineCell, site: Site) -> Tensor:
    """Signs of ``(I - D A)^-1 D B`` for all diagonal ``D`` of slopes, from two arguments.

    For a pair of inputs ``dz_i = d_i / (1 - d_i a_ii) (A_off dz + B dx)_i`` with factors that are
    not negative.

    - *Paths.* If all walks from input j to state i have one sign, that is the sign of
      ``dz_i / dx_j``. Where ``[g] |A_off|`` has a spectral radius below 1 the series of all walks
      converges absolutely. Where ``Lam (I - A)`` has a positive definite symmetric part for a
      diagonal ``Lam``: each state on such a walk has one sign, hence a diagonal ``S`` of signs
      makes ``S A S`` nonnegative off its diagonal on these states; ``D^-1 - A`` is then an
      M-matrix there [1], whose inverse is nonnegative.
    - *Direct influence.* ``|A_off dz| <= |A_off| K |dx|`` with the proved ``|dz| <= K |dx|``: where
      ``|b_ij|`` is at least that, the sign is that of ``b_ij`` whatever the feedback does.

    References:
        [1] Berman, Plemmons. Nonnegative matrices in the mathematical sciences. 1979, chapter 6,
        theorem 2.3: a Z-matrix with a diagonal Lyapunov solution.
    """
    affine = module.explicit()
    site.require(module, affine.B.in_shape)
    if not affine.activation.monotone:
        raise refuse(
            module, site.path, f"its activation {affine.activation.name} is not monotone",
            "use ReLU, tanh or another rising activation.",
        )  # fmt: skip
    states = prod(affine.A.out_shape)
    check_size(module, site, states)
    if states**2 > LARGEST:
        raise refuse(
            module, site.path, f"the signs among its {states} states would be a matrix of "
            f"{states**2} entries", "ask about a smaller image.",
        )  # fmt: skip
    reach = monotone_majorant(affine)
    affine = explicit_weights(affine)
    by_paths = _walks(affine)
    return torch.where(by_paths.isnan(), _direct(affine, reach), by_paths)


def _walks(affine: Affine) -> Tensor:
    """Signs of all walks from an input to a state, shape (states, inputs)."""
    step = operator_signs(affine.A.off_diagonal(), affine.A.in_shape)
    signs = operator_signs(affine.B, affine.B.in_shape)
    while True:
        further = add_signs(signs, compose_signs(step, signs))
        if torch.equal(further.nan_to_num(2.0), signs.nan_to_num(2.0)):
            return signs
        signs = further


def _direct(affine: Affine, reach: Majorant) -> Tensor:
    """Signs of ``B`` where it outweighs all feedback, shape (states, inputs)."""
    units = unit_inputs(affine.B.in_shape)
    size = affine.A.off_diagonal().absolute()
    back = outward(size.apply(reach.apply(units)), size.terms + 2)
    columns = affine.B.apply(units)
    wrong = 2 * rounding(affine.B.terms + 2) * affine.B.absolute().apply(units)
    return dominant(columns, back + wrong).flatten(1).mT.contiguous()


@order_rule.register
def _equilibrium(module: Equilibrium, site: Site) -> Tensor:
    if not has_rule(module.cell, order_rule.registry):
        raise refuse(
            module.cell, site.path, "the signs of a general cell are not known",
            "use an affine cell such as `CooperativeCell`, or register a rule for the cell's type, "
            "`@wellposed.certify.order.order_rule.register`.",
        )  # fmt: skip
    return signs_of(module.cell, site)


@order_rule.register(LBEN)
@order_rule.register(LBENConv)
def _bounded(module: LBEN | LBENConv, site: Site) -> Tensor:
    """``y = C z + D x + c``: the signs of both ways, or of ``D`` where it outweighs the other."""
    if module.layer.cell is not module.cell:
        raise refuse(module, site.path, "its layer runs another cell than the one that it owns")
    state = signs_of(module.layer, replace(site, path=f"{site.path}.layer".lstrip(".")))
    affine = module.cell.explicit()
    here = Site(affine.A.out_shape, None, f"{site.path}.readout".lstrip("."))
    if isinstance(module, LBENConv):
        return compose_signs(signs_of(module.readout, here), state)
    out = compose_signs(signs_of(module.cell.readout, here), state)
    straight = module.cell.direct()
    if straight is None:
        return out
    D = straight.detach().cpu().double()
    both = add_signs(out, D.sign())
    C = module.cell.readout.weight.detach().cpu().double().abs()
    reach = monotone_majorant(affine).apply(unit_inputs(site.shape))
    around = outward(reach @ C.mT, C.shape[1] + 2).mT
    return torch.where(both.isnan(), dominant(D, around), both)


# --- layers with one hidden row ---------------------------------------------------------------


@order_rule.register
@torch.no_grad()
def _explicit(module: ExplicitLayer, site: Site) -> Tensor:
    """``x + K phi(L x + b)``: its slopes ``[ i = j ] + sum_k K_ik d_k L_kj``, entry by entry.

    Each slope ``d_k`` lies in an interval, that of all preactivations or of those of a box, and
    each entry is linear in all of them: its smallest and largest value are sums of ends.
    """
    weights = checked_weights(module, site.shape)
    L, K = (M.detach().cpu().double() for M in (weights.L, weights.K))
    check_size(module, site, len(K))
    phi = weights.activation
    low, high = (torch.full((len(L),), float(s), dtype=torch.float64) for s in phi.slopes)
    if site.box is not None:
        v = enclose(bare_linear(weights.L, weights.b), site.box)
        near = [s[0] for s in phi.slope_range(v.lower, v.upper)]
        slack = 0.0 if phi.homogeneous else 1e-14
        low, high = torch.maximum(low, near[0] - slack), torch.minimum(high, near[1] + slack)
    own = torch.where(low >= 0, 1.0, torch.where(high <= 0, -1.0, _UNKNOWN)).double()
    own = torch.where((low == 0) & (high == 0), 0.0, own)
    eye = torch.eye(len(K), L.shape[1], dtype=torch.float64)
    signs = compose_signs(K.sign(), own[:, None] * L.sign())
    if weights.shortcut:
        signs = add_signs(eye, signs)
    # the middle of the interval of an entry, and what it may be off on both sides
    middle, radius = (low + high) / 2, (high - low) / 2
    centre = (K * middle) @ L + (eye if weights.shortcut else 0)
    size = K.abs() @ ((middle.abs() + radius)[:, None] * L.abs()) + eye
    spread = outward((K.abs() * radius) @ L.abs(), len(L) + 4)
    slack = 4 * rounding(len(L) + 8) * size
    return torch.where(signs.isnan(), dominant(centre, spread + slack), signs)


# --- what they share --------------------------------------------------------------------------


def dominant(value: Tensor, wrong: Tensor) -> Tensor:
    """Signs of numbers that are known up to an error; NaN where it may turn them."""
    return torch.where(value.abs() > wrong * (1 + 1e-15) + TINY, value.sign(), _UNKNOWN)


def operator_signs(operator: Operator, shape: tuple[int, ...]) -> Tensor:
    """Signs of the entries of an operator, shape (outputs, inputs)."""
    units = unit_inputs(shape)
    columns = operator.apply(units).flatten(1)
    sizes = operator.absolute().apply(units).flatten(1)
    return clear_signs(columns, sizes).mT.contiguous()


def clear_signs(entries: Tensor, sizes: Tensor) -> Tensor:
    """Signs of entries that are one weight, or sums of some that may have been rounded.

    Args:
        entries: As computed.
        sizes: The same sums of absolute values.
    """
    signs = torch.where(entries.abs() > 1e-9 * sizes, entries.sign(), _UNKNOWN)
    return torch.where(sizes == 0, 0.0, signs)
