"""Experiments: a TOML file in, a run folder with weights, proofs, attacks and a report out."""

from wellposed.experiments.config import Config, load, parse
from wellposed.experiments.models import build_model
from wellposed.experiments.workspace import Workspace

__all__ = ["Config", "Workspace", "build_model", "load", "parse"]
