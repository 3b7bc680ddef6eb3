"""scikit-learn estimators as a `Trainer`; stored with skops, which needs no pickle.

Shapes: n rows, d features, k classes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.data import Part, SplitData, TrialData
from toolkit.core.errors import ExperimentError, nearest
from toolkit.core.experiment import Metric
from toolkit.core.model import Sklearn
from toolkit.core.space import flatten
from toolkit.core.trial import FinalModel, FitResult, Report, fit_folds
from toolkit.engines.portable_model import TRUSTED_LIBRARIES


@dataclass(frozen=True)
class SklearnTrainer:
    """Attributes:
    keep_trial_model: the published protocol: the final model is fitted on the train part alone.
    """

    model: Sklearn
    metrics: tuple[Metric, ...]
    seed: int
    keep_trial_model: bool = False

    def fit(self, params: Mapping[str, Any], data: TrialData, num_threads: int, report: Report) -> FitResult:
        names = [metric.name for metric in self.metrics]
        return fit_folds(lambda number, _: self._fit_fold(params, data, number, num_threads), len(data.folds), names, report)

    def fit_final(self, params: Mapping[str, Any], data: SplitData, num_threads: int, best_iteration: int | None) -> FinalModel:
        labels: list[npt.NDArray[np.float32]] = []
        predictions: list[npt.NDArray[np.float32]] = []
        estimator: Any = None
        for number in range(len(data.trial.folds)):
            train, validation = data.trial.fold(number)
            estimator = self._fitted(params, train, data.trial, num_threads)
            labels.append(validation.label)
            predictions.append(self._predict(estimator, validation.features))
        if not self.keep_trial_model:
            estimator = self._fitted(params, data.trial.rows, data.trial, num_threads)
        return FinalModel(
            payload=_dump(estimator, self.model.estimator_name),
            validation_label=np.concatenate(labels),
            validation_prediction=np.concatenate(predictions),
            test_prediction=self._predict(estimator, data.test.features),
            fitted_prediction=self._predict(estimator, data.trial.rows.features),
            importances=_importances(estimator, data.trial.feature_names) if not data.trial.categories else {},
            num_rounds=None,
            refitted=not self.keep_trial_model,
        )

    def _fit_fold(self, params: Mapping[str, Any], data: TrialData, number: int, num_threads: int) -> FitResult:
        from toolkit.engines.sklearn_evaluation import metric_of

        train, validation = data.fold(number)
        prediction = self._predict(self._fitted(params, train, data, num_threads), validation.features)
        figures = {
            metric.name: metric_of(metric.name, data.task, validation.label, prediction, weight=validation.weight)
            for metric in self.metrics
        }
        return FitResult(values=tuple(figures.values()), metrics=figures)

    def _fitted(self, params: Mapping[str, Any], rows: Part, data: TrialData, num_threads: int) -> Any:
        estimator = self._estimator(params, num_threads)
        label = rows.label if data.task == "regression" else rows.label.astype(np.int64)
        takes_weight = rows.weight is not None and "sample_weight" in inspect.signature(estimator.fit).parameters
        if rows.weight is not None and not takes_weight:
            raise ExperimentError(
                "dataset.weight: the estimator must take weights", got=self.model.estimator_name, next_step="remove dataset.weight"
            )
        if data.categories:
            from sklearn.compose import ColumnTransformer
            from sklearn.pipeline import Pipeline
            from sklearn.preprocessing import OneHotEncoder

            places = [data.feature_names.index(name) for name in data.categories]
            onehot = ColumnTransformer(
                [("categories", OneHotEncoder(handle_unknown="ignore", sparse_output=False), places)], remainder="passthrough"
            )
            pipeline = Pipeline([("onehot", onehot), ("estimator", estimator)])
            return pipeline.fit(rows.features, label, **({"estimator__sample_weight": rows.weight} if takes_weight else {}))
        return estimator.fit(rows.features, label, **({"sample_weight": rows.weight} if takes_weight else {}))

    def _estimator(self, params: Mapping[str, Any], num_threads: int) -> Any:
        cls = estimator_class(self.model)
        searched = {name.rsplit("/", 1)[-1]: value for name, value in flatten(params).items()}
        known = inspect.signature(cls).parameters
        defaults = {name: value for name, value in {"random_state": self.seed, "n_jobs": num_threads}.items() if name in known}
        given = {**defaults, **self.model.params, **searched}
        wrong = next((name for name in given if name not in known), None)
        if wrong is not None:
            raise ExperimentError(f"model.params: unknown to {cls.__name__}", got=repr(wrong), next_step=nearest(wrong, known))
        return cls(**given)

    def _predict(self, estimator: Any, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.model.task == "regression":
            return np.asarray(estimator.predict(features), dtype=np.float32)
        probability = np.asarray(estimator.predict_proba(features), dtype=np.float32)
        return probability[:, 1] if self.model.task == "binary" else probability


def estimator_class(model: Sklearn) -> type[Any]:
    """The class that `model.estimator` names.

    Raises:
        ExperimentError: there is none, or it gives no probabilities where they are needed.
    """
    cls: Any = model.estimator
    if isinstance(cls, str):
        module, _, name = cls.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ExperimentError(
                "model.estimator: a class by its full name", got=f"{model.estimator!r} ({error})", next_step="for example sklearn.svm.SVC"
            ) from error
    if not hasattr(cls, "fit") or not hasattr(cls, "predict"):
        raise ExperimentError("model.estimator: a class with fit and predict", got=model.estimator_name)
    if model.task != "regression" and not hasattr(cls, "predict_proba"):
        raise ExperimentError("model.estimator: a classifier needs predict_proba", got=model.estimator_name, next_step="name another class")
    found: type[Any] = cls
    return found


def _importances(estimator: Any, names: tuple[str, ...]) -> dict[str, float]:
    values = getattr(estimator, "feature_importances_", None)
    if values is None:
        coefficients = getattr(estimator, "coef_", None)
        values = None if coefficients is None else np.abs(np.atleast_2d(coefficients)).mean(axis=0)
    return {} if values is None else dict(zip(names, map(float, values), strict=True))


def _dump(estimator: Any, name: str) -> bytes:
    import skops.io

    payload: bytes = skops.io.dumps(estimator)
    foreign = [each for each in skops.io.get_untrusted_types(data=payload) if not each.startswith(TRUSTED_LIBRARIES)]
    if foreign:
        raise ExperimentError(
            "model.estimator: only scikit-learn's own types can be stored without pickle",
            got=f"{name}, which holds {', '.join(foreign[:3])}",
            next_step="use Custom, or an estimator of scikit-learn",
        )
    return payload
