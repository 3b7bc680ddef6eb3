"""Which rows of an Arrow batch are bad, and why: as `spark_rows`, whose rules these are. n: rows of a batch."""

from __future__ import annotations

import base64
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toolkit.core.scoring import INFINITE, KEY_DUPLICATED, KEY_MISSING, UNCASTABLE, Feature

Mask = npt.NDArray[np.bool_]

# What Spark's try_cast takes for a number; its words for the special ones, and Java's suffixes, are among them.
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?[df]?|nan|inf|infinity)", re.IGNORECASE | re.ASCII)


def check_rows(
    batch: pa.RecordBatch, features: Sequence[Feature], key: str | None, duplicated: pa.Array | None
) -> tuple[list[Any], npt.NDArray[np.object_] | None]:
    """The features as the scorer wants them, and of each row the first reason why it is bad, or None.

    Returns:
        columns (n,): numbers as NumPy arrays, categories as Arrow has them; reasons (n,), or None where all rows are good.
    """
    columns: list[Any] = []
    missing: list[tuple[Mask, str]] = []
    uncastable: list[tuple[Mask, str]] = []
    infinite: list[tuple[Mask, str]] = []
    repeated: list[tuple[Mask, str]] = []
    if key is not None:
        keys = batch.column(key)
        if keys.null_count:
            missing.append((keys.is_null().to_numpy(zero_copy_only=False), KEY_MISSING))
        if duplicated is not None and len(duplicated):
            repeated.append((pc.is_in(keys, value_set=duplicated).to_numpy(zero_copy_only=False), KEY_DUPLICATED))
    for feature in features:
        column = batch.column(feature.name)
        if feature.categories is not None:
            columns.append(column)
            continue
        numbers, wrong = as_numbers(column)
        columns.append(numbers)
        if wrong is not None:
            uncastable.append((wrong, f"{UNCASTABLE}: {feature.name}"))
        beyond = np.isinf(numbers)
        if beyond.any():
            infinite.append((beyond, f"{INFINITE}: {feature.name}"))
    reasons = None
    for mask, reason in (*missing, *uncastable, *infinite, *repeated):
        if mask.any():
            reasons = np.full(batch.num_rows, None, dtype=object) if reasons is None else reasons
            reasons[mask & np.array([each is None for each in reasons])] = reason
    return columns, reasons


def as_numbers(column: pa.Array) -> tuple[npt.NDArray[np.float32], Mask | None]:
    """(n,) float32, NaN where missing, infinite where beyond it; (n,) which are text that is no number, None where none is."""
    wrong = None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column, wrong = _parsed(column)
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        column = column.cast(pa.float64())
    with np.errstate(over="ignore"):
        return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False), wrong


def _parsed(column: pa.Array) -> tuple[pa.Array, Mask | None]:
    """As Spark's try_cast: white space around a number counts for nothing."""
    distinct = pc.dictionary_encode(column)
    texts = [text.strip() for text in distinct.dictionary.to_pylist()]
    are_numbers = [bool(_NUMBER.fullmatch(text)) for text in texts]
    numbers = [float(text.rstrip("dDfF") if text[-1:] in "dDfF" and text[-2:].lower() != "nf" else text) if good else None
               for text, good in zip(texts, are_numbers, strict=True)]  # fmt: skip
    found = pa.array(numbers, pa.float64()).take(distinct.indices)
    if all(are_numbers):
        return found, None
    return found, pa.array([not good for good in are_numbers]).take(distinct.indices).fill_null(False).to_numpy(zero_copy_only=False)


def raw_row(row: Mapping[str, Any]) -> str:
    """As Spark's `to_json`: what JSON has no number for is text."""
    return json.dumps(_plain(row), default=_text, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _text(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, datetime.date) else str(value)
