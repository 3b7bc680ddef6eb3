"""The JVM behind a Spark session that is started here: what it is started with, what of its words is shown, and its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JNetworkError
from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from toolkit.core.errors import ClusterError

_LOG4J = Path(__file__).with_name("spark_log4j2.properties")
_READ_AT_LAUNCH = ("spark.master", "spark.driver.", "spark.jars", "spark.submit.", "spark.yarn.", "spark.kerberos.")
_END_TIMEOUT_S = 10.0

# What each of Spark's says when it starts, before the settings of its log are read.
_GREETINGS = ("WARNING: Using incubator modules: ", "Setting default log level to ", "To adjust logging level use ")


class Jvm:
    """Of this process, which has one at a time: one that is there already is used, and left running."""

    def __init__(self) -> None:
        self.is_own = False
        self._is_shared = False
        self._held_back: list[str] | None = []

    def start(self, conf: Mapping[str, str]) -> None:
        """Raises:
        ClusterError: with what the JVM itself says.
        """
        if SparkContext._gateway is None:
            self._launch(conf)
        if "spark.log.level" in conf or not self.is_own:
            self.show()
        if not self.is_own:
            # A platform's JVM has its own context, which a "new" session only joins (Databricks).
            companion: Any = getattr(SparkContext._jvm, "org.apache.spark.SparkContext$")
            self._is_shared = bool(getattr(companion, "MODULE$").getActive().isDefined())

    def _launch(self, conf: Mapping[str, str]) -> None:
        # Nothing else goes this way: everyone sees the command line, and a setting may be a key.
        at_launch = {name: value for name, value in conf.items() if name.startswith(_READ_AT_LAUNCH)}
        at_launch.setdefault("spark.driver.defaultJavaOptions", f"-Dlog4j2.configurationFile={_LOG4J.as_uri()}")
        reader, writer = os.pipe()
        listener = threading.Thread(target=self._listen, args=(reader,), name="spark-stderr", daemon=True)
        listener.start()
        settings = SparkConf().setAll(list(at_launch.items()))
        pool = ThreadPoolExecutor(1)
        launched = pool.submit(launch_gateway, settings, {"stderr": writer})
        try:
            gateway = launched.result()
        except KeyboardInterrupt:
            pool.shutdown()  # else it would leave a JVM that nobody knows
            os.close(writer)
            if launched.exception() is None:
                launched.result().proc.kill()
            raise
        except Exception as error:
            os.close(writer)
            listener.join()
            raise ClusterError(
                "Spark's JVM must start",
                got=(self._held_back or [str(error)])[0].strip(),
                next_step="check JAVA_HOME, and spark.driver.* of --spark-conf",
            ) from error
        os.close(writer)
        self.is_own = gateway.proc is not None
        SparkContext._ensure_initialized(gateway=gateway)

    def show(self) -> None:
        """From now on, and since the start. Until then nothing is: what stands in the way of a session becomes an error of one line."""
        held_back, self._held_back = self._held_back or (), None
        for line in held_back:
            _show(line)

    def stop(self, session: SparkSession) -> None:
        """The session that was started in it, and then itself; also where it has died meanwhile."""
        if self._is_shared:
            return
        context: Any = session.sparkContext
        gateway: Any = SparkContext._gateway
        if self.is_own and gateway.proc.poll() is not None:
            context._jsc = None  # nobody to tell
            context.stop()
            SparkSession._instantiatedSession = SparkSession._activeSession = None
        else:
            if self.is_own:
                # Executors that leave while the driver goes are no errors.
                once_more(lambda: context.setLogLevel("OFF"))
            once_more(session.stop)
        self.end()

    def end(self) -> None:
        """With it go its log's level and the settings of this session, which would be the next session's."""
        gateway = SparkContext._gateway
        if not self.is_own or gateway is None:
            return
        SparkContext._gateway = SparkContext._jvm = None
        gateway.shutdown()
        gateway.proc.stdin.close()
        try:
            gateway.proc.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            gateway.proc.kill()
            gateway.proc.wait()

    def _listen(self, reader: int) -> None:
        with os.fdopen(reader, errors="replace") as lines:
            for line in lines:
                if line.startswith(_GREETINGS):
                    continue
                if (held_back := self._held_back) is not None:
                    held_back.append(line)
                else:
                    _show(line)


def once_more(call: Callable[[], object]) -> None:
    """Ask the JVM something after what may have been a Ctrl-C: py4j gives up all connections then, and the next ones may be among them."""
    for pause_s in (0.1, 0.3, 1.0):
        try:
            call()
            return
        except Py4JNetworkError:
            time.sleep(pause_s)
    call()


def _show(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
