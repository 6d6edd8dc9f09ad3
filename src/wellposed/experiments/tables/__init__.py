"""Experiments on tables: monotone networks whose order is proved, by a protocol that looks once."""

from wellposed.experiments.tables.config import TableConfig, load_table_config
from wellposed.experiments.tables.workspace import TableWorkspace

__all__ = ["TableConfig", "TableWorkspace", "load_table_config"]
