"""Whatever `Dataset.load` is, read into a frame: pandas, Arrow, Spark DataFrames, CSV, Parquet, Delta, table names.

What the frame must hold is checked in `core.encoding`.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import importlib.util
import inspect
import io
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.core.data import DataContext, Loaded, LoadedData
from toolkit.core.encoding import encode, refuse_names, repeated
from toolkit.core.errors import DataError, UserError
from toolkit.core.experiment import Dataset, Experiment
from toolkit.core.recipes import FILE_MODULE

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
TABLE_NAME = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")
SNIFFED_BYTES = 1 << 16


def load_data(experiment: Experiment, context: DataContext) -> LoadedData:
    """Read, check and encode the experiment's table, and its hold-out table where it names one.

    `context.data` (`--data`) replaces a path or table name; a load function must take the context to see it.

    Returns:
        features (n, d) float32 in the table's column order, label (n,) float32; see `LoadedData`.

    Raises:
        DataError: the table cannot be read, or does not fit the experiment.
    """
    dataset, task = experiment.dataset, experiment.model.task
    data = encode(*_fetch(dataset.load, context, "dataset.load", dataset), dataset, task)
    if experiment.model.kind == "xgboost":
        refuse_names([name for name in data.feature_names if re.search(r"[\[\]<]", name)], "feature names: XGBoost takes none of [ ] <")
    if dataset.holdout is None:
        return data
    # --data stands for the table that is trained on, never for the one that judges.
    fetched = _fetch(dataset.holdout, dataclasses.replace(context, data=None), "dataset.holdout", dataset)
    return dataclasses.replace(data, test=encode(*fetched, dataset, task, like=data))


def read_table(name: str | Path) -> pd.DataFrame:
    """Read a CSV file (UTF-8; delimiter and decimal sign are found out), a Parquet file or folder, a Delta folder, or
    `catalog.schema.table` through the active Spark session.

    Raises:
        DataError: there is no such thing, it is empty, or cannot be read.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if TABLE_NAME.fullmatch(str(name)) and path.suffix not in (".csv", ".parquet"):
            return _read_spark_table(str(name))
        raise DataError(
            "data: no such file, folder or table", got=repr(str(name)), next_step="check the path, or name catalog.schema.table"
        )
    try:
        if path.is_dir():
            return _read_folder(path)
        with path.open("rb") as file:
            magic = file.read(4)
        if not magic:
            raise DataError("data: the file is empty", got=str(path), next_step="name a file with a header and rows")
        return _read_parquet(path) if magic == b"PAR1" else _read_csv(path)
    except OSError as error:
        raise DataError("data: cannot be read", got=f"{path}: {error.strerror or error}", next_step="check the file") from error


# ---- reading


def _read_folder(path: Path) -> pd.DataFrame:
    if (path / "_delta_log").is_dir():
        return _read_delta(path)
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


def _read_delta(path: Path) -> pd.DataFrame:
    if importlib.util.find_spec("deltalake") is None:
        session = _active_spark()
        if session is None:
            raise DataError(
                "data: a Delta table needs the package deltalake or an active Spark session",
                got=f"{path} and neither",
                next_step="pip install deltalake",
            )
        return _from_spark(lambda: session.read.format("delta").load(str(path)), str(path))
    import deltalake
    from deltalake.exceptions import DeltaError

    try:
        frame: pd.DataFrame = deltalake.DeltaTable(path).to_pyarrow_table().to_pandas()
    except DeltaError as error:
        raise DataError("data: not a readable Delta table", got=f"{path}: {error}", next_step="read it with Spark") from error
    return frame


def _active_spark() -> Any:
    """The running session, if the process has one. Without pyspark loaded it has none, so that nothing is imported here."""
    module = sys.modules.get("pyspark.sql")
    return None if module is None else module.SparkSession.getActiveSession()


def _read_spark_table(name: str) -> pd.DataFrame:
    session = _active_spark()
    if session is None:
        raise DataError(
            "data: a table name needs an active Spark session",
            got=f"{name!r} and none",
            next_step="run it where Spark runs (Databricks), or name a file",
        )
    return _from_spark(lambda: session.table(name), name)


def _from_spark(read: Callable[[], Any], name: str) -> pd.DataFrame:
    try:
        return _as_frame(read(), name)
    except UserError:
        raise
    except Exception as error:  # Spark's own tree differs between classic and Connect; its first line names the reason
        raise DataError("data: Spark cannot read it", got=f"{name}: {str(error).splitlines()[0]}") from error


