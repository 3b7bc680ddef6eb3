"""A task of a scoring by files, without Spark: what is a number, what Delta's log says of a file, how work is divided."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import Feature, RowRules, ScoringModel
from toolkit.engines import files_tables
from toolkit.engines.delta_files import SourceFile
from toolkit.engines.files_columns import Schemas
from toolkit.engines.files_rows import as_numbers, check_rows, raw_row
from toolkit.engines.files_tables import divide
from toolkit.engines.files_tasks import Piece
from toolkit.engines.files_writer import FileWriter, delta_stats

NUMBERS = {
    "1": 1.0, " 2.5 ": 2.5, "\t1e3\n": 1000.0, "+.5": 0.5, "-7.": -7.0, "1E-2": 0.01, "3d": 3.0, "4F": 4.0, "Infinity": np.inf, "-inf": -np.inf,
    "1e39": np.inf, "NaN": np.nan,
}  # fmt: skip
TEXTS = ("", " ", "x", "1_000", "0x10", "1,5", "１", "nan(1)", "1 2", "--1", "e5", "infinit")


def test_a_text_is_the_number_that_spark_makes_of_it() -> None:
    found, wrong = as_numbers(pa.array([*NUMBERS, *TEXTS, None]))
    np.testing.assert_allclose(found[: len(NUMBERS)], np.array(list(NUMBERS.values()), dtype=np.float32))
    assert np.isnan(found[len(NUMBERS) :]).all()
    assert wrong is not None and wrong.tolist() == [False] * len(NUMBERS) + [True] * len(TEXTS) + [False]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 3], pa.int8()),
        pa.array([1, None, 3], pa.int64()),
        pa.array([1, None, 3], pa.decimal128(5, 2)),
        pa.array([1, None, 3], pa.float64()),
        pa.array(["1", None, "3"], pa.large_string()),
        pa.chunked_array([[1.0, None, 3.0]]).combine_chunks(),
    ],
    ids=lambda column: str(column.type),
)
def test_any_number_is_a_feature(column: pa.Array) -> None:
    found, wrong = as_numbers(column)
    assert found.dtype == np.float32 and wrong is None
    np.testing.assert_array_equal(found, [1, np.nan, 3])
    np.testing.assert_array_equal(as_numbers(pa.array([True, None]))[0], [1, np.nan])


def test_a_row_has_the_first_reason_in_their_order() -> None:
    batch = pa.record_batch({"id": [None, 1, 1, 2, 3], "a": [np.inf, np.inf, 0.0, 1.0, 1e39], "b": ["x", "x", "x", "1", "inf"]})
    columns, reasons = check_rows(batch, [Feature("a"), Feature("b")], "id", pa.array([1]))
    assert reasons is not None
    assert reasons.tolist() == ["key_missing", "uncastable: b", "uncastable: b", None, "infinite: a"]
    assert len(columns) == 2
    assert check_rows(batch.slice(3, 1), [Feature("a"), Feature("b")], "id", None)[1] is None


def test_a_raw_row_is_json() -> None:
    row = {"a": float("nan"), "b": [1, float("inf")], "c": None, "d": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "e": {"ü": b"x"}}
    at = "2026-01-02T00:00:00.000000+00:00"
    assert json.loads(raw_row(row)) == {"a": "NaN", "b": [1, "Infinity"], "c": None, "d": at, "e": {"ü": "eA=="}}


def written(folder: Path, table: pa.Table) -> dict[str, Any]:
    writer = FileWriter(table.schema, folder, "x.parquet")
    for batch in table.to_batches(max_chunksize=2):
        writer.write(batch)
    done = writer.close()
    assert done is not None and done.num_bytes == (folder / "x.parquet").stat().st_size
    assert str(pq.read_table(folder / "x.parquet").to_pylist()) == str(table.to_pylist())
    assert [path.name for path in folder.iterdir()] == ["x.parquet"]
    found = json.loads(done.stats)
    assert isinstance(found, dict)
    return found


def test_bounds_hold_for_what_they_are_of(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 1, 0, 0, 0, 1500, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "whole": pa.array([3, None, -1]),
            "fraction": [0.5, 1.5, None],
            "nan": [1.0, float("nan"), 2.0],
            "infinite": [1.0, float("inf"), 2.0],
            "short": ["b", "a", "c"],
            "long": ["a" * 40, "b", "z" * 40],
            "flag": [True, False, None],
            "day": [datetime.date(2026, 1, 2), None, datetime.date(2026, 1, 1)],
            "at": pa.array([moment, moment, None], pa.timestamp("us", "UTC")),
            "list": pa.array([[1.0], None, []], pa.list_(pa.float64())),
            "none": pa.array([None, None, None], pa.int64()),
        }
    )
    found = written(tmp_path, table)
    assert found["numRecords"] == 3
    assert found["minValues"] == {"whole": -1, "fraction": 0.5, "short": "a", "day": "2026-01-01", "at": "2026-01-01T00:00:00.001Z"}
    assert found["maxValues"] == {"whole": 3, "fraction": 1.5, "short": "c", "day": "2026-01-02", "at": "2026-01-01T00:00:00.002Z"}
    assert found["nullCount"] | {"whole": 1, "none": 3, "nan": 0} == found["nullCount"]


def test_only_the_first_columns_have_bounds(tmp_path: Path) -> None:
    found = written(tmp_path, pa.table({f"c{number}": [number] for number in range(40)}))
    assert len(found["minValues"]) == 32


def test_an_abandoned_file_leaves_nothing(tmp_path: Path) -> None:
    writer = FileWriter(pa.schema([("a", pa.int64())]), tmp_path, "x.parquet")
    assert writer.close() is None
    writer.write(pa.record_batch({"a": [1]}))
    writer._flush()
    writer.abandon()
    assert not list(tmp_path.iterdir())
    assert delta_stats.__doc__


@given(
    sizes=st.lists(st.integers(0, 400 * 2**20), max_size=30), num_cores=st.integers(1, 64), num_groups=st.integers(1, 50)
)  # fmt: skip
def test_each_row_group_is_in_one_task(sizes: list[int], num_cores: int, num_groups: int) -> None:
    files = [SourceFile(Piece(f"/no/{number}"), size) for number, size in enumerate(sizes)]

    class Metadata:
        num_row_groups = num_groups

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_tables.pq, "read_metadata", lambda path: Metadata)
        tasks = divide(files, num_cores)
    assert all(tasks)
    found = sorted((piece.path, group) for task in tasks for piece in task for group in range(piece.part, num_groups, piece.num_parts))
    assert found == sorted((file.piece.path, group) for file in files for group in range(num_groups))


def test_columns_must_fit_what_is_there() -> None:
    spec = {"task": "binary", "classes": [0, 1], "threshold": None}
    model = ScoringModel("m", 1, "portable", "0" * 64, (Feature("a"), Feature("kind", ("x", "y"))), Path(), 0.0, spec)

    def schemas(columns: dict[str, pa.DataType], there: pa.Schema | None = None, **rules: Any) -> Schemas:
        return Schemas.of(
            pa.schema(list(columns.items())),
            model,
            RowRules(**rules),
            location="T",
            there=there,
            there_quarantined=None,
            with_batch_id=True,
        )

    columns = {"id": pa.int32(), "a": pa.float32(), "kind": pa.string()}
    first = schemas(columns, key="id")
    assert first.scores.field("predicted_label").type == pa.int64() and first.quarantine.names[:3] == ["quarantine_reason", "id", "raw_row"]
    wider = first.scores.set(0, pa.field("id", pa.int64()))
    again = schemas(columns | {"new": pa.string()}, wider, key="id")
    assert again.scores == wider and again.columns.field("id").type == pa.int64()
    with pytest.raises(ScoringError, match="id as int32 instead of int64"):
        schemas(columns | {"id": pa.int64()}, first.scores)
    with pytest.raises(ScoringError, match=r"feature 'kind' must hold values such as 'x' .* got int64"):
        schemas(columns | {"kind": pa.int64()})
    with pytest.raises(ScoringError, match=r"feature 'a' must hold numbers .* got timestamp"):
        schemas(columns | {"a": pa.timestamp("us")})
    with pytest.raises(ScoringError, match="no column may have a name that scoring adds, got 'prediction'"):
        schemas(columns | {"Prediction": pa.int64()})
    assert schemas(columns | {"Prediction": pa.int64()}, keep=("a",)).scores.names[:2] == ["a", "prediction"]
