"""The size of the Jacobian at the equilibria of a network, as a differentiable penalty."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from wellposed.core.maps import Map
from wellposed.errors import ConfigError
from wellposed.gradients.base import steady_precision
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.hooks import watching


@final
@dataclass(frozen=True, eq=False)
class Visit:
    """One pass through an equilibrium layer.

    Args:
        layer: The layer.
        inputs: What it was given, on the tape.
        state: What it returned, on the tape.
    """

    layer: Equilibrium
    inputs: Tensor
    state: Tensor

    def map(self) -> Map:
        """The map that the layer's solver iterates, bound to the inputs anew, on the tape."""
        return self.layer.solver.prepare(self.layer.cell.bind(self.inputs))


@contextmanager
def visited(model: nn.Module) -> Generator[list[Visit]]:
    """Inside this block every pass through an equilibrium layer of `model` is kept.

    ::

        with visited(model) as visits:
            logits = model(x)
        loss = task(logits) + 0.5 * jacobian_penalty(visits)
    """
    visits: list[Visit] = []

    def note(layer: Equilibrium, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        visits.append(Visit(layer, inputs[0], output))

    with watching(model, note):
        yield visits


def jacobian_penalty(
    visits: Sequence[Visit], *, probes: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """The mean over the visits of ``||J||_F^2 / n`` at the equilibrium, estimated [1].

    ``J`` is the Jacobian of the map that the layer's solver iterates, n the length of a state.
    The gradient is exact: it flows to the parameters directly and through the equilibrium itself,
    by the layer's own gradient (the published code holds the equilibrium fixed).

    Args:
        visits: Of a pass on the tape (`visited`).
        probes: Random vectors a sample.
        generator: Of the vectors.

    Raises:
        ConfigError: There is no visit.

    References:
        [1] Bai, Koltun, Kolter. Stabilizing equilibrium models by Jacobian regularization. ICML
        2021. arXiv 2106.14342.
    """
    if not visits:
        raise ConfigError(
            "No equilibrium layer was passed through, so there is no Jacobian to penalise.",
            hint="run the model inside `with visited(model) as visits:`.",
        )
    terms = [
        squared_jacobian(v.map(), v.state, probes=probes, generator=generator).mean()
        for v in visits
    ]
    return torch.stack(terms).mean()


def squared_jacobian(
    map_: Map, z: Tensor, *, probes: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Hutchinson's unbiased estimate of ``||J||_F^2 / n`` for each sample, on the tape.

    ``||J||_F^2 = E ||J^T e||^2`` for vectors ``e`` of independent signs; one probe has variance
    ``2 (||J J^T||_F^2 - sum_i (J J^T)_ii^2)``, less than that of normal numbers.

    Args:
        map_: ``f``, with its tensors on the tape.
        z: States at which ``J = df/dz`` is taken; on the tape if the gradient shall reach what
            they depend on.
        probes: Signs drawn a sample; the mean is returned.
        generator: Of the signs.

    Returns:
        Shape (batch,).

    Raises:
        ConfigError: `probes` is not positive.
    """
    if probes < 1:
        raise ConfigError(f"`probes` must be at least 1, got {probes}.")
    if not torch.is_grad_enabled():
        with torch.enable_grad():
            return squared_jacobian(map_, z.detach(), probes=probes, generator=generator).detach()
    if not z.requires_grad:
        z = z.detach().requires_grad_()
    with steady_precision(map_):
        fz = map_(z)
    total = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    if not fz.requires_grad:
        return total
    for _ in range(probes):
        signs = torch.randint(0, 2, fz.shape, generator=generator, dtype=torch.int8)
        e = (2 * signs - 1).to(fz)
        (row,) = torch.autograd.grad(
            fz, z, e, create_graph=True, retain_graph=True, materialize_grads=True
        )
        total = total + row.flatten(1).square().sum(1).to(total.dtype)
    return total / (probes * max(z[0].numel() if len(z) else 1, 1))
