"""A table on this machine's disk that rows are added to once: Delta through delta-rs, or a folder of Parquet files.

Each writing is one commit, or one file that appears whole: killed at any moment it has happened or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.core.errors import DataError, ScoringError
from toolkit.core.table_names import TableName

INGEST = "toolkit/ingest"
"""Delta's transaction identifier: of two that write at once, one fails."""

_UNSIGNED = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.int64()}
_PLAIN = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary(), pa.null(): pa.string(), pa.float16(): pa.float32(), **_UNSIGNED}
_NOT_IN_DELTA = set(" ,;{}()\n\t=")


@dataclass(frozen=True)
class Changes:
    """What a table would learn. `example`: a key whose row differs."""

    fresh: pa.Table
    num_changed: int = 0
    example: Any = None
    is_other: bool = False
    """Without a key: the content is another one."""


class DeltaFolder:
    """`open` reads nothing but the log."""

    format: Literal["delta"] = "delta"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table = self._opened()

    @property
    def version(self) -> int | None:
        return None if self._table is None else int(self._table.version())

    def read(self) -> pa.Table | None:
        return None if self._table is None else self._table.to_pyarrow_table()

    def write(self, rows: pa.Table, *, replace: bool) -> None:
        """Raises ScoringError: another process has written meanwhile."""
        import deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError

        _refuse_characters(rows.column_names)
        last = None if self._table is None else self._table.transaction_version(INGEST)
        properties = deltalake.CommitProperties(app_transactions=[deltalake.Transaction(INGEST, (last or 0) + 1)])
        target = str(self._path) if self._table is None else self._table
        try:
            if self._table is None:
                deltalake.write_deltalake(target, rows, mode="error", commit_properties=properties)
            elif replace:
                deltalake.write_deltalake(target, rows, mode="overwrite", schema_mode="overwrite", commit_properties=properties)
            else:
                deltalake.write_deltalake(target, rows, mode="append", commit_properties=properties)
        except CommitFailedError as error:
            raise _written_meanwhile(self._path) from error
        except (DeltaError, pa.ArrowException) as error:
            raise ScoringError("output: Delta must take the table", got=error, next_step="change the column in dataset.load") from error
        self._table = self._opened()

    def _opened(self) -> Any:
        import deltalake

        return deltalake.DeltaTable(str(self._path)) if (self._path / "_delta_log").is_dir() else None


