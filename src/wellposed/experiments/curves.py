"""Accuracy against perturbation: noise, inversion, FGSM, PGD, and what is certified below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, final

import torch
from torch import Tensor, nn

from wellposed.attacks.corruptions import Corruption, Inversion, UniformNoise
from wellposed.attacks.exact import believable, exact_layers, margins
from wellposed.attacks.gradient import FGSM, PGD, AttackResult
from wellposed.errors import AuditError

BATCH = 500


@final
@dataclass(frozen=True, eq=False)
class Sample:
    """Images in [0, 1] and labels that every curve of a run is drawn on."""

    x: Tensor
    y: Tensor

    def batches(self) -> Iterator[slice]:
        """Slices of at most `BATCH` images."""
        for first in range(0, len(self.y), BATCH):
            yield slice(first, first + BATCH)


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """Which samples are classified rightly at each radius.

    Args:
        norm: Norm of the radii, ``"max"`` or ``"2"``.
        what: One sentence for a reader.
        eps: Radii in pixel units.
        correct: Share of draws that are right, float of shape (radii, samples).
        unsolved: Samples with a solve that failed, a radius.
        draws: Random draws a sample.
    """

    norm: str
    what: str
    eps: Sequence[float]
    correct: Tensor
    unsolved: Sequence[int]
    draws: int = 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `spread` is the standard error over samples of the accuracy."""
        accuracy = self.correct.mean(1)
        spread = self.correct.std(1, correction=0) / sqrt(max(self.correct.shape[1], 1))
        return {
            "norm": self.norm,
            "what": self.what,
            "eps": list(self.eps),
            "accuracy": rounded(accuracy),
            "spread": rounded(spread),
            "samples": self.correct.shape[1],
            "draws": self.draws,
            "unsolved": list(self.unsolved),
        }


def rounded(values: Tensor) -> list[float]:
    """Numbers for JSON, to six digits."""
    return [float(f"{v:.6g}") for v in values.double().tolist()]


def clean_margins(model: nn.Module, sample: Sample) -> Tensor:
    """Margins of the images themselves, NaN where a solve failed."""
    found: list[Tensor] = []
    with exact_layers(model) as solves, torch.no_grad():
        for part in sample.batches():
            solves.clear()
            out = model(sample.x[part])
            margin = margins(out, sample.y[part])
            found.append(torch.where(believable(out, solves), margin, torch.nan))
    return torch.cat(found)


def corruption_curve(
    model: nn.Module,
    sample: Sample,
    kind: type[Corruption],
    eps: Sequence[float],
    *,
    generator: torch.Generator,
    draws: int = 1,
) -> Curve:
    """Accuracy on corrupted images: an average case, not a worst case.

    Args:
        model: Takes pixels in [0, 1], returns logits.
        sample: Images and labels.
        kind: `UniformNoise` or `Inversion`.
        eps: Amplitudes, in [0, 1].
        generator: Source of randomness.
        draws: Draws a sample and amplitude.
    """
    rows: list[Tensor] = []
    unsolved: list[int] = []
    for radius in eps:
        corruption = kind(radius)
        right, failed = torch.zeros(len(sample.y)), 0
        for _ in range(draws):
            margin = clean_margins(model, Sample(corruption.apply(sample.x, generator), sample.y))
            right += (margin > 0).float() / draws
            failed += int(margin.isnan().sum())
        rows.append(right)
        unsolved.append(failed)
    return Curve("max", _WORDS[kind], tuple(eps), torch.stack(rows), unsolved, draws)


_WORDS: dict[type[Corruption], str] = {
    UniformNoise: "Independent uniform noise in [-eps, eps] on every pixel.",
    Inversion: "The image fades into its negative: x + eps (1 - 2 x).",
}


def attack(
    model: nn.Module,
    sample: Sample,
    method: FGSM | PGD,
    generator: torch.Generator,
    starts: Sequence[AttackResult] = (),
) -> AttackResult:
    """An attack in batches; PGD goes on from the worst of the results `starts`."""
    found: list[AttackResult] = []
    for part in sample.batches():
        x, y = sample.x[part], sample.y[part]
        if isinstance(method, FGSM):
            found.append(method.attack(model, x, y, generator))
        else:
            start = _worst([(s.inputs[part], s.margin[part]) for s in starts])
            found.append(method.attack(model, x, y, generator, start))
    columns = ("inputs", "margin", "success", "unsolved")
    return AttackResult(*(torch.cat([getattr(f, name) for f in found]) for name in columns))


