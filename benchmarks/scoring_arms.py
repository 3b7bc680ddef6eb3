"""The arms of `benchmarks.scoring`: each reads a table, and writes all its columns and a prediction."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.scoring_data import PREDICTION, ROWS_PER_GROUP, Model, Workload, check, downloaded, native_folder

CORES = 2
# From a table to a folder.
Run = Callable[[Path, Path], object]


@contextlib.contextmanager
def session(driver_memory: str = "4g") -> Iterator[Any]:
    """A Spark session of both cores, with Delta, in a JVM of its own, which ends with it."""
    from pyspark.sql import SparkSession

    from toolkit.engines.spark_delta import settings_for_delta
    from toolkit.engines.spark_jvm import Jvm
    from toolkit.settings import Settings

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = {
        "spark.master": f"local[{CORES}]",
        "spark.driver.memory": driver_memory,
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(Path.cwd() / "warehouse"),
    }
    conf = settings_for_delta(conf, Settings.read())
    jvm = Jvm()
    jvm.start(conf)
    jvm.show()
    builder = SparkSession.builder.appName("bench-scoring")
    for name, value in conf.items():
        builder = builder.config(name, value)
    opened = builder.getOrCreate()
    opened.sparkContext.setLogLevel("ERROR")
    try:
        yield opened
    finally:
        jvm.stop(opened)


def timed(run: Run, work: Workload) -> dict[str, float]:
    """Wall time of one run, whose output is checked and removed. The small table is scored before it: Spark ends workers that had nothing
    to do for a minute, while another arm ran."""
    with scratch() as output:
        run(work.small, output)
    with scratch() as output:
        began = time.perf_counter()
        run(work.table, output)
        wall_s = time.perf_counter() - began
        return {"wall_s": wall_s, "mrows_per_s": work.num_rows / wall_s / 1e6, **check(output, work)}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for an output and for what lies beside it."""
    with tempfile.TemporaryDirectory(prefix="output-", dir=Path.cwd()) as folder:
        yield Path(folder) / "scores"


# --- ours -------------------------------------------------------------------------------------------------------------------------------


def score_arm(model: Model, engine: Literal["spark", "files"], kind: Literal["parquet", "delta"] = "parquet", mode: Any = "full") -> Run:
    """As `toolkit score` does it: model, lease, plan, bad rows, manifest or transaction, audit and MLflow's run included."""

    def run(table: Path, output: Path) -> Any:
        from toolkit.score import score

        return score(f"{model.registered}@champion", input=table, output=f"{kind}:{output}", mode=mode, engine=engine)

    return run


def prediction_arm(spark: Any, model: Model, kind: Literal["parquet", "delta"] = "parquet") -> Run:
    """The function of the engine `spark` alone, and a plain append."""
    from toolkit.engines import mlflow_scoring_model
    from toolkit.engines.mlflow_registry import Registry
    from toolkit.engines.spark_scoring import with_prediction

    registry = Registry.open(None, os.environ["MLFLOW_TRACKING_URI"])
    folder = Path(tempfile.mkdtemp(prefix="model-", dir=Path.cwd()))
    found = mlflow_scoring_model.fetch(registry, registry.versions(model.registered)[0], folder / "1")
    shutil.rmtree(folder)

    def run(table: Path, output: Path) -> None:
        with_prediction(spark.read.format(kind).load(str(table)), found).write.format(kind).mode("append").save(str(output))

    return run


def udf_arm(spark: Any, model: Model) -> Run:
    """`toolkit.spark_udf`, made once: the query is the one of `mlflow_arm`."""
    import toolkit

    predict = toolkit.spark_udf(spark, model.uri)

    def run(table: Path, output: Path) -> None:
        spark.read.parquet(str(table)).withColumn(PREDICTION, predict(*model.features)).write.parquet(str(output))

    return run


# --- what others have -------------------------------------------------------------------------------------------------------------------


