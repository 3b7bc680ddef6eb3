"""The tables of a scoring through Spark: read whole, as a stream of what is new, and written so that a batch counts once.

A batch of a Delta output is one commit with Delta's transaction identifiers; of a Parquet output a folder, which exists when its manifest
does. Every write is checked against what was expected: `numOutputRows` of the commit, or the files' own footers.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import urllib.parse
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import BATCH_ID
from toolkit.core.table_names import TableName, spark_path
from toolkit.engines import parquet_batches
from toolkit.engines.score_state import RESTORE, Plan
from toolkit.engines.spark_checkpoint import newest_offset, streamed_files
from toolkit.engines.spark_csv import csv_options, csv_schema
from toolkit.engines.spark_tables import one_line
from toolkit.engines.write_once import sync

_AUDIT = (
    "batch_id long, mode string, engine string, model_name string, model_version long, model_sha256 string, scoring_run_id string, "
    "scored_at_utc timestamp, num_input_rows long, num_scored_rows long, num_quarantined_rows long, quarantine_reasons string, "
    "unseen_categories string, source string"
)
HISTORY_ROWS = 100
GIB = 2**30


@dataclass(frozen=True)
class Reader:
    """An input table in a session.

    Attributes:
        where: SQL; rows that do not fulfil it are not there.
        skip_changes: commits of a Delta input that change or delete rows are left out instead of refused.
    """

    session: SparkSession
    table: TableName
    where: str | None = None
    skip_changes: bool = False
    credentials: Mapping[str, str] | None = None

    def all_rows(self, *, version: int | None = None) -> DataFrame:
        """Unread. `version`: of a Delta table.

        Raises:
            DataError: Spark cannot read it.
        """
        table = self.table
        with one_line(table.shown, "check the path or the table's name, and that you may read it"):
            reader = self.session.read
            if version is not None:
                reader = reader.option("versionAsOf", version)
            if table.kind == "catalog":
                frame = reader.table(table.location)
            elif table.kind == "jdbc":
                frame = reader.format("jdbc").options(url=table.location, dbtable=table.jdbc_table, **(self.credentials or {})).load()
            elif table.kind == "csv":
                frame = reader.schema(csv_schema(table)).options(**csv_options(table)).csv(table.location)
            else:
                frame = reader.format(table.kind).load(table.location)
        return self._filtered(frame)

    def new_rows(self, schema: T.StructType, max_batch_gib: float | None) -> DataFrame:
        """The stream of what no batch of the checkpoint had. `schema`: of all columns, before `where`."""
        table = self.table
        reader = self.session.readStream
        if max_batch_gib is not None:
            reader = reader.option("maxBytesPerTrigger", int(max_batch_gib * GIB))
        elif table.kind in ("delta", "catalog"):
            reader = reader.option("maxFilesPerTrigger", 2**31 - 1)  # Delta's default is 1,000: a full run is one commit
        if table.kind in ("delta", "catalog") and self.skip_changes:
            reader = reader.option("skipChangeCommits", "true")
        with one_line(table.shown, "check the path or the table's name, and that you may read it"):
            if table.kind == "catalog":
                frame = reader.table(table.location)
            elif table.kind == "delta":
                frame = reader.format("delta").load(table.location)
            elif table.kind == "csv":
                frame = reader.schema(schema).options(**csv_options(table)).csv(table.location)
            else:
                frame = reader.schema(schema).parquet(table.location)
        return self._filtered(frame)

    def snapshot(self, checkpoint: Path) -> dict[str, Any]:
        """What `rows_of` reads the same rows by, as often as it is asked: those that the checkpoint's batches had; all, where it has none.

        A JDBC table, and one of a catalog that is not Delta, cannot promise that.
        """
        table = self.table
        if table.kind in ("delta", "catalog"):
            offset = newest_offset(checkpoint)
            if offset is not None and "reservoirVersion" in offset:
                version = int(offset["reservoirVersion"])
                return {"version": version - 1 if int(offset["index"]) < 0 else version}
            reference = table.location if table.kind == "catalog" else f"delta.`{table.location}`"
            try:
                return {"version": int(self.session.sql(f"DESCRIBE HISTORY {reference} LIMIT 1").collect()[0].version)}
            except AnalysisException:
                if table.kind == "delta":
                    raise
        if table.kind in ("parquet", "csv"):
            return {"files": streamed_files(checkpoint) or sorted(self.all_rows().inputFiles())}
        return {"read": table.shown}

    def rows_of(self, source: Mapping[str, Any]) -> DataFrame:
        """Of a snapshot, unread."""
        if "version" in source:
            return self.all_rows(version=int(source["version"]))
        if "files" in source:
            files = [_literal(urllib.parse.unquote(name)) for name in source["files"]]  # as Spark names them: URIs
            with one_line(self.table.shown, "restore the file, or score all anew with --mode full"):
                if self.table.kind == "csv":
                    frame = self.session.read.schema(csv_schema(self.table)).options(**csv_options(self.table)).csv(files)
                elif self.table.path is not None and self.table.path.is_file():
                    frame = self.session.read.parquet(*files)
                else:  # some of its columns may be folders
                    frame = self.session.read.option("basePath", self.table.location).parquet(*files)
            return self._filtered(frame)
        return self.all_rows()

    def _filtered(self, frame: DataFrame) -> DataFrame:
        if self.where is None:
            return frame
        try:
            found = frame.where(self.where)
            _ = found.schema
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ScoringError("--where must be a condition in SQL on the input", got=f"{self.where!r}: {reason}") from error
        return found


class Sink(Protocol):
    """An output table, or a quarantine."""

    def columns(self) -> T.StructType | None:
        """Of what is there; None where there is nothing."""

    def last_batch(self) -> int | None:
        """The highest number that is taken, by whatever state, and that a new batch must not have."""

    def is_written(self, plan: Plan, app_id: str) -> bool:
        """Whether `write` has made the batch part of the table before."""

    def write(self, frame: DataFrame, plan: Plan, app_id: str, num_rows: int, facts: Mapping[str, Any]) -> None:
        """Make the batch part of the table, unless it is already.

        Args:
            app_id: of Delta's transaction; with the batch's number, it is written once.
            num_rows: of `frame`.
            facts: for people, beside the batch.

        Raises:
            ScoringError: what is there under this number is another batch.
        """


class DeltaSink:
    def __init__(self, session: SparkSession, table: TableName) -> None:
        self.session, self.table = session, table

    @property
    def reference(self) -> str:
        """In SQL."""
        return self.table.location if self.table.kind == "catalog" else f"delta.`{self.table.location}`"

    def exists(self) -> bool:
        if self.table.kind == "catalog":
            return self.session.catalog.tableExists(self.table.location)
        if self.table.path is not None:
            return (self.table.path / "_delta_log").is_dir()
        try:
            self.session.read.format("delta").load(self.table.location)
        except AnalysisException:
            return False
        return True

    def columns(self) -> T.StructType | None:
        if not self.exists():
            return None
        with one_line(self.table.shown, "check the output, and that you may read it"):
            if self.table.kind == "catalog":
                return self.session.table(self.table.location).schema
            return self.session.read.format("delta").load(self.table.location).schema

    def widen(self, columns: Mapping[str, T.DataType]) -> None:
        """Give columns a wider type, unless they have it; files stay as they are."""
        there = self.columns()
        columns = {name: kind for name, kind in columns.items() if there is not None and there[name].dataType != kind}
        if not columns:
            return
        with one_line(self.table.shown, "cast the column in the input, or score all anew with --mode full"):
            self.session.sql(f"ALTER TABLE {self.reference} SET TBLPROPERTIES ('delta.enableTypeWidening' = 'true')")
            for name, kind in columns.items():
                quoted = "`" + name.replace("`", "``") + "`"
                self.session.sql(f"ALTER TABLE {self.reference} ALTER COLUMN {quoted} TYPE {kind.simpleString()}")

    def last_batch(self) -> int | None:
        return None  # a transaction's name has the generation

    def is_written(self, plan: Plan, app_id: str) -> bool:
        return self.exists() and self.commit_of(app_id, plan.batch_id) is not None

    def write(self, frame: DataFrame, plan: Plan, app_id: str, num_rows: int, facts: Mapping[str, Any]) -> None:
        content = {"app_id": app_id, "batch_id": plan.batch_id, "generation": plan.generation, "source": dict(plan.source), **facts}
        writer = frame.write.format("delta").option("txnAppId", app_id).option("txnVersion", plan.batch_id)
        writer = writer.option("userMetadata", json.dumps({"toolkit": content}))
        if plan.window is not None and self.columns() is not None:
            writer = writer.mode("overwrite").option("replaceWhere", window_condition(plan.window, frame.schema))
        elif plan.overwrite:
            writer = writer.mode("overwrite").option("overwriteSchema", "true")
        else:
            writer = writer.mode("append")
        with one_line(self.table.shown, "check the output, and that you may write to it"):
            if self.table.kind == "catalog":
                if not self.exists():  # what creates a table is no transaction with a number
                    frame.limit(0).write.format("delta").saveAsTable(self.table.location)
                writer.saveAsTable(self.table.location)
            else:
                writer.save(self.table.location)
        self._check(plan, app_id, num_rows, content)

    def _check(self, plan: Plan, app_id: str, num_rows: int, content: Mapping[str, Any]) -> None:
        """Delta leaves out what has a number that is not higher than the last one's, and says nothing of it."""
        commit = self.commit_of(app_id, plan.batch_id)
        what = f"batch {plan.batch_id} of {self.table.shown}"
        if commit is None:
            raise ScoringError(
                "a batch that is written must be in the table's history", got=f"none of {what}: another one had its number",
                next_step=f"the state in {plan.generation} is older than the table; {RESTORE}",
            )  # fmt: skip
        written, found = commit
        if found["source"] != json.loads(json.dumps(content["source"])) or written != num_rows:
            raise ScoringError(
                "a batch that was written before must be the same one", got=f"{what} with {written:,} rows, {num_rows:,} now",
                next_step=f"the state beside the output is older than the output; {RESTORE}",
            )  # fmt: skip

    def commit_of(self, app_id: str, batch_id: int) -> tuple[int, dict[str, Any]] | None:
        """Rows written and what was said of it."""
        for limit in (f" LIMIT {HISTORY_ROWS}", ""):
            with one_line(self.table.shown, "check the output"):
                commits = self.session.sql(f"DESCRIBE HISTORY {self.reference}{limit}").select("userMetadata", "operationMetrics").collect()
            for commit in commits:
                try:
                    content = json.loads(commit.userMetadata or "")["toolkit"]
                except (ValueError, KeyError, TypeError):
                    continue
                if content.get("app_id") == app_id and content.get("batch_id") == batch_id:
                    metrics = commit.operationMetrics  # of a window, the rows of its files that lie outside are written once more
                    return int(metrics.get("numOutputRows", 0)) - int(metrics.get("numCopiedRows", 0)), content
            if len(commits) < HISTORY_ROWS:
                return None
        return None


