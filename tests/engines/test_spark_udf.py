"""Registered models in Spark frames and SQL: a real registry, real workers, and what these have imported."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.engines.conftest import MlflowServer
from tests.engines.promote_fixtures import Shop, edit_spec, rows
from tests.engines.spark_fixtures import own_session
from toolkit import spark_udf
from toolkit.core.errors import RegistryError, ScoringError
from toolkit.core.registry import parse_model
from toolkit.core.scoring import Feature, ScoringModel
from toolkit.engines import portable_model
from toolkit.engines.mlflow_scoring_model import fetch
from toolkit.engines.mlflow_spark import spark_flavor
from toolkit.engines.spark_scoring import score_function, with_prediction

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("warehouse")) as session:
        yield session


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    """Two toolkit models, and one that another has logged."""
    shop = Shop(mlflow_server, mlflow_server.uri)
    shop.registry.set_alias("udf_binary", "champion", shop.register("udf_binary", shop.model("good")))
    shop.register("udf_classes", shop.model("of three classes"))
    return shop


@pytest.fixture(scope="module")
def frame(spark: Any) -> Any:
    """Names and types otherwise than in training: upper case, whole numbers, text; with gaps and an unknown region."""
    table = rows()[:300].copy()
    table.loc[::7, "a"] = None
    table.loc[::5, "region"] = None
    table.loc[3, "region"] = "nowhere"
    found = spark.createDataFrame(
        table.astype(object).where(table.notna(), None), "a double, b double, c double, region string, y int, id long"
    )
    return found.select("id", "region", found.c.cast("string").alias("c"), found.b.alias("B"), "a").repartition(3).cache()


def scoring_model(shop: Shop, name: str, folder: Path) -> ScoringModel:
    return fetch(shop.registry, shop.registry.find(parse_model(name), default_alias="challenger"), folder)


def wanted(shop: Shop, model: str, frame: Any) -> Any:
    logged = shop.model(model)
    table = frame.toPandas().rename(columns={"B": "b"}).astype({"c": float})
    return dict(zip(table.id, portable_model.load(logged.folder).predict(table), strict=True))


def assert_predicted(scored: Any, expected: dict[int, Any], column: str = "prediction") -> None:
    table = scored.select("id", column).toPandas()
    assert len(table) == len(expected)
    for row_id, value in zip(table.id, table[column], strict=True):
        np.testing.assert_allclose(value, expected[row_id], rtol=0, atol=1e-6)


# ---- a column of predictions


@pytest.mark.parametrize(
    ("name", "model", "kind"), [("udf_binary", "good", "double"), ("udf_classes", "of three classes", "array<double>")]
)
def test_a_frame_gets_predictions_and_keeps_its_columns(
    spark: Any, shop: Shop, frame: Any, tmp_path: Path, name: str, model: str, kind: str
) -> None:
    loaded = scoring_model(shop, name, tmp_path)
    scored = with_prediction(frame, loaded)
    assert scored.columns == [*frame.columns, "prediction"]
    assert dict(scored.dtypes)["prediction"] == kind
    expected = wanted(shop, model, frame)
    assert_predicted(scored, expected)
    more = with_prediction(frame, loaded, explain=2, guarded=True)
    assert dict(more.dtypes)["explanation"] == "array<struct<feature:string,contribution:double>>"
    assert_predicted(more, expected)
    row = more.first()
    assert (
        row["_crashed"] is False and len(row["explanation"]) == 2 and {each["feature"] for each in row["explanation"]} <= {*"abc", "region"}
    )


def test_names_that_need_quotes(spark: Any, shop: Shop, frame: Any, tmp_path: Path) -> None:
    loaded = scoring_model(shop, "udf_binary", tmp_path)
    odd = {"a": "a.b", "b": "a `b`", "c": "C c", "region": "region"}
    spec = {**loaded.spec, "features": [{**each, "name": odd[each["name"]]} for each in loaded.spec["features"]]}
    renamed = replace(loaded, spec=spec, features=tuple(Feature(odd[each.name], each.categories) for each in loaded.features))
    named = frame.withColumnsRenamed({"a": "a.b", "B": "a `b`", "c": "C c"})
    assert_predicted(with_prediction(named, renamed), wanted(shop, "good", frame))


def test_columns_that_do_not_fit_are_refused_in_one_line(spark: Any, shop: Shop, frame: Any, tmp_path: Path) -> None:
    loaded = scoring_model(shop, "udf_binary", tmp_path)
    for wrong, match in (
        (
            frame.withColumnRenamed("region", "regions"),
            r"a column for each feature of udf_binary/1, got no 'region'; did you mean 'regions'",
        ),
        (frame.selectExpr("*", "a AS b"), "one column for the feature 'b', got 'B', 'b'"),
        (frame.selectExpr("*", "a AS prediction"), "without a column 'prediction'"),
        (frame.drop("a").selectExpr("*", "current_date() AS a"), "feature 'a': a column of numbers, got date"),
    ):
        with pytest.raises(ScoringError, match=match) as caught:
            with_prediction(wrong, loaded)
        assert "\n" not in str(caught.value)


# ---- toolkit.spark_udf


@pytest.mark.parametrize("uri", ["models:/udf_binary@champion", "models:/udf_binary/1", "udf-binary"])
def test_the_calls_of_mlflow(spark: Any, shop: Shop, frame: Any, uri: str) -> None:
    from pyspark.sql import functions as F

    predict = spark_udf(spark, uri, tracking_uri=shop.uri)
    expected = wanted(shop, "good", frame)
    for call in (
        predict(F.struct("id", "region", "a", "B", "c")),
        predict("a", "b", F.col("c"), frame.region),
        predict("region", "c", "b", "a"),
        predict(),
    ):
        assert_predicted(frame.withColumn("prediction", call), expected)


def test_in_sql(spark: Any, shop: Shop, frame: Any) -> None:
    spark_udf(spark, "udf_binary@champion", register="predict_churn", tracking_uri=shop.uri)
    spark_udf(spark, "udf_classes/1", register="predict_class", tracking_uri=shop.uri)
    frame.createOrReplaceTempView("fresh")
    expected = wanted(shop, "good", frame)
    for call in ("predict_churn(a, b, c, region)", "predict_churn(struct(*))", "predict_churn(a, cast(b AS decimal(20, 9)), c, region)"):
        assert_predicted(spark.sql(f"SELECT id, {call} AS prediction FROM fresh"), expected)
    scored = spark.sql("SELECT id, predict_class(a, b, c, region) AS prediction FROM fresh")
    assert scored.dtypes[1] == ("prediction", "array<double>")
    assert_predicted(scored, wanted(shop, "of three classes", frame))


def test_wrong_calls(spark: Any, shop: Shop, frame: Any) -> None:
    predict = spark_udf(spark, "udf_binary", tracking_uri=shop.uri)
    with pytest.raises(
        ScoringError, match=r"4 columns in the order a, b, c, region, got 3 columns, among them 'regio'; did you mean 'region'"
    ):
        predict("a", "b", "regio")
    with pytest.raises(RegistryError, match=r"registered model: one of .*got 'udf_binari'.*did you mean 'udf_binary'"):
        spark_udf(spark, "udf_binari", tracking_uri=shop.uri)
    with pytest.raises(RegistryError, match="alias of udf_binary"):
        spark_udf(spark, "models:/udf_binary@nobody", tracking_uri=shop.uri)


def test_workers_import_neither_mlflow_nor_ray(spark: Any, shop: Shop, frame: Any, tmp_path: Path) -> None:
    from pyspark.sql import functions as F

    score = score_function(spark, scoring_model(shop, "udf_binary", tmp_path), explain=1, guarded=True).func

    @F.arrow_udf("string")
    def imported(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        """What the process has imported that has just scored a batch."""
        import sys

        for scores in score(batches):
            yield pa.array([" ".join(sys.modules)] * len(scores))

    modules = frame.select(imported("a", "B", F.col("c").cast("float"), "region").alias("modules")).distinct().toPandas().modules
    loaded = {name for names in modules for name in names.split()}
    assert "toolkit.engines.scorer" in loaded
    assert not {"mlflow", "ray", "sklearn", "toolkit.engines.spark_scoring"} & loaded


# ---- models that are not the toolkit's


class Sum(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["a"] + 2 * model_input["b"]


def register_foreign(shop: Shop, name: str, **options: Any) -> str:
    mlflow.set_tracking_uri(shop.uri)
    mlflow.set_experiment("foreign")
    with mlflow.start_run():
        mlflow.pyfunc.log_model(name="model", python_model=Sum(), registered_model_name=name, pip_requirements=[], **options)
    return f"{name}/1"


def test_a_model_without_a_spec_goes_through_mlflow(spark: Any, shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from pyspark.sql import functions as F

    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    uri = register_foreign(shop, "udf_foreign", signature=mlflow.models.infer_signature(table, table.a))
    frame = spark.createDataFrame(table).withColumn("b", F.col("b").cast("int"))
    with caplog.at_level(logging.WARNING, "toolkit"):
        scored = with_prediction(frame, scoring_model(shop, uri, tmp_path)).toPandas()
    assert "slower" in caplog.text
    assert scored.prediction.tolist() == [7.0, 10.0] and list(scored) == ["a", "b", "prediction"]
    predict = spark_udf(spark, uri, register="foreign_sum", tracking_uri=shop.uri)
    frame = spark.createDataFrame(table)
    assert frame.select(predict(F.struct("a", "b")).alias("p")).toPandas().p.tolist() == [7.0, 10.0]
    frame.createOrReplaceTempView("foreign")
    assert spark.sql("SELECT foreign_sum(a, b) AS p FROM foreign").toPandas().p.tolist() == [7.0, 10.0]


def test_a_pipeline_of_spark_ml_transforms(spark: Any, shop: Shop, tmp_path: Path) -> None:
    """Columns of the table that are named as those of the pipeline's stages stay what they were."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F

    table = rows()[["a", "b", "y", "id"]][:200]
    frame = spark.createDataFrame(table)
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=["a", "b"], outputCol="features"), LogisticRegression(labelCol="y")]).fit(frame)
    mlflow.set_tracking_uri(shop.uri)
    mlflow.set_experiment("foreign")
    signature = mlflow.models.infer_signature(table[["a", "b"]])
    with mlflow.start_run():
        spark_flavor().log_model(
            pipeline,
            "model",
            registered_model_name="udf_pipeline",
            signature=signature,
            pip_requirements=[],
            dfs_tmpdir=str(tmp_path / "dfs"),
        )
    expected = {row.id: row.p for row in pipeline.transform(frame).select("id", vector_to_array("probability")[1].alias("p")).collect()}
    loaded = scoring_model(shop, "udf_pipeline/1", tmp_path / "model")
    assert loaded.kind == "sparkml"
    scored = with_prediction(frame.select("id", F.col("a").cast("string"), "b", F.lit("kept").alias("features")), loaded)
    assert scored.columns == ["id", "a", "b", "features", "prediction"] and scored.first()["features"] == "kept"
    assert_predicted(scored, expected)
    with pytest.raises(ScoringError, match="explanations: of a model of XGBoost"):
        with_prediction(frame, loaded, explain=3)
    with pytest.raises(ScoringError, match="a model that predicts in Python"):
        spark_udf(spark, "udf_pipeline/1", tracking_uri=shop.uri)


def test_models_that_cannot_be_described(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="a model with a signature"):
        scoring_model(shop, register_foreign(shop, "udf_unsigned"), tmp_path / "unsigned")
    shop.register("udf_edited", shop.tampered(edit_spec(threshold=0.1)))
    assert scoring_model(shop, "udf_edited", tmp_path / "sealed so").threshold == 0.1
    shop.registry.set_tag("udf_edited", "toolkit.spec_sha256", "0" * 64, version=1)
    with pytest.raises(RegistryError, match="must agree"):
        scoring_model(shop, "udf_edited", tmp_path / "edited")
    shop.registry.delete_tag("udf_edited", "toolkit.spec_sha256", version=1)
    with pytest.raises(RegistryError, match="no such tag"):
        scoring_model(shop, "udf_edited", tmp_path / "unsealed")
