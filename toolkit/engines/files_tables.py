"""The two ends of a scoring by files: an input as lists of Parquet files, an output as a place where files are committed.

Both are Delta tables (`delta_files`) or Parquet folders (of an output: `parquet_batches`), on this machine's paths or a disk that all
machines share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import BatchCounts
from toolkit.core.table_names import TableName
from toolkit.engines import delta_files, parquet_batches
from toolkit.engines.delta_files import NO_VERSION, DeltaOutput, SourceFile
from toolkit.engines.files_columns import UTC_MICROSECONDS
from toolkit.engines.files_tasks import Piece
from toolkit.engines.files_writer import WrittenFile
from toolkit.engines.score_state import RESTORE, Plan

PARQUET_ENDINGS = (".parquet", ".parq")
_FOOTER_THREADS = 16

TASKS_A_CORE = 4
MIN_TASK_BYTES, MAX_TASK_BYTES = 8 * 2**20, 128 * 2**20
FILE_COST_BYTES = 2**20
"""Opening a file takes as long as reading so much."""


@dataclass(frozen=True)
class Rows:
    """What a plan's batch reads."""

    columns: pa.Schema
    files: list[SourceFile]


class Input(Protocol):
    def news(self, past: Sequence[Plan], output: Output, quarantine: Output, *, anew: bool) -> Mapping[str, Any] | None:
        """The next batch, as `Plan.source` has it; None where nothing is new. `past`: this generation's plans; `anew`: all from the
        beginning."""

    def rows(self, source: Mapping[str, Any]) -> Rows:
        """Raises ScoringError: they are no longer there."""

    def progress(self, source: Mapping[str, Any]) -> tuple[str, int] | None:
        """What the output keeps beside the batch: the input's id and version."""


class Output(Protocol):
    @property
    def columns(self) -> pa.Schema | None:
        """None where nothing is there yet."""

    @property
    def last_batch(self) -> int | None:
        """That is committed; where numbers are the table's own, by whichever engine."""

    @property
    def last_batch_by_files(self) -> int | None: ...

    @property
    def knows_progress(self) -> bool:
        """Whether a run whose state is gone may go on from what it says: nothing is there, or the newest batch is one by files."""

    def progress(self, source_id: str) -> int | None: ...

    def files_folder(self, batch_id: int) -> Path: ...

    def counts(self, batch_id: int) -> BatchCounts | None: ...

    def commit(
        self,
        batch_id: int,
        files: Sequence[WrittenFile],
        columns: pa.Schema,
        *,
        overwrite: bool,
        progress: tuple[str, int] | None,
        facts: Mapping[str, Any],
    ) -> None: ...


def input_of(table: TableName, *, skip_change_commits: bool) -> Input:
    assert table.path is not None
    return DeltaInput(table.path, skip_change_commits) if table.kind == "delta" else ParquetInput(table.path)


def output_of(table: TableName) -> Output:
    assert table.path is not None
    return DeltaOutput(table.path) if table.kind == "delta" else ParquetOutput(table.path)


def eligible(source: TableName, output: TableName) -> str:
    """Why tables cannot be scored by files, in a few words; empty where they can."""
    for table in (source, output):
        if table.kind not in ("delta", "parquet"):
            return f"{table.shown} is no Delta or Parquet table with a path"
        if table.path is None:
            return f"{table.shown} is not on this machine's disk"
    assert source.path is not None and output.path is not None
    if "delta" in (source.kind, output.kind):
        try:
            import deltalake  # noqa: F401
        except ImportError:
            return "Delta without Spark needs deltalake"
    if source.kind == "delta":
        reason = delta_files.problem_of_source(source.path)
    else:
        reason = next(
            (f"{source.shown} is partitioned" for path in _parquet_files(source.path) if "=" in str(path.relative_to(source.path).parent)),
            "",
        )
    return reason or (delta_files.problem_of_output(output.path) if output.kind == "delta" else "")


def columns_of(source: TableName, wanted: Collection[str]) -> pa.Schema:
    """Of an input that is `eligible`; of a Parquet folder, as its first files have them, as many as it takes to see all that are wanted."""
    assert source.path is not None
    if source.kind == "delta":
        return delta_files.snapshot(source.path).columns
    found = pa.schema([])
    for path in _parquet_files(source.path):
        found = pa.schema([*found, *(each for each in _schema_of(path) if each.name not in found.names)])
        if set(wanted) <= set(found.names):
            break
    return found


