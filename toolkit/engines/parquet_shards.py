"""Rows in Parquet files, as the workers of a distributed training read them: who reads which rows, and as what numbers.

The files are either the table's own, whose columns become numbers while they are read, or were written for the training, as numbers
already. Rows are in the order of the files.

Shapes: n rows, d features. A matrix of rows is (n, d + 1) float32, or (n, d + 2) with weights: features, label, weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.core.data import Floats, Part
from toolkit.core.encoding import encode_features
from toolkit.core.errors import DataError, nearest

# Of a matrix in memory: the unit in which rows are read, sent and given to XGBoost.
BLOCK_BYTES = 16 * 2**20
# Of a written file, and of its row groups.
_FILE_BYTES = 256 * 2**20
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Columns:
    """What to read of the files, and as what numbers.

    Attributes:
        features: in their order; for each its categories, of which a value becomes the place, or None for a number.
        classes: values of the label, which become 0 … k-1 in this order; None for a number.
        are_codes: the files hold float32, with places and 0 … k-1 in place of the values.
    """

    features: Mapping[str, tuple[Any, ...] | None]
    label: str
    classes: tuple[Any, ...] | None = None
    weight: str | None = None
    are_codes: bool = False

    @property
    def names(self) -> list[str]:
        return [*self.features, self.label, *([self.weight] if self.weight else [])]

    @property
    def rows_per_block(self) -> int:
        return max(1, BLOCK_BYTES // self.num_bytes(1))

    def num_bytes(self, num_rows: int) -> int:
        """Of a matrix of so many rows."""
        return _FLOAT_BYTES * len(self.names) * num_rows


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of one row group; `first_row` is the table's number of the first, from 0."""

    file: str
    row_group: int
    start: int
    stop: int
    first_row: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


def files_of(location: str | Path) -> tuple[str, ...]:
    """The Parquet files of a folder and those below it, in the order of their paths, or the one file. Names that begin with `_` or `.` are
    other people's notes.

    Raises:
        DataError: there is none.
    """
    root = Path(location)
    if root.is_file():
        return (str(root),)
    found = sorted(root.rglob("*.parquet")) if root.is_dir() else []
    files = tuple(str(path) for path in found if not any(part[0] in "._" for part in path.relative_to(root).parts))
    if not files:
        raise DataError("data: a folder must hold Parquet files", got=str(location), next_step="name the folder that Spark has written")
    return files


def num_rows_of(files: Sequence[str]) -> int:
    """By their own books.

    Raises:
        DataError: a file cannot be read.
    """
    return sum(_footer(file)[0].num_rows for file in files)


def write(part: Part, columns: Columns, folder: Path) -> tuple[str, ...]:
    """Write encoded rows as codes; the files. They come in an order by chance, always the same: each worker's rows shall be like all rows,
    for XGBoost takes the mean of the workers' AUC.

    Raises:
        DataError: the folder cannot be written to.
    """
    arrays = [*part.features.T, part.label, *([part.weight] if columns.weight and part.weight is not None else [])]
    assert len(arrays) == len(columns.names), "the part has the columns' features, and weights where they have"
    order = np.random.RandomState(0).permutation(part.num_rows)
    per_file = columns.rows_per_block * (_FILE_BYTES // BLOCK_BYTES)
    files: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, part.num_rows, per_file):
            rows = order[start : start + per_file]
            table = pa.table([pa.array(array[rows]) for array in arrays], names=columns.names)
            path = folder / f"part-{len(files):05d}.parquet"
            pq.write_table(table, path, row_group_size=columns.rows_per_block, compression="zstd", use_dictionary=False)
            files.append(str(path))
    except OSError as error:
        raise DataError(
            "training.storage_path must be writable", got=f"{folder}: {error.strerror or error}", next_step="free space, or name another"
        ) from error
    return tuple(files)