def mlflow_arm(spark: Any, model: Model, *, native: bool = True) -> Run:
    """`mlflow.pyfunc.spark_udf`, made once. `native`: of the booster as MLflow's XGBoost flavour logs it, not of the toolkit's model."""
    import logging

    import mlflow
    import mlflow.pyfunc

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_registry_uri(os.environ["MLFLOW_TRACKING_URI"])
    uri = str(native_folder(model)) if native else model.uri
    predict = mlflow.pyfunc.spark_udf(spark, uri, result_type="double", env_manager="local")

    def run(table: Path, output: Path) -> None:
        spark.read.parquet(str(table)).withColumn(PREDICTION, predict(*model.features)).write.parquet(str(output))

    return run


def xgboost_arm(spark: Any, model: Model) -> Run:
    """`xgboost.spark`, as a regressor, for its classifier also makes margins and vectors, which nobody asked for."""
    import xgboost
    from xgboost.spark import SparkXGBRegressor, SparkXGBRegressorModel

    fitted = xgboost.XGBRegressor(n_jobs=1)
    fitted.load_model(bytearray(downloaded(model)[1]))
    # What its `fit` ends with: it has no way to take a model that was trained elsewhere.
    transformer = SparkXGBRegressor(features_col=list(model.features))._copyValues(SparkXGBRegressorModel(fitted))

    def run(table: Path, output: Path) -> None:
        transformer.transform(spark.read.parquet(str(table))).write.parquet(str(output))

    return run


def predict_batch_arm(spark: Any, model: Model) -> Run:
    """`pyspark.ml.functions.predict_batch_udf` over XGBoost's `inplace_predict`; the features in an array, as its manual has it."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import functions as F
    from pyspark.sql.types import FloatType

    payload, num_features = downloaded(model)[1], len(model.features)

    def make() -> Callable[[Any], Any]:
        import xgboost

        booster = xgboost.Booster()
        booster.load_model(bytearray(payload))
        return lambda rows: booster.inplace_predict(rows, validate_features=False)

    predict = predict_batch_udf(make, return_type=FloatType(), batch_size=10_000, input_tensor_shapes=[[num_features]])

    def run(table: Path, output: Path) -> None:
        features = F.array(*(F.col(name).cast("float") for name in model.features))
        spark.read.parquet(str(table)).withColumn(PREDICTION, predict(features)).write.parquet(str(output))

    return run


# --- the limit --------------------------------------------------------------------------------------------------------------------------


class Limit:
    """The least one can do: a process a core, each reads row groups with pyarrow, predicts on one thread, writes Parquet. Warm."""

    def __init__(self, model: Model) -> None:
        payload = downloaded(model)[1]
        self._pool = ProcessPoolExecutor(CORES, get_context("spawn"), _prepare_limit, (payload, list(model.features)))

    def __enter__(self) -> Limit:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, table: Path, output: Path) -> None:
        output.mkdir()
        files = sorted(table.glob("*.parquet"))
        for done in [self._pool.submit(_score_file, path, output / path.name) for path in files]:
            done.result()


_limit: dict[str, Any] = {}


def _prepare_limit(payload: bytes, features: list[str]) -> None:
    import pyarrow as pa
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(payload))
    booster.set_param({"nthread": 1})
    pa.set_cpu_count(1)
    _limit.update(booster=booster, features=features)


def _score_file(source: Path, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    booster, features = _limit["booster"], _limit["features"]
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow.append(pa.field(PREDICTION, pa.float64()))
        with pq.ParquetWriter(target, schema, compression="snappy", use_dictionary=False) as writer:
            for batch in file.iter_batches(ROWS_PER_GROUP, use_threads=False):
                matrix = np.empty((batch.num_rows, len(features)), dtype=np.float32)
                for place, name in enumerate(features):
                    matrix[:, place] = batch.column(name).to_numpy()
                prediction = booster.inplace_predict(matrix, validate_features=False).astype(np.float64)
                writer.write_batch(batch.append_column(PREDICTION, pa.array(prediction)))
