"""Spark tables, collected to the driver: through Arrow, within its memory, their rows in an order that can be repeated.

Works on classic and Connect frames. Only what has Spark loaded already imports this file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, MapType, StructType, UserDefinedType, VariantType

from toolkit.core.encoding import refuse_names, repeated
from toolkit.core.errors import DataError
from toolkit.core.machine import memory_bytes
from toolkit.core.table_names import spark_path
from toolkit.engines.arrow_frames import ordered_frame

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# What a table may take of the driver's memory. It is there twice while pandas takes it over from Arrow (2 ×). Later there are three
# float32 copies (3 × at most): the feature matrix, the split's parts, and those in Ray's object store. The rest is for Spark's JVM and the
# libraries.
MEMORY_SHARE = 0.25
SAMPLE_ROWS = 1000
FLOAT32_BYTES = 4
GIB = 2**30

_WRITE_FAILED = "[TASK_WRITE_FAILED]"  # which says nothing of why
RESULT_SIZE = "spark.driver.maxResultSize"
NESTED = (ArrayType, MapType, StructType, UserDefinedType, VariantType)


def is_frame(table: object) -> TypeGuard[DataFrame]:
    """Whether it is a Spark DataFrame, classic or Connect."""
    return isinstance(table, DataFrame)


def read_table(session: SparkSession, name: str, *, key: str | None = None, exclude: Collection[str] = ()) -> pd.DataFrame:
    """A table by its name, `catalog.schema.table` or `schema.table`; see `collect`.

    Raises:
        DataError: as `collect`; there is no such table, or it may not be read.
    """
    quoted = ".".join(f"`{part}`" for part in name.split("."))  # a hyphen needs the quotes
    with one_line(name, "check the path or the table's name, and that you may read it"):
        frame = session.table(quoted)
        _ = frame.schema  # Connect looks a name up no earlier than here
    return collect(frame, name, key=key, exclude=exclude)


def read_delta(session: SparkSession, path: Path, *, key: str | None = None, exclude: Collection[str] = ()) -> pd.DataFrame:
    """A Delta folder through the session; see `collect`.

    Raises:
        DataError: as `collect`; the session has no Delta, or the folder is none.
    """
    with one_line(str(path), "pip install deltalake, or start Spark with Delta"):
        frame = session.read.format("delta").load(str(path))
        _ = frame.schema
    return collect(frame, str(path), key=key, exclude=exclude)


def collect(
    frame: DataFrame, name: str, *, key: str | None = None, exclude: Collection[str] = (), limit_bytes: int | None = None
) -> pd.DataFrame:
    """All rows of a Spark frame, through Arrow, sorted by `key` or else by all columns: Spark promises no order.

    Its plan runs three times (a sample, a count, the rows), so an expensive one should be cached.

    Args:
        name: for messages.
        exclude: columns that do not count for the order; they alone may be nested.
        limit_bytes: what the table may take; MEMORY_SHARE of what this process may use where None. Estimated beforehand: counted rows ×
            bytes a row, the larger of what a sample of the first rows takes and what float32 features would.

    Returns:
        (n, d); types as `ordered_frame` makes them.

    Raises:
        DataError: columns that are nested or of one name, a table over the limit or over Spark's own, or what Spark says.
    """
    with one_line(name, "correct the query"):
        schema = frame.schema
    refuse_names(repeated(schema.names), f"data: column names must differ ({name})")
    _refuse_nested(schema, name, exclude)
    with one_line(name, "correct the query"):
        sample: pa.Table = frame.limit(SAMPLE_ROWS).toArrow()
    sampled = ordered_frame(sample, key, exclude)
    if len(sampled) < SAMPLE_ROWS:
        return sampled
    sample_bytes = max(sample.nbytes, int(sampled.memory_usage(index=False, deep=True).sum()), FLOAT32_BYTES * sampled.size)
    with one_line(name, "correct the query"):
        num_rows = frame.count()
    num_bytes = math.ceil(num_rows * sample_bytes / len(sampled))
    limit_bytes = int(MEMORY_SHARE * memory_bytes()) if limit_bytes is None else limit_bytes
    if num_bytes > limit_bytes:
        raise DataError(
            f"data: a Spark table is collected to the driver, where it may take {_gib(limit_bytes)}",
            got=f"{num_rows:,} rows × {len(schema)} columns, about {_gib(num_bytes)}, in {name}",
            next_step="select columns or sample rows in dataset.load, or use a driver with "
            f"{math.ceil(num_bytes / MEMORY_SHARE / GIB):,} GiB of memory ({MEMORY_SHARE:.0%} of it may be the table)",
        )
    with one_line(name, "correct the query", num_bytes):
        table: pa.Table = frame.toArrow()
    return ordered_frame(table, key, exclude)


def write_parquet(frame: DataFrame, folder: Path, name: str) -> None:
    """Write a Spark frame as Parquet files, by its executors; `name` is for messages.

    Raises:
        DataError: Spark cannot read it, or cannot write there.
    """
    with one_line(name, "check the table, and that training.storage_path can be written to"):
        frame.write.mode("overwrite").parquet(spark_path(folder.absolute()))


def _refuse_nested(schema: StructType, name: str, exclude: Collection[str]) -> None:
    nested = [field for field in schema.fields if isinstance(field.dataType, NESTED) and field.name not in exclude]
    if nested:
        raise DataError(
            f"data: a column must hold single values ({name})",
            got=", ".join(f"{field.name!r} ({field.dataType.simpleString()[:40]})" for field in nested[:5]),
            next_step="take them apart or drop them in dataset.load, or name them in dataset.exclude",
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / GIB:.2g} GiB"


@contextmanager
def one_line(name: str, next_step: str, num_bytes: int = 0) -> Iterator[None]:
    """Spark's errors as ours. `num_bytes` is the estimate, for the value to give to Spark's own limit."""
    try:
        yield
    except Exception as error:  # pyspark's, py4j's, gRPC's and Arrow's have no common base
        if RESULT_SIZE in str(error):
            # Twice, for the estimate is from the first rows, and each task's result has a little more than its rows.
            value = f"{RESULT_SIZE}={math.ceil(2 * num_bytes / GIB) or 1}g"
            raise DataError(
                f"data: a collected Spark table must be below {RESULT_SIZE}",
                got=f"about {_gib(num_bytes)} in {name}" if num_bytes else name,
                next_step=f"start Spark with {value} (--spark-conf {value}; a running session keeps its value, so set it in the cluster's "
                "Spark config and restart), or select columns or sample rows in dataset.load",
            ) from error
        raise DataError("data: Spark cannot read it", got=f"{name}: {_reason(error)}", next_step=next_step) from error


def java_stack(error: BaseException) -> str:
    """With all causes; empty where the error is not the JVM's."""
    return str(getattr(error, "_stackTrace", "") or "")


