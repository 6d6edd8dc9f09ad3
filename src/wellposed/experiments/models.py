"""From a model section to a network that takes pixels in [0, 1]."""

from __future__ import annotations

import torch
from torch import nn

from wellposed.experiments import families
from wellposed.experiments.robust import Plain
from wellposed.experiments.sections import Variant
from wellposed.nn.normalise import Normalise
from wellposed.training.initialise import interval_initialise


def build_model(
    variant: Variant,
    *,
    shape: tuple[int, int, int],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int = 0,
) -> nn.Sequential:
    """The network of a variant, with the scaling of the pixels as its first layer.

    Args:
        variant: Model and solver sections.
        shape: Channels, height and width of an image.
        classes: Logits.
        mean: One a channel.
        std: One a channel.
        seed: Of the initial weights; the global random state is left as it was.

    Raises:
        ConfigError: The sizes do not go together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            Normalise(mean, std), *families.build(variant.model, variant.solve, shape, classes)
        )
        if not isinstance(variant.robust, Plain) and variant.robust.initialise:
            interval_initialise(model)
        return model


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
