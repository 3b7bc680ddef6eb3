"""Predictions as a column of a Spark frame, on classic and Connect sessions.

A portable model's bytes go to each executor once (a broadcast; on Connect with the function), its features one column each, numbers as
floats; all other columns stay in the JVM. Models without a spec go MLflow's own way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.functions import arrow_udf
from pyspark.sql.pandas.types import to_arrow_type

from toolkit.core.errors import ScoringError, nearest
from toolkit.core.scoring import EXPLANATION, PREDICTION, ScoringModel
from toolkit.engines.scorer import Scorer, score_batches, scorer_of, scorer_spec
from toolkit.engines.spark_session import is_classic, reason_of

CRASHED = "_crashed"

TASKS_A_CORE = 4
TASK_BYTES = 128 * 2**20
MIN_BATCH_ROWS, MAX_BATCH_ROWS, MAX_BATCH_VALUES = 2_000, 50_000, 4_000_000

_logger = logging.getLogger("toolkit")
_SCORES = "_toolkit_scores"
_INPUT = "_toolkit_input"
_NUMBERS = (T.NumericType, T.BooleanType, T.StringType, T.NullType)
_EXPLANATION = T.ArrayType(T.StructType([T.StructField("feature", T.StringType()), T.StructField("contribution", T.DoubleType())]))

# (application, model) -> its bytes, on the executors as long as the session lasts.
_broadcasts: dict[tuple[str, str], Any] = {}


def with_prediction(frame: DataFrame, model: ScoringModel, *, explain: int = 0, guarded: bool = False) -> DataFrame:
    """The frame with a column `prediction`: a double, or an array of doubles of a multiclass model.

    Of a portable model, numbers are what Spark makes of them by `try_cast`: what is none counts as missing, so look for such rows before.

    Args:
        explain: of how many features `explanation` holds the contributions, an array of structs; XGBoost only.
        guarded: rows that crash the model's library have no prediction and `_crashed` true, and the task lives.

    Raises:
        ScoringError: a column is missing, is of a type that is no number, or has a name that is to be added; the model cannot explain.
    """
    _check_explain(model, explain)
    added = [PREDICTION, *([EXPLANATION] if explain else []), *([CRASHED] if guarded else [])]
    for name in added:
        if name in frame.columns:
            raise ScoringError(f"the table: without a column {name!r}, which is added", got=name, next_step="rename or drop it")
    names = column_names(frame, model)
    if model.kind != "portable":
        return _with_mlflow(frame, model, names)
    columns = [_portable_column(frame, name, feature.categories is None) for name, feature in zip(names, model.features, strict=True)]
    scores = score_function(frame.sparkSession, model, explain=explain, guarded=guarded)(*columns)
    prediction_type = "array<double>" if model.task == "multiclass" else "double"
    if not (explain or guarded):
        return frame.withColumn(PREDICTION, scores.cast(prediction_type))
    frame = frame.withColumn(_SCORES, scores).withColumn(PREDICTION, F.col(f"{_SCORES}.prediction").cast(prediction_type))
    if explain:
        frame = frame.withColumn(EXPLANATION, F.col(f"{_SCORES}.explanation"))
    if guarded:
        frame = frame.withColumn(CRASHED, F.col(f"{_SCORES}.crashed"))
    return frame.drop(_SCORES)


def tune(session: Any, model: ScoringModel, schema: T.StructType) -> None:
    """Settings for one batch's scores, in a session that is nobody else's.

    Larger batches for Python, by values, not rows: 10,000 rows of 12 floats cost as much to hand over as to make. No dictionaries for
    fractions, which the writer gives up after having tried: of 2,000,000 × 12 both together take 8.7 s of writing to 6.5.
    """
    rows = min(MAX_BATCH_ROWS, max(MIN_BATCH_ROWS, MAX_BATCH_VALUES // len(model.features)))
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", rows)
    fractions = [field.name for field in schema.fields if isinstance(field.dataType, T.FloatType | T.DoubleType)]
    for name in (*fractions, PREDICTION):
        session.conf.set(f"parquet.enable.dictionary#{name}", "false")


def in_larger_tasks(frame: DataFrame) -> DataFrame:
    """The same rows in fewer partitions, where there are many small ones: each is a task, which costs 0.06 s
    of CPU with Python. Without a shuffle; for frames of a classic session that have none, as those of a scan."""
    context = frame.sparkSession.sparkContext
    size_bytes = int(str(frame._jdf.queryExecution().optimizedPlan().stats().sizeInBytes()))
    enough = max(TASKS_A_CORE * context.defaultParallelism, -(-size_bytes // TASK_BYTES))
    return frame.coalesce(enough) if frame.rdd.getNumPartitions() > 2 * enough else frame


def column_names(frame: DataFrame, model: ScoringModel) -> list[str]:
    """The frame's columns for the model's features, in their order; upper and lower case are the same where Spark takes them so.

    Raises:
        ScoringError: one is missing, or several have its name.
    """
    is_sensitive = str(frame.sparkSession.conf.get("spark.sql.caseSensitive", "false")).lower() == "true"
    there, found = frame.columns, []
    for feature in model.features:
        same = [name for name in there if name == feature.name or (not is_sensitive and name.lower() == feature.name.lower())]
        if not same:
            raise ScoringError(
                f"the table: a column for each feature of {model}",
                got=f"no {feature.name!r}",
                next_step=nearest(feature.name, there),
            )
        if len(same) > 1:
            raise ScoringError(
                f"the table: one column for the feature {feature.name!r}",
                got=", ".join(map(repr, same)),
                next_step="rename one, or set spark.sql.caseSensitive=true",
            )
        found += same
    return found


def score_function(
    session: Any,
    model: ScoringModel,
    *,
    explain: int = 0,
    guarded: bool = False,
    number: T.DataType = T.FloatType(),  # noqa: B008
) -> Any:
    """A portable model as a function of Spark, from the features in their order, or a struct which has them by name, to a `number` or an
    array of them; with `explain` or `guarded` to a struct of `prediction`, `explanation` and `crashed`."""
    assert model.spec is not None
    result: T.DataType = T.ArrayType(number) if model.task == "multiclass" else number
    if explain or guarded:
        fields = [T.StructField("prediction", result)]
        fields += [T.StructField("explanation", _EXPLANATION)] if explain else []
        fields += [T.StructField("crashed", T.BooleanType())] if guarded else []
        result = T.StructType(fields)
    sha256, spec, payload_of, type_ = model.sha256, scorer_spec(model.spec), _payload_of(session, model), to_arrow_type(result)

    def scorer() -> Scorer:
        return scorer_of(sha256, payload_of, spec)

    def score(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        return score_batches(batches, scorer, explain, guarded, type_)

    make: Any = arrow_udf  # its types know no tuples of columns
    return make(score, result)


def prediction_function(session: Any, model: ScoringModel) -> Callable[..., Column]:
    """A model as `toolkit.spark_udf` gives it to the user, who calls it with columns or names of columns.

    Raises:
        ScoringError: it is a pipeline of Spark ML, which has a `transform`.
    """
    if model.kind == "pyfunc":
        return _mlflow_function(session, model)
    _check_runs_in_python(model)
    function: Callable[..., Column] = score_function(session, model)
    names = [feature.name for feature in model.features]
    result = "array<double>" if model.task == "multiclass" else "double"

    def predict(*columns: Column | str) -> Column:
        taken = _in_order(columns, names, str(model))
        if len(names) == 1 and len(taken) == 1:
            return function(*taken).cast(result)  # the column itself or a struct, which only the worker sees
        if len(taken) == 1:
            taken = [taken[0].getField(name) for name in names]
        cast = [
            column.cast("float") if feature.categories is None else column for column, feature in zip(taken, model.features, strict=True)
        ]
        return function(*cast).cast(result)

    return predict


def register_function(session: Any, model: ScoringModel, name: str) -> None:
    """Make a model known to SQL; as `prediction_function`, with columns as they are."""
    if model.kind == "pyfunc":
        from toolkit.engines import mlflow_scoring_model as mlflow_models

        session.udf.register(name, mlflow_models.spark_function(session, model, mlflow_models.result_type(model)))
        return
    _check_runs_in_python(model)
    session.udf.register(name, score_function(session, model, number=T.DoubleType()))


def _check_runs_in_python(model: ScoringModel) -> None:
    if model.kind == "sparkml":
        raise ScoringError(
            "spark_udf: a model that predicts in Python",
            got=f"{model}, a pipeline of Spark ML",
            next_step="use its transform, or toolkit score",
        )


def _mlflow_function(session: Any, model: ScoringModel) -> Callable[..., Column]:
    from toolkit.engines import mlflow_scoring_model as mlflow_models

    tell_slow(model)
    function: Callable[..., Column] = mlflow_models.spark_function(session, model, mlflow_models.result_type(model))
    return function


def _in_order(columns: Sequence[Column | str], names: Sequence[str], model: str) -> list[Column]:
    """One column for each of `names`, or the struct alone; none given: those of these names."""
    given = columns or names
    texts = [each for each in given if isinstance(each, str)]
    if len(given) not in (1, len(names)):
        unknown = next((each for each in texts if each not in names), None)
        raise ScoringError(
            f"{model}: takes a struct with its features, or {len(names)} columns in the order {', '.join(names)}",
            got=f"{len(given)} columns" if unknown is None else f"{len(given)} columns, among them {unknown!r}",
            next_step=nearest(unknown, names) if unknown is not None else "",
        )
    if sorted(texts) == sorted(names):  # each by its own name: nobody means to give a model's features in another order
        given = names
    return [F.col(quoted(each) if each in names else each) if isinstance(each, str) else each for each in given]


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _check_explain(model: ScoringModel, explain: int) -> None:
    kind = model.kind if model.spec is None else model.spec["model_kind"]
    if explain and kind != "xgboost":
        raise ScoringError("explanations: of a model of XGBoost", got=f"{model}, of the kind {kind}", next_step="score without them")


def _portable_column(frame: DataFrame, name: str, is_number: bool) -> Column:
    column, kind = F.col(quoted(name)), frame.schema[name].dataType
    if not is_number:
        return column
    if not isinstance(kind, _NUMBERS):
        raise ScoringError(f"feature {name!r}: a column of numbers", got=kind.simpleString(), next_step="convert it as for the training")
    return column.try_cast("float") if isinstance(kind, T.StringType) else column.cast("float")


def _payload_of(session: Any, model: ScoringModel) -> Callable[[], bytes]:
    payload = model.payload
    if not is_classic(session):
        return lambda: payload
    context = session.sparkContext
    key = (context.applicationId, model.sha256)
    if key not in _broadcasts:
        _broadcasts[key] = context.broadcast(payload)
    broadcast = _broadcasts[key]
    return lambda: broadcast.value


# --- models without a spec ----------------------------------------------------------------------------------------------------------


def _with_mlflow(frame: DataFrame, model: ScoringModel, names: Sequence[str]) -> DataFrame:
    from toolkit.engines import mlflow_scoring_model as mlflow_models

    types = mlflow_models.input_types(model)
    features = []
    for name, feature in zip(names, model.features, strict=True):
        column = F.col(quoted(name))
        features.append((column.cast(types[feature.name]) if feature.name in types else column).alias(feature.name))
    try:
        if model.kind == "pyfunc":
            function = mlflow_models.spark_function(frame.sparkSession, model, mlflow_models.result_type(model))
            tell_slow(model)
            return frame.withColumn(PREDICTION, function(F.struct(*features)))
        pipeline = mlflow_models.spark_pipeline(model)
        # Packed, for a pipeline adds columns of any name.
        scored = pipeline.transform(frame.select(F.struct("*").alias(_INPUT), *features))
    except Exception as error:  # MLflow's, the JVM's, py4j's and pyspark's own trees have nothing in common
        raise ScoringError(f"{model}: one that Spark can load and apply", got=reason_of(error), next_step="see its requirements") from error
    predicted: DataFrame = scored.select(f"{_INPUT}.*", _pipeline_prediction(scored, pipeline, model).alias(PREDICTION))
    return predicted


def _pipeline_prediction(scored: DataFrame, pipeline: Any, model: ScoringModel) -> Column:
    """The probability of the second of two classes, those of several, or the number that is predicted."""
    from pyspark.ml.functions import vector_to_array

    if "probability" in scored.columns:
        probability = vector_to_array(F.col("probability"))
        num_classes = [stage.numClasses for stage in pipeline.stages if hasattr(stage, "numClasses")]
        return probability[1] if num_classes[-1:] == [2] else probability
    if "prediction" in scored.columns:
        return F.col("prediction").cast("double")
    raise ScoringError(f"{model}: a pipeline that gives the column probability or prediction", got=", ".join(scored.columns[1:]))


def tell_slow(model: ScoringModel) -> None:
    _logger.warning("%s has no toolkit_model/spec.json: MLflow's own spark_udf predicts, which is slower", model)
