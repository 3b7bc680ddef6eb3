"""A Parquet file that appears whole, with what Delta's log says of it."""

from __future__ import annotations

import datetime
import json
import math
import os
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROW_GROUP_BYTES = 16 * 2**20
"""Of memory, before compression."""


@dataclass(frozen=True)
class WrittenFile:
    """`name`: in its folder; `stats`: as Delta's log has them, JSON."""

    name: str
    num_rows: int
    num_bytes: int
    stats: str


class FileWriter:
    """A file that is there when it is closed; none where nothing was written.

    Columns of text may be written as dictionaries: they are read as text.

    Args:
        unique: columns whose values rarely repeat, so that no dictionary of them is tried; those of fractions are anyway.
    """

    def __init__(self, schema: pa.Schema, folder: Path, name: str, unique: Collection[str] = ()) -> None:
        self._schema, self._folder, self._name, self._unique = schema, folder, name, unique
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
            # Measured numbers rarely repeat, and looking for that costs more than the rest of the writing.
            plain = (pa.types.is_floating, pa.types.is_nested)
            dictionaries = [
                each.name for each in self._schema if each.name not in self._unique and not any(is_(each.type) for is_ in plain)
            ]
            first = self._waiting[0].schema
            self._writer = pq.ParquetWriter(self._scratch, first, compression="snappy", use_dictionary=dictionaries, store_schema=False)
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
