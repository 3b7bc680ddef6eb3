"""What `train` fits: one model with known parameters, in this process or by Spark ML; and what the baselines are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ExperimentError
from toolkit.core.experiment import Experiment, Metric, Protocol
from toolkit.core.metrics import XGBOOST_METRICS
from toolkit.core.model import Sklearn, SparkML, Task, XGBoost
from toolkit.train_params import ChosenParams

if TYPE_CHECKING:
    from toolkit.core.data import LoadedData, Part, SplitData
    from toolkit.core.evaluation import Evaluation
    from toolkit.core.model_spec import FittedRows
    from toolkit.core.trial import FinalModel

DEFAULT_ROUNDS = 100
_OBJECTIVES: dict[Task, str] = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
_METRICS: dict[Task, Metric] = {
    "binary": Metric("auc", "maximize"),
    "multiclass": Metric("mlogloss", "minimize"),
    "regression": Metric("rmse", "minimize"),
}


@dataclass(frozen=True)
class Fit:
    """One model to fit: the experiment with this model, and the parameters."""

    name: str
    experiment: Experiment
    chosen: ChosenParams

    @property
    def model_text(self) -> str:
        """Kind and class or objective, for a person."""
        model = self.experiment.model
        if isinstance(model, XGBoost):
            return f"XGBoost, {model.objective}"
        if isinstance(model, Sklearn):
            return model.estimator_name.rpartition(".")[2]
        return "Spark ML pipeline" if isinstance(model, SparkML) else "custom"


@dataclass(frozen=True)
class Rows:
    """What a fit's rows are, wherever they lie.

    Attributes:
        loaded: what is known of the columns and the source; its arrays may be a sample only.
        fitted: of the model for use.
        test: test rows, or a sample of them.
        num_train, num_validation, num_test: rows.
    """

    loaded: LoadedData
    fitted: FittedRows
    test: Part
    num_train: int
    num_validation: int
    num_test: int

    @classmethod
    def of(cls, loaded: LoadedData, split: SplitData) -> Rows:
        from toolkit.core.model_spec import FittedRows

        fitted = FittedRows.of(loaded, split)
        return cls(loaded, fitted, split.test, split.num_train_rows, split.num_validation_rows, split.test.num_rows)


@dataclass(frozen=True)
class Fitted:
    """A fitted and tested model. `pipeline`: of Spark ML, with an example of its rows; its session is still active."""

    final: FinalModel
    evaluation: Evaluation
    wall_s: float
    cross_validation: Mapping[str, tuple[float, float]]
    num_workers: int = 1
    num_restarts: int = 0
    pipeline: tuple[Any, Any] | None = None


def baselines(experiment: Experiment) -> list[Fit]:
    """The experiment's own; where it names none, a predictor of the mean and XGBoost with its defaults.

    Raises:
        ExperimentError: none is named, and the task is a ranking.
    """
    if experiment.baseline is not None:
        return [Fit("baseline", _with_model(experiment, experiment.baseline), ChosenParams("the experiment"))]
    task = experiment.model.task
    if task == "ranking":
        raise ExperimentError("baseline: must be named", got=f"a {task} task", next_step="set baseline=XGBoost(...) in the experiment")
    dummy = Sklearn("sklearn.dummy.DummyRegressor" if task == "regression" else "sklearn.dummy.DummyClassifier", task=task)
    objective = experiment.model.objective if isinstance(experiment.model, XGBoost) else _OBJECTIVES[task]
    defaults = XGBoost(objective=objective, num_boost_round=DEFAULT_ROUNDS, early_stopping_rounds=None)
    chosen = ChosenParams("defaults")
    models = {"baseline-dummy": dummy, "baseline-xgboost": defaults}
    return [Fit(name, _with_model(experiment, model), chosen) for name, model in models.items()]


def _with_model(experiment: Experiment, model: Any) -> Experiment:
    """The experiment with another model, not searched. XGBoost follows its training by figures that it reports itself."""
    metric: Metric | tuple[Metric, Metric] = experiment.metric
    if isinstance(model, XGBoost) and any(each.name.split("@")[0] not in XGBOOST_METRICS[model.task] for each in experiment.metrics):
        metric = _METRICS[model.task]
    sweep = replace(experiment.sweep, scheduler=None)
    return replace(experiment, model=model, space=None, points_to_evaluate=(), metric=metric, sweep=sweep)


def fit_here(fit: Fit, protocol: Protocol, loaded: LoadedData, split: SplitData) -> Fitted:
    """In this process. Raises as `final_model.fit_and_test` does."""
    from toolkit.final_model import fit_and_test

    began = time.perf_counter()
    chosen = fit.chosen
    final, evaluation = fit_and_test(fit.experiment, protocol, split, loaded.classes, chosen.params, chosen.best_iteration)
    return Fitted(final, evaluation, time.perf_counter() - began, _cross_validation(final, split))


def fit_pipeline(fit: Fit, protocol: Protocol, loaded: LoadedData, split: SplitData, session: Any) -> Fitted:
    """By Spark ML, on the session's cluster.

    Raises:
        ExperimentError: the pipeline does not fit, or does not predict what the task needs.
    """
    from toolkit.engines import spark_ml
    from toolkit.final_model import judged_on

    model = fit.experiment.model
    assert isinstance(model, SparkML)
    began = time.perf_counter()
    fitted = spark_ml.fit_pipeline(session, model, fit.experiment.dataset.label, split, keep_trial_model=protocol == "published")
    final, evaluation = judged_on(split, fit.experiment, protocol, loaded.classes, fitted.final)
    wall_s = time.perf_counter() - began
    return Fitted(final, evaluation, wall_s, _cross_validation(final, split), pipeline=(fitted.model, fitted.example))


def _cross_validation(final: FinalModel, split: SplitData) -> dict[str, tuple[float, float]]:
    """Metric -> mean and standard deviation over the folds, before the refit; empty without folds."""
    from toolkit.engines.sklearn_evaluation import evaluate

    if len(split.trial.folds) < 2 or final.validation_prediction is None:
        return {}
    figures: list[Mapping[str, float]] = []
    start = 0
    for number in range(len(split.trial.folds)):
        part = split.trial.fold(number)[1]
        predicted = final.validation_prediction[start : start + part.num_rows]
        start += part.num_rows
        figures.append(evaluate(split.trial.task, part.label, predicted, weight=part.weight, group=part.group))
    count = len(figures)
    means = {name: sum(each[name] for each in figures) / count for name in figures[0]}
    return {name: (mean, (sum((each[name] - mean) ** 2 for each in figures) / (count - 1)) ** 0.5) for name, mean in means.items()}
