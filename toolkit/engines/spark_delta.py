"""Delta in a Spark session: the settings of one that is started here, and whether a session has it. Databricks' sessions always have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ClusterError, ScoringError
from toolkit.engines import spark_session, spark_source

if TYPE_CHECKING:
    from toolkit.settings import Settings

DELTA_VERSION, SCALA_VERSION = "4.4.0", "2.13"
SPARK_VERSIONS = ("4.0", "4.1", "4.2")
"""For which that version of Delta has a jar."""

EXTENSION, CATALOG = "io.delta.sql.DeltaSparkSessionExtension", "org.apache.spark.sql.delta.catalog.DeltaCatalog"
SNAPSHOT_PARTITIONS = "4"
"""Tasks that put a table's log together, at every look at it: Delta's own 50 are for logs of millions of files."""

_MISSING_TABLE = "file:///no-such-folder/toolkit-asks-whether-this-session-has-delta"
# What Maven would fetch beside them is in Spark already, in a version that fits it.
_NEEDED_JARS = ("delta-spark_{spark}_{scala}", "delta-storage", "delta-kernel-api", "delta-kernel-defaults", "delta-kernel-unitycatalog")


def delta_package(spark_version: str) -> str:
    """Maven's coordinates of the jar for a version of Spark.

    Raises:
        ScoringError: there is none.
    """
    minor = ".".join(spark_version.split(".")[:2])
    if minor not in SPARK_VERSIONS:
        raise ScoringError(
            f"Delta {DELTA_VERSION} is for Spark {SPARK_VERSIONS[0]} to {SPARK_VERSIONS[-1]}",
            got=spark_version,
            next_step="name a jar that fits with --spark-conf spark.jars.packages=…",
        )
    return f"io.delta:delta-spark_{minor}_{SCALA_VERSION}:{DELTA_VERSION}"


def settings_for_delta(conf: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """`conf` and what Delta needs beside it, for a session that is started here. A jar of Delta that `conf` names itself is left alone.

    Jars that an earlier session has fetched are named as files: a start with `spark.jars.packages` asks Maven's servers, says so in a
    hundred lines, and sends executors 80 MB of what they have.

    Raises:
        ScoringError: there is no Delta for this version of Spark.
    """
    if settings.on_databricks:
        return dict(conf)
    merged = {"spark.sql.catalog.spark_catalog": CATALOG, "spark.databricks.delta.snapshotPartitions": SNAPSHOT_PARTITIONS, **conf}
    merged["spark.sql.extensions"] = _joined(conf.get("spark.sql.extensions", ""), EXTENSION)
    named = (conf.get(name, "") for name in ("spark.jars", "spark.jars.packages", "spark.driver.extraClassPath"))
    if any("delta-spark" in value for value in named):
        return merged
    import pyspark

    if any((Path(pyspark.__file__).parent / "jars").glob("delta-spark*.jar")):
        return merged
    package = delta_package(pyspark.__version__)
    jars = _fetched_jars(package, Path(conf.get("spark.jars.ivy", "~/.ivy2.5.2")).expanduser())
    if jars:
        merged["spark.jars"] = _joined(conf.get("spark.jars", ""), ",".join(map(str, jars)))
    else:
        merged["spark.jars.packages"] = _joined(conf.get("spark.jars.packages", ""), package)
    return merged


def open_session(stack: ExitStack, master: str | None, conf: Mapping[str, str], settings: Settings, app_name: str) -> Any:
    """As `spark_source.open_session`: the active session or a new one, but with Delta.

    Raises:
        ClusterError: as there.
        ScoringError: Delta's jar cannot be had, or the active session is without it.
    """
    if spark_session.active_session() is not None:
        session = spark_source.open_session(stack, master, conf, settings, app_name)
    else:
        with_delta = settings_for_delta(conf, settings)
        try:
            session = spark_source.open_session(stack, master, with_delta, settings, app_name)
        except ClusterError as error:
            if "spark.jars.packages" not in with_delta or ":: loading settings ::" not in str(error):  # Ivy's first word
                raise
            raise ScoringError(
                "Delta's jar must be fetched",
                got=f"no {with_delta['spark.jars.packages']} from Maven's servers",
                next_step="run toolkit doctor --delta once where they can be reached, or copy the jars delta-spark and delta-storage and "
                "name them with --spark-conf spark.jars=PATH,PATH",
            ) from error
    check_delta(session, settings)
    return session


def check_delta(session: Any, settings: Settings) -> None:
    """Classic or Connect. What is asked for is a table that does not exist; the answer without Delta is another one.

    Raises:
        ScoringError: the session has no Delta, or one that does not fit.
    """
    if settings.on_databricks:
        return
    try:
        _ = session.read.format("delta").load(_MISSING_TABLE).schema
    except Exception as error:  # pyspark's, py4j's and gRPC's have no common base
        text = str(error)
        version = session.version
        if re.search(r"DATA_SOURCE_NOT_FOUND|Failed to find (the )?data source", text):
            got, what = "no Delta in it", f"spark.jars.packages={delta_package(version)}, "
        elif "DELTA_CONFIGURE_SPARK_SESSION_WITH_EXTENSION_AND_CATALOG" in text:
            got, what = "Delta's jar without its settings", ""
        elif fault := re.search(r"java\.lang\.(\w+Error): (.*)", text):
            got, what = f"a jar that does not fit Spark {version} ({fault.group(1)})", f"spark.jars.packages={delta_package(version)}, "
        else:
            return
        raise ScoringError(
            "the Spark session must have Delta",
            got=got,
            next_step=f"start it with {what}spark.sql.extensions={EXTENSION} and spark.sql.catalog.spark_catalog={CATALOG}; or let the "
            "toolkit start one",
        ) from error


def round_trip(session: Any, folder: Path) -> int:
    """Rows of a small table that is written to `folder` and read back.

    Raises:
        ScoringError: with what Spark says.
    """
    where = f"file://{folder}/table"
    try:
        session.range(3).write.format("delta").save(where)
        return int(session.read.format("delta").load(where).count())
    except Exception as error:
        raise ScoringError(
            "Delta must write a table and read it back", got=spark_session.reason_of(error), next_step="check that Delta's jar fits Spark"
        ) from error


def _joined(first: str, more: str) -> str:
    """Two lists of Spark's, with nothing twice."""
    return ",".join(dict.fromkeys(name.strip() for name in [*first.split(","), *more.split(",")] if name.strip()))


def _fetched_jars(package: str, ivy: Path) -> list[Path]:
    """Those that Ivy has put there, as it names them; none where one is missing."""
    spark = package.split(":")[1].split("_")[1]
    names = [name.format(spark=spark, scala=SCALA_VERSION) for name in _NEEDED_JARS]
    jars = [ivy / "jars" / f"io.delta_{name}-{DELTA_VERSION}.jar" for name in names]
    return jars if all(jar.is_file() for jar in jars) else []
