"""Engine `spark`: one batch after another, planned before it is executed and counted before it is written.

What is new comes from Structured Streaming (`availableNow`, `foreachBatch`), which calls a batch again after a kill: with the same rows,
and here with the same model. A batch's parts are written in a fixed order (scores, quarantine, audit), each once, so that calling it again
repairs whatever a kill left half done.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark import StorageLevel
from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame

from toolkit.core.errors import ScoringError, UserError
from toolkit.core.scoring import BatchCounts, Feature, ScoringModel, Stamp
from toolkit.core.table_names import spark_path
from toolkit.engines import spark_rows, spark_scoring
from toolkit.engines.score_state import Plan, ScoreState, Scoring, write_json
from toolkit.engines.spark_checkpoint import check_checkpoint, has_read_all
from toolkit.engines.spark_jvm import once_more
from toolkit.engines.spark_score_setup import Agreement
from toolkit.engines.spark_score_tables import DeltaSink, ParquetSink, Reader, window_condition
from toolkit.engines.spark_tables import java_stack, one_line

POLL_S = 1
# What Spark says of a Python worker that was ended by a signal.
_CRASHES = ("Python worker exited unexpectedly (crashed)", "PYTHON_WORKER_EXITED", "Python worker process terminated")
_CHANGED = ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE")

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class SparkBatches:
    """How a batch becomes scores.

    Attributes:
        model_of: fetches a pinned version.
        model: of batches that are not planned yet.
        check_lease: raises where the output is no longer ours.
        on_batch: told after everything of a batch is written.
    """

    agreement: Agreement
    state: ScoreState
    model_of: Callable[[str, int], ScoringModel]
    model: ScoringModel
    run_id: str
    check_lease: Callable[[], None]
    on_batch: Callable[[Plan, ScoringModel, BatchCounts], None]

    @property
    def reader(self) -> Reader:
        return self.agreement.reader

    def run_new_rows(self, scoring: Scoring, max_batch_gib: float | None) -> None:
        """Score what no batch of this generation had; returns at once where there is nothing.

        Raises:
            ScoringError, DataError: see `execute`; the checkpoint is gone or older than the state; a Delta input was changed.
        """
        checkpoint = self.state.checkpoint(scoring.generation)
        check_checkpoint(self.state, scoring, checkpoint)
        if has_read_all(self.reader.table, checkpoint):
            return
        failures: list[BaseException] = []

        def on_rows(frame: DataFrame, stream_batch: int) -> None:
            try:
                # The offsets name the rows: the same text, the same batch.
                offsets = (checkpoint / "offsets" / str(stream_batch)).read_text(encoding="utf-8").splitlines()[2:]
                source = {"query_id": str(query.id), "stream_batch": stream_batch, "offsets": offsets}
                spark_scoring.tune(frame.sparkSession, self.model, frame.schema)  # the stream's own session
                self.execute(frame, self._planned(scoring, source))
            except BaseException as error:
                failures.append(error)
                logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it shows what goes through it, and this is told in one line
                # Spark looks through its text with a regular expression, and for that of a Java error its stack is too small.
                raise RuntimeError("a batch failed") from None

        stream = self.reader.new_rows(self.agreement.schema, max_batch_gib)
        with one_line(self.reader.table.shown, "check the input"):
            writer = (
                stream.writeStream.foreachBatch(on_rows).option("checkpointLocation", spark_path(checkpoint)).trigger(availableNow=True)
            )
            query = writer.start()
        try:
            while not query.awaitTermination(POLL_S):
                pass
        except StreamingQueryException as error:
            if failures:
                raise failures[0] from None
            raise self._stream_error(error) from error
        except BaseException:
            once_more(query.stop)
            raise
        if failures:
            raise failures[0]

    def run_all_rows(self, scoring: Scoring) -> None:
        """Score a table that has no stream as one batch, which replaces the output."""
        self.execute(self.reader.all_rows(), self._new_plan(scoring, {"read": self.reader.table.shown}, overwrite=True))

    def run_window(self, scoring: Scoring, window: tuple[str, str, str], source: Mapping[str, Any] | None) -> None:
        """Score a span of time as one batch, which replaces that span in the output.

        Rows that no batch has had yet are left to the batch that will: they would be scored twice.

        Args:
            source: what batches have had, as `Reader.rows_of` takes it; None for what the checkpoint says.
        """
        source = source or self.reader.snapshot(self.state.checkpoint(scoring.generation))
        self.execute(self._window_rows(source, window), self._new_plan(scoring, source, overwrite=False, window=window))

    def finish_window(self, scoring: Scoring) -> None:
        """The rest of a window that was broken off. It comes before whatever else a run does: only the last plan can be unfinished.

        One that cannot be scored is given up, if nothing of it is written: it must not stand in the way of what is new.
        """
        last = self.state.unfinished_window(scoring)
        if last is None or last.window is None:
            return
        try:
            self.execute(self._window_rows(last.source, last.window), last)
        except UserError as error:
            if is_begun(self.agreement, last):
                raise
            _logger.warning("the window %s to %s, which was broken off, is given up: %s", *last.window[1:], error)

    def _window_rows(self, source: Mapping[str, Any], window: tuple[str, str, str]) -> DataFrame:
        frame = self.reader.rows_of(source)
        return frame.where(window_condition(window, frame.schema))

    def _planned(self, scoring: Scoring, source: Mapping[str, Any]) -> Plan:
        """The plan of this batch: the last one, where it is called again."""
        last = self.state.last_plan()
        same = last is not None and last.generation == scoring.generation.id and last.source == source
        if last is not None and same:
            return last
        overwrite = source["stream_batch"] == 0 and scoring.generation.kind == "full"
        return self._new_plan(scoring, source, overwrite=overwrite)

    def _new_plan(
        self,
        scoring: Scoring,
        source: Mapping[str, Any],
        *,
        overwrite: bool,
        window: tuple[str, str, str] | None = None,
    ) -> Plan:
        taken = [*self.state.plan_numbers()[-1:], *(sink.last_batch() for sink in (self.agreement.scores, self.agreement.quarantine))]
        plan = Plan(
            batch_id=max((number for number in taken if number is not None), default=-1) + 1,
            generation=scoring.generation.id,
            source=source,
            model=self.model.name,
            version=self.model.version,
            scored_at_utc=datetime.datetime.now(datetime.UTC),
            overwrite=overwrite,
            window=window,
            extra={"run_id": self.run_id},
        )
        if source.get("query_id", scoring.query_id) != scoring.query_id:  # see `check_checkpoint`: it is the first, or that of no plan
            self.state.write(dataclasses.replace(scoring, query_id=source["query_id"]))
        self.state.write_plan(plan)
        return plan

    def execute(self, frame: DataFrame, plan: Plan) -> None:
        """Check, score and write one batch, and whatever of it is not written yet.

        Raises:
            ScoringError: too many bad rows: nothing of the batch is written; what `Sink.write` raises.
            DataError: Spark cannot read or write.
        """
        model = (
            self.model if (plan.model, plan.version) == (self.model.name, self.model.version) else self.model_of(plan.model, plan.version)
        )
        crashed = self.state.folder / "plans" / f"{plan.batch_id:09d}.crashed"
        if not crashed.exists():
            try:
                self._execute(frame, plan, model, guarded=False)
                return
            except Exception as error:
                if not _is_crash(error):
                    raise
                # Kept, for a batch that is called again must find the same bad rows.
                write_json(crashed, {"reason": str(error)[:500]})
                _logger.warning(
                    "a Python worker was ended by native code: batch %d is scored again, row by row where it must", plan.batch_id
                )
        self._execute(frame, plan, model, guarded=True)

    def _execute(self, frame: DataFrame, plan: Plan, model: ScoringModel, *, guarded: bool) -> None:
        rules, location, inputs = self.agreement.rules, self.reader.table.shown, self.agreement.inputs
        frame = spark_scoring.in_larger_tasks(frame)
        names = spark_scoring.column_names(frame, model)
        features = [Feature(name, feature.categories) for name, feature in zip(names, model.features, strict=True)]
        for name, kind in self.agreement.casts.items():
            frame = frame.withColumn(name, spark_rows.column(name).cast(kind))
        frame = spark_rows.with_duplicates(frame, rules)
        kept: DataFrame | None = None
        if guarded:
            why = spark_rows.reason(frame, features, rules)
            kept = spark_scoring.with_prediction(_good(frame, why), model, explain=rules.explain, guarded=True)
            kept = (kept if why is None else kept.unionByName(frame.where(why.isNotNull()), allowMissingColumns=True)).persist(
                StorageLevel.DISK_ONLY
            )
            frame = kept
        try:
            why = spark_rows.reason(frame, features, rules)
            counts = spark_rows.count(frame, why, features, rules, location)
            counts.check()
            self._check_share(counts)
            replaces = (plan.overwrite or plan.window is not None) and self.agreement.scores.columns() is not None
            if counts.num_input_rows or replaces:
                stamp = Stamp.of(model, str(plan.extra["run_id"]), plan.batch_id, plan.scored_at_utc)
                good = _good(frame, why)
                predicted = good if guarded else spark_scoring.with_prediction(good, model, explain=rules.explain)
                self._write(
                    self.agreement.scores, spark_rows.scored_columns(predicted, model, rules, stamp, inputs), plan, "scores", counts, model
                )
                if counts.num_quarantined_rows:
                    assert why is not None
                    bad = spark_rows.quarantine_columns(frame, why, rules, stamp, inputs)
                    self._write(self.agreement.quarantine, bad, plan, "quarantine", counts, model)
            self.on_batch(plan, model, counts)
            self.state.finish(plan, counts)
        finally:
            if kept is not None:
                kept.unpersist()

    def _write(
        self, sink: DeltaSink | ParquetSink, frame: DataFrame, plan: Plan, part: str, counts: BatchCounts, model: ScoringModel
    ) -> None:
        self.check_lease()
        facts = {
            "model": str(model),
            "sha256": model.sha256,
            "num_input_rows": counts.num_input_rows,
            "num_scored_rows": counts.num_scored_rows,
            "num_quarantined_rows": counts.num_quarantined_rows,
        }
        if part == "quarantine":  # never replaced: what was bad then, was bad then
            plan = dataclasses.replace(plan, overwrite=False, window=None)
        elif self.agreement.widened and isinstance(sink, DeltaSink):
            sink.widen(self.agreement.widened)
        num_rows = counts.num_scored_rows if part == "scores" else counts.num_quarantined_rows
        sink.write(frame, plan, app_id(plan, part), num_rows, facts)

    def _check_share(self, counts: BatchCounts) -> None:
        if counts.num_quarantined_rows and counts.bad_share > self.agreement.rules.max_bad_share:
            reasons = ", ".join(f"{number:,} {why}" for why, number in sorted(counts.reasons.items(), key=lambda item: -item[1])[:5])
            raise ScoringError(
                f"at most {self.agreement.rules.max_bad_share:.3g} of a batch's rows may be bad (--max-bad-share)",
                got=f"{counts.num_quarantined_rows:,} of {counts.num_input_rows:,}: {reasons}",
                next_step="nothing of the batch was written: raise the limit, or mend the input and score it anew with --mode full",
            )

    def _stream_error(self, error: StreamingQueryException) -> UserError:
        text = str(error)
        if any(name in text for name in _CHANGED):
            return ScoringError(
                "input: rows of a Delta table that is scored incrementally must not be updated or deleted",
                got=f"a commit in {self.reader.table.shown} that does",
                next_step="--skip-change-commits leaves such commits out whole (old scores stay); or --mode full",
            )
        try:
            with one_line(self.reader.table.shown, "check the input"):
                raise error
        except UserError as mapped:
            return mapped


def is_begun(agreement: Agreement, plan: Plan) -> bool:
    """Whether anything of a batch is written: its scores come first."""
    return agreement.scores.is_written(plan, app_id(plan, "scores"))


def app_id(plan: Plan, part: str) -> str:
    """Of a batch's transaction in a Delta table. `part`: `scores` or `quarantine`."""
    return f"toolkit-{plan.source.get('query_id', plan.generation)}-{part}"


def _is_crash(error: BaseException) -> bool:
    """Whether a Python worker was ended by a signal."""
    texts = f"{error}\n{java_stack(error)}"
    return any(text in texts for text in _CRASHES) or (error.__cause__ is not None and _is_crash(error.__cause__))


def _good(frame: DataFrame, why: Any) -> DataFrame:
    return frame if why is None else frame.where(why.isNull())