# ---- inputs


class DeltaInput:
    def __init__(self, folder: Path, skip_change_commits: bool) -> None:
        self._folder, self._skip = folder, skip_change_commits
        self._now = delta_files.snapshot(folder)

    def news(self, past: Sequence[Plan], output: Output, quarantine: Output, *, anew: bool) -> Mapping[str, Any] | None:
        now = self._now
        if past and past[-1].source["id"] != now.id:
            raise ScoringError(
                "input: the table must be the one that was scored before",
                got=f"another one in {self._folder}",
                next_step="score it with --mode full",
            )
        after, version = NO_VERSION, now.version
        if not anew:
            done = output.progress(now.id)
            after = NO_VERSION if done is None else done
            # Committed before the scores by a run that was killed, and whose plan is lost: the same rows once more, not those and new ones.
            quarantined = quarantine.progress(now.id)
            version = quarantined if quarantined is not None and after < quarantined <= version else version
        if after > version:
            raise ScoringError(
                "input: it must have all that was scored before", got=f"version {version} of {self._folder}, after {after} was scored",
                next_step="score it with --mode full",
            )  # fmt: skip
        source = {"kind": "delta", "id": now.id, "after": after, "version": version, "skip_change_commits": self._skip}
        return source if self.rows(source).files else None

    def rows(self, source: Mapping[str, Any]) -> Rows:
        found = self._now if self._now.version == source["version"] else delta_files.snapshot(self._folder, source["version"])
        files = delta_files.files_added(found, source["after"], skip_change_commits=source["skip_change_commits"])
        return Rows(found.columns, files)

    def progress(self, source: Mapping[str, Any]) -> tuple[str, int] | None:
        return source["id"], source["version"]


