"""The Spark session, and what its executors really are: cores, memory, versions. Everything is checked before anything slow begins.

A session that is active already is used and left running; one that is made here is stopped by `SparkCluster.close`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import ClusterError
from toolkit.engines.java import find_java

REACH_TIMEOUT_S = 5.0
REGISTER_TIMEOUT_S = 20.0
EXECUTOR_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 120.0
# Executors of one application register within a second or so of each other.
QUIET_S = 1.5

# What must be the same on driver and executors: trials are pickled by one and run by the other.
SAME_VERSIONS = ("ray", "ray-spark-toolkit")

_LOG4J = Path(__file__).with_name("spark_log4j2.properties")
_READ_AT_LAUNCH = ("spark.driver.", "spark.jars", "spark.submit.")

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class Executor:
    """One executor, as a Python worker on it sees itself: with affinity and container limits counted in."""

    host: str
    cores: int
    memory_bytes: int
    shared_memory_bytes: int | None


@dataclass(frozen=True)
class SparkCluster:
    """A connected Spark application with at least one executor. `close` must be called on every way out."""

    session: Any
    executors: tuple[Executor, ...]
    is_own: bool

    @property
    def master(self) -> str:
        return str(self.session.sparkContext.master)

    @property
    def cores_per_worker(self) -> int:
        """Of the smallest executor: stage-level scheduling gives every task of a stage the same."""
        return min(executor.cores for executor in self.executors)

    @property
    def num_workers(self) -> int:
        """How many Ray nodes of `cores_per_worker` fit."""
        return sum(executor.cores // self.cores_per_worker for executor in self.executors)

    @property
    def memory_bytes_per_worker(self) -> int:
        """Of the tightest host: what its executors share, less the heaps of their JVMs."""
        heap = _bytes_of(self.session.sparkContext.getConf().get("spark.executor.memory", "1g"))
        sharing = Counter(executor.host for executor in self.executors)
        per_executor = (executor.memory_bytes / sharing[executor.host] - heap for executor in self.executors)
        nodes = max(executor.cores // self.cores_per_worker for executor in self.executors)
        return max(2**29, int(min(per_executor) / nodes))

    def run_task(self, task: Callable[[Iterator[int]], Iterator[Any]], cores: int, *, group: str, description: str) -> list[Any]:
        """Run `task` once, in a Spark task that fills `cores` cores; blocks until it ends. It must pickle by value."""
        context = self.session.sparkContext
        context.setJobGroup(group, description)
        found: list[Any] = context.parallelize([0], 1).withResources(_profile(cores)).mapPartitions(task).collect()
        return found

    def close(self) -> None:
        if self.is_own:
            # Executors that leave while the driver goes are no errors.
            self.session.sparkContext.setLogLevel("OFF")
            self.session.stop()


def connect(
    master: str | None,
    conf: Mapping[str, str],
    *,
    app_name: str,
    java_home: Path | None,
    remote: str | None,
    wanted_cores: float | None = None,
) -> SparkCluster:
    """Use the active session, or make one on `master` (default: what spark-defaults say), and look at its executors.

    Args:
        conf: `--spark-conf`; only for a session made here.
        remote: SPARK_REMOTE, which would make the session a Spark Connect one.
        wanted_cores: stop waiting for further executors when there are so many.

    Raises:
        ClusterError: one line each for an unsupported or unreachable master, Java, Python, Ray or the toolkit missing or of another
            version on an executor, or no executor.
    """
    session = active_session()
    if session is None:
        check_master(master, remote)
        _check_java(java_home)
        _check_reachable(master)
        session, is_own = _open(master, conf, app_name), True
    else:
        is_own = False
        if not hasattr(session, "_jsparkSession"):
            raise ClusterError(_CONNECT[0], got="a Spark Connect session", next_step=_CONNECT[1])
        if conf or (master and master != session.sparkContext.master):
            raise ClusterError(
                "--spark-master and --spark-conf are for a session that the sweep starts itself",
                got=f"an active session on {session.sparkContext.master}",
                next_step="leave them out, or stop that session",
            )
    try:
        check_master(str(session.sparkContext.master), None)
        return SparkCluster(session, tuple(_executors(session, wanted_cores)), is_own)
    except BaseException:
        SparkCluster(session, (), is_own).close()
        raise


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

        session = SparkSession.builder.getOrCreate()
    if session is None or not hasattr(session, "_jsparkSession"):
        return False
    master = str(session.sparkContext.master)
    return master == "yarn" or master.startswith(("spark://", "local-cluster["))


_CONNECT = (
    "Ray on Spark needs a classic Spark session, for Spark Connect gives no executors' tasks to run Ray in",
    "use a cluster in dedicated access mode, or --cluster local",
)


def check_master(master: str | None, remote: str | None) -> None:
    """Raises:
    ClusterError: Ray cannot run there.
    """
    if remote or (master or "").startswith("sc://"):
        raise ClusterError(_CONNECT[0], got=f"SPARK_REMOTE={remote}" if remote else str(master), next_step=_CONNECT[1])
    if master is None or master.startswith(("spark://", "local-cluster[")) or master == "yarn":
        return
    if master == "local" or master.startswith("local["):
        raise ClusterError(
            "--cluster spark needs a cluster", got=f"master {master}, which has no executors", next_step="use --cluster local"
        )
    hint = "k8s is not: use Ray's own operator there, and RAY_ADDRESS" if master.startswith("k8s://") else "check --spark-master"
    raise ClusterError("Ray on Spark runs on spark://HOST:PORT, yarn and local-cluster[…]", got=master, next_step=hint)


def _check_java(java_home: Path | None) -> None:
    java = find_java(java_home)
    if java.problem:
        raise ClusterError("Spark needs Java 17 or later", got=java.problem, next_step="install it, and set JAVA_HOME")


def _check_reachable(master: str | None) -> None:
    """Any of the masters will do: the others are stand-bys."""
    if master is None or not master.startswith("spark://"):
        return
    problems = []
    for address in master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ClusterError("--spark-master must be spark://HOST:PORT", got=master, next_step="the master's own page shows it")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
            return
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
    raise ClusterError("the Spark master must be reachable", got="; ".join(problems), next_step="start it, or check --spark-master")


def _open(master: str | None, conf: Mapping[str, str], app_name: str) -> Any:
    try:
        from pyspark import SparkConf, SparkContext
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ClusterError("--cluster spark needs pyspark", got=str(error), next_step='install "ray-spark-toolkit[spark]"') from error
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    ours = {"spark.ui.showConsoleProgress": "false", "spark.driver.defaultJavaOptions": f"-Dlog4j2.configurationFile={_LOG4J.as_uri()}"}
    conf = {**ours, **conf, **({"spark.master": master} if master else {})}
    builder = SparkSession.builder.appName(app_name)
    for name, value in conf.items():
        builder = builder.config(name, value)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        # What the JVM must be started with. Nothing else goes that way: everyone sees its command line, and a setting may be a key.
        at_launch = {name: value for name, value in conf.items() if name.startswith(_READ_AT_LAUNCH)}
        SparkContext._ensure_initialized(conf=SparkConf().setAll(list(at_launch.items())))
        with _time_limit(SparkContext, master):
            return builder.getOrCreate()
    except ClusterError:
        raise
    except Exception as error:  # the JVM's, py4j's and pyspark's own trees have nothing in common
        raise ClusterError(
            "a Spark session must start", got=_reason(error), next_step="see --spark-conf spark.log.level=INFO for the whole story"
        ) from error
    finally:
        # pyspark answers Ctrl-C by cancelling all jobs, and Ray's workers are jobs.
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                signal.signal(each, handler)


@contextlib.contextmanager
def _time_limit(context: Any, master: str | None) -> Iterator[None]:
    """Spark itself tries for a minute to register with something that answers and is no master."""
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        context._gateway.proc.kill()

    limited = master is not None and master.startswith("spark://")
    timer = threading.Timer(REGISTER_TIMEOUT_S, give_up)
    if limited:
        timer.start()
    try:
        yield
    except Exception as error:
        if not expired.is_set():
            raise
        context._gateway = context._jvm = None
        raise ClusterError(
            f"the Spark master must answer within {REGISTER_TIMEOUT_S:g} s",
            got=f"nothing of use from {master}",
            next_step="check the port: the master's own page has another",
        ) from error
    finally:
        timer.cancel()


def _executors(session: Any, wanted_cores: float | None) -> list[Executor]:
    cores = _wait_for_executors(session, wanted_cores)
    smallest = min(cores)
    answers = _probe(session, smallest, len(cores))
    for answer in answers:
        _check_answer(answer)
    # An executor is found by its Python workers' parent; those of the same host have the same cores unless somebody took pains.
    sizes = sorted(cores, reverse=True)
    return [
        Executor(answer["host"], size, answer["memory_bytes"], answer["shared_memory_bytes"])
        for answer, size in zip(sorted(answers, key=lambda each: -each["memory_bytes"]), sizes, strict=False)
    ]


def _wait_for_executors(session: Any, wanted_cores: float | None) -> list[int]:
    """Cores of each executor, when enough are there or no more come."""
    status = session.sparkContext._jsc.sc().statusStore()
    began = time.monotonic()
    last_change, before = began, 0
    while True:
        listed = status.executorList(True)
        found = [int(each.totalCores()) for each in (listed.apply(i) for i in range(listed.size())) if each.id() != "driver"]
        cores = [each for each in found if each > 0]
        if len(cores) != before:
            last_change, before = time.monotonic(), len(cores)
        if cores and (time.monotonic() - last_change > QUIET_S or (wanted_cores is not None and sum(cores) >= wanted_cores)):
            return cores
        if not cores and time.monotonic() - began > EXECUTOR_TIMEOUT_S:
            raise ClusterError(
                "Spark must give the application an executor",
                got=f"none within {EXECUTOR_TIMEOUT_S:g} s",
                next_step="its cores or memory may be taken: see the master's page, or ask for less (spark.executor.memory)",
            )
        time.sleep(0.05)


def _probe(session: Any, cores: int, num_executors: int) -> list[dict[str, Any]]:
    """One answer an executor. The tasks fill an executor each, just as Ray's do, so that they cannot gather on one."""
    names = SAME_VERSIONS

    def look(pause_s: float) -> Callable[[Iterator[int]], Iterator[dict[str, Any]]]:
        # By value and with imports of its own: the toolkit may be missing where it runs.
        def look_around(_: Iterator[int]) -> Iterator[dict[str, Any]]:
            import importlib.metadata
            import os
            import socket
            import sys
            import time

            time.sleep(pause_s)
            versions = {}
            for name in names:
                try:
                    versions[name] = importlib.metadata.version(name)
                except importlib.metadata.PackageNotFoundError:
                    versions[name] = ""
            try:
                from toolkit.core.machine import memory_bytes, shared_memory_bytes

                memory, shared = memory_bytes(), shared_memory_bytes()
            except ImportError:
                memory, shared = 0, None
            yield {
                "host": socket.gethostname(),
                "parent": os.getppid(),
                "executable": sys.executable,
                "versions": versions,
                "memory_bytes": memory,
                "shared_memory_bytes": shared,
            }

        return look_around

    context = session.sparkContext
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for pause_s in (0.0, 0.5, 2.0):
        rdd = context.parallelize(range(num_executors), num_executors).withResources(_profile(cores)).mapPartitions(look(pause_s))
        for answer in _within(PROBE_TIMEOUT_S, rdd.collect, context):
            found[answer["host"], answer["parent"]] = answer
        if len(found) >= num_executors:
            break
    return list(found.values())


