"""Local Ray: sized to the machine and its cgroup, private to this process, and gone when the block ends.

A Ray that is running already (`RAY_ADDRESS`) is used and left running.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Both are read when ray is imported. Ray would otherwise replay `uv run` in every worker (ray issue 54344), and report usage over the network.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from toolkit.core.errors import ClusterError
from toolkit.core.machine import cpu_count, memory_bytes

# The object store holds one copy of the data and nothing else; it is backed by memory only as far as it is filled.
_OBJECT_STORE_SHARE = 0.3
_OBJECT_STORE_MAX_BYTES = 4 * 2**30
_OBJECT_STORE_MIN_BYTES = 80 * 2**20


@dataclass(frozen=True)
class RayCluster:
    """A connection. `num_cpus`, `num_gpus` are the cluster's, `started_here` says whether we end it."""

    num_cpus: float
    num_gpus: float
    started_here: bool
    start_s: float


@contextmanager
def ray_cluster(address: str | None, dashboard: bool) -> Iterator[RayCluster]:
    """Connect to `address`, or start a local Ray; on every way out disconnect, and end what was started.

    Raises:
        ClusterError: the address does not answer, Ray runs in this process already for someone else, or it does not start.
    """
    began = time.perf_counter()
    temp_dir: str | None = None
    if ray.is_initialized():
        resources = ray.cluster_resources()
        yield RayCluster(resources.get("CPU", 0), resources.get("GPU", 0), started_here=False, start_s=0.0)
        return
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            # Ray's sockets lie below it, and AF_UNIX paths hold 107 bytes: a short name straight under the system's temporary folder.
            temp_dir = tempfile.mkdtemp(prefix="ray-")
            ray.init(
                address="local",
                num_cpus=cpu_count(),
                include_dashboard=dashboard,
                object_store_memory=_object_store_bytes(),
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=temp_dir,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        ray.shutdown()
        if temp_dir:
            shutil.rmtree(temp_dir, ignore_errors=True)
        raise ClusterError(
            "Ray must start" if address is None else f"Ray must answer at RAY_ADDRESS={address}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            next_step="see `toolkit doctor`, or use --cluster inprocess",
        ) from error
    try:
        resources = ray.cluster_resources()
        yield RayCluster(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            started_here=address is None,
            start_s=time.perf_counter() - began,
        )
    finally:
        ray.shutdown()
        if temp_dir:
            shutil.rmtree(temp_dir, ignore_errors=True)


def _object_store_bytes() -> int:
    available = memory_bytes() * _OBJECT_STORE_SHARE
    if os.path.isdir("/dev/shm"):
        available = min(available, shutil.disk_usage("/dev/shm").free * 0.9)
    return int(max(_OBJECT_STORE_MIN_BYTES, min(available, _OBJECT_STORE_MAX_BYTES)))
