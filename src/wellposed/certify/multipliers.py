"""Better multipliers by descent: nearly those of LipSDP, at a fraction of its cost.

Every diagonal ``D > [r] P [r]`` on the open components of a layer of slopes is

    D = (1 + exp f) lambda_max( [k]^-1 P [k]^-1 ) [r k]^2

for some positive ``k`` and real ``f``, and every such ``D`` is admissible. The bound of `ellipsoid`
is therefore an unconstrained function of ``log k`` and ``f``, layer by layer, which is minimised
from the multipliers of ECLipsE-Fast on. Its value is proved afterwards by `propagate`.
"""

from __future__ import annotations

from math import inf
from typing import final

import torch
from torch import Tensor

from wellposed.certify.eclipse import (
    Multipliers,
    Proof,
    Scaled,
    advance,
    best_proposal,
    largest,
    prove,
    top_eigenvalue,
    worthwhile,
)
from wellposed.certify.ellipsoid import Opaque, Slope, Step, middle_radius

_WORK = 3e8  # cubes of layer sizes times steps that a bound may cost by default
_STEPS = 40
_FEWEST = 5
_THOROUGH = 200
_RATE = 0.1
_BETAS = (0.9, 0.98)


def chain_gain(size: int, steps: tuple[Step, ...]) -> float:
    """Upper bound of the 2-norm gain of a chain; infinite if there is nothing to gain by it.

    Args:
        size: Components of an input.
        steps: The chain.
    """
    return chain_proof(size, steps).two_norm() if worthwhile(steps) else inf


def chain_proof(size: int, steps: tuple[Step, ...], *, thorough: bool = False) -> Proof:
    """What ECLipsE-Fast proves about a chain, or descent from it where that is better.

    Args:
        size: Components of an input.
        steps: The chain.
        thorough: Descend for long, whatever the size; by default as far as about a second goes.
    """
    chain = Scaled.of(size, steps)
    start = best_proposal(chain)
    count = _THOROUGH if thorough else _affordable(chain)
    first = prove(chain, start)
    if not count or not first.ellipsoids:
        return first
    better = prove(chain, descended(chain, start, count))
    return better if better.two_norm() < first.two_norm() else first


def _affordable(chain: Scaled) -> int:
    sizes = [len(step.low) for step in chain.steps if isinstance(step, Slope)]
    sizes += [step.size for step in chain.steps if isinstance(step, Opaque)]
    count = min(_STEPS, int(_WORK / max(sum(n**3 for n in sizes), 1)))
    return count if count >= _FEWEST else 0


def descended(chain: Scaled, start: Multipliers, count: int) -> Multipliers:
    """The best multipliers seen in so many steps of Adam from `start`; hints.

    Args:
        chain: The scaled chain.
        start: Admissible multipliers.
        count: Steps.
    """
    layers = _logarithms(chain, start)
    free = [value for layer in layers if layer is not None for value in (layer.log_k, layer.f)]
    if not free:
        return start
    best, kept = inf, start
    with torch.enable_grad():
        for value in free:
            value.requires_grad_()
        moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in free]
        for step in range(count):
            square, multipliers = _evaluate(chain, layers)
            value = float(square.detach())
            if not 0 < value < inf:
                break
            if value < best:
                best, kept = value, multipliers
            slopes = torch.autograd.grad(square.log(), free)
            _adam(free, slopes, moments, step, _RATE * (1 - step / count))
    return kept


@torch.no_grad()
def _adam(
    free: list[Tensor],
    slopes: tuple[Tensor, ...],
    moments: list[tuple[Tensor, Tensor]],
    step: int,
    rate: float,
) -> None:
    """One step of Adam; the one of `torch.optim` takes seconds to import."""
    for value, g, (mean, square) in zip(free, slopes, moments, strict=True):
        mean.lerp_(g, 1 - _BETAS[0])
        square.lerp_(g * g, 1 - _BETAS[1])
        scale = (square / (1 - _BETAS[1] ** (step + 1))).sqrt() + 1e-12
        value.sub_(rate / (1 - _BETAS[0] ** (step + 1)) * mean / scale)


@final
class _Layer:
    """``log k`` on the open components, or one number for all, and ``f``."""

    def __init__(self, log_k: Tensor, f: Tensor) -> None:
        self.log_k, self.f = log_k.detach().clone(), f.detach().clone()


def _logarithms(chain: Scaled, start: Multipliers) -> list[_Layer | None]:
    here = torch.ones(chain.size, dtype=torch.float64)
    found: list[_Layer | None] = []
    for step, D in zip(chain.steps, start, strict=True):
        layer = None
        if isinstance(step, Slope) and D is not None:
            _, r, _ = middle_radius(step)
            open_ = r > 0
            k = D[open_].sqrt() / r[open_]
            if step.tied:
                k = k.amax(0, keepdim=True)
            top = top_eigenvalue(_divided(here, open_, k))
            layer = _Layer(k.log(), (1 / top - 1).clamp(min=1e-6, max=1e6).log())
        here = advance(here, step, D)
        found.append(layer)
    return found


def _evaluate(chain: Scaled, layers: list[_Layer | None]) -> tuple[Tensor, Multipliers]:
    here = torch.ones(chain.size, dtype=torch.float64)
    found: list[Tensor | None] = []
    for step, layer in zip(chain.steps, layers, strict=True):
        own = None
        if layer is not None and isinstance(step, Slope):
            _, r, _ = middle_radius(step)
            open_ = r > 0
            k = layer.log_k.exp()
            top = top_eigenvalue(_divided(here, open_, k))
            d = (1 + layer.f.exp()) * top * (r[open_] * k).square()
            own = torch.zeros_like(r).masked_scatter(open_, d)
        here = advance(here, step, own)
        found.append(None if own is None else own.detach())
    return largest(here), tuple(found)


def _divided(P: Tensor, open_: Tensor, k: Tensor) -> Tensor:
    """``[k]^-1 P [k]^-1`` on the open components."""
    Q = torch.diag(P[open_]) if P.ndim == 1 else P[open_][:, open_]
    return Q / (k[:, None] * k)
