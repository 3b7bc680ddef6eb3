"""A table where it is, as a Spark frame, and the session to look at it with. pyspark is imported when a session is needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ClusterError, DataError
from toolkit.core.table_names import spark_path
from toolkit.engines import spark_session
from toolkit.engines.spark_master import check_reachable
from toolkit.engines.table_source import TableSource

if TYPE_CHECKING:
    from toolkit.settings import Settings

LOCAL_MASTER = "local[*]"
# A session of one's own on this machine: nothing of it is for other hosts, nobody looks at its pages, and times in nanoseconds, as older
# versions of pandas write them, are whole numbers instead of an error.
_LOCAL_CONF = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}


def open_session(stack: ExitStack, master: str | None, conf: Mapping[str, str], settings: Settings, app_name: str) -> Any:
    """The active session, or one on `master` (default: this machine), which ends with `stack`.

    Raises:
        ClusterError: one line for whatever stands in the way.
    """
    session = spark_session.active_session()
    if session is not None:
        if conf or master:
            raise ClusterError(
                "--spark-master and --spark-conf are for a session that is started here", got="an active session",
                next_step="leave them out, or stop that session",
            )  # fmt: skip
        return session
    master = master or conf.get("spark.master") or LOCAL_MASTER
    if settings.spark_remote or master.startswith("sc://"):
        raise ClusterError(
            "a Spark session that is started here is no Connect one",
            got="SPARK_REMOTE" if settings.spark_remote else "sc://…",
            next_step="unset it, or call the verb from Python where such a session is active",
        )
    if importlib.util.find_spec("pyspark") is None:
        raise ClusterError(
            "a table of this size is counted by Spark",
            got="no pyspark",
            next_step='install "ray-spark-toolkit[spark]", or sample rows in dataset.load',
        )
    spark_session.check_java(settings.java_home)
    check_reachable(master)
    local = _LOCAL_CONF if master.startswith("local") else {}
    session, jvm = spark_session.open_new(master, {**local, **conf}, app_name)
    stack.callback(jvm.stop, session)
    jvm.show()
    return session


def frame_of(source: TableSource, session: Any, wanted: Collection[str]) -> Any:
    """The table as a Spark DataFrame, unread. `wanted`: columns that are kept even where they are an index of pandas.

    Raises:
        DataError: Spark cannot read it.
    """
    from toolkit.engines.spark_tables import one_line

    path = source.path
    if source.is_frame:
        return source.table
    if source.is_spark:
        quoted = ".".join(f"`{part}`" for part in str(source.table).split("."))
        with one_line(source.location, "check the table's name, and that you may read it"):
            frame = session.table(quoted)
            _ = frame.schema
        return frame
    if path is None:
        raise DataError(
            "Spark can read Parquet, Delta and tables by name",
            got=source.location if source.kind == "file" else f"a {type(source.table).__name__} from {source.location}",
            next_step="leave --spark-master and --spark-conf out, or write it as Parquet",
        )
    where = spark_path(path)
    advice = "start Spark with Delta's jars and extension, by --spark-conf" if source.is_delta else "check the file"
    with one_line(source.location, advice):
        frame = session.read.format("delta" if source.is_delta else "parquet").load(where)
        return frame.drop(*source.hidden_columns(wanted))


def count_rows(frame: Any, name: str) -> int:
    """Of a Spark frame.

    Raises:
        DataError: Spark cannot read it.
    """
    from toolkit.engines.spark_tables import one_line

    with one_line(name, "correct the query"):
        return int(frame.count())
