"""Certificates of every cell at ugly parameters, against attacked slopes: violations of 10^4 draws.

A draw is a cell with parameters of a size, maybe signs only, rounded to bfloat16, or after steps of
training. Its Lipschitz bounds in three norms and its witness of well-posedness are compared with
what explicit Jacobians ``(I - [d] A)^-1 [d] B`` of slopes ``d`` reach that were drawn and attacked.
Cells that are not affine are compared with quotients of solved pairs of inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

import wellposed as wp
from benchmarks.common import Report, note
from wellposed.cells.concave import PositiveConcaveCell
from wellposed.cells.subhomogeneous import SubhomogeneousCell
from wellposed.core.norms import MaxNorm, TwoNorm
from wellposed.errors import NotCertifiableError

Norm = Literal["max", "1", "2"]
NORMS: tuple[Norm, ...] = ("max", "1", "2")
SCALES = (1.0, 10.0, 1e3, 1e-3)
UGLY = ("normal", "signs", "bfloat16", "trained")
DRAWS = 40  # of each cell, scale and kind: more than 10^4 in all
STARTS, CLIMBS, PAIRS = 3, 4, 16
ROUNDING = 1e-9  # of the comparison, which is made in float64
IMAGE = (4, 4)


def _graph(seed: int) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    adjacency = (torch.rand(5, 5, generator=g) < 0.4).double().triu(1)
    return wp.GraphCell(2, 3, wp.normalised_adjacency(adjacency + adjacency.T))


CELLS: Mapping[str, Callable[[int], nn.Module]] = {
    "NemonCell": lambda _: wp.NemonCell(3, 7),
    "NemonConv2d, zeros": lambda _: wp.NemonConv2d(1, 2, image=IMAGE),
    "NemonConv2d, circular": lambda _: wp.NemonConv2d(1, 2, image=IMAGE, padding="circular"),
    "InfNormCell": lambda _: wp.InfNormCell(3, 7),
    "MonotoneCell": lambda _: wp.MonotoneCell(3, 7),
    "MonotoneCell, scaled": lambda _: wp.MonotoneCell(3, 7, scaled=True),
    "MonotoneConv2d": lambda _: wp.MonotoneConv2d(1, 2, image=IMAGE),
    "MonotoneConv2d, scaled": lambda _: wp.MonotoneConv2d(1, 2, image=IMAGE, scaled=True),
    "MultiTierCell": lambda _: wp.MultiTierCell(1, (2, 2), image=(6, 6)),
    "ContractiveCell": lambda _: wp.ContractiveCell(3, 7),
    "ContractiveConv2d": lambda _: wp.ContractiveConv2d(1, 2, image=IMAGE),
    "GraphCell": _graph,
    "LBEN, gamma 0.5": lambda _: wp.LBEN(3, 7, 2, gamma=0.5),
    "LbenConv2d, zeros": lambda _: wp.LbenConv2d(
        1, 2, image=IMAGE, gamma=0.5, padding="zeros", margin=0.1
    ),
    "LbenConv2d, circular": lambda _: wp.LbenConv2d(1, 2, image=IMAGE, gamma=0.5),
    "LBEN, skip path": lambda _: wp.LBEN(3, 7, 2, gamma=0.5, skip=True),
    "PositiveConcaveCell": lambda _: PositiveConcaveCell(3, 5),
    "SubhomogeneousCell": lambda _: SubhomogeneousCell(3, 5),
}


@dataclass(frozen=True, eq=False)
class Weights:
    """``y = C z + D x`` at ``z = phi(A z + B x + b)``, in float64 and explicit."""

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor


def parameters(module: nn.Module, scale: float, kind: str, seed: int) -> nn.Module:
    """Ugly parameters, in place."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            value = torch.randn(p.shape, generator=g)
            value = value.sign() if kind == "signs" else value
            value = scale * value
            p.copy_(value.bfloat16() if kind == "bfloat16" else value)
    if kind == "trained":
        _train(module, scale, g)
    return module.eval()


def _train(module: nn.Module, scale: float, g: torch.Generator) -> None:
    """Steps that raise the weights' reach: the norm of one random projection of `A` and `B`."""
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1 * scale)
    for _ in range(3):
        optimiser.zero_grad()
        total = torch.zeros(())
        cell = module.cell if isinstance(module, wp.LBEN) else module
        if isinstance(cell, wp.AffineCell):
            affine = cell.explicit()
            x = torch.randn(2, *affine.B.in_shape, generator=g)
            z = torch.randn(2, *affine.A.out_shape, generator=g)
            total = total - (affine.A.apply(z, affine.B.apply(x))).square().mean()
        else:
            total = total - sum(p.square().mean() for p in module.parameters())
        total.backward()
        for p in module.parameters():
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimiser.step()


def explicit(module: nn.Module) -> Weights:
    """The matrices of an affine cell with its states as outputs, or of a whole LBEN."""
    cell: Any = module.cell if isinstance(module, wp.LBEN) else module
    affine = cell.explicit().double()
    A, B = affine.A.materialise(), affine.B.materialise()
    if not isinstance(module, wp.LBEN):
        return Weights(A, B, torch.eye(len(A), dtype=A.dtype), torch.zeros_like(B))
    readout, direct = module.cell.readout.weight.detach().double(), module.cell.direct()
    none = torch.zeros(len(readout), B.shape[1], dtype=A.dtype)
    return Weights(A, B, readout, none if direct is None else direct.detach().double())


