"""Optimisers from a recipe, and their memory as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wellposed.errors import CheckpointError
from wellposed.training.recipe import Recipe


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe; decay spares vectors and scalars (biases, weights of norms)."""
    free = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # one kernel for all parameters: the step of a small network is otherwise mostly overhead
    match recipe.optimiser:
        case "adam":
            return torch.optim.Adam(groups, recipe.lr, recipe.betas, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, recipe.lr, recipe.betas, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, recipe.lr, recipe.momentum, fused=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The memory of an optimiser, as ``{"3.exp_avg": ...}``: parameter number and name."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, memory in state.items()
        for name, value in memory.items()
        if isinstance(value, Tensor)
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave.

    Raises:
        CheckpointError: The tensors are those of another optimiser or of other parameters.
    """
    content = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    shapes = [p.shape for group in optimiser.param_groups for p in group["params"]]
    for number, memory in state.items():
        wrong = [
            name
            for name, value in memory.items()
            if number >= len(shapes) or (value.ndim and value.shape != shapes[number])
        ]
        if wrong:
            raise CheckpointError(
                f"The optimiser's memory {wrong} of parameter {number} does not fit this model.",
                hint="resume with the configuration that the run was started with.",
            )
    optimiser.load_state_dict({"state": state, "param_groups": content["param_groups"]})
