"""Rows in Parquet files: who reads which, and as what numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.core.data import Part
from toolkit.core.encoding import encode
from toolkit.core.errors import DataError
from toolkit.core.experiment import Dataset
from toolkit.engines import parquet_shards
from toolkit.engines.parquet_shards import Chunk, Columns, divide, files_of, read

COLUMNS = Columns({"x": None}, "y", are_codes=True)


def numbered(folder: Path, sizes: Sequence[int], row_group: int = 4) -> tuple[str, ...]:
    """A file for each of `sizes`; column x counts all rows."""
    first = 0
    for number, size in enumerate(sizes):
        x = np.arange(first, first + size, dtype=np.float32)
        pq.write_table(pa.table({"x": x, "y": x % 2}), folder / f"part-{number}.parquet", row_group_size=row_group)
        first += size
    return files_of(folder)


def matrix(chunks: Sequence[Chunk], columns: Columns) -> Any:
    return np.concatenate(list(read(chunks, columns)))


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7, 23])
@pytest.mark.parametrize("sizes", [[23], [1, 20, 2], [9, 0, 14]])
def test_each_row_is_one_worker_s_and_parts_are_even(tmp_path: Path, sizes: list[int], num_workers: int) -> None:
    files = numbered(tmp_path, sizes)
    parts = divide(files, COLUMNS, num_workers)
    rows = [matrix(part, COLUMNS)[:, 0] for part in parts]
    assert np.concatenate(rows).tolist() == list(range(23))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert [sum(chunk.num_rows for chunk in part) for part in parts] == [len(part) for part in rows]
    assert [part[0].first_row for part in parts] == [part[0] for part in rows]
    assert divide(files, COLUMNS, num_workers) == parts


def test_fewer_rows_than_workers(tmp_path: Path) -> None:
    got = refusal(divide, numbered(tmp_path, [3]), COLUMNS, 4)
    assert got == (
        f"distributed training needs at least as many rows as workers, got 3 rows and 4 workers in {tmp_path}; "
        "lower training.num_workers, or train without --distributed"
    )


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    assert refusal(files_of, tmp_path).startswith(f"data: a folder must hold Parquet files, got {tmp_path}; ")
    assert refusal(files_of, tmp_path / "absent").startswith("data: a folder must hold Parquet files")
    numbered(tmp_path, [5])
    for note in ("_metadata.parquet", ".part-9.parquet", "_temporary/part-8.parquet"):
        (tmp_path / note).parent.mkdir(exist_ok=True)
        (tmp_path / note).touch()
    assert files_of(tmp_path) == (str(tmp_path / "part-0.parquet"),) == files_of(tmp_path / "part-0.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    assert refusal(divide, files_of(tmp_path), COLUMNS, 1).startswith(f"data: not a readable Parquet file, got {tmp_path}/torn.parquet: ")


def test_a_column_that_one_file_lacks(tmp_path: Path) -> None:
    files = numbered(tmp_path, [5])
    pq.write_table(pa.table({"X": [1.0], "y": [0.0]}), tmp_path / "part-1.parquet")
    got = refusal(divide, files_of(tmp_path), COLUMNS, 1)
    assert files[0] not in got and got == f"data: no such column in {tmp_path}/part-1.parquet, got 'x'; known: X, y"


def test_what_is_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    part = Part(random.random((1000, 3), dtype=np.float32), np.arange(1000, dtype=np.float32) % 3, np.ones(1000, dtype=np.float32) / 3)
    part.features[::7, 1] = np.nan
    columns = Columns({"a": None, "b": None, "c": ("red", "white")}, "label", classes=(1, 2, 3), weight="w", are_codes=True)
    # A file of 256 rows, and blocks of 64.
    monkeypatch.setattr(parquet_shards, "BLOCK_BYTES", 64 * 5 * 4)
    monkeypatch.setattr(parquet_shards, "_FILE_BYTES", 256 * 5 * 4)
    files = parquet_shards.write(part, columns, tmp_path / "new")
    assert files == files_of(tmp_path / "new") and len(files) == 4
    blocks = list(read([chunk for chunks in divide(files, columns, 3) for chunk in chunks], columns))
    assert max(map(len, blocks)) <= 64 and all(block.flags.c_contiguous and block.dtype == np.float32 for block in blocks)
    assert part.weight is not None
    expected = np.column_stack([part.features, part.label, part.weight]).astype(np.float32)
    found = np.concatenate(blocks)
    assert found.tobytes() != expected.tobytes() and np.abs(np.corrcoef(found[:, 0], np.arange(1000))[0, 1]) < 0.1
    assert sorted(row.tobytes() for row in found) == sorted(row.tobytes() for row in expected)
    again = parquet_shards.write(part, columns, tmp_path / "again")
    assert [Path(file).read_bytes() for file in again] == [Path(file).read_bytes() for file in files]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    part = Part(np.zeros((1, 1), dtype=np.float32), np.zeros(1, dtype=np.float32))
    got = refusal(parquet_shards.write, part, COLUMNS, tmp_path / "file" / "rows")
    assert got == f"training.storage_path must be writable, got {tmp_path}/file/rows: Not a directory; free space, or name another"


def test_values_become_the_same_numbers_as_in_a_single_process(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "number": [0.5, np.nan, -0.0, 3e30],
            "count": pd.array([1, None, 3, 2**40], dtype="Int64"),
            "flag": [True, False, True, False],
            "colour": ["red", None, "white", "red"],
            "code": [7, 7, 9, 8],
            "good": ["no", "yes", "yes", "no"],
            "w": [1, 2, 0, 4],
        }
    )
    loaded = encode(frame, "function", "a test", Dataset(load="a", label="good", weight="w", categorical=("colour", "code")), "binary")
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=3)
    columns = Columns({name: loaded.categories.get(name) for name in loaded.feature_names}, "good", loaded.classes, "w")
    found = matrix(divide(files_of(tmp_path), columns, 1)[0], columns)
    assert loaded.weight is not None
    assert found.tobytes() == np.column_stack([loaded.features, loaded.label, loaded.weight]).tobytes()


@pytest.mark.parametrize(
    ("rows", "classes", "rule"),
    [
        ({"x": ["1", "2", "b"], "y": [0, 1, 0]}, (0, 1), "feature 'x': must be numeric, got 'b' in row 3"),
        ({"x": [1.0, np.inf, 2.0], "y": [0, 1, 0]}, (0, 1), "feature 'x': must be finite and below 3.4e38"),
        ({"x": [1.0, 2.0, 3.0], "y": [0, 1, None]}, (0, 1), "label 'y': must not be missing, or unknown, got nan in row 3"),
        ({"x": [1.0, 2.0, 3.0], "y": [0, 1, 2]}, (0, 1), "label 'y': must not be missing, or unknown, got 2 in row 3"),
        ({"x": [1.0, 2.0, 3.0], "y": [0.5, 1.5, None]}, None, "label 'y': must not be missing, or unknown, got nan in row 3"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, rows: dict[str, Any], classes: tuple[int, ...] | None, rule: str) -> None:
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    columns = Columns({"x": None}, "y", classes)
    assert refusal(matrix, divide(files_of(tmp_path), columns, 1)[0], columns).startswith(rule)


def test_weights_that_do_not_fit_and_rows_that_count_from_the_table_s_first(tmp_path: Path) -> None:
    columns = Columns({"x": None}, "y", weight="w")
    for number, weights in enumerate([[1.0, 1.0], [1.0, -1.0]]):
        pd.DataFrame({"x": [1.0, 2.0], "y": [0.0, 1.0], "w": weights}).to_parquet(tmp_path / f"part-{number}.parquet")
    _, last = divide(files_of(tmp_path), columns, 2)
    assert refusal(matrix, last, columns) == "dataset.weight 'w': must be 0 or more, got -1.0 in row 4; correct or drop these rows"


def test_a_row_group_that_is_larger_than_memory_comes_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_shards, "BLOCK_BYTES", 10 * 2 * 4)
    files = numbered(tmp_path, [100], row_group=100)
    second = divide(files, COLUMNS, 3)[1]
    blocks = [block[:, 0].tolist() for block in read(second, COLUMNS)]
    assert [row for block in blocks for row in block] == list(range(33, 66)) and max(map(len, blocks)) == 10
