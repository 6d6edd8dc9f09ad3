"""Differentiable Lipschitz bounds for training: the tight one and the published surrogate."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor, nn

from wellposed.cells.base import AffineCell
from wellposed.certify.guard import refuse
from wellposed.certify.lipschitz import infer_shape
from wellposed.core.activations import ReLU
from wellposed.core.affine import Affine
from wellposed.core.maps import AffineMap, check_feedback
from wellposed.core.operators import Dense
from wellposed.errors import NonConvergenceError, ShapeError
from wellposed.gradients.implicit import Implicit
from wellposed.nn.equilibrium import Equilibrium, fixed_point
from wellposed.solvers.base import Stopping
from wellposed.solvers.picard import Picard

_DIRECT_LIMIT = 1024


def lipschitz_penalty(
    *modules: nn.Module,
    differences: bool = True,
    in_shape: tuple[int, ...] | None = None,
    rtol: float | None = None,
) -> Tensor:
    """The tight bound L3 in the max norm as a differentiable number, for a training loss.

    ``e = [g] (|A_off| e + |B| 1)`` is one vector equation, solved and differentiated exactly: by
    a factorisation for small dense cells, as an implicit fixed point for all others. The last
    linear layer ``C`` gives ``max_{t,j} sum_i |C_ti - C_ji| e_i`` (the logit differences that
    margins are made of) or ``max_k sum_i |C_ki| e_i``. The value is that of the certificate up to
    rounding and the tolerance of the solve; it is no certificate.

    Args:
        modules: Modules in the order in which they are applied, such as ``(layer, readout)``, or
            one `nn.Sequential`.
        differences: Bound the differences of logits instead of the logits.
        in_shape: Shape of one input, if the modules do not tell.
        rtol: Tolerance of the fixed point, where there is one; by default 1e-5 in
            float32, 1e-10 in float64.

    Raises:
        NotCertifiableError: Some module has no rule here.
        NonConvergenceError: The equation for ``e`` was not solved: the cell does not contract.
    """
    chain = nn.Sequential(*modules)
    leaves = _leaves(chain)
    shape = in_shape if in_shape is not None else infer_shape(chain)
    if shape is None:
        raise ShapeError(
            "The shape of an input does not follow from the modules.", hint="pass `in_shape`."
        )
    like = next(chain.parameters())
    v = torch.ones(1, *shape, dtype=like.dtype, device=like.device)
    last = leaves[-1]
    if not differences or not isinstance(last, nn.Linear):
        for leaf in leaves:
            v = spread(leaf, v, rtol)
        return v.amax()
    for leaf in leaves[:-1]:
        v = spread(leaf, v, rtol)
    pairs = (last.weight[:, None] - last.weight[None]).abs()
    return (pairs @ v.flatten()).amax()


def surrogate_penalty(cell: AffineCell, readout: nn.Linear) -> Tensor:
    """``(||B||^2 + ||C||^2) / (2 (1 - mu^+))``, the published surrogate of L0 [1].

    By the inequality of the means it is at least ``||B|| ||C|| / (1 - mu^+)``; the norms are those
    of `bound_l0` in the cell's own weights, ``mu`` is measured.

    Args:
        cell: The affine cell.
        readout: The linear layer after it.

    References:
        [1] Jafarpour et al., Robust implicit networks via non-Euclidean contractions, 2021.
    """
    affine = cell.explicit()
    a = affine.A.diagonal()
    ones = affine.A.weight.new_ones(1, *affine.A.in_shape)
    eta = ones if affine.witness is None else ones * affine.witness
    rows = a + affine.A.off_diagonal().absolute().apply(eta) / eta
    B = (affine.B.absolute().apply(ones.new_ones(1, *affine.B.in_shape)) / eta).amax()
    C = (readout.weight.abs() @ eta.flatten()).amax()
    return (B.square() + C.square()) / (2 * (1 - rows.amax().clamp(min=0)))


@singledispatch
def spread(module: nn.Module, v: Tensor, rtol: float | None = None) -> Tensor:
    """How far the outputs of a module move if input ``i`` moves by ``v_i``; differentiable.

    Register a function on your own module type to use it inside `lipschitz_penalty`.

    Raises:
        NotCertifiableError: No rule is registered for the type.
    """
    raise refuse(
        module, "", "no differentiable bound is registered for this type",
        "register one with `@wellposed.certify.spread.register`.",
    )  # fmt: skip


@spread.register(nn.Flatten)
@spread.register(nn.Unflatten)
@spread.register(nn.Identity)
@spread.register(nn.AvgPool2d)
@spread.register(nn.AdaptiveAvgPool2d)
@spread.register(nn.MaxPool2d)
@spread.register(nn.ReLU)
@spread.register(nn.LeakyReLU)
@spread.register(nn.ReLU6)
def _itself(module: nn.Module, v: Tensor, rtol: float | None = None) -> Tensor:
    del rtol
    return v.clone() if isinstance(module, nn.ReLU6) else module(v)


@spread.register(nn.Tanh)
@spread.register(nn.Dropout)
@spread.register(nn.ELU)
@spread.register(nn.Softplus)
def _unchanged(module: nn.Module, v: Tensor, rtol: float | None = None) -> Tensor:
    del module, rtol
    return v


@spread.register
def _linear(module: nn.Linear, v: Tensor, rtol: float | None = None) -> Tensor:
    del rtol
    return v @ module.weight.abs().mT


@spread.register
def _convolution(module: nn.Conv2d, v: Tensor, rtol: float | None = None) -> Tensor:
    del rtol
    return module._conv_forward(v, module.weight.abs(), None)  # pyright: ignore[reportPrivateUsage]


@spread.register
def _equilibrium(module: Equilibrium, v: Tensor, rtol: float | None = None) -> Tensor:
    return spread(module.cell, v, rtol)


@spread.register
def _cell(module: AffineCell, v: Tensor, rtol: float | None = None) -> Tensor:
    affine = module.explicit()
    gain = _gain(affine)
    couple = affine.A.off_diagonal().absolute()
    reach = gain * affine.B.absolute().apply(v)
    couple = couple.scale_rows(gain.flatten().expand(couple.weight.shape[0]))
    if isinstance(couple, Dense) and couple.in_shape[0] <= _DIRECT_LIMIT:
        return _direct(couple.matrix, reach)
    # every number is nonnegative, so ReLU is the identity and the affine machinery applies
    equation = AffineMap(couple, reach, ReLU(), canonical_form=True)
    stopping = Stopping(rtol=rtol, max_evaluations=5000)
    found = fixed_point(
        equation, reach.detach(), solver=Picard(), gradient=Implicit(), stopping=stopping
    )
    return found.require().value


def _direct(couple: Tensor, reach: Tensor) -> Tensor:
    """``(I - G)^-1 f``; a nonnegative solution for positive ``f`` shows that ``G`` contracts."""
    system = torch.eye(len(couple), dtype=couple.dtype, device=couple.device) - couple
    e = torch.linalg.solve_ex(system, reach.mT)[0].mT
    if not bool((e >= 0).all() & torch.isfinite(e).all()):
        raise NonConvergenceError(
            "The componentwise Lipschitz bound does not exist: the cell does not contract in any "
            "weighted max norm.",
            hint="lower the cell's margin or the size of its weights.",
        )
    return e


def _gain(affine: Affine) -> Tensor:
    """Largest absolute slope of the resolved activation, a neuron; differentiable."""
    a = affine.A.diagonal()
    if affine.feedback is not None:
        a = a + affine.feedback
    check_feedback(a, affine.activation)
    low, high = affine.activation.slopes
    return torch.maximum(abs(low) / (1 - low * a), abs(high) / (1 - high * a))


def _leaves(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, nn.Sequential):
        return [module]
    return [leaf for child in module for leaf in _leaves(child)]
