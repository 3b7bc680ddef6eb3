"""A table that no process holds, divided into train, validation and test while it is read: from Parquet files to Parquet files of codes.

Where a row goes is decided by the hash of its features, so that equal rows stay together, and the same table is divided the same way
whatever its order. Shapes: n rows, d features.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.core.data import Floats, Part
from toolkit.core.encoding import categories_of, classes_of, refuse_names
from toolkit.core.errors import DataError, ExperimentError, nearest
from toolkit.core.experiment import Experiment, Split
from toolkit.core.row_hashes import Hashes, row_hashes
from toolkit.engines.parquet_shards import Columns, divide, read

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Of the fitted rows, for the reference profile: quantiles of so many are within 0.3 % of a rank (Dvoretzky-Kiefer-Wolfowitz, 99 %).
SAMPLE_ROWS = 200_000


@dataclass(frozen=True)
class Parts:
    """A divided table.

    Attributes:
        files: by part; empty for a part without rows.
        fitted_hashes: sorted, of the rows of train and validation.
        sample: at most about SAMPLE_ROWS of these, drawn by their hashes.
        content_sha256: of all rows in their order.
    """

    files: Mapping[str, tuple[str, ...]]
    num_rows: Mapping[str, int]
    fitted_hashes: Hashes
    sample: Part
    content_sha256: str


def columns_of(files: Sequence[str], experiment: Experiment) -> Columns:
    """What the experiment reads of these files: features in the files' order, with the categories and classes that occur in them.

    Raises:
        DataError: a column is missing, or does not fit the experiment. ExperimentError: a split that needs the whole table.
    """
    dataset, task = experiment.dataset, experiment.model.task
    if experiment.split.by != "random" or experiment.split.folds or task == "ranking":
        raise ExperimentError(
            "--distributed divides a table that is not gathered by rows at random, without folds",
            got=f'split.by="{experiment.split.by}", folds={experiment.split.folds}, a {task} task',
            next_step="raise training.gather_gib, or name dataset.holdout and split at random",
        )
    with pq.ParquetFile(files[0]) as opened:
        names = list(opened.schema_arrow.names)
    for field in ("label", "weight"):
        wanted = getattr(dataset, field)
        if wanted is not None and wanted not in names:
            raise DataError(f"dataset.{field}: no such column in {files[0]}", got=repr(wanted), next_step=nearest(wanted, names))
    features = [name for name in names if name not in dataset.not_features]
    refuse_names([name for name in dataset.categorical if name not in features], f"dataset.categorical: no such feature in {files[0]}")
    refuse_names([name for name in features if re.search(r"[\[\]<]", name)], "feature names: XGBoost takes none of [ ] <")
    if not features:
        raise DataError("data: needs a column beside label, key, weight and exclude", got=", ".join(names))
    is_classes = task in ("binary", "multiclass")
    counted = [*dataset.categorical, *([dataset.label] if is_classes else [])]
    distinct = _distinct(files, counted) if counted else {}
    known = {name: categories_of(distinct[name]) if name in dataset.categorical else None for name in features}
    classes = classes_of(distinct[dataset.label], task, dataset.positive) if is_classes else None
    return Columns(known, dataset.label, classes, dataset.weight)


def _distinct(files: Sequence[str], names: Sequence[str]) -> dict[str, pd.Series[Any]]:
    """The values of each column, each once, a row group at a time."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for file in files:
        with pq.ParquetFile(file) as opened:
            for number in range(opened.metadata.num_row_groups):
                group = opened.read_row_group(number, columns=list(names))
                for name in names:
                    found[name].append(pc.unique(group.column(name)).to_pandas())
    return {name: pd.Series(pd.concat(values).dropna().unique(), name=name) for name, values in found.items()}


