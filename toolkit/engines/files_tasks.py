"""One task of a scoring by files: some of a batch's Parquet files in, a file of scores and, where rows are bad, one of the quarantine out.

Runs on executors and knows nothing of Spark. Files appear whole: a task that is repeated, or runs twice at once, writes the same rows
under the same name. Shapes: n rows of an Arrow batch, k classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import (
    EXPLANATION,
    LABEL,
    NATIVE_CRASH,
    PREDICTION,
    QUARANTINED_AT,
    RAW_ROW,
    REASON,
    SCORED_AT,
    Feature,
    RowRules,
    ScoringModel,
    Stamp,
)
from toolkit.engines.files_columns import STAMP_FIELDS
from toolkit.engines.files_rows import check_rows, raw_row
from toolkit.engines.files_writer import FileWriter, WrittenFile
from toolkit.engines.scorer import EXPLANATION_TYPE, Scorer, Scores, explanation_array, scorer_of, scorer_spec

BATCH_ROWS = 32_768
BATCH_BYTES = 32 * 2**20
"""Of a wide table fewer rows are read at once; a value counts as 8 bytes."""


@dataclass(frozen=True)
class Piece:
    """A file, or of its row groups every `num_parts`th. `values`: of the columns that the file's folder stands for, as text."""

    path: str
    part: int = 0
    num_parts: int = 1
    values: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What all tasks of a batch have in common.

    Attributes:
        columns: of the input, all of them: what is read is converted to these types, and null where a file lacks it.
        scores, quarantine: what is written; without `batch_id` where a folder says it.
        scores_folder, quarantine_folder: they are there.
        prefix: of the names of files; of this attempt alone.
        model: as `scorer_of` wants it, with `classes` and `threshold`.
        duplicated: the keys that the batch has more than once; None where nobody looked.
        guarded: rows that crash the model's library are looked for.
    """

    columns: pa.Schema
    scores: pa.Schema
    quarantine: pa.Schema
    scores_folder: str
    quarantine_folder: str
    prefix: str
    model_sha256: str
    spec: Mapping[str, Any]
    features: tuple[Feature, ...]
    classes: tuple[Any, ...] | None
    threshold: float | None
    rules: RowRules
    stamp: Stamp
    duplicated: pa.Array | None = None
    guarded: bool = False


@dataclass(frozen=True)
class Done:
    """Of one task. `problem`: why it could not be done, which a repetition would not change; then nothing else."""

    scores: WrittenFile | None = None
    quarantine: WrittenFile | None = None
    num_input_rows: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    unseen: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""


# ---- a task


def run(job: Job, number: int, pieces: Sequence[Piece], payload_of: Callable[[], bytes]) -> Done:
    """Task `number` of a job; see `Done` for what it may find."""
    try:
        scorer = scorer_of(job.model_sha256, payload_of, job.spec)
        return _Task(job, number, scorer).run(pieces)
    except ScoringError as error:
        return Done(problem=str(error))
    except FileNotFoundError as error:
        return Done(
            problem=f"a file of the batch must be there, got no {error.filename or error}; restore it, or score all anew with --mode full"
        )
    except pa.ArrowInvalid as error:
        return Done(
            problem=f"the input's files must be Parquet that fits the table, got {error}; see pieces {pieces[0].path} and following"
        )


class _Task:
    def __init__(self, job: Job, number: int, scorer: Scorer) -> None:
        self.job, self.scorer = job, scorer
        self.num_input_rows = 0
        self.reasons, self.unseen = Counter[str](), Counter[str]()
        self.scores = FileWriter(job.scores, Path(job.scores_folder), f"{job.prefix}-{number:05d}.snappy.parquet", [job.rules.key or ""])
        self.bad = FileWriter(job.quarantine, Path(job.quarantine_folder), f"{job.prefix}-{number:05d}.snappy.parquet")
        self.stamp = _stamp_columns(job.stamp, BATCH_ROWS, SCORED_AT)
        needed = {*job.scores.names, *(feature.name for feature in job.features), *([job.rules.key] if job.rules.key else [])}
        self.needed = [name for name in job.columns.names if name in needed]

    def run(self, pieces: Sequence[Piece]) -> Done:
        try:
            for piece in pieces:
                self._score(piece)
            return Done(self.scores.close(), self.bad.close(), self.num_input_rows, dict(self.reasons), dict(self.unseen))
        finally:
            self.scores.abandon()
            self.bad.abandon()
            pa.default_memory_pool().release_unused()  # the worker lives on, and Arrow would keep it for the next task

    def _score(self, piece: Piece) -> None:
        with pq.ParquetFile(piece.path, coerce_int96_timestamp_unit="us") as file:
            for group in range(piece.part, file.num_row_groups, piece.num_parts):
                begin = 0
                for batch in _batches(file, group, self.job.columns, self.needed, piece.values):
                    rows, reasons = self._score_batch(batch)
                    if len(rows):
                        self._quarantine(_rows(file, group, self.job.columns, piece.values, rows + begin), reasons)
                    begin += batch.num_rows

    def _score_batch(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Places and reasons of bad rows; the others are written."""
        job = self.job
        self.num_input_rows += batch.num_rows
        columns, found = check_rows(batch, job.features, job.rules.key, job.duplicated)
        if found is not None:
            good = np.array([each is None for each in found])
            keep = pa.array(good)
            batch, columns = batch.filter(keep), [_filtered(column, good, keep) for column in columns]
        scores = self.scorer.score(columns, explain=job.rules.explain, guarded=job.guarded)
        if scores.crashed is not None and scores.crashed.any():
            alive = ~scores.crashed
            if found is None:
                found = np.full(batch.num_rows, None, dtype=object)
            found[np.flatnonzero([each is None for each in found])[scores.crashed]] = NATIVE_CRASH
            batch, columns = batch.filter(pa.array(alive)), [_filtered(column, alive, pa.array(alive)) for column in columns]
            scores = _taken(scores, alive)
        self.unseen.update(self.scorer.unseen(columns))
        if batch.num_rows:
            self.scores.write(self._output(batch, scores))
        if found is None:
            return np.empty(0, dtype=np.int64), []
        rows = np.flatnonzero([each is not None for each in found])
        reasons = [str(found[row]) for row in rows]
        self.reasons.update(reasons)
        return rows, reasons

    def _output(self, batch: pa.RecordBatch, scores: Scores) -> pa.RecordBatch:
        job, num_rows = self.job, batch.num_rows
        prediction = scores.prediction.astype(np.float64)
        added: dict[str, Any] = {name: column.slice(0, num_rows) for name, column in self.stamp.items()}
        if prediction.ndim == 2:
            likeliest = prediction.argmax(axis=1)
            if job.rules.multiclass == "argmax":
                added[PREDICTION] = pa.array(prediction[np.arange(num_rows), likeliest])
            else:
                offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * prediction.shape[1])
                added[PREDICTION] = pa.ListArray.from_arrays(offsets, pa.array(prediction.ravel()))
        else:
            added[PREDICTION] = pa.array(prediction)
            likeliest = (prediction > job.threshold).astype(np.int64) if job.threshold is not None else np.zeros(num_rows, dtype=np.int64)
        if LABEL in job.scores.names:
            assert job.classes is not None
            type_ = job.scores.field(LABEL).type
            values = pa.array([str(each) for each in job.classes] if type_ == pa.string() else list(job.classes), type_)
            labels = pa.DictionaryArray.from_arrays(pa.array(likeliest, pa.int32()), values)
            added[LABEL] = labels if type_ == pa.string() else labels.dictionary_decode()
        if EXPLANATION in job.scores.names:
            added[EXPLANATION] = explanation_array(scores, self.scorer.feature_names).cast(EXPLANATION_TYPE)
        return pa.RecordBatch.from_arrays(
            [added[name] if name in added else batch.column(name) for name in job.scores.names], names=job.scores.names
        )

    def _quarantine(self, rows: pa.Table, reasons: Sequence[str]) -> None:
        job = self.job
        columns: dict[str, Any] = {
            **_stamp_columns(job.stamp, len(reasons), QUARANTINED_AT),
            REASON: pa.array(reasons, pa.string()),
            RAW_ROW: pa.array([raw_row(row) for row in rows.to_pylist()], pa.string()),
        }
        if job.rules.key is not None:
            columns[job.rules.key] = rows.column(job.rules.key).combine_chunks()
        self.bad.write(pa.RecordBatch.from_arrays([columns[name] for name in job.quarantine.names], names=job.quarantine.names))


