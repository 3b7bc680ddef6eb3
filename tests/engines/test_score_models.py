"""`toolkit score` with every kind of model: what is written equals what the model says in the process that trained it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.engines.conftest import MlflowServer
from tests.engines.promote_fixtures import Shop, experiment, rows, train
from tests.engines.score_scenes import CONF, Place, table
from tests.engines.spark_fixtures import own_session
from toolkit import Metric, Sklearn, XGBoost
from toolkit.core.model_spec import ModelPackage
from toolkit.engines import portable_model, spark_delta
from toolkit.engines.mlflow_spark import spark_flavor
from toolkit.settings import Settings

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

REGRESSION = XGBoost(objective="reg:squarederror", num_boost_round=5, early_stopping_rounds=None, params={"nthread": 1})


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("warehouse"), spark_delta.settings_for_delta(CONF, Settings.read({}))) as session:
        yield session


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    return Shop(mlflow_server, mlflow_server.uri)


def forest() -> ModelPackage:
    return train(experiment(model=Sklearn("sklearn.ensemble.RandomForestClassifier", params={"n_estimators": 5, "random_state": 1})))


def regression() -> ModelPackage:
    frame = rows().assign(y=rows().a * 2.5 + rows().b)
    return train(experiment(model=REGRESSION, metric=Metric("rmse", "minimize")), frame)


def calibrated() -> ModelPackage:
    return train(experiment(calibration="isotonic"))


@pytest.mark.parametrize("make", [forest, regression, calibrated])
@pytest.mark.parametrize("engine", ["spark", "files"])
def test_the_kinds_of_portable_models(spark: Any, shop: Shop, tmp_path: Path, make: Any, engine: str) -> None:
    place = Place(spark, shop, tmp_path, engine, name=f"kinds_{make.__name__}")
    packed = make()
    version = shop.register(place.name, shop.log(packed))
    place.add(table(0, 60).select(["region", "c", "note", "id", "b", "a", "at"]))
    assert place.score(model=f"{place.name}/{version}").num_scored_rows == 60
    found = place.scores()
    wanted = portable_model.from_payload(packed.payload, packed.spec).predict(found)
    np.testing.assert_allclose(found.prediction, wanted, rtol=0, atol=1e-6)
    if make is regression:
        assert "predicted_label" not in found
    else:
        threshold = packed.spec["threshold"]
        assert (found.predicted_label == (found.prediction > (0.5 if threshold is None else threshold))).all()


def test_a_pipeline_of_spark_ml(spark: Any, shop: Shop, tmp_path: Path) -> None:
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import VectorAssembler

    frame = rows()[["a", "b", "c", "y"]]
    pipeline = Pipeline(
        stages=[VectorAssembler(inputCols=["a", "b", "c"], outputCol="x"), LogisticRegression(featuresCol="x", labelCol="y")]
    )
    fitted = pipeline.fit(spark.createDataFrame(frame))
    mlflow.set_tracking_uri(shop.uri)
    mlflow.set_experiment("pipelines")
    signature = mlflow.models.infer_signature(frame[["a", "b", "c"]], pd.DataFrame({"prediction": [0.0]}))
    with mlflow.start_run():
        logged = spark_flavor().log_model(
            fitted, "model", registered_model_name="kinds_pipeline", signature=signature, pip_requirements=[], dfs_tmpdir=str(tmp_path / "tmp")
        )  # fmt: skip
    place = Place(spark, shop, tmp_path, "auto", name="kinds_pipeline")
    whole = table(0, 80)
    place.add(whole.filter(whole["a"].is_valid()))
    result = place.score(model=f"kinds_pipeline/{logged.registered_model_version}")
    found = place.scores()
    assert result.engine == "spark" and result.num_scored_rows == len(found)
    weights, bias = fitted.stages[-1].coefficients.toArray(), fitted.stages[-1].intercept
    wanted = 1 / (1 + np.exp(-(found[["a", "b", "c"]].to_numpy() @ weights + bias)))
    np.testing.assert_allclose(found.prediction, wanted, rtol=0, atol=1e-6)
