"""Rows and keys as 64-bit numbers: which rows are equal, and whether a model has seen a row. Shapes: n rows, d features."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Hashes = npt.NDArray[np.uint64]

WHOLE = re.compile(r"([+-]?\d{1,99}+)(?:\.0*+)?")
# With an exponent only as programs write numbers (1.0E7, 1e+16): 12e4567 may be a hexadecimal key.
FRACTION = re.compile(r"[+-]?(?:(?:\d++\.\d*+|\.\d++)(?:[eE][+-]?\d++)?|\d++[eE][+-]\d++)")
MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d(?:\.\d*[1-9])?)(?:\.?0*)(?:Z|\+00:?00)?)?")
MASK = (1 << 64) - 1


def row_hashes(features: npt.NDArray[np.float32]) -> Hashes:
    """(n,) hashes of whole rows (n, d), from their bits."""
    hashes = np.zeros(len(features), dtype=np.uint64)
    bits = features.view(np.uint32)
    for column in range(features.shape[1]):
        hashes ^= bits[:, column]
        _mix(hashes)
    return hashes


def key_hashes(keys: npt.NDArray[Any]) -> Hashes:
    """(n,) hashes of keys by what they mean: 7, 7.0, "7", "7.00", "007", " 7 " and Decimal("7.0") are one key, and so is a moment in
    whatever form, for the same table comes as CSV, as Parquet and from Spark.

    In doubt two keys count as one, so that what a model may have seen is refused: "007" and "7" may have been two. Floats from 2**53 on
    are taken at their word, though they have lost digits.
    """
    if keys.dtype.kind in "biu":
        hashes: Hashes = keys.astype(np.uint64)
    elif keys.dtype.kind == "f":
        hashes = _bits(keys)
    else:
        values = np.datetime_as_string(keys) if keys.dtype.kind == "M" else keys
        places, distinct = pd.factorize(values.astype(object), use_na_sentinel=False)
        hashes = _hashes_of_values(distinct)[places]
    _mix(hashes)
    return hashes


def num_common(some: Hashes, sorted_others: Hashes) -> int:
    """How many of `some` are among `sorted_others`."""
    if not len(sorted_others):
        return 0
    places = np.minimum(np.searchsorted(sorted_others, some), len(sorted_others) - 1)
    return int((sorted_others[places] == some).sum())


def share_repeated(rows: Hashes, keys: Hashes | None = None) -> float:
    """The share of rows (n,) that equal another one; with keys (n,), another one of another key."""
    if keys is not None:
        both = rows ^ keys
        _mix(both)
        rows = rows[np.unique(both, return_index=True)[1]]
    counts = np.unique(rows, return_counts=True)[1]
    return float(counts[counts > 1].sum() / max(len(rows), 1))


def _mix(hashes: Hashes) -> None:
    """One step of splitmix64, in place: bits of numbers differ in few places."""
    hashes += np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)


def _bits(numbers: npt.NDArray[Any]) -> Hashes:
    """(n,) whole numbers as integers, others as their float's bits."""
    floats = numbers.astype(np.float64)
    whole = (np.floor(floats) == floats) & (np.abs(floats) < 2**63)
    bits = floats.view(np.uint64).copy()
    bits[whole] = floats[whole].astype(np.int64).view(np.uint64)
    return bits


def _hashes_of_values(values: npt.NDArray[Any]) -> Hashes:
    """(n,) of distinct objects; those of text are hashes of the text, those of numbers as in `_bits`."""
    whole: dict[int, int] = {}
    fractions: dict[int, float] = {}
    texts: list[str] = []
    for place, value in enumerate(values.tolist()):
        text = value if isinstance(value, str) else _text(value)
        text = text.strip()
        if found := WHOLE.fullmatch(text):
            whole[place] = int(found[1]) & MASK
        elif FRACTION.fullmatch(text):
            fractions[place] = float(text)
        elif found := MOMENT.fullmatch(text):
            text = f"{found[1]} {found[2] or '00:00:00'}"
        texts.append(text)
    hashes = pd.util.hash_array(np.array(texts, dtype=object), categorize=False)
    hashes[list(whole)] = np.fromiter(whole.values(), np.uint64, len(whole))
    hashes[list(fractions)] = _bits(np.fromiter(fractions.values(), np.float64, len(fractions)))
    return hashes


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    # str(Decimal) may have an exponent, and that of a whole number its point.
    return f"{value:f}" if isinstance(value, Decimal) and value.is_finite() else str(value)
