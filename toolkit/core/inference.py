"""From a table to an experiment: key, and what each column is; task and metric are of `inferred_label`. Each rule tells why it chose.

A column is a number, a category, or left out. Nothing is left out or repaired in silence: every such choice has a reason, which
`toolkit new` writes beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.core.column_kinds import (
    TextNumbers,
    as_numbers,
    has_whole_numbers,
    infinite_values,
    kind_of,
    names_identifiers,
    plain,
    text_numbers,
)
from toolkit.core.errors import DataError, nearest
from toolkit.core.inferred_label import MOST_CODES, Label, label_of
from toolkit.core.leaks import knows_label

MOST_CATEGORIES = 1000
MOST_ID_CATEGORIES = 50
LEAK_ROWS = 100
ROW_NUMBER_ROWS = 50
"""In shorter tables whole numbers without gaps or repeats may be chance."""
LOOKED_AT_ROWS = 20_000


@dataclass(frozen=True)
class Column:
    """A column beside label and key. `reason`: why it is left out, or what to look at; empty: nothing to say."""

    name: str
    role: Literal["number", "category", "excluded"]
    reason: str = ""
    is_date: bool = False
    is_suspect: bool = False


@dataclass(frozen=True)
class Inference:
    """The whole.

    Attributes:
        renamed: features whose names XGBoost does not take. infinite: used columns with infinite values.
        padded: used columns of digits with leading zeros, which the reader of a CSV file takes for numbers, and how many digits they have.
    """

    label: Label
    key: str | None
    key_reason: str
    columns: tuple[Column, ...]
    text_numbers: tuple[TextNumbers, ...]
    infinite: tuple[str, ...]
    renamed: Mapping[str, str]
    padded: Mapping[str, int]

    def names(self, role: str) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.role == role)


def infer(
    frame: pd.DataFrame,
    label: pd.Series[Any],
    *,
    key: str | None,
    identifiers: Sequence[str] = (),
    is_whole: bool = True,
    decimal: str = ".",
    padded: Mapping[str, int | None] | None = None,
) -> Inference:
    """Look at a table.

    Args:
        frame: rows from all over the table, all columns. is_whole: these are all.
        label: the whole label column.
        key: as the user named it, checked with `check_key`; identifiers: of `find_identifiers`; without `key` the first is the key.
        decimal: the mark that the reader took.
        padded: columns of digits with leading zeros, and how many digits all of them have: then `frame` has them as text. None: not as
            many, so that the zeros which the reader loses cannot be put back.

    Raises:
        DataError: nothing can be predicted from this: a label that is constant, missing, a date or free text, no column for a feature.
    """
    name = str(label.name)
    texts = {each: how for each in frame.columns if each != name and (how := text_numbers(frame[each], decimal)) is not None}
    whole = text_numbers(label, decimal)
    # A label of a few texts stays as it is: they are classes, the number-like ones, too.
    if whole is not None and (label.nunique() > MOST_CODES or (whole.thousands and not whole.placeholders)):
        texts[name] = whole
        label = as_numbers(label, whole)
    frame = frame.assign(**{each: as_numbers(frame[each], how) for each, how in texts.items()})
    found = label_of(label)
    key_reason = "as you said" if key else "no column has one value a row"
    if key is None and identifiers:
        key, key_reason = identifiers[0], "one value a row"
    frame = frame[frame[name].notna() & ~infinite_values(frame[name])]
    others = [each for each in frame.columns if each not in (name, key)]
    padded = padded or {}
    columns = tuple(
        Column(each, "excluded", _LOST_ZEROS)
        if padded.get(each, 1) is None and each not in identifiers
        else _column(frame[each], each in identifiers, is_whole)
        for each in others
    )
    columns = _without_leaks(frame, columns, found)
    features = [column.name for column in columns if column.role != "excluded"]
    if not features:
        left_out = ", ".join(f"{column.name!r} ({re.split('[:;,]', column.reason)[0]})" for column in columns[:5])
        raise DataError(
            "data: needs a column that can be a feature",
            got=f"beside label and key {left_out or 'none'}",
            next_step="add numbers or categories to the table",
        )
    used = [each for each in frame.columns if each == name or each in features]
    return Inference(
        found,
        key,
        key_reason,
        columns,
        tuple(texts[each] for each in used if each in texts),
        tuple(each for each in used if infinite_values(label if each == name else frame[each]).any()),
        _renamed(features, list(frame.columns)),
        {each: width for each, width in padded.items() if width is not None and (each == key or each in features)},
    )


_LOST_ZEROS = "codes with leading zeros, not all as long, so that reading CSV makes one of 01 and 1; to use them, write Parquet, with text"


# ---- columns


def find_identifiers(
    frame: pd.DataFrame, label: str, index_name: str | None, whole: Callable[[str], pd.Series[Any]] | None = None
) -> list[str]:
    """Columns that name the rows, the likeliest key first: the table's own index, unique text or whole numbers that are called so, and
    whole numbers that count the rows.

    Args:
        whole: where `frame` is a sample, gives a column of the whole table.
    """
    found = []
    for name in frame.columns:
        is_index = name == index_name
        if name == label or not _may_identify(frame[name], is_index, is_whole=whole is None):
            continue
        if whole is None or _may_identify(whole(name), is_index, is_whole=True):
            found.append(name)
    return sorted(found, key=lambda name: (name != index_name, not names_identifiers(name)))


def _may_identify(column: pd.Series[Any], is_index: bool, *, is_whole: bool) -> bool:
    kind = kind_of(column)
    if kind not in ("number", "text") or column.isna().any() or not column.is_unique:
        return False
    are_whole = kind == "number" and has_whole_numbers(column)
    if is_index or (names_identifiers(str(column.name)) and (kind == "text" or are_whole)):
        return True
    if not are_whole or len(column) < ROW_NUMBER_ROWS:
        return False
    return not is_whole or int(column.max()) - int(column.min()) == len(column) - 1


def check_key(column: pd.Series[Any]) -> None:
    """Refuse a key that the user named and that does not identify rows.

    Raises:
        DataError: missing or repeated values.
    """
    missing = int(column.isna().sum())
    if missing:
        raise DataError(f"--key {column.name!r}: must not be missing", got=f"{missing:,} missing of {len(column):,}", next_step=_OTHER_KEY)
    num_repeated = int(column.duplicated().sum())
    if num_repeated:
        raise DataError(
            f"--key {column.name!r}: must be unique", got=f"{num_repeated:,} repeated values in {len(column):,} rows", next_step=_OTHER_KEY
        )


_OTHER_KEY = "name another column, or leave --key out"


def check_name(option: str, name: str, columns: Sequence[str], where: str) -> None:
    """Refuse a column that is not there.

    Raises:
        DataError: with the nearest one.
    """
    if name not in columns:
        raise DataError(f"{option}: no such column in {where}", got=repr(name), next_step=nearest(name, columns))


def _column(column: pd.Series[Any], is_identifier: bool, is_whole: bool) -> Column:
    name, kind = str(column.name), kind_of(column)
    present = column.dropna()
    where = "" if is_whole else " in the rows looked at"
    if is_identifier:
        return Column(name, "excluded", "an identifier: it names rows and describes none")
    if kind == "empty":
        return Column(name, "excluded", "empty" + where)
    if kind == "other":
        return Column(name, "excluded", f"neither numbers, text nor dates: {type(present.iloc[0]).__name__}")
    if kind == "date":
        how = "" if _is_iso(present) else ", written as 2024-12-31"
        reason = f'dates: where they say when a row became known, give time="{{}}" and Split(by="time"){how}'
        return Column(name, "excluded", reason.format(name.replace('"', "'")), is_date=True)
    num_values = present.nunique()
    if num_values == 1 and len(present) == len(column):
        return Column(name, "excluded", "constant" + where)
    is_id = names_identifiers(name) and (kind == "text" or has_whole_numbers(present))
    if is_id and num_values > MOST_ID_CATEGORIES:
        rows = len(present) / num_values
        reason = f'an identifier, {rows:.1f} rows each: to keep those in one part, name it as group, with Split(by="group")'
        return Column(name, "excluded", reason)
    if kind == "number":
        return Column(name, "category" if is_id and not pd.api.types.is_bool_dtype(column.dtype) else "number")
    if num_values > len(present) / 2 and num_values > 2:
        return Column(name, "excluded", f"text: {num_values:,} different values in {len(present):,} rows")
    if num_values > MOST_CATEGORIES:
        return Column(name, "excluded", f"text with {num_values:,} different values: group the rare ones to use it as a category")
    return Column(name, "category")


def _is_iso(present: pd.Series[Any]) -> bool:
    first = present.iloc[0]
    return not isinstance(first, str) or re.match(r"\d{4}-\d\d-\d\d", first.strip()) is not None


def _renamed(features: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Names without [ ] <, which XGBoost refuses, for the features that have one."""
    used, renamed = set(taken), {}
    for name in features:
        if re.search(r"[\[\]<]", name):
            new = base = re.sub(r"\s*[\[\]]+\s*", "_", re.sub(r"\s*<\s*", "_below_", name)).strip("_ ") or "feature"
            number = 2
            while new in used:
                new, number = f"{base}_{number}", number + 1
            used.add(new)
            renamed[name] = new
    return renamed