# ---- reading


def _batches(
    file: pq.ParquetFile, group: int, columns: pa.Schema, names: Sequence[str], values: Mapping[str, str | None]
) -> Iterator[pa.RecordBatch]:
    """Of one row group: the columns `names`, of the types of `columns`."""
    there = set(file.schema_arrow.names)
    num_rows = max(1024, min(BATCH_ROWS, BATCH_BYTES // (8 * max(len(names), 1))))
    for batch in file.iter_batches(num_rows, [group], [name for name in names if name in there], use_threads=False):
        yield pa.RecordBatch.from_arrays(
            [_column(batch, name, columns.field(name).type, values) for name in names],
            schema=pa.schema([pa.field(name, columns.field(name).type) for name in names]),
        )


def _column(batch: pa.RecordBatch, name: str, type_: pa.DataType, values: Mapping[str, str | None]) -> pa.Array:
    place = batch.schema.get_field_index(name)
    if place >= 0:
        found = batch.column(place)
        return found if found.type == type_ else found.cast(type_)
    return pa.repeat(pa.scalar(values.get(name), pa.string()).cast(type_), batch.num_rows)


def _rows(file: pq.ParquetFile, group: int, columns: pa.Schema, values: Mapping[str, str | None], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Some rows of a row group, with all columns."""
    found, begin = [], 0
    for batch in _batches(file, group, columns, columns.names, values):
        inside = rows[(rows >= begin) & (rows < begin + batch.num_rows)] - begin
        found += [batch.take(pa.array(inside))] if len(inside) else []
        begin += batch.num_rows
    return pa.Table.from_batches(found)


def _filtered(column: Any, mask: npt.NDArray[np.bool_], same: pa.Array) -> Any:
    return column[mask] if isinstance(column, np.ndarray) else column.filter(same)


def _taken(scores: Scores, mask: npt.NDArray[np.bool_]) -> Scores:
    top, contributions = scores.top_features, scores.contributions
    return Scores(scores.prediction[mask], None if top is None else top[mask], None if contributions is None else contributions[mask])


def _stamp_columns(stamp: Stamp, num_rows: int, moment: str) -> dict[str, pa.Array]:
    """By name; texts as dictionaries, which are written as they are."""
    values = (stamp.model_name, stamp.model_version, stamp.model_sha256, stamp.scoring_run_id, stamp.batch_id, stamp.scored_at_utc)
    zeros = pa.array(np.zeros(num_rows, dtype=np.int32))
    found: dict[str, pa.Array] = {}
    for each, value in zip(STAMP_FIELDS, values, strict=True):
        name = moment if each.name == SCORED_AT else each.name
        is_text = each.type == pa.string()
        found[name] = (
            pa.DictionaryArray.from_arrays(zeros, pa.array([value], each.type))
            if is_text
            else pa.repeat(pa.scalar(value, each.type), num_rows)
        )
    return found


def job_of(model: ScoringModel, rules: RowRules, stamp: Stamp, columns: pa.Schema, **rest: Any) -> Job:
    """A job for a portable model."""
    assert model.spec is not None
    return Job(
        columns=columns, model_sha256=model.sha256, spec=scorer_spec(model.spec), features=model.features, classes=model.classes,
        threshold=model.threshold, rules=rules, stamp=stamp, **rest,
    )  # fmt: skip
