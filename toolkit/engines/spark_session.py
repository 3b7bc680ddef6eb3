"""The Spark session of this process: the one that is active, or a new one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ClusterError
from toolkit.engines.java import find_java
from toolkit.engines.spark_master import check_master, check_reachable, is_cluster

if TYPE_CHECKING:
    from toolkit.engines.spark_jvm import Jvm


def active_session() -> Any:
    """The session of this thread or, where a thread has none, the process's; None without one. Where pyspark is not loaded there is none,
    so that nothing is imported here."""
    if "pyspark.sql" not in sys.modules:
        return None
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:  # its only reason: there is none
        return None


def has_executors(*, open_one: bool) -> bool:
    """Whether the active session runs on a cluster. `open_one`: join the one that the platform has prepared for this process."""
    session = active_session()
    if session is None and open_one:
        from pyspark.sql import SparkSession

        try:
            session = SparkSession.builder.getOrCreate()
        except Exception as error:  # the JVM's, py4j's and pyspark's own trees have nothing in common
            raise ClusterError(
                "a Spark session must be there", got=reason_of(error), next_step="restart the notebook's compute, or use --cluster local"
            ) from error
    return session is not None and is_classic(session) and is_cluster(str(session.sparkContext.master))


def is_classic(session: Any) -> bool:
    """Not a Spark Connect one, which has neither a JVM here nor RDDs."""
    return hasattr(session, "_jsparkSession")


def check_java(java_home: Path | None) -> None:
    java = find_java(java_home)
    if java.problem:
        raise ClusterError("Spark needs Java 17 or later", got=java.problem, next_step="install it, and set JAVA_HOME")


def open_new(master: str | None, conf: Mapping[str, str], app_name: str) -> tuple[Any, Jvm]:
    try:
        from pyspark import SparkConf, SparkContext
        from pyspark.sql import SparkSession

        from toolkit.engines.spark_jvm import Jvm
    except ImportError as error:
        raise ClusterError("Spark needs pyspark", got=str(error), next_step='install "ray-spark-toolkit[spark]"') from error
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # Ray's nodes are tasks that never end: Spark would neither ask for executors for them beforehand nor be right to take idle ones away.
    ours = {"spark.ui.showConsoleProgress": "false", "spark.dynamicAllocation.enabled": "false"}
    conf = {**ours, **conf, **({"spark.master": master} if master else {})}
    builder = SparkSession.builder.appName(app_name)
    for name, value in conf.items():
        builder = builder.config(name, value)
    jvm, pool = Jvm(), ThreadPoolExecutor(1)
    try:
        jvm.start(conf)
        if master is None:
            # What spark-defaults say is known only now.
            default = SparkConf().get("spark.master", None)
            check_master(default, None)
            check_reachable(default)
        # In another thread: in the main one pyspark answers Ctrl-C by cancelling all jobs, in the middle of whatever is being asked of the
        # JVM; and Ray's workers are jobs.
        pool.submit(SparkContext.getOrCreate, SparkConf().setAll([("spark.app.name", app_name), *conf.items()])).result()
        return builder.getOrCreate(), jvm
    except (ClusterError, KeyboardInterrupt):
        pool.shutdown()
        jvm.end()
        raise
    except Exception as error:  # the JVM's, py4j's and pyspark's own trees have nothing in common
        reason = reason_of(error)  # which the JVM is asked for
        jvm.end()
        raise ClusterError(
            "a Spark session must start", got=reason, next_step="see --spark-conf spark.log.level=INFO for the whole story"
        ) from error
    finally:
        pool.shutdown()


def reason_of(error: BaseException) -> str:
    """Why, in one line: of a Java error its innermost cause, without the name of its class and its stack."""
    text = str(error)
    causes = re.findall(r"^(?:: |Caused by: )(?:[\w$]+\.)*(.+?)(?=^\s+at |\Z)", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join((causes or lines[:1] or [type(error).__name__])[-1].split())
