"""Configurations: TOML, frozen models and command-line flags, with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

from pydantic import Field, model_validator

from wellposed.errors import ConfigError
from wellposed.experiments import families, parsing
from wellposed.experiments.families import Model
from wellposed.experiments.families.dense import Nemon
from wellposed.experiments.families.layer import Solve
from wellposed.experiments.parsing import checked, merge, read_toml
from wellposed.experiments.penalties import PenaltySection, PenaltyTerm
from wellposed.experiments.retention import check_teachers
from wellposed.experiments.robust import Plain, Robust
from wellposed.experiments.sections import Attacks, Certified, Data, Variant, Verified
from wellposed.experiments.toml import to_toml
from wellposed.training.recipe import Recipe
from wellposed.training.settings import Settings

_SHARED = ("model", "solve", "training", "penalty", "robust")


@final
class Config(Settings):
    """A whole experiment.

    Args:
        name: Of the run folder.
        seeds: One run each.
        threads: Of the processor; results are bit-identical only for the same number.
        data: The images.
        model: The network.
        solve: Its solver and gradient.
        training: The recipe.
        penalty: A term of the loss.
        robust: What is minimised instead of the clean cross entropy.
        certified: Radii that are certified on the test images.
        attacks: What the trained network is attacked with.
        verified: Which test images are verified after training.
        variants: Named overrides of `model`, `solve`, `training`, `penalty` and `robust`; each is
            trained. One that names another `kind` starts that section anew.
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    threads: int = Field(default=1, ge=1)
    data: Data = Data()
    model: Model = Nemon()
    solve: Solve = Solve()
    training: Recipe = Recipe()
    penalty: PenaltySection = PenaltyTerm()
    robust: Robust = Plain()
    certified: Certified = Certified()
    attacks: Attacks = Attacks()
    verified: Verified = Verified()
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _variants_are_valid(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"`seeds` must differ, got {self.seeds}.")
        check_teachers({name: v.penalty for name, v in self.resolved().items()})
        return self

    def resolved(self) -> dict[str, Variant]:
        """Every network to train, by name.

        Raises:
            ConfigError: An override is not valid.
        """
        base = {name: getattr(self, name).model_dump() for name in _SHARED}
        if not self.variants:
            return {families.kind(self.model): checked(Variant, base)}
        for name in self.variants:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ConfigError(
                    f"`variants.{name}` must be made of letters, digits, '-', '_' and '.': it "
                    "names a folder."
                )
        return {
            name: checked(Variant, merge(base, change), f"variants.{name}.")
            for name, change in self.variants.items()
        }

    def to_toml(self) -> str:
        """The configuration with every default written out."""
        return to_toml(self.model_dump(mode="json"))


def parse(content: Mapping[str, Any], source: str = "") -> Config:
    """A configuration from nested mappings.

    Args:
        content: As TOML gives it.
        source: Where it came from, for messages.

    Raises:
        ConfigError: A key is unknown or a value is not what was expected.
    """
    return checked(Config, content, source=source)


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a TOML file; the name of the file is the default name of the run.

    Args:
        path: Of the file.
        overrides: Nested mappings that win over the file.

    Raises:
        ConfigError: The file is absent, is not TOML, is about a table, or is not valid.
    """
    path = Path(path)
    content = read_toml(path)
    if "table" in content:
        raise ConfigError(
            f"`{path}` is an experiment on a table: it has a section `[table]`, and this command "
            "is for networks of images.",
            hint="`wellposed run CONFIG` trains and proves it, with `--resume` only what is "
            "missing; `wellposed report RUN` writes its page again.",
        )
    return parse(merge({"name": path.stem, **content}, overrides or {}), str(path))


def flags(tokens: Sequence[str]) -> dict[str, Any]:
    """Nested mappings from flags such as ``--training.epochs 3``, see `parsing.flags`.

    Raises:
        ConfigError: A token is not a flag, has no value, or its key is not known.
    """
    return parsing.flags(Config, tokens)


def keys() -> dict[str, str]:
    """Every key of a configuration with a description of what it takes."""
    return parsing.keys(Config)
