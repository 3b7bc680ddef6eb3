"""What an experiment's `load` gives before its rows are read, and how large that is: so that a large table never comes here."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.data import DataContext, Loaded
from toolkit.core.experiment import Experiment
from toolkit.core.recipes import FILE_MODULE
from toolkit.core.secrets import without_secrets
from toolkit.engines import tables
from toolkit.engines.table_samples import parquet_dataset


@dataclass(frozen=True)
class TableSource:
    """A table that is not read yet: `table` is anything that `Dataset.load` may return, and no `Loaded`. `location` is without secrets."""

    table: Any
    kind: str
    location: str

    @property
    def is_spark(self) -> bool:
        """A Spark frame, or the name of a table, which only a session knows."""
        return self.is_frame or (isinstance(self.table, str | Path) and tables.is_table_name(self.table))

    @property
    def is_frame(self) -> bool:
        return type(self.table).__module__.startswith("pyspark.sql.")

    @property
    def path(self) -> Path | None:
        """Of a Parquet file or folder, or a Delta folder."""
        if not isinstance(self.table, str | Path) or self.is_spark:
            return None
        path = Path(self.table).expanduser().absolute()
        return path if self.is_delta or parquet_dataset(path) is not None else None

    @property
    def is_delta(self) -> bool:
        return isinstance(self.table, str | Path) and (Path(self.table).expanduser() / "_delta_log").is_dir()

    def size(self) -> tuple[int, int] | None:
        """Rows and columns, from Parquet's and Delta's own books; None for what they do not tell, or what is in memory already."""
        path = self.path
        dataset = None if path is None else parquet_dataset(path)
        return None if dataset is None else (dataset.count_rows(), len(dataset.schema))

    def hidden_columns(self, wanted: Collection[str]) -> list[str]:
        """Columns that are an index of pandas, which Parquet has kept, and no columns for pandas again; but for those that are wanted."""
        path = self.path
        dataset = None if path is None or self.is_delta else parquet_dataset(path)
        kept = (dataset.schema.pandas_metadata or {}).get("index_columns", []) if dataset is not None else []
        return [name for name in kept if isinstance(name, str) and name not in wanted]

    def fetch(self, experiment: Experiment, context: DataContext) -> tables.Fetched:
        """Read it, as `tables.fetch` does.

        Raises:
            DataError: it cannot be read.
        """
        loaded = Loaded(self.table, self.kind, self.location)
        dataset = dataclasses.replace(experiment.dataset, load=lambda: loaded)
        return tables.fetch(dataclasses.replace(experiment, dataset=dataset), dataclasses.replace(context, data=None))


def find(experiment: Experiment, context: DataContext) -> TableSource:
    """Call the load function, where there is one.

    Raises:
        DataError: it fails; there is no such file, folder or table.
    """
    load = experiment.dataset.load
    if not callable(load):
        table: Any = context.data or load
        is_table = tables.is_table_name(table)
        if not is_table and not Path(table).expanduser().exists():
            tables.read_table(table)  # which says so
        return TableSource(table, "table" if is_table else "file", without_secrets(str(table)))
    result = tables.call_load(load, context, "dataset.load")
    if isinstance(result, Loaded):
        return TableSource(result.table, result.kind, without_secrets(result.location))
    name = getattr(load, "__qualname__", type(load).__name__)
    return TableSource(result, "function", f"{load.__module__.removeprefix(FILE_MODULE)}:{name}")
