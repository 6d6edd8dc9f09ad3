"""What a finished run measures: robustness curves, solver convergence and example images.

Every function takes the trained model and returns a dictionary of plain numbers for JSON; the
report draws them and computes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wellposed.attacks.corruptions import Inversion, UniformNoise
from wellposed.data.records import Split
from wellposed.errors import NotCertifiableError
from wellposed.experiments import curves
from wellposed.experiments.certified import RULE_2, certified_radii, certified_radii_2
from wellposed.experiments.convergence import BUDGET, TARGET, first_problem, histogram, race
from wellposed.experiments.gallery import chosen, describe
from wellposed.experiments.names import SOLVERS
from wellposed.solvers.base import Solver, first_iterate

FINE = (0.001, 0.002, 0.005, 0.01)
"""Radii at which Lipschitz certificates live; the gradient attacks are run there too."""
DRAWS = 3
RACE = 100
CORRUPTION_EPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


class AttackSettings(Protocol):
    """The section `attacks` of a configuration."""

    @property
    def eps(self) -> Sequence[float]:
        """Radii in pixel units, increasing."""
        ...

    @property
    def samples(self) -> int:
        """Test images."""
        ...

    @property
    def steps(self) -> int:
        """Of projected gradient descent."""
        ...

    @property
    def restarts(self) -> int:
        """Of projected gradient descent."""
        ...


def spread_out(split: Split, count: int) -> Tensor:
    """Positions of at most `count` images at even distances, the same in every run."""
    count = min(count, len(split))
    return torch.arange(count) * len(split) // max(count, 1)


def attack_curves(
    model: nn.Module,
    split: Split,
    config: AttackSettings,
    *,
    seed: int = 0,
    two_norm: Sequence[float] = (),
) -> dict[str, Any]:
    """Accuracy under noise, inversion, FGSM and PGD, and the certified curve below them.

    Args:
        model: Takes pixels in [0, 1], returns logits.
        split: Test images.
        config: Radii, samples, steps and restarts.
        seed: Of noise and random starts.
        two_norm: Radii of PGD and of certificates in the 2-norm, increasing; none by default.

    Raises:
        AuditError: An attack succeeds within a certified radius.
    """
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    part = split.take(spread_out(split, config.samples))
    sample = curves.Sample(part.floats(), part.labels)
    wide = sorted({0.0, *config.eps, *CORRUPTION_EPS})
    noise = [eps for eps in wide if eps <= 1]
    strict = sorted({0.0, *FINE, *config.eps})
    fgsm, pgd = curves.gradient_curves(
        model,
        sample,
        strict,
        generator=generator,
        steps=config.steps,
        restarts=config.restarts,
    )
    found = {
        "uniform-noise": curves.corruption_curve(
            model, sample, UniformNoise, noise, generator=generator, draws=DRAWS
        ),
        "inversion": curves.corruption_curve(model, sample, Inversion, noise, generator=generator),
        "fgsm": fgsm,
        "pgd": pgd,
    }
    if two_norm:
        found["pgd-2"] = curves.two_norm_curve(
            model,
            sample,
            two_norm,
            generator=generator,
            steps=config.steps,
            restarts=config.restarts,
        )
    margin = curves.clean_margins(model, sample)
    out: dict[str, Any] = {
        "samples": len(part),
        "steps": config.steps,
        "restarts": config.restarts,
        "seed": seed,
        "clean": float((margin > 0).double().mean()),
        "unsolved": int(margin.isnan().sum()),
        "curves": {name: curve.to_dict() for name, curve in found.items()},
        "certified": None,
        "comparisons": 0,
    }
    try:
        proof = certified_radii(model, sample.x, sample.y)
    except NotCertifiableError as error:
        out["not_certified"] = error.message
    else:
        out["comparisons"] = curves.audit(proof.radii, found)
        out["certified"] = curves.certified_curve(proof.radii)
        out["certified"] |= {"rule": proof.rule, "assumes": list(proof.assumes)}
    if two_norm and isinstance(model, nn.Sequential):
        try:
            radii = certified_radii_2(model, split.floats(), split.labels)
        except NotCertifiableError as error:
            out["not_certified_2"] = error.message
        else:
            # all images are certified, and those that were attacked are compared
            sampled = radii[spread_out(split, config.samples)]
            out["comparisons"] += curves.audit(sampled, found, norm="2")
            out["certified_2"] = curves.certified_at(radii, two_norm) | {"rule": RULE_2}
    out["cpu_seconds"] = round(time.process_time() - began, 2)
    return out


def solver_convergence(
    model: nn.Module, images: Tensor, solvers: Mapping[str, Solver] | None = None
) -> dict[str, Any]:
    """Residual against evaluations and CPU time of every solver on the first equilibrium layer.

    Args:
        model: The trained network.
        images: In [0, 1], shape (batch, ...); the first `RACE` race, all enter the histogram.
        solvers: Names and solvers; all that the library has by default.
    """
    found = first_problem(model, images)
    out: dict[str, Any] = {"target": TARGET, "budget": BUDGET, "solvers": {}, "histogram": None}
    if found is None:
        return {**out, "none": "this network has no equilibrium layer"}
    whole, evaluations = found
    few = first_problem(model, images[:RACE]) or found
    dtype = first_iterate(whole.map_, whole.start).dtype
    if solvers is None:
        solvers = {name: make() for name, make in SOLVERS.items()}
    return {
        **out,
        "samples": min(RACE, len(images)),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "solvers": race(few[0], solvers),
        "histogram": {
            **histogram(evaluations),
            "solver": type(whole.solver).__name__,
            "rtol": whole.stopping.tolerances(dtype)[0],
        },
    }


def examples(
    model: nn.Module,
    split: Split,
    *,
    count: int = 14,
    classes: Sequence[str] = (),
    seed: int = 0,
    pool: int = 1000,
) -> dict[str, Any]:
    """Example images with predictions, certified facts and the smallest attack that was found.

    Args:
        model: Takes pixels in [0, 1], returns logits.
        split: Test images.
        count: How many: one of each class as far as they go, the rest the hardest of `pool`.
        classes: Names of the classes; their numbers by default.
        seed: Of the attack.
        pool: Candidates, at even distances in the split.
    """
    places = spread_out(split, pool)
    part = split.take(places)
    margin = curves.clean_margins(model, curves.Sample(part.floats(), part.labels))
    rows = chosen(margin, part.labels, count)
    x, y = part.floats()[rows], part.labels[rows]
    found = describe(model, x, y, torch.Generator().manual_seed(seed))
    for record, row in zip(found, rows.tolist(), strict=True):
        record["index"] = int(places[row])
    return {"norm": "max", "classes": list(classes), "candidates": len(part), "examples": found}