# ---- leaks


def _without_leaks(frame: pd.DataFrame, columns: tuple[Column, ...], label: Label) -> tuple[Column, ...]:
    """Features that know the label are left out, unless nothing else is there; too little is known of a small table to say."""
    if len(frame) < LEAK_ROWS:
        return columns
    some = frame.iloc[:: max(1, len(frame) // LOOKED_AT_ROWS)]
    target = _target(some[label.name], label)
    if (target == target[0]).all():  # of rare positives, none may be among these rows
        return columns
    suspects = {
        column.name
        for column in columns
        if column.role != "excluded" and knows_label(some[column.name], target, label.task, is_category=column.role == "category")
    }
    if not suspects:
        return columns
    are_all = suspects == {column.name for column in columns if column.role != "excluded"}
    told = "alone it predicts the label: was it known before the label was? Then it may be a feature"
    return tuple(
        column if column.name not in suspects else Column(column.name, column.role if are_all else "excluded", told, is_suspect=True)
        for column in columns
    )


def _target(column: pd.Series[Any], label: Label) -> npt.NDArray[np.float64]:
    if label.classes is None:
        return pd.to_numeric(column).to_numpy(np.float64)
    places = {value: place for place, value in enumerate(label.classes)}
    return np.array([places[plain(value)] for value in column], dtype=np.float64)
