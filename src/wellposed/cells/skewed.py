"""The dense parametrisation of NEMON, with a backward pass written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wellposed.cells.checks import strictly
from wellposed.core.peel import Outside, on_tape


def skewed(
    T: Tensor, log_eta: Tensor, damping: Tensor, mask: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The two parts of the matrix of a `NemonCell`, off the diagonal and on it, and its weights.

    ``S = [eta] (mask o T) [eta]^-1`` with ``eta = exp(asinh(log_eta))`` and
    ``a_i = margin - softplus(damping_i) - (1 + slack) sum_j |mask_ij T_ij|``.

    Differentiable to any order, in reverse and forward mode and under `torch.func`; outside
    function transforms the backward pass costs a third of what autograd's own one does.

    Args:
        T: Shape (n, n).
        log_eta: Shape (n,).
        damping: Shape (n,).
        mask: Shape (n, n): zero on the diagonal, one elsewhere.
        margin: Upper bound of the logarithmic norm.

    Returns:
        ``S``, ``a`` and ``eta``.
    """
    if on_tape():
        return _Skewed.call(T, log_eta, damping, mask, margin)
    return _parts(T, log_eta, damping, mask, margin)


def _parts(
    T: Tensor, log_eta: Tensor, damping: Tensor, mask: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    # (a kernel takes half the time if none of its arguments is a number)
    off = T * mask
    a = torch.add(F.softplus(damping), off.abs().sum(1), alpha=strictly(off)).neg()
    if margin:
        a = a + margin
    # `asinh` is a logarithm: `eta` and its inverse are normal numbers up to the largest weights
    eta = torch.asinh(log_eta).exp()
    return (off * eta.unsqueeze(1)) * eta.reciprocal(), a, eta


class _Skewed(Outside):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        S, a, eta = _parts(*given)
        T, _, damping, mask, _ = given
        ctx.save_for_backward(T, damping, mask, S, eta)
        ctx.set_materialize_grads(False)
        return S, a, eta

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gS, ga, ge = grads
        T, damping, mask, S, eta = ctx.saved_tensors
        g_off = g_exponent = g_damping = None
        inverse = eta.reciprocal()
        if gS is not None:
            g_off = (gS * eta.unsqueeze(1)) * inverse
            flow = gS * S
            g_exponent = flow.sum(1) - flow.sum(0)
        if ga is not None:
            back = ga.neg()
            g_damping = back * torch.sigmoid(damping)
            sign, column = T.sign(), back.unsqueeze(1)
            g_off = torch.zeros_like(T) if g_off is None else g_off
            g_off = torch.addcmul(g_off, sign, column, value=strictly(T))
        if ge is not None:
            part = ge * eta
            g_exponent = part if g_exponent is None else g_exponent + part
        # asinh' = 1 / cosh(asinh), the mean of eta and its inverse
        return (
            None if g_off is None else g_off * mask,
            None if g_exponent is None else g_exponent / torch.lerp(eta, inverse, 0.5),
            g_damping,
            None,
            None,
        )
