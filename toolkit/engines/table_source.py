"""What an experiment's `load` gives before its rows are read, and how large that is: so that a large table never comes here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.data import DataContext, Loaded
from toolkit.core.errors import ClusterError, DataError
from toolkit.core.experiment import Experiment
from toolkit.core.recipes import FILE_MODULE
from toolkit.core.secrets import without_secrets
from toolkit.engines import spark_session, tables
from toolkit.engines.spark_master import check_reachable
from toolkit.engines.table_samples import _dataset

if TYPE_CHECKING:
    from toolkit.settings import Settings

LOCAL_MASTER = "local[*]"
# A session of one's own on this machine: nothing of it is for other hosts, and nobody looks at its pages.
_LOCAL_CONF = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false"}


@dataclass(frozen=True)
class TableSource:
    """A table that is not read yet: `table` is anything that `Dataset.load` may return, and no `Loaded`."""

    table: Any
    kind: str
    location: str

    @property
    def is_spark(self) -> bool:
        """A Spark frame, or the name of a table, which only a session knows."""
        return self._is_frame or (isinstance(self.table, str | Path) and tables._is_table(self.table))

    @property
    def path(self) -> Path | None:
        """Of a Parquet file or folder, or a Delta folder."""
        if not isinstance(self.table, str | Path) or self.is_spark:
            return None
        path = Path(self.table).expanduser()
        return path if _dataset(path) is not None or (path / "_delta_log").is_dir() else None

    @property
    def _is_frame(self) -> bool:
        return type(self.table).__module__.startswith("pyspark.sql.")

    def size(self) -> tuple[int, int] | None:
        """Rows and columns, from Parquet's and Delta's own books; None for what they do not tell, or what is in memory already."""
        path = self.path
        dataset = _dataset(path) if path is not None else None
        return None if dataset is None else (dataset.count_rows(), len(dataset.schema))

    def fetch(self, experiment: Experiment, context: DataContext) -> tables.Fetched:
        """Read it, as `tables.fetch` does.

        Raises:
            DataError: it cannot be read.
        """
        loaded = Loaded(self.table, self.kind, self.location)
        dataset = dataclasses.replace(experiment.dataset, load=lambda: loaded)
        return tables.fetch(dataclasses.replace(experiment, dataset=dataset), dataclasses.replace(context, data=None))


def find(experiment: Experiment, context: DataContext) -> TableSource:
    """Call the load function, where there is one.

    Raises:
        DataError: it fails; there is no such file, folder or table.
    """
    load = experiment.dataset.load
    if not callable(load):
        table: Any = context.data or load
        if not tables._is_table(table) and not Path(table).expanduser().exists():
            tables.read_table(table)  # which says so
        return TableSource(table, "table" if tables._is_table(table) else "file", str(table))
    result = tables._call(load, context, "dataset.load")
    if isinstance(result, Loaded):
        return TableSource(result.table, result.kind, result.location)
    name = getattr(load, "__qualname__", type(load).__name__)
    return TableSource(result, "function", f"{load.__module__.removeprefix(FILE_MODULE)}:{name}")


def open_session(stack: ExitStack, master: str | None, conf: Mapping[str, str], settings: Settings, app_name: str) -> Any:
    """The active session, or one on `master` (default: this machine), which ends with `stack`.

    Raises:
        ClusterError: one line for whatever stands in the way.
    """
    if settings.on_databricks:
        spark_session.has_executors(open_one=True)  # joins the platform's session where this process has not yet
    session = spark_session.active_session()
    if session is not None:
        if conf or master:
            raise ClusterError(
                "--spark-master and --spark-conf are for a session that is started for the exploration", got="an active session",
                next_step="leave them out, or stop that session",
            )  # fmt: skip
        return session
    master = master or conf.get("spark.master") or LOCAL_MASTER
    if settings.spark_remote or master.startswith("sc://"):
        raise ClusterError(
            "explore starts no Spark Connect session",
            got="SPARK_REMOTE" if settings.spark_remote else "sc://…",
            next_step="unset it, or call toolkit.explore.explore where such a session is active",
        )
    spark_session._check_java(settings.java_home)
    check_reachable(master)
    local = _LOCAL_CONF if master.startswith("local") else {}
    session, jvm = spark_session._open(master, {**local, **conf}, app_name)
    stack.callback(jvm.stop, session)
    jvm.show()
    return session


def spark_frame(source: TableSource, session: Any) -> Any:
    """The table as a Spark DataFrame, unread.

    Raises:
        DataError: Spark cannot read it.
    """
    from toolkit.engines.spark_tables import _one_line

    if source._is_frame:
        return source.table
    path, name = source.path, without_secrets(source.location)
    if path is None and not source.is_spark:
        raise DataError(
            "Spark can read Parquet, Delta and tables by name",
            got=name if isinstance(source.table, str | Path) else f"a {type(source.table).__name__} from {name}",
            next_step="leave --spark-master out, or write it as Parquet",
        )
    if path is None:
        quoted = ".".join(f"`{part}`" for part in str(source.table).split("."))
        with _one_line(name, "check the table's name, and that you may read it"):
            frame = session.table(quoted)
            _ = frame.schema
        return frame
    is_delta = (path / "_delta_log").is_dir()
    with _one_line(name, "start Spark with Delta's jars and extension, by --spark-conf" if is_delta else "check the file"):
        # A Volume is Databricks' own; any other path was found on this machine's disk, whatever Spark's default file system is.
        where = str(path.absolute()) if path.absolute().is_relative_to("/Volumes") else path.absolute().as_uri()
        frame = session.read.format("delta" if is_delta else "parquet").load(where)
        _ = frame.schema
    return frame


def write_parquet(frame: Any, folder: Path, name: str) -> None:
    """Write a Spark frame as Parquet files, by its executors; `name` is for messages.

    Raises:
        DataError: Spark cannot read it, or cannot write there.
    """
    from toolkit.engines.spark_tables import _one_line

    with _one_line(name, "check the table, and that training.storage_path can be written to"):
        frame.write.mode("overwrite").parquet(folder.absolute().as_uri())


def count_rows(frame: Any, name: str) -> int:
    """Of a Spark frame.

    Raises:
        DataError: Spark cannot read it.
    """
    from toolkit.engines.spark_tables import _one_line

    with _one_line(name, "correct the query"):
        return int(frame.count())
