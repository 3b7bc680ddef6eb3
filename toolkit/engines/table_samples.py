"""A look at a table before there is an experiment: small ones whole, of large ones rows from all over.

The first rows alone would not do: a table sorted by its label then has one class. Single columns can be read whole: what a file that is
written by `toolkit new` must get right (the label's values, a key that is unique) is never guessed from a sample.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from toolkit.core.errors import DataError
from toolkit.engines.csv_files import CsvFormat, csv_format, padded_columns, parse, sample_csv, tell
from toolkit.engines.tables import read_table

WHOLE_CSV_BYTES = 64 << 20
CSV_BLOCKS = 32
WHOLE_CELLS = 20_000_000
SAMPLE_ROWS = 100_000
ROW_GROUPS = 24


@dataclass(frozen=True)
class TableSample:
    """What was looked at.

    Attributes:
        frame: the rows, all columns. A pandas index that Parquet has kept is the column `index_name`.
        num_rows: of the whole table.
        kind: CSV, Parquet, Delta or table.
        csv: how the file is written, where it is CSV.
        padded: columns of a CSV file that are written in digits with leading zeros, and how many digits these are: then they are text in
            `frame`. None: not all rows have as many; then they are numbers.
        index_name: what the table's own index is called, where it has a name: no feature, but perhaps the key.
    """

    frame: pd.DataFrame
    num_rows: int
    kind: str
    csv: CsvFormat | None = None
    index_name: str | None = None
    _path: Path | None = None
    parquet_dataset: Any = None
    padded: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return len(self.frame) == self.num_rows

    def column(self, name: str) -> pd.Series[Any]:
        """All values of one column."""
        if self.is_whole:
            return self.frame[name]
        if self.csv is not None:
            assert self._path is not None
            if self.padded.get(name) is not None:
                return parse(self._path, self.csv, self._path, [name], as_text=True)[name].str.strip()
            return parse(self._path, self.csv, self._path, [name])[name]
        table: pa.Table = self.parquet_dataset.to_table(columns=[name]).replace_schema_metadata(None)
        column: pd.Series[Any] = table.to_pandas()[name]
        return column


def sample_table(name: str | Path, label: str | None = None) -> TableSample:
    """Look at a CSV file, a Parquet file or folder, a Delta folder, or a table that the active Spark session knows.

    Args:
        label: a column that stays a number, with leading zeros or not.

    Raises:
        DataError: as `tables.read_table`; no rows; a folder with other files than Parquet.
    """
    path = Path(name).expanduser()
    _refuse_mixed(path)
    dataset = parquet_dataset(path)
    if dataset is not None and dataset.count_rows() * len(dataset.schema) > WHOLE_CELLS:
        sample = _sample_dataset(path, dataset)
    elif path.is_file() and path.stat().st_size > WHOLE_CSV_BYTES and dataset is None:
        sample = _sample_csv(path, label)
    else:
        # What is guessed of a CSV file is told when the new experiment is checked, which reads it again.
        how = csv_format(path) if dataset is None and path.is_file() and path.stat().st_size else None
        frame = read_table(name) if how is None else parse(path, how, path)
        padded: Mapping[str, int | None] = {}
        if how is not None:
            frame, padded = padded_columns(frame, path, how, path, label)
        index_name = frame.index.names[0] if frame.index.nlevels == 1 and isinstance(frame.index.names[0], str) else None
        frame = frame.reset_index(drop=index_name is None or index_name in frame.columns)
        frame.columns = pd.Index([str(column) for column in frame.columns])
        sample = TableSample(frame, len(frame), "CSV" if how else _kind(path), how, index_name, padded=padded)
    if not sample.num_rows:
        raise DataError("data: needs rows", got=f"0 rows in {name}", next_step="check the table")
    return sample


def _refuse_mixed(path: Path) -> None:
    """Raise DataError for a folder that is no table: Arrow would say so in many words."""
    if not path.is_dir() or (path / "_delta_log").is_dir():
        return
    num_files = 0
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name[0] not in "._"]
        for file in sorted(name for name in files if name[0] not in "._"):
            num_files += 1
            if not file.endswith(".parquet") and not _is_parquet(Path(folder, file)):
                raise _no_table(f"the folder {path} with {Path(folder, file).relative_to(path)}", "name one file")
    if not num_files:
        raise _no_table(f"{path}, an empty folder", "check the path")


def _no_table(got: str, next_step: str) -> DataError:
    return DataError("--data: one CSV file, or a folder of nothing but Parquet files or a Delta table", got=got, next_step=next_step)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def _kind(path: Path) -> str:
    if not path.exists():
        return "table"
    return "Delta" if (path / "_delta_log").is_dir() else "Parquet"


def parquet_dataset(path: Path) -> ds.Dataset | None:
    """The table's files, unread; None where it has none, or where `read_table` says what is wrong with them."""
    try:
        if (path / "_delta_log").is_dir():
            return _delta_dataset(path)
        if path.is_dir():
            return ds.dataset(path, format="parquet", partitioning="hive") if next(path.rglob("*.parquet"), None) else None
        return ds.dataset(path, format="parquet") if _is_parquet(path) else None
    except (OSError, pa.ArrowException):
        return None


def _delta_dataset(path: Path) -> ds.Dataset | None:
    if importlib.util.find_spec("deltalake") is None:
        return None
    import deltalake
    from deltalake.exceptions import DeltaError

    try:
        return deltalake.DeltaTable(path).to_pyarrow_dataset()
    except DeltaError:
        return None


def _sample_dataset(path: Path, dataset: ds.Dataset) -> TableSample:
    """Evenly spaced rows of evenly spaced row groups."""
    try:
        groups = [group for fragment in dataset.get_fragments() for group in fragment.split_by_row_group()]
        chosen = [groups[place] for place in np.unique(np.linspace(0, len(groups) - 1, ROW_GROUPS).round().astype(int))]
        num_chosen = sum(group.row_groups[0].num_rows for group in chosen)  # count_rows() would be the whole file's
        step = max(1, num_chosen // max(1, min(SAMPLE_ROWS, WHOLE_CELLS // len(dataset.schema))))
        parts = []
        for group in chosen:
            for batch in group.to_batches(schema=dataset.schema):
                parts.append(batch.take(pa.array(range(0, batch.num_rows, step))))
        table = pa.Table.from_batches(parts, schema=dataset.schema)
    except pa.ArrowException as error:
        raise DataError("data: not a readable Parquet table", got=f"{path}: {error}", next_step="write it again") from error
    index_name = next((name for name in (dataset.schema.pandas_metadata or {}).get("index_columns", []) if isinstance(name, str)), None)
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas()
    if index_name is not None and index_name.startswith("__index_level_"):
        frame, index_name = frame.drop(columns=index_name), None
    return TableSample(frame, dataset.count_rows(), _kind(path), None, index_name, path, dataset)


def _sample_csv(path: Path, label: str | None) -> TableSample:
    how = csv_format(path)
    tell(path, how)
    num_rows = len(parse(path, how, path, [0]))
    source = sample_csv(path, how, CSV_BLOCKS)
    frame, padded = padded_columns(parse(path, how, source), path, how, source, label)
    return TableSample(frame, num_rows, "CSV", how, None, path, padded=padded)
