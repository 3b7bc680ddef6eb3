"""Tables once they are read: arrays, where they came from, and how they are divided.

Shapes: n rows, d features. Features are float32, C-contiguous, NaN where a value is missing; a category is its place in `categories`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.model import Task

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Categories = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class DataContext:
    """Where a load function may look: what a `dataset.load` with one argument is called with.

    Attributes:
        data: `--data`, a file or a folder of the user's own.
        data_dir: `TOOLKIT_DATA_DIR`.
        cache_dir: `TOOLKIT_HOME/cache`; made when something is written there.
    """

    data: Path | None
    data_dir: Path | None
    cache_dir: Path


@dataclass(frozen=True)
class Loaded:
    """What a load function returns where it knows better than its caller whence the rows came.

    `table` is anything that `Dataset.load` may return; `kind` and `location` as in `DataSource`.
    """

    table: Any
    kind: str
    location: str


@dataclass(frozen=True)
class DataSource:
    """Where the rows came from. `kind`: file, environment, cache, databricks_datasets, download, fallback_sample, table, function.

    `sha256` is of the content (features, label and the columns that steer the split), so that it does not depend on the file format.
    """

    kind: str
    location: str
    sha256: str
    num_rows: int
    num_features: int

    @property
    def is_fallback(self) -> bool:
        return self.kind == "fallback_sample"


@dataclass(frozen=True)
class LoadedData:
    """A table ready to be split.

    Attributes:
        features: (n, d).
        label: (n,) float32; classes as 0 … k-1 in the order of `classes`.
        classes: the label's values, sorted, the positive one last; None for regression and ranking.
        weight, group, time: (n,) or None. `group` is an integer code.
        keys: (n,) values of `dataset.key`, or None.
        categories: the values of each categorical feature, sorted.
    """

    features: Floats
    feature_names: tuple[str, ...]
    label: Floats
    classes: tuple[Any, ...] | None
    task: Task
    source: DataSource
    weight: Floats | None = None
    group: Indices | None = None
    time: npt.NDArray[Any] | None = None
    keys: npt.NDArray[Any] | None = None
    categories: Categories = field(default_factory=dict)
    test: LoadedData | None = None
    """The hold-out table, where the dataset names one."""


@dataclass(frozen=True)
class Part:
    """Some rows, as a model sees them."""

    features: Floats
    label: Floats
    weight: Floats | None = None
    group: Indices | None = None

    @property
    def num_rows(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class TrialData:
    """What every trial process gets, once: the rows of train + validation, and which are which.

    `folds` holds (train, validation) pairs of slices or index arrays into `rows`. Without cross-validation there is one pair, of
    slices, so that both parts are views and nothing is copied. Under the published protocol the validation rows are the test rows.
    """

    rows: Part
    folds: tuple[tuple[slice | Indices, slice | Indices], ...]
    feature_names: tuple[str, ...]
    num_classes: int
    task: Task
    data_id: str
    categories: Categories = field(default_factory=dict)

    def fold(self, number: int) -> tuple[Part, Part]:
        train, validation = self.folds[number]
        return take(self.rows, train), take(self.rows, validation)


@dataclass(frozen=True)
class SplitData:
    """`trial` for the search, `test` for the end. `description` says in a sentence how the rows were divided.

    `fitted_rows` and `test_rows` are positions in the loaded table: those that the model for use is fitted on, and those of `test` (None
    where that is a table of its own).
    """

    trial: TrialData
    test: Part
    num_train_rows: int
    num_validation_rows: int
    description: str
    fitted_rows: Indices
    test_rows: Indices | None


def take(part: Part, which: slice | Indices) -> Part:
    return Part(
        features=part.features[which],
        label=part.label[which],
        weight=None if part.weight is None else part.weight[which],
        group=None if part.group is None else part.group[which],
    )


def concatenate(parts: Sequence[Part]) -> Part:
    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    return Part(joined("features"), joined("label"), joined("weight"), joined("group"))
