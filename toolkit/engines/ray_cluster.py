"""Local Ray: sized to the machine and its cgroup, private to this process, and gone when it is stopped.

A Ray that is running already (`RAY_ADDRESS`) is used and left running.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

# Both are read when ray is imported. Ray would otherwise replay `uv run` in every worker (ray issue 54344), and report usage over the
# network.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from toolkit.core.errors import ClusterError
from toolkit.core.machine import cpu_count, memory_bytes
from toolkit.engines.ray_patches import only_needed_services

# The object store holds one copy of the data and nothing else; it is backed by memory only as far as it is filled.
_OBJECT_STORE_SHARE = 0.3
_OBJECT_STORE_MAX_BYTES = 4 * 2**30
_OBJECT_STORE_MIN_BYTES = 80 * 2**20
_ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RayCluster:
    """What the cluster has in all, and how long it took to connect or start."""

    num_cpus: float
    num_gpus: float
    start_s: float


class RayConnection:
    """Connects to `address`, or starts a local Ray, in the background, for it takes seconds in which the driver has other things to do.

    One thread starts Ray, waits, and ends it: the kernel ends Ray's processes together with the thread that started them
    (PR_SET_PDEATHSIG), which is also why a kill -9 of the driver leaves none behind.
    """

    def __init__(self, address: str | None, dashboard: bool) -> None:
        self._address = address
        self._dashboard = dashboard
        self._cluster: RayCluster | None = None
        self._error: Exception | None = None
        self._connected = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._thread.start()

    def wait(self) -> RayCluster:
        """Raises:
        ClusterError: the address does not answer, or Ray does not start.
        """
        self._connected.wait()
        if self._error is not None:
            raise ClusterError(
                "Ray must start" if self._address is None else f"Ray must answer at RAY_ADDRESS={self._address}",
                got=f"{type(self._error).__name__}: {(str(self._error).splitlines() or [''])[0]}",
                next_step="see `toolkit doctor`, or use --cluster inprocess",
            ) from self._error
        assert self._cluster is not None
        return self._cluster

    def begin_stop(self) -> None:
        """End what was started, disconnect from what was not; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """The same, and wait for it. Must be called on every way out."""
        self._stopping.set()
        self._thread.join()

    def _live(self) -> None:
        began = time.perf_counter()
        found_running = ray.is_initialized()
        temp_dir: str | None = None
        try:
            if not found_running:
                # Ray's sockets lie below it, and AF_UNIX paths hold 107 bytes (macOS: 103), of which Ray takes 66: TMPDIR may be too long.
                temp_dir = _make_temp_dir() if self._address is None else None
                self._init(temp_dir)
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            self._cluster = RayCluster(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                start_s=time.perf_counter() - began,
            )
        except Exception as error:
            # Handed to `wait`, which is called in the thread that can do something about it.
            self._error = error
        self._connected.set()
        self._stopping.wait()
        if not found_running:
            ray.shutdown()
        if temp_dir:
            shutil.rmtree(temp_dir, ignore_errors=True)

    def _init(self, temp_dir: str | None) -> None:
        if self._address is not None:
            _check_answers(self._address)
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            return
        with nullcontext() if self._dashboard else only_needed_services():
            ray.init(
                address="local",
                num_cpus=cpu_count(),
                include_dashboard=self._dashboard,
                object_store_memory=_object_store_bytes(),
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=temp_dir,
            )


def _check_answers(address: str) -> None:
    """Ray itself would look for a cluster that is not there for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT_S).close()


def _make_temp_dir() -> str:
    """A folder named for this process; those of processes that were killed are removed on the way."""
    for old in Path("/tmp").glob("ray-[0-9]*-*"):
        pid = old.name.split("-")[1]
        if pid.isdecimal() and old.stat().st_uid == os.getuid() and not _is_alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"ray-{os.getpid()}-", dir="/tmp")


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
    return int(max(_OBJECT_STORE_MIN_BYTES, min(available, _OBJECT_STORE_MAX_BYTES)))
