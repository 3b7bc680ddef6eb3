"""Tables through a real Spark session: their size, their order, their types, and every refusal in one line."""

from __future__ import annotations

import datetime
import importlib.util
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.engines.spark_fixtures import own_session
from toolkit.core.data import DataContext, LoadedData
from toolkit.core.errors import DataError
from toolkit.core.experiment import Dataset, Experiment, Metric, Protocol, Split
from toolkit.core.model import XGBoost
from toolkit.core.recipes import load_experiment
from toolkit.core.space import Float
from toolkit.engines.sklearn_splits import split
from toolkit.engines.tables import load_data, read_table

pytestmark = pytest.mark.engine

RECIPES = Path(__file__).parents[2] / "experiments"
RESULT_SIZE_MIB = 8


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("warehouse"), {"spark.driver.maxResultSize": f"{RESULT_SIZE_MIB}m"}) as session:
        yield session


@pytest.fixture
def context(tmp_path: Path) -> DataContext:
    return DataContext(data=None, data_dir=None, cache_dir=tmp_path / "cache")


def experiment(load: Any, **dataset: Any) -> Experiment:
    return Experiment(
        name="toy",
        dataset=Dataset(load=load, **{"label": "y", **dataset}),
        model=XGBoost(objective="binary:logistic"),
        space={"eta": Float(0.1, 0.2)},
        metric=Metric("auc", "maximize"),
    )


