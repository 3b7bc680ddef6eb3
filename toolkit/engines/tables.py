"""Whatever `Dataset.load` is, read into a frame: pandas, Arrow, Spark DataFrames, CSV, Parquet, Delta, table names.

What the frame must hold is checked in `core.encoding`. Files keep their rows' order. A Delta or Spark table has none: its rows are sorted
by `dataset.key` or, without one, by all columns, so that every reading gives the same `data.sha256` and the same split.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.core.data import DataContext, Loaded, LoadedData
from toolkit.core.encoding import encode, refuse_names
from toolkit.core.errors import DataError, UserError
from toolkit.core.experiment import Dataset, Experiment
from toolkit.core.recipes import FILE_MODULE
from toolkit.core.secrets import without_secrets
from toolkit.core.table_names import has_form_of_table_name
from toolkit.engines.csv_files import read_csv
from toolkit.engines.spark_session import active_session


@dataclass(frozen=True)
class Fetched:
    """A table as it was read, before anything of it is checked; `kind` and `location` as in `core.data.DataSource`."""

    frame: pd.DataFrame
    kind: str
    location: str


def fetch(experiment: Experiment, context: DataContext) -> Fetched:
    """Read the experiment's table.

    `context.data` (`--data`) replaces a path or table name; a load function must take the context to see it.

    Raises:
        DataError: it cannot be read.
    """
    return _fetch(experiment.dataset.load, context, "dataset.load", experiment.dataset)


def fetch_holdout(experiment: Experiment, context: DataContext, name: str | Path | Callable[..., Any] | None = None) -> Fetched | None:
    """Read the hold-out `name`, in any form of `dataset.holdout`, or else the experiment's own; None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    source = experiment.dataset.holdout if name is None else name
    if source is None:
        return None
    if not isinstance(source, str | Path) and not callable(source):
        raise DataError(
            "hold-out: a path, a table name, or a function that returns the table",
            got=type(source).__name__,
            next_step="for example holdout=lambda: frame",
        )
    # --data stands for the table that is trained on, never for the one that judges.
    return _fetch(source, dataclasses.replace(context, data=None), "dataset.holdout", experiment.dataset)


def encode_fetched(experiment: Experiment, fetched: Fetched, holdout: Fetched | None = None) -> LoadedData:
    """Check and encode a fetched table, and its hold-out table where there is one.

    Returns:
        features (n, d) float32 in the table's column order, label (n,) float32; see `LoadedData`.

    Raises:
        DataError: the table does not fit the experiment.
    """
    dataset, task = experiment.dataset, experiment.model.task
    data = encode(fetched.frame, fetched.kind, fetched.location, dataset, task)
    if experiment.model.kind == "xgboost":
        refuse_names([name for name in data.feature_names if re.search(r"[\[\]<]", name)], "feature names: XGBoost takes none of [ ] <")
    if holdout is None:
        return data
    return dataclasses.replace(data, test=encode(holdout.frame, holdout.kind, holdout.location, dataset, task, like=data))


def load_data(experiment: Experiment, context: DataContext) -> LoadedData:
    """Read, check and encode the experiment's table, and its hold-out table where it names one.

    Raises:
        DataError: the table cannot be read, or does not fit the experiment.
    """
    return encode_fetched(experiment, fetch(experiment, context), fetch_holdout(experiment, context))


def read_table(name: str | Path) -> pd.DataFrame:
    """Read a CSV file (delimiter, decimal mark and encoding are found out), a Parquet file or folder, a Delta folder, or
    `catalog.schema.table` or `schema.table` through the active Spark session.

    A Delta or Spark table comes sorted by all its columns, for it has no order of its own.

    Raises:
        DataError: there is no such thing, it is empty, cannot be read, or is too large for the driver (`spark_tables.collect`).
    """
    return _read(name, None)


# ---- reading


def _read(name: str | Path, dataset: Dataset | None) -> pd.DataFrame:
    path = Path(name).expanduser()
    if not path.exists():
        if is_table_name(name):
            return _read_spark_table(str(name), dataset)
        raise DataError(
            "data: no such file, folder or table",
            got=repr(without_secrets(str(name))),
            next_step="check the path, or name catalog.schema.table",
        )
    try:
        if path.is_dir():
            return _read_folder(path, dataset)
        with path.open("rb") as file:
            magic = file.read(4)
        if not magic:
            raise DataError("data: the file is empty", got=str(path), next_step="name a file with a header and rows")
        return _read_parquet(path) if magic == b"PAR1" else read_csv(path)
    except OSError as error:
        raise DataError("data: cannot be read", got=f"{path}: {error.strerror or error}", next_step="check the file") from error


