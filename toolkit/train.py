"""One model instead of a search: a baseline, or the model for use with known parameters, everything about it logged.

`train(experiment)` is the Python API and what `toolkit train` calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import Interrupted, UserError
from toolkit.core.experiment import Experiment, Metric, Protocol
from toolkit.registration import check_registrable
from toolkit.reports.destination import destination
from toolkit.settings import Settings
from toolkit.sweep_control import Progress, Unwatched
from toolkit.train_fits import Fit, Fitted, Rows, baselines, fit_here, fit_pipeline

if TYPE_CHECKING:
    from toolkit.core.data import DataContext
    from toolkit.core.model_spec import ModelPackage
    from toolkit.core.registry import RegisteredVersion
    from toolkit.core.training import TrainedModel, TrainResult
    from toolkit.engines.mlflow_run import MlflowRun
    from toolkit.sweep_cluster import ClusterName

Kind = Literal["final", "baseline", "distributed"]


def train(
    experiment: Experiment,
    *,
    baseline: bool = False,
    params: str = "best",
    distributed: bool = False,
    cluster: ClusterName = "auto",
    spark_master: str | None = None,
    spark_conf: Mapping[str, str] | None = None,
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
        distributed: by Ray Train, see `experiment.training`; the rows need not fit into any one process.
        cluster, spark_master, spark_conf: of the Ray for it, as for a sweep.
        register: make the model a version of the registered model, with the alias `challenger`.
        source: how the experiment was named, kept with the version so that `toolkit promote` finds its gates again.
        report: where the HTML goes; default `TOOLKIT_HOME/reports/EXPERIMENT-train.html`, or `-baseline.html`.

    Raises:
        UserError: whatever the user can act on; MLflow then has no run of it unless the fit itself failed.
        Interrupted: Ctrl-C while a distributed training fits; its checkpoints are kept.
    """
    settings = settings or Settings.read()
    kind: Kind = "distributed" if distributed else "baseline" if baseline else "final"
    if distributed and baseline:
        raise UserError("--distributed and --baseline exclude each other", next_step="leave one of them out")
    if register:
        check_registrable(experiment)
    ending = "baseline" if baseline else "train"
    path = destination(report, settings.home / "reports" / f"{experiment.name}-{ending}.html")
    training = _Training(experiment, kind, protocol, settings, progress or Unwatched(), tracking_uri, source)
    with ExitStack() as stack:
        if not distributed:
            logged = training.fit_here(stack, params, data)
        else:
            from toolkit.train_distributed import DistributedTraining

            by_ray = DistributedTraining(experiment, protocol, settings, training.progress, cluster, spark_master, spark_conf or {})
            fit, rows = by_ray.prepare(stack, params, training.context(data))
            try:
                logged = [training.fit_and_log(fit, rows, by_ray.fit)]
            except KeyboardInterrupt:
                raise Interrupted(by_ray.how_to_go_on()) from None
    return training.answer(logged, register, path)


@dataclass(frozen=True)
class _Logged:
    """A model in MLflow; `spec` of its portable form, None where it has none."""

    trained: TrainedModel
    spec: Mapping[str, Any] | None
    rows: Rows
    run: MlflowRun