class ParquetSink:
    def __init__(self, session: SparkSession, table: TableName) -> None:
        assert table.path is not None
        self.session, self.path, self.shown = session, table.path, table.shown

    def columns(self) -> T.StructType | None:
        newest = next((each for each in reversed(parquet_batches.manifests(self.path)) if each.files), None)
        if newest is None:
            return None
        with one_line(self.shown, "check the output, and that you may read it"):
            found = self.session.read.parquet(_literal(spark_path(newest.paths(self.path)[0]))).schema
        return T.StructType([*found.fields, T.StructField(BATCH_ID, T.LongType())])

    def last_batch(self) -> int | None:
        return max((manifest.batch_id for manifest in parquet_batches.manifests(self.path)), default=None)

    def is_written(self, plan: Plan, app_id: str) -> bool:
        return parquet_batches.is_committed(self.path, plan.batch_id)

    def write(self, frame: DataFrame, plan: Plan, app_id: str, num_rows: int, facts: Mapping[str, Any]) -> None:
        found = parquet_batches.read_manifest(self.path, plan.batch_id)
        if found is None:
            content = {"app_id": app_id, "generation": plan.generation, "source": dict(plan.source), **facts}
            found = self._commit(frame, plan, num_rows, content)
        what = f"batch {plan.batch_id} of {self.shown}"
        if found.metadata.get("source") != json.loads(json.dumps(dict(plan.source))) or found.num_rows != num_rows:
            raise ScoringError(
                "a batch that was written before must be the same one", got=f"{what} with {found.num_rows:,} rows, {num_rows:,} now",
                next_step=f"the state beside the output is older than the output, or the options have changed; {RESTORE}",
            )  # fmt: skip

    def _commit(self, frame: DataFrame, plan: Plan, num_rows: int, content: Mapping[str, Any]) -> parquet_batches.Manifest:
        """By a folder of this attempt's own: the JVM of a driver that was killed may be writing still, or deleting what is in its way."""
        folder, attempt = parquet_batches.batch_folder(self.path, plan.batch_id), f"attempt-{uuid.uuid4().hex[:12]}"
        with one_line(self.shown, "check the output, and that you may write to it"):
            frame.drop(BATCH_ID).write.parquet(spark_path(folder / attempt))
        replaces: parquet_batches.Replaces = "all" if plan.overwrite else plan.window
        manifest = parquet_batches.manifest_of(self.path, plan.batch_id, replaces=replaces, metadata=content)
        manifest = dataclasses.replace(manifest, files=tuple(file for file in manifest.files if file.name.startswith(f"{attempt}/")))
        assert manifest.num_rows == num_rows, f"{manifest.num_rows} rows written of {num_rows}"
        sync(folder / attempt)
        parquet_batches.commit(self.path, manifest)
        for left in folder.glob("attempt-*"):
            if left.name != attempt:
                shutil.rmtree(left, ignore_errors=True)
        return manifest


