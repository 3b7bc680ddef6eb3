"""A scored output as a Spark frame: lazily, by its executors. Classic and Connect sessions alike."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import functions as F
from pyspark.sql.types import DateType, TimestampNTZType, TimestampType

from toolkit.core.errors import ScoringError, nearest
from toolkit.core.scoring import BATCH_ID
from toolkit.core.table_names import TableName
from toolkit.engines import parquet_batches
from toolkit.engines.parquet_batches import Window
from toolkit.engines.spark_session import reason_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession


def read(session: SparkSession, table: TableName, columns: Sequence[str] | None) -> DataFrame:
    """What is committed now; what is committed later appears only in the frame of a catalog's table. `columns`: None for all.

    Raises:
        ScoringError: as `parquet_batches.read`; Spark cannot read it.
    """
    frame = _frame(session, table)
    unknown = [name for name in columns or () if name not in frame.columns]
    if unknown:
        raise ScoringError(f"columns: no such column in {table}", got=repr(unknown[0]), next_step=nearest(unknown[0], frame.columns))
    return frame if columns is None else frame.select(*[F.col(_quoted(name)) for name in columns])


def _frame(session: SparkSession, table: TableName) -> DataFrame:
    if table.kind == "catalog":
        return _resolved(table.shown, lambda: session.table(table.location))
    if table.kind == "delta":
        return _resolved(table.shown, lambda: _delta(session, table.location))
    assert table.path is not None, "a Parquet output is on this machine, or on a Volume"
    return _batches(session, table.path, table.location)


def _delta(session: SparkSession, location: str) -> DataFrame:
    """The present version: without one a frame shows what is committed when it is executed."""
    (newest,) = session.sql(f"DESCRIBE HISTORY delta.{_quoted(location)} LIMIT 1").select("version").collect()
    return session.read.format("delta").option("versionAsOf", newest.version).load(location)


def _resolved(name: str, make: Callable[[], DataFrame]) -> DataFrame:
    try:
        frame = make()
        _ = frame.schema  # Connect looks no earlier than here
    except Exception as error:  # pyspark's, py4j's and gRPC's have no common base
        raise ScoringError(
            "scores must be readable", got=f"{name}: {reason_of(error)}", next_step="check the name, and that you may read it"
        ) from error
    return frame


def _batches(session: SparkSession, output: Path, location: str) -> DataFrame:
    live = parquet_batches.live_batches(output)
    for each in live:
        parquet_batches.check_files(output, each.manifest)
    with_files = [each for each in live if each.manifest.files]
    # Spark takes one file's schema for all of a reading: batches from before a column was widened are another one.
    readings: dict[str, list[str]] = {}
    for each, schema in zip(with_files, parquet_batches.schemas(output, with_files), strict=True):
        paths = [_literal(f"{location}/{path.relative_to(output)}") for path in each.manifest.paths(output)]
        readings.setdefault(str(schema), []).extend(paths)
    if not readings:
        return session.createDataFrame([], f"{BATCH_ID} bigint")
    reader = session.read.option("basePath", location)
    frames = [
        _resolved(str(output), functools.partial(reader.parquet, *paths)).withColumn(BATCH_ID, F.col(BATCH_ID).cast("bigint"))
        for paths in readings.values()
    ]
    frame = functools.reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), frames)
    for window, batch_id in parquet_batches.windows(live).items():
        frame = frame.where(_is_shown(frame, window, batch_id))
    return frame


def _literal(path: str) -> str:
    """Spark takes a path for a pattern."""
    return re.sub(r"([\\\[\]{}*?])", r"\\\1", path)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _is_shown(frame: DataFrame, window: Window, batch_id: int) -> Column:
    """Rows without a time are outside of every time span."""
    name = window[0]
    kind = frame.schema[name].dataType if name in frame.columns else None
    if not isinstance(kind, TimestampType | TimestampNTZType | DateType):
        raise parquet_batches.not_a_time(name, kind.simpleString() if kind else None)
    time = F.col(_quoted(name))
    zoned = isinstance(kind, TimestampType)
    first, last = (_moment(each, zoned=zoned) for each in parquet_batches.bounds(window))
    if isinstance(kind, DateType):
        time = time.cast("timestamp_ntz")
    return (F.col(BATCH_ID) >= batch_id) | time.isNull() | (time < first) | (time >= last)


def _moment(moment: datetime.datetime, *, zoned: bool) -> Column:
    """Whatever the session's time zone is."""
    text = moment.replace(tzinfo=None).isoformat(sep=" ")
    return F.expr(f"timestamp'{text}+00:00'" if zoned else f"timestamp_ntz'{text}'")
