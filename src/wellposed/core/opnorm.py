"""Operator norms between the 1-, 2- and max-norm, as brackets that never miss the value.

Five pairs have closed forms, the 2-norm has several methods, and three pairs have neither: those
pay a factor of the dimension, and the bracket says which.
"""

from __future__ import annotations

from collections.abc import Callable
from math import frexp, prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from wellposed.core.brackets import NormBracket, bracket, check_finite, shifted
from wellposed.core.convolutions import GeneralConvolution
from wellposed.core.entries import largest_entry, squared
from wellposed.core.gram import gram_bracket, gram_norm_bracket
from wellposed.core.matrix_norm import matrix_bracket
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.core.spectral import two_norm_bracket
from wellposed.core.transposed import Adjoint
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError

Exponent = Literal["1", "2", "max"]
Method = Callable[[Operator, float], NormBracket]

_SMALL = 1 << 16  # entries of a matrix that is cheaper formed than avoided
_STEPS = 8  # of the power method between different norms


@torch.no_grad()
def operator_norm(
    operator: Operator | Tensor,
    p: str = "2",
    q: str = "2",
    method: str = "auto",
    tol: float = 1e-6,
) -> NormBracket:
    """Bounds of ``max { ||M x||_q : ||x||_p <= 1 }``, proved in float64 with their rounding.

    Closed forms: the largest sum of a row (max to max) or a column (1 to 1), the largest entry
    (1 to max), the largest 2-norm of a row (2 to max) or a column (1 to 2). For 2 to 2 see
    `method`. Max to 1, max to 2 and 2 to 1 are NP-hard in general: the upper bound is the best
    of the others times a factor of the dimension, which `NormBracket.method` names.

    Args:
        operator: Any operator, or a real or complex matrix.
        p: Norm of the argument: ``"1"``, ``"2"`` or ``"max"``.
        q: Norm of the result.
        method: How a 2-norm is found: a key of `METHODS`, or ``"auto"``, which picks by device.
        tol: Relative width at which an iterative method may stop.

    Raises:
        ConfigError: A norm or a method has another name.
        ShapeError: A tensor is no matrix.
        NotCertifiableError: A weight is not finite, or a complex matrix has no bound for the pair.
    """
    if p not in ("1", "2", "max") or q not in ("1", "2", "max"):
        raise ConfigError(f"Norms are '1', '2' and 'max', got p={p!r}, q={q!r}.")
    if method != "auto" and (method not in METHODS or (p, q) != ("2", "2")):
        raise ConfigError(
            f"Method {method!r} does not exist from the {p}-norm to the {q}-norm.",
            hint=f"leave `method` at 'auto', or choose one of {sorted(METHODS)} for 2 to 2.",
        )
    if isinstance(operator, Tensor):
        if operator.ndim != 2:
            raise ShapeError(
                f"An operator norm needs a matrix, got shape {tuple(operator.shape)}.",
                hint="wrap a kernel in `wellposed.core.convolutions.convolution`.",
            )
        if operator.is_complex():
            return _complex(operator.detach(), p, q, method, tol)
        operator = Dense(operator)
    weight = operator.weight.detach()
    size = float(weight.abs().amax()) if weight.numel() else 0.0
    check_finite(size)
    if size == 0 or not prod(operator.in_shape) * prod(operator.out_shape):
        return bracket(0.0, 0.0, "zero")
    # a power of two: exact, and no square below over- or underflows
    exponent = frexp(size)[1]
    even = operator.detach().to(torch.float64)
    even = even.with_weight(torch.ldexp(even.weight, torch.tensor(-exponent)))
    if method == "auto" and isinstance(even, (Convolution, GeneralConvolution, Adjoint)):
        cells = prod(even.in_shape) * prod(even.out_shape)
        if cells <= _SMALL:
            return shifted(_formed(even, p, q), exponent)
    return shifted(_found(even, p, q, method, tol), exponent)


def _found(operator: Operator, p: str, q: str, method: str, tol: float) -> NormBracket:
    if (p, q) == ("2", "2"):
        return METHODS[_pick(method, operator)](operator, tol)
    return _CLOSED[p, q](operator) if (p, q) in _CLOSED else _crossed(operator, p, q)


def _formed(operator: Operator, p: str, q: str) -> NormBracket:
    """The norm of a small operator's matrix, whose entries may be rounded sums of taps."""
    matrix = operator.materialise()
    found = _found(Dense(matrix), p, q, "auto", 0.0)
    if squared(operator) is None:
        mass = Dense(operator.absolute().materialise())
        unit = 2 * rounding(operator.terms + operator.adjoint_terms)
        wrong = unit * _found(mass, p, q, "auto", 0.0).upper
        found = bracket(found.lower - wrong, found.upper + wrong, found.method)
    return bracket(found.lower, found.upper, f"{found.method} of the matrix itself")


