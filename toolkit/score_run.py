"""One run of a scoring, once its session and its model are there. Part of `score`."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ScoringError, TrackingError
from toolkit.core.progress import SearchProgress
from toolkit.core.scoring import BatchCounts, ScoringModel
from toolkit.core.scoring_result import ScoreResult
from toolkit.engines import score_state
from toolkit.engines.lease import Lease
from toolkit.engines.score_state import RESTORE, Generation, Plan, ScoreState, Scoring
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.engines.spark_score_setup import Agreement
    from toolkit.score import Asked, Models

EXPERIMENT_SUFFIX = "-scoring"

_logger = logging.getLogger("toolkit")


class ScoreRun:
    """Attributes:
    notices: what the user should know, a line each.
    """

    def __init__(
        self,
        asked: Asked,
        session: Any,
        models: Models,
        model: ScoringModel,
        settings: Settings,
        tracking_uri: str | None,
        progress: SearchProgress,
    ) -> None:
        self.asked, self.session, self.models, self.model = asked, session, models, model
        self.settings, self.tracking_uri, self.progress = settings, tracking_uri or settings.tracking_uri, progress
        self.state = ScoreState(asked.state)
        self.notices: list[str] = []
        self.batches: dict[int, BatchCounts] = {}
        self.replayed: dict[int, str] = {}
        self.engine: score_state.Engine = "spark"
        self.last_plan: Plan | None = None

    def execute(self, began_s: float) -> ScoreResult:
        """`began_s`: monotonic.

        Raises:
            What `score` does.
        """
        from toolkit.engines import spark_score_setup
        from toolkit.engines.mlflow_run import MlflowRun

        asked = self.asked
        scoring = self._scoring()
        agreement = spark_score_setup.agree(
            self.session,
            asked.input,
            asked.output,
            asked.quarantine,
            self.model,
            asked.rules,
            where=asked.where,
            skip_changes=asked.skip_change_commits,
            window=asked.window,
            credentials=_jdbc(self.settings),
            replaces=asked.mode == "full",
            notices=self.notices,
        )
        name = (str(self.model.spec["experiment"]) if self.model.spec else self.model.name) + EXPERIMENT_SUFFIX
        tags = {"toolkit.verb": "score", "toolkit.model": str(self.model), "toolkit.output": asked.output.shown}
        run = MlflowRun(tracking_uri=self.tracking_uri, experiment_name=name, run_name=f"score {self.model}", tags=tags)
        with Lease(asked.state, asked.output.shown, self.settings.user) as lease, run:
            scoring = self._scoring()  # once more: now nobody else changes it
            self._check_state(scoring, agreement)
            self.state.write(scoring)
            self.progress.phase(f"scoring with {self.model}, engine {scoring.engine}")
            self.engine = scoring.engine
            self._run(scoring, agreement, run.run_id, lease)
            wall_s = time.monotonic() - began_s
            result = self._result(run.run_id, wall_s)
            try:
                run.log(params=_params(asked, result), metrics=_metrics(result), curves=_curves(result))
            except TrackingError as error:
                # The scores are committed and the audit has them: a record that is late must not fail the run.
                self.notices.append(f"MLflow has no figures of this run: {error}")
        return dataclasses.replace(result, notices=tuple(self.notices))

    def _run(self, scoring: Scoring, agreement: Agreement, run_id: str, lease: Lease) -> None:
        from toolkit.engines.spark_score import SparkBatches

        asked = self.asked
        batches = SparkBatches(agreement, self.state, self.models.version, self.model, run_id, lease.check, self.on_batch)
        if asked.window is not None:
            if scoring.generation.kind != "windows":
                batches.run_new_rows(scoring, asked.max_batch_gib)
            batches.run_window(scoring, asked.window)
        elif asked.input.kind == "jdbc":
            batches.run_all_rows(scoring)
        else:
            batches.run_new_rows(scoring, None if asked.mode == "full" else asked.max_batch_gib)

    def _check_state(self, scoring: Scoring, agreement: Agreement) -> None:
        """Raises ScoringError: output and state are not of the same past."""
        if self.asked.mode == "full":
            return
        shown, last = self.asked.output.shown, self.state.last_plan()
        if agreement.has_output and last is None:
            raise ScoringError(
                "the state of a scoring must be there as long as its output", got=f"{shown}, and none in {self.state.folder}",
                next_step=RESTORE,
            )  # fmt: skip
        if not agreement.has_output and any(self.state.wrote_rows(number) for number in self.state.plan_numbers()):
            raise ScoringError("an output must be there, for batches were written to it", got=f"no {shown}", next_step=RESTORE)

    def on_batch(self, plan: Plan, model: ScoringModel, counts: BatchCounts) -> None:
        from toolkit.engines import score_audit

        score_audit.record(self.session, self.asked.audit, score_audit.audit_row(plan, model, counts, self.asked.mode, self.engine))
        self.batches[plan.batch_id] = counts
        self.last_plan = plan
        if (plan.model, plan.version) != (self.model.name, self.model.version):
            self.replayed[plan.batch_id] = f"{plan.model}/{plan.version}"
            self.notices.append(f"batch {plan.batch_id} was begun with {plan.model}/{plan.version} and is finished with it")
        self.progress.phase(f"batch {plan.batch_id}: {counts.num_scored_rows:,} rows scored, {counts.num_quarantined_rows:,} quarantined")

    def _scoring(self) -> Scoring:
        """Of this output; a new one where it has none.

        Raises:
            ScoringError: the output is fed from another input or by the other engine, or its state is gone.
        """
        asked = self.asked
        found = self.state.read()
        if found is None or asked.mode == "full":
            engine = self._choose_engine()
            kinds: dict[str, Any] = {"incremental": "incremental", "window": "windows", "full": "full"}
            return Scoring(asked.input.shown, asked.output.shown, engine, Generation(uuid.uuid4().hex, kinds[asked.mode]))
        if found.input != asked.input.shown:
            raise ScoringError(
                "an output has one input",
                got=f"{asked.input.shown}, after {found.input}",
                next_step="name another --output, or --mode full",
            )
        if asked.engine not in ("auto", found.engine):
            raise ScoringError(
                "an output keeps its engine, for each knows its own progress",
                got=f"--engine {asked.engine}, after {found.engine}",
                next_step=f"leave it at {found.engine}, or change it with --mode full",
            )
        if asked.mode == "incremental" and found.generation.kind == "windows":
            raise ScoringError(
                "what is new cannot be told of an output that was made of windows",
                got=asked.output.shown,
                next_step="name another --output, or score all with --mode full",
            )
        return found

    def _choose_engine(self) -> score_state.Engine:
        asked = self.asked
        if asked.engine == "spark":
            return "spark"
        reason = self._not_for_files()
        if asked.engine == "files" and reason:
            raise ScoringError("--engine files must fit the tables", got=reason, next_step="use --engine spark")
        return "spark" if reason else "files"

    def _not_for_files(self) -> str:
        asked = self.asked
        if asked.where is not None:
            return "--where, which is SQL"
        if asked.mode == "window":
            return "--mode window"
        if self.model.kind != "portable":
            return f"a model of the kind {self.model.kind}"
        return "not built in"

    def _result(self, run_id: str, wall_s: float) -> ScoreResult:
        asked = self.asked
        last = self.last_plan or self.state.last_plan()
        return ScoreResult(
            model=self.model.name,
            version=self.model.version,
            mode=asked.mode,
            engine=self.engine,
            batches=dict(self.batches),
            replayed=dict(self.replayed),
            wall_s=wall_s,
            high_watermark=None if last is None else high_watermark(last),
            input=asked.input.shown,
            output=asked.output.shown,
            quarantine=asked.quarantine.shown,
            audit=asked.audit.shown,
            mlflow_run_id=run_id,
            model_age_s=max(0.0, time.time() - self.model.created_unix_s),
        )


def high_watermark(plan: Plan) -> str:
    """How far the input was read when this batch was done."""
    import json

    if plan.window is not None:
        return plan.window[2]
    source = plan.source
    if "version" in source:
        return f"version {source['version']}"
    for text in source.get("offsets", []):
        offset = json.loads(text)
        if "reservoirVersion" in offset:
            version = int(offset["reservoirVersion"])
            return f"version {version - 1 if int(offset['index']) < 0 else version}"
        if "logOffset" in offset:
            return f"file batch {offset['logOffset']}"
    return f"batch {plan.batch_id}"


def _params(asked: Asked, result: ScoreResult) -> dict[str, object]:
    return {
        "model": f"{result.model}/{result.version}",
        "mode": asked.mode,
        "engine": result.engine,
        "input": result.input,
        "output": result.output,
    }


def _metrics(result: ScoreResult) -> dict[str, float]:
    return {
        "num_input_rows": result.num_input_rows,
        "num_scored_rows": result.num_scored_rows,
        "num_quarantined_rows": result.num_quarantined_rows,
        "num_batches": len(result.batches),
        "bad_share": result.bad_share,
        "wall_s": result.wall_s,
        "rows_per_s": result.rows_per_s,
        "model_age_s": result.model_age_s,
    }


def _curves(result: ScoreResult) -> dict[str, list[tuple[float, float]]]:
    """Of each batch, beside the sums."""
    names = ("num_input_rows", "num_scored_rows", "num_quarantined_rows")
    return {f"batch_{name}": [(number, getattr(counts, name)) for number, counts in result.batches.items()] for name in names}


def _jdbc(settings: Settings) -> dict[str, str]:
    given = {"user": settings.jdbc_user, "password": settings.jdbc_password}
    return {name: value for name, value in given.items() if value}