def divide(files: Sequence[str], columns: Columns, num_workers: int) -> list[tuple[Chunk, ...]]:
    """For each worker, its rows: consecutive ones, each row once, and as many as the others' give or take one.

    It depends on the files alone, so that a worker that is started again reads what its predecessor read.

    Raises:
        DataError: a file cannot be read or lacks a column; fewer rows than workers.
    """
    groups: list[tuple[str, int, int]] = []
    for file in files:
        metadata, schema = _footer(file)
        for name in columns.names:
            if name not in schema.names:
                raise DataError(f"data: no such column in {file}", got=repr(name), next_step=nearest(name, schema.names))
        groups += [(file, number, metadata.row_group(number).num_rows) for number in range(metadata.num_row_groups)]
    num_rows = sum(rows for _, _, rows in groups)
    if num_rows < num_workers:
        raise DataError(
            "distributed training needs at least as many rows as workers",
            got=f"{num_rows:,} rows and {num_workers} workers" + (f" in {Path(files[0]).parent}" if files else ""),
            next_step="lower training.num_workers, or train without --distributed",
        )
    return [_between(groups, num_rows * rank // num_workers, num_rows * (rank + 1) // num_workers) for rank in range(num_workers)]


def _between(groups: Sequence[tuple[str, int, int]], first: int, last: int) -> tuple[Chunk, ...]:
    chunks, row = [], 0
    for file, number, rows in groups:
        start, stop = max(first - row, 0), min(last - row, rows)
        if start < stop:
            chunks.append(Chunk(file, number, start, stop, row + start))
        row += rows
    return tuple(chunks)


def _footer(file: str) -> tuple[Any, Any]:
    try:
        with pq.ParquetFile(file) as opened:
            return opened.metadata, opened.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise DataError("data: not a readable Parquet file", got=f"{file}: {error}", next_step="write it again") from error


def read(chunks: Sequence[Chunk], columns: Columns) -> Iterator[Floats]:
    """Matrices of at most `rows_per_block` rows, C-contiguous, the chunks' rows in their order.

    Raises:
        DataError: a value that is no number, or infinite; a label or a weight that is missing or unknown.
        OSError: a file is gone, or cannot be read.
    """
    for chunk in chunks:
        with pq.ParquetFile(chunk.file) as opened:
            batches = opened.iter_batches(columns.rows_per_block, row_groups=[chunk.row_group], columns=columns.names, use_threads=False)
            row = 0
            for batch in batches:
                start, stop = max(chunk.start - row, 0), min(chunk.stop - row, batch.num_rows)
                if start < stop:
                    yield _matrix(batch.slice(start, stop - start), columns, chunk, row + start)
                row += batch.num_rows
                if row >= chunk.stop:
                    break


def _matrix(batch: pa.RecordBatch, columns: Columns, chunk: Chunk, row: int) -> Floats:
    if columns.are_codes:
        matrix = np.empty((batch.num_rows, len(columns.names)), dtype=np.float32)
        for place, name in enumerate(columns.names):
            matrix[:, place] = batch.column(name).to_numpy(zero_copy_only=False)
        return matrix
    first_row = chunk.first_row + row - chunk.start
    frame = batch.to_pandas(ignore_metadata=True)
    frame.index = frame.index + first_row  # it is what messages count rows by
    kinds = {**columns.features, columns.label: columns.classes, **({columns.weight: None} if columns.weight else {})}
    matrix = encode_features(frame, kinds)
    num_features = len(columns.features)
    _refuse(
        ~np.isfinite(matrix[:, num_features]), frame[columns.label], first_row, f"label {columns.label!r}: must not be missing, or unknown"
    )
    if columns.weight:
        weight = matrix[:, num_features + 1]
        _refuse(~(weight >= 0), frame[columns.weight], first_row, f"dataset.weight {columns.weight!r}: must be 0 or more")
    return matrix


def _refuse(wrong: Any, column: Any, first_row: int, rule: str) -> None:
    if wrong.any():
        place = int(wrong.argmax())
        value = column.iloc[place]
        got = f"{value.item() if isinstance(value, np.generic) else value!r} in row {first_row + place + 1:,}"
        raise DataError(rule, got=got, next_step="correct or drop these rows")