def _exact(operator: Operator, tol: float) -> NormBracket:
    del tol
    return two_norm_bracket(operator)


def _gram(operator: Operator, tol: float) -> NormBracket:
    return gram_norm_bracket(operator, tol)


METHODS: dict[str, Method] = {"exact": _exact, "gram": _gram}


def _pick(method: str, operator: Operator) -> str:
    """Factorisations on a processor, products of matrices on an accelerator."""
    if method != "auto":
        return method
    known = gram_norm_bracket.dispatch(type(operator)) is not gram_norm_bracket.dispatch(object)
    return "gram" if known and operator.weight.is_cuda else "exact"


def _rows(operator: Operator) -> NormBracket:
    size = operator.absolute()
    sums = outward(size.apply(_ones(size, size.in_shape)), prod(size.in_shape))
    row = _row(operator, int(sums.argmax()))
    return bracket(_down(row, 1), float(sums.amax()), "largest row sum")


def _columns(operator: Operator) -> NormBracket:
    size = operator.absolute()
    sums = outward(size.adjoint(_ones(size, size.out_shape)), prod(size.out_shape))
    column = _column(operator, int(sums.argmax()))
    return bracket(_down(column, 1), float(sums.amax()), "largest column sum")


def _entry(operator: Operator) -> NormBracket:
    found = largest_entry(operator)
    size = operator.absolute()
    row = _row(operator, int(size.apply(_ones(size, size.in_shape)).argmax()))
    column = _column(operator, int(row.argmax()))
    lower = max(float(row.amax()), float(column.amax()), found.lower)
    return bracket(lower, found.upper, found.method)


def _two_rows(operator: Operator) -> NormBracket:
    squares = squared(operator)
    if squares is None:
        whole, rows = two_norm_bracket(operator), _rows(operator)
        upper, method = min((whole.upper, "2 to 2"), (rows.upper, "max to max"))
        size = operator.absolute()
        best = int(size.apply(_ones(size, size.in_shape)).argmax())
        return bracket(_down(_row(operator, best), 2), upper, f"at most {method}")
    sums = outward(squares.apply(_ones(squares, squares.in_shape)), prod(squares.in_shape))
    row = _row(operator, int(sums.argmax()))
    upper = sqrt(float(sums.amax())) * (1 + 4 * UNIT)
    return bracket(_down(row, 2), upper, "largest 2-norm of a row")


def _two_columns(operator: Operator) -> NormBracket:
    squares = squared(operator)
    if squares is None:
        whole, columns = two_norm_bracket(operator), _columns(operator)
        upper, method = min((whole.upper, "2 to 2"), (columns.upper, "1 to 1"))
        size = operator.absolute()
        best = int(size.adjoint(_ones(size, size.out_shape)).argmax())
        return bracket(_down(_column(operator, best), 2), upper, f"at most {method}")
    sums = outward(squares.adjoint(_ones(squares, squares.out_shape)), prod(squares.out_shape))
    column = _column(operator, int(sums.argmax()))
    upper = sqrt(float(sums.amax())) * (1 + 4 * UNIT)
    return bracket(_down(column, 2), upper, "largest 2-norm of a column")


_CLOSED: dict[tuple[str, str], Callable[[Operator], NormBracket]] = {
    ("max", "max"): _rows,
    ("1", "1"): _columns,
    ("1", "max"): _entry,
    ("2", "max"): _two_rows,
    ("1", "2"): _two_columns,
}


