"""Activations as slope-restricted scalar functions.

Each knows the interval of its slopes, the image of an interval, the range of its slopes on an
interval, and the solution of the scalar equation ``z = phi(a z + s)`` (its resolvent), which is
itself an activation. Slopes in [0, 1] (CONE: componentwise non-expansive) are what the theory of
max-norm equilibrium networks asks for; GELU and SiLU leave that interval and say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from wellposed.core.dipped import GELU as GELU
from wellposed.core.dipped import SiLU as SiLU
from wellposed.core.peel import plain
from wellposed.core.scalar import Activation as Activation
from wellposed.errors import ConfigError


@final
@dataclass(frozen=True)
class ReLU(Activation):
    """``max(v, 0)``."""

    name: ClassVar[str] = "relu"

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    @override
    def homogeneous(self) -> bool:
        return True

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return torch.relu(v)

    @override
    def slope(self, v: Tensor) -> Tensor:
        return (v > 0).to(v.dtype)

    @override
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return (lower >= 0).to(lower.dtype), (upper > 0).to(upper.dtype)


@final
@dataclass(frozen=True)
class LeakyReLU(Activation):
    """``max(v, a v)`` with ``0 <= a < 1``."""

    negative_slope: float = 0.01
    name: ClassVar[str] = "leaky_relu"

    def __post_init__(self) -> None:
        if not 0 <= self.negative_slope < 1:
            raise ConfigError(f"`negative_slope` must lie in [0, 1), got {self.negative_slope}.")

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return self.negative_slope, 1.0

    @property
    @override
    def homogeneous(self) -> bool:
        return True

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return F.leaky_relu(v, self.negative_slope)

    @override
    def slope(self, v: Tensor) -> Tensor:
        # two numbers alone would meet in the default dtype: 0.7 in float32 is less than 0.7
        return torch.where(v > 0, torch.ones_like(v), self.negative_slope)

    @override
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.slope(torch.where(lower >= 0, 1.0, -1.0).to(lower)), self.slope(upper)


@dataclass(frozen=True)
class _Sigmoidal(Activation):
    """Increasing, with a derivative that is even about 0 and decreases away from it."""

    @override
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.where(lower > 0, lower, torch.where(upper < 0, upper, 0.0))
        return torch.minimum(self.slope(lower), self.slope(upper)), self.slope(nearest)


@final
@dataclass(frozen=True)
class Tanh(_Sigmoidal):
    """``tanh(v)``."""

    name: ClassVar[str] = "tanh"

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return torch.tanh(v)

    @override
    def slope(self, v: Tensor) -> Tensor:
        return 1 - torch.tanh(v) ** 2


@final
@dataclass(frozen=True)
class Sigmoid(_Sigmoidal):
    """``1 / (1 + exp(-v))``."""

    name: ClassVar[str] = "sigmoid"

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return 0.0, 0.25

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return torch.sigmoid(v)

    @override
    def slope(self, v: Tensor) -> Tensor:
        s = torch.sigmoid(v)
        return s * (1 - s)


@dataclass(frozen=True)
class _Convex(Activation):
    """Increasing, with an increasing derivative."""

    @override
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.slope(lower), self.slope(upper)


@final
@dataclass(frozen=True)
class Softplus(_Convex):
    """``log(1 + exp(v))``."""

    name: ClassVar[str] = "softplus"

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return torch.logaddexp(v, torch.zeros_like(v))

    @override
    def slope(self, v: Tensor) -> Tensor:
        return torch.sigmoid(v)


@final
@dataclass(frozen=True)
class ELU(_Convex):
    """``v`` for ``v > 0``, else ``exp(v) - 1``."""

    name: ClassVar[str] = "elu"

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return F.elu(v)

    @override
    def slope(self, v: Tensor) -> Tensor:
        return torch.exp(torch.clamp(v, max=0))


def flat_slope(phi: Activation) -> float | None:
    """``s`` where ``phi(v) = max(v, s v)``, the slope left of its one kink; `None` elsewhere."""
    match phi:
        case ReLU():
            return 0.0
        case LeakyReLU():
            return phi.negative_slope
        case _:
            return None


ACTIVATIONS: dict[str, type[Activation]] = {
    kind.name: kind for kind in (ReLU, LeakyReLU, Tanh, Sigmoid, Softplus, ELU, GELU, SiLU)
}


def resolvent(phi: Activation, a: Tensor, s: Tensor) -> Tensor:
    """The solution ``z`` of ``z = phi(a z + s)``, elementwise and differentiable to third order.

    It exists and is unique if ``d a < 1`` for every slope ``d`` of ``phi``; then ``s -> z`` is
    again slope-restricted, with slopes ``d / (1 - d a)``. Newton's method inside a bracket, then
    two Newton steps on the tape (each doubles the order to which the derivatives are right).

    Args:
        phi: The activation.
        a: Coefficients, broadcastable against `s`.
        s: Right-hand side.

    Raises:
        ConfigError: Some ``a`` admits a slope with ``d a >= 1``.
    """
    low, high = resolvent_range(phi)
    if not _inside(a, low, high):
        raise ConfigError(
            f"The scalar equation z = {phi.name}(a z + s) needs {low:.4g} < a < {high:.4g}, got a "
            f"in [{float(a.min()):.4g}, {float(a.max()):.4g}].",
            hint="lower the cell's margin: it bounds the diagonal from above.",
        )
    if isinstance(phi, ReLU):
        return torch.relu(s) / (1 - a)
    if isinstance(phi, LeakyReLU):
        return torch.where(
            s > 0, s / (1 - a), s * phi.negative_slope / (1 - a * phi.negative_slope)
        )
    z = _bracketed_newton(phi, a.detach(), s.detach())
    for _ in range(2):
        v = a * z + s
        z = z - (z - phi(v)) / (1 - a * phi.slope(v))
    return z


def resolvent_range(phi: Activation) -> tuple[float, float]:
    """The open interval of ``a`` for which ``z = phi(a z + s)`` has exactly one solution."""
    low, high = phi.slopes
    return (1 / low if low < 0 else -inf), 1 / high


def _inside(a: Tensor, low: float, high: float) -> bool:
    value = plain(a)
    return bool((value > low).all() & (value < high).all())


@torch.no_grad()
def _bracketed_newton(phi: Activation, a: Tensor, s: Tensor) -> Tensor:
    # g(z) = z - phi(a z + s) increases at a rate of at least `floor`, which brackets the root
    low, high = phi.slopes
    floor = torch.minimum(1 - a * low, 1 - a * high).clamp(max=1.0)
    z = phi(s)
    v = a * z + s
    gap = z - phi(v)
    reach = gap.abs() / floor
    left, right = z - reach, z + reach
    tolerance = 4 * torch.finfo(z.dtype).eps
    for _ in range(100):
        slope = phi.slope(v)
        # forming v rounds too, and phi passes that on: less than this cannot be reached
        size = 1 + z.abs() + slope.abs() * ((a * z).abs() + s.abs())
        done = gap.abs() <= tolerance * size
        if bool(plain(done).all()):
            break
        left, right = torch.where(gap < 0, z, left), torch.where(gap > 0, z, right)
        newton = z - gap / (1 - a * slope)
        candidate = torch.where((newton >= left) & (newton <= right), newton, (left + right) / 2)
        trial = candidate - phi(a * candidate + s)
        # Newton may bounce between flat and steep parts: bisect unless the gap was halved
        slow = trial.abs() > 0.5 * gap.abs()
        # an element that is done stays: a bisection would throw it back
        z = torch.where(done, z, torch.where(slow, (left + right) / 2, candidate))
        v = a * z + s
        gap = z - phi(v)
    return z
