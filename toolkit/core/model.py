"""Kinds of models, as an experiment names them. What fits them is in `engines`, one file a library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

FROZEN = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

Task = Literal["binary", "multiclass", "regression", "ranking"]
PositiveInt = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=FROZEN)
class XGBoost:
    """XGBoost's native booster.

    Attributes:
        objective: any of XGBoost's; it decides the task (`binary:*`, `multi:*`, `rank:*`, else regression).
        early_stopping_rounds: None trains all rounds.
        params: fixed parameters of the booster beside the searched ones.
        device: `cuda` needs `sweep.gpus_per_trial`.
    """

    objective: str = "binary:logistic"
    num_boost_round: PositiveInt = 500
    early_stopping_rounds: PositiveInt | None = 20
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device: Literal["cpu", "cuda"] = "cpu"
    kind: Literal["xgboost"] = "xgboost"

    @property
    def task(self) -> Task:
        family = self.objective.split(":")[0]
        if family == "multi":
            return "multiclass"
        if family == "rank":
            return "ranking"
        return "binary" if family == "binary" else "regression"


@dataclass(frozen=True, config=FROZEN)
class Custom:
    """The user's own model.

    Attributes:
        fit: `fit(params, train, validation, report) -> model`. `train` and `validation` have `features` (rows x columns, float32), `label`
            and `weight`; `report(step, {metric: value})` gives intermediate values, and may stop the trial.
        predict: `predict(model, features)` -> rows (regression, binary: probability of the positive class) or rows x classes.
            Without it the search ends with the best parameters and no model.
    """

    fit: Callable[..., Any]
    predict: Callable[..., Any] | None = None
    task: Task = "binary"
    kind: Literal["custom"] = "custom"


@dataclass(frozen=True, config=FROZEN)
class Sklearn:
    """A scikit-learn estimator.

    Categories (`dataset.categorical`) are one-hot encoded in front of it; a missing value stays NaN, which the estimator must know.

    Attributes:
        estimator: a class, or its full name (`"sklearn.ensemble.RandomForestClassifier"`), so that the file of an experiment does not
            import scikit-learn each time it is read. A classifier must have `predict_proba`.
        params: fixed arguments of the class beside the searched ones.
    """

    estimator: str | type[Any]
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: Literal["binary", "multiclass", "regression"] = "binary"
    kind: Literal["sklearn"] = "sklearn"

    @property
    def estimator_name(self) -> str:
        return self.estimator if isinstance(self.estimator, str) else f"{self.estimator.__module__}.{self.estimator.__qualname__}"


@dataclass(frozen=True, config=FROZEN)
class SparkML:
    """A Spark ML pipeline, fitted on the Spark cluster by `toolkit train`; not searched.

    Attributes:
        pipeline: `pipeline(feature_names, label, params) -> pyspark.ml.Pipeline`. The label column holds doubles: classes as 0 … k-1.
    """

    pipeline: Callable[..., Any]
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: Literal["binary", "multiclass", "regression"] = "binary"
    kind: Literal["sparkml"] = "sparkml"


Model = Annotated[XGBoost | Custom | Sklearn | SparkML, Field(discriminator="kind")]
