"""One model instead of a search: a baseline, or the model for use with known parameters, everything about it logged.

`train(experiment)` is the Python API and what `toolkit train` calls.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import ExperimentError
from toolkit.core.experiment import Experiment, Metric, Protocol
from toolkit.core.model import XGBOOST_METRICS, Sklearn, SparkML, Task, XGBoost
from toolkit.registration import check_registrable
from toolkit.settings import Settings
from toolkit.sweep_control import Progress, Unwatched

if TYPE_CHECKING:
    from toolkit.core.data import LoadedData, SplitData
    from toolkit.core.evaluation import Evaluation
    from toolkit.core.model_spec import ModelPackage
    from toolkit.core.registry import RegisteredVersion
    from toolkit.core.training import TrainedModel, TrainResult
    from toolkit.core.trial import FinalModel
    from toolkit.engines.mlflow_run import MlflowRun
    from toolkit.train_params import ChosenParams

DEFAULT_ROUNDS = 100
_OBJECTIVES: dict[Task, str] = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
_METRICS: dict[Task, Metric] = {
    "binary": Metric("auc", "maximize"),
    "multiclass": Metric("mlogloss", "minimize"),
    "regression": Metric("rmse", "minimize"),
}


def train(
    experiment: Experiment,
    *,
    baseline: bool = False,
    params: str = "best",
    protocol: Protocol = "honest",
    register: bool = False,
    source: str | None = None,
    data: Path | None = None,
    tracking_uri: str | None = None,
    report: Path | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Fit for use, test once, log, and report.

    Args:
        baseline: fit the experiment's baseline in place of its model; where it names none, a predictor of the mean and XGBoost's defaults.
        params: `best` (of the newest finished study), `best:STUDY`, or a JSON or YAML file. Not read with `baseline`, nor for an experiment
            without a space.
        register: make the model a version of the registered model, with the alias `challenger`.
        source: how the experiment was named, kept with the version so that `toolkit promote` finds its gates again.
        report: where the HTML goes; default `TOOLKIT_HOME/reports/EXPERIMENT-train.html`, or `-baseline.html`.

    Raises:
        UserError: whatever the user can act on; MLflow then has no run of it unless the fit itself failed.
    """
    settings = settings or Settings.read()
    return _Training(experiment, protocol, settings, progress or Unwatched(), tracking_uri, source).execute(
        baseline, params, register, data, report
    )


@dataclass(frozen=True)
class _Fit:
    """One model to fit: the experiment with this model, and the parameters."""

    name: str
    experiment: Experiment
    chosen: ChosenParams