class ParquetFolder:
    """Files are added, never changed: whoever remembers the files that it has read finds what is new."""

    format: Literal["parquet"] = "parquet"
    version = None

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> pa.Table | None:
        try:
            return pq.read_table(self._path) if self._path.is_dir() and any(self._path.rglob("*.parquet")) else None
        except pa.ArrowException as error:
            raise ScoringError("output: not a readable Parquet table", got=f"{self._path}: {error}", next_step="name another") from error

    def write(self, rows: pa.Table, *, replace: bool) -> None:
        folder = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}") if replace and self._path.exists() else self._path
        folder.mkdir(parents=True, exist_ok=True)
        name = f"part-{uuid.uuid4().hex}.parquet"
        partial = folder / f".{name}"
        try:
            pq.write_table(rows, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, folder / name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            raise
        if folder != self._path:
            # Killed between the two, there is no table, and the next run writes it: never both at once.
            former = folder.with_name(f"{folder.name}-former")
            os.rename(self._path, former)
            os.rename(folder, self._path)
            shutil.rmtree(former)


def open_folder(table: TableName) -> DeltaFolder | ParquetFolder:
    assert table.path is not None
    return DeltaFolder(table.path) if table.kind == "delta" else ParquetFolder(table.path)


def storable(frame: pd.DataFrame) -> pa.Table:
    """As Delta and Spark know it: no dictionaries, no unsigned numbers, times in microseconds.

    Raises:
        DataError: a column has values of several types.
    """
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
        return table.cast(pa.schema([pa.field(each.name, _plain(each.type)) for each in table.schema]), safe=False)
    except (pa.ArrowException, TypeError) as error:
        raise DataError("data: a column must have values of one type", got=error, next_step="correct dataset.load") from error


def changes(new: pa.Table, there: pa.Table, key: str | None) -> Changes:
    """Compare with what is there.

    Args:
        new: (n, d), its keys differ.
        there: (m, d), columns in any order.

    Raises:
        ScoringError: it has other columns or types, or a key twice.
    """
    if key is None:
        return Changes(new.slice(0, 0), is_other=_content(fit(new, there)) != _content(there))
    new = fit(new, there)
    is_known = pc.is_in(new[key], value_set=pa.array(there[key].unique()))
    known = new.filter(is_known).sort_by(key)
    same_keys = there.filter(pc.is_in(there[key], value_set=known[key].combine_chunks())).sort_by(key)
    if len(same_keys) != len(known):
        raise ScoringError(f"output: the key {key!r} must be unique", got="rows with the same one", next_step="--replace writes it anew")
    differs = np.zeros(len(known), dtype=bool)
    for name in known.column_names:
        differs |= ~_equal(known[name], same_keys[name])
    example = known[key][int(differs.argmax())].as_py() if differs.any() else None
    return Changes(new.filter(pc.invert(is_known)), int(differs.sum()), example)


def fit(new: pa.Table, there: pa.Table) -> pa.Table:
    """In the columns and types that are there.

    Raises:
        ScoringError: it cannot be.
    """
    missing, more = set(there.column_names) - set(new.column_names), set(new.column_names) - set(there.column_names)
    if missing or more:
        words = [f"{word} {', '.join(sorted(names))}" for word, names in (("without", missing), ("with", more)) if names]
        raise ScoringError("output: the table has other columns", got=f"data {' and '.join(words)}", next_step="--replace writes it anew")
    try:
        return new.select(there.column_names).cast(pa.schema([pa.field(each.name, _plain(each.type)) for each in there.schema]))
    except pa.ArrowException as error:
        raise ScoringError("output: the table has other types", got=error, next_step="--replace writes it anew") from error


def claim_name(table: TableName) -> str:
    return f"{table.shown.rstrip('/').rsplit('/', 1)[-1]}-{hashlib.sha256(table.location.encode()).hexdigest()[:12]}"


# ---- parts


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return _PLAIN.get(kind, kind)


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) whether two values are the same; a missing one is the same as a missing one, and NaN is missing."""
    if pa.types.is_nested(left.type):
        return np.array([one == other for one, other in zip(left.to_pylist(), right.to_pylist(), strict=True)], dtype=bool)
    right = right.cast(left.type)
    neither = pc.and_(pc.is_null(left, nan_is_null=True), pc.is_null(right, nan_is_null=True))
    return np.asarray(pc.or_(pc.fill_null(pc.equal(left, right), False), neither), dtype=bool)


def _content(table: pa.Table) -> bytes:
    """A digest of the rows, in whatever order they come."""
    columns: dict[str, pd.Series[Any]] = {}
    for name in sorted(table.column_names):
        column = table[name].cast(_plain(table[name].type)).to_pandas()
        columns[name] = column.map(repr) if pa.types.is_nested(table[name].type) else column
    return np.sort(pd.util.hash_pandas_object(pd.DataFrame(columns), index=False).to_numpy()).tobytes()


def _refuse_characters(names: list[str]) -> None:
    wrong = [name for name in names if _NOT_IN_DELTA & set(name)]
    if wrong:
        raise ScoringError(
            "output: Delta's column names have no blanks and none of ,;{}()=",
            got=", ".join(map(repr, wrong[:5])),
            next_step="rename them in dataset.load, or write parquet:PATH",
        )


def _written_meanwhile(path: Path) -> ScoringError:
    return ScoringError("one ingest at a time must write to a table", got=f"another one at {path}", next_step="run it again")


@contextlib.contextmanager
def alone(claims: Path, table: TableName) -> Iterator[None]:
    """Of this host's processes.

    Raises:
        ScoringError: another one is at it.
    """
    from toolkit.core.errors import ClusterError
    from toolkit.engines.claims import claimed

    try:
        with claimed(claims, claims / claim_name(table), "ingest"):
            yield
    except ClusterError as error:
        raise ScoringError("one ingest at a time must write to a table", got=f"another one at {table}", next_step="wait for it") from error
