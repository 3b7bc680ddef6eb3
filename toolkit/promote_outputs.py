"""What a promotion leaves behind, whatever it decided: a run of its own in MLflow, the report, and the version's tags."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.core.experiment import Experiment
from toolkit.core.gates import GateResult, Status
from toolkit.core.registry import GATES_TAG, METRICS_TAG, ModelVersion
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.core.promotion_result import PromotionResult
    from toolkit.engines.mlflow_registry import Registry
    from toolkit.engines.mlflow_run import MlflowRun
    from toolkit.promote_evidence import Evidence

JUDGED_BY_TAG = "toolkit.judged_by"
SYNTHETIC_KINDS = ("synthetic", "generated")


def notices(evidence: Evidence, gates: Sequence[GateResult], overrides: Mapping[str, str]) -> tuple[str, ...]:
    """What is worth saying and refuses nothing."""
    found = list(evidence.notices())
    model = evidence.challenger.model.or_none()
    if model and model.spec["data"]["kind"] in SYNTHETIC_KINDS:
        found.append(f"the challenger was trained on synthetic data, {model.spec['data']['location']}")
    if evidence.champion and evidence.champion.model().spec["protocol"] != "honest":
        found.append("the champion was made under the published protocol: only its figures on this hold-out can be compared")
    needless = [gate.name for gate in gates if gate.name in overrides and gate.status is not Status.OVERRIDDEN]
    if needless:
        found.append(f"nothing to override: {', '.join(needless)} did not fail")
    return tuple(found)


def promotion_run(
    experiment: Experiment, challenger: ModelVersion, champion: ModelVersion | None, tracking_uri: str | None, settings: Settings
) -> MlflowRun:
    """Beside the experiment's trainings and studies. Not begun."""
    from toolkit.core.naming import default_experiment_name
    from toolkit.engines.git import git_state
    from toolkit.engines.mlflow_run import MlflowRun

    return MlflowRun(
        tracking_uri=tracking_uri,
        experiment_name=default_experiment_name(
            experiment.name, branch=git_state().branch, on_databricks=settings.on_databricks, user=settings.user
        ),
        run_name=f"promote {challenger.name} {challenger.version}",
        tags={
            "toolkit.role": "promotion",
            "toolkit.experiment": experiment.name,
            "toolkit.model": challenger.name,
            "toolkit.version": str(challenger.version),
            "toolkit.champion": str(champion.version) if champion else "none",
        },
    )


def record(result: PromotionResult, run: MlflowRun, registry: Registry, challenger: ModelVersion, folder: Path) -> None:
    """Write everything down, before anything moves. `folder`: for files on their way to MLflow."""
    from toolkit.core.promotion_result import decision, strict
    from toolkit.reports.promotion_report import render_promotion

    report_path = Path(result.report_path)
    report_path.parent.mkdir(parents=True, exist_ok=True)
    report_path.write_text(render_promotion(result), encoding="utf-8")
    json_path = folder / "promotion.json"
    json_path.write_text(json.dumps(strict(result.as_json()), indent=1, allow_nan=False), encoding="utf-8")
    decided = decision(result)
    metrics = {
        f"{who}_{name}": value
        for who, model in (("challenger", result.challenger), ("champion", result.champion))
        for name, value in (model.figures.items() if model else ())
        if math.isfinite(value)
    }
    run.log(metrics=metrics, tags={"toolkit.decision": decided["decision"], "toolkit.verdict": result.verdict})
    for path in (report_path, json_path):
        run.log_artifact(path)
    figures = {**(challenger.metrics or {}), "holdout": decided["metrics"]["challenger"] or {}}
    tags = {GATES_TAG: json.dumps(decided["gates"]), METRICS_TAG: json.dumps(figures), JUDGED_BY_TAG: run.run_id}
    for key, value in tags.items():
        registry.set_tag(challenger.name, key, value, version=challenger.version)
