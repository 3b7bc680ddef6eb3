"""What a sweep answers: the contract of `toolkit sweep --json`, and what the report is drawn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from toolkit.core.data import DataSource
from toolkit.core.evaluation import Evaluation
from toolkit.core.experiment import Experiment, Protocol
from toolkit.core.registry import RegisteredVersion
from toolkit.core.study import TrialRecord, TrialState


@dataclass(frozen=True)
class SweepResult:
    """One sweep, finished or stopped early.

    Attributes:
        cluster: `inprocess`, `local` or `spark`; sampler, scheduler: names ("none" without a scheduler).
        stopped_by: None when all trials were done, else `timeout`.
        best: None when no trial completed; with two metrics: the first of `pareto`.
        wall_s: of this process's part of the sweep, from the call to the result; cluster_start_s, search_s (from handing the first
            trial to the runner to the last trial's end) likewise. fit_wall_s, fit_cpu_s: sums over the trials fitted in this process's
            part.
        num_slots: trials that can run at once.
        split_description, feature_names, num_train_rows, …: what the report says of the data.
        num_unsent: tracking entries that still wait in the spool because the MLflow server did not answer.
    """

    experiment: Experiment
    study: str
    protocol: Protocol
    cluster: str
    sampler: str
    scheduler: str
    seed: int
    num_trials: int
    records: tuple[TrialRecord, ...]
    best: TrialRecord | None
    pareto: tuple[TrialRecord, ...]
    evaluation: Evaluation | None
    stopped_by: str | None
    wall_s: float
    cluster_start_s: float
    search_s: float
    search_started_unix_s: float
    fit_wall_s: float
    fit_cpu_s: float
    num_slots: int
    tracking_uri: str
    mlflow_experiment: str
    parent_run_id: str
    model_uri: str
    report_path: str
    source: DataSource
    feature_names: tuple[str, ...]
    split_description: str
    num_train_rows: int
    num_validation_rows: int
    num_test_rows: int
    num_unsent: int
    started_unix_s: float
    versions: Mapping[str, str]
    git_commit: str
    registered: RegisteredVersion | None = None

    def count(self, state: TrialState) -> int:
        return sum(record.state is state for record in self.records)

    @property
    def efficiency(self) -> float:
        """Share of the slots' time that went into fitting: fit_wall_s / (search_s x num_slots)."""
        return self.fit_wall_s / (self.search_s * self.num_slots) if self.search_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints. Names and units are a contract: see docs/cli.md."""
        metrics = self.experiment.metrics
        return {
            "experiment": self.experiment.name,
            "study": self.study,
            "protocol": self.protocol,
            "cluster": self.cluster,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "seed": self.seed,
            "num_trials": self.num_trials,
            "num_completed": self.count(TrialState.COMPLETE),
            "num_pruned": self.count(TrialState.PRUNED),
            "num_failed": self.count(TrialState.FAILED),
            "stopped_by": self.stopped_by,
            "metric": metrics[0].name if len(metrics) == 1 else [metric.name for metric in metrics],
            "direction": metrics[0].direction if len(metrics) == 1 else [metric.direction for metric in metrics],
            "best_trial": self._trial(self.best) if self.best else None,
            "pareto": [self._trial(record) for record in self.pareto],
            "test_metrics": dict(self.evaluation.metrics) if self.evaluation else {},
            "positive": self.evaluation.positive if self.evaluation else None,
            "threshold": self.evaluation.threshold.value if self.evaluation and self.evaluation.threshold else None,
            "wall_s": round(self.wall_s, 3),
            "cluster_start_s": round(self.cluster_start_s, 3),
            "search_s": round(self.search_s, 3),
            "fit_wall_s": round(self.fit_wall_s, 3),
            "fit_cpu_s": round(self.fit_cpu_s, 3),
            "efficiency": round(self.efficiency, 4),
            "num_slots": self.num_slots,
            "tracking_uri": self.tracking_uri,
            "mlflow_experiment": self.mlflow_experiment,
            "parent_run_id": self.parent_run_id,
            "model_uri": self.model_uri,
            "registered": dataclasses.asdict(self.registered) if self.registered else None,
            "num_unsent": self.num_unsent,
            "report_path": self.report_path,
            "data": dataclasses.asdict(self.source),
        }

    def _repr_html_(self) -> str:
        """The headline, for a notebook; the whole report is at `report_path`."""
        rows = {
            "study": f"{self.study} ({self.protocol} protocol)",
            "best": ", ".join(f"{m.name} {v:.5g}" for m, v in zip(self.experiment.metrics, self.best.values, strict=True))
            + f" (trial {self.best.number})"
            if self.best
            else "no trial completed",
            "parameters": ", ".join(f"{name}={value}" for name, value in self.best.params.items()) if self.best else "",
            "test": ", ".join(f"{name} {value:.5g}" for name, value in self.evaluation.metrics.items()) if self.evaluation else "",
            "trials": ", ".join(f"{self.count(state)} {state}" for state in TrialState if self.count(state)),
            "time": f"{self.wall_s:.1f} s; search {self.search_s:.1f} s, {self.efficiency:.0%} of it fitting on {self.num_slots} slots",
            "data": f"{self.source.location} ({self.source.kind}), {self.source.num_rows} rows",
            "report": self.report_path,
            "model": self.model_uri,
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items() if text)
        return f"<table>{cells}</table>"

    def _trial(self, record: TrialRecord) -> dict[str, Any]:
        value: Any = record.values[0] if len(record.values) == 1 else list(record.values)
        return {"number": record.number, "value": value, "params": dict(record.params)}
