"""The configuration of an experiment on a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

from pydantic import Field, model_validator

from wellposed.data.tabular import TabularSet, load_table
from wellposed.errors import ConfigError
from wellposed.experiments import parsing
from wellposed.experiments.parsing import checked, merge, read_toml
from wellposed.experiments.tables.protocol import Protocol
from wellposed.experiments.toml import to_toml
from wellposed.training.settings import Settings
from wellposed.training.table_recipe import TableRecipe

SECTION = "table"
"""A file with this section is an experiment on a table."""


@final
class TableSection(Settings):
    """Which table.

    Args:
        name: Of the table, see `wellposed.data.tabular.load_table`.
        folder: Where its files lie; the usual places by default.
        target_quantile: Rows with larger targets than this quantile are left out, and targets
            divided by it; all are kept by default.
    """

    name: str
    folder: str | None = None
    target_quantile: float | None = Field(default=None, gt=0, le=1)

    def load(self, seed: int) -> TabularSet:
        """The rows, split by `seed` where the table has no split of its own.

        Raises:
            ConfigError: No table has the name, or its targets have no such quantile.
            DataError: A file is absent, damaged or not the one expected.
        """
        table = load_table(self.name, self.folder, seed=seed)
        part = self.target_quantile
        return table if part is None else table.small_targets(part)


@final
class TableConfig(Settings):
    """A whole experiment on a table.

    Args:
        name: Of the run folder.
        seeds: One network each; where the table has no test part of its own, also of the split.
        threads: Of the processor; results are bit-identical only for the same number.
        table: The rows.
        protocol: How recipe and epoch are chosen, and what is trained then.
        recipes: To choose from.
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    threads: int = Field(default=1, ge=1)
    table: TableSection
    protocol: Protocol = Protocol()
    recipes: tuple[TableRecipe, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"`seeds` must differ and not be negative, got {self.seeds}.")
        for k, recipe in enumerate(self.recipes):
            if recipe.epochs < self.protocol.look:
                raise ConfigError(
                    f"`recipes[{k}].epochs` is {recipe.epochs}, expected at least `protocol.look` "
                    f"= {self.protocol.look}: nobody would look at the held-out rows."
                )
        return self

    def to_toml(self) -> str:
        """The configuration with every default written out."""
        return to_toml(self.model_dump(mode="json"))


def is_table_file(path: Path | str) -> bool:
    """Whether a TOML file has the section `[table]`.

    Raises:
        ConfigError: It is absent or is not TOML.
    """
    return SECTION in read_toml(Path(path))


def load_table_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> TableConfig:
    """Read a TOML file; the name of the file is the default name of the run.

    Args:
        path: Of the file.
        overrides: Nested mappings that win over the file.

    Raises:
        ConfigError: The file is absent, is not TOML, or is not the configuration of a table.
    """
    path = Path(path)
    content = {"name": path.stem, **read_toml(path)}
    return checked(TableConfig, merge(content, overrides or {}), source=str(path))


def flags(tokens: Sequence[str]) -> dict[str, Any]:
    """Nested mappings from flags such as ``--protocol.folds 3``, see `parsing.flags`.

    Raises:
        ConfigError: A token is not a flag, has no value, or its key is not known.
    """
    return parsing.flags(TableConfig, tokens)
