"""Weighted 1-, 2- and max-norms: values, duals, operator norms and logarithmic norms.

Weights divide in the max- and 2-norm and multiply in the 1-norm, so that the dual of
``MaxNorm(eta)`` is ``OneNorm(eta)`` with the same ``eta``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.errors import NotCertifiableError, ShapeError


@dataclass(frozen=True, eq=False)
class Norm(ABC):
    """A norm of R^n, applied to the last dimension.

    Args:
        weights: Positive vector ``eta`` of length n; `None` means all ones, for any n.
    """

    weights: Tensor | None = None
    name: ClassVar[str]

    def __post_init__(self) -> None:
        eta = self.weights
        if eta is None:
            return
        if eta.ndim != 1:
            raise ShapeError(f"`weights` must be a vector, got shape {tuple(eta.shape)}.")
        if not bool((eta > 0).all() & torch.isfinite(eta).all()):
            raise ShapeError(
                f"`weights` must be positive and finite; the smallest is {float(eta.min()):.3g}."
            )

    @property
    def label(self) -> str:
        """The name under which records keep this norm; weights show as a short digest."""
        if self.weights is None:
            return self.name
        numbers = self.weights.detach().to("cpu", torch.float64).numpy().tobytes()
        return f"{self.name}/{sha256(numbers).hexdigest()[:8]}"

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The norm of each vector along the last dimension."""

    @abstractmethod
    def dual(self) -> Norm:
        """The dual norm ``sup { <x, y> : ||x|| <= 1 }``."""

    @abstractmethod
    def log_norm(self, A: Tensor) -> Tensor:
        """Logarithmic norm (matrix measure) ``lim_{h -> 0+} (||I + h A|| - 1) / h``."""

    @abstractmethod
    def multipliers(self, n: int, like: Tensor) -> Tensor:
        """Vector ``s`` such that this norm of ``x`` is the unweighted one of ``s * x``."""

    def operator_norm(self, A: Tensor, source: Norm | None = None) -> Tensor:
        """``max { ||A x|| : ||x||_source <= 1 }``, the target norm being this one.

        Args:
            A: Matrix of shape (m, n).
            source: Norm of the argument; `None` means this norm.

        Raises:
            NotCertifiableError: The pair has no formula of polynomial cost (max to 1, max to 2,
                2 to 1).
        """
        source = self if source is None else source
        rows, columns = A.shape[-2:]
        scaled = self.multipliers(rows, A)[:, None] * A / source.multipliers(columns, A)[None, :]
        size = scaled.abs()
        match (source.name, self.name):
            case ("max", "max"):
                return size.sum(-1).amax(-1)
            case ("1", "1"):
                return size.sum(-2).amax(-1)
            case ("1", "max"):
                return size.flatten(-2).amax(-1)
            case ("2", "max"):
                return torch.linalg.vector_norm(scaled, dim=-1).amax(-1)
            case ("1", "2"):
                return torch.linalg.vector_norm(scaled, dim=-2).amax(-1)
            case ("2", "2"):
                return torch.linalg.matrix_norm(scaled, ord=2)
            case (other, mine):
                raise NotCertifiableError(
                    f"The operator norm from the {other}-norm to the {mine}-norm has no closed "
                    "form.",
                    hint="pay the dimension factor: measure max to max, 1 to 1 or 2 to 2 instead.",
                )

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.weights is None else 'eta'})"


@final
@dataclass(frozen=True, eq=False, repr=False)
class MaxNorm(Norm):
    """``max_i |x_i| / eta_i``."""

    name: ClassVar[str] = "max"

    @override
    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.multipliers(x.shape[-1], x)).abs().amax(-1)

    @override
    def dual(self) -> OneNorm:
        return OneNorm(self.weights)

    @override
    def log_norm(self, A: Tensor) -> Tensor:
        """``max_i ( a_ii + sum_{j != i} |a_ij| eta_j / eta_i )``."""
        return log_norm_rows(A, self.weights).amax(-1)

    @override
    def multipliers(self, n: int, like: Tensor) -> Tensor:
        return 1 / _weights(self, n, like)


@final
@dataclass(frozen=True, eq=False, repr=False)
class OneNorm(Norm):
    """``sum_i eta_i |x_i|``."""

    name: ClassVar[str] = "1"

    @override
    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.multipliers(x.shape[-1], x)).abs().sum(-1)

    @override
    def dual(self) -> MaxNorm:
        return MaxNorm(self.weights)

    @override
    def log_norm(self, A: Tensor) -> Tensor:
        """``max_j ( a_jj + sum_{i != j} |a_ij| eta_i / eta_j )``."""
        return log_norm_rows(A.mT, self.weights).amax(-1)

    @override
    def multipliers(self, n: int, like: Tensor) -> Tensor:
        return _weights(self, n, like)


@final
@dataclass(frozen=True, eq=False, repr=False)
class TwoNorm(Norm):
    """``sqrt( sum_i (x_i / eta_i)^2 )``."""

    name: ClassVar[str] = "2"

    @override
    def __call__(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x * self.multipliers(x.shape[-1], x), dim=-1)

    @override
    def dual(self) -> TwoNorm:
        return TwoNorm(None if self.weights is None else 1 / self.weights)

    @override
    def log_norm(self, A: Tensor) -> Tensor:
        """Largest eigenvalue of the symmetric part of ``[1/eta] A [eta]``."""
        s = self.multipliers(A.shape[-1], A)
        scaled = s[:, None] * A / s[None, :]
        return torch.linalg.eigvalsh((scaled + scaled.mT) / 2)[..., -1]

    @override
    def multipliers(self, n: int, like: Tensor) -> Tensor:
        return 1 / _weights(self, n, like)


def log_norm_rows(A: Tensor, eta: Tensor | None = None) -> Tensor:
    """Row measures ``mu_i = a_ii + sum_{j != i} |a_ij| eta_j / eta_i`` of a square matrix."""
    if A.shape[-1] != A.shape[-2]:
        raise ShapeError(f"A logarithmic norm needs a square matrix, got {tuple(A.shape)}.")
    diagonal = torch.diagonal(A, dim1=-2, dim2=-1)
    off = A.abs() - torch.diag_embed(diagonal.abs())
    if eta is None:
        return diagonal + off.sum(-1)
    eta = eta.to(A)
    return diagonal + (off @ eta) / eta


def _weights(norm: Norm, n: int, like: Tensor) -> Tensor:
    if norm.weights is None:
        return like.new_ones(n)
    if len(norm.weights) != n:
        raise ShapeError(
            f"The norm has {len(norm.weights)} weights, the vector {n} components.",
            hint="weights are flattened like the state: channels, then rows, then columns.",
        )
    return norm.weights.to(like)