def refused(load: Any, match: str, context: DataContext, **dataset: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load_data(experiment(load, **dataset), context)
    assert "\n" not in str(caught.value)


def table(num_rows: int = 3000) -> pd.DataFrame:
    """Rows with ties, copies, gaps, both zeros, and a column that is another at each ingestion."""
    random = np.random.RandomState(4)
    frame = pd.DataFrame(
        {
            "a.b": random.choice([0.0, -0.0, 1.5, np.nan], num_rows),
            "x": random.normal(size=num_rows).round(2),
            "flag": random.rand(num_rows) < 0.3,
            "y": random.randint(0, 2, num_rows),
            "w": random.choice([-0.0, 0.0, 1.0], num_rows),
        }
    )
    frame = pd.concat([frame, frame[: num_rows // 3]], ignore_index=True)
    return frame.assign(id=random.permutation(len(frame)), ingested=random.permutation(len(frame)))


def assert_same(one: LoadedData, other: LoadedData, how: Split, protocol: Protocol = "honest") -> None:
    assert one.source.sha256 == other.source.sha256
    left, right = split(one, how, protocol), split(other, how, protocol)
    np.testing.assert_array_equal(left.trial.rows.features, right.trial.rows.features)
    np.testing.assert_array_equal(left.trial.rows.label, right.trial.rows.label)
    np.testing.assert_array_equal(left.test.features, right.test.features)
    assert str(left.trial.folds) == str(right.trial.folds)


# ---- the same rows each time


@pytest.mark.parametrize("key", ["id", None])
@pytest.mark.parametrize("how", [Split(), Split(keep_duplicates_together=False, folds=3)], ids=["duplicates together", "folds"])
def test_order_and_partitions_change_neither_sha_nor_split(
    spark: Any, tmp_path: Path, context: DataContext, key: str | None, how: Split
) -> None:
    from pyspark.sql import functions as F

    rows = table() if key else table().drop(columns="id")
    spark.createDataFrame(rows).repartition(5).write.parquet(str(tmp_path / "one"))
    # Written again: another order, other files, and another value in the excluded column.
    again = spark.read.parquet(str(tmp_path / "one")).orderBy(F.rand(7)).withColumn("ingested", F.monotonically_increasing_id())
    again.coalesce(2).write.parquet(str(tmp_path / "two"))

    frames = [spark.read.parquet(str(tmp_path / name)) for name in ("one", "two")]
    assert frames[0].select("x").toArrow() != frames[1].select("x").toArrow()
    options: dict[str, Any] = {"key": key, "exclude": ("ingested",), "weight": "w"}
    loaded = [load_data(experiment(lambda frame=frame: frame, **options), context) for frame in [*frames, frames[0].repartition(7, "x")]]
    assert loaded[0].feature_names == ("a.b", "x", "flag")
    assert loaded[0].source.num_rows == 4000
    assert_same(loaded[0], loaded[1], how)
    assert_same(loaded[0], loaded[2], how)
    # The way through a file, for one who puts the rows into this order.
    if key:
        file = tmp_path / "sorted.csv"
        rows.assign(w=rows["w"] + 0.0).sort_values("id").to_csv(file, index=False)
        assert load_data(experiment(str(file), **options), context).source.sha256 == loaded[0].source.sha256


@pytest.mark.parametrize("protocol", ["honest", "published"])
def test_wine_through_spark_is_the_wine_of_the_files(
    spark: Any, wine_folder: Path, context: DataContext, tmp_path: Path, protocol: Protocol
) -> None:
    from dataclasses import replace

    from pyspark.sql import functions as F

    recipe = load_experiment("wine-quality", [RECIPES])
    files = load_data(recipe, replace(context, data_dir=wine_folder))

    def load() -> Any:
        parts = []
        for name in ("red", "white"):
            part = spark.read.csv(str(wine_folder / f"winequality-{name}.csv"), header=True, inferSchema=True, sep=";")
            part = part.withColumnsRenamed({column: column.replace(" ", "_") for column in part.columns})
            parts.append(part.withColumn("is_red", F.lit(int(name == "red"))))
        wine = parts[0].unionByName(parts[1]).withColumn("high_quality", F.col("quality") >= 7)
        return wine.withColumn("wine_id", F.monotonically_increasing_id()).repartition(4, "alcohol")

    through_spark = load_data(replace(recipe, dataset=replace(recipe.dataset, load=load)), context)
    assert through_spark.feature_names == files.feature_names
    np.testing.assert_array_equal(through_spark.features, files.features)
    assert_same(files, through_spark, recipe.split, protocol)


def test_a_table_by_its_name(spark: Any, context: DataContext, tmp_path: Path) -> None:
    import deltalake
    import pyarrow as pa

    rows = table(2000)
    spark.sql("CREATE DATABASE IF NOT EXISTS sales")
    spark.createDataFrame(rows).write.saveAsTable("sales.churn", format="parquet", mode="overwrite")
    deltalake.write_deltalake(tmp_path / "delta", pa.Table.from_pandas(rows.sample(frac=1, random_state=1), preserve_index=False))

    names = ["spark_catalog.sales.churn", "sales.churn", str(tmp_path / "delta")]
    loaded = [load_data(experiment(name, key="id", exclude=("ingested",)), context).source for name in names]
    assert [source.kind for source in loaded] == ["table"] * 2 + ["file"]
    assert [source.location for source in loaded] == names
    assert len({source.sha256 for source in loaded}) == 1
    # By name from a function, and without an experiment: sorted by all columns.
    assert load_data(experiment(lambda: "sales.churn", key="id", exclude=("ingested",)), context).source.sha256 == loaded[0].sha256
    pd.testing.assert_frame_equal(read_table("sales.churn"), read_table(tmp_path / "delta"))
    # A session is a thread's own, and a notebook may load in another.
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(read_table("sales.churn")))
    thread.start()
    thread.join(60)
    assert len(found[0]) == len(rows)


# ---- types


@pytest.mark.parametrize("num_copies", [1, 700])  # one as the sample, one collected
def test_types(spark: Any, num_copies: int) -> None:
    from toolkit.engines.spark_tables import collect

    big = 2**53 + 1
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
    rows = [
        (1, big, big, True, False, "b", Decimal("1.25"), Decimal(big), datetime.date(9999, 12, 31), moment, moment, 1.5, None),
        (2, None, -1, None, True, None, None, None, None, None, None, None, None),
    ]
    names = "id int, gaps long, whole long, maybe boolean, flag boolean, text string, price decimal(10,2), number decimal(38,0), day date, at timestamp, local timestamp_ntz, real float, nothing string"
    frame = spark.createDataFrame(rows * num_copies, names).selectExpr("* except (nothing)", "null as nothing")
    found = collect(frame, "t", key="id").drop_duplicates(ignore_index=True)
    assert len(found) == 2
    assert {name: str(kind) for name, kind in found.dtypes.items()} == {
        "id": "int32",
        "gaps": "Int64",
        "whole": "int64",
        "maybe": "boolean",
        "flag": "bool",
        "text": str(pd.Series(["a"]).dtype),
        "price": "float64",
        "number": "Int64",
        "day": "datetime64[ms]",
        "at": "datetime64[us, UTC]",
        "local": "datetime64[us]",
        "real": "float32",
        "nothing": "object",
    }
    first, second = found.to_dict("records")
    assert (first["gaps"], first["whole"], first["number"], first["price"]) == (big, big, big, 1.25)
    assert (first["maybe"], first["flag"], first["text"]) == (True, False, "b")
    assert (first["day"].year, first["local"]) == (9999, pd.Timestamp(moment))
    assert first["at"] == pd.Timestamp(moment).tz_localize(datetime.datetime.now().astimezone().tzinfo)
    assert (second["whole"], second["flag"]) == (-1, True)
    missing = ["gaps", "maybe", "text", "price", "number", "day", "at", "local", "real", "nothing"]
    assert all(pd.isna(second[name]) for name in missing)


def test_what_was_read_is_encoded_as_from_a_file(spark: Any, context: DataContext, tmp_path: Path) -> None:
    from pyspark.sql import functions as F

    rows = pd.DataFrame(
        {
            "id": range(8),
            "y": list("baabbaab"),
            "count": [1, None, 3, 4, 5, 6, 7, 8],
            "price": [Decimal("1.25"), None, *[Decimal(2)] * 6],
            "flag": [True, None, False, True, False, True, True, False],
            "when": [f"2024-01-0{day}T12:30:00+00:00" for day in range(1, 9)],
            "team": list("ccaabbdd"),
        }
    )
    rows.to_csv(tmp_path / "rows.csv", index=False)
    frame = spark.createDataFrame(
        [tuple(None if pd.isna(value) else value for value in row) for row in rows.itertuples(index=False)],
        "id long, y string, count double, price decimal(8,2), flag boolean, when string, team string",
    ).withColumns({"count": F.col("count").cast("long"), "when": F.col("when").cast("timestamp")})
    options: dict[str, Any] = {"key": "id", "time": "when", "group": "team"}
    from_file, from_spark = (load_data(experiment(load, **options), context) for load in (str(tmp_path / "rows.csv"), lambda: frame))
    assert from_spark.classes == from_file.classes == ("a", "b")
    np.testing.assert_array_equal(from_spark.features, from_file.features)
    assert from_spark.source.sha256 == from_file.source.sha256
    refused(lambda: frame, "feature 'team': must be numeric, got 'c' in row 1", context, key="id", time="when")


def test_identifiers_too_long_for_int64_stay_apart(spark: Any, context: DataContext) -> None:
    frame = spark.range(6).selectExpr(
        "cast(id as decimal(38,0)) + cast('9' || repeat('0', 30) as decimal(38,0)) as id", "id as x", "id % 2 as y"
    )
    assert load_data(experiment(lambda: frame, key="id"), context).features.ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_nested_columns_are_refused_by_name_unless_excluded(spark: Any, context: DataContext) -> None:
    frame = spark.range(1500).selectExpr(
        "id", "id % 2 as y", "id as x", "array(id) as tags", "struct(id as a, 'b' as b) as who", "map(id, id) as m"
    )
    match = r"data: a column must hold single values \(dataset.load\), got 'tags' \(array<bigint>\), 'who' \(struct<a:bigint,b:string>\), 'm' \(map<bigint,bigint>\); take them apart or drop them"
    refused(lambda: frame, match, context)
    nested = ("tags", "who", "m")
    assert load_data(experiment(lambda: frame, exclude=nested), context).feature_names == ("id", "x")


# ---- size


def test_a_table_over_the_limit_is_refused_before_it_is_collected(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.engines import spark_tables

    # To count them takes a second; collected they would be 4.5 GiB, and over Spark's own limit.
    frame = spark.range(3 * 10**8).selectExpr("id as a", "id as b")
    match = (
        r"data: a Spark table is collected to the driver, where it may take 0\.0093 GiB, got 300,000,000 rows × 2 columns, about 4\.5 GiB, in main\.sales\.churn; "
        r"select columns or sample rows in dataset\.load, or use a driver with 18 GiB of memory \(25% of it may be the table\)"
    )
    with pytest.raises(DataError, match=match):
        spark_tables.collect(frame, "main.sales.churn", limit_bytes=10**7)
    monkeypatch.setattr(spark_tables, "memory_bytes", lambda: 4 * 10**6)
    with pytest.raises(DataError, match=r"where it may take 0\.00093 GiB"):
        spark_tables.collect(frame, "t")
    assert len(spark_tables.collect(frame.limit(5000), "t")) == 5000


def test_narrow_columns_count_as_the_features_they_become(spark: Any) -> None:
    from toolkit.engines.spark_tables import collect

    frame = spark.range(100_000).selectExpr(*[f"id % {number} = 0 as b{number}" for number in range(2, 12)])
    with pytest.raises(DataError, match=r"100,000 rows × 10 columns, about 0\.0037 GiB"):  # 4 bytes a cell, not 1 or an eighth
        collect(frame, "t", limit_bytes=1_500_000)


def test_spark_s_own_limit(spark: Any) -> None:
    from toolkit.engines.spark_tables import collect

    frame = spark.range(2 * 2**20 * RESULT_SIZE_MIB // 8, numPartitions=4)
    match = (
        r"^data: a collected Spark table must be below spark\.driver\.maxResultSize, got about 0\.016 GiB in t; start Spark with "
        r"spark\.driver\.maxResultSize=1g \(--spark-conf spark\.driver\.maxResultSize=1g; a running session keeps its value, so set it in the cluster's Spark config and restart\), "
        r"or select columns or sample rows in dataset\.load$"
    )
    with pytest.raises(DataError, match=match):
        collect(frame, "t", limit_bytes=10**9)


# ---- what Spark says


def test_what_is_not_there_or_cannot_be_read(spark: Any, context: DataContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark.sql import functions as F

    name = "spark_catalog.default.absent"
    refused(
        name,
        rf"data: Spark cannot read it, got {name}: \[TABLE_OR_VIEW_NOT_FOUND\] The table or view .* cannot be found.*; check the path or",
        context,
    )
    refused("default.first-half", r"got default.first-half: \[TABLE_OR_VIEW_NOT_FOUND\]", context)  # quoted, or it would not be parsed
    refused(str(tmp_path / "absent.csv"), "no such file, folder or table", context)
    refused("absent.csv", "no such file, folder or table", context)

    spark.range(2000).withColumnRenamed("id", "y").write.parquet(str(tmp_path / "t"))
    gone = spark.read.parquet(str(tmp_path / "t"))
    for file in (tmp_path / "t").glob("*.parquet"):
        file.write_bytes(b"PAR1 broken")
    refused(lambda: gone, r"data: Spark cannot read it, got dataset.load: .*(parquet|Parquet).*; correct the query", context)

    @F.udf("double")
    def failing(_):  # without hints: pyspark would warn of these, which are text
        raise ValueError("no rate\nfor this day")

    raising = spark.range(10).select("id", failing("id").alias("y"))
    refused(lambda: raising, "data: Spark cannot read it, got dataset.load: ValueError: no rate; correct the query", context)

    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("toolkit.engines.tables.importlib.util.find_spec", lambda name: None if name == "deltalake" else find_spec(name))
    refused(
        str(tmp_path / "delta"), r"delta: \[DATA_SOURCE_NOT_FOUND\] Failed to find the data source: delta.*; pip install deltalake", context
    )


def test_columns_of_one_name_and_no_rows(spark: Any, context: DataContext) -> None:
    frame = spark.range(5).selectExpr("id as x", "id % 2 as y", "id as x")
    refused(lambda: frame, r"data: column names must differ \(dataset.load\), got 'x'", context)
    refused(lambda: spark.range(0).selectExpr("id as x", "id as y"), "data: needs rows, got 0 rows", context)
    refused(lambda: spark.range(5), "dataset.label: no such column in .*, got 'y'", context)