class ParquetInput:
    """A file that is written anew under its name is not scored again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def news(self, past: Sequence[Plan], output: Output, quarantine: Output, *, anew: bool) -> Mapping[str, Any] | None:
        committed = max((found for each in (output, quarantine) if (found := each.last_batch_by_files) is not None), default=None)
        planned = past[-1].batch_id if past else None
        if not anew and committed is not None and (planned is None or planned < committed):
            raise ScoringError(
                "the state of a scoring must be there: it alone knows which files of a Parquet input were scored",
                got=f"{committed + 1} batches in the output, plans of {len(past)}",
                next_step=RESTORE,
            )
        known = {name for plan in past for name in plan.source["files"]}
        files = [name for name in (self._name(path) for path in _parquet_files(self._path)) if name not in known]
        return {"kind": "parquet", "files": files} if files else None

    def rows(self, source: Mapping[str, Any]) -> Rows:
        paths = [self._path / name if name else self._path for name in source["files"]]
        try:
            with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
                schemas = list(pool.map(_schema_of, paths))
            files = [SourceFile(Piece(str(path)), path.stat().st_size) for path in paths]
        except FileNotFoundError as error:
            raise ScoringError(
                "input: a file of a planned batch must be there", got=f"none at {error.filename or error}", next_step=RESTORE
            ) from error
        try:
            columns = pa.unify_schemas(_distinct(schemas), promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ScoringError(
                "input: its files must fit together", got=f"{error} in {self._path}", next_step="correct the table"
            ) from error
        # Of nothing but nulls; Delta has no type for it.
        return Rows(pa.schema([each.with_type(pa.string()) if pa.types.is_null(each.type) else each for each in columns]), files)

    def progress(self, source: Mapping[str, Any]) -> tuple[str, int] | None:
        return None

    def _name(self, path: Path) -> str:
        return "" if path == self._path else path.relative_to(self._path).as_posix()


def _parquet_files(path: Path) -> list[Path]:
    """What Spark would read, by name; `path` itself where it is a file."""
    if path.is_file():
        return [path]
    found = (each for each in path.rglob("*") if each.name.lower().endswith(PARQUET_ENDINGS))
    return sorted(each for each in found if not any(part.startswith((".", "_")) for part in each.relative_to(path).parts))


def _schema_of(path: Path) -> pa.Schema:
    try:
        with pq.ParquetFile(path) as file:
            old_times = {
                file.schema.column(place).path for place in range(len(file.schema)) if file.schema.column(place).physical_type == "INT96"
            }
            return pa.schema([pa.field(each.name, _type(each.type, each.name in old_times)) for each in file.schema_arrow])
    except pa.ArrowInvalid as error:
        raise ScoringError("input: files must be Parquet", got=f"{path}: {error}", next_step="take it away, or write it anew") from error


def _type(found: pa.DataType, is_old_time: bool) -> pa.DataType:
    """As Spark has it: no dictionaries, no unsigned numbers, times in microseconds, and those of the old kind in UTC."""
    if pa.types.is_dictionary(found):
        return _type(found.value_type, False)
    if pa.types.is_large_string(found) or pa.types.is_string_view(found):
        return pa.string()
    if pa.types.is_timestamp(found):
        return UTC_MICROSECONDS if is_old_time or found.tz else pa.timestamp("us")
    unsigned = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0)}
    return unsigned.get(found, pa.float32() if pa.types.is_float16(found) else found)


def _distinct(schemas: Iterable[pa.Schema]) -> list[pa.Schema]:
    found: list[pa.Schema] = []
    for each in schemas:
        if each not in found:
            found.append(each)
    return found


# ---- work


def divide(files: Sequence[SourceFile], num_cores: int) -> list[list[Piece]]:
    """Into tasks of about the same number of bytes: large files by their row groups, small ones together. The largest come first."""
    total = sum(file.num_bytes + FILE_COST_BYTES for file in files)
    task_bytes = min(max(total / (num_cores * TASKS_A_CORE), MIN_TASK_BYTES), MAX_TASK_BYTES)
    pieces: list[tuple[float, Piece]] = []
    for file in files:
        num_parts = max(1, math.ceil(file.num_bytes / task_bytes))
        if num_parts > 1:
            with contextlib.suppress(OSError, pa.ArrowInvalid):  # the task says what is wrong with it
                num_parts = max(1, min(num_parts, pq.read_metadata(file.piece.path).num_row_groups))
        parts = (dataclasses.replace(file.piece, part=part, num_parts=num_parts) for part in range(num_parts))
        pieces += [(file.num_bytes / num_parts + FILE_COST_BYTES, part) for part in parts]
    tasks: list[list[Piece]] = []
    filled = math.inf
    for num_bytes, piece in sorted(pieces, key=lambda each: (-each[0], each[1].path, each[1].part)):
        if filled + num_bytes > task_bytes:
            tasks.append([])
            filled = 0.0
        tasks[-1].append(piece)
        filled += num_bytes
    return tasks


# ---- an output of Parquet batches


class ParquetOutput:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def columns(self) -> pa.Schema | None:
        for manifest in reversed(parquet_batches.manifests(self._folder)):
            for path in manifest.paths(self._folder):
                return _schema_of(path)
        return None

    @property
    def last_batch(self) -> int | None:
        return max((manifest.batch_id for manifest in parquet_batches.manifests(self._folder)), default=None)

    @property
    def last_batch_by_files(self) -> int | None:
        found = (manifest for manifest in parquet_batches.manifests(self._folder) if _is_by_files(manifest))
        return max((manifest.batch_id for manifest in found), default=None)

    @property
    def knows_progress(self) -> bool:
        newest = next(iter(reversed(parquet_batches.manifests(self._folder))), None)
        return not parquet_batches.is_begun(self._folder) if newest is None else _is_by_files(newest)

    def progress(self, source_id: str) -> int | None:
        for manifest in reversed(parquet_batches.manifests(self._folder)):
            found = manifest.metadata.get("source", {})
            if found.get("id") == source_id:
                return int(found["version"])
        return None

    def files_folder(self, batch_id: int) -> Path:
        return parquet_batches.batch_folder(self._folder, batch_id)

    def counts(self, batch_id: int) -> BatchCounts | None:
        manifest = parquet_batches.read_manifest(self._folder, batch_id)
        return None if manifest is None else BatchCounts(**manifest.metadata["counts"])

    def commit(
        self,
        batch_id: int,
        files: Sequence[WrittenFile],
        columns: pa.Schema,
        *,
        overwrite: bool,
        progress: tuple[str, int] | None,
        facts: Mapping[str, Any],
    ) -> None:
        written = tuple(parquet_batches.BatchFile(file.name, file.num_rows, file.num_bytes) for file in files)
        manifest = parquet_batches.Manifest(batch_id, written, replaces="all" if overwrite else None, metadata=dict(facts))
        parquet_batches.commit(self._folder, manifest)


def _is_by_files(manifest: parquet_batches.Manifest) -> bool:
    return "app_id" not in manifest.metadata  # see `spark_score_tables.ParquetSink.write`
