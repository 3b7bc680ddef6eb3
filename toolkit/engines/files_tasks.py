"""One task of a scoring by files: some of a batch's Parquet files in, a file of scores and, where rows are bad, one of the quarantine out.

Runs on executors and knows nothing of Spark. Files appear whole, by a rename: a task that is repeated, or runs twice at once, writes the same
rows under the same name. Shapes: n rows of an Arrow batch, k classes.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import (
    BATCH_ID,
    EXPLANATION,
    INFINITE,
    KEY_DUPLICATED,
    KEY_MISSING,
    LABEL,
    MODEL_NAME,
    MODEL_SHA256,
    MODEL_VERSION,
    NATIVE_CRASH,
    PREDICTION,
    QUARANTINED_AT,
    RAW_ROW,
    REASON,
    SCORED_AT,
    SCORING_RUN_ID,
    UNCASTABLE,
    Feature,
    RowRules,
    ScoringModel,
    Stamp,
)
from toolkit.engines.scorer import EXPLANATION_TYPE, Scorer, Scores, explanation_array, scorer_of, scorer_spec

BATCH_ROWS = 65_536
ROW_GROUP_BYTES = 64 * 2**20
"""Of memory, before compression."""

UTC_MICROSECONDS = pa.timestamp("us", "UTC")
STAMP_FIELDS = (
    pa.field(MODEL_NAME, pa.string()),
    pa.field(MODEL_VERSION, pa.int64()),
    pa.field(MODEL_SHA256, pa.string()),
    pa.field(SCORING_RUN_ID, pa.string()),
    pa.field(BATCH_ID, pa.int64()),
    pa.field(SCORED_AT, UTC_MICROSECONDS),
)

# What Spark's try_cast takes for a number; its words for the special ones, and Java's suffixes, are among them.
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?[df]?|nan|inf|infinity)", re.IGNORECASE | re.ASCII)


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
class WrittenFile:
    """`name`: in its folder; `stats`: as Delta's log has them, JSON."""

    name: str
    num_rows: int
    num_bytes: int
    stats: str


@dataclass(frozen=True)
class Done:
    """Of one task. `problem`: why it could not be done, which a repetition would not change; then nothing else."""

    scores: WrittenFile | None = None
    quarantine: WrittenFile | None = None
    num_input_rows: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    unseen: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""


# ---- schemas


def scores_schema(columns: pa.Schema, model: ScoringModel, rules: RowRules, *, with_batch_id: bool) -> pa.Schema:
    """Of the output: the input's columns, or those that are kept and the key, and what scoring adds; all nullable.

    Raises:
        ScoringError: a column of the input has a name that is to be added.
    """
    names = columns.names if rules.keep is None else [name for name in columns.names if name in rules.keep or name == rules.key]
    prediction = pa.list_(pa.float64()) if model.task == "multiclass" and rules.multiclass == "array" else pa.float64()
    added = [pa.field(PREDICTION, prediction)]
    if model.classes is not None:
        added.append(pa.field(LABEL, _type_of_classes(model.classes)))
    if rules.explain:
        added.append(pa.field(EXPLANATION, EXPLANATION_TYPE))
    added += _stamp_fields(with_batch_id)
    taken = {each.name.lower() for each in added} & {name.lower() for name in names}
    if taken:
        raise ScoringError(
            "input: no column may have a name that scoring adds", got=", ".join(sorted(map(repr, taken))),
            next_step="rename it, or leave it out by --keep",
        )  # fmt: skip
    return pa.schema([pa.field(name, columns.field(name).type) for name in names] + added)


def quarantine_schema(columns: pa.Schema, rules: RowRules, *, with_batch_id: bool) -> pa.Schema:
    key = [] if rules.key is None else [pa.field(rules.key, columns.field(rules.key).type)]
    stamp = [each.with_name(QUARANTINED_AT) if each.name == SCORED_AT else each for each in _stamp_fields(with_batch_id)]
    return pa.schema([pa.field(REASON, pa.string()), *key, pa.field(RAW_ROW, pa.string()), *stamp])


def _stamp_fields(with_batch_id: bool) -> list[pa.Field]:
    return [each for each in STAMP_FIELDS if with_batch_id or each.name != BATCH_ID]


