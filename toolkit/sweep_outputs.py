"""What a sweep leaves behind: model and figures in MLflow, the report, the table of trials."""

from __future__ import annotations

import csv
import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import TrackingError
from toolkit.core.search import error_summary
from toolkit.core.study import TrialRecord

if TYPE_CHECKING:
    from toolkit.core.data import LoadedData, SplitData
    from toolkit.core.result import SweepResult
    from toolkit.core.trial import FinalModel
    from toolkit.engines.mlflow_tracking import MlflowTracker
    from toolkit.engines.optuna_study import OptunaStudy

_logger = logging.getLogger("toolkit")


def publish(
    result: SweepResult,
    final: FinalModel | None,
    loaded: LoadedData,
    split: SplitData,
    study: OptunaStudy,
    tracker: MlflowTracker,
    folder: Path,
) -> tuple[SweepResult, Mapping[str, Any] | None]:
    """Log the model, write the report, log everything else, end the parent run.

    Returns:
        `result` with what that added, and the spec of the logged model, None without one.

    A tracking server that has gone away costs the model's entry, which is reported, and nothing else: the rest waits in the spool.
    """
    from toolkit.reports.sweep_report import render_sweep

    spec: Mapping[str, Any] | None = None
    if final is not None and final.payload is not None:
        model_uri, spec = _log_model(result, final, loaded, split, tracker)
        result = replace(result, model_uri=model_uri)
    report_path = Path(result.report_path)
    report_path.parent.mkdir(parents=True, exist_ok=True)
    importances = study.importances()
    report = functools.partial(render_sweep, importances=importances or None, importance_method="PED-ANOVA")
    report_path.write_text(report(result), encoding="utf-8")
    trials_path = folder / "trials.csv"
    write_trials(trials_path, result.records, [metric.name for metric in result.experiment.metrics])
    configuration_path = folder / "configuration.json"
    configuration = result.experiment.fingerprint(result.protocol)
    configuration_path.write_text(json.dumps(configuration, indent=1), encoding="utf-8")
    summary_path = folder / "sweep.json"
    summary_path.write_text(json.dumps(result.as_json(), indent=1, default=str), encoding="utf-8")

    tracker.set_parent(
        # MLflow never changes a parameter: what another --resume with more trials may change is a tag or a metric.
        params={"sampler": result.sampler, "scheduler": result.scheduler, "seed": result.seed}
        | {name: value for name, value in configuration.items() if name.startswith(("split.", "model."))},
        tags={
            "data.sha256": result.source.sha256,
            "data.location": result.source.location,
            "toolkit.best_trial": str(result.best.number) if result.best else "none",
            "toolkit.best_params": json.dumps(result.best.params if result.best else {}, default=str),
            "toolkit.model_uri": result.model_uri or "none",
            "mlflow.source.git.commit": result.git_commit,
            **{f"version.{name}": version for name, version in result.versions.items()},
        },
        metrics={
            **({m.name: v for m, v in zip(result.experiment.metrics, result.best.values, strict=True)} if result.best else {}),
            **{f"test_{name}": value for name, value in (result.evaluation.metrics.items() if result.evaluation else ())},
            "num_trials": result.num_trials,
            "search_s": result.search_s,
            "fit_wall_s": result.fit_wall_s,
            "efficiency": result.efficiency,
        },
    )
    for path in (report_path, trials_path, summary_path, configuration_path):
        tracker.log_artifact(path)
    tracker.finish("FINISHED" if result.stopped_by is None else "KILLED", time.time())
    is_model_missing = final is not None and final.payload is not None and not result.model_uri
    result = replace(result, num_unsent=tracker.close() + is_model_missing)
    if result.num_unsent:
        report_path.write_text(report(result), encoding="utf-8")
    return result, spec


def _log_model(
    result: SweepResult, final: FinalModel, loaded: LoadedData, split: SplitData, tracker: MlflowTracker
) -> tuple[str, Mapping[str, Any] | None]:
    from toolkit.core.model_spec import FittedRows, package

    assert result.best is not None and result.evaluation is not None
    packed = package(
        result.experiment,
        result.protocol,
        loaded,
        FittedRows.of(loaded, split),
        final,
        result.evaluation,
        params=result.best.params,
        study=result.study,
        versions=result.versions,
        git_commit=result.git_commit,
    )
    try:
        return tracker.log_model(packed), packed.spec
    except TrackingError as error:
        _logger.warning("%s", error)
        return "", None


def write_trials(path: Path, records: Sequence[TrialRecord], metric_names: Sequence[str]) -> None:
    """All trials, one row each, in the order of their numbers."""
    names = sorted({name for record in records for name in record.params})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "state", *metric_names, *names, "best_iteration", "fit_wall_s", "num_retries", "error"])
        for record in records:
            values = record.values or ("",) * len(metric_names)
            params = [record.params.get(name, "") for name in names]
            writer.writerow(
                [
                    record.number,
                    record.state,
                    *values,
                    *params,
                    record.result.best_iteration,
                    record.result.fit_wall_s,
                    record.num_retries,
                    error_summary(record.error),
                ]
            )
