"""A Delta table that only Spark can reach, a catalog's or one behind a URI, and that rows are added to once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import ScoringError
from toolkit.core.table_names import TableName
from toolkit.engines import spark_delta, spark_session
from toolkit.engines.ingest_files import INGEST

if TYPE_CHECKING:
    import pyarrow as pa

    from toolkit.settings import Settings

_MISSING = ("PATH_NOT_FOUND", "DELTA_TABLE_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE", "DELTA_PATH_DOES_NOT_EXIST", "TABLE_OR_VIEW_NOT_FOUND")


class SparkTable:
    format: Literal["delta"] = "delta"

    def __init__(self, stack: ExitStack, table: TableName, master: str | None, conf: Mapping[str, str], settings: Settings) -> None:
        """Raises ClusterError, ScoringError: there is no session with Delta, or its catalog would forget the table."""
        if settings.on_databricks:
            spark_session.has_executors(open_one=True)
        is_ours = spark_session.active_session() is None
        self._session = spark_delta.open_session(stack, master, conf, settings, "toolkit ingest")
        self._table = table
        if is_ours and table.kind == "catalog" and self._session.conf.get("spark.sql.catalogImplementation", "") == "in-memory":
            raise ScoringError(
                "a table's name needs a catalog that outlives the session",
                got=f"{table} and Spark's own, in memory",
                next_step=f"name a path (delta:{table}), or run it where Spark has a metastore",
            )

    def ingest(self, rows: pa.Table, key: str | None, *, replace: bool) -> tuple[int, int, int, Any, bool]:
        """Rows before, rows that are new, rows that differ, the key of one of these, and whether the content (without a key) is another
        one. Writes where nothing differs, or with `replace`.

        Raises:
            ScoringError: other columns; another writer; what Spark says.
        """
        from pyspark.sql import functions

        with self._one_line():
            new = self._session.createDataFrame(rows)
            there = self._read()
            if there is None:
                self._write(new, "errorifexists")
                return 0, len(rows), 0, None, False
            different = set(there.columns) ^ set(rows.column_names)
            num_before = int(there.count())
            if different and not replace:
                raise ScoringError(
                    "output: the table has other columns", got=", ".join(sorted(different)), next_step="--replace writes it anew"
                )
            if different:
                self._write(new, "overwrite")
                return num_before, len(rows), 0, None, True
            new = new.select(*(functions.col(f"`{each.name}`").cast(each.dataType).alias(each.name) for each in there.schema))
            if key is None:
                is_other = num_before != len(rows) or not new.exceptAll(there).isEmpty()
                if is_other and replace:
                    self._write(new, "overwrite")
                return num_before, len(rows) if is_other and replace else 0, 0, None, is_other
            old = there.select(*(functions.col(f"`{name}`").alias(f"there_{number}") for number, name in enumerate(there.columns)))
            position = there.columns.index(key)
            both = new.join(old, functions.col(f"`{key}`").eqNullSafe(functions.col(f"there_{position}")), "left")
            is_fresh = functions.col(f"there_{position}").isNull()
            same = functions.lit(True)
            for number, name in enumerate(there.columns):
                same = same & functions.col(f"`{name}`").eqNullSafe(functions.col(f"there_{number}"))
            figures = both.agg(
                functions.count_if(is_fresh).alias("fresh"),
                functions.count_if(~is_fresh & ~same).alias("changed"),
                functions.min(functions.when(~is_fresh & ~same, functions.col(f"`{key}`").cast("string"))).alias("example"),
            ).first()
            num_fresh, num_changed = int(figures["fresh"]), int(figures["changed"])
            if replace and (num_changed or num_before != len(rows) or num_fresh):
                self._write(new, "overwrite")
                return num_before, len(rows), num_changed, figures["example"], True
            if num_changed == 0 and num_fresh:
                self._write(new.join(there.select(key), key, "left_anti").select(*there.columns), "append")
                if int(self._read().count()) != num_before + num_fresh:
                    raise ScoringError(
                        "one ingest at a time must write to a table", got=f"another one at {self._table}", next_step="run it again"
                    )
            return num_before, num_fresh, num_changed, figures["example"], False

    @property
    def version(self) -> int | None:
        with self._one_line():
            return self._version()

    def _version(self) -> int:
        name = self._table.location if self._table.kind == "catalog" else f"delta.`{self._table.location}`"
        return int(self._session.sql(f"DESCRIBE HISTORY {name} LIMIT 1").first()["version"])

    def _read(self) -> Any:
        """None where there is no such table."""
        try:
            reader = self._session.table if self._table.kind == "catalog" else self._session.read.format("delta").load
            frame = reader(self._table.location)
            _ = frame.schema
        except Exception as error:  # pyspark's, py4j's and gRPC's have no common base
            if any(name in str(error) for name in _MISSING):
                return None
            raise
        return frame

    def _write(self, frame: Any, mode: str) -> None:
        writer = frame.write.format("delta").mode(mode)
        if mode == "append":
            writer = writer.option("txnAppId", INGEST).option("txnVersion", self._version() + 1)
        if mode == "overwrite":
            writer = writer.option("overwriteSchema", "true")
        if self._table.kind == "catalog":
            writer.saveAsTable(self._table.location)
        else:
            writer.save(self._table.location)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except ScoringError:
            raise
        except Exception as error:
            reason = spark_session.reason_of(error)
            raise ScoringError(
                "output: Spark must write it", got=f"{self._table}: {reason}", next_step="check its name and your rights"
            ) from error
