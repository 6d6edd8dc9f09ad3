"""Lipschitz layers as Lipschitz-bounded equilibrium networks, and such networks as layers."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple, cast, final

import torch
from torch import Tensor, nn

from wellposed.cells.base import AffineCell
from wellposed.cells.lben import LBENCell
from wellposed.core.activations import Activation, ReLU
from wellposed.core.golden import golden_section
from wellposed.core.network import Network
from wellposed.core.operators import Dense
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.explicit import ExplicitLayer
from wellposed.nn.lben import LBEN

_REACH = 24.0
_SECTIONS = 60
_STRICT = 1e-6
"""How much of its gain each layer leaves unused, so that the joined inequality is strict."""


@final
class Stage(NamedTuple):
    """``y = C z + D x + c`` at ``z = phi(W z + U x + b)``: one layer, float64.

    Args:
        W: Shape (n, n); ``n`` may be 0.
        U: Shape (n, d).
        b: Shape (n,).
        C: Shape (q, n).
        c: Shape (q,).
        D: Shape (q, d).
        metric: Multiplier of the layer on its own, shape (n,); a hint.
        gain: Lipschitz constant that it belongs to; a hint.
        activation: `None` for a linear layer.
    """

    W: Tensor
    U: Tensor
    b: Tensor
    C: Tensor
    c: Tensor
    D: Tensor
    metric: Tensor
    gain: float
    activation: Activation | None


@singledispatch
def stage(module: nn.Module) -> Stage | None:
    """One layer in the common form; `None` for layers that only reshape: an open function.

    Raises:
        NotCertifiableError: There is no rule for the type.
    """
    raise NotCertifiableError(
        f"{type(module).__name__} has no form as an equilibrium network.",
        hint="`wellposed.nn.embedding.stage.register` takes a rule for a type of your own.",
    )


@torch.no_grad()
def as_equilibrium(layers: nn.Sequential) -> Network:
    """One equilibrium network with the outputs of a sequence of layers.

    With the output of layer k ``h_k = C_k z_k + D_k h_{k-1} + c_k`` put into the next one, the
    states together solve one equation whose ``W`` has the layers' own ``W_k`` on its diagonal and
    nothing above it; for explicit layers it is strictly block-triangular. Products of weights are
    rounded: a certificate of the result is about the result. Its `metric` joins the multipliers of
    the layers: the inequality of layer k, scaled so that it takes up what layer k - 1 leaves over,
    adds up to one for the whole.

    Args:
        layers: `Sandwich`, `SLL`, `CPL`, `LBEN`, affine cells, linear layers, reshapes.

    Raises:
        NotCertifiableError: A layer has no form, or there are two kinds of activation.
        ConfigError: There is no layer with weights.
    """
    stages = [s for s in map(stage, layers) if s is not None]
    if not stages:
        raise ConfigError("There is no layer with weights.")
    n, d = sum(len(s.b) for s in stages), stages[0].D.shape[1]
    W, U = torch.zeros(n, n).double(), torch.zeros(n, d).double()
    b, metric = torch.zeros(n).double(), torch.ones(n).double()
    # the signal so far is out z + straight x + c
    out, straight, c = torch.zeros(d, n).double(), torch.eye(d).double(), torch.zeros(d).double()
    first, share = 0, 1.0
    for s in stages:
        here = slice(first, first + len(s.b))
        W[here], U[here], b[here] = s.U @ out, s.U @ straight, s.b + s.U @ c
        W[here, here] = s.W
        gain = s.gain * (1 + _STRICT)
        metric[here] = s.metric * (share / gain)
        share /= gain**2
        out, straight, c = s.D @ out, s.D @ straight, s.c + s.D @ c
        out[:, here] = s.C
        first = here.stop
    return Network.of(W, U, b, out, c, D=straight, activation=_common(stages), metric=metric)


@torch.no_grad()
def as_lben(network: Network, gamma: float) -> LBEN:
    """The layer, in float64, whose parametrisation gives these weights back.

    ``H = Lam (I - W)`` with the network's metric has the symmetric part that the inequality wants
    and something over, of which ``V`` is a Cholesky factor: the parametrisation of `LBENCell`
    reaches every network that satisfies its inequality strictly.

    Args:
        network: With a `metric`; all neurons of one activation.
        gamma: Above the gain that the metric proves.

    Raises:
        NotCertifiableError: The inequality does not hold strictly for the metric and `gamma`.
    """
    if network.metric is None or bool(network.linear.any()):
        raise NotCertifiableError(
            "The network has no metric or has linear neurons, and no multiplier to build on.",
            hint="`as_equilibrium` and LBEN weights carry one.",
        )
    skip = bool(network.D.any())
    layer = LBEN(
        network.d,
        network.n,
        network.q,
        gamma=gamma,
        skip=skip,
        activation=network.activation,
        dtype=torch.float64,
    )
    cell = layer.cell
    cell.inject.weight.copy_(network.U)
    cell.inject.bias.copy_(network.b)
    cell.readout.weight.copy_(network.C)
    cell.readout.bias.copy_(network.c)
    if cell.K is not None:
        N = network.D / gamma
        P, info = torch.linalg.cholesky_ex(torch.eye(network.q).double() - N @ N.mT)
        _strict(int(info) == 0, gamma)
        # (I + K K^T)^-1 = I - N N^T = P P^T, and L^-1 = P
        cell.K.copy_(torch.linalg.solve_triangular(P, N, upper=False))
    over, skew = _left(cell, network, _best_size(cell, network))
    least = float(torch.linalg.eigvalsh(over)[0])
    _strict(least > 0, gamma)
    cell.margin = least / 2
    lower, info = torch.linalg.cholesky_ex(over - cell.margin * torch.eye(network.n).double())
    _strict(int(info) == 0, gamma)
    cell.V.copy_(lower.mT)
    cell.S.copy_(skew / 2)
    return layer


def _best_size(cell: LBENCell, network: Network) -> float:
    """The multiple of the metric that leaves most to spare, by golden section on its logarithm.

    The matrix left over is concave in the multiple, and so is its smallest eigenvalue.
    """

    def lacking(exponent: float) -> float:
        return -float(torch.linalg.eigvalsh(_left(cell, network, 2.0**exponent)[0])[0])

    return 2.0 ** golden_section(lacking, -_REACH, _REACH, _SECTIONS)


def _left(cell: LBENCell, network: Network, size: float) -> tuple[Tensor, Tensor]:
    """What the symmetric part of ``Lam (I - W)`` has to spare, and the skew part."""
    lam = size * cast("Tensor", network.metric)
    cell.log_psi.copy_(torch.sinh(-lam.log()))
    H = lam[:, None] * (torch.eye(network.n).double() - network.W)
    over = (H + H.mT) / 2
    for factor in cell.factors()[1:]:
        over = over - factor @ factor.mT
    return over, (H - H.mT) / 2


def _strict(holds: bool, gamma: float) -> None:
    if not holds:
        raise NotCertifiableError(
            f"The network's metric does not satisfy the inequality strictly for gamma = {gamma}.",
            hint="take a larger gamma: `wellposed.lipschitz` tells which one the metric proves.",
        )


def _common(stages: list[Stage]) -> Activation:
    kinds = {s.activation for s in stages if s.activation is not None}
    if len(kinds) > 1:
        raise NotCertifiableError(
            f"The layers have the activations {', '.join(sorted(k.name for k in kinds))}; one "
            "equilibrium network has one.",
            hint="use one activation throughout.",
        )
    return kinds.pop() if kinds else ReLU()


@stage.register(nn.Flatten)
@stage.register(nn.Identity)
def _nothing(module: nn.Module) -> None:
    return None


@stage.register
def _linear(module: nn.Linear) -> Stage:
    D = _wide(module.weight)
    bias = torch.zeros(len(D)).double() if module.bias is None else _wide(module.bias)  # pyright: ignore[reportUnnecessaryComparison]
    none = torch.zeros(0, dtype=torch.float64)
    gain = float(torch.linalg.matrix_norm(D, ord=2).clamp(min=1e-12))
    return Stage(
        none.reshape(0, 0),
        none.reshape(0, D.shape[1]),
        none,
        none.reshape(len(D), 0),
        bias,
        D,
        none,
        gain,
        None,
    )


@stage.register
def _explicit(module: ExplicitLayer) -> Stage:
    s = module.explicit()
    n, q = len(s.L), len(s.K)
    D = torch.eye(q, s.L.shape[1]) if s.shortcut else torch.zeros(q, s.L.shape[1])
    return Stage(
        torch.zeros(n, n).double(),
        _wide(s.L),
        _wide(s.b),
        _wide(s.K),
        torch.zeros(q).double(),
        D.double(),
        _wide(s.multiplier),
        1.0,
        s.activation,
    )


@stage.register
def _lben(module: LBEN) -> Stage:
    affine, D, readout = module.cell.explicit(), module.cell.direct(), module.cell.readout
    assert affine.metric is not None
    C = _wide(readout.weight)
    straight = torch.zeros(len(C), module.cell.n_in).double() if D is None else _wide(D)
    return Stage(
        _wide(affine.A.weight),
        _wide(affine.B.weight),
        _wide(affine.bias),
        C,
        _wide(readout.bias),
        straight,
        _wide(affine.metric),
        1.0 if module.gamma is None else module.gamma,
        affine.activation,
    )


@stage.register
def _layer(module: Equilibrium) -> Stage:
    cell = module.cell
    affine = cell.explicit() if isinstance(cell, AffineCell) else None
    if affine is None or not isinstance(affine.A, Dense) or affine.canonical_form:
        raise NotCertifiableError(f"{type(cell).__name__} has no dense explicit weights.")
    n = len(affine.A.weight)
    metric = torch.ones(n).double() if affine.metric is None else _wide(affine.metric)
    return Stage(
        _wide(affine.A.weight),
        _wide(affine.B.weight),
        _wide(affine.bias),
        torch.eye(n).double(),
        torch.zeros(n).double(),
        torch.zeros(n, affine.B.in_shape[0]).double(),
        metric,
        1.0,
        affine.activation,
    )


def _wide(value: Tensor) -> Tensor:
    return value.detach().cpu().double()
