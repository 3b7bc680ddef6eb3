"""XGBoost's native booster as a `Trainer`.

Matrices are built once a process and kept: `_matrices` below is the reason why trial processes are worth reusing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from toolkit.core.data import Part, SplitData, TrialData, take
from toolkit.core.experiment import Metric
from toolkit.core.model import Task, XGBoost
from toolkit.core.space import flatten
from toolkit.core.trial import FinalModel, FitResult, Report, fit_folds

# Their matrix must be the plain one: `QuantileDMatrix` holds bins only, which `exact` and `approx` cannot use.
_NEEDS_RAW_VALUES = ("exact", "approx")

_matrices: dict[tuple[object, ...], tuple[xgboost.DMatrix, xgboost.DMatrix]] = {}


@dataclass(frozen=True)
class XGBoostTrainer:
    """Attributes:
    keep_trial_model: the published protocol: the trial's own booster is the final model.
    """

    model: XGBoost
    metrics: tuple[Metric, ...]
    seed: int
    report_every: int
    keep_trial_model: bool = False

    def fit(self, params: Mapping[str, Any], data: TrialData, num_threads: int, report: Report) -> FitResult:
        names = [metric.name for metric in self.metrics]
        return fit_folds(lambda number, each: self._fit_fold(params, data, number, num_threads, each)[0], len(data.folds), names, report)

    def fit_final(self, params: Mapping[str, Any], data: SplitData, num_threads: int, best_iteration: int | None) -> FinalModel:
        labels: list[npt.NDArray[np.float32]] = []
        predictions: list[npt.NDArray[np.float32]] = []
        booster: xgboost.Booster | None = None
        fitted = FitResult()
        best_iterations: list[int] = []
        for number in range(len(data.trial.folds)):
            # The same parameters, rows and seed give the trial's own booster again; its predictions on validation rows are
            # the only ones of rows that a model has not seen.
            fitted, booster = self._fit_fold(params, data.trial, number, num_threads, report=None)
            best_iterations.append(fitted.best_iteration or 0)
            booster = booster[: best_iterations[-1] + 1]
            validation = data.trial.fold(number)[1]
            labels.append(validation.label)
            predictions.append(self.predict(booster, validation))
        assert booster is not None
        if not self.keep_trial_model:
            num_rounds = (best_iteration if best_iteration is not None else round(float(np.mean(best_iterations)))) + 1
            everything = data.trial.rows
            if everything.group is not None:
                # Each part is sorted by group, the whole is not; XGBoost wants the queries of a ranking in order.
                everything = take(everything, np.argsort(everything.group, kind="stable"))
            booster_params = self._booster_params(params, data.trial, num_threads)
            matrix, _ = self._build(booster_params, everything, None, data.trial, num_threads)
            booster = xgboost.train(booster_params, matrix, num_boost_round=num_rounds, verbose_eval=False)
        booster.feature_names = list(data.trial.feature_names)
        return FinalModel(
            payload=bytes(booster.save_raw("ubj")),
            validation_label=np.concatenate(labels),
            validation_prediction=np.concatenate(predictions),
            test_prediction=self.predict(booster, data.test),
            fitted_prediction=self.predict(booster, data.trial.rows),
            history=fitted.history,
            importances=gains(booster, data.trial.feature_names),
            num_rounds=booster.num_boosted_rounds(),
            refitted=not self.keep_trial_model,
        )

    def predict(self, booster: xgboost.Booster, part: Part) -> npt.NDArray[np.float32]:
        """(n,) or (n, k) as the objective transforms it: probabilities for `binary:logistic` and `multi:softprob`."""
        prediction: npt.NDArray[np.float32] = booster.inplace_predict(part.features, validate_features=False)
        return prediction

    def _fit_fold(
        self, params: Mapping[str, Any], data: TrialData, number: int, num_threads: int, report: Report | None
    ) -> tuple[FitResult, xgboost.Booster]:
        booster_params = self._booster_params(params, data, num_threads)
        train, validation = self._matrices_of(booster_params, data, number, num_threads)
        watch = _Watch(self.metrics, self.report_every, report)
        callbacks: list[xgboost.callback.TrainingCallback] = []
        if self.model.early_stopping_rounds is not None:
            first = self.metrics[0]
            callbacks.append(
                xgboost.callback.EarlyStopping(
                    rounds=self.model.early_stopping_rounds,
                    metric_name=first.name,
                    data_name="validation",
                    maximize=first.direction == "maximize",
                )
            )
        booster = xgboost.train(
            booster_params,
            train,
            num_boost_round=self.model.num_boost_round,
            evals=[(validation, "validation")],
            verbose_eval=False,
            callbacks=[*callbacks, watch],
        )
        return watch.result(final=True), booster

    def _booster_params(self, params: Mapping[str, Any], data: TrialData, num_threads: int) -> dict[str, Any]:
        return {**booster_params(self.model, params, data.num_classes, self.seed, self.metrics), "nthread": num_threads}

    def _matrices_of(
        self, booster_params: Mapping[str, Any], data: TrialData, number: int, num_threads: int
    ) -> tuple[xgboost.DMatrix, xgboost.DMatrix]:
        key = (data.data_id, number, _needs_raw_values(booster_params), booster_params.get("max_bin"), self.model.device)
        if key not in _matrices:
            if any(kept[0] != data.data_id or kept[2:] != key[2:] for kept in _matrices):
                _matrices.clear()
            train, validation = data.fold(number)
            built = self._build(booster_params, train, validation, data, num_threads)
            assert built[1] is not None
            _matrices[key] = (built[0], built[1])
        return _matrices[key]

    def _build(
        self, booster_params: Mapping[str, Any], train: Part, validation: Part | None, data: TrialData, num_threads: int
    ) -> tuple[xgboost.DMatrix, xgboost.DMatrix | None]:
        def options(part: Part) -> dict[str, Any]:
            return {
                "data": part.features,
                "label": part.label,
                "weight": _weight(part, data.task),
                "qid": part.group if data.task == "ranking" else None,
                "feature_names": list(data.feature_names),
                "feature_types": ["c" if name in data.categories else "q" for name in data.feature_names],
                "enable_categorical": bool(data.categories),
                "nthread": num_threads,
            }

        if _needs_raw_values(booster_params):
            return xgboost.DMatrix(**options(train)), xgboost.DMatrix(**options(validation)) if validation else None
        bins = {"max_bin": booster_params["max_bin"]} if booster_params.get("max_bin") else {}
        matrix = xgboost.QuantileDMatrix(**options(train), **bins)
        return matrix, xgboost.QuantileDMatrix(**options(validation), ref=matrix, **bins) if validation else None


def _weight(part: Part, task: Task) -> npt.NDArray[np.float32] | None:
    """A row's; of a ranking, whose rows are sorted by query, a query's: that of its first row."""
    if part.weight is None or task != "ranking":
        return part.weight
    assert part.group is not None
    return part.weight[np.unique(part.group, return_index=True)[1]]


class _Watch(xgboost.callback.TrainingCallback):
    """Follows one training: the best round by the first metric, a thinned history, and a report every `every` rounds."""

    def __init__(self, metrics: tuple[Metric, ...], every: int, report: Report | None) -> None:
        self._metrics = metrics
        self._every = every
        self._report = report
        self._log: Mapping[str, list[float]] = {}
        self._stopped = False

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self._log = evals_log["validation"]
        if self._report is not None and (epoch + 1) % self._every == 0 and self._report(epoch + 1, self.result()):
            self._stopped = True
        return self._stopped

    def result(self, final: bool = False) -> FitResult:
        first = self._metrics[0]
        curve = np.asarray(self._log[first.name], dtype=np.float64)
        if np.isnan(curve).all():
            best = len(curve) - 1
        else:
            best = int(np.nanargmax(curve) if first.direction == "maximize" else np.nanargmin(curve))
        steps = set(range(self._every, len(curve) + 1, self._every)) | ({best + 1, len(curve)} if final else set())
        metrics = {metric.name: float(self._log[metric.name][best]) for metric in self._metrics}
        return FitResult(
            values=tuple(metrics[metric.name] for metric in self._metrics),
            metrics=metrics,
            history={m.name: [(step, float(self._log[m.name][step - 1])) for step in sorted(steps)] for m in self._metrics},
            best_iteration=best,
            stopped=self._stopped,
        )


def _needs_raw_values(booster_params: Mapping[str, Any]) -> bool:
    return booster_params.get("tree_method") in _NEEDS_RAW_VALUES or booster_params.get("booster") == "gblinear"


def booster_params(model: XGBoost, params: Mapping[str, Any], num_classes: int, seed: int, metrics: Sequence[Metric]) -> dict[str, Any]:
    """All of the booster's but `nthread`: the searched or given `params` over the model's own."""
    searched = {name.rsplit("/", 1)[-1]: value for name, value in flatten(params).items()}
    return {
        "seed": seed,
        "verbosity": 1,
        **({"num_class": num_classes} if model.task == "multiclass" else {}),
        **model.params,
        **searched,
        # Class labels cannot be ranked or thresholded: the probabilities behind them are what is fitted.
        "objective": "multi:softprob" if model.objective == "multi:softmax" else model.objective,
        "device": model.device,
        "eval_metric": [metric.name for metric in metrics],
    }


def gains(booster: xgboost.Booster, feature_names: Sequence[str]) -> dict[str, float]:
    """Total gain of the splits on each feature; 0 for one that is never used."""
    found: Mapping[str, Any] = booster.get_score(importance_type="total_gain")
    return {name: float(found.get(name, 0.0)) for name in feature_names}


def booster_from(payload: bytes) -> xgboost.Booster:
    booster = xgboost.Booster()
    booster.load_model(bytearray(payload))
    return booster
