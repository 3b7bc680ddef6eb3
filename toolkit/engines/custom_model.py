"""The user's own `fit` and `predict` as a `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.data import Part, SplitData, TrialData
from toolkit.core.errors import ExperimentError
from toolkit.core.experiment import Metric
from toolkit.core.model import Custom
from toolkit.core.trial import FinalModel, FitResult, Report, fit_folds


class TrialStopped(BaseException):
    """Raised out of `report` into the user's `fit`; not an Exception, so that `except Exception` there does not keep the trial alive."""


@dataclass(frozen=True)
class CustomTrainer:
    model: Custom
    metrics: tuple[Metric, ...]

    def fit(self, params: Mapping[str, Any], data: TrialData, num_threads: int, report: Report) -> FitResult:
        names = [metric.name for metric in self.metrics]
        return fit_folds(lambda number, each: self._fit_fold(params, data, number, each), len(data.folds), names, report)

    def _fit_fold(self, params: Mapping[str, Any], data: TrialData, number: int, report: Report | None) -> FitResult:
        so_far = FitResult()
        train, validation = data.fold(number)

        def reported(step: int, values: Mapping[str, float]) -> None:
            so_far.metrics.update({name: float(value) for name, value in values.items()})
            for name, value in values.items():
                so_far.history.setdefault(name, []).append((step, float(value)))
            so_far.values = tuple(so_far.metrics.get(metric.name, float("nan")) for metric in self.metrics)
            # A report of other figures only says nothing that a scheduler could judge.
            if report is not None and self.metrics[0].name in so_far.metrics and report(step, so_far):
                raise TrialStopped

        try:
            model = self.model.fit(dict(params), train, validation, reported)
        except TrialStopped:
            so_far.stopped = True
            return so_far
        missing = [metric.name for metric in self.metrics if metric.name not in so_far.metrics]
        if missing and self.model.predict is not None:
            so_far.metrics.update(self._score(self.model.predict(model, validation.features), validation, data, missing))
        elif missing:
            raise ExperimentError(
                "metric: the model must report it, or have `predict`",
                got=", ".join(missing),
                next_step=f'call report(step, {{"{missing[0]}": value}}) in fit',
            )
        so_far.values = tuple(so_far.metrics[metric.name] for metric in self.metrics)
        return so_far

    def fit_final(self, params: Mapping[str, Any], data: SplitData, num_threads: int, best_iteration: int | None) -> FinalModel:
        assert self.model.predict is not None
        labels: list[npt.NDArray[np.float32]] = []
        predictions: list[npt.NDArray[np.float32]] = []
        model: Any = None
        for number in range(len(data.trial.folds)):
            train, validation = data.trial.fold(number)
            # What the user's fit does with more rows or fewer rounds is not known: the trial's own model is the final one.
            model = self.model.fit(dict(params), train, validation, lambda step, values: None)
            labels.append(validation.label)
            predictions.append(np.asarray(self.model.predict(model, validation.features), dtype=np.float32))
        return FinalModel(
            payload=None,
            validation_label=np.concatenate(labels),
            validation_prediction=np.concatenate(predictions),
            test_prediction=np.asarray(self.model.predict(model, data.test.features), dtype=np.float32),
            fitted_prediction=np.asarray(self.model.predict(model, data.trial.rows.features), dtype=np.float32),
            importances={},
            num_rounds=None,
            refitted=False,
        )

    def _score(self, prediction: Any, validation: Part, data: TrialData, names: list[str]) -> dict[str, float]:
        from toolkit.engines.sklearn_evaluation import metric_of

        array = np.asarray(prediction)
        return {
            name: metric_of(name, data.task, validation.label, array, weight=validation.weight, group=validation.group) for name in names
        }
