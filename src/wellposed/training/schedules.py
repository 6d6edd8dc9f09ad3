"""Learning rates as functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

from math import cos, pi

from wellposed.training.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of one step.

    With ``t`` the part of the run that is done after the warm-up, cosine is
    ``f + (1 - f) (1 + cos(pi t)) / 2`` times `lr`, where ``f`` is `final_lr`.

    Args:
        recipe: Names the schedule.
        step: Number of the step, from 0.
        steps: Steps of the whole run.
        steps_per_epoch: Steps of one epoch.
    """
    rising = recipe.warm_up * steps
    cycle = recipe.schedule == "one-cycle"
    if step < rising:
        part = (step + 1) / (rising + 1)
        return recipe.lr * ((1 - cos(pi * part)) / 2 if cycle else part)
    match recipe.schedule:
        case "constant":
            return recipe.lr
        case "step":
            return recipe.lr * recipe.step_factor ** (step // (steps_per_epoch * recipe.step_every))
        case "cosine" | "one-cycle":
            done = (step - rising) / max(steps - rising, 1)
            low = recipe.final_lr
            return recipe.lr * (low + (1 - low) * (1 + cos(pi * done)) / 2)
