"""A folder of CSV files, as Spark is to read it: all text, and what could not be taken apart."""

from __future__ import annotations

from typing import Any

from pyspark.sql import types as T

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import CORRUPT
from toolkit.core.table_names import CSV_ENDINGS, TableName
from toolkit.engines.csv_files import CsvFormat, csv_format


def csv_schema(table: TableName) -> T.StructType:
    """Text columns, for types that are guessed from one file would turn what does not fit of the next into nulls, unseen; and what could
    not be taken apart."""
    header = _csv_format(table).header
    return T.StructType([T.StructField(name, T.StringType()) for name in (*header, CORRUPT)])


def _csv_format(table: TableName) -> CsvFormat:
    assert table.path is not None, "a CSV folder is on this machine, or on a Volume"
    path = (
        table.path
        if table.path.is_file()
        else min(path for path in table.path.rglob("*") if path.is_file() and path.name.lower().endswith(CSV_ENDINGS))
    )
    found = csv_format(path)
    if found.decimal != ".":
        raise ScoringError(
            "input: numbers of a CSV file must have decimal points", got=f"decimal commas in {path.name}",
            next_step="write the table as Parquet, or by toolkit ingest",
        )  # fmt: skip
    return found


def csv_options(table: TableName) -> dict[str, Any]:
    how = _csv_format(table)
    # Rows must be taken apart in the same way whichever columns are asked for: else what is malformed depends on the query.
    return {
        "header": True, "sep": how.delimiter, "encoding": how.encoding, "enforceSchema": False, "columnPruning": False,
        "mode": "PERMISSIVE", "columnNameOfCorruptRecord": CORRUPT, "recursiveFileLookup": True, "pathGlobFilter": "*.[ct]sv*",
    }  # fmt: skip
