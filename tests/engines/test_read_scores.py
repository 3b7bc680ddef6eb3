"""`read_scores`: Parquet and Delta outputs, with pandas and with Spark, which agree."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engines.spark_fixtures import own_session
from toolkit.core.errors import ScoringError
from toolkit.engines import parquet_batches as batches
from toolkit.engines.parquet_batches import Replaces
from toolkit.scores import read_scores

pytestmark = pytest.mark.engine

DAY = datetime.datetime(2026, 3, 29, tzinfo=datetime.UTC)  # when Berlin's clocks are put forward


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("read_scores"), {"spark.sql.session.timeZone": "Europe/Berlin"}) as session:
        yield session


def hour(number: int) -> datetime.datetime:
    return DAY + datetime.timedelta(hours=number)


def commit(output: Path, batch_id: int, replaces: Replaces = None) -> None:
    batches.commit(output, batches.manifest_of(output, batch_id, replaces=replaces))


def add(output: Path, batch_id: int, hours: list[int | None], replaces: tuple[int, int] | None = None, *, kind: str = "zoned") -> None:
    """As the engine `files` writes it."""
    folder = batches.batch_folder(output, batch_id)
    folder.mkdir(parents=True)
    moments: list[Any] = [None if each is None else hour(each) for each in hours]
    types: dict[str, Any] = {"zoned": pa.timestamp("us", tz="UTC"), "naive": pa.timestamp("us"), "date": pa.date32()}
    if kind != "zoned":
        moments = [each and each.replace(tzinfo=None) for each in moments]
    keys = pa.array([100 * batch_id + number for number in range(len(hours))], pa.int64())
    pq.write_table(pa.table({"wine_id": keys, "at": pa.array(moments, types[kind])}), folder / "0.parquet")
    commit(output, batch_id, replaces and ("at", hour(replaces[0]).isoformat(), hour(replaces[1]).isoformat()))


def add_by_spark(session: Any, output: Path, batch_id: int, hours: list[int | None], replaces: tuple[int, int] | None = None) -> None:
    rows = [(100 * batch_id + number, None if at is None else hour(at), batch_id) for number, at in enumerate(hours)]
    frame = session.createDataFrame(rows, "wine_id bigint, at timestamp, batch_id bigint")
    frame.repartition(2).write.mode("overwrite").parquet(str(batches.batch_folder(output, batch_id)))
    commit(output, batch_id, replaces and ("at", hour(replaces[0]).isoformat(), hour(replaces[1]).isoformat()))


def agree(session: Any, output: Path | str, columns: list[str] | None = None) -> pd.DataFrame:
    """The pandas frame by key, which Spark's equals."""
    ours = read_scores(output, columns=columns)
    by = [name for name in ("batch_id", "wine_id") if name in ours]
    ours = ours.sort_values(by, ignore_index=True)
    frame = read_scores(output, columns=columns, session=session)
    assert dict(frame.dtypes)["batch_id"] == "bigint" and ours["batch_id"].dtype == "int64"
    theirs = pa.table(frame.toArrow()).to_pandas().sort_values(by, ignore_index=True)
    for each in (ours, theirs):
        for name in each.select_dtypes("datetimetz").columns:
            each[name] = each[name].dt.tz_convert("UTC").astype("datetime64[us, UTC]")
    pd.testing.assert_frame_equal(ours[sorted(ours)], theirs[sorted(theirs)])
    return ours


def keys(frame: pd.DataFrame) -> list[int]:
    return [int(each) for each in frame["wine_id"]]


# ---- Parquet


@pytest.mark.parametrize("kind", ["zoned", "naive", "date"])
def test_replaced_windows(session: Any, tmp_path: Path, kind: str) -> None:
    add(tmp_path, 0, [0, 1, 2, 24, 25, None], kind=kind)
    add(tmp_path, 1, [2, None], (1, 25), kind=kind)
    add(tmp_path, 2, [3], (2, 3), kind=kind)
    add(tmp_path, 3, [2], kind=kind)
    # As dates the hours of the first day are its midnight, which no window holds.
    expected = [0, 1, 2, 5, 100, 101, 200, 300] if kind == "date" else [0, 4, 5, 101, 200, 300]
    assert keys(agree(session, tmp_path)) == expected
    assert list(read_scores(tmp_path)) == ["wine_id", "at", "batch_id"]