class _Training:
    """One call of `train`: its parts in the order in which they happen."""

    def __init__(
        self,
        experiment: Experiment,
        protocol: Protocol,
        settings: Settings,
        progress: Progress,
        tracking_uri: str | None,
        source: str | None,
    ) -> None:
        self.experiment = experiment
        self.protocol = protocol
        self.settings = settings
        self.progress = progress
        self.tracking_uri = tracking_uri or settings.tracking_uri
        self.source = source
        self.began, self.began_unix_s = time.perf_counter(), time.time()

    def execute(self, baseline: bool, params: str, register: bool, data: Path | None, report: Path | None) -> TrainResult:
        from toolkit.engines.git import git_state
        from toolkit.engines.sklearn_splits import split

        kind: Literal["final", "baseline"] = "baseline" if baseline else "final"
        if register:
            check_registrable(self.experiment)
        self.progress.phase("reading data")
        loaded = self._load(data)
        fits = self._baselines() if baseline else [self._final(params, loaded)]
        parts = split(loaded, self.experiment.split, self.protocol)
        self.git = git_state()
        report_path = (
            report or self.settings.home / "reports" / f"{self.experiment.name}-{'baseline' if baseline else 'train'}.html"
        ).absolute()
        logged = []
        for fit in fits:
            self.progress.phase(f"fitting {fit.name}")
            with self._run(fit, loaded) as run:
                logged.append((*self._fit_and_log(fit, loaded, parts, run), run))
        place = _best([trained for trained, _, _ in logged], self.experiment.metrics[0])
        models = [trained for trained, _, _ in logged]
        _, spec, run = logged[place]
        if register:
            assert spec is not None, "refused by check_registrable"
            self.progress.phase("registering")
            models[place] = replace(models[place], registered=self._register(spec, models[place], run))
        result = self._result(kind, models, models[place], loaded, parts, run, report_path)
        return self._publish(result, run)

    # --- what is fitted -----------------------------------------------------------------------------------------------------------

    def _load(self, data: Path | None) -> LoadedData:
        from toolkit.core.data import DataContext
        from toolkit.engines.tables import load_data

        return load_data(self.experiment, DataContext(data=data, data_dir=self.settings.data_dir, cache_dir=self.settings.home / "cache"))

    def _final(self, params: str, loaded: LoadedData) -> _Fit:
        from toolkit.train_params import ChosenParams, choose_params

        if self.experiment.space is None and params == "best":
            return _Fit("train", self.experiment, ChosenParams("the experiment"))
        return _Fit("train", self.experiment, choose_params(self.experiment, self.protocol, params, loaded.source.sha256, self.settings))

    def _baselines(self) -> list[_Fit]:
        from toolkit.train_params import ChosenParams

        if self.experiment.baseline is not None:
            return [_Fit("baseline", _with_model(self.experiment, self.experiment.baseline), ChosenParams("the experiment"))]
        task = self.experiment.model.task
        if task not in _OBJECTIVES:
            raise ExperimentError("baseline: must be named", got=f"a {task} task", next_step="set baseline=XGBoost(...) in the experiment")
        dummy = "sklearn.dummy.DummyRegressor" if task == "regression" else "sklearn.dummy.DummyClassifier"
        objective = self.experiment.model.objective if isinstance(self.experiment.model, XGBoost) else _OBJECTIVES[task]
        defaults = XGBoost(objective=objective, num_boost_round=DEFAULT_ROUNDS, early_stopping_rounds=None)
        chosen = ChosenParams("defaults")
        return [
            _Fit("baseline-dummy", _with_model(self.experiment, Sklearn(dummy, task=task)), chosen),  # type: ignore[arg-type]
            _Fit("baseline-xgboost", _with_model(self.experiment, defaults), chosen),
        ]

    # --- one model ----------------------------------------------------------------------------------------------------------------

    def _run(self, fit: _Fit, loaded: LoadedData) -> MlflowRun:
        from toolkit.core.naming import default_experiment_name
        from toolkit.engines.mlflow_run import MlflowRun

        name = default_experiment_name(
            self.experiment.name, branch=self.git.branch, on_databricks=self.settings.on_databricks, user=self.settings.user
        )
        tags = {
            "toolkit.role": "training",
            "toolkit.experiment": self.experiment.name,
            "toolkit.protocol": self.protocol,
            "data.source": loaded.source.kind,
        }
        run_name = f"{self.experiment.name}-{fit.name}"
        return MlflowRun(tracking_uri=self.tracking_uri, experiment_name=name, run_name=run_name, tags=tags)

    def _fit_and_log(
        self, fit: _Fit, loaded: LoadedData, parts: SplitData, run: MlflowRun
    ) -> tuple[TrainedModel, Mapping[str, Any] | None]:
        """The model, and the spec of its portable form; None where it has none."""
        from toolkit.final_model import fit_and_test

        if fit.experiment.model.kind == "sparkml":
            return self._fit_pipeline(fit, loaded, parts, run), None
        began = time.perf_counter()
        chosen = fit.chosen
        final, evaluation = fit_and_test(fit.experiment, self.protocol, parts, loaded.classes, chosen.params, chosen.best_iteration)
        trained = self._trained(fit, parts, final, evaluation, time.perf_counter() - began, run)
        if final.payload is None:
            self._log(trained, fit.experiment, loaded, run)
            return trained, None
        packed = self._package(fit, loaded, parts, final, evaluation)
        importances = _permutation_importances(fit.experiment, packed.payload, packed.spec, parts)
        trained = replace(trained, permutation_importances=importances)
        self._log(trained, fit.experiment, loaded, run)
        return replace(trained, model_uri=run.log_model(packed)), packed.spec

    def _fit_pipeline(self, fit: _Fit, loaded: LoadedData, parts: SplitData, run: MlflowRun) -> TrainedModel:
        from toolkit.engines.spark_ml import fit_pipeline
        from toolkit.engines.spark_session import data_session
        from toolkit.final_model import judged

        model, label = fit.experiment.model, fit.experiment.dataset.label
        assert isinstance(model, SparkML)
        with data_session(java_home=self.settings.java_home, app_name=f"toolkit train {self.experiment.name}") as session:
            began = time.perf_counter()
            fitted = fit_pipeline(session, model, label, parts, keep_trial_model=self.protocol == "published")
            final, evaluation = judged(fit.experiment, self.protocol, parts, loaded.classes, fitted.final)
            trained = self._trained(fit, parts, final, evaluation, time.perf_counter() - began, run)
            self._log(trained, fit.experiment, loaded, run)
            return replace(trained, model_uri=run.log_spark_model(fitted.model, fitted.example))

    def _package(self, fit: _Fit, loaded: LoadedData, parts: SplitData, final: FinalModel, evaluation: Evaluation) -> ModelPackage:
        from toolkit.core.model_spec import package
        from toolkit.engines import build

        return package(
            fit.experiment,
            self.protocol,
            loaded,
            parts,
            final,
            evaluation,
            params=fit.chosen.params,
            study=fit.chosen.study,
            versions=build.versions(),
            git_commit=self.git.commit or "",
        )

    def _trained(
        self, fit: _Fit, parts: SplitData, final: FinalModel, evaluation: Evaluation, fit_wall_s: float, run: MlflowRun
    ) -> TrainedModel:
        from toolkit.core.training import TrainedModel

        return TrainedModel(
            name=fit.name,
            model_text=model_text(fit.experiment),
            params=fit.chosen.params,
            params_source=fit.chosen.source,
            evaluation=evaluation,
            cross_validation=_cross_validation(final, parts),
            permutation_importances={},
            curves=final.history,
            fit_wall_s=fit_wall_s,
            run_id=run.run_id,
        )

    def _log(self, trained: TrainedModel, experiment: Experiment, loaded: LoadedData, run: MlflowRun) -> None:
        from toolkit.engines import build

        evaluation = trained.evaluation
        configuration = experiment.fingerprint(self.protocol)
        figures = {"train": evaluation.fitted_metrics, "validation": evaluation.validation_metrics, "test": evaluation.metrics}
        threshold = {"threshold": evaluation.threshold.value} if evaluation.threshold else {}
        run.log(
            params={**trained.params, **{name: value for name, value in configuration.items() if name.startswith(("split.", "model."))}},
            metrics={
                **{f"{part}_{name}": value for part, metrics in figures.items() for name, value in metrics.items()},
                **{f"cv_{name}_mean": mean for name, (mean, _) in trained.cross_validation.items()},
                **{f"cv_{name}_std": std for name, (_, std) in trained.cross_validation.items()},
                **{f"permutation.{name}": value for name, value in trained.permutation_importances.items()},
                **{f"gain.{name}": value for name, value in evaluation.importances.items()},
                **threshold,
                "fit_wall_s": trained.fit_wall_s,
            },
            curves={f"curve_{name}": points for name, points in trained.curves.items()},
            tags={
                "data.sha256": loaded.source.sha256,
                "data.location": loaded.source.location,
                "mlflow.source.git.commit": self.git.commit or "",
                "toolkit.params_source": trained.params_source,
                **{f"version.{name}": version for name, version in build.versions().items()},
            },
        )

    # --- the answer ---------------------------------------------------------------------------------------------------------------

    def _result(
        self,
        kind: Literal["final", "baseline"],
        models: list[TrainedModel],
        best: TrainedModel,
        loaded: LoadedData,
        parts: SplitData,
        run: MlflowRun,
        report_path: Path,
    ) -> TrainResult:
        from toolkit.core.training import TrainResult
        from toolkit.engines import build

        return TrainResult(
            experiment=self.experiment,
            kind=kind,
            protocol=self.protocol,
            models=tuple(models),
            best=best,
            source=loaded.source,
            split_description=parts.description,
            num_train_rows=parts.num_train_rows,
            num_validation_rows=parts.num_validation_rows,
            num_test_rows=parts.test.num_rows,
            tracking_uri=run.tracking_uri,
            mlflow_experiment=run.experiment_name,
            report_path=str(report_path),
            wall_s=0.0,
            started_unix_s=self.began_unix_s,
            versions=build.versions(),
            git_commit=self.git.commit or "",
        )

    def _register(self, spec: Mapping[str, Any], trained: TrainedModel, run: MlflowRun) -> RegisteredVersion:
        from toolkit.registration import register

        return register(
            self.experiment,
            spec,
            model_uri=trained.model_uri,
            run_id=run.run_id,
            tracking_uri=run.uri,
            settings=self.settings,
            source=self.source,
        )

    def _publish(self, result: TrainResult, run: MlflowRun) -> TrainResult:
        from toolkit.reports.train_report import render_training

        self.progress.phase("writing the report")
        result = replace(result, wall_s=time.perf_counter() - self.began)
        path = Path(result.report_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_training(result), encoding="utf-8")
        run.log_artifact(path)
        return replace(result, wall_s=time.perf_counter() - self.began)