def _worst(points: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    if not points:
        return None
    inputs, margin = points[0]
    for other, theirs in points[1:]:
        lower = theirs < margin
        inputs = torch.where(lower.reshape(-1, *[1] * (inputs.ndim - 1)), other, inputs)
        margin = torch.where(lower, theirs, margin)
    return inputs


def gradient_curves(
    model: nn.Module,
    sample: Sample,
    eps: Sequence[float],
    *,
    generator: torch.Generator,
    steps: int = 20,
    restarts: int = 1,
) -> tuple[Curve, Curve]:
    """FGSM and PGD in the max norm.

    PGD starts from the worse of the FGSM point and its own result for the radius before, so its
    accuracy is nowhere above FGSM's and never rises with the radius.
    """
    fast: list[AttackResult] = []
    slow: list[AttackResult] = []
    for radius in eps:
        fast.append(attack(model, sample, FGSM(radius), generator))
        method = PGD("max", radius, steps, restarts=restarts)
        slow.append(attack(model, sample, method, generator, (*slow[-1:], fast[-1])))
    words = f"{steps} projected gradient steps on the margin, {restarts} start(s), exact gradients."
    return (
        _curve("max", "One step along the sign of the loss gradient.", eps, fast),
        _curve("max", words, eps, slow),
    )


def two_norm_curve(
    model: nn.Module,
    sample: Sample,
    eps: Sequence[float],
    *,
    generator: torch.Generator,
    steps: int = 20,
    restarts: int = 1,
) -> Curve:
    """PGD in the 2-norm; radii are Euclidean lengths of the whole perturbation."""
    found: list[AttackResult] = []
    for radius in eps:
        method = PGD("2", radius, steps, restarts=restarts)
        found.append(attack(model, sample, method, generator, found[-1:]))
    words = f"{steps} projected gradient steps in the 2-norm, {restarts} start(s)."
    return _curve("2", words, eps, found)


def _curve(norm: str, what: str, eps: Sequence[float], found: list[AttackResult]) -> Curve:
    correct = torch.stack([result.correct.float() for result in found])
    return Curve(norm, what, tuple(eps), correct, [int(f.unsolved.sum()) for f in found])


def certified_curve(radii: Tensor, points: int = 60) -> dict[str, Any]:
    """Share of samples with a certified radius above eps, on a grid that follows the radii.

    Args:
        radii: Certified radii of the samples in the max norm, 0 where nothing is certified.
        points: Length of the grid.
    """
    positive = radii[radii > 0].double()
    grid = torch.zeros(1, dtype=torch.float64)
    if len(positive):
        top, low = float(positive.max()), float(positive.quantile(0.005))
        fine = torch.logspace(0, 1, points - 1, base=max(top / max(low, 1e-12), 1.0))
        grid = torch.cat([grid, low * fine.double()]).unique()
    grid = torch.tensor(rounded(grid), dtype=torch.float64)
    accuracy = (radii[None].double() > grid[:, None]).double().mean(1)
    return {
        "norm": "max",
        "eps": rounded(grid),
        "accuracy": rounded(accuracy),
        "samples": len(radii),
        "median_radius": float(radii.median()) if len(radii) else 0.0,
    }


def certified_at(radii: Tensor, eps: Sequence[float]) -> dict[str, Any]:
    """Share of samples with a certified radius above each of those given, in the 2-norm.

    Args:
        radii: Certified radii of the samples, 0 where nothing is certified.
        eps: Radii in pixel units.
    """
    grid = torch.tensor(list(eps), dtype=torch.float64)
    return {
        "norm": "2",
        "eps": list(eps),
        "accuracy": rounded((radii[None].double() > grid[:, None]).double().mean(1)),
        "samples": len(radii),
        "median_radius": float(radii.median()) if len(radii) else 0.0,
    }


def audit(radii: Tensor, curves: dict[str, Curve], norm: str = "max") -> int:
    """Compare certified radii with every attack and corruption, sample by sample.

    Args:
        radii: Certified radii of the samples that the curves are of.
        curves: Attacks by name.
        norm: In which the radii are; curves in other norms are passed over.

    Returns:
        How many comparisons were made.

    Raises:
        AuditError: A sample errs within its certified radius: the certificate is wrong.
    """
    made = 0
    for name, curve in curves.items():
        if curve.norm != norm:
            continue
        for radius, right, failed in zip(curve.eps, curve.correct, curve.unsolved, strict=True):
            covered = radii > radius
            made += int(covered.sum())
            broken = int((covered & (right < 1)).sum())
            if broken > failed:
                raise AuditError(
                    f"{broken} samples certified beyond {radius:g} are misclassified under "
                    f"{name} of that amplitude; at most {failed} of them are failed solves.",
                    hint="a certificate or the network it was made for is wrong; report this.",
                )
    return made