def sink_of(session: SparkSession, table: TableName) -> DeltaSink | ParquetSink:
    return ParquetSink(session, table) if table.kind == "parquet" else DeltaSink(session, table)


def _literal(path: str) -> str:
    """Spark takes a path for a pattern."""
    return re.sub(r"([\\{}\[\]*?])", r"\\\1", path)


def window_condition(window: tuple[str, str, str], schema: T.StructType) -> str:
    """SQL for a half-open span of time in UTC: column, from, to."""
    name, begin, end = window
    kind = schema[name].dataType
    if not isinstance(kind, T.TimestampType | T.TimestampNTZType | T.DateType):
        raise ScoringError(
            "--time-column must hold times", got=f"{name!r}: {kind.simpleString()}", next_step="cast it in the table, or name another one"
        )
    quoted = "`" + name.replace("`", "``") + "`"

    def literal(moment: str) -> str:
        text = moment.replace("T", " ")
        if isinstance(kind, T.TimestampType):
            return f"TIMESTAMP '{text}'"  # with its offset
        plain = text.removesuffix("+00:00")
        return f"TIMESTAMP_NTZ '{plain}'" if isinstance(kind, T.TimestampNTZType) else f"CAST(TIMESTAMP_NTZ '{plain}' AS DATE)"

    return f"{quoted} >= {literal(begin)} AND {quoted} < {literal(end)}"


def append_audit(session: SparkSession, table: TableName, row: Mapping[str, Any]) -> None:
    """A row of the audit as a commit of its own, once a batch."""
    frame = session.createDataFrame([tuple(row.values())], _AUDIT)
    writer = frame.write.format("delta").mode("append").option("txnAppId", "toolkit-audit").option("txnVersion", row["batch_id"])
    with one_line(table.shown, "check the audit table, and that you may write to it"):
        if table.kind == "catalog":
            writer.saveAsTable(table.location)
        else:
            writer.save(table.location)
