"""One key is one hash, whatever file it came from."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from toolkit.core.row_hashes import key_hashes, row_hashes, share_repeated

MOMENT = "2024-03-01 07:05:00"

SAME: dict[str, list[Any]] = {
    "a whole number": [7, 7.0, np.int8(7), "7", "7.0", "7.", "+7", "007", " 7 ", Decimal("7.00"), Decimal("7"), b"7"],
    "a negative one": [-7, "-7", -7.0, Decimal("-7.0"), "-007"],
    "one as Java writes it": [12345678, "1.2345678E7", 12345678.0, Decimal("1.2345678E+7")],
    "one beyond a float": [9007199254740993, "9007199254740993", Decimal("9007199254740993.00"), np.uint64(9007199254740993)],
    "one beyond 64 bits": [2**70 + 1, str(2**70 + 1), Decimal(2**70 + 1)],
    "a fraction": [7.5, "7.50", "07.5", Decimal("7.500"), "7.5E0"],
    "text": ["a-7", " a-7", b"a-7", "a-7   "],
    "a moment": [MOMENT, "2024-03-01T07:05:00.000", "2024-03-01T07:05:00Z", pd.Timestamp(MOMENT), pd.Timestamp(MOMENT, tz="UTC"), np.datetime64(MOMENT)],
    "a day": ["2024-03-01", "2024-03-01 00:00:00", dt.date(2024, 3, 1), pd.Timestamp("2024-03-01"), np.datetime64("2024-03-01")],
}  # fmt: skip


def hash_of(value: Any) -> int:
    return int(key_hashes(np.array([value], dtype=object))[0])


@pytest.mark.parametrize("name", SAME)
def test_a_key_is_the_same_however_it_is_written(name: str) -> None:
    assert len({hash_of(value) for value in SAME[name]}) == 1


@pytest.mark.parametrize(
    "column",
    [
        np.array([7, 8], dtype=np.uint16),
        np.array([7.0, 8.0, np.nan]),
        np.array([7, None, 8], dtype=object),
        np.array(["007", "8"]),
        pd.Series([7, 8, None], dtype="Int64").to_numpy(),
        pd.Series(["7.0", "8"]).to_numpy(),
    ],
)
def test_a_column_of_any_type_gives_the_same_keys(column: Any) -> None:
    assert set(key_hashes(np.array([7, 8])).tolist()) <= set(key_hashes(column).tolist())


def test_moments_as_a_column() -> None:
    column = pd.Series(pd.to_datetime(["2024-03-01", MOMENT, MOMENT + ".25"], format="ISO8601"))
    assert key_hashes(column.to_numpy()).tolist() == [hash_of("2024-03-01"), hash_of(MOMENT), hash_of(MOMENT + ".250")]


def test_keys_that_differ_stay_apart() -> None:
    values = [
        "0e1234",
        "0e999",
        "12e4567",
        "1_23",
        "12_3",
        "123",
        "a",
        "A",
        "",
        1,
        -1,
        1.5,
        0,
        "1e",
        "e1",
        "1.2.3",
        "2024-03-01",
        "2024-03-02",
    ]
    values += [10**17 + step for step in range(100)] + ["9" * 5_000, "1e999999999", float("inf")]
    assert len({hash_of(value) for value in values}) == len(values)


def test_rows_that_repeat() -> None:
    rows = row_hashes(np.array([[1, 2], [1, 2], [1, 3], [4, 4], [4, 4]], dtype=np.float32))
    assert share_repeated(rows) == 0.8
    assert share_repeated(rows, key_hashes(np.array([1, 2, 3, 4, 4]))) == 0.5, "a row twice under one key is one row"
    assert share_repeated(rows[:0]) == 0.0