def model_text(experiment: Experiment) -> str:
    """Kind and class or objective, for a person."""
    model = experiment.model
    if isinstance(model, XGBoost):
        return f"XGBoost, {model.objective}"
    if isinstance(model, Sklearn):
        return model.estimator_name.rpartition(".")[2]
    return "Spark ML pipeline" if isinstance(model, SparkML) else "custom"


def _with_model(experiment: Experiment, model: XGBoost | Sklearn | Any) -> Experiment:
    """The experiment with another model, not searched. XGBoost follows its training by figures that it reports itself."""
    metric: Metric | tuple[Metric, Metric] = experiment.metric
    if isinstance(model, XGBoost) and any(each.name.split("@")[0] not in XGBOOST_METRICS[model.task] for each in experiment.metrics):
        metric = _METRICS[model.task]
    sweep = replace(experiment.sweep, scheduler=None)
    return replace(experiment, model=model, space=None, points_to_evaluate=(), metric=metric, sweep=sweep)


def _best(models: list[TrainedModel], metric: Metric) -> int:
    """The place of the one that is best on validation rows."""

    def cost(model: TrainedModel) -> float:
        value = model.evaluation.validation_metrics.get(metric.name, float("nan"))
        return float("inf") if value != value else -value if metric.direction == "maximize" else value

    return min(range(len(models)), key=lambda place: cost(models[place]))


