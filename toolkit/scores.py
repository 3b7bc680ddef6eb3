"""`toolkit.read_scores`: what `toolkit score` has written, without what it has not committed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from toolkit.core.errors import ScoringError, nearest
from toolkit.core.table_names import TableName, spark_path

if TYPE_CHECKING:
    import pandas as pd


@overload
def read_scores(path: str | Path, *, columns: Sequence[str] | None = None, filters: Any = None, session: None = None) -> pd.DataFrame: ...
@overload
def read_scores(path: str | Path, *, columns: Sequence[str] | None = None, session: Any) -> Any: ...


def read_scores(path: str | Path, *, columns: Sequence[str] | None = None, filters: Any = None, session: Any = None) -> Any:
    """The scores of an output, or the rows of a quarantine, as they are committed now: of a Parquet output only batches with a manifest,
    without the rows that later ones replace.

    Without `session` all of it comes into the memory of this process. For more than that name columns and filters, or a session.

    Args:
        path: a Delta path, the folder of a Parquet output or, with a session, `catalog.schema.table`.
        columns: None for all; only these are read.
        filters: as of `pandas.read_parquet`, for example `[("scored_at_utc", ">=", monday)]`; a Spark frame has its own.
        session: of Spark, classic or Connect: its executors read it.

    Returns:
        A pandas frame, in the order of the batches for Parquet; with a session a Spark frame, which for a table's name shows what is
        committed when it is executed. `batch_id` is an int64.

    Raises:
        ScoringError: there is no such output, nor column; a file of it is missing or has changed; it needs a session.
    """
    table = _find(path)
    if session is not None:
        if filters is not None:
            raise ScoringError("filters: of a pandas frame", got="a session, too", next_step="use .where() of the Spark frame")
        from toolkit.engines import spark_read_scores

        return spark_read_scores.read(session, table, columns)
    if table.path is None:
        raise ScoringError("scores: this table needs a Spark session", got=str(table), next_step="give session=spark")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        where = None if filters is None else pq.filters_to_expression(filters)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise ScoringError(
            "filters: as of pandas.read_parquet", got=f"{filters!r}: {error}", next_step='for example [("batch_id", ">=", 3)]'
        ) from error
    if table.kind == "delta":
        return _read_delta(table.path, columns, where).to_pandas()
    from toolkit.engines import parquet_batches

    return parquet_batches.read(table.path, columns, where).to_pandas()


def _find(path: str | Path) -> TableName:
    from toolkit.engines.parquet_batches import manifests_folder

    try:
        table = TableName.parse(path, role="input")
    except ScoringError:
        # An output whose batches have no rows may have no Parquet file.
        folder = Path(os.path.realpath(Path(str(path).removeprefix("parquet:")).expanduser()))
        if not manifests_folder(folder).is_dir():
            raise
        return TableName("parquet", spark_path(folder), folder, str(folder), exists=True)
    if table.kind in ("delta", "catalog") or (table.path is not None and manifests_folder(table.path).is_dir()):
        return table
    if table.kind == "parquet" and table.path is None:
        raise ScoringError("scores: a Parquet output must be on a disk or a Volume", got=str(table), next_step="name its path there")
    raise ScoringError(
        "scores: must be an output of `toolkit score`",
        got=f"{table}, {table.kind} without a committed batch",
        next_step="name the output, or read it with toolkit.read_table",
    )


def _read_delta(path: Path, columns: Sequence[str] | None, where: Any) -> Any:
    if importlib.util.find_spec("deltalake") is None:
        raise ScoringError(
            "scores: a Delta table needs the package deltalake or a session", got=f"{path} and neither", next_step="pip install deltalake"
        )
    import deltalake
    import pyarrow as pa
    from deltalake.exceptions import DeltaError

    try:
        dataset = deltalake.DeltaTable(path).to_pyarrow_dataset()
        unknown = [name for name in columns or () if name not in dataset.schema.names]
        if not unknown:
            return dataset.to_table(columns=None if columns is None else list(columns), filter=where)
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise ScoringError(
            "scores must be readable", got=f"{path}: {error}", next_step="check the filters, or give session=spark"
        ) from error
    raise ScoringError(f"columns: no such column in {path}", got=repr(unknown[0]), next_step=nearest(unknown[0], dataset.schema.names))