def _crossed(operator: Operator, p: str, q: str) -> NormBracket:
    """The pairs without a closed form, each with the cheapest factor of the dimension."""
    m, n = prod(operator.out_shape), prod(operator.in_shape)
    whole = two_norm_bracket(operator).upper
    size = operator.absolute()
    reach = outward(size.apply(_ones(size, size.in_shape)), n)
    rows, columns = float(reach.amax()), _columns(operator).upper
    if (p, q) == ("max", "1"):
        found = [
            (sqrt(m * n) * whole, f"sqrt({m} x {n}) x 2 to 2"),
            (m * rows, f"{m} x max to max"),
            (n * columns, f"{n} x 1 to 1"),
            (float(outward(reach.sum(), m)), "sum of all absolute entries"),
        ]
    elif (p, q) == ("max", "2"):
        length = float(torch.linalg.vector_norm(reach)) * (1 + 2 * rounding(m + 8))
        found = [
            (sqrt(n) * whole, f"sqrt({n}) x 2 to 2"),
            (sqrt(m) * rows, f"sqrt({m}) x max to max"),
            (length, "2-norm of the row sums"),
        ]
    else:
        reach = outward(size.adjoint(_ones(size, size.out_shape)), m)
        length = float(torch.linalg.vector_norm(reach)) * (1 + 2 * rounding(n + 8))
        found = [
            (sqrt(m) * whole, f"sqrt({m}) x 2 to 2"),
            (sqrt(n) * columns, f"sqrt({n}) x 1 to 1"),
            (length, "2-norm of the column sums"),
        ]
    upper, method = min(found)
    return bracket(_stretch(operator, p, q), upper * (1 + 8 * UNIT), method)


def _stretch(operator: Operator, p: str, q: str) -> float:
    """How far the power method of Boyd stretches a vector between the two norms, rounded down.

    ``x <- d_p(M^T d_q'(M x))`` with the vectors ``d`` at which a norm and its dual meet; it climbs,
    to a local maximum only.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, *operator.in_shape, generator=generator, dtype=torch.float64)
    x[0] = 1
    x = x.to(operator.weight.device)
    toward = _sign if q == "1" else _unit
    back = _sign if p == "max" else _unit
    for _ in range(_STEPS):
        x = back(operator.adjoint(toward(operator.apply(x))))
    x = back(x)
    image = operator.apply(x).flatten(1)
    slack = 2 * rounding(operator.terms + 4) * operator.absolute().apply(x.abs()).flatten(1)
    least = (image.abs() - slack).clamp(min=0)
    length = torch.linalg.vector_norm(least, ord=1 if q == "1" else 2, dim=1)
    found = float(length.amax()) * (1 - 4 * rounding(image.shape[1] + 8))
    # a sign has max-norm 1; a unit vector is one up to rounding
    return found * (1 - 4 * rounding(x[0].numel() + 8))


def _sign(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x)


def _unit(x: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=1e-300)
    return x / size.reshape(-1, *[1] * (x.ndim - 1))


def _row(operator: Operator, index: int) -> Tensor:
    """Absolute values of a row, rounded down."""
    pick = _basis(operator, operator.out_shape, index)
    slack = 2 * rounding(operator.adjoint_terms) * operator.absolute().adjoint(pick)
    return (operator.adjoint(pick).abs() - slack).clamp(min=0).flatten()


def _column(operator: Operator, index: int) -> Tensor:
    """Absolute values of a column, rounded down."""
    pick = _basis(operator, operator.in_shape, index)
    slack = 2 * rounding(operator.terms) * operator.absolute().apply(pick)
    return (operator.apply(pick).abs() - slack).clamp(min=0).flatten()


def _down(vector: Tensor, ord: int) -> float:
    size = float(torch.linalg.vector_norm(vector, ord=ord))
    return size * (1 - 2 * rounding(vector.numel() + 8))


def _basis(operator: Operator, shape: tuple[int, ...], index: int) -> Tensor:
    pick = _ones(operator, shape) * 0
    pick.view(-1)[index] = 1
    return pick


def _ones(operator: Operator, shape: tuple[int, ...]) -> Tensor:
    return torch.ones(1, *shape, dtype=torch.float64, device=operator.weight.device)


def _complex(matrix: Tensor, p: str, q: str, method: str, tol: float) -> NormBracket:
    """Norms of a complex matrix; those with a closed form depend on the absolute values only."""
    if (p, q) == ("2", "2"):
        gram = method == "gram" or (method == "auto" and matrix.is_cuda)
        return gram_bracket(matrix, tol=tol) if gram else matrix_bracket(matrix)
    if (p, q) not in _CLOSED:
        raise NotCertifiableError(
            f"A complex matrix has no bound from the {p}-norm to the {q}-norm here.",
            hint="bound its real and imaginary parts apart.",
        )
    exponent = -frexp(float(torch.view_as_real(matrix).abs().amax()))[1] if matrix.numel() else 0
    wide = torch.ldexp(torch.view_as_real(matrix.to(torch.complex128)), torch.tensor(exponent))
    found = operator_norm(torch.view_as_complex(wide).abs(), p, q)
    # the modulus is rounded
    lower, upper = found.lower * (1 - 8 * UNIT), found.upper * (1 + 8 * UNIT)
    return shifted(bracket(lower, upper, found.method), -exponent)