def is_table_name(name: str | Path) -> bool:
    """Whether a name stands for a Spark table, not a path. Two parts only where a session could know them: `data.old` is a file's too."""
    return has_form_of_table_name(name) and (str(name).count(".") == 2 or active_session() is not None)


def _read_folder(path: Path, dataset: Dataset | None) -> pd.DataFrame:
    if (path / "_delta_log").is_dir():
        return _read_delta(path, dataset)
    if next(path.rglob("*.parquet"), None) is None:
        raise DataError("data: a folder must hold Parquet files or a Delta table", got=str(path), next_step="name the file itself")
    return _read_parquet(path)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise DataError("data: not a readable Parquet table", got=f"{path}: {error}", next_step="write it again") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _read_delta(path: Path, dataset: Dataset | None) -> pd.DataFrame:
    from toolkit.engines.arrow_frames import ordered_frame

    if importlib.util.find_spec("deltalake") is None:
        session = active_session()
        if session is None:
            raise DataError(
                "data: a Delta table needs the package deltalake or an active Spark session",
                got=f"{path} and neither",
                next_step="pip install deltalake",
            )
        from toolkit.engines import spark_tables

        return spark_tables.read_delta(session, path, **_ordering(dataset))
    import deltalake
    from deltalake.exceptions import DeltaError

    try:
        table = deltalake.DeltaTable(path).to_pyarrow_table()
    except DeltaError as error:
        raise DataError("data: not a readable Delta table", got=f"{path}: {error}", next_step="read it with Spark") from error
    return ordered_frame(table, **_ordering(dataset))


def _ordering(dataset: Dataset | None) -> dict[str, Any]:
    """What the rows of a table without an order are sorted by."""
    return {} if dataset is None else {"key": dataset.key, "exclude": dataset.exclude}


def _read_spark_table(name: str, dataset: Dataset | None) -> pd.DataFrame:
    session = active_session()
    if session is None:
        raise DataError(
            "data: a table name needs an active Spark session",
            got=f"{name!r} and none",
            next_step="run it where Spark runs (Databricks), or name a file",
        )
    from toolkit.engines import spark_tables

    return spark_tables.read_table(session, name, **_ordering(dataset))


# ---- from `load` to a frame


def _fetch(load: str | Path | Callable[..., Any], context: DataContext, field: str, dataset: Dataset) -> Fetched:
    if callable(load):
        result = call_load(load, context, field)
        if not isinstance(result, Loaded):
            name = getattr(load, "__qualname__", type(load).__name__)
            result = Loaded(result, "function", f"{load.__module__.removeprefix(FILE_MODULE)}:{name}")
    else:
        path = context.data or load
        result = Loaded(path, "table" if is_table_name(path) else "file", str(path))
    frame = _as_frame(result.table, field, dataset)
    # An index is no column. One with a name that the dataset uses is: pandas writes it to Parquet and reads it back as an index.
    wanted = [name for name in frame.index.names if name in dataset.not_features and name not in frame.columns]
    frame = frame.reset_index(level=wanted).reset_index(drop=True) if wanted else frame.reset_index(drop=True)
    frame.columns = pd.Index([str(name) for name in frame.columns])
    return Fetched(frame, result.kind, result.location)


def call_load(load: Callable[..., Any], context: DataContext, field: str) -> Any:
    try:
        parameters = inspect.signature(load).parameters.values()
    except ValueError:  # a builtin without a signature
        parameters = {}.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise DataError(
            f"{field}: takes no argument, or one, the DataContext",
            got=f"{load.__name__}({', '.join(p.name for p in required)})",
            next_step="give the others defaults",
        )
    if context.data is not None and not required:
        raise DataError(
            f"{field}: takes no argument, so --data cannot reach it",
            got=f"--data {context.data}",
            next_step="give the function one argument, the DataContext, and read its .data",
        )
    try:
        return load(context) if required else load()
    except UserError:
        raise
    except Exception as error:  # the user's code: its own error, with the place in its own file
        file = getattr(getattr(load, "__code__", None), "co_filename", None)
        stack = traceback.extract_tb(error.__traceback__)
        place = next((step for step in reversed(stack) if step.filename == file), stack[-1])
        raise DataError(
            f"{field} must return a table",
            got=f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})",
            next_step="correct the function",
        ) from error


def _as_frame(table: Any, field: str, dataset: Dataset) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, str | Path):
        return _read(table, dataset)
    if "pyspark.sql" in sys.modules:
        from toolkit.engines import spark_tables

        if spark_tables.is_frame(table):
            return spark_tables.collect(table, field, **_ordering(dataset))
    if hasattr(table, "to_pandas"):
        frame: pd.DataFrame = table.to_pandas()
        return frame
    raise DataError(
        f"{field}: must give a pandas frame, an Arrow table, a Spark DataFrame, a path or a table name", got=type(table).__name__
    )
