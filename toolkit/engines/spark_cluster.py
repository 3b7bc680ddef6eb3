"""A Spark application, and what its executors really are: cores, memory, versions. Everything is checked before anything slow begins.

A session that is active already is used and left running; one that is made here is stopped by `SparkCluster.close`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ClusterError
from toolkit.engines.spark_master import NO_CONNECT, check_master, check_reachable
from toolkit.engines.spark_session import active_session, check_java, is_classic, open_new, reason_of

if TYPE_CHECKING:
    from toolkit.engines.spark_jvm import Jvm

EXECUTOR_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 120.0
# Where no setting says how many executors there will be: those of one application start together, and register within a second or two.
QUIET_S = 2.5
# Where one does: half of what Spark itself waits for (spark.scheduler.maxRegisteredResourcesWaitingTime), after the last one that came.
ASKED_TIMEOUT_S = 15.0

# What must be the same on driver and executors: trials are pickled by one and run by the other.
SAME_VERSIONS = ("ray", "ray-spark-toolkit")

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
    jvm: Jvm | None
    """None for a session that was active before."""

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
        if self.jvm is not None:
            self.jvm.stop(self.session)


@dataclass(frozen=True)
class Wanted:
    """What a sweep can use: `slots` trials of `cpus_per_trial` at once (None: as many as there is room for), on at least `executors`."""

    slots: int | None = None
    cpus_per_trial: float = 1.0
    executors: int | None = None

    def has_enough(self, cores: Sequence[int]) -> bool:
        """`cores` of each executor: Ray's nodes are all as large as the smallest."""
        if self.slots is None or len(cores) < (self.executors or 1):
            return False
        each = min(cores)
        return sum(executor // each for executor in cores) * int(each // self.cpus_per_trial) >= self.slots


def connect(
    master: str | None,
    conf: Mapping[str, str],
    *,
    app_name: str,
    java_home: Path | None,
    remote: str | None,
    wanted: Wanted | None = None,
) -> SparkCluster:
    """Use the active session, or make one on `master` (default: what spark-defaults say), and look at its executors.

    Args:
        conf: `--spark-conf`; only for a session made here.
        remote: SPARK_REMOTE, which would make the session a Spark Connect one.
        wanted: what not to wait beyond, where the settings do not say how many executors there will be.

    Raises:
        ClusterError: one line each for an unsupported or unreachable master, Java, Python, Ray or the toolkit missing or of another
            version on an executor, or no executor.
    """
    session = active_session()
    if session is None:
        master = master or conf.get("spark.master")
        check_master(master, remote)
        check_java(java_home)
        check_reachable(master)
        session, jvm = open_new(master, conf, app_name)
    else:
        jvm = None
        if not is_classic(session):
            raise ClusterError(NO_CONNECT[0], got="a Spark Connect session", next_step=NO_CONNECT[1])
        if conf or (master and master != session.sparkContext.master):
            raise ClusterError(
                "--spark-master and --spark-conf are for a session that the sweep starts itself",
                got=f"an active session on {session.sparkContext.master}",
                next_step="leave them out, or stop that session",
            )
    try:
        check_master(str(session.sparkContext.master), None)
        _check_fixed(session)
        _check_driver_host(session)
        cluster = SparkCluster(session, tuple(_executors(session, jvm is not None, wanted or Wanted())), jvm)
        if jvm is not None:
            jvm.show()
        return cluster
    except BaseException:
        SparkCluster(session, (), jvm).close()
        raise


def _check_fixed(session: Any) -> None:
    if str(session.sparkContext.getConf().get("spark.dynamicAllocation.enabled", "false")).lower() == "true":
        raise ClusterError(
            "Ray on Spark needs executors that stay",
            got="spark.dynamicAllocation.enabled=true",
            next_step="set it to false, and spark.executor.instances to a number",
        )


def driver_ip(session: Any) -> str:
    """Which executors call this process by."""
    return socket.gethostbyname(session.conf.get("spark.driver.host"))


def _check_driver_host(session: Any) -> None:
    """Spark itself may listen at another one (spark.driver.bindAddress), behind ports that are mapped; Ray cannot."""
    try:
        with socket.socket() as listener:
            listener.bind((driver_ip(session), 0))
    except OSError as error:
        raise ClusterError(
            "Ray's head listens at spark.driver.host",
            got=f"{session.conf.get('spark.driver.host')}: {error.strerror}",
            next_step="set it to an address of this host that the executors reach",
        ) from error


def _executors(session: Any, is_new: bool, wanted: Wanted) -> list[Executor]:
    cores = _wait_for_executors(session, is_new, wanted)
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


def _wait_for_executors(session: Any, is_new: bool, wanted: Wanted) -> list[int]:
    """Cores of each executor, when enough are there or no more come. A session that is not new has had its time."""
    asked = _asked_executors(session.sparkContext.getConf()) or wanted.executors
    status = session.sparkContext._jsc.sc().statusStore()
    began = time.monotonic()
    last_change, before = began, 0
    while True:
        listed = status.executorList(True)
        found = [int(each.totalCores()) for each in (listed.apply(i) for i in range(listed.size())) if each.id() != "driver"]
        cores = [each for each in found if each > 0]
        if len(cores) != before:
            last_change, before = time.monotonic(), len(cores)
        quiet_s = time.monotonic() - last_change
        if cores and asked is None and (quiet_s > QUIET_S or not is_new):
            return cores
        if asked is not None and len(cores) >= asked:
            return cores
        if wanted.has_enough(cores):
            return cores
        if cores and asked is not None and quiet_s > ASKED_TIMEOUT_S:
            if asked != wanted.executors:  # what the experiment asks for is judged by those who know what for
                _logger.warning("%d of %d Spark executors came: the sweep goes on with these", len(cores), asked)
            return cores
        if not cores and time.monotonic() - began > EXECUTOR_TIMEOUT_S:
            raise ClusterError(
                "Spark must give the application an executor",
                got=f"none within {EXECUTOR_TIMEOUT_S:g} s",
                next_step="its cores or memory may be taken: see the master's page, or ask for less (spark.executor.memory)",
            )
        time.sleep(0.05)


def _asked_executors(conf: Any) -> int | None:
    """How many the settings ask for, where they do."""
    if instances := conf.get("spark.executor.instances", None):
        return int(instances)
    in_all, each = conf.get("spark.cores.max", None), conf.get("spark.executor.cores", None)
    return max(1, int(in_all) // int(each)) if in_all and each else None


def _probe(session: Any, cores: int, num_executors: int) -> list[dict[str, Any]]:
    """One answer an executor. The tasks fill an executor each, just as Ray's do, so that they cannot gather on one."""
    names = SAME_VERSIONS

    def look(pause_s: float) -> Callable[[Iterator[int]], Iterator[dict[str, Any]]]:
        # By value and with imports of its own: the toolkit may be missing where it runs.
        def look_around(_: Iterator[int]) -> Iterator[dict[str, Any]]:
            import importlib.metadata
            import os
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
    # A cancelled task of an earlier sweep holds its executor for up to 4 s (spark.python.task.killTimeout, and Spark looks every 2 s).
    for pause_s in (0.0, 0.5, 2.0, 5.0):
        rdd = context.parallelize(range(num_executors), num_executors).withResources(_profile(cores)).mapPartitions(look(pause_s))
        for answer in _within(PROBE_TIMEOUT_S, rdd.collect, context):
            found[answer["host"], answer["parent"]] = answer
        if len(found) >= num_executors:
            break
    else:
        _logger.warning("%d of %d Spark executors have answered, the others are busy: the sweep does without", len(found), num_executors)
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
    return ClusterError("executors must run Python tasks", got=reason_of(error), next_step="see the executors' logs")


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


def _bytes_of(size: str) -> int:
    """Spark's way to write sizes: `512m`, `4g`, `4gb`, and without a unit MiB."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:([kmgtp])?b?)\s*", size.lower())
    if match is None:
        raise ClusterError("spark.executor.memory: a size as 512m or 4g", got=repr(size))
    number, unit = match.groups()
    return int(number) << 10 * " kmgtp".index(unit or "m")