def _type_of_classes(classes: Sequence[Any]) -> pa.DataType:
    kinds = {type(each) for each in classes}
    for type_, known in ((pa.bool_(), {bool}), (pa.int64(), {int}), (pa.float64(), {int, float})):
        if kinds <= known:
            return type_
    return pa.string()


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
        self.scores = _Writer(job.scores, Path(job.scores_folder), f"{job.prefix}-{number:05d}.snappy.parquet")
        self.bad = _Writer(job.quarantine, Path(job.quarantine_folder), f"{job.prefix}-{number:05d}.snappy.parquet")
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
        added: dict[str, Any] = _stamp_columns(job.stamp, num_rows)
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
            values = [str(each) for each in job.classes] if type_ == pa.string() else list(job.classes)
            added[LABEL] = pa.array(values, type_).take(pa.array(likeliest))
        if EXPLANATION in job.scores.names:
            added[EXPLANATION] = explanation_array(scores, self.scorer.feature_names).cast(EXPLANATION_TYPE)
        return pa.RecordBatch.from_arrays(
            [added[name] if name in added else batch.column(name) for name in job.scores.names], schema=job.scores
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
        self.bad.write(pa.RecordBatch.from_arrays([columns[name] for name in job.quarantine.names], schema=job.quarantine))


# ---- reading


def _batches(
    file: pq.ParquetFile, group: int, columns: pa.Schema, names: Sequence[str], values: Mapping[str, str | None]
) -> Iterator[pa.RecordBatch]:
    """Of one row group: the columns `names`, of the types of `columns`."""
    there = set(file.schema_arrow.names)
    for batch in file.iter_batches(BATCH_ROWS, [group], [name for name in names if name in there], use_threads=False):
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


# ---- rows


def check_rows(
    batch: pa.RecordBatch, features: Sequence[Feature], key: str | None, duplicated: pa.Array | None
) -> tuple[list[Any], npt.NDArray[np.object_] | None]:
    """The features as the scorer wants them, and of each row the first reason why it is bad, or None.

    Returns:
        columns (n,): numbers as NumPy arrays, categories as Arrow has them; reasons (n,), or None where all rows are good.
    """
    columns: list[Any] = []
    missing: list[tuple[npt.NDArray[np.bool_], str]] = []
    uncastable: list[tuple[npt.NDArray[np.bool_], str]] = []
    infinite: list[tuple[npt.NDArray[np.bool_], str]] = []
    repeated: list[tuple[npt.NDArray[np.bool_], str]] = []
    if key is not None:
        keys = batch.column(key)
        if keys.null_count:
            missing.append((keys.is_null().to_numpy(zero_copy_only=False), KEY_MISSING))
        if duplicated is not None and len(duplicated):
            repeated.append((pc.is_in(keys, value_set=duplicated).to_numpy(zero_copy_only=False), KEY_DUPLICATED))
    for feature in features:
        column = batch.column(feature.name)
        if feature.categories is not None:
            columns.append(column)
            continue
        numbers, wrong = as_numbers(column)
        columns.append(numbers)
        if wrong is not None:
            uncastable.append((wrong, f"{UNCASTABLE}: {feature.name}"))
        beyond = np.isinf(numbers)
        if beyond.any():
            infinite.append((beyond, f"{INFINITE}: {feature.name}"))
    reasons = None
    for mask, reason in (*missing, *uncastable, *infinite, *repeated):
        if mask.any():
            reasons = np.full(batch.num_rows, None, dtype=object) if reasons is None else reasons
            reasons[mask & np.equal(reasons, None)] = reason
    return columns, reasons


def as_numbers(column: pa.Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
    """(n,) float32, NaN where missing, infinite where beyond it; (n,) which are text that is no number, None where none is."""
    wrong = None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column, wrong = _parsed(column)
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        column = column.cast(pa.float64())
    with np.errstate(over="ignore"):
        return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False), wrong


def _parsed(column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_] | None]:
    """As Spark's try_cast: white space around a number counts for nothing."""
    distinct = pc.dictionary_encode(column)
    texts = [text.strip() for text in distinct.dictionary.to_pylist()]
    are_numbers = [bool(_NUMBER.fullmatch(text)) for text in texts]
    numbers = [float(text.rstrip("dDfF") if text[-1:] in "dDfF" and text[-2:].lower() != "nf" else text) if good else None
               for text, good in zip(texts, are_numbers, strict=True)]  # fmt: skip
    found = pa.array(numbers, pa.float64()).take(distinct.indices)
    if all(are_numbers):
        return found, None
    return found, pa.array([not good for good in are_numbers]).take(distinct.indices).fill_null(False).to_numpy(zero_copy_only=False)


