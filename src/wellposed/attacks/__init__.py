"""Attacks and corruptions: inputs on which a network errs, and how far it takes to find them."""

from wellposed.attacks.corruptions import Corruption, Inversion, UniformNoise
from wellposed.attacks.gradient import FGSM, PGD, AttackResult

__all__ = ["FGSM", "PGD", "AttackResult", "Corruption", "Inversion", "UniformNoise"]
