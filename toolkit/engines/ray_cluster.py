"""A connected Ray, kept by one thread: a local one, one that runs already (`RAY_ADDRESS`), or one on Spark (`ray_on_spark`)."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Both are read when ray is imported. Ray would otherwise replay `uv run` in every worker (ray issue 54344), and report usage over the
# network.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A thread that is still in Ray when its cluster is gone must not start another by accident.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

import ray

from toolkit.core.errors import ClusterError
from toolkit.core.machine import cpu_count, memory_bytes
from toolkit.engines.ray_patches import check_version, dead_head_processes, only_needed_services, reread_authentication, without_obituaries

# The object store holds one copy of the data and nothing else; it is backed by memory only as far as it is filled.
_OBJECT_STORE_SHARE = 0.3
_OBJECT_STORE_MAX_BYTES = 4 * 2**30
OBJECT_STORE_MIN_BYTES = 80 * 2**20  # Ray takes no less than 75 MiB
_ANSWER_TIMEOUT_S = 10.0
_WATCH_EVERY_S = 0.5


@dataclass(frozen=True)
class RayCluster:
    """What the cluster has in all, and how long it took to connect or start."""

    num_cpus: float
    num_gpus: float
    start_s: float


class RaySource(Protocol):
    """Where a Ray comes from. All three are called in one thread; `stop` also after a `start` that failed half-way."""

    def start(self, stopping: threading.Event) -> None:
        """Returns when Ray is ready, or soon after `stopping` is set."""

    def failure(self) -> str | None:
        """Why nothing can run on this Ray any more; asked about once a second."""

    def stop(self) -> None: ...


class LocalRay:
    """Sized to the machine and its cgroup, private to this process, and gone when it is stopped. A Ray that this process is connected to
    already is used instead, and left."""

    def __init__(self, dashboard: bool) -> None:
        self._dashboard = dashboard
        self._found_running = False
        self._temp_dir: str | None = None

    def start(self, stopping: threading.Event) -> None:
        self._found_running = ray.is_initialized()
        if self._found_running:
            return
        # Ray's sockets lie below it, and AF_UNIX paths hold 107 bytes (macOS: 103), of which Ray takes 66: TMPDIR may be too long.
        self._temp_dir = _make_temp_dir()
        reread_authentication()
        with only_needed_services(dashboard=self._dashboard, monitor=self._dashboard), without_obituaries():
            ray.init(
                address="local",
                num_cpus=cpu_count(),
                include_dashboard=self._dashboard,
                object_store_memory=_object_store_bytes(),
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=self._temp_dir,
            )

    def failure(self) -> str | None:
        dead = [] if self._found_running else dead_head_processes()
        return f"Ray's {' and '.join(dead)} died" if dead else None

    def stop(self) -> None:
        if not self._found_running:
            ray.shutdown()
        if self._temp_dir:
            shutil.rmtree(self._temp_dir, ignore_errors=True)


class RunningRay:
    """Somebody else's, at `address`: used, and left running."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._found_running = False

    def start(self, stopping: threading.Event) -> None:
        self._found_running = ray.is_initialized()
        if not self._found_running:
            try:
                _check_answers(self._address)
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # a refused connection, a timeout, another version: the trees have nothing in common
                raise ClusterError(
                    f"Ray must answer at RAY_ADDRESS={self._address}",
                    got=_first_line(error),
                    next_step="see `toolkit doctor`, or unset RAY_ADDRESS",
                ) from error

    def failure(self) -> str | None:
        return None

    def stop(self) -> None:
        if not self._found_running:
            ray.shutdown()


class RayConnection:
    """Starts or joins a Ray in the background, for it takes seconds in which the driver has other things to do.

    One thread starts Ray, watches it, and ends it: the kernel ends Ray's processes together with the thread that started them
    (PR_SET_PDEATHSIG), which is also why a kill -9 of the driver leaves none behind.
    """

    def __init__(self, source: RaySource) -> None:
        check_version()
        self._source = source
        self._cluster: RayCluster | None = None
        self._error: Exception | None = None
        self._connected = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._on_failure: Callable[[], None] | None = None
        self.failure: str | None = None
        """Why this Ray cannot be used any more."""
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._thread.start()

    def wait(self) -> RayCluster:
        """Raises:
        ClusterError: Ray does not start, or does not answer.
        """
        self._connected.wait()
        if isinstance(self._error, ClusterError):
            raise self._error
        if self._error is not None:
            raise ClusterError(
                "Ray must start",
                got=_first_line(self._error),
                next_step="see `toolkit doctor`, or use --cluster inprocess",
            ) from self._error
        assert self._cluster is not None
        return self._cluster

    def on_failure(self, call: Callable[[], None]) -> None:
        """`call` is called, in another thread, when this Ray has failed; at once when it has already."""
        with self._lock:
            self._on_failure = call
            failed = self.failure is not None
        if failed:
            call()

    def begin_stop(self) -> None:
        """End what was started, disconnect from what was not; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """The same, and wait for it. Must be called on every way out."""
        self._stopping.set()
        self._thread.join()

    def _live(self) -> None:
        began = time.perf_counter()
        try:
            self._source.start(self._stopping)
            resources: dict[str, float] = ray.cluster_resources()
            self._cluster = RayCluster(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                start_s=time.perf_counter() - began,
            )
        except Exception as error:
            # Handed to `wait`, which is called in the thread that can do something about it.
            self._error = error
        self._connected.set()
        while not self._stopping.wait(_WATCH_EVERY_S):
            if self._error is None and self.failure is None:
                self._look()
        with _nothing_collected():
            self._source.stop()

    def _look(self) -> None:
        try:
            reason = self._source.failure()
        except Exception as error:
            # This thread is what Ray hangs on, and the search would wait for ever: what is not foreseen is a failure, too.
            reason = _first_line(error)
        if not reason:
            return
        with self._lock:
            self.failure, call = reason, self._on_failure
        if call is not None:
            call()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What Tune leaves behind in cycles has handles of Ray's. One that another thread collects just while Ray disconnects ends the whole
    process, with exit status 1 and without a word of ours (core_worker_process.cc: "The process will exit")."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_answers(address: str) -> None:
    """Ray itself would look for a cluster that is not there for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT_S).close()


def _make_temp_dir() -> str:
    """A folder named for this process; those of processes that were killed are removed on the way."""
    # Ray on Spark's own folders are named /tmp/ray-PORT-ID: not to be taken for ours.
    for old in Path("/tmp").glob("ray-local-[0-9]*-*"):
        pid = old.name.split("-")[2]
        if pid.isdecimal() and old.stat().st_uid == os.getuid() and not _is_alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"ray-local-{os.getpid()}-", dir="/tmp")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _object_store_bytes() -> int:
    available = memory_bytes() * _OBJECT_STORE_SHARE
    if os.path.isdir("/dev/shm"):
        available = min(available, shutil.disk_usage("/dev/shm").free * 0.9)
    return int(max(OBJECT_STORE_MIN_BYTES, min(available, _OBJECT_STORE_MAX_BYTES)))