def _within(timeout_s: float, collect: Callable[[], list[Any]], context: Any) -> list[Any]:
    """A job that waits for cores waits for ever."""
    future: Future[list[Any]] = Future()
    group = f"toolkit-probe-{time.monotonic_ns()}"

    def run() -> None:
        context.setJobGroup(group, "versions, cores and memory of the executors")
        try:
            future.set_result(collect())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="spark-probe", daemon=True).start()
    try:
        return future.result(timeout_s)
    except FutureTimeout:
        context.cancelJobGroup(group)
        raise ClusterError(
            "the executors' cores must be free",
            got=f"no task of ours ran within {timeout_s:g} s",
            next_step="wait for what else runs there",
        ) from None
    except Exception as error:
        raise _executor_error(error) from error


def _executor_error(error: Exception) -> ClusterError:
    text = str(error)
    if match := re.search(r"PYTHON_VERSION_MISMATCH\].*?version[^0-9]*([0-9.]+[0-9]).*?driver[^0-9]*([0-9.]+[0-9])", text, re.S):
        theirs, ours = match.groups()
        return ClusterError(
            "driver and executors need the same Python",
            got=f"{ours} here and {theirs} there",
            next_step="set PYSPARK_PYTHON to an interpreter that all hosts have",
        )
    if match := re.search(r'Cannot run program "([^"]+)"', text):
        return ClusterError(
            "executors must find the Python interpreter",
            got=f"none at {match.group(1)}",
            next_step="set PYSPARK_PYTHON to one that all hosts have",
        )
    if match := re.search(r"ModuleNotFoundError: (No module named '[^']+')", text):
        return ClusterError("executors need the same packages", got=match.group(1), next_step="install the toolkit's wheel on every node")
    return ClusterError("executors must run Python tasks", got=_reason(error), next_step="see the executors' logs")