def _cross_validation(final: FinalModel, parts: SplitData) -> dict[str, tuple[float, float]]:
    """Metric -> mean and standard deviation over the folds, before calibration and refit; empty without folds."""
    from toolkit.engines.sklearn_evaluation import evaluate

    if len(parts.trial.folds) < 2 or final.validation_prediction is None:
        return {}
    figures: list[Mapping[str, float]] = []
    start = 0
    for number in range(len(parts.trial.folds)):
        part = parts.trial.fold(number)[1]
        predicted = final.validation_prediction[start : start + part.num_rows]
        start += part.num_rows
        figures.append(evaluate(parts.trial.task, part.label, predicted, weight=part.weight, group=part.group))
    count = len(figures)
    means = {name: sum(each[name] for each in figures) / count for name in figures[0]}
    return {name: (mean, (sum((each[name] - mean) ** 2 for each in figures) / (count - 1)) ** 0.5) for name, mean in means.items()}


def _permutation_importances(experiment: Experiment, payload: bytes, spec: Mapping[str, Any], parts: SplitData) -> dict[str, float]:
    from toolkit.engines import portable_model
    from toolkit.engines.sklearn_evaluation import permutation_importances

    model = portable_model.from_payload(payload, spec)
    metric = experiment.metrics[0]
    return permutation_importances(metric, parts.trial.task, model.predict_encoded, parts.test, parts.trial.feature_names)