def _read_csv(path: Path) -> pd.DataFrame:
    delimiter, decimal, header = _sniff(path)
    refuse_names(repeated(header), f"data: column names must differ ({path.name}, delimiter {DELIMITERS[delimiter]})")
    try:
        return pd.read_csv(path, sep=delimiter, decimal=decimal, skipinitialspace=True, low_memory=False, encoding="utf-8")
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"data: {path.name} is not a table with delimiter {DELIMITERS[delimiter]}", got=str(error), next_step="correct the file"
        ) from error


def _sniff(path: Path) -> tuple[str, str, list[str]]:
    """Delimiter, decimal sign and header, from the file's beginning."""
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    complete = len(head) < SNIFFED_BYTES
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, complete)
    except UnicodeDecodeError as error:
        raise DataError("data: must be Parquet, or CSV in UTF-8", got=f"{path}: {error.reason}", next_step="convert it") from error
    if "\0" in text:
        raise DataError("data: must be Parquet, or CSV in UTF-8", got=f"{path} with binary content", next_step="convert it")
    tables = {mark: _rows(text, mark, complete) for mark in DELIMITERS}
    if not tables[","]:
        raise DataError("data: the file is empty", got=str(path), next_step="name a file with a header and rows")
    delimiter = max(tables, key=lambda mark: (_is_even(tables[mark]), len(tables[mark][0])))
    header, *rows = tables[delimiter]
    if len(header) < 2:
        raise DataError(
            f"data: columns must be divided by one of {', '.join(DELIMITERS.values())}",
            got=f"one column in {path.name}, whose first line is {text.splitlines()[0][:60]!r}{_other_mark(text)}",
            next_step="write it with one of these delimiters",
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(
                f"data: {path.name} has {len(header)} columns (delimiter found: {DELIMITERS[delimiter]})",
                got=f"{len(row)} in row {number}",
                next_step="correct the row, or quote its text",
            )
    cells = [cell for row in rows for cell in row]
    has_comma = any(re.fullmatch(r"[+-]?\d*,\d+([eE][+-]?\d+)?", cell) for cell in cells)
    has_point = any(re.fullmatch(r"[+-]?\d*\.\d+([eE][+-]?\d+)?", cell) for cell in cells)
    return delimiter, "," if delimiter != "," and has_comma and not has_point else ".", header


def _rows(text: str, delimiter: str, complete: bool) -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    if not complete and len(rows) > 1:
        rows.pop()  # cut off in its middle
    return [row for row in rows if row]


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    return len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows)


def _other_mark(text: str) -> str:
    """Names the delimiter of a file that uses one we do not take: a sign as often in every line."""
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    for mark in (":", "^", "~", "#", "/", " "):
        counts = {line.count(mark) for line in lines}
        if len(counts) == 1 and counts.pop() > 0:
            return f" (delimiter found: {mark!r})"
    return ""


# ---- from `load` to a frame


def _fetch(load: str | Path | Callable[..., Any], context: DataContext, field: str, dataset: Dataset) -> tuple[pd.DataFrame, str, str]:
    """The table as a frame of its own, and where it came from: (frame, kind, location)."""
    if callable(load):
        result = _call(load, context, field)
        if not isinstance(result, Loaded):
            name = getattr(load, "__qualname__", type(load).__name__)
            result = Loaded(result, "function", f"{load.__module__.removeprefix(FILE_MODULE)}:{name}")
    else:
        path = context.data or load
        is_table = not Path(path).expanduser().exists() and TABLE_NAME.fullmatch(str(path))
        result = Loaded(path, "table" if is_table else "file", str(path))
    frame = _as_frame(result.table, field)
    # An index is no column. One with a name that the dataset uses is: pandas writes it to Parquet and reads it back as an index.
    wanted = [name for name in frame.index.names if name in dataset.not_features and name not in frame.columns]
    frame = frame.reset_index(level=wanted).reset_index(drop=True) if wanted else frame.reset_index(drop=True)
    frame.columns = pd.Index([str(name) for name in frame.columns])
    return frame, result.kind, result.location


def _call(load: Callable[..., Any], context: DataContext, field: str) -> Any:
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


def _as_frame(table: Any, field: str) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, str | Path):
        return read_table(table)
    if hasattr(table, "toArrow"):  # Spark 4; `toPandas` would go row by row unless a setting says otherwise
        table = table.toArrow()
    for method in ("to_pandas", "toPandas"):
        if hasattr(table, method):
            frame: pd.DataFrame = getattr(table, method)()
            return frame
    raise DataError(
        f"{field}: must give a pandas frame, an Arrow table, a Spark DataFrame, a path or a table name", got=type(table).__name__
    )
