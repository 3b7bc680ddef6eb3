"""`toolkit explore` whole: the same numbers from pandas and from Spark, which way a table goes, and every refusal in one line."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.commands import Workplace, workplace
from tests.engines.spark_fixtures import own_session
from tests.needs import need_java
from toolkit import explore as verb
from toolkit.core.errors import ClusterError, DataError, UserError
from toolkit.core.experiment import Dataset, Experiment, Metric
from toolkit.core.exploration import Exploration
from toolkit.core.exploration_frame import explore_frame
from toolkit.core.exploration_labels import Division
from toolkit.core.model import XGBoost
from toolkit.core.space import Float
from toolkit.explore import explore
from toolkit.settings import Settings

pytestmark = pytest.mark.engine

__all__ = ["workplace"]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("warehouse")) as session:
        yield session


def table(num_rows: int = 3000) -> pd.DataFrame:
    """Every kind of column that both engines know, with gaps, copies and names that need care."""
    random = np.random.RandomState(11)
    signal = random.normal(size=num_rows)
    day = pd.Timestamp("2024-01-01")
    frame = pd.DataFrame(
        {
            "smooth": signal + random.normal(size=num_rows),
            "a.b`c": (signal + random.normal(size=num_rows)).round(1),
            "gaps": np.where(random.rand(num_rows) < 0.2, np.nan, -signal),
            "count": random.poisson(3, num_rows),
            "few": random.choice([0.0, -0.0, 2.5, np.nan], num_rows),
            "flag": random.rand(num_rows) < 0.3,
            "city": random.choice(["Ada", "Bö", "", None], num_rows, p=[0.5, 0.3, 0.1, 0.1]),
            "zone": random.randint(0, 5, num_rows),
            "name": [f"name {number}" for number in range(num_rows)],
            "flat": 1,
            "rare": np.r_[np.ones(3, dtype=int), np.zeros(num_rows - 3, dtype=int)],
            "limit": np.where(random.rand(num_rows) < 0.01, np.inf, signal),
            "at": (day + pd.to_timedelta(random.randint(0, 10**7, num_rows), unit="s")).astype("datetime64[us]"),
            "made": np.where(signal > 0, 1.5, 2.5),
        }
    )
    frame["y"] = (signal + random.normal(size=num_rows) + (frame.zone == 2) > 0.5).astype(int)
    frame = pd.concat([frame, frame[: num_rows // 10]], ignore_index=True)
    return frame.assign(key=2**60 + np.arange(len(frame)))


DATASET = Dataset(load="unused", label="y", key="key", exclude=("made",), time="at", categorical=("zone",))


def by_spark(session: Any, frame: pd.DataFrame, task: Any, dataset: Dataset = DATASET, partitions: int = 3) -> Exploration:
    from toolkit.engines.spark_exploration import explore_table

    rows = session.createDataFrame(pa.Table.from_pandas(frame, preserve_index=False)).repartition(partitions)
    return explore_table(rows, dataset, task, num_rows=len(frame), name="toy", division=Division(), tell=lambda text: None)


def by_pandas(frame: pd.DataFrame, task: Any, dataset: Dataset = DATASET) -> Exploration:
    return explore_frame(frame, dataset, task, lambda groups: Division())


def same(value: float | None, expected: float | None, **tolerance: float) -> bool:
    return value is None if expected is None else value == pytest.approx(expected, **tolerance)


LABELS = {
    "binary": ("binary", lambda frame: frame.y),
    "binary boolean with gaps": ("binary", lambda frame: frame.y.astype(bool).astype(object).where(frame.index > 40, None)),
    "binary text": ("binary", lambda frame: frame.y.map({0: "nein", 1: "ja"})),
    "classes": ("multiclass", lambda frame: "class " + frame["count"].clip(0, 3).astype(str)),
    "numbers": ("regression", lambda frame: frame.smooth * 2 + frame.zone + np.arange(len(frame)) / 1e4),
    "few numbers": ("regression", lambda frame: frame["count"].clip(0, 2) * 1.5),
}


@pytest.mark.parametrize("name", LABELS)
def test_both_engines_find_the_same(spark: Any, name: str) -> None:
    from toolkit.engines.spark_exploration import NUM_CATEGORIES

    task, label_of = LABELS[name]
    frame = table()
    frame["y"] = label_of(frame)
    # A class is looked for that is the first in order: what grows with the label shall grow with it all the same.
    dataset = replace(DATASET, positive="ja") if name == "binary text" else DATASET
    expected, found = by_pandas(frame, task, dataset), by_spark(spark, frame, task, dataset)
    assert expected.positive == found.positive == {"binary": "1", "binary boolean with gaps": "True", "binary text": "ja"}.get(name)
    if task == "binary":
        assert expected.correlations.values[0][expected.correlations.names.index("smooth")] > 0.3  # type: ignore[operator]
    assert (found.engine, expected.engine) == ("spark", "pandas") and found.approximate and not expected.approximate
    assert found.duplicates == expected.duplicates and found.num_unlabelled == expected.num_unlabelled
    assert found.groups == expected.groups and found.group_counts == expected.group_counts
    assert [(finding.kind, finding.column) for finding in found.suspects] == [(f.kind, f.column) for f in expected.suspects]
    assert [(finding.kind, finding.column) for finding in found.remarks] == [(f.kind, f.column) for f in expected.remarks]
    for one, other in zip(found.columns, expected.columns, strict=True):
        for field in ("name", "role", "kind", "num_missing", "num_infinite", "num_distinct", "is_constant", "is_near_constant",
                      "is_identifier", "measure", "missing_by_group"):  # fmt: skip
            assert getattr(one, field) == getattr(other, field), (other.name, field)
        for field in ("mean", "std", "min", "max", "missing_strength", "top_share"):
            # Of keys beyond 2^53 doubles know the rows apart no more, and their spread only about.
            assert same(getattr(one, field), getattr(other, field), rel=0.02 if other.name == "key" else 1e-9), (other.name, field)
        spread = (other.q75 or 0) - (other.q25 or 0)
        for field in ("q25", "median", "q75"):
            assert same(getattr(one, field), getattr(other, field), abs=0.02 * spread), (other.name, field)
        if other.kind != "category" or other.num_distinct <= NUM_CATEGORIES:
            # The halves of the rows, by which categories are scored, are drawn anew.
            assert same(one.strength, other.strength, abs=0.03 if other.kind == "category" else 0.002), other.name
        assert (one.histogram is None) == (other.histogram is None)
        if one.histogram and other.histogram and (other.kind != "category" or other.num_distinct <= NUM_CATEGORIES):
            assert one.histogram.values == other.histogram.values
            assert (one.histogram.edges is None) == (other.histogram.edges is None)
            if one.histogram.edges == other.histogram.edges or not other.histogram.edges:
                off = np.abs(np.array(one.histogram.counts) - other.histogram.counts).sum()
                assert off <= (0 if not other.histogram.edges else 0.02 * len(frame)), other.name
        for box, exact in zip(one.boxes, other.boxes, strict=True):
            assert box.num_rows == exact.num_rows and same(box.median, exact.median, abs=0.02 * spread)
    assert found.correlations.names == expected.correlations.names
    np.testing.assert_allclose(
        np.array(found.correlations.values, dtype=float), np.array(expected.correlations.values, dtype=float), atol=1e-9
    )


def test_sampled_and_many_partitions(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a table that is far larger than its samples."""
    from toolkit.engines import spark_exploration

    frame = table(20_000)
    expected = by_pandas(frame, "binary")
    monkeypatch.setattr(spark_exploration, "SAMPLE_ROWS", 2_000)
    monkeypatch.setattr(spark_exploration, "HASH_SAMPLE", 2_000)
    found = by_spark(spark, frame, "binary", partitions=7)
    assert any("duplicates" in text for text in found.approximate) and any("different values" in text for text in found.approximate)
    assert found.duplicates.num_rows == pytest.approx(expected.duplicates.num_rows, rel=0.3)
    assert found.duplicates.num_repeated_keys == 0
    for one, other in zip(found.columns, expected.columns, strict=True):
        assert one.num_distinct == pytest.approx(other.num_distinct, rel=0.06)
        assert same(one.min, other.min) and same(one.max, other.max) and one.num_missing == other.num_missing
        if other.kind != "category":
            assert same(one.strength, other.strength, abs=0.003), other.name
        assert one.is_identifier == other.is_identifier, other.name
    assert [finding.column for finding in found.suspects] == [finding.column for finding in expected.suspects]


