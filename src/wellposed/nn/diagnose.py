"""`diagnose`: how good a layer's solves and its gradient are, against an exact reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import nan
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.core.maps import Map
from wellposed.core.records import Record
from wellposed.errors import ConfigError, NonConvergenceWarning
from wellposed.gradients.firstorder import transposed_of
from wellposed.gradients.implicit import Implicit
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.jacobian import Visit, visited
from wellposed.solvers.arnoldi import spectral_radius
from wellposed.solvers.base import Solution, Status, Stopping
from wellposed.solvers.krylov import GMRES

_EXACT = Stopping(rtol=1e-12, atol=1e-14, max_evaluations=5000)


@final
@dataclass(frozen=True)
class Diagnosis(Record):
    """What was measured of one equilibrium layer on a batch; estimates, no certificates.

    Args:
        layer: Name of the module.
        gradient: The gradient that was judged.
        status: How each sample's solve ended.
        evaluations: Of the map, a sample.
        residual: ``rms(f(z) - z)``, a sample.
        error: ``rms(z - z*)`` against the reference in float64, a sample.
        cosine: Of the parameter gradient with the exact implicit one, a sample; 1 is exact.
        relative_error: ``||used - exact|| / ||exact||`` of the same, a sample.
        batch_cosine: Of the gradients summed over the batch, which training sees.
        batch_relative_error: Of the same.
        spectral_radius: Of the Jacobian of the iterated map at the equilibrium, a sample, by
            Arnoldi's method.
        spectral_residual: Of the Ritz pair behind it.
        adjoint_evaluations: Vector-Jacobian products of the used gradient's adjoint solve, a
            sample; empty if it solves no equation.
        adjoint_residual: Of that equation, a sample; empty likewise.
        reference_residual: Largest residual of the reference's two solves.
    """

    layer: str
    gradient: str
    status: tuple[str, ...]
    evaluations: tuple[int, ...]
    residual: tuple[float, ...]
    error: tuple[float, ...]
    cosine: tuple[float, ...]
    relative_error: tuple[float, ...]
    batch_cosine: float
    batch_relative_error: float
    spectral_radius: tuple[float, ...]
    spectral_residual: tuple[float, ...]
    adjoint_evaluations: tuple[int, ...]
    adjoint_residual: tuple[float, ...]
    reference_residual: float

    @override
    def __str__(self) -> str:
        head = f"{self.layer or 'layer'}: {self.gradient}"
        total = (
            f"whole batch: cosine {self.batch_cosine:.6f}, relative error "
            f"{self.batch_relative_error:.3g}; reference solved to {self.reference_residual:.1e}"
        )
        titles = ("sample", "status", "evals", "residual", "error", "cosine", "rel. error",
                  "rho(J)", "+-", "adj. evals", "adj. residual")  # fmt: skip
        rows: list[tuple[str, ...]] = [titles]
        for i, status in enumerate(self.status):
            adjoint = ("-", "-")
            if self.adjoint_evaluations:
                adjoint = (str(self.adjoint_evaluations[i]), f"{self.adjoint_residual[i]:.1e}")
            rows.append(
                (
                    str(i),
                    status,
                    str(self.evaluations[i]),
                    f"{self.residual[i]:.1e}",
                    f"{self.error[i]:.1e}",
                    f"{self.cosine[i]:.4f}",
                    f"{self.relative_error[i]:.2g}",
                    f"{self.spectral_radius[i]:.4f}",
                    f"{self.spectral_residual[i]:.0e}",
                    *adjoint,
                )
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(titles))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([head, *lines, total])


def diagnose(
    model: nn.Module,
    x: Tensor,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> tuple[Diagnosis, ...]:
    """Judge every equilibrium layer of a model on a batch, in the mode in which the model is.

    Each layer is solved as the model solves it, and once more in float64 to 1e-12 with the implicit
    gradient. Gradients are those of the layer's parameters (of its inputs, if it has none), for
    the cotangent that reaches the layer. Costs a backward pass a sample; a batch of 8 to 32 tells
    enough. Nothing of the model is changed.

    Args:
        model: An `Equilibrium`, or a model that contains some.
        x: A batch of inputs of the model.
        loss: From the model's output to a scalar; by default the inner product with a fixed random
            vector.
        seed: Of that vector and of the first Krylov vector.

    Returns:
        One record for each pass through a layer; `print` shows it as a table.

    Raises:
        ConfigError: The model has no equilibrium layer, or the loss does not depend on it.
    """
    # failures are what the record tells
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NonConvergenceWarning)
        return _diagnose(model, x, loss, seed)


def _diagnose(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor] | None, seed: int
) -> tuple[Diagnosis, ...]:
    names = {module: name for name, module in model.named_modules()}
    with visited(model) as visits:
        y = model(x)
    if not visits:
        raise ConfigError(
            f"{type(model).__name__} has no `Equilibrium` layer to diagnose.",
            hint="pass the layer itself, or a model that contains one.",
        )
    if loss is None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(y.shape, generator=generator).to(y)
        total = (y * weight).sum()
    else:
        total = loss(y)
    states = [visit.state for visit in visits]
    wanted = [state for state in states if state.requires_grad]
    found = iter(torch.autograd.grad(total, wanted, allow_unused=True) if wanted else ())
    out: list[Diagnosis] = []
    for visit in visits:
        # torch declares no `None` here, but returns it for what the loss does not reach
        g = next(found) if visit.state.requires_grad else _random_like(visit.state, seed)
        if g is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigError(
                f"The loss does not depend on the layer `{names[visit.layer]}`.",
                hint="pass a `loss` that uses the whole output.",
            )
        out.append(_judge(names[visit.layer], visit, g.detach(), seed))
    return tuple(out)


def _judge(name: str, visit: Visit, g: Tensor, seed: int) -> Diagnosis:
    layer, x = visit.layer, visit.inputs.detach()
    exact_layer = _reference(layer)
    used, exact = _Pass(_quiet(layer), x), _Pass(exact_layer, x.double())
    ours, theirs = used.rows(g), exact.rows(g.double())
    a, b = ours.sum(0), theirs.sum(0)
    whole = (_cosine(a[None], b[None]), _error(a[None], b[None]))
    adjoint = used.adjoint(g)
    z = exact.solution.value.detach()
    leaf = z.clone().requires_grad_()
    fz = exact.iterated()(leaf)
    ritz = spectral_radius(transposed_of(fz, leaf), _random_like(z, seed))
    mine = used.solution
    gap = (mine.value.detach().double() - z).flatten(1).square().mean(1).sqrt()
    checks = [exact.solution.residual.max(), *(r.max() for r in exact.adjoint(g.double())[1:])]
    return Diagnosis(
        name,
        repr(layer.gradient),
        tuple(Status(int(code)).name.lower() for code in mine.status),
        tuple(int(n) for n in mine.evaluations),
        _floats(mine.residual),
        _floats(gap),
        _floats(_cosine(ours, theirs)),
        _floats(_error(ours, theirs)),
        float(whole[0]),
        float(whole[1]),
        _floats(ritz.value),
        _floats(ritz.residual),
        tuple(int(n) for n in adjoint[0]) if adjoint else (),
        _floats(adjoint[1]) if adjoint else (),
        max(float(c) for c in checks),
    )


@final
class _Pass:
    """One solve of a layer, and gradients of its parameters a sample."""

    def __init__(self, layer: Equilibrium, x: Tensor) -> None:
        wanted = [p for p in layer.parameters() if p.requires_grad]
        self._x = x.requires_grad_(not wanted)
        self._wanted: Sequence[Tensor] = wanted or [self._x]
        self._layer = layer
        self.solution: Solution = layer.solve(self._x)

    def iterated(self) -> Map:
        """The map that the solver iterated."""
        map_ = self.solution.map_
        assert map_ is not None  # a solve outside function transforms keeps it
        return map_.detach()

    def rows(self, g: Tensor) -> Tensor:
        """Gradients for the cotangent of each sample alone, float64, shape (batch, parameters)."""
        value, out = self.solution.value, list[Tensor]()
        for i in range(len(value)):
            grads = torch.autograd.grad(
                value[i], self._wanted, g[i], retain_graph=True, materialize_grads=True
            )
            out.append(torch.cat([part.flatten().double() for part in grads]))
        return torch.stack(out)

    def adjoint(self, g: Tensor) -> tuple[Tensor, Tensor] | tuple[()]:
        """Evaluations and residuals of the adjoint solve of the whole batch, if there is one."""
        torch.autograd.grad(
            self.solution.value, self._wanted, g, retain_graph=True, allow_unused=True
        )
        report = self.solution.adjoint
        if report is None or report.evaluations is None or report.residual is None:
            return ()
        return report.evaluations, report.residual


def _quiet(layer: Equilibrium) -> Equilibrium:
    """The same layer, sharing its parameters, that never raises."""
    twin = Equilibrium(
        layer.cell,
        solver=layer.solver,
        gradient=layer.gradient,
        stopping=layer.stopping,
        eval_stopping=layer.eval_stopping,
        on_failure="ignore",
    )
    # not `train`: that would reach into the cell, which is shared
    twin.training = layer.training
    return twin


def _reference(layer: Equilibrium) -> Equilibrium:
    """The layer in float64, solved exactly, with the implicit gradient."""
    twin = Equilibrium(
        deepcopy(layer.cell).double(),
        solver=layer.solver,
        gradient=Implicit(GMRES(), rtol=1e-12, max_evaluations=5000),
        stopping=_EXACT,
        eval_stopping=_EXACT,
        on_failure="ignore",
    )
    twin.training = layer.training
    return twin


def _random_like(z: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(z.shape, generator=generator).to(z)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return torch.where(size > 0, (a * b).sum(1) / size.clamp(min=1e-300), nan)


def _error(a: Tensor, b: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(b, dim=1)
    gap = torch.linalg.vector_norm(a - b, dim=1)
    return torch.where(size > 0, gap / size.clamp(min=1e-300), nan)


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
