"""Pipelines of Spark ML, fitted on the session's cluster with the parts of the toolkit's own split.

The parts come from the driver, which splits them (equal rows stay together); tables larger than it holds are beyond this engine.
Shapes: n rows, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession

from toolkit.core.data import Part, SplitData, TrialData
from toolkit.core.errors import ExperimentError
from toolkit.core.model import SparkML
from toolkit.core.trial import FinalModel
from toolkit.engines.spark_session import reason_of

_ROW = "__row"


@dataclass(frozen=True)
class FittedPipeline:
    """`example`: some rows of the features, as a caller has them."""

    model: PipelineModel
    final: FinalModel
    example: pd.DataFrame


def fit_pipeline(session: SparkSession, model: SparkML, label: str, data: SplitData, *, keep_trial_model: bool) -> FittedPipeline:
    """Fit on the train part, predict the validation part, fit on both, predict the test part.

    Args:
        keep_trial_model: the published protocol: the model of the train part is the final one.

    Raises:
        ExperimentError: the user's function or Spark refuses, or the pipeline gives no `probability` (classes) or `prediction` (numbers).
    """
    trial = data.trial
    labels: list[npt.NDArray[np.float32]] = []
    predictions: list[npt.NDArray[np.float32]] = []
    fitted: Any = None
    for number in range(len(trial.folds)):
        train, validation = trial.fold(number)
        fitted = _fit(session, model, label, train, trial)
        labels.append(validation.label)
        predictions.append(_predict(session, fitted, model, label, validation, trial))
    if not keep_trial_model:
        fitted = _fit(session, model, label, trial.rows, trial)
    final = FinalModel(
        payload=None,
        validation_label=np.concatenate(labels),
        validation_prediction=np.concatenate(predictions),
        test_prediction=_predict(session, fitted, model, label, data.test, trial),
        fitted_prediction=_predict(session, fitted, model, label, trial.rows, trial),
        importances=_importances(fitted, trial.feature_names),
        num_rounds=None,
        refitted=not keep_trial_model,
    )
    return FittedPipeline(fitted, final, _table(data.test, trial, label).drop(columns=[label, _ROW]).head(5))


def _fit(session: SparkSession, model: SparkML, label: str, part: Part, trial: TrialData) -> PipelineModel:
    try:
        pipeline = model.pipeline(list(trial.feature_names), label, dict(model.params))
    except Exception as error:
        raise ExperimentError("model.pipeline must return a Pipeline", got=f"{type(error).__name__}: {error}") from error
    if not isinstance(pipeline, Pipeline):
        raise ExperimentError("model.pipeline must return a pyspark.ml.Pipeline", got=type(pipeline).__name__)
    fitted: PipelineModel = _told(lambda: pipeline.fit(_frame(session, part, trial, label).cache()))
    return fitted


def _predict(session: SparkSession, fitted: PipelineModel, model: SparkML, label: str, part: Part, trial: TrialData) -> Any:
    scored = _told(lambda: fitted.transform(_frame(session, part, trial, label)))
    column = "prediction" if model.task == "regression" else "probability"
    if column not in scored.columns:
        raise ExperimentError(f"model.pipeline: must give the column {column!r}", got=", ".join(scored.columns))
    chosen = scored[column] if model.task == "regression" else vector_to_array(scored[column])
    rows = _told(lambda: scored.select(_ROW, chosen.alias("score")).toPandas()).sort_values(_ROW)
    if model.task == "regression":
        return rows["score"].to_numpy(np.float32)
    probability = np.stack(rows["score"].to_list()).astype(np.float32)
    return probability[:, 1] if model.task == "binary" else probability


def _frame(session: SparkSession, part: Part, trial: TrialData, label: str) -> DataFrame:
    return session.createDataFrame(_table(part, trial, label))


def _table(part: Part, trial: TrialData, label: str) -> pd.DataFrame:
    """Features as the user's table has them, categories as text; the label as doubles; each row's place, for Spark keeps no order."""
    columns: dict[str, Any] = {}
    for number, name in enumerate(trial.feature_names):
        values = part.features[:, number]
        known = trial.categories.get(name)
        columns[name] = values.astype(np.float64) if known is None else _texts(values, known)
    return pd.DataFrame({**columns, label: part.label.astype(np.float64), _ROW: np.arange(part.num_rows)})


def _texts(codes: npt.NDArray[np.float32], known: Sequence[Any]) -> list[str | None]:
    return [None if np.isnan(code) else str(known[int(code)]) for code in codes]


def _importances(fitted: PipelineModel, names: Sequence[str]) -> Mapping[str, float]:
    """Of the last stage, where it has one for each feature."""
    values = getattr(fitted.stages[-1], "featureImportances", None)
    if values is None or len(values) != len(names):
        return {}
    return dict(zip(names, map(float, values.toArray()), strict=True))


def _told(call: Any) -> Any:
    try:
        return call()
    except ExperimentError:
        raise
    except Exception as error:  # the JVM's, py4j's and pyspark's own trees have nothing in common
        raise ExperimentError(
            "the Spark ML pipeline must fit and predict", got=reason_of(error), next_step="correct model.pipeline"
        ) from error
