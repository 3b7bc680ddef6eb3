"""Delta tables as lists of Parquet files, through delta-rs: which files a span of versions added, and one commit that adds files.

A commit holds rows and progress at once: Delta's transaction identifiers say which batch was the last (`toolkit/batches`) and up to which
version of the input its rows are there (`toolkit/input/ID`, by the input table's own id). A run that has lost all else goes on from these.
Only tables on this machine's paths, without deletion vectors and column mapping.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import BatchCounts
from toolkit.engines.files_tasks import Piece
from toolkit.engines.files_writer import WrittenFile

if TYPE_CHECKING:
    from deltalake import DeltaTable

BATCHES = "toolkit/batches"
NO_VERSION = -1
"""Before a table's first."""

# What neither hides rows in a file nor renames columns.
_READER_FEATURES = {"deletionVectors", "timestampNtz", "vacuumProtocolCheck"}
_WRITER_FEATURES = {
    "appendOnly",
    "changeDataFeed",
    "checkConstraints",
    "deletionVectors",
    "invariants",
    "timestampNtz",
    "vacuumProtocolCheck",
}
_PARTITION_TYPES = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date)


@dataclass(frozen=True)
class SourceFile:
    """Of an input; `piece` is all of it."""

    piece: Piece
    num_bytes: int


@dataclass(frozen=True)
class Snapshot:
    """An input table at one version."""

    folder: Path
    id: str
    version: int
    columns: pa.Schema


def snapshot(folder: Path, version: int | None = None) -> Snapshot:
    """Raises ScoringError: it cannot be opened, or not at that version."""
    table = _open(folder, version)
    return Snapshot(folder, str(table.metadata().id), table.version(), _columns(table))


def files_added(found: Snapshot, after: int, *, skip_change_commits: bool) -> list[SourceFile]:
    """The files with the rows that came after version `after`; with NO_VERSION, all that the table holds.

    Files that only collect rows of others (OPTIMIZE) are no news. Commits that update or delete rows are refused or, whole, left out.

    Raises:
        ScoringError: such a commit; the log of a version is gone; rows of a file are hidden by a deletion vector.
    """
    if after == NO_VERSION:
        return _all_files(found)
    files: list[SourceFile] = []
    for version in range(after + 1, found.version + 1):
        actions = _log(found.folder, version)
        adds = [each["add"] for each in actions if "add" in each and each["add"]["dataChange"]]
        if any(each["remove"]["dataChange"] for each in actions if "remove" in each):
            if skip_change_commits:
                continue
            operation = next((each["commitInfo"].get("operation") for each in actions if "commitInfo" in each), None)
            raise ScoringError(
                "input: rows of a Delta table that is scored incrementally must not be updated or deleted",
                got=f"{operation or 'a commit'} in version {version} of {found.folder}",
                next_step="--skip-change-commits leaves such commits out whole (their rows are not scored, old scores stay); or use "
                "--mode full",
            )
        for add in adds:
            if add.get("deletionVector"):
                raise _hidden_rows(found.folder)
            files.append(_file(found.folder, add["path"], add["size"], add.get("partitionValues") or {}))
    return files


class DeltaOutput:
    """An output as it was when this was made: of what others commit meanwhile, a commit finds out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = _open(folder) if (folder / "_delta_log").is_dir() else None

    @property
    def columns(self) -> pa.Schema | None:
        """None where there is no table yet."""
        return None if self._table is None else _columns(self._table)

    @property
    def last_batch(self) -> int | None:
        return self._transaction(BATCHES)

    @property
    def last_batch_by_files(self) -> int | None:
        return self.last_batch

    def progress(self, source_id: str) -> int | None:
        """The input's version up to which rows are there."""
        return self._transaction(_progress_id(source_id))

    @property
    def knows_progress(self) -> bool:
        """Whether its log tells what is in it: the newest batch is one by files."""
        newest = None if self._table is None else next(self._contents(), None)
        return self._table is None or (newest is not None and "app_id" not in newest)  # see `spark_score_tables.DeltaSink.write`

    def files_folder(self, batch_id: int) -> Path:
        return self.folder

    def counts(self, batch_id: int) -> BatchCounts | None:
        """Of a committed batch, as its commit says; None where the log no longer has it."""
        found = (content for content in self._contents() if content["batch_id"] == batch_id and "counts" in content)
        return next((BatchCounts(**content["counts"]) for content in found), None)

    def _contents(self) -> Iterator[Mapping[str, Any]]:
        """What batches' commits say of them, the newest first."""
        assert self._table is not None
        for commit in self._table.history():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                yield json.loads(commit["userMetadata"])["toolkit"]

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
        """Add files that lie in the folder; `overwrite`: instead of all that are there. `progress`: the input's id and version.

        Raises:
            ScoringError: another run has committed a batch since this was made.
        """
        import deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError
        from deltalake.transaction import AddAction, create_table_with_add_actions

        now_ms = int(time.time() * 1000)
        actions = [AddAction(file.name, file.num_bytes, {}, now_ms, True, file.stats) for file in files]
        transactions = [deltalake.Transaction(BATCHES, batch_id)]
        if progress is not None:
            transactions.append(deltalake.Transaction(_progress_id(progress[0]), progress[1]))
        metadata = {"userMetadata": json.dumps({"toolkit": {"batch_id": batch_id, **facts}})}
        properties = deltalake.CommitProperties(custom_metadata=metadata, app_transactions=transactions)
        schema = deltalake.Schema.from_arrow(columns)
        try:
            if self._table is None:
                create_table_with_add_actions(str(self.folder), schema, actions, mode="error", commit_properties=properties)
            else:
                mode = "overwrite" if overwrite else "append"
                self._table.create_write_transaction([*actions], mode, schema, commit_properties=properties)
        except (CommitFailedError, DeltaError) as error:
            raise ScoringError(
                "one run at a time must write to an output", got=f"{error} in {self.folder}",
                next_step="if another run has written meanwhile, run it again: it goes on after that one's batch",
            ) from error  # fmt: skip
        self._table = _open(self.folder)

    def _transaction(self, app_id: str) -> int | None:
        return None if self._table is None else self._table.transaction_version(app_id)


