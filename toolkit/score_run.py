"""One run of a scoring, once its session and its model are there. Part of `score`."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ScoringError, TrackingError, UserError
from toolkit.core.progress import SearchProgress
from toolkit.core.scoring import STATE_FOLDER, BatchCounts, RowRules, ScoringModel, with_key
from toolkit.core.scoring_result import ScoreResult
from toolkit.engines.lease import Lease
from toolkit.engines.score_state import RESTORE, Generation, Plan, ScoreState, Scoring
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.engines.score_state import Engine
    from toolkit.engines.spark_score_setup import Agreement
    from toolkit.score_asked import Asked, Models

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
        engine: Engine,
        models: Models,
        model: ScoringModel,
        settings: Settings,
        tracking_uri: str | None,
        progress: SearchProgress,
        notices: list[str],
    ) -> None:
        self.asked, self.session, self.models, self.model = asked, session, models, model
        self.settings, self.tracking_uri, self.progress = settings, tracking_uri or settings.tracking_uri, progress
        self.state = ScoreState(asked.state)
        self.notices = notices
        self.batches: dict[int, BatchCounts] = {}
        self.replayed: dict[int, str] = {}
        self.engine = engine
        self.last_plan: Plan | None = None

    def execute(self, began_s: float) -> ScoreResult:
        """`began_s`: monotonic.

        Raises:
            What `score` does.
        """
        from toolkit.engines.mlflow_run import MlflowRun

        asked = self.asked
        scoring = self._scoring()
        agreement = None if self.engine == "files" else self._agree()
        rules = self._files_rules() if agreement is None else agreement.rules
        name = (str(self.model.spec["experiment"]) if self.model.spec else self.model.name) + EXPERIMENT_SUFFIX
        tags = {"toolkit.verb": "score", "toolkit.model": str(self.model), "toolkit.output": asked.output.shown}
        run = MlflowRun(tracking_uri=self.tracking_uri, experiment_name=name, run_name=f"score {self.model}", tags=tags)
        # Beside the output, wherever the state is: two runs may have been told different ones.
        place = asked.state if asked.output.path is None else asked.output.path / STATE_FOLDER
        with Lease(place, asked.output.shown, self.settings.user) as lease, run:
            before = self.state.read()  # once more: now nobody else changes it
            scoring = self._scoring()
            self._check_state(agreement)
            if scoring != before:
                self.state.write(scoring)
            self._tell_of_another_model()
            self.progress.phase(f"scoring with {self.model}, engine {self.engine}")
            try:
                self._run(scoring, agreement, rules, run.run_id, lease)
            except UserError:
                # Refused, not killed: the next run must not carry it out.
                if asked.mode == "full" and not self._is_begun(scoring, agreement):
                    self.state.take_back(scoring, before)
                raise
            wall_s = time.monotonic() - began_s
            result = self._result(run.run_id, wall_s)
            try:
                run.log(params=_params(asked, result), metrics=_metrics(result), curves=_curves(result))
            except TrackingError as error:
                # The scores are committed and the audit has them: a record that is late must not fail the run.
                self.notices.append(f"MLflow has no figures of this run: {error}")
        return dataclasses.replace(result, notices=tuple(self.notices))

    def _tell_of_another_model(self) -> None:
        last = self.state.last_plan()
        if last is not None and last.model != self.model.name and self.asked.mode != "full":
            self.notices.append(f"{self.asked.output.shown} has scores of {last.model}, and gets those of {self.model.name} now")

    def _agree(self) -> Agreement:
        from toolkit.engines import spark_score_setup

        asked = self.asked
        return spark_score_setup.agree(
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

    def _files_rules(self) -> RowRules:
        """With the key. Raises ScoringError: input, model and output do not fit each other, as far as schemas tell."""
        from toolkit.engines.files_columns import Schemas
        from toolkit.engines.files_tables import columns_of, output_of

        asked, location, is_delta = self.asked, self.asked.input.shown, self.asked.output.kind == "delta"
        wanted = {*(feature.name for feature in self.model.features), *(asked.rules.keep or ()), asked.rules.key or self.model.key or ""}
        columns = columns_of(asked.input, wanted - {""})
        rules = with_key(asked.rules, self.model, columns.names, location, self.notices)
        Schemas.of(
            columns, self.model, rules, location=location,
            there=output_of(asked.output).columns if is_delta or asked.mode != "full" else None,
            there_quarantined=output_of(asked.quarantine).columns, with_batch_id=is_delta,
        )  # fmt: skip
        return rules

    def _run(self, scoring: Scoring, agreement: Agreement | None, rules: RowRules, run_id: str, lease: Lease) -> None:
        if agreement is None:
            self._run_files(scoring, rules, run_id, lease)
            return
        from toolkit.engines.spark_files_scoring import read_by_files
        from toolkit.engines.spark_score import SparkBatches

        asked = self.asked
        batches = SparkBatches(agreement, self.state, self.models.version, self.model, run_id, lease.check, self.on_batch)
        batches.finish_window(scoring)
        if asked.window is not None:
            if scoring.generation.kind == "windows" or asked.input.kind == "jdbc":  # nothing is new, or nobody knows
                batches.run_window(scoring, asked.window, None)
            elif scoring.engine == "files":
                self._run_files(scoring, rules, run_id, lease)
                batches.run_window(scoring, asked.window, read_by_files(self.state, scoring, asked.input))
            else:
                batches.run_new_rows(scoring, asked.max_batch_gib)
                batches.run_window(scoring, asked.window, None)
        elif scoring.engine == "files":  # whose session Spark's engine has for the rest of a window
            self._run_files(scoring, rules, run_id, lease)
        elif asked.input.kind == "jdbc":
            batches.run_all_rows(scoring)
        else:
            batches.run_new_rows(scoring, None if asked.mode == "full" else asked.max_batch_gib)

    def _run_files(self, scoring: Scoring, rules: RowRules, run_id: str, lease: Lease) -> None:
        from toolkit.engines.spark_files_scoring import score_files

        def on_batch(plan: Plan, counts: BatchCounts) -> None:
            is_own = (plan.model, plan.version) == (self.model.name, self.model.version)
            self.on_batch(plan, self.model if is_own else self.models.version(plan.model, plan.version), counts)

        asked = self.asked
        score_files(
            self.session,
            asked.input,
            asked.output,
            asked.quarantine,
            self.models.version,
            self.model,
            rules,
            self.state,
            scoring,
            run_id=run_id,
            overwrite=scoring.generation.kind == "full",
            check_lease=lease.check,
            on_batch=on_batch,
            progress=self.progress.phase,
            skip_change_commits=asked.skip_change_commits,
        )

    def _is_begun(self, scoring: Scoring, agreement: Agreement | None) -> bool:
        """Whether anything of this generation is written."""
        from toolkit.engines.files_tables import output_of

        plans = self.state.plans_of(scoring.generation)
        if agreement is not None:
            from toolkit.engines import spark_score

            return any(spark_score.is_begun(agreement, plan) for plan in plans)
        newest = (output_of(each).last_batch for each in (self.asked.output, self.asked.quarantine))
        last = max((number for number in newest if number is not None), default=-1)
        return any(plan.batch_id <= last for plan in plans)

    def _check_state(self, agreement: Agreement | None) -> None:
        """Raises ScoringError: output and state are not of the same past."""
        from toolkit.engines import files_tables
        from toolkit.engines.parquet_batches import is_begun

        if self.asked.mode == "full":
            return
        output, has_output = self.asked.output, agreement is not None and agreement.has_output
        if self.state.last_plan() is None:
            is_lost = has_output or (output.kind == "parquet" and output.path is not None and is_begun(output.path))
            if agreement is None:
                is_lost = not files_tables.output_of(output).knows_progress
            if is_lost:
                raise ScoringError(
                    "the state of a scoring must be there as long as its output", got=f"{output.shown}, and none in {self.state.folder}",
                    next_step=RESTORE,
                )  # fmt: skip
        elif agreement is not None and not has_output and any(map(self.state.wrote_rows, self.state.plan_numbers())):
            raise ScoringError("an output must be there, for batches were written to it", got=f"no {output.shown}", next_step=RESTORE)

    def on_batch(self, plan: Plan, model: ScoringModel, counts: BatchCounts) -> None:
        from toolkit.engines import score_audit

        # Of the batch, not of the run, which may finish another one's.
        mode = "window" if plan.window is not None else "full" if plan.overwrite else "incremental"
        engine = "files" if plan.extra.get("engine") == "files" else "spark"
        score_audit.record(self.session, self.asked.audit, score_audit.audit_row(plan, model, counts, mode, engine))
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
            kinds: dict[str, Any] = {"incremental": "incremental", "window": "windows", "full": "full"}
            return Scoring(asked.input.shown, asked.output.shown, self.engine, Generation(uuid.uuid4().hex, kinds[asked.mode]))
        if found.input != asked.input.shown:
            raise ScoringError(
                "an output has one input",
                got=f"{asked.input.shown}, after {found.input}",
                next_step="name another --output, or --mode full",
            )
        if asked.mode == "incremental" and found.generation.kind == "windows":
            raise ScoringError(
                "what is new cannot be told of an output that was made of windows",
                got=asked.output.shown,
                next_step="name another --output, or score all with --mode full",
            )
        return found

    def _result(self, run_id: str, wall_s: float) -> ScoreResult:
        asked = self.asked
        last = self.last_plan or self._last_read()
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

    def _last_read(self) -> Plan | None:
        """The newest batch, of those that went on where the one before had ended."""
        plans = (self.state.plan(number) for number in reversed(self.state.plan_numbers()))
        return next((plan for plan in plans if plan.window is None), None)


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