def test_executors_need_not_have_the_toolkit(spark: Any) -> None:
    by_spark(spark, table(200), "binary")

    def modules(batches: Any) -> Any:
        import sys

        import pyarrow as pa

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"name": [name for name in sys.modules if name.partition(".")[0] == "toolkit"] or ["none"]})

    rows = spark.range(8, numPartitions=4).mapInArrow(modules, "name string").collect()  # in the workers that have just counted
    assert {row["name"] for row in rows} == {"none"}


def test_spark_types(spark: Any) -> None:
    """Those that pandas has no equal of, or another."""
    from pyspark.sql import functions as F

    num = 300
    rows = spark.range(num).select(
        (F.col("id") % 2).alias("y"),
        (F.col("id") / 8).cast("decimal(12,3)").alias("decimal"),
        F.date_add(F.lit("2024-01-01").cast("date"), (F.col("id") % 28).cast("int")).alias("day"),
        F.timestamp_seconds(F.col("id") + 1_700_000_000).alias("moment"),
        F.timestamp_seconds(F.col("id")).cast("timestamp_ntz").alias("wall"),
        F.array("id").alias("nested"),
        F.lit(None).alias("nothing"),
        F.lit(b"x").alias("bytes"),
        F.concat(F.lit("n"), F.col("id").cast("string")).alias("text"),
        F.concat(F.lit("2024-01-01T10:00:"), F.lpad((F.col("id") % 60).cast("string"), 2, "0")).alias("written"),
    )  # fmt: skip
    from toolkit.engines.spark_exploration import explore_table

    data = Dataset(load="unused", label="y", time="written")
    found = explore_table(rows, data, "binary", num_rows=num, name="toy", division=Division(), tell=lambda text: None)
    assert {column.name: column.kind for column in found.columns} == {
        "y": "number", "decimal": "number", "day": "time", "moment": "time", "wall": "time", "nested": "other", "nothing": "number",
        "bytes": "other", "text": "category", "written": "time",
    }  # fmt: skip
    assert found.column("decimal").max == pytest.approx((num - 1) / 8)
    assert found.column("day").min == datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert found.column("moment").min == 1_700_000_000
    assert found.column("written").min == datetime.datetime(2024, 1, 1, 10, tzinfo=datetime.UTC).timestamp()
    assert found.column("nothing").is_constant
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("label", "task", "message"),
    [
        ("city", "binary", "label 'city': a binary objective needs exactly two values, got 3"),
        ("flat", "multiclass", "label 'flat': needs at least two values, got one in 3,300 labelled rows"),
        ("city", "regression", "label 'city': must be a number, got string"),
        ("Y", "binary", "dataset.label: no such column in the table, got 'Y'"),
    ],
)  # fmt: skip
def test_labels_that_spark_refuses(spark: Any, label: str, task: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        by_spark(spark, table(), task, Dataset(load="unused", label=label))
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ---- which way a table goes


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    return Settings.read()


def experiment(load: Any, **parts: Any) -> Experiment:
    dataset = Dataset(load=load, **{"label": "y", "key": "key", "exclude": ("made", "name", "limit"), "time": "at", **parts})
    return Experiment("toy", dataset, XGBoost(), {"eta": Float(0.1, 0.2)}, Metric("auc", "maximize"))


CATEGORICAL = {"categorical": ("zone", "city")}


def test_a_small_spark_frame_is_read_and_a_large_one_is_not(spark: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table()
    chosen = experiment(lambda: spark.createDataFrame(pa.Table.from_pandas(frame, preserve_index=False)), **CATEGORICAL)
    small = explore(chosen, settings=settings)
    assert small.exploration.engine == "pandas" and small.exploration.split is not None
    monkeypatch.setattr(verb, "MAX_CELLS", frame.size - 1)
    large = explore(chosen, settings=settings)
    assert large.exploration.engine == "spark" and large.exploration.split is None and "not drawn" in large.exploration.split_note
    assert large.exploration.num_rows == small.exploration.num_rows
    page = Path(large.report_path).read_text()
    assert "approximate in part" in page and "from counts of all rows in 1023 levels" in page


def test_files_and_tables_that_are_large_stay_where_they_are(
    spark: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = table()
    frame.sample(frac=1.0, random_state=0).to_parquet(tmp_path / "toy.parquet")  # with an index that is no column
    (tmp_path / "folder").mkdir()
    frame[:2000].to_parquet(tmp_path / "folder" / "a.parquet")
    frame[2000:].to_parquet(tmp_path / "folder" / "b.parquet")
    spark.createDataFrame(pa.Table.from_pandas(frame, preserve_index=False)).write.mode("overwrite").saveAsTable("default.toy_explored")
    monkeypatch.setattr(verb, "MAX_CELLS", 1000)
    expected = by_pandas(frame, "binary", experiment("x", **CATEGORICAL).dataset)
    for load in (str(tmp_path / "toy.parquet"), str(tmp_path / "folder"), "spark_catalog.default.toy_explored"):
        found = explore(experiment(load, **CATEGORICAL), settings=settings).exploration
        assert found.engine == "spark" and found.num_rows == len(frame) and found.num_columns == frame.shape[1], load
        assert found.column("smooth").strength == pytest.approx(expected.column("smooth").strength, abs=0.002)
    frame.to_csv(tmp_path / "toy.csv", index=False)
    result = explore(experiment(str(tmp_path / "toy.csv"), **CATEGORICAL), settings=settings)
    assert result.exploration.engine == "pandas"  # a CSV file tells its size only when it is read
    assert result.exploration.split is None and "not drawn for more than 1,000 cells" in result.exploration.split_note


def test_a_session_that_is_there_is_used_as_it_is(spark: Any, settings: Settings, tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "toy.parquet")
    with pytest.raises(ClusterError, match="for a session that is started here, got an active session"):
        explore(experiment(str(tmp_path / "toy.parquet")), spark_master="local[2]", settings=settings)
    assert not Path(settings.home).exists()


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("nothing/there.parquet", "data: no such file, folder or table, got 'nothing/there.parquet'"),
        ("spark_catalog.default.none", "data: Spark cannot read it, got spark_catalog.default.none: [TABLE_OR_VIEW_NOT_FOUND]"),
    ],
)
def test_what_is_not_there(spark: Any, settings: Settings, load: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        explore(experiment(load), settings=settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_report_that_cannot_be_written_is_refused_first(settings: Settings, tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("read in vain")

    for path in (tmp_path, tmp_path / "file" / "report.html"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="--report must name a file"):
            explore(experiment(never), report=path, settings=settings)


# ---- the command


EXPERIMENT = """
from toolkit import Dataset, Experiment, Float, Metric, XGBoost

def experiment():
    return Experiment(
        name="toy",
        dataset=Dataset(load="toy.csv", label="y", key="key", time="at", exclude=("made", "name", "limit"), categorical=("zone", "city")),
        model=XGBoost(),
        space={"eta": Float(0.1, 0.2)},
        metric=Metric("auc", "maximize"),
    )
"""


@pytest.fixture
def place(workplace: Workplace) -> Workplace:
    table().to_csv(workplace.folder / "toy.csv", index=False)
    (workplace.folder / "toy.py").write_text(EXPERIMENT)
    return workplace


def test_the_command_answers_in_json(place: Workplace) -> None:
    answer = place.here("explore", "./toy.py", "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert found["positive"] == "1"
    assert found["experiment"] == "toy" and found["engine"] == "pandas" and found["num_rows"] == 3300
    assert found["data"] == {"kind": "file", "location": "toy.csv"}
    assert found["predictors"][0]["name"] == "gaps" and 0.5 < found["predictors"][0]["strength"] < 0.99
    assert [part["name"] for part in found["split"]["parts"]] == ["train", "validation", "test"]
    assert {finding["kind"] for finding in found["remarks"]} == {"constant", "near_constant"}
    assert found["report_path"] == str(place.folder / ".toolkit" / "reports" / "toy-explore.html")
    assert "toolkit sweep ./toy.py" in Path(found["report_path"]).read_text()
    assert place.files() == {"toy.csv", "toy.py", ".toolkit", ".toolkit/reports", ".toolkit/reports/toy-explore.html"}


def test_the_command_answers_in_rows(place: Workplace) -> None:
    for _ in range(2):  # the second report replaces the first
        answer = place.here("explore", "./toy.py", "--report", "out/toy.html", "--set", "dataset.exclude=[]")
        assert answer.code == 0, answer.err
        lines = answer.out.splitlines()
        assert lines[0] == "toy: exploration" and lines[1] == "table       3,300 rows × 16 columns, 13 features"
        assert any(line.startswith("suspect     name has 3,000 different values") for line in lines)
        assert any(line.startswith("remark      Training would refuse this table: feature 'name': must be numeric") for line in lines)
        assert "split       The split could not be drawn: training would refuse the table." in lines
        assert lines[-1] == f"report      {place.folder / 'out' / 'toy.html'}"


def test_data_in_place_of_the_experiment_s_own(place: Workplace) -> None:
    table(500).to_parquet(place.folder / "other.parquet")
    answer = place.here("explore", "./toy.py", "--data", "other.parquet", "--json")
    assert answer.code == 0 and answer.json["num_rows"] == 550 and answer.json["data"]["location"] == "other.parquet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./none.py",), "error: an experiment's file must exist, got ./none.py"),
        (("./toy.py", "--data", "none.csv"), "error: data: no such file, folder or table, got 'none.csv'"),
        (("./toy.py", "--set", "dataset.label=yy"), "error: dataset.label: no such column in the table, got 'yy'; did you mean 'y'?"),
        (("./toy.py", "--set", "dataset.labl=y"), "error: dataset.labl: unknown field, got 'labl'; did you mean 'label'?"),
        (("./toy.py", "--set", "dataset.label=count"), "error: label 'count': a binary objective needs exactly two values"),
        (("./toy.py", "--report", "."), "error: --report must name a file, got "),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(place: Workplace, arguments: tuple[str, ...], message: str) -> None:
    before = place.files()
    answer = place.here("explore", *arguments)
    assert answer.code == 1 and answer.out == ""
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(message), answer.err
    assert "Traceback" not in answer.err and place.files() == before


@pytest.mark.parametrize(
    ("master", "message"),
    [
        ("spark://127.0.0.1:1", "error: a Spark master must answer, got 127.0.0.1:1: Connection refused"),
        ("sc://host", "error: a Spark session that is started here is no Connect one, got sc://…"),
    ],
)
def test_masters_that_cannot_be_used(place: Workplace, master: str, message: str) -> None:
    need_java()
    before = place.files()
    answer = place.there("explore", "./toy.py", "--spark-master", master)  # a process of its own: here a session is active
    assert answer.code == 1 and answer.err.splitlines()[-1].startswith(message) and place.files() == before


def test_spark_of_its_own_ends_with_the_command(place: Workplace) -> None:
    """`--spark-master` counts on Spark whatever the size, in a session that is started and stopped; a CSV file it leaves to pandas."""
    need_java()
    table().to_parquet(place.folder / "toy.parquet")
    script = Path(sys.executable).with_name("toolkit")
    answer = place.finish(
        place.start("explore", "./toy.py", "--data", "toy.parquet", "--spark-master", "local[2]", "--json", script=script)
    )
    assert answer.code == 0, answer.err
    assert answer.json["engine"] == "spark" and answer.json["num_rows"] == 3300 and answer.json["approximate"]
    place.all_gone()
    answer = place.finish(place.start("explore", "./toy.py", "--spark-conf", "spark.master=local[1]", script=script))
    assert answer.code == 1 and "error: Spark can read Parquet, Delta and tables by name, got toy.csv" in answer.err
    place.all_gone()
