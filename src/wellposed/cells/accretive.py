"""The dense parametrisations of monotone cells, with backward passes written by hand.

Outside function transforms each of them costs about half of what autograd's own graph does. They
are differentiable to any order, in reverse and forward mode and under `torch.func`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wellposed.core.peel import Outside, on_tape, transforming


def accretive(F: Tensor, S: Tensor, margin: float) -> Tensor:
    """``W = (1 - margin - r) I - F^T F + S - S^T`` with ``r`` absorbing what rounding takes away.

    The product errs by at most ``n u |F|^T |F|``, sums and scales by ``u`` times their terms, so
    that ``r = 2 (n + 8) u ( ||F||_F^2 + ||S - S^T||_F + |1 - margin| )`` is twice what is needed;
    ``||F||_F^2`` is the trace of the product.

    Args:
        F: Shape (n, n).
        S: Shape (n, n).
        margin: Positive.
    """
    if on_tape():
        return _Accretive.call(F, S, margin)
    return _accretive(F, S, margin)


def _accretive(F: Tensor, S: Tensor, margin: float) -> Tensor:
    skew = S - S.mT
    W = torch.addmm(skew, F.mT, F, alpha=-1)
    diagonal = torch.diagonal(W)
    with torch.no_grad():
        unit = (F.shape[0] + 8) * torch.finfo(W.dtype).eps
        size = torch.linalg.vector_norm(skew) - diagonal.sum()
        room = torch.rsub(size, (1 - margin) - unit * abs(1 - margin), alpha=unit)
    if torch.is_grad_enabled() or transforming():
        return W.diagonal_scatter(diagonal + room)
    diagonal.add_(room)
    return W


class _Accretive(Outside):
    @staticmethod
    def forward(ctx: Any, F: Tensor, S: Tensor, margin: float) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(F)
        return _accretive(F, S, margin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        (F,) = ctx.saved_tensors
        turned = g.mT
        return torch.mm(F, g + turned).neg_(), g - turned, None


class Weights(NamedTuple):
    """Free weights of a Lipschitz-bounded equilibrium network.

    Args:
        V: Shape (n, n).
        S: Shape (n, n).
        log_psi: Shape (n,).
        U: Input weights, shape (n, inputs).
        C: Output weights, shape (outputs, n).
    """

    V: Tensor
    S: Tensor
    log_psi: Tensor
    U: Tensor
    C: Tensor


def bounded(weights: Weights, margin: float, scale: float, terms: int) -> tuple[Tensor, Tensor]:
    """``W = I - Psi H`` and ``psi`` of a Lipschitz-bounded equilibrium network.

    With ``Psi = diag(psi)``, ``psi = exp(asinh(log_psi))`` and

        H = V^T V + [room] + S - S^T + scale (C^T C + Psi^-1 U U^T Psi^-1).

    The products err by at most `terms` units times the sizes of their factors, the sums by a unit
    times their terms; what is rounded in the skew part stays skew until ``Psi`` is multiplied. With
    ``s`` the sum of the squared Frobenius norms of all factors, which is the trace of the sum of
    their products, twice what is needed is

        room_i = margin + 2 terms u ( s + ||S - S^T||_F + margin + 1 / psi_i ).

    Args:
        weights: The free ones.
        margin: Positive.
        scale: Not negative; at zero ``U`` and ``C`` have no say.
        terms: Of the longest product, and some.
    """
    if on_tape():
        return _Bounded.call(margin, scale, terms, *weights)
    return _bounded(weights, margin, scale, terms)[:2]


def _bounded(
    weights: Weights, margin: float, scale: float, terms: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    V, S, log_psi, U, C = weights
    # `asinh` is a logarithm: neither this nor its inverse overflows
    psi = torch.asinh(log_psi).exp()
    inverse, skew, product = psi.reciprocal(), S - S.mT, None
    whole = torch.addmm(skew, V.mT, V)
    if scale:
        # dividing this small product is cheaper than dividing the long rows of `U`
        product = torch.mm(U, U.mT)
        whole = torch.addmm(whole, C.mT, C, alpha=scale)
        whole = torch.addcmul(whole, product, torch.outer(inverse, inverse), value=scale)
    with torch.no_grad():
        unit = terms * torch.finfo(whole.dtype).eps
        size = torch.linalg.vector_norm(skew) + torch.diagonal(whole).sum()
        room = torch.add((1 + unit) * margin, size + inverse, alpha=unit)
    whole = whole.diagonal_scatter(torch.diagonal(whole) + room) * -psi[:, None]
    return whole.diagonal_scatter(1 + torch.diagonal(whole)), psi, product


class _Bounded(Outside):
    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, margin: float, scale: float, terms: int, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        W, psi, product = _bounded(Weights(*given), margin, scale, terms)
        V, _, _, U, C = given
        ctx.save_for_backward(V, U, C, W, psi, product)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return W, psi

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gW, gpsi = grads
        V, U, C, W, psi, product = ctx.saved_tensors
        inverse = psi.reciprocal()
        exponent = None if gpsi is None else gpsi * psi
        gV = gS = gU = gC = None
        if gW is not None:
            flow = gW * -psi[:, None]
            both = flow + flow.mT
            gV, gS = torch.mm(V, both), flow - flow.mT
            own = (gW * W).sum(1) - torch.diagonal(gW)
            if ctx.scale:
                if torch.is_grad_enabled():
                    product = torch.mm(U, U.mT)  # what was kept has no history
                inner = both * torch.outer(ctx.scale * inverse, inverse)
                gU, gC = torch.mm(inner, U), torch.mm(C, both) * ctx.scale
                own = own - (inner * product).sum(1)
            exponent = own if exponent is None else exponent + own
        # asinh' = 1 / cosh(asinh)
        glog = None if exponent is None else 2 * exponent / (psi + inverse)
        return None, None, None, gV, gS, glog, gU, gC