def _check_answer(answer: Mapping[str, Any]) -> None:
    for name in SAME_VERSIONS:
        ours, theirs = importlib.metadata.version(name), answer["versions"][name]
        if ours != theirs:
            raise ClusterError(
                f"driver and executors need the same {name}",
                got=f"{ours} here and {theirs or 'none'} on {answer['host']} ({answer['executable']})",
                next_step=f"install {name}=={ours} on every node, or set PYSPARK_PYTHON to an environment that has it",
            )


def _profile(cores: int) -> Any:
    from pyspark.resource.profile import ResourceProfileBuilder
    from pyspark.resource.requests import TaskResourceRequests

    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(cores)).build


def _reason(error: BaseException) -> str:
    """The line that says why: a Java error has the cause at its head, after the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("Caused by:", ": org.", ": java."))]
    return re.sub(
        r"^(: |Caused by: )?([\w$]+\.)+(?=\w+(Exception|Error))", "", (causes or lines or [type(error).__name__])[-1 if causes else 0]
    )


def _bytes_of(size: str) -> int:
    """Spark's way to write sizes: `512m`, `4g`, `4gb`, and without a unit MiB."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:([kmgtp])?b?)\s*", size.lower())
    if match is None:
        raise ClusterError("spark.executor.memory: a size as 512m or 4g", got=repr(size))
    number, unit = match.groups()
    return int(number) << 10 * " kmgtp".index(unit or "m")
