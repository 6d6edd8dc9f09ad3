"""Attacks and corruptions: inputs on which a network errs, and how far it takes to find them."""

from wellposed.attacks.corruptions import Corruption, GaussianNoise, Inversion, UniformNoise
from wellposed.attacks.gradient import FGSM, PGD, AttackResult
from wellposed.attacks.sphere import SpherePGD

__all__ = [
    "FGSM",
    "PGD",
    "AttackResult",
    "Corruption",
    "GaussianNoise",
    "Inversion",
    "SpherePGD",
    "UniformNoise",
]
