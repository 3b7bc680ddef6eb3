"""The exploration of a frame in memory: exact, a column at a time.

Shapes: n rows, k label groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.core import encoding
from toolkit.core.errors import DataError
from toolkit.core.experiment import Dataset
from toolkit.core.exploration import Column, Correlations, Duplicates, Exploration, Kind, Role
from toolkit.core.exploration_batches import Partial, added, ends, places, products, tally
from toolkit.core.exploration_columns import Facts, column_of, correlations
from toolkit.core.exploration_findings import remarks, suspects
from toolkit.core.exploration_labels import Division, LabelGroups, class_groups, number_groups, ranks_of
from toolkit.core.exploration_levels import Levels
from toolkit.core.model import Task
from toolkit.core.row_hashes import row_hashes

Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

# Levels of a column. Beyond, a number's are quantiles, and a category's rarest are one: 1 M different values of 20 classes would be 170 MB.
MAX_LEVELS = 100_000
_BLOCK_ROWS = 65_536
_SEED = 0


@dataclass(frozen=True)
class _Values:
    """A column as numbers (NaN where missing) or as codes of `names` (-1 where missing); neither where it is nested."""

    kind: Kind
    numbers: Doubles | None = None
    codes: Codes | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Label:
    """Of each row: (n,) group, k without a label; (n,) rank, 0 without one, or None for classes; (n,) number for correlations, or None."""

    groups: LabelGroups
    codes: Codes
    ranks: Doubles | None
    numbers: Doubles | None


def explore_frame(frame: pd.DataFrame, dataset: Dataset, task: Task, divide: Callable[[LabelGroups], Division]) -> Exploration:
    """
    Args:
        frame: (n, d) as it was read, with a plain index; column names are texts.
        divide: looks at the split, with these label groups.

    Raises:
        DataError: the table has no rows or no features, a column that the dataset names is not there, or the label cannot be what the task
            needs.
    """
    check_table([str(name) for name in frame.columns], len(frame), dataset)
    label = _label(frame[dataset.label], task, dataset.positive)
    division = divide(label.groups)
    values = {str(name): _values_of(frame[name], name in dataset.categorical, name == dataset.time) for name in frame.columns}
    halves = np.random.default_rng(_SEED).integers(0, 2, len(frame))
    features = {name: each for name, each in values.items() if role_of(name, dataset) == "feature"}
    duplicates = _duplicates(features, None if dataset.key is None else frame[dataset.key], len(frame))
    columns = tuple(
        column_of(
            _facts(frame[name], each), _levels(each, halves, label), role_of(name, dataset), label.groups.names, task, len(frame),
            len(frame) - duplicates.num_rows,
        )
        for name, each in values.items()
    )  # fmt: skip
    return assembled(
        columns,
        division,
        label.groups,
        np.bincount(label.codes, minlength=len(label.groups.names) + 1),
        engine="pandas",
        approximate=(),
        task=task,
        label=dataset.label,
        memory_bytes=int(frame.memory_usage(index=False, deep=True).sum()),
        duplicates=duplicates,
        products=_products(features, label, dataset.label),
    )


def role_of(name: str, dataset: Dataset) -> Role:
    roles: list[tuple[Role, str | None]] = [
        ("label", dataset.label), ("key", dataset.key), ("time", dataset.time), ("group", dataset.group), ("weight", dataset.weight),
    ]  # fmt: skip
    return next((role for role, named in roles if named == name), "exclude" if name in dataset.exclude else "feature")


def check_table(names: Sequence[str], num_rows: int, dataset: Dataset) -> None:
    """Raises:
    DataError: there are no rows, two columns of one name, or not the columns that the dataset names.
    """
    encoding.refuse_names(encoding.repeated(names), "data: column names must differ")
    empty = pd.DataFrame(columns=list(names))
    encoding.check_columns(empty, dataset, "the table")
    encoding.names_of_features(empty, dataset)
    if not num_rows:
        raise DataError("data: needs rows", got="0 rows", next_step="check the table")


# ---- columns


def _values_of(column: pd.Series[Any], is_category: bool, is_time: bool) -> _Values:
    dtype = column.dtype
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    if is_time and inferred == "string":  # as a CSV file has it
        inferred = "datetime"
    if is_category or isinstance(dtype, pd.CategoricalDtype) or inferred in ("string", "mixed", "mixed-integer", "bytes"):
        return _categories(column)
    if inferred == "boolean":
        return _Values("boolean", _as_doubles(column))
    if inferred in ("integer", "floating", "decimal", "mixed-integer-float", "empty"):
        return _Values("number", _as_doubles(column))
    if inferred in ("datetime64", "datetime", "date"):
        moments = pd.to_datetime(column, errors="coerce", utc=True, format="mixed" if pd.api.types.is_string_dtype(dtype) else None)
        seconds = (moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
        return _Values("time", seconds.to_numpy(np.float64, na_value=np.nan).astype(np.float64))
    return _Values("other")


def _as_doubles(column: pd.Series[Any]) -> Doubles:
    if pd.api.types.is_bool_dtype(column.dtype):
        return np.asarray(column.to_numpy(np.float64, na_value=np.nan), dtype=np.float64)
    if pd.api.types.infer_dtype(column, skipna=True) == "boolean":
        return np.asarray(column.astype("boolean").to_numpy(np.float64, na_value=np.nan), dtype=np.float64)
    return np.asarray(encoding.numbers_of(column, f"column {column.name!r}", ""), dtype=np.float64)


def _categories(column: pd.Series[Any]) -> _Values:
    try:
        codes, distinct = pd.factorize(column)
    except TypeError:  # lists and mappings
        return _Values("other")
    if not all(pd.api.types.is_scalar(value) for value in distinct):
        return _Values("other")
    merged, names = pd.factorize(np.array([category_text(value) for value in distinct], dtype=object))  # 1 and 1.0 are one
    return _Values("category", codes=np.append(merged, -1)[codes].astype(np.int64), names=tuple(names))


def category_text(value: Any) -> str:
    return str(encoding.plain(value))


def _facts(column: pd.Series[Any], values: _Values) -> Facts:
    name, kind, num_missing = str(column.name), values.kind, int(column.isna().sum())
    if values.numbers is None:
        num = len(values.names) if values.codes is not None else int(column.dropna().astype(str).nunique())
        return Facts(name, kind, str(column.dtype), num_missing, 0, num)
    present = values.numbers[np.isfinite(values.numbers)]
    has_any = len(present) > 0
    return Facts(
        name=name,
        kind=kind,
        type=str(column.dtype),
        num_missing=num_missing,
        num_infinite=int(np.isinf(values.numbers).sum()),
        num_distinct=int(column.nunique()),
        is_whole=kind == "number" and bool((present == np.floor(present)).all()),
        mean=float(present.mean()) if has_any else None,
        std=float(present.std()) if has_any else None,
        min=float(present.min()) if has_any else None,
        max=float(present.max()) if has_any else None,
    )


def _levels(values: _Values, halves: Codes, label: _Label) -> Levels | None:
    num_groups = len(label.groups.names)
    if values.codes is not None:
        codes, names, has_rest = _at_most(values.codes, values.names)
        is_there = codes >= 0
        found = tally(codes[is_there], len(names), is_there, halves, label.codes, num_groups, label.ranks)
        ends_of = np.arange(len(names), dtype=np.float64)
        return levels_of(found, ends_of, ends_of, names, has_rest)
    if values.numbers is None:
        return None
    is_there = np.isfinite(values.numbers)
    present = values.numbers[is_there] + 0.0  # one zero
    distinct, level = np.unique(present, return_inverse=True)
    low = high = distinct
    if len(distinct) > MAX_LEVELS:
        edges = np.unique(np.quantile(present, np.linspace(0, 1, MAX_LEVELS // 2), method="nearest"))
        level, (low, high) = places(present, edges), ends(edges)
    found = tally(level.astype(np.int64), len(low), is_there, None, label.codes, num_groups, label.ranks)
    return levels_of(found, low, high, None, False)


def _at_most(codes: Codes, names: tuple[str, ...]) -> tuple[Codes, tuple[str, ...], bool]:
    """The most frequent categories, and one for the rest of them."""
    if len(names) <= MAX_LEVELS:
        return codes, names, False
    kept = np.sort(np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable")[: MAX_LEVELS - 1])
    places_of = np.full(len(names) + 1, MAX_LEVELS - 1)
    places_of[kept] = np.arange(len(kept))
    places_of[-1] = -1
    return places_of[codes], (*(names[place] for place in kept), ""), True


def levels_of(found: Partial, low: Doubles, high: Doubles, names: tuple[str, ...] | None, has_rest: bool) -> Levels:
    """From a tally over all rows."""
    missing_ranks = found.get("missing_ranks", np.zeros(2))
    return Levels(
        low, high, names, found["counts"], found["missing"], found.get("ranks"), float(missing_ranks[0]), found.get("squares"),
        float(missing_ranks[1]), has_rest,
    )  # fmt: skip


# ---- the label


def _label(column: pd.Series[Any], task: Task, positive: Any) -> _Label:
    name, is_there = str(column.name), column.notna().to_numpy()
    present = column[is_there]
    numbers = np.full(len(column), np.nan)
    if task in ("binary", "multiclass"):
        inverse, distinct = pd.factorize(present)
        groups = class_groups(list(distinct), np.bincount(inverse, minlength=len(distinct)).tolist(), name, task, positive)
        assert groups.classes is not None
        code_of = {value: code for code, value in enumerate(groups.classes)}
        by_value = np.array([code_of[encoding.plain(value)] for value in distinct], dtype=np.int64)
        numbers[is_there] = by_value[inverse]
    else:
        what = f"label {name!r}"
        numbers[is_there] = encoding.numbers_of(present, what, "use a classification objective, or turn it into numbers")
        is_there = is_there & np.isfinite(numbers)
        groups = number_groups(numbers[is_there], name)
    codes = np.full(len(column), len(groups.names), dtype=np.int64)
    codes[is_there] = groups.codes(numbers[is_there])
    ranks = None
    if groups.classes is None:
        ranks = np.zeros(len(column))
        ranks[is_there] = ranks_of(numbers[is_there])
    return _Label(groups, codes, ranks, None if task == "multiclass" else numbers)


# ---- the table


def _duplicates(features: Mapping[str, _Values], keys: pd.Series[Any] | None, num_rows: int) -> Duplicates:
    """Rows are equal where a model sees them as equal: numbers as float32."""
    hashes = []
    for start in range(0, num_rows, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        block = np.empty((min(_BLOCK_ROWS, num_rows - start), len(features)), dtype=np.float32)
        for place, values in enumerate(features.values()):
            if values.numbers is not None:
                block[:, place] = as_features(values.numbers[rows])
            elif values.codes is not None:
                block[:, place] = values.codes[rows].astype(np.int32).view(np.float32)
            else:
                block[:, place] = 0.0  # nested: training refuses it
        hashes.append(row_hashes(block))
    repeated = num_rows - len(np.unique(np.concatenate(hashes)))
    return Duplicates(
        num_rows=repeated,
        share=repeated / num_rows,
        num_repeated_keys=None if keys is None else int(keys.dropna().duplicated().sum()),
        num_missing_keys=None if keys is None else int(keys.isna().sum()),
    )


def as_features(numbers: Doubles) -> npt.NDArray[np.float32]:
    """As training has them: float32 with one zero and one NaN."""
    with np.errstate(over="ignore"):
        found = numbers.astype(np.float32) + np.float32(0.0)
    found[np.isnan(found)] = np.nan
    return found


def _products(features: Mapping[str, _Values], label: _Label, name: str) -> tuple[tuple[str, ...], Partial]:
    """Names of the numeric columns, the label before the features where it is one, and their products."""
    columns = {} if label.numbers is None else {name: label.numbers}
    columns |= {each: values.numbers for each, values in features.items() if values.numbers is not None and values.kind != "time"}
    means = np.array([values[np.isfinite(values)].mean() if np.isfinite(values).any() else 0.0 for values in columns.values()])
    found = products(np.empty((0, len(columns))), means)
    for start in range(0, len(label.codes) if columns else 0, _BLOCK_ROWS):
        block = np.column_stack([values[start : start + _BLOCK_ROWS] for values in columns.values()])
        found = added(found, products(block, means))
    return tuple(columns), found


def assembled(
    columns: tuple[Column, ...],
    division: Division,
    groups: LabelGroups,
    group_counts: Codes,
    *,
    task: Task,
    duplicates: Duplicates,
    products: tuple[tuple[str, ...], Partial],
    **rest: Any,
) -> Exploration:
    """The whole, of its parts. `group_counts`: (k + 1,) rows, the last without a label; `rest`: fields as they are."""
    num_rows, num_unlabelled = int(group_counts.sum()), int(group_counts[-1])
    found = Exploration(
        task=task,
        num_rows=num_rows,
        num_features=sum(column.role == "feature" for column in columns),
        groups=groups.names,
        group_counts=tuple(int(count) for count in group_counts[:-1]),
        num_unlabelled=num_unlabelled,
        columns=columns,
        duplicates=duplicates,
        correlations=Correlations((), (), ()),
        split=division.figures,
        split_note=division.note,
        suspects=suspects(columns, division.figures, task),
        remarks=remarks(columns, duplicates, num_unlabelled, num_rows, division.obstacle),
        **rest,
    )
    ranked = [found.label, *(column.name for column in found.predictors)]
    return replace(found, correlations=correlations(products[1], products[0], ranked))
