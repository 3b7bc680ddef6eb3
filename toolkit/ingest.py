"""An experiment's data as a table: what a scheduled scoring reads. Run again it adds only what is new.

`ingest(experiment, output=…)` is the Python API and what `toolkit ingest` calls.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import ScoringError
from toolkit.core.experiment import Experiment
from toolkit.core.progress import SearchProgress
from toolkit.core.table_names import TableName
from toolkit.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class IngestResult:
    """What became of the table. `num_rows`: it has now; `table_version`: Delta's; `kind`: of the source, as in `core.data.DataSource`."""

    experiment: str
    output: str
    format: Literal["delta", "parquet"]
    num_rows: int
    num_new_rows: int
    changed: bool
    wall_s: float
    table_version: int | None
    kind: str

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints. Names and units are a contract: see docs/cli.md."""
        return {
            "experiment": self.experiment,
            "output": self.output,
            "format": self.format,
            "num_rows": self.num_rows,
            "num_new_rows": self.num_new_rows,
            "changed": self.changed,
            "wall_s": round(self.wall_s, 3),
            "table_version": self.table_version,
        }

    def rows(self) -> list[tuple[str, str]]:
        version = "" if self.table_version is None else f", version {self.table_version}"
        return [
            ("table", f"{self.output} ({self.format}{version})"),
            ("rows", f"{self.num_rows:,}, {self.num_new_rows:,} of them new" if self.changed else f"{self.num_rows:,}, unchanged"),
            ("took", f"{self.wall_s:.1f} s"),
        ]

    def _repr_html_(self) -> str:
        return f"<table>{''.join(f'<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in self.rows())}</table>"


def ingest(
    experiment: Experiment,
    *,
    output: str | Path,
    data: Path | None = None,
    rows: tuple[int | None, int | None] | None = None,
    replace: bool = False,
    spark_master: str | None = None,
    spark_conf: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    progress: SearchProgress | None = None,
) -> IngestResult:
    """Write the experiment's table, all columns as its load function gives them; or add the rows whose `dataset.key` is not there yet.

    The same again changes nothing. A row that differs from the one with its key is refused, for a table that is scored as it grows must
    only grow; so is, without a key, any other content. A path is written without Spark.

    Args:
        output: a Delta or Parquet folder, `delta:URI`, or `catalog.schema.table`; see `core.table_names`.
        data: file or folder in place of the experiment's own source.
        rows: from and to, by row number from 0, half-open; None: from the first, to the last.
        replace: the table becomes what is given, whatever it was.
        spark_master, spark_conf: of a session that is started for a table that only Spark can reach.

    Raises:
        DataError, ScoringError, ClusterError: one line each; nothing is written then.
    """
    began = time.perf_counter()
    settings = settings or Settings.read()
    progress = progress or SearchProgress()
    table = TableName.parse(output, role="output")
    by_spark = table.path is None or (table.kind == "delta" and not _opens_without_spark(table.path))
    if by_spark and table.kind == "parquet":
        raise ScoringError("ingest: Parquet is written on this machine or a Volume", got=table, next_step="name delta:URI")
    from toolkit.engines import ingest_files

    progress.phase("reading data")
    found, kind = _fetch(experiment, data, settings)
    new = ingest_files.storable(_chosen(found, rows))
    key = experiment.dataset.key
    _check_key(new, key)
    progress.phase(f"writing {table}")
    with ExitStack() as stack:
        stack.enter_context(ingest_files.alone(settings.home / "ingest", table))
        if by_spark:
            from toolkit.engines.spark_ingest import SparkTable

            target: Any = SparkTable(stack, table, spark_master, spark_conf or {}, settings)
            num_before, num_new, num_changed, example, is_other = target.ingest(new, key, replace=replace)
            if not replace:
                _refuse_changes(table, key, num_changed, example, is_other)
            changed = num_new > 0 or (replace and is_other)
            num_rows = len(new) if replace else num_before + num_new
        else:
            target = ingest_files.open_folder(table)
            num_rows, num_new, changed = _into_folder(target, table, new, key, replace)
        return IngestResult(
            experiment=experiment.name,
            output=table.shown,
            format=target.format,
            num_rows=num_rows,
            num_new_rows=num_new,
            changed=changed,
            wall_s=time.perf_counter() - began,
            table_version=target.version,
            kind=kind,
        )


def _into_folder(target: Any, table: TableName, new: pa.Table, key: str | None, replace: bool) -> tuple[int, int, bool]:
    """Rows that the table has then, rows that are new in it, and whether anything was written."""
    from toolkit.engines import ingest_files

    there = target.read()
    if there is None:
        target.write(new, replace=False)
        return len(new), len(new), True
    if replace and set(there.column_names) != set(new.column_names):
        target.write(new, replace=True)
        return len(new), len(new), True
    found = ingest_files.changes(new, there, key)
    if replace:
        if not (found.is_other or found.num_changed or len(found.fresh) or len(there) != len(new)):
            return len(there), 0, False
        target.write(new, replace=True)
        return len(new), len(new), True
    _refuse_changes(table, key, found.num_changed, found.example, found.is_other)
    if len(found.fresh):
        target.write(found.fresh, replace=False)
    return len(there) + len(found.fresh), len(found.fresh), len(found.fresh) > 0


def _refuse_changes(table: TableName, key: str | None, num_changed: int, example: Any, is_other: bool) -> None:
    if is_other:
        raise ScoringError(
            "ingest: without dataset.key it cannot be told which rows are new",
            got=f"other content than in {table}",
            next_step="name the key in the experiment, or write it anew with --replace",
        )
    if num_changed:
        raise ScoringError(
            "ingest: rows of a table that is scored as it grows must not change",
            got=f"{num_changed:,} that differ in {table}, for example {key} {example}",
            next_step="--replace writes it anew, and scores must then be made with --mode full",
        )


def _fetch(experiment: Experiment, data: Path | None, settings: Settings) -> tuple[pd.DataFrame, str]:
    from toolkit.core.data import DataContext
    from toolkit.engines import tables

    context = DataContext(data=data, data_dir=settings.data_dir, cache_dir=settings.home / "cache")
    fetched = tables.fetch(experiment, context)
    return fetched.frame, fetched.kind


def _chosen(frame: pd.DataFrame, rows: tuple[int | None, int | None] | None) -> pd.DataFrame:
    from toolkit.core.encoding import refuse_names, repeated

    refuse_names(repeated(list(frame.columns)), "data: column names must differ")
    chosen = frame if rows is None else frame.iloc[rows[0] or 0 : rows[1]]
    if not len(chosen):
        got = "no rows" if rows is None else f"none in {_span(rows)} of {len(frame):,}"
        raise ScoringError("ingest: there must be rows", got=got, next_step="check --rows" if rows else "check dataset.load")
    return chosen


def _check_key(new: pa.Table, key: str | None) -> None:
    if key is None:
        return
    if key not in new.column_names:
        raise ScoringError("ingest: dataset.key must be a column", got=key, next_step=f"columns: {', '.join(new.column_names)}")
    column = new[key]
    if column.null_count:
        raise ScoringError(
            f"ingest: the key {key!r} must not be missing", got=f"{column.null_count:,} rows", next_step="correct dataset.load"
        )
    num_copies = len(column) - len(column.unique())
    if num_copies:
        raise ScoringError(f"ingest: the key {key!r} must be unique", got=f"{num_copies:,} copies", next_step="correct dataset.load")


def _span(rows: tuple[int | None, int | None]) -> str:
    return ":".join("" if end is None else str(end) for end in rows)


def _opens_without_spark(path: Path) -> bool:
    if importlib.util.find_spec("deltalake") is None:
        return False
    from toolkit.engines import delta_files

    if not (path / "_delta_log").is_dir():
        return True
    return not delta_files.problem_of_source(path) and not delta_files.problem_of_output(path)