def test_batches_of_both_engines(session: Any, tmp_path: Path) -> None:
    """Spark writes timestamps in its old form, and the batch's number in rows and path."""
    add_by_spark(session, tmp_path, 0, [0, 1, 2, None])
    add(tmp_path, 1, [1, 5])
    add_by_spark(session, tmp_path, 2, [1], (1, 2))
    found = agree(session, tmp_path)
    assert keys(found) == [0, 2, 3, 101, 200]
    assert found["at"].tolist()[:2] == [pd.Timestamp(hour(0)), pd.Timestamp(hour(2))]
    assert found["batch_id"].tolist() == [0, 0, 0, 1, 2]


def test_a_long_history(session: Any, tmp_path: Path) -> None:
    """What pandas reads is held to a model in tests/unit/test_parquet_batches.py."""
    random = np.random.default_rng(7)
    for batch_id in range(40):
        hours = [None if each < 0 else int(each) for each in random.integers(-2, 30, size=20)]
        start, end = sorted(int(each) for each in random.integers(0, 30, size=2))
        add(tmp_path, batch_id, hours, (start, end) if batch_id % 3 == 2 else None)
    assert len(agree(session, tmp_path)) > 200


def test_a_full_scoring_replaces_all(session: Any, tmp_path: Path) -> None:
    add(tmp_path, 0, [0, None])
    add_by_spark(session, tmp_path, 1, [5])
    shutil.move(tmp_path / "_toolkit" / "manifests" / "000000001.json", tmp_path / "away.json")
    commit(tmp_path, 1, "all")
    assert keys(agree(session, tmp_path)) == [100]


def test_what_is_not_committed(session: Any, tmp_path: Path) -> None:
    add(tmp_path, 0, [0])
    session.range(5).write.parquet(str(batches.batch_folder(tmp_path, 1)))
    shutil.copy(tmp_path / "batch_id=0" / "0.parquet", tmp_path / "batch_id=0" / "1.parquet")
    assert keys(agree(session, tmp_path)) == [0]


def test_the_snapshot_of_the_call(session: Any, tmp_path: Path) -> None:
    add(tmp_path, 0, [0, 1])
    frame = read_scores(tmp_path, session=session)
    add(tmp_path, 1, [1], (0, 5))
    assert frame.count() == 2 and len(read_scores(tmp_path)) == 1


def test_columns_are_all_that_is_read(session: Any, tmp_path: Path) -> None:
    add_by_spark(session, tmp_path, 0, [0, 1])
    add(tmp_path, 1, [0], (0, 1))
    assert list(agree(session, tmp_path, ["batch_id", "wine_id"])) == ["batch_id", "wine_id"]
    plan = read_scores(tmp_path, columns=["batch_id"], session=session)._jdf.queryExecution().toString()
    (schema,) = {line.strip() for line in plan.splitlines() if line.strip().startswith("ReadSchema")} or {
        plan.rpartition("ReadSchema: ")[2].split("\n")[0]
    }
    assert "wine_id" not in schema and "at:timestamp" in schema


def test_batches_from_before_a_column_was_added_and_widened(session: Any, tmp_path: Path) -> None:
    for number, table in enumerate(
        [
            pa.table({"wine_id": pa.array([1], pa.int32())}),
            pa.table({"wine_id": pa.array([2**40]), "prediction": pa.array([0.5], pa.float32())}),
        ]
    ):
        batches.batch_folder(tmp_path, number).mkdir()
        pq.write_table(table, batches.batch_folder(tmp_path, number) / "0.parquet")
        commit(tmp_path, number)
    assert keys(agree(session, tmp_path)) == [1, 2**40]


def test_a_large_batch_number(session: Any, tmp_path: Path) -> None:
    add(tmp_path, 3, [0])
    add(tmp_path, 2**33, [0])
    assert agree(session, tmp_path)["batch_id"].tolist() == [3, 2**33]


@pytest.mark.parametrize("name", ["a b", "per%20cent", "[1]", "{a,b}*", "ü+#?&", "a:b", "back\\slash"])
def test_paths_that_look_like_patterns(session: Any, tmp_path: Path, name: str) -> None:
    add(tmp_path / name, 0, [0])
    assert keys(agree(session, tmp_path / name)) == [0]


def test_an_output_without_rows(session: Any, tmp_path: Path) -> None:
    batches.batch_folder(tmp_path, 0).mkdir()
    commit(tmp_path, 0)
    assert read_scores(tmp_path).shape == (0, 1) and read_scores(tmp_path, session=session).columns == ["batch_id"]
    add(tmp_path, 1, [])
    assert agree(session, tmp_path).shape == (0, 3)


