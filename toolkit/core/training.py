"""What a training answers: the contract of `toolkit train --json`, and what its report is drawn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from toolkit.core.data import DataSource
from toolkit.core.evaluation import Evaluation
from toolkit.core.experiment import Experiment, Protocol
from toolkit.core.registry import RegisteredVersion


@dataclass(frozen=True)
class TrainedModel:
    """One fitted model.

    Attributes:
        name: of its run: `train`, `baseline`, `baseline-dummy`, …
        model_text: kind and class or objective, for a person.
        params: searched or given; the fixed ones are the model's own.
        cross_validation: metric -> (mean, standard deviation) over the folds, where the experiment has some.
        permutation_importances: feature -> how much worse the first metric is on test rows when the feature's values are shuffled.
        curves: (round, value) on validation rows, by metric.
        num_workers, num_restarts: of a distributed training; 1 and 0 otherwise.
    """

    name: str
    model_text: str
    params: Mapping[str, Any]
    params_source: str
    evaluation: Evaluation
    cross_validation: Mapping[str, tuple[float, float]]
    permutation_importances: Mapping[str, float]
    curves: Mapping[str, Any]
    fit_wall_s: float
    run_id: str = ""
    model_uri: str = ""
    registered: RegisteredVersion | None = None
    num_workers: int = 1
    num_restarts: int = 0

    def as_json(self) -> dict[str, Any]:
        evaluation = self.evaluation
        return {
            "name": self.name,
            "model": self.model_text,
            "params": dict(self.params),
            "params_source": self.params_source,
            "train_metrics": dict(evaluation.fitted_metrics),
            "validation_metrics": dict(evaluation.validation_metrics),
            "test_metrics": dict(evaluation.metrics),
            "cross_validation": {name: {"mean": mean, "std": std} for name, (mean, std) in self.cross_validation.items()},
            "positive": evaluation.positive,
            "threshold": evaluation.threshold.value if evaluation.threshold else None,
            "calibration": evaluation.calibration["method"] if evaluation.calibration else None,
            "num_rounds": evaluation.num_rounds,
            "num_workers": self.num_workers,
            "num_restarts": self.num_restarts,
            "fit_wall_s": round(self.fit_wall_s, 3),
            "run_id": self.run_id,
            "model_uri": self.model_uri,
            "registered": dataclasses.asdict(self.registered) if self.registered else None,
        }


@dataclass(frozen=True)
class TrainResult:
    """One call of `train`.

    Attributes:
        kind: what was asked for.
        models: at least one; two where the experiment names no baseline.
        best: of them, by the first metric on validation rows; what `--register` registers.
    """

    experiment: Experiment
    kind: Literal["final", "baseline", "distributed"]
    protocol: Protocol
    models: tuple[TrainedModel, ...]
    best: TrainedModel
    source: DataSource
    split_description: str
    num_train_rows: int
    num_validation_rows: int
    num_test_rows: int
    tracking_uri: str
    mlflow_experiment: str
    report_path: str
    wall_s: float
    started_unix_s: float
    versions: Mapping[str, str]
    git_commit: str

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "experiment": self.experiment.name,
            "kind": self.kind,
            "protocol": self.protocol,
            **self.best.as_json(),
            "models": [model.as_json() for model in self.models],
            "wall_s": round(self.wall_s, 3),
            "tracking_uri": self.tracking_uri,
            "mlflow_experiment": self.mlflow_experiment,
            "report_path": self.report_path,
            "data": dataclasses.asdict(self.source),
        }

    def _repr_html_(self) -> str:
        """The headline, for a notebook; the whole report is at `report_path`."""
        rows = {
            "model": self.best.model_text,
            "parameters": ", ".join(f"{name}={value}" for name, value in self.best.params.items()),
            "test": ", ".join(f"{name} {value:.5g}" for name, value in self.best.evaluation.metrics.items()),
            "registered": str(self.best.registered or ""),
            "report": self.report_path,
            "logged model": self.best.model_uri,
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items() if text)
        return f"<table>{cells}</table>"
