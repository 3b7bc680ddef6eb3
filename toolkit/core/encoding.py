"""From a frame to checked arrays.

Shapes: n rows, d features. Rows in messages count from 1, without a header.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.core.data import DataSource, Floats, Indices, LoadedData
from toolkit.core.errors import DataError, nearest
from toolkit.core.experiment import Dataset
from toolkit.core.model import Task
from toolkit.core.secrets import without_secrets

# Places in float32 are exact to 2^24; far below it a column is an identifier, which a tree only learns by heart.
MAX_CATEGORIES = 10_000


def encode(frame: pd.DataFrame, kind: str, location: str, dataset: Dataset, task: Task, *, like: LoadedData | None = None) -> LoadedData:
    """Check a frame against the dataset and turn it into arrays.

    Args:
        kind, location: of `DataSource`.
        like: for a hold-out table, the one that is trained on: its features, in their order, and its classes are required; a category that
            it does not know is missing.

    Returns:
        features (n, d) float32, label (n,) float32; see `LoadedData`.

    Raises:
        DataError: the first thing that does not fit.
    """
    # Here, once: it goes into errors, reports, MLflow's tags and artifacts, and `--json`.
    location = without_secrets(location)
    where = location if like is None else f"hold-out table {location}"
    refuse_names(repeated(frame.columns), f"data: column names must differ ({where})")
    check_columns(frame, dataset, where)
    if frame.empty:
        raise DataError("data: needs rows", got=f"0 rows in {where}", next_step="check the table")
    names = names_of_features(frame, dataset) if like is None else like.feature_names
    refuse_names([name for name in names if name not in frame.columns], f"data: {where} lacks features of the training table")
    refuse_names([name for name in dataset.categorical if name not in names], f"dataset.categorical: no such feature in {where}")
    _check_key(frame, dataset.key)
    known_classes = like.classes if like else None
    label, classes = _label(frame[dataset.label], task, known_classes, dataset.positive, constant_is_wrong=like is None)
    known = {name: categories_of(frame[name]) for name in dataset.categorical} if like is None else like.categories
    features = encode_features(frame, {name: known.get(name) for name in names})
    weight = _weight(frame[dataset.weight]) if dataset.weight else None
    group = _group(frame[dataset.group]) if dataset.group else None
    time = _time(frame[dataset.time]) if dataset.time else None
    source = DataSource(
        kind=kind,
        location=location,
        sha256=_content_sha256(
            (names, classes, *sorted(known.items())), {"features": features, "label": label, "weight": weight, "group": group, "time": time}
        ),
        num_rows=len(label),
        num_features=len(names),
    )
    keys = frame[dataset.key].to_numpy() if dataset.key else None
    return LoadedData(features, names, label, classes, task, source, weight, group, time, keys, known)


def refuse_names(names: Sequence[str], rule: str) -> None:
    """Raise DataError with the first five of `names`, if there are any."""
    if names:
        raise DataError(rule, got=", ".join(map(repr, names[:5])), next_step="rename or drop them")


def repeated(names: Iterable[str]) -> list[str]:
    """What occurs more than once, each once."""
    index = pd.Index(list(names))
    return [str(name) for name in index[index.duplicated()].unique()]


def check_columns(frame: pd.DataFrame, dataset: Dataset, where: str) -> None:
    named = {"label": dataset.label, "key": dataset.key, "time": dataset.time, "group": dataset.group, "weight": dataset.weight}
    wanted = [*named.items(), *(("exclude", name) for name in dataset.exclude)]
    for field, name in wanted:
        if name is not None and name not in frame.columns:
            raise DataError(f"dataset.{field}: no such column in {where}", got=repr(name), next_step=nearest(name, frame.columns))


def names_of_features(frame: pd.DataFrame, dataset: Dataset) -> tuple[str, ...]:
    names = tuple(name for name in frame.columns if name not in dataset.not_features)
    if not names:
        raise DataError(
            "data: needs a column beside label, key, time, group, weight and exclude",
            got=f"only {', '.join(frame.columns)}",
            next_step="shorten dataset.exclude, or add features",
        )
    return names


def _check_key(frame: pd.DataFrame, key: str | None) -> None:
    if key is None:
        return
    _refuse_missing(frame[key], f"dataset.key {key!r}")
    repeated = frame[key][frame[key].duplicated()]
    if len(repeated):
        raise DataError(
            f"dataset.key {key!r}: must be unique",
            got=f"{len(repeated):,} repeated values, first {_shown(plain(repeated.iloc[0]))}",
            next_step="drop the copies, or name another key",
        )


def _refuse_missing(column: pd.Series[Any], what: str) -> None:
    missing = int(column.isna().sum())
    if missing:
        row = int(column.isna().to_numpy().argmax()) + 1
        raise DataError(
            f"{what}: must not be missing", got=f"{missing:,} missing, first in row {row:,}", next_step="fill or drop these rows"
        )


def encode_features(frame: pd.DataFrame, features_of: Mapping[str, Sequence[Any] | None]) -> Floats:
    """Features as a model sees them.

    Args:
        features_of: ordered; for each feature its known categories, or None for a number.

    Returns:
        (n, d) float32, missing values NaN; a category is its place among the known ones, an unknown one NaN.

    Raises:
        DataError: text that is no number, or an infinite value.
    """
    features = np.empty((len(frame), len(features_of)), dtype=np.float32)
    for number, (name, categories) in enumerate(features_of.items()):
        column = features[:, number]
        if categories is not None:
            column[:] = _codes(frame[name], categories)
            continue
        with np.errstate(over="ignore"):  # what does not fit is infinite, and refused below
            column[:] = numbers_of(
                frame[name], f"feature {name!r}", "turn it into numbers, or name it in dataset.categorical or dataset.exclude"
            )
        infinite = int(np.isinf(column).sum())
        if infinite:
            row = int(np.isinf(column).argmax()) + 1
            raise DataError(
                f"feature {name!r}: must be finite and below 3.4e38",
                got=f"{infinite:,} infinite values, first in row {row:,}",
                next_step="leave them empty (missing), or clip them",
            )
        # One zero and one NaN, so that equal rows are equal bytes.
        column += np.float32(0.0)
        column[np.isnan(column)] = np.nan
    return features


def categories_of(column: pd.Series[Any]) -> tuple[Any, ...]:
    """The values of a categorical feature, sorted."""
    what = f"feature {column.name!r} in dataset.categorical"
    found = {plain(value) for value in column.dropna().unique()}
    kinds = sorted({type(value).__name__ for value in found})
    if not {*kinds} <= {"str", "bool", "int"} or len({kind == "str" for kind in kinds}) > 1:
        raise DataError(f"{what}: must be text, or whole numbers or booleans", got=", ".join(kinds), next_step="convert the column")
    if len(found) > MAX_CATEGORIES:
        raise DataError(
            f"{what}: at most {MAX_CATEGORIES:,} categories",
            got=f"{len(found):,}",
            next_step="group the rare ones, or exclude it",
        )
    return tuple(sorted(found))


def _codes(column: pd.Series[Any], categories: Sequence[Any]) -> Floats:
    """(n,) places among `categories`; NaN where missing or unknown."""
    codes = {value: float(code) for code, value in enumerate(categories)}
    inverse, distinct = pd.factorize(column)
    by_value = np.array([*(codes.get(plain(value), np.nan) for value in distinct), np.nan], dtype=np.float32)
    return by_value[inverse]  # factorize gives -1 for what is missing: the NaN at the end


def numbers_of(column: pd.Series[Any], what: str, next_step: str) -> npt.NDArray[Any]:
    """(n,) numbers, missing ones NaN."""
    dtype = column.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        values: npt.NDArray[Any] = column.to_numpy() if isinstance(dtype, np.dtype) else column.to_numpy(np.float64, na_value=np.nan)
        return values
    present = column.dropna()
    if pd.api.types.is_object_dtype(dtype) and all(isinstance(value, numbers.Real | Decimal | np.bool_) for value in present):
        return np.array([np.nan if missing else float(value) for value, missing in zip(column, column.isna(), strict=True)])
    if present.empty:
        return np.full(len(column), np.nan)
    # In a column of text that is numbers but for a few cells, those cells are what the user looks for.
    as_text = present.astype(str)
    position = int(pd.to_numeric(as_text, errors="coerce").isna().to_numpy().argmax())
    row = int(present.index[position]) + 1
    raise DataError(f"{what}: must be numeric", got=f"{_shown(plain(present.iloc[position]))} in row {row:,}", next_step=next_step)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _label(
    column: pd.Series[Any], task: Task, classes: tuple[Any, ...] | None, positive: Any, *, constant_is_wrong: bool
) -> tuple[Floats, tuple[Any, ...] | None]:
    what = f"label {column.name!r}"
    _refuse_missing(column, what)
    if constant_is_wrong and column.nunique() == 1:
        raise DataError(
            f"{what}: needs at least two values",
            got=f"{_shown(plain(column.iloc[0]))} in all {len(column):,} rows",
            next_step="check dataset.label",
        )
    if task in ("binary", "multiclass"):
        return encode_classes(column, what, task, classes, positive)
    values = numbers_of(column, what, "use a classification objective, or turn it into numbers").astype(np.float32)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        raise DataError(f"{what}: must be finite", got=f"{_shown(plain(column.iloc[row]))} in row {row + 1:,}", next_step="correct it")
    if task == "ranking" and (values < 0).any():
        raise DataError(f"{what}: a relevance is 0 or more", got=f"{values.min():g}", next_step="shift the label")
    return values + np.float32(0.0), None


def classes_of(values: pd.Series[Any], task: Task, positive: Any = None) -> tuple[Any, ...]:
    """The classes of a label from its values, sorted, but for the positive one, which is the last.

    Raises:
        DataError: fewer than two, values that are no classes of this task, or `positive` is none of them.
    """
    if len(values) < 2:
        got = _shown(plain(values.iloc[0])) if len(values) else "none"
        raise DataError(f"label {values.name!r}: needs at least two values", got=got, next_step="check dataset.label")
    return encode_classes(values, f"label {values.name!r}", task, None, positive)[1]


def encode_classes(
    column: pd.Series[Any], what: str, task: Task, classes: tuple[Any, ...] | None, positive: Any = None
) -> tuple[Floats, tuple[Any, ...]]:
    """(n,) places among the classes, and these: `classes` where they are known, else in the order of `classes_of`.

    Raises:
        DataError: as `classes_of`; a value that is none of `classes`.
    """
    values = [plain(value) for value in column.unique()]
    if not all(isinstance(value, str | bool | int | float) for value in values) or len({isinstance(v, str) for v in values}) > 1:
        raise DataError(
            f"{what}: classes must be text, or whole numbers or booleans",
            got=", ".join(sorted({type(value).__name__ for value in values})),
            next_step="convert the column",
        )
    found = tuple(sorted(values))
    some = ", ".join(_shown(value) for value in found[:4]) + (", …" if len(found) > 4 else "")
    if task == "binary" and classes is None and len(found) != 2:
        raise DataError(
            f"{what}: a binary objective needs exactly two values",
            got=f"{len(found):,} ({some})",
            next_step="use multi:softprob for classes, reg:squarederror for numbers",
        )
    if task == "multiclass" and any(isinstance(value, float) for value in found):
        raise DataError(
            f"{what}: classes must be text, whole numbers or booleans",
            got=f"{len(found):,} fractions ({some})",
            next_step="use reg:squarederror for numbers",
        )
    if classes is not None and not set(found) <= set(classes):
        raise DataError(
            f"{what}: the hold-out table must hold known classes",
            got=", ".join(_shown(value) for value in found if value not in classes),
            next_step=f"known: {', '.join(map(_shown, classes))}",
        )
    known = _ordered(found, what, positive) if classes is None else classes
    codes = {value: code for code, value in enumerate(known)}
    distinct, inverse = column.unique(), pd.factorize(column)[0]
    encoded = np.array([codes[plain(value)] for value in distinct], dtype=np.float32)
    return encoded[inverse], known


def _ordered(found: tuple[Any, ...], what: str, positive: Any) -> tuple[Any, ...]:
    """The positive class last: it is class 1 for whatever comes after."""
    if positive is None:
        return found
    at = next((place for place, value in enumerate(found) if _is_class(value, positive, found)), None)
    if at is None:
        names = " or ".join(map(_shown, found))
        raise DataError(f"dataset.positive: must be a class of {what}", got=repr(positive), next_step=f"name {names}")
    return (*found[:at], *found[at + 1 :], found[at])


def _is_class(value: Any, named: Any, classes: tuple[Any, ...]) -> bool:
    """Whether `named` is the class `value`: a command line or a file may type it otherwise than the label does, "1" for 1, 1 for "1"."""
    if isinstance(value, str):
        return value == str(plain(named))
    if isinstance(named, str):
        words = {"false": False, "true": True} if set(classes) <= {0, 1} else {}
        try:
            named = words[named.lower()] if named.lower() in words else float(named)
        except ValueError:
            return False
    return bool(value == named) and not (isinstance(named, bool) and not set(classes) <= {0, 1})


def plain(value: Any) -> Any:
    """A Python scalar; whole floats as integers, for that is what a column of classes becomes where some tool saw a gap in it."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Decimal):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _weight(column: pd.Series[Any]) -> Floats:
    what = f"dataset.weight {column.name!r}"
    _refuse_missing(column, what)
    weight: Floats = numbers_of(column, what, "turn it into numbers").astype(np.float32)
    wrong = ~(np.isfinite(weight) & (weight >= 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{what}: must be 0 or more, and finite", got=f"{weight[row]:g} in row {row + 1:,}", next_step="correct the weights"
        )
    return weight


def _group(column: pd.Series[Any]) -> Indices:
    _refuse_missing(column, f"dataset.group {column.name!r}")
    try:
        return pd.factorize(column, sort=True)[0].astype(np.int64)
    except TypeError as error:
        raise DataError(
            f"dataset.group {column.name!r}: values must be of one sortable type", got=str(error), next_step="convert it"
        ) from error


_FIRST_TIME, _LAST_TIME = pd.Timestamp.min.ceil("D").tz_localize("UTC"), pd.Timestamp.max.floor("D").tz_localize("UTC")


def _time(column: pd.Series[Any]) -> npt.NDArray[Any]:
    """(n,) numbers as they are, or nanoseconds since the epoch, UTC."""
    what = f"dataset.time {column.name!r}"
    _refuse_missing(column, what)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(np.int64 if pd.api.types.is_integer_dtype(column.dtype) else np.float64)
    moments = pd.to_datetime(column, utc=True, errors="coerce", format="mixed" if pd.api.types.is_object_dtype(column.dtype) else None)
    if moments.isna().any():
        row = int(moments.isna().to_numpy().argmax())
        raise DataError(
            f"{what}: must be times or numbers",
            got=f"{_shown(plain(column.iloc[row]))} in row {row + 1:,}",
            next_step="write times as 2024-12-31T23:59:59",
        )
    beyond = ~moments.between(_FIRST_TIME, _LAST_TIME)
    if beyond.any():
        row = int(beyond.to_numpy().argmax())
        raise DataError(
            f"{what}: must lie between the years 1678 and 2262, for nanoseconds since 1970 in 64 bits reach no further",
            got=f"{_shown(plain(column.iloc[row]))} in row {row + 1:,}",
            next_step="replace what means never by a real time, or drop these rows in dataset.load",
        )
    nanoseconds: npt.NDArray[np.int64] = moments.dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
    return nanoseconds


def _content_sha256(names: object, arrays: dict[str, npt.NDArray[Any] | None]) -> str:
    digest = hashlib.sha256(repr(names).encode())
    for name, array in arrays.items():
        if array is not None:
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