def raw_row(row: Mapping[str, Any]) -> str:
    """As Spark's `to_json`: what JSON has no number for is text."""
    return json.dumps(_plain(row), default=_text, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def _filtered(column: Any, mask: npt.NDArray[np.bool_], same: pa.Array) -> Any:
    return column[mask] if isinstance(column, np.ndarray) else column.filter(same)


def _taken(scores: Scores, mask: npt.NDArray[np.bool_]) -> Scores:
    top, contributions = scores.top_features, scores.contributions
    return Scores(scores.prediction[mask], None if top is None else top[mask], None if contributions is None else contributions[mask])


def _stamp_columns(stamp: Stamp, num_rows: int, moment: str = SCORED_AT) -> dict[str, pa.Array]:
    values = (stamp.model_name, stamp.model_version, stamp.model_sha256, stamp.scoring_run_id, stamp.batch_id, stamp.scored_at_utc)
    found = {each.name: pa.repeat(pa.scalar(value, each.type), num_rows) for each, value in zip(STAMP_FIELDS, values, strict=True)}
    return {moment if name == SCORED_AT else name: column for name, column in found.items()}


# ---- writing


class _Writer:
    """A file that is there when it is closed; none where nothing was written."""

    def __init__(self, schema: pa.Schema, folder: Path, name: str) -> None:
        self._schema, self._folder, self._name = schema, folder, name
        self._scratch = folder / f".{name}.{uuid.uuid4().hex[:8]}"
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._with_nan: set[str] = set()
        self._floats = [each.name for each in schema if pa.types.is_floating(each.type)]

    def write(self, batch: pa.RecordBatch) -> None:
        for name in self._floats:
            if name not in self._with_nan and pc.any(pc.is_nan(batch.column(name))).as_py():
                self._with_nan.add(name)
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> WrittenFile | None:
        self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        self._writer = None
        metadata = pq.read_metadata(self._scratch)
        num_bytes = self._scratch.stat().st_size
        os.replace(self._scratch, self._folder / self._name)
        return WrittenFile(self._name, metadata.num_rows, num_bytes, delta_stats(metadata, self._schema, self._with_nan))

    def abandon(self) -> None:
        """After `close`: nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._scratch.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            # Numbers of a measured table rarely repeat, and looking for that costs more than the rest of the writing.
            texts = [each.name for each in self._schema if not pa.types.is_floating(each.type) and not pa.types.is_nested(each.type)]
            self._writer = pq.ParquetWriter(self._scratch, self._schema, compression="snappy", use_dictionary=texts, store_schema=False)
        self._writer.write_table(pa.Table.from_batches(self._waiting), row_group_size=2**30)
        self._waiting, self._waiting_bytes = [], 0


STATS_COLUMNS = 32
"""As Delta's `dataSkippingNumIndexedCols` has it."""
STATS_TEXT = 32


def delta_stats(metadata: pq.FileMetaData, schema: pa.Schema, with_nan: set[str]) -> str:
    """What Delta's log says of a file: rows, and of the first 32 columns least, greatest and how many are null.

    A NaN is greater than all numbers for Spark and not counted by Parquet: such a column has no bounds.
    """
    names = set(schema.names[:STATS_COLUMNS])
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for place in range(metadata.num_columns):
        found = [metadata.row_group(group).column(place) for group in range(metadata.num_row_groups)]
        name = found[0].path_in_schema if found else ""
        if name not in names or any(not each.is_stats_set for each in found):
            continue
        stats = [each.statistics for each in found]
        nulls[name] = sum(each.null_count for each in stats)
        bounded = [each for each in stats if each.has_min_max]
        if name in with_nan or not bounded or len(bounded) < sum(each.num_values > 0 for each in stats):
            continue
        low, high = _bound(min(each.min for each in bounded), 0), _bound(max(each.max for each in bounded), 1)
        if low is not None and high is not None:
            least[name], greatest[name] = low, high
    return json.dumps({"numRecords": metadata.num_rows, "minValues": least, "maxValues": greatest, "nullCount": nulls})


def _bound(value: Any, up: int) -> Any:
    """As Delta writes it; None where it writes none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if len(value) <= STATS_TEXT else None if up else value[:STATS_TEXT]
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            return None
        moment = value.astimezone(datetime.UTC)
        rest = moment.microsecond % 1000
        moment += datetime.timedelta(microseconds=(1000 - rest if up and rest else -rest))
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
    return value.isoformat() if isinstance(value, datetime.date) else None


def job_of(model: ScoringModel, rules: RowRules, stamp: Stamp, columns: pa.Schema, **rest: Any) -> Job:
    """A job for a portable model."""
    assert model.spec is not None
    return Job(
        columns=columns, model_sha256=model.sha256, spec=scorer_spec(model.spec), features=model.features, classes=model.classes,
        threshold=model.threshold, rules=rules, stamp=stamp, **rest,
    )  # fmt: skip
