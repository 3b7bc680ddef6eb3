"""Engine `files`: Spark only hands out lists of Parquet files. Each task reads, checks, predicts and writes some (`files_tasks`), and the
driver commits a batch once, its quarantine first.

A batch is planned before anything of it is written, and a plan whose batch was not recorded is executed again: the same rows with the same
model. What a killed attempt left behind has a name of its own and is removed after the batch is committed, when no other attempt can be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import re
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import BatchCounts, RowRules, ScoringModel, Stamp
from toolkit.core.table_names import TableName, spark_path
from toolkit.engines import files_tasks
from toolkit.engines.files_columns import Schemas
from toolkit.engines.files_tables import Output, Rows, divide, eligible, input_of, output_of
from toolkit.engines.files_tasks import Done, Job, Piece, job_of
from toolkit.engines.files_writer import WrittenFile
from toolkit.engines.score_state import RESTORE, Plan, ScoreState, Scoring, write_json
from toolkit.engines.spark_session import is_classic
from toolkit.engines.spark_tables import one_line

_CRASHES = ("Python worker exited unexpectedly (crashed)", "PYTHON_WORKER_EXITED", "Python worker process terminated")

_logger = logging.getLogger("toolkit")


def score_files(
    session: Any,
    source: TableName,
    output: TableName,
    quarantine: TableName,
    model_of: Callable[[str, int], ScoringModel],
    model: ScoringModel,
    rules: RowRules,
    state: ScoreState,
    scoring: Scoring,
    *,
    run_id: str,
    overwrite: bool,
    check_lease: Callable[[], None],
    on_batch: Callable[[Plan, BatchCounts], None],
    progress: Callable[[str], None],
    skip_change_commits: bool = False,
) -> list[tuple[Plan, BatchCounts]]:
    """Score what no batch of this generation had: first the last batch, if it was not finished, then all that is new, as one batch.

    Args:
        quarantine: of the output's kind; made when the first bad row is found.
        model_of: fetches a pinned version.
        model: portable; of batches that are not planned yet.
        scoring: its generation decides what was scored before.
        overwrite: the generation's first batch reads all of the input and replaces the output. The quarantine stays.
        check_lease: raises where the output is no longer ours.
        on_batch: told after everything of a batch is written; once more where a kill came in between.
        progress: told what is done now, in a few words.

    Raises:
        ScoringError: the tables are not `eligible`, or break a rule; too many bad rows, and nothing of the batch is committed;
            another run has written meanwhile.
    """
    reason = eligible(source, output) or eligible(source, quarantine)
    if not is_classic(session):
        reason = "Spark Connect reaches no files of this machine"
    if model.kind != "portable":
        reason = f"{model} has no toolkit_model/spec.json"
    if reason:
        raise ScoringError("--engine files must fit the tables", got=reason, next_step="use --engine spark")
    files = _Files(session, source, output, quarantine, rules, state, check_lease, progress, skip_change_commits)
    done: list[tuple[Plan, BatchCounts]] = []

    def execute(plan: Plan, pinned: ScoringModel) -> None:
        counts = files.execute(plan, pinned)
        on_batch(plan, counts)
        write_json(files.mark(plan, "recorded"), dataclasses.asdict(counts))
        done.append((plan, counts))

    past = _past(state, scoring)
    anew = overwrite and not past
    if past and not files.mark(past[-1], "recorded").exists():
        last = past[-1]
        execute(last, model if (last.model, last.version) == (model.name, model.version) else model_of(last.model, last.version))
    news = files.news(past, model, anew=anew)
    if news is not None:
        plan = Plan(
            batch_id=news[0],
            generation=scoring.generation.id,
            source=news[1],
            model=model.name,
            version=model.version,
            scored_at_utc=datetime.datetime.now(datetime.UTC),
            overwrite=anew,
            extra={"engine": "files", "run_id": run_id},
        )
        check_lease()
        state.write_plan(plan)
        execute(plan, model)
    return done


def _past(state: ScoreState, scoring: Scoring) -> list[Plan]:
    """The plans of this generation by this engine, by number."""
    return [plan for plan in state.plans_of(scoring.generation) if plan.extra.get("engine") == "files"]


class _Files:
    """Batches of one input for one output."""

    def __init__(
        self,
        session: Any,
        source: TableName,
        output: TableName,
        quarantine: TableName,
        rules: RowRules,
        state: ScoreState,
        check_lease: Callable[[], None],
        progress: Callable[[str], None],
        skip_change_commits: bool,
    ) -> None:
        self._session, self._source, self._output, self._quarantine, self._rules = session, source, output, quarantine, rules
        self._state, self._check_lease, self._progress = state, check_lease, progress
        self._input = input_of(source, skip_change_commits=skip_change_commits)

    def news(self, past: Sequence[Plan], model: ScoringModel, *, anew: bool) -> tuple[int, Mapping[str, Any]] | None:
        """Number and source of the next batch, all of whose files fit: what is planned is planned for good.

        Raises:
            ScoringError: a file is none of Parquet, or lacks a column.
        """
        output, quarantine = output_of(self._output), output_of(self._quarantine)
        source = self._input.news(past, output, quarantine, anew=anew)
        if source is None:
            return None
        self._schemas(self._input.rows(source), model, output, quarantine, overwrite=anew)
        taken = [*self._state.plan_numbers()[-1:], *(each.last_batch for each in (output, quarantine) if each.last_batch is not None)]
        return max(taken, default=-1) + 1, source

    def mark(self, plan: Plan, word: str) -> Path:
        """A file beside the plan."""
        return self._state.folder / "plans" / f"{plan.batch_id:09d}.{word}"

    def execute(self, plan: Plan, model: ScoringModel) -> BatchCounts:
        """Score and write a batch, or what of it is not written yet."""
        # Opened before anything is read: a commit fails where another run's came after this moment.
        output, quarantine = output_of(self._output), output_of(self._quarantine)
        if output.last_batch is not None and output.last_batch >= plan.batch_id:
            counts = output.counts(plan.batch_id)
            if counts is None:
                raise ScoringError(
                    "the log must have every batch", got=f"no batch {plan.batch_id} in {self._output.shown}", next_step=RESTORE
                )
            return counts
        self._progress(f"batch {plan.batch_id}: reading the file list")
        rows = self._input.rows(plan.source)
        schema = self._schemas(rows, model, output, quarantine, overwrite=plan.overwrite)
        attempt = f"{_batch_name(plan)}-{uuid.uuid4().hex[:12]}"
        folders = {"scores_folder": output.files_folder(plan.batch_id), "quarantine_folder": quarantine.files_folder(plan.batch_id)}
        job = job_of(
            model, self._rules, Stamp.of(model, str(plan.extra["run_id"]), plan.batch_id, plan.scored_at_utc), schema.columns,
            scores=schema.scores, quarantine=schema.quarantine, prefix=attempt, guarded=self.mark(plan, "crashed").exists(),
            duplicated=self._duplicated_keys(rows, schema.columns), **{name: str(folder) for name, folder in folders.items()},
        )  # fmt: skip
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        try:
            done = self._run(job, plan, rows, model)
            counts = _counts(done)
            self._check_share(counts)
        except BaseException:
            for folder in folders.values():
                _remove(folder, attempt)
            raise
        # From here on a log may name this attempt's files, whatever an exception says: they stay.
        self._commit(plan, model, job, done, counts, output, quarantine)
        return counts

    def _schemas(self, rows: Rows, model: ScoringModel, output: Output, quarantine: Output, *, overwrite: bool) -> Schemas:
        is_delta = self._output.kind == "delta"
        return Schemas.of(
            rows.columns, model, self._rules, location=self._source.shown, there=output.columns if is_delta or not overwrite else None,
            there_quarantined=quarantine.columns, with_batch_id=is_delta,
        )  # fmt: skip

    def _run(self, job: Job, plan: Plan, rows: Rows, model: ScoringModel) -> list[Done]:
        tasks = divide(rows.files, self._session.sparkContext.defaultParallelism)
        self._progress(f"batch {plan.batch_id}: scoring {len(rows.files)} files in {len(tasks)} tasks")
        try:
            done = self._run_tasks(job, tasks, model.payload)
        except Exception as error:  # py4j's and pyspark's have no common base
            if job.guarded or not any(text in str(error) for text in _CRASHES):
                with one_line(self._source.shown, "check the input, and that the output can be written to"):
                    raise
            # Kept, for a batch that is executed again must find the same bad rows.
            write_json(self.mark(plan, "crashed"), {"reason": str(error)[:500]})
            _logger.warning("a Python worker was ended by native code: batch %d is scored again, row by row where it must", plan.batch_id)
            return self._run(dataclasses.replace(job, guarded=True, prefix=f"{job.prefix}-guarded"), plan, rows, model)
        problem = next((each.problem for each in done if each.problem), "")
        if problem:
            raise ScoringError(problem)
        return done

    def _run_tasks(self, job: Job, tasks: Sequence[Sequence[Piece]], payload: bytes) -> list[Done]:
        if not tasks:
            return []
        context = self._session.sparkContext
        shared, tag = context.broadcast((job, payload)), f"toolkit-{uuid.uuid4().hex}"

        def run(numbered: tuple[int, Sequence[Piece]]) -> Done:
            number, pieces = numbered
            return files_tasks.run(shared.value[0], number, pieces, lambda: shared.value[1])

        context.addJobTag(tag)
        try:
            found: list[Done] = context.parallelize(list(enumerate(tasks)), len(tasks)).map(run).collect()
            return found
        except BaseException:
            context.cancelJobsWithTag(tag)
            raise
        finally:
            context.removeJobTag(tag)
            shared.destroy()

    def _duplicated_keys(self, rows: Rows, columns: pa.Schema) -> pa.Array | None:
        """The keys that the batch has more than once; None where they do not matter.

        Raises:
            ScoringError: there are some, and they were to be refused.
        """
        key, rules = self._rules.key, self._rules
        if key is None or rules.duplicates == "keep" or not rows.files:
            return None
        self._progress(f"looking for copies of {key!r}")
        if any(key in file.piece.values for file in rows.files):
            raise ScoringError("the key must not be a column of partitions", got=repr(key), next_step="use --engine spark")
        schema = from_arrow_schema(pa.schema([columns.field(key)]))
        with one_line(self._source.shown, "check the input"):
            paths = [re.sub(r"([\\{}\[\]*?])", r"\\\1", f"file://{file.piece.path}") for file in rows.files]
            frame = self._session.read.schema(schema).parquet(*paths).withColumnRenamed(key, "key")
            copies = frame.where("key IS NOT NULL").groupBy("key").agg(F.count(F.lit(1)).alias("copies")).where("copies > 1").toArrow()
        if rules.duplicates == "refuse" and copies.num_rows:
            raise ScoringError(
                f"input: the key {key!r} must be unique within a batch",
                got=f"{pc.sum(copies['copies']).as_py():,} rows with a key that another row has",
                next_step="drop the copies, or choose --duplicates quarantine or keep",
            )
        return copies["key"].combine_chunks().cast(columns.field(key).type)

    def _check_share(self, counts: BatchCounts) -> None:
        if counts.num_quarantined_rows and counts.bad_share > self._rules.max_bad_share:
            reasons = ", ".join(f"{number:,} {why}" for why, number in sorted(counts.reasons.items(), key=lambda item: -item[1])[:5])
            raise ScoringError(
                f"at most {self._rules.max_bad_share:.3g} of a batch's rows may be bad (--max-bad-share)",
                got=f"{counts.num_quarantined_rows:,} of {counts.num_input_rows:,}: {reasons}",
                next_step="nothing of the batch was written: raise the limit, or mend the input and score it anew with --mode full",
            )

    def _commit(
        self, plan: Plan, model: ScoringModel, job: Job, done: Sequence[Done], counts: BatchCounts, output: Output, quarantine: Output
    ) -> None:
        progress = self._input.progress(plan.source)
        facts = {
            "generation": plan.generation,
            "source": dict(plan.source),
            "model": model.name,
            "version": model.version,
            "sha256": model.sha256,
            "counts": dataclasses.asdict(counts),
        }
        self._progress(f"batch {plan.batch_id}: committing")
        good = [each.scores for each in done if each.scores is not None]
        bad = [each.quarantine for each in done if each.quarantine is not None]
        self._check_there(plan, Path(job.scores_folder), good)
        self._check_there(plan, Path(job.quarantine_folder), bad)
        is_quarantined = _is_quarantined(plan, quarantine, progress)
        if bad and not is_quarantined:
            self._check_lease()
            quarantine.commit(plan.batch_id, bad, job.quarantine, overwrite=False, progress=progress, facts=facts)
        self._check_lease()
        output.commit(plan.batch_id, good, job.scores, overwrite=plan.overwrite, progress=progress, facts=facts)
        # The batch is this attempt's: no other can be committed. But the quarantine may be an earlier one's.
        batch = _batch_name(plan)
        _remove(Path(job.scores_folder), batch, [file.name for file in good])
        if is_quarantined:
            _remove(Path(job.quarantine_folder), job.prefix)
        else:
            _remove(Path(job.quarantine_folder), batch, [file.name for file in bad])

    def _check_there(self, plan: Plan, folder: Path, files: Sequence[WrittenFile]) -> None:
        for file in files:
            path = folder / file.name
            if path.is_file() and path.stat().st_size == file.num_bytes:
                continue
            last = output_of(self._output).last_batch
            if last is not None and last >= plan.batch_id:
                raise ScoringError(
                    "one run at a time must write to an output", got=f"batch {last} of another run in {self._output.shown}",
                    next_step="run it again: it goes on after that one's batch",
                )  # fmt: skip
            raise ScoringError(
                "--engine files: input and output on a disk that all machines share",
                got=f"no {path}, which a task has written, on the driver's",
                next_step="use a Volume or a mounted disk, or --engine spark",
            )


def _is_quarantined(plan: Plan, quarantine: Output, progress: tuple[str, int] | None) -> bool:
    """By an attempt at this batch; also one whose plan is lost, by the input's version."""
    if quarantine.last_batch is not None and quarantine.last_batch >= plan.batch_id:
        return True
    if progress is None or plan.overwrite:
        return False
    done = quarantine.progress(progress[0])
    return done is not None and done >= progress[1]