def reached(w: Weights, norm: Norm, seed: int) -> float:
    """The largest norm of the Jacobian over slopes that were drawn and then climbed."""
    g = torch.Generator().manual_seed(seed)
    n, best = len(w.A), 0.0
    eye = torch.eye(n, dtype=w.A.dtype)
    for start in range(STARTS):
        d = torch.rand(n, generator=g, dtype=w.A.dtype)
        d = (d < 0.5).to(d) if start else torch.ones_like(d)
        for _ in range(CLIMBS):
            M = eye - d[:, None] * w.A
            S = torch.linalg.solve(M, d[:, None] * w.B)
            J = w.C @ S + w.D
            u, v, size = _extreme(J, norm)
            if not size < inf:
                break
            best = max(best, size)
            # derivative of u^T J v with respect to d_k
            pull = torch.linalg.solve(M.mT, w.C.mT @ u) * (w.A @ (S @ v) + w.B @ v)
            d = (pull > 0).to(d)
    return best


def _extreme(J: Tensor, norm: Norm) -> tuple[Tensor, Tensor, float]:
    """Vectors with ``u^T J v = ||J||``."""
    if norm == "2":
        U, s, Vh = torch.linalg.svd(J, full_matrices=False)
        return U[:, 0], Vh[0], float(s[0])
    M = J if norm == "max" else J.mT
    sums = M.abs().sum(1)
    k = int(sums.argmax())
    one = torch.zeros(len(M), dtype=M.dtype)
    one[k] = 1
    pair = (one, M[k].sign())
    u, v = pair if norm == "max" else pair[::-1]
    return u, v, float(sums[k])


def check(module: nn.Module, seed: int) -> Iterator[tuple[str, bool | None]]:
    """What was asked, and whether it held; `None` where it was refused."""
    layer = module if isinstance(module, wp.LBEN) else wp.Equilibrium(module).eval()  # type: ignore[arg-type]
    affine = isinstance(module, wp.AffineCell | wp.LBEN)
    w = explicit(module) if affine else None
    for norm in NORMS:
        try:
            bound = wp.lipschitz(layer, norm_in=norm).value
        except NotCertifiableError:
            yield f"Lipschitz, {norm}", None
            continue
        true = reached(w, norm, seed) if w else slope(layer, norm, seed)
        yield f"Lipschitz, {norm}", true <= bound * (1 + ROUNDING)
    if w is None:
        return
    try:
        witness = wp.wellposedness(module.cell if isinstance(module, wp.LBEN) else module)
    except NotCertifiableError:
        yield "well-posed", None
        return
    eta = witness.weights
    norm = MaxNorm(eta) if witness.kind == "max-norm" else TwoNorm(eta.rsqrt())
    level = float(norm.log_norm(w.A))
    yield "well-posed", witness.margin <= 1 - level + ROUNDING * (1 + float(w.A.abs().max()))


def slope(layer: nn.Module, norm: Norm, seed: int) -> float:
    """The steepest quotient over pairs of inputs, near and far, solved in float64."""
    assert isinstance(layer, wp.Equilibrium)
    wide = wp.Equilibrium(layer.cell, eval_stopping=wp.Stopping(1e-13, 0.0, 20_000)).double().eval()
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(PAIRS, 3, generator=g).double()
    size = 10.0 ** -(4 * torch.rand(PAIRS, 1, generator=g).double())
    y = x + size * torch.randn(PAIRS, 3, generator=g).double()
    wide.on_failure = "ignore"
    with torch.no_grad():
        one, two = wide.solve(x), wide.solve(y)
    good = one.converged & two.converged
    order = {"max": inf, "1": 1.0, "2": 2.0}[norm]
    rise = torch.linalg.vector_norm(one.value - two.value, order, dim=1)
    run = torch.linalg.vector_norm(x - y, order, dim=1)
    # both states may be off by a little more than their residuals
    rise = rise - 1e-10 * (1 + torch.linalg.vector_norm(one.value, order, dim=1))
    return float((rise / run)[good].amax()) if bool(good.any()) else 0.0


def run() -> None:
    """All cells, sizes and kinds."""
    report = Report(
        "certificates",
        f"Certificates at parameters x {SCALES}, {', '.join(UGLY)}",
        ("cell", "draws", "bounds compared", "refused", "violations"),
    )
    total: Counter[str] = Counter()
    for name, make in CELLS.items():
        note(name)
        count: Counter[str] = Counter()
        for (scale, kind), draw in product(product(SCALES, UGLY), range(DRAWS)):
            seed = draw + 1000 * UGLY.index(kind) + 10_000 * SCALES.index(scale)
            torch.manual_seed(seed)
            module = parameters(make(seed), scale, kind, seed)
            count["draws"] += 1
            for question, held in check(module, seed):
                count["refused" if held is None else "compared"] += 1
                if held is False:
                    count["violations"] += 1
                    note(f"VIOLATION: {name}, {question}, {kind} x {scale:g}, seed {seed}")
        report.row(name, *(count[k] for k in ("draws", "compared", "refused", "violations")))
        total += count
    report.metrics = {key: float(total[key]) for key in ("draws", "compared", "violations")}
    report.finish()
