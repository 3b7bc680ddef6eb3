"""Whether a checkpoint has read all there is, told without Spark; in doubt it has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from toolkit.core.table_names import TableName
from toolkit.engines.spark_checkpoint import has_read_all

pytestmark = pytest.mark.engine
ROWS = pa.table({"id": [1, 2]})


def checkpoint_of(folder: Path, offset: dict[str, Any], *, number: int = 1, is_committed: bool = True) -> Path:
    for name in ("offsets", "commits", "sources/0"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "offsets" / str(number)).write_text("v1\n{}\n" + json.dumps(offset))
    if is_committed:
        (folder / "commits" / str(number)).write_text("v1\n{}")
    return folder


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    for _ in range(2):
        deltalake.write_deltalake(tmp_path / "rows", ROWS, mode="append")
    return tmp_path / "rows"


def offset_of(folder: Path, **changed: Any) -> dict[str, Any]:
    """As Delta's stream writes it when it has read versions 0 and 1."""
    table_id = str(deltalake.DeltaTable(folder).metadata().id)
    return {"sourceVersion": 1, "reservoirId": table_id, "reservoirVersion": 2, "index": -1, "isStartingVersion": False, **changed}


def test_a_delta_table_that_was_read(delta: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "checkpoint", offset_of(delta))
    table = TableName.parse(f"delta:{delta}", role="input")
    assert has_read_all(table, checkpoint)
    deltalake.write_deltalake(delta, ROWS, mode="append")
    assert not has_read_all(table, checkpoint)


@pytest.mark.parametrize(
    "changed", [{"reservoirVersion": 1}, {"reservoirVersion": 1, "index": 0}, {"index": 0}, {"reservoirId": "another"}], ids=str
)
def test_a_delta_table_that_was_not(delta: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    checkpoint = checkpoint_of(tmp_path / "checkpoint", offset_of(delta, **changed))
    assert not has_read_all(TableName.parse(f"delta:{delta}", role="input"), checkpoint)


def test_a_batch_that_was_not_committed(delta: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "checkpoint", offset_of(delta), is_committed=False)
    assert not has_read_all(TableName.parse(f"delta:{delta}", role="input"), checkpoint)


def test_no_checkpoint_and_no_folder(delta: Path, tmp_path: Path) -> None:
    assert not has_read_all(TableName.parse(f"delta:{delta}", role="input"), tmp_path / "none")
    checkpoint = checkpoint_of(tmp_path / "checkpoint", offset_of(delta))
    assert not has_read_all(TableName.parse("main.wine.rows", role="input"), checkpoint)


def test_a_folder_of_files(tmp_path: Path) -> None:
    """Spark's rules for names that it does not see; its log has URIs."""
    folder = tmp_path / "rows of today"
    names = ["1.parquet", "day=1/2 %.parquet", "_day=2/3.parquet"]
    for name in (*names, "_SUCCESS", ".4.parquet", "_temporary/5.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    checkpoint = checkpoint_of(tmp_path / "checkpoint", {"logOffset": 1})
    entries = [{"path": (folder / name).as_uri(), "timestamp": 1, "batchId": number} for number, name in enumerate(names)]
    log = checkpoint / "sources" / "0"
    (log / "0").write_text("v1\n" + "\n".join(map(json.dumps, entries[:2])))
    table = TableName.parse(f"parquet:{folder}", role="input")
    assert not has_read_all(table, checkpoint)
    (log / "1").write_text("v1\n" + json.dumps(entries[2]))
    assert has_read_all(table, checkpoint)
    (folder / "day=1" / "6.parquet").touch()
    assert not has_read_all(table, checkpoint)
