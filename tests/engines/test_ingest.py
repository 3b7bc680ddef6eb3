"""`ingest`: a table that grows by what is new and by nothing else, whatever is killed whenever."""

import dataclasses
import json
import multiprocessing
import os
import signal

import deltalake
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engines.spark_fixtures import own_session
from toolkit import Dataset, Experiment, Float, Metric, XGBoost
from toolkit.core.errors import DataError, ScoringError
from toolkit.core.recipes import load_experiment
from toolkit.engines import ingest_files, spark_delta
from toolkit.ingest import ingest
from toolkit.settings import Settings

ROWS = 100


def table(num=ROWS, **columns):
    random = np.random.default_rng(7)
    x = random.normal(size=num)
    x[::10] = np.nan
    frame = pd.DataFrame(
        {
            "id": range(num),
            "x": x,
            "colour": pd.Categorical(random.choice(["red", "white"], num)),
            "small": random.integers(0, 200, num).astype("uint8"),
            "at": pd.date_range("2026-01-01", periods=num, freq="h").astype("datetime64[ns]"),
            "note": [None, "a"] * (num // 2) + [None] * (num % 2),
            "y": random.integers(0, 2, num),
        }
    )
    return frame.assign(**columns)


def experiment(frame, key="id"):
    return Experiment(
        name="small",
        dataset=Dataset(load=lambda: frame, label="y", key=key, exclude=("note",), time="at"),
        model=XGBoost(objective="binary:logistic"),
        space={"learning_rate": Float(0.1, 0.3)},
        metric=Metric("auc", "maximize"),
    )


@pytest.fixture
def settings(tmp_path):
    return Settings.read({"TOOLKIT_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]})


@pytest.fixture(params=["delta", "parquet"])
def output(request, tmp_path):
    return f"{request.param}:{tmp_path / 'bronze'}"


def read(output):
    kind, _, path = output.partition(":")
    read = deltalake.DeltaTable(path).to_pyarrow_table() if kind == "delta" else pq.read_table(path)
    return read.sort_by("id")


def files(output):
    folder = output.partition(":")[2]
    return {os.path.join(where, name): os.path.getmtime(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names}


def test_a_table_in_three_portions(output, settings):
    whole = experiment(table())
    found = [ingest(whole, output=output, rows=rows, settings=settings) for rows in ((None, 40), (30, 70), (60, None))]
    assert [(each.num_rows, each.num_new_rows, each.changed) for each in found] == [(40, 40, True), (70, 30, True), (100, 30, True)]
    assert [each.table_version for each in found] == ([0, 1, 2] if output.startswith("delta") else [None] * 3)
    there = read(output)
    assert there.column_names == list(table().columns)
    assert there["id"].to_pylist() == list(range(ROWS))
    assert there["x"].null_count == 10
    assert there["colour"].to_pylist() == list(table()["colour"])
    assert there.schema.field("at").type == pa.timestamp("us")
    assert there.schema.field("small").type == pa.int16()


def test_the_same_again_changes_nothing(output, settings):
    whole = experiment(table())
    ingest(whole, output=output, settings=settings)
    before = files(output)
    shuffled = experiment(table().sample(frac=1, random_state=1)[table().columns[::-1]])
    for again in (whole, shuffled):
        for replace in (False, True):
            found = ingest(again, output=output, replace=replace, settings=settings)
            assert (found.num_rows, found.num_new_rows, found.changed) == (ROWS, 0, False)
    assert files(output) == before


def test_the_name_without_its_format_is_the_same_table(output, settings):
    ingest(experiment(table()), output=output, settings=settings)
    found = ingest(experiment(table()), output=output.partition(":")[2], settings=settings)
    assert (found.format, found.changed) == (output.partition(":")[0], False)


@pytest.mark.parametrize("column", ["x", "note", "colour"])
def test_a_row_that_has_changed_is_refused(output, settings, column):
    ingest(experiment(table()), output=output, settings=settings)
    before = files(output)
    other = pd.concat([table(), table(ROWS + 5).tail(5)], ignore_index=True)
    other.loc[20, column] = {"x": 5.0, "note": "b", "colour": "red" if table()["colour"][20] == "white" else "white"}[column]
    with pytest.raises(ScoringError, match=r"must not change, got 1 that differ in .*, for example id 20; --replace"):
        ingest(experiment(other), output=output, settings=settings)
    assert files(output) == before
    found = ingest(experiment(other), output=output, replace=True, settings=settings)
    assert (found.num_rows, found.changed) == (ROWS + 5, True)
    assert read(output)[column][20].as_py() == other[column][20]
    assert len(read(output)) == ROWS + 5


def test_without_a_key_the_content_is_compared_whole(output, settings):
    plain = experiment(table(), key=None)
    ingest(plain, output=output, settings=settings)
    assert not ingest(experiment(table().sample(frac=1, random_state=1), key=None), output=output, settings=settings).changed
    for other in (table(ROWS + 1), table(ROWS - 1), table(x=1.0)):
        with pytest.raises(ScoringError, match=r"without dataset\.key .* got other content"):
            ingest(experiment(other, key=None), output=output, settings=settings)
    assert ingest(experiment(table(5), key=None), output=output, replace=True, settings=settings).num_rows == 5
    assert len(read(output)) == 5


def test_types_that_follow_the_table(output, settings):
    """A portion without gaps has whole numbers where the first one had gaps."""
    first, second = table(40), table().tail(60).assign(x=1)
    ingest(experiment(first), output=output, settings=settings)
    ingest(experiment(second), output=output, settings=settings)
    assert read(output).schema.field("x").type == pa.float64()
    assert len(read(output)) == ROWS


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (table().drop(columns="x"), "other columns, got data without x"),
        (table(more=1), "other columns, got data with more"),
        (table(x="text"), "other types"),
        (table().assign(id=[0, *range(ROWS - 1)]), "'id' must be unique, got 1 copies"),
        (table().assign(id=[None, *range(1, ROWS)]), "'id' must not be missing, got 1 rows"),
        (table().drop(columns="id"), "must be a column"),
        (table().head(0), "there must be rows"),
        (table().assign(x=[1, "a"] * (ROWS // 2)), "one type"),
    ],
)
def test_what_is_refused(output, settings, frame, says):
    ingest(experiment(table()), output=output, settings=settings)
    before = files(output)
    with pytest.raises((ScoringError, DataError), match=says) as caught:
        ingest(experiment(frame), output=output, settings=settings)
    assert "\n" not in str(caught.value)
    assert files(output) == before


def test_columns_can_be_replaced(output, settings):
    ingest(experiment(table()), output=output, settings=settings)
    ingest(experiment(table(more=1)), output=output, replace=True, settings=settings)
    assert "more" in read(output).column_names


def test_rows_that_are_not_there(output, settings):
    with pytest.raises(ScoringError, match="none in 200:300 of 100; check --rows"):
        ingest(experiment(table()), output=output, rows=(200, 300), settings=settings)
    assert not os.path.exists(output.partition(":")[2])


def test_delta_takes_no_blanks_in_names(tmp_path, settings):
    frame = table().rename(columns={"x": "x y"})
    with pytest.raises(ScoringError, match="'x y'; rename"):
        ingest(experiment(frame), output=tmp_path / "bronze", settings=settings)
    assert ingest(experiment(frame), output=f"parquet:{tmp_path / 'bronze'}", settings=settings).changed


def test_the_wine_data_in_three_portions(tmp_path, wine_folder):
    settings = Settings.read({"TOOLKIT_HOME": str(tmp_path / "home"), "TOOLKIT_DATA_DIR": str(wine_folder), "PATH": os.environ["PATH"]})
    wine = load_experiment("wine-quality")
    for rows in ((0, 3000), (3000, 5000), (5000, None)):
        found = ingest(wine, output=tmp_path / "wine", rows=rows, settings=settings)
    assert (found.num_rows, found.num_new_rows, found.format, found.table_version) == (6497, 1497, "delta", 2)
    assert json.dumps(found.as_json())
    names = deltalake.DeltaTable(tmp_path / "wine").to_pyarrow_table().column_names
    assert {"wine_id", "quality", "high_quality", "alcohol"} <= set(names)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_and_run_again(output, settings, moment):
    """Before: the file is written and not named yet. After: all is there, and nobody was told."""
    ingest(experiment(table()), output=output, rows=(0, 40), settings=settings)
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(output, settings, moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(read(output)) == (ROWS if moment == "after" else 40)
    ingest(experiment(table()), output=output, settings=settings)
    assert read(output)["id"].to_pylist() == list(range(ROWS))


def _killed(output, settings, moment):
    if output.startswith("delta:"):
        write = deltalake.write_deltalake

        def write_and_die(*args, **more):
            if moment == "after":
                write(*args, **more)
            os.kill(os.getpid(), signal.SIGKILL)

        deltalake.write_deltalake = write_and_die
    else:
        replace = os.replace

        def replace_and_die(*args):
            if moment == "after":
                replace(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        ingest_files.os.replace = replace_and_die
    ingest(experiment(table()), output=output, settings=settings)


def test_two_at_once(output, settings, monkeypatch):
    real = ingest_files.changes

    def meanwhile(*args):
        with pytest.raises(ScoringError, match="one ingest at a time"):
            ingest(experiment(table()), output=output, settings=settings)
        return real(*args)

    ingest(experiment(table()), output=output, rows=(0, 40), settings=settings)
    monkeypatch.setattr(ingest_files, "changes", meanwhile)
    ingest(experiment(table()), output=output, settings=settings)
    assert len(read(output)) == ROWS


def test_two_hosts_at_once(tmp_path, settings, monkeypatch):
    """Locks are of one host; Delta's own transaction is what holds."""
    output = f"delta:{tmp_path / 'bronze'}"
    real = ingest_files.changes
    other_host = dataclasses.replace(settings, home=tmp_path / "other")

    def meanwhile(*args):
        monkeypatch.setattr(ingest_files, "changes", real)
        ingest(experiment(table()), output=output, settings=other_host)
        return real(*args)

    ingest(experiment(table()), output=output, rows=(0, 40), settings=settings)
    monkeypatch.setattr(ingest_files, "changes", meanwhile)
    with pytest.raises(ScoringError, match="one ingest at a time"):
        ingest(experiment(table()), output=output, settings=settings)
    assert len(read(output)) == ROWS


# ---- through Spark


@pytest.fixture(scope="module")
def delta_session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spark")
    with own_session(folder, spark_delta.settings_for_delta({}, Settings.read({}))) as session:
        yield session


def test_a_table_of_a_catalog(delta_session, settings):
    whole = experiment(table())
    found = [
        ingest(whole, output="default.bronze", rows=rows, settings=settings) for rows in ((None, 40), (30, 70), (None, None), (None, 70))
    ]
    assert [(each.num_rows, each.num_new_rows, each.changed) for each in found] == [
        (40, 40, True), (70, 30, True), (100, 30, True), (100, 0, False),
    ]  # fmt: skip
    assert [each.table_version for each in found] == [0, 1, 2, 2]
    there = delta_session.table("default.bronze").toPandas().sort_values("id")
    assert list(there["id"]) == list(range(ROWS))
    other = table()
    other.loc[20, "x"] = 7.0
    with pytest.raises(ScoringError, match=r"got 1 that differ in default\.bronze, for example id 20"):
        ingest(experiment(other), output="default.bronze", settings=settings)
    with pytest.raises(ScoringError, match="other columns, got more"):
        ingest(experiment(table(more=1)), output="default.bronze", settings=settings)
    assert ingest(experiment(other), output="default.bronze", replace=True, settings=settings).changed
    assert not ingest(experiment(other), output="default.bronze", replace=True, settings=settings).changed
    assert delta_session.table("default.bronze").where("id = 20").first()["x"] == 7.0


def test_a_folder_that_only_spark_can_read(delta_session, settings, tmp_path):
    """Rows hidden by a deletion vector are not there, and so are new."""
    path = tmp_path / "bronze"
    ingest(experiment(table()), output=path, settings=settings)
    delta_session.sql(f"ALTER TABLE delta.`file://{path}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    delta_session.sql(f"DELETE FROM delta.`file://{path}` WHERE id = 3")
    found = ingest(experiment(table()), output=path, settings=settings)
    assert (found.num_rows, found.num_new_rows) == (ROWS, 1)