def test_filters(tmp_path: Path) -> None:
    add(tmp_path, 0, [0, 1, 2])
    add(tmp_path, 1, [1], (0, 1))
    assert keys(read_scores(tmp_path, filters=[("at", ">=", hour(2))])) == [2]
    assert keys(read_scores(tmp_path, columns=["wine_id"], filters=[[("batch_id", "==", 1)], [("wine_id", "==", 1)]])) == [1, 100]
    for wrong in ("at > 3", [("at", "~", 3)], [("when", ">", 3)], [("at", ">", "noon")]):
        with pytest.raises(ScoringError, match="filters"):
            read_scores(tmp_path, filters=wrong)


def test_a_changed_file_is_an_error(session: Any, tmp_path: Path) -> None:
    add(tmp_path, 0, [0])
    path = tmp_path / "batch_id=0" / "0.parquet"
    path.write_bytes(path.read_bytes() + b"!")
    for how in ({}, {"session": session}):
        with pytest.raises(ScoringError, match=r"the files of batch 0 must be as they were when it was written, got .*0\.parquet"):
            read_scores(tmp_path, **how)


def test_named_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path / "scores", 0, [0])
    monkeypatch.chdir(tmp_path)
    for name in ("scores", Path("scores"), "parquet:scores", f"file://{tmp_path}/scores"):
        assert keys(read_scores(name)) == [0]


# ---- Delta


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import deltalake

    path = tmp_path_factory.mktemp("delta") / "scores"
    for number in range(2):
        frame = pa.table({"wine_id": [number, number + 10], "batch_id": pa.array([number] * 2, pa.int64()), "at": [hour(number)] * 2})
        deltalake.write_deltalake(path, frame, mode="append")
    return path


def test_delta(delta: Path) -> None:
    assert sorted(keys(read_scores(delta))) == [0, 1, 10, 11]
    found = read_scores(f"delta:{delta}", columns=["wine_id"], filters=[("batch_id", "==", 1)])
    assert list(found) == ["wine_id"] and sorted(keys(found)) == [1, 11]
    with pytest.raises(ScoringError, match=r"got 'wine'; did you mean 'wine_id'\?"):
        read_scores(delta, columns=["wine"])


def test_delta_without_deltalake(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ScoringError, match="needs the package deltalake or a session"):
        read_scores(delta)


def test_delta_with_a_session_that_has_none(delta: Path, session: Any) -> None:
    with pytest.raises(ScoringError, match=r"scores must be readable, got .*delta") as error:
        read_scores(delta, session=session)
    assert "\n" not in str(error.value)


# ---- what cannot be read


def test_by_name(session: Any) -> None:
    session.range(3).withColumnRenamed("id", "wine_id").write.saveAsTable("default.scores")
    found = read_scores("default.scores", session=session, columns=["wine_id"])
    assert sorted(row.wine_id for row in found.collect()) == [0, 1, 2]
    with pytest.raises(ScoringError, match=r"this table needs a Spark session, got default\.scores; give session=spark"):
        read_scores("default.scores")
    with pytest.raises(ScoringError, match=r"columns: no such column in default\.scores, got 'wine'; did you mean 'wine_id'\?"):
        read_scores("default.scores", session=session, columns=["wine"])
    with pytest.raises(ScoringError, match=r"scores must be readable, got default\.nothing: \[TABLE_OR_VIEW_NOT_FOUND\]") as error:
        read_scores("default.nothing", session=session)
    assert "\n" not in str(error.value)


def test_what_is_no_output(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "plain.parquet")
    (tmp_path / "plain.csv").write_text("a\n1\n")
    for name, message in {
        "nothing": "no such file, folder or table",
        "plain.parquet": r"must be an output of `toolkit score`, got .*plain\.parquet, parquet without a committed batch",
        "plain.csv": r"must be an output of `toolkit score`, got .*plain\.csv, csv without",
        "parquet:s3://bucket/scores": "a Parquet output must be on a disk or a Volume",
        "delta:s3://bucket/scores": "this table needs a Spark session",
    }.items():
        with pytest.raises(ScoringError, match=message):
            read_scores(name if ":" in name else tmp_path / name)


def test_filters_are_not_for_spark(session: Any, tmp_path: Path) -> None:
    add(tmp_path, 0, [0])
    with pytest.raises(ScoringError, match="filters: of a pandas frame"):
        read_scores(tmp_path, session=session, filters=[("wine_id", "==", 1)])


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, toolkit.scores; print({'pandas', 'pyarrow', 'pyspark', 'deltalake', 'numpy'} & {name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "set()"