class _Training:
    """One call of `train`: its parts in the order in which they happen."""

    def __init__(
        self,
        experiment: Experiment,
        kind: Kind,
        protocol: Protocol,
        settings: Settings,
        progress: Progress,
        tracking_uri: str | None,
        source: str | None,
    ) -> None:
        from toolkit.engines.git import git_state

        self.experiment = experiment
        self.kind = kind
        self.protocol = protocol
        self.settings = settings
        self.progress = progress
        self.tracking_uri = tracking_uri or settings.tracking_uri
        self.source = source
        self.git = git_state()
        self.began, self.began_unix_s = time.perf_counter(), time.time()

    def context(self, data: Path | None) -> DataContext:
        from toolkit.core.data import DataContext

        return DataContext(data=data, data_dir=self.settings.data_dir, cache_dir=self.settings.home / "cache")

    # --- fitting ------------------------------------------------------------------------------------------------------------------

    def fit_here(self, stack: ExitStack, params: str, data: Path | None) -> list[_Logged]:
        from toolkit.engines.sklearn_splits import split
        from toolkit.engines.tables import load_data
        from toolkit.train_params import final_params

        self.progress.phase("reading data")
        loaded = load_data(self.experiment, self.context(data))
        if self.kind == "baseline":
            fits = baselines(self.experiment)
        else:
            chosen = final_params(self.experiment, self.protocol, params, loaded.source.sha256, self.settings)
            fits = [Fit("train", self.experiment, chosen)]
        parts = split(loaded, self.experiment.split, self.protocol)
        rows = Rows.of(loaded, parts)

        def fit_one(fit: Fit) -> Fitted:
            if fit.experiment.model.kind != "sparkml":
                return fit_here(fit, self.protocol, loaded, parts)
            from toolkit.engines.spark_source import open_session

            session = open_session(stack, None, {}, self.settings, f"toolkit train {self.experiment.name}")
            return fit_pipeline(fit, self.protocol, loaded, parts, session)

        return [self.fit_and_log(fit, rows, fit_one) for fit in fits]

    def fit_and_log(self, fit: Fit, rows: Rows, fit_one: Callable[[Fit], Fitted]) -> _Logged:
        self.progress.phase(f"fitting {fit.name}")
        with self._run(fit, rows) as run:
            fitted = fit_one(fit)
            trained = self._trained(fit, fitted, run)
            if fitted.final.payload is None:
                self._log(trained, fit.experiment, rows, run)
                model_uri = run.log_spark_model(*fitted.pipeline) if fitted.pipeline else ""
                return _Logged(replace(trained, model_uri=model_uri), None, rows, run)
            package = self._package(fit, rows, fitted)
            trained = replace(trained, permutation_importances=_permutation_importances(fit, package, rows))
            self._log(trained, fit.experiment, rows, run)
            return _Logged(replace(trained, model_uri=run.log_model(package)), package.spec, rows, run)

    def _run(self, fit: Fit, rows: Rows) -> MlflowRun:
        from toolkit.core.naming import default_experiment_name
        from toolkit.engines.mlflow_run import MlflowRun

        name = default_experiment_name(
            self.experiment.name, branch=self.git.branch, on_databricks=self.settings.on_databricks, user=self.settings.user
        )
        tags = {
            "toolkit.role": "training",
            "toolkit.experiment": self.experiment.name,
            "toolkit.protocol": self.protocol,
            "data.source": rows.loaded.source.kind,
        }
        run_name = f"{self.experiment.name}-{fit.name}"
        return MlflowRun(tracking_uri=self.tracking_uri, experiment_name=name, run_name=run_name, tags=tags)

    def _package(self, fit: Fit, rows: Rows, fitted: Fitted) -> ModelPackage:
        from toolkit.core.model_spec import package
        from toolkit.engines import build

        return package(
            fit.experiment,
            self.protocol,
            rows.loaded,
            rows.fitted,
            fitted.final,
            fitted.evaluation,
            params=fit.chosen.params,
            study=fit.chosen.study,
            versions=build.versions(),
            git_commit=self.git.commit or "",
        )

    def _trained(self, fit: Fit, fitted: Fitted, run: MlflowRun) -> TrainedModel:
        from toolkit.core.training import TrainedModel

        return TrainedModel(
            name=fit.name,
            model_text=fit.model_text,
            params=fit.chosen.params,
            params_source=fit.chosen.source,
            evaluation=fitted.evaluation,
            cross_validation=fitted.cross_validation,
            permutation_importances={},
            curves=fitted.final.history,
            fit_wall_s=fitted.wall_s,
            run_id=run.run_id,
            num_workers=fitted.num_workers,
            num_restarts=fitted.num_restarts,
        )

    def _log(self, trained: TrainedModel, experiment: Experiment, rows: Rows, run: MlflowRun) -> None:
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
                "data.sha256": rows.loaded.source.sha256,
                "data.location": rows.loaded.source.location,
                "mlflow.source.git.commit": self.git.commit or "",
                "toolkit.params_source": trained.params_source,
                **{f"version.{name}": version for name, version in build.versions().items()},
            },
        )

    # --- the answer ---------------------------------------------------------------------------------------------------------------

    def answer(self, logged: list[_Logged], register: bool, report: Path) -> TrainResult:
        from toolkit.core.training import TrainResult
        from toolkit.engines import build

        models = [each.trained for each in logged]
        place = _best(models, self.experiment.metrics[0])
        best = logged[place]
        if register:
            assert best.spec is not None, "refused by check_registrable"
            self.progress.phase("registering")
            models[place] = replace(models[place], registered=self._register(best.spec, models[place], best.run))
        result = TrainResult(
            experiment=self.experiment,
            kind=self.kind,
            protocol=self.protocol,
            models=tuple(models),
            best=models[place],
            source=best.rows.loaded.source,
            split_description=best.rows.fitted.split_description,
            num_train_rows=best.rows.num_train,
            num_validation_rows=best.rows.num_validation,
            num_test_rows=best.rows.num_test,
            tracking_uri=best.run.tracking_uri,
            mlflow_experiment=best.run.experiment_name,
            report_path=str(report),
            wall_s=0.0,
            started_unix_s=self.began_unix_s,
            versions=build.versions(),
            git_commit=self.git.commit or "",
        )
        return self._publish(result, best.run)

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


def _best(models: list[TrainedModel], metric: Metric) -> int:
    """The place of the one that is best on validation rows."""

    def cost(model: TrainedModel) -> float:
        value = model.evaluation.validation_metrics.get(metric.name, float("nan"))
        return float("inf") if value != value else -value if metric.direction == "maximize" else value

    return min(range(len(models)), key=lambda place: cost(models[place]))


def _permutation_importances(fit: Fit, package: ModelPackage, rows: Rows) -> dict[str, float]:
    from toolkit.engines import portable_model
    from toolkit.engines.sklearn_evaluation import permutation_importances

    model = portable_model.from_payload(package.payload, package.spec)
    metric, task = fit.experiment.metrics[0], rows.loaded.task
    return permutation_importances(metric, task, model.predict_encoded, rows.test, rows.loaded.feature_names)