# ---- what can be done


def problem_of_source(folder: Path) -> str:
    """Why a table's files cannot be read one by one; empty where they can."""
    try:
        table = _open(folder)
    except ScoringError as error:
        return str(error)
    reason = _problem(table, set(table.protocol().reader_features or []) - _READER_FEATURES, table.protocol().min_reader_version)
    if reason:
        return reason
    columns = _columns(table)
    for name in table.metadata().partition_columns:
        if not any(fits(columns.field(name).type) for fits in _PARTITION_TYPES):
            return f"{folder} is partitioned by {name!r}, which is {columns.field(name).type}"
    if "deletionVectors" in (table.protocol().reader_features or []) and _has_hidden_rows(table):
        return f"{folder} has deletion vectors"
    return ""


def problem_of_output(folder: Path) -> str:
    """Why files cannot be added to a table; empty where they can, or there is none yet."""
    if not (folder / "_delta_log").is_dir():
        return ""
    try:
        table = _open(folder)
    except ScoringError as error:
        return str(error)
    reason = _problem(table, set(table.protocol().writer_features or []) - _WRITER_FEATURES, table.protocol().min_reader_version)
    if reason:
        return reason
    if table.metadata().partition_columns:
        return f"{folder} is partitioned"
    constraints = [name for name in table.metadata().configuration if name.startswith("delta.constraints.")]
    return f"{folder} has constraints" if constraints else ""


def _problem(table: DeltaTable, unknown: set[str], reader_version: int) -> str:
    folder = table.table_uri
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        return f"{folder} has column mapping"
    if unknown or reader_version > 3:
        return f"{folder} needs {', '.join(sorted(unknown)) or 'a newer reader'}"
    return ""


# ---- Delta's own


def _open(folder: Path, version: int | None = None) -> DeltaTable:
    import deltalake
    from deltalake.exceptions import DeltaError

    try:
        return deltalake.DeltaTable(str(folder), version=version)
    except (DeltaError, OSError) as error:
        what = "" if version is None else f" at version {version}"
        raise ScoringError(
            f"a Delta table must be readable{what}", got=f"{folder}: {error}", next_step="see its log, or --mode full"
        ) from error


def _columns(table: DeltaTable) -> pa.Schema:
    """Nullable, without comments and the like."""
    return pa.schema([pa.field(each.name, each.type) for each in pa.schema(table.schema().to_arrow())])


def _all_files(found: Snapshot) -> list[SourceFile]:
    table = _open(found.folder, found.version)
    if "deletionVectors" in (table.protocol().reader_features or []) and _has_hidden_rows(table):
        raise _hidden_rows(found.folder)
    adds = pa.table(table.get_add_actions(flatten=False))
    names = table.metadata().partition_columns
    values = _log_values(table, names) if names else {}
    return [
        _file(found.folder, path, size, values.get(path, {}))
        for path, size in zip(adds["path"].to_pylist(), adds["size_bytes"].to_pylist(), strict=True)
    ]


def _log_values(table: DeltaTable, names: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """By path, the partition's values as text."""
    adds = pa.table(table.get_add_actions(flatten=False))
    rows = zip(adds["path"].to_pylist(), adds["partition"].to_pylist(), strict=True)
    return {path: {name: _text(row[name]) for name in names} for path, row in rows}


def _text(value: Any) -> str | None:
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _file(folder: Path, path: str, size: int, values: Mapping[str, str | None]) -> SourceFile:
    """`path`: as the log has it, a URI relative to the table or absolute."""
    parsed = urllib.parse.urlsplit(path)
    where = folder / urllib.parse.unquote(parsed.path if parsed.scheme == "file" else path)
    return SourceFile(Piece(str(where), values=dict(values)), int(size))


def _log(folder: Path, version: int) -> list[dict[str, Any]]:
    path = folder / "_delta_log" / f"{version:020d}.json"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except FileNotFoundError as error:
        raise ScoringError(
            "input: the log of every version since the last scoring must be there", got=f"none of version {version} in {folder}",
            next_step="score more often than delta.logRetentionDuration, and now all anew with --mode full",
        ) from error  # fmt: skip


def _has_hidden_rows(table: DeltaTable) -> bool:
    return bool(pa.table(table.deletion_vectors().read_all()).num_rows)


def _hidden_rows(folder: Path) -> ScoringError:
    return ScoringError(
        "--engine files: an input without deletion vectors", got=f"files with them in {folder}",
        next_step="use --engine spark, or run REORG TABLE … APPLY (PURGE)",
    )  # fmt: skip


def _progress_id(source_id: str) -> str:
    return f"toolkit/input/{source_id}"