def _reason(error: Exception) -> str:
    """The line of Spark's many that says why."""
    text = str(error)
    if text.startswith(_WRITE_FAILED):
        text = java_stack(error) or text
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if "Traceback (most recent call last):\n" in text:  # a Python worker's: what follows the last frame, as the first line not indented
        _, _, stack = text.rpartition("Traceback (most recent call last):\n")
        return next((line for line in stack.splitlines() if line and not line[0].isspace()), lines[-1])
    if lines[0].startswith("An error occurred while calling") and lines[1:]:  # py4j's own, which only names the call; a Java stack follows
        lines.pop(0)
    causes = [_without_class(line) for line in lines[:1] + [line for line in lines[1:] if line.startswith("Caused by: ")]]
    # What has a name among Spark's errors was written for users; else the innermost is the reason.
    return next((cause for cause in causes if cause.startswith("[") and not cause.startswith(_WRITE_FAILED)), causes[-1])


def _without_class(line: str) -> str:
    """`[NOT_FOUND] There is…` of `Caused by: org.apache.spark.SparkException: [NOT_FOUND] There is…`."""
    line = re.sub(r"^(Caused by: |: |\([\w.$]+\) )", "", line)  # the last is Connect's way
    before, _, message = line.partition(": ")
    return message if message and " " not in before else line
