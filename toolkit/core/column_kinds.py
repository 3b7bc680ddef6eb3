"""What the values of a column are: numbers, text, dates, numbers that were read as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd

Kind = Literal["empty", "number", "text", "date", "other"]

PLACEHOLDERS = 5
"""So many different texts among numbers may mean missing."""

_PLAIN = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_ENGLISH = r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?"
_CONTINENTAL = r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?"
_DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ].*)?")
_IDENTIFIER = frozenset({"code", "guid", "id", "ident", "idx", "index", "key", "nr", "number", "pk", "rowid", "unnamed", "uuid"})


@dataclass(frozen=True)
class TextNumbers:
    """A column of numbers that were read as text: what divides thousands, what the decimals, and which texts mean missing."""

    name: str
    thousands: str | None
    decimal: str
    placeholders: tuple[str, ...]
    example: str


def kind_of(column: pd.Series[Any]) -> Kind:
    """What the values are: text that is written as dates are is dates; what is nested, binary or mixed is other."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    present = column.dropna()
    if present.empty:
        return "empty"
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return "date"
    if pd.api.types.is_numeric_dtype(column.dtype):
        return "other" if pd.api.types.is_complex_dtype(column.dtype) else "number"
    inferred = pd.api.types.infer_dtype(present)
    if inferred == "string":
        some = present.iloc[:: max(1, len(present) // 1000)]
        return "date" if some.map(lambda text: _DATE.fullmatch(text.strip()) is not None).all() else "text"
    if inferred in ("boolean", "decimal", "integer", "floating", "mixed-integer-float"):
        return "number"
    return "date" if inferred in ("date", "datetime", "datetime64") else "other"


def names_identifiers(name: str) -> bool:
    """Whether a column's name says that its values name things: `customerId`, `order_nr`, `Unnamed: 0`."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower()
    return not _IDENTIFIER.isdisjoint(re.split(r"[\W_]+", words))


def has_whole_numbers(column: pd.Series[Any]) -> bool:
    if pd.api.types.is_bool_dtype(column.dtype):
        return False
    values = pd.to_numeric(column.dropna(), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return bool(np.isfinite(values).all() and (values == np.floor(values)).all())


def infinite_values(column: pd.Series[Any]) -> pd.Series[bool]:
    if not pd.api.types.is_float_dtype(column.dtype):
        return pd.Series(False, index=column.index)
    return pd.Series(np.isinf(column.to_numpy(np.float64, na_value=np.nan)), index=column.index)


def text_numbers(column: pd.Series[Any], decimal: str = ".") -> TextNumbers | None:
    """How a column of text that holds numbers is to be read; None: it does not, or its texts are codes, with leading zeros.

    Up to `PLACEHOLDERS` different other texts, on at most a tenth of the rows, count as missing: `?`, `n/a`, `-`.
    """
    if kind_of(column) != "text":
        return None
    present = column.dropna().astype(str).str.strip()
    counts = present.value_counts()
    # Where the reader took the comma for the decimal mark, what is left as text has points between its thousands.
    styles = [(_PLAIN, None, "."), (_ENGLISH, ",", "."), (_CONTINENTAL, ".", ",")]
    for pattern, thousands, mark in styles if decimal == "." else styles[::-1]:
        is_number = counts.index.str.fullmatch(pattern)
        others = counts[~is_number]
        numbers = counts.index[is_number]
        if len(numbers) < 2 or len(others) > PLACEHOLDERS or others.sum() > 0.1 * len(present):
            continue
        if numbers.str.fullmatch(r"[+-]?0\d+").any():
            return None
        example = next((text for text in numbers if thousands and thousands in text), numbers[0])
        return TextNumbers(str(column.name), thousands, mark, tuple(others.index), example)
    return None


def as_numbers(column: pd.Series[Any], how: TextNumbers) -> pd.Series[Any]:
    """(n,) floats; missing where the text is a placeholder."""
    text = column.str.strip()
    text = text.mask(text.isin(how.placeholders))
    if how.thousands:
        text = text.str.replace(how.thousands, "", regex=False).str.replace(how.decimal, ".", regex=False)
    return pd.to_numeric(text)


def plain(value: Any) -> Any:
    """A Python scalar; whole floats as integers, as the classes of an experiment are."""
    value = value.item() if isinstance(value, np.generic) else value
    value = float(value) if isinstance(value, Decimal) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
