"""Example images: what the network says, what is proved about it, and what it takes to fool it."""

from __future__ import annotations

import base64
from io import BytesIO
from math import inf
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from wellposed.attacks.exact import exact_layers, margins
from wellposed.attacks.gradient import PGD
from wellposed.errors import NotCertifiableError
from wellposed.experiments.certified import Proof, certified_radii

GROWTH = 1.35
SMALLEST, LARGEST = 0.004, 0.6


def picture(pixels: Tensor) -> str:
    """An image in [0, 1] of shape (channels, height, width) as a PNG data URI."""
    levels = (pixels.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    array = levels[0] if len(levels) == 1 else levels.permute(1, 2, 0)
    memory = BytesIO()
    Image.fromarray(array.numpy()).save(memory, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


def perturbation_picture(change: Tensor) -> str:
    """A change as a PNG data URI: orange where brighter, blue where darker, white where equal.

    The largest change has the full colour; channels are averaged.
    """
    level = change.detach().mean(0)
    level = level / level.abs().amax().clamp(min=1e-12)
    up = torch.tensor([0.835, 0.369, 0.0])[:, None, None]
    down = torch.tensor([0.0, 0.447, 0.698])[:, None, None]
    shade = torch.where(level >= 0, up, down)
    return picture(1 - level.abs() * (1 - shade))


def chosen(margin: Tensor, y: Tensor, count: int) -> Tensor:
    """Positions of examples: the first right one of each class, then wrong and narrow ones.

    Args:
        margin: Of every candidate.
        y: Labels.
        count: How many.
    """
    firsts = [
        int(((y == label) & (margin > 0)).nonzero()[0, 0])
        for label in y.unique().tolist()
        if bool(((y == label) & (margin > 0)).any())
    ]
    order = [i for i in margin.nan_to_num(-inf).argsort().tolist() if i not in firsts]
    wrong = [i for i in order if not float(margin[i]) > 0]
    narrow = [i for i in order if float(margin[i]) > 0]
    firsts = firsts[: max(count - 4, 1)]
    rest = count - len(firsts)
    wrong = wrong[: rest // 2]
    return torch.tensor([*firsts, *wrong, *narrow][:count], dtype=torch.long)


def fooled(
    model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, steps: int = 30
) -> tuple[Tensor, Tensor]:
    """The smallest radius on a geometric grid at which PGD fools the network, and the point.

    Returns:
        Max-norm distances (infinite where no attack up to `LARGEST` worked) and the images.
    """
    best, distance = x.clone(), torch.full((len(x),), torch.inf)
    start, eps = x, SMALLEST
    while eps <= LARGEST and bool(distance.isinf().any()):
        result = PGD("max", eps, steps, random_start=False).attack(model, x, y, generator, start)
        new = result.success & distance.isinf()
        best[new] = result.inputs[new]
        distance[new] = (result.inputs - x)[new].flatten(1).abs().amax(1)
        start, eps = result.inputs, eps * GROWTH
    return best, distance


def describe(
    model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
) -> list[dict[str, Any]]:
    """One record an image."""
    with exact_layers(model) as solves, torch.no_grad():
        logits = model(x)
        evaluations = solves.evaluations(len(x))
        error = solves.error_bound(len(x))
        worst, distance = fooled(model, x, y, generator)
        adversarial = model(worst)
    proof = _proof(model, x, y)
    share = logits.softmax(1)
    margin = margins(logits, y)
    out: list[dict[str, Any]] = []
    for i in range(len(x)):
        top = share[i].argsort(descending=True)[:3]
        found = 0 < float(distance[i]) < inf  # at 0 the image itself is misclassified
        out.append(
            {
                "label": int(y[i]),
                "prediction": int(logits[i].argmax()),
                "probabilities": [[int(k), _short(share[i, k])] for k in top],
                "margin": _short(margin[i]),
                "evaluations": int(evaluations[i]),
                "certified_radius": None if proof is None else float(proof.radii[i]),
                "state_error": float(error[i])
                if solves.solutions and float(error[i]) < inf
                else None,
                "image": picture(x[i]),
                "adversarial": {
                    "distance": _short(distance[i]),
                    "prediction": int(adversarial[i].argmax()),
                    "probability": _short(adversarial[i].softmax(0).amax()),
                    "image": picture(worst[i]),
                    "change": perturbation_picture(worst[i] - x[i]),
                }
                if found
                else None,
            }
        )
    return out


def _proof(model: nn.Module, x: Tensor, y: Tensor) -> Proof | None:
    try:
        return certified_radii(model, x, y)
    except NotCertifiableError:
        return None


def _short(value: Tensor) -> float:
    return float(f"{float(value):.4g}")
