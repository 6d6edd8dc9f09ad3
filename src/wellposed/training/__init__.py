"""Training: one visible loop, checkpoints that survive anything, metrics as JSON lines."""

from wellposed.training.checkpoint import load_weights, save_weights
from wellposed.training.data import Examples
from wellposed.training.evaluation import accuracy, predictions
from wellposed.training.interrupt import InterruptedRunError
from wellposed.training.loop import Penalty, fit
from wellposed.training.recipe import Recipe

__all__ = [
    "Examples",
    "InterruptedRunError",
    "Penalty",
    "Recipe",
    "accuracy",
    "fit",
    "load_weights",
    "predictions",
    "save_weights",
]