def _counts(done: Sequence[Done]) -> BatchCounts:
    reasons, unseen = Counter[str](), Counter[str]()
    for each in done:
        reasons.update(each.reasons)
        unseen.update(each.unseen)
    counts = BatchCounts(
        num_input_rows=sum(each.num_input_rows for each in done),
        num_scored_rows=sum(each.scores.num_rows for each in done if each.scores is not None),
        num_quarantined_rows=sum(each.quarantine.num_rows for each in done if each.quarantine is not None),
        reasons=dict(reasons),
        unseen=dict(unseen),
    )
    counts.check()
    assert sum(reasons.values()) == counts.num_quarantined_rows, "every bad row has a reason"
    return counts


def _batch_name(plan: Plan) -> str:
    """What the names of all files of a batch begin with. A generation's numbers are never used again."""
    return f"batch-{plan.generation[:8]}-{plan.batch_id:09d}"


def _remove(folder: Path, prefix: str, keep: Collection[str] = ()) -> None:
    for pattern in (f"{prefix}-*", f".{prefix}-*"):
        for path in folder.glob(pattern):
            if path.name not in keep:
                path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there are others in it
        folder.rmdir()


def read_by_files(state: ScoreState, scoring: Scoring, source: TableName) -> dict[str, Any] | None:
    """What this generation's batches have had, as `spark_score_tables.Reader.rows_of` takes it; None before the first."""
    past = _past(state, scoring)
    if not past:
        return None
    if past[-1].source["kind"] == "delta":
        return {"version": past[-1].source["version"]}
    assert source.path is not None
    return {"files": [spark_path(source.path / name if name else source.path) for plan in past for name in plan.source["files"]]}