def divide_table(files: Sequence[str], columns: Columns, split: Split, folder: Path, *, with_test: bool) -> Parts:
    """Write the parts below `folder`. `with_test`: without a hold-out table the test part is taken from these rows.

    Raises:
        DataError: a value that is no number, a missing label, a part without rows or with one class; the folder cannot be written to.
    """
    test_share = split.test if with_test else 0.0
    (chunks,) = divide(files, columns, 1)
    total = sum(chunk.num_rows for chunk in chunks)
    digest = hashlib.sha256(repr(columns).encode())
    hashes: list[Hashes] = []
    sample: list[Floats] = []
    codes = Columns(columns.features, columns.label, columns.classes, columns.weight, are_codes=True)
    num_features = len(columns.features)
    with _Writers(folder, codes) as writers:
        for matrix in read(chunks, columns):
            digest.update(matrix.data)
            of_rows = row_hashes(np.ascontiguousarray(matrix[:, :num_features]))
            place = _uniform(of_rows, split.seed)
            is_test = place < test_share
            is_validation = ~is_test & (place < test_share + (1 - test_share) * split.validation)
            writers.write(TEST, matrix[is_test])
            writers.write(VALIDATION, matrix[is_validation])
            writers.write(TRAIN, matrix[~is_test & ~is_validation])
            hashes.append(of_rows[~is_test])
            sample.append(matrix[~is_test & (_uniform(of_rows, split.seed + 1) < SAMPLE_ROWS / total)])
    for part in (TRAIN, VALIDATION, *([TEST] if with_test else [])):
        _check(part, writers.labels[part], columns.classes)
    return Parts(
        files={part: tuple(written) for part, written in writers.files.items()},
        num_rows={part: writers.num_rows[part] for part in writers.files},
        fitted_hashes=np.sort(np.concatenate(hashes)),
        sample=_as_part(np.concatenate(sample), columns),
        content_sha256=digest.hexdigest(),
    )


def read_part(files: Sequence[str], columns: Columns) -> Iterator[Part]:
    """A part in blocks of bounded size."""
    (chunks,) = divide(files, columns, 1)
    for matrix in read(chunks, columns):
        yield _as_part(matrix, columns)


def _as_part(matrix: Floats, columns: Columns) -> Part:
    num_features = len(columns.features)
    weight = np.ascontiguousarray(matrix[:, num_features + 1]) if columns.weight else None
    return Part(np.ascontiguousarray(matrix[:, :num_features]), np.ascontiguousarray(matrix[:, num_features]), weight)


def _uniform(hashes: Hashes, seed: int) -> Any:
    """(n,) numbers in [0, 1) that depend on the row and the seed alone."""
    mixed = hashes + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _check(part: str, labels: set[float], classes: Sequence[Any] | None) -> None:
    if not labels:
        raise DataError(f"split: the {part} part must have rows", got="none", next_step="change split.test or split.validation")
    if classes is not None and len(labels) < 2:
        (only,) = labels
        raise DataError(f"split: the {part} part must have two classes", got=f"only {classes[int(only)]!r}", next_step="change split.seed")


class _Writers:
    """One growing Parquet file a part, of row groups of one block's size."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        self.files: dict[str, list[str]] = {part: [] for part in (TRAIN, VALIDATION, TEST)}
        self.num_rows = dict.fromkeys(self.files, 0)
        self.labels: dict[str, set[float]] = {part: set() for part in self.files}
        self._folder = folder
        self._columns = columns
        self._schema = pa.schema([(name, pa.float32()) for name in columns.names])
        self._waiting: dict[str, list[Floats]] = {part: [] for part in self.files}
        self._writers: dict[str, Any] = {}

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self.files:
            self._flush(part)
        for writer in self._writers.values():
            writer.close()

    def write(self, part: str, matrix: Floats) -> None:
        if not len(matrix):
            return
        self.num_rows[part] += len(matrix)
        if self._columns.classes is not None:
            self.labels[part].update(np.unique(matrix[:, len(self._columns.features)]).tolist())
        else:
            self.labels[part].add(math.nan)
        self._waiting[part].append(matrix)
        if sum(map(len, self._waiting[part])) >= self._columns.rows_per_block:
            self._flush(part)

    def _flush(self, part: str) -> None:
        if not self._waiting[part]:
            return
        matrix = np.concatenate(self._waiting[part])
        self._waiting[part] = []
        try:
            if part not in self._writers:
                path = self._folder / f"{part}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                self._writers[part] = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)
                self.files[part].append(str(path))
            columns = [pa.array(np.ascontiguousarray(matrix[:, number])) for number in range(matrix.shape[1])]
            self._writers[part].write_table(pa.table(columns, schema=self._schema), row_group_size=self._columns.rows_per_block)
        except OSError as error:
            raise DataError(
                "training.storage_path must be writable",
                got=f"{self._folder}: {error.strerror or error}",
                next_step="free space, or name another",
            ) from error
