"""The Spark session of a scoring, with Delta where a table needs it. Part of `score`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ScoringError
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.engines.score_state import Engine
    from toolkit.score_asked import Asked

# Times are UTC, in windows and in the JSON of bad rows; a crash of native code leaves its stack in the executor's log.
_OURS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    "spark.python.worker.faulthandler.enabled": "true",
}


def open_session(stack: ExitStack, asked: Asked, engine: Engine, master: str | None, conf: Mapping[str, str], settings: Settings) -> Any:
    """The active session, or one that ends with `stack`. The engine `files` needs no Delta of Spark.

    Raises:
        ClusterError: Spark cannot start.
        ScoringError: it is a Connect session, or lacks Delta.
    """
    from toolkit.engines import spark_delta, spark_session, spark_source

    needs_delta = engine == "spark" and any(table.kind == "delta" for table in (asked.input, asked.output))
    if spark_session.active_session() is None:
        conf = {**_OURS, **conf}
    opened = spark_delta.open_session if needs_delta else spark_source.open_session
    session = opened(stack, master, conf, settings, "toolkit score")
    if not spark_session.is_classic(session):
        raise ScoringError(
            "scoring into tables needs a classic Spark session",
            got="a Spark Connect or serverless one",
            next_step="use toolkit.spark_udf there, which works in both, or a cluster with dedicated access",
        )
    return session
