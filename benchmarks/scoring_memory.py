"""What the processes of a Spark session occupy while it works, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

INTERVAL_S = 0.1


class Watch:
    """Context manager: samples the JVM and the Python workers below this process until it is left.

    Attributes (MB of 10^6 bytes):
        worker_uss_mb, worker_rss_mb: the most that one worker had; USS: pages that no other process shares.
        total_rss_mb: the most that JVM, Python's daemon and workers had together.
        jvm_rss_mb: the most of the JVM.
    """

    def __init__(self) -> None:
        self.worker_uss_mb = self.worker_rss_mb = self.total_rss_mb = self.jvm_rss_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("worker_uss_mb", "worker_rss_mb", "total_rss_mb", "jvm_rss_mb")}

    def _sample(self) -> None:
        while not self._done.wait(INTERVAL_S):
            jvm, daemons, workers = _processes()
            jvm_mb = sum(memory_mb(pid)[1] for pid in jvm)
            found = [memory_mb(pid) for pid in workers]
            self.worker_uss_mb = max([self.worker_uss_mb, *(uss for uss, _ in found)])
            self.worker_rss_mb = max([self.worker_rss_mb, *(rss for _, rss in found)])
            self.jvm_rss_mb = max(self.jvm_rss_mb, jvm_mb)
            total = jvm_mb + sum(rss for _, rss in found) + sum(memory_mb(pid)[1] for pid in daemons)
            self.total_rss_mb = max(self.total_rss_mb, total)


def memory_mb(pid: int | str) -> tuple[float, float]:
    """USS and RSS; zeros of a process that is gone."""
    sizes = {"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0, "Private_Hugetlb": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
    return sum(sizes[name] for name in sizes if name != "Rss") / 1e6, sizes["Rss"] / 1e6


def libraries_mb() -> dict[str, float]:
    """Of a process that has only imported what a scorer imports; call it in a fresh one."""
    import numpy  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow  # noqa: F401
    import xgboost  # noqa: F401

    uss_mb, rss_mb = memory_mb("self")
    return {"worker_uss_mb": uss_mb, "worker_rss_mb": rss_mb}


def watched(work: Callable[[], object]) -> dict[str, float]:
    """`work`, what was occupied meanwhile, and its wall time."""
    began = time.perf_counter()
    with Watch() as watch:
        work()
    return {"wall_s": time.perf_counter() - began, **watch.as_dict()}


def _processes() -> tuple[list[int], list[int], list[int]]:
    """JVMs, Python daemons and Python workers among the descendants of this process. A worker is a daemon's child."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes()
    ours = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not more:
            break
        ours |= more
    daemons = {pid for pid in ours if b"pyspark" in commands.get(pid, b"") and b"daemon" in commands[pid]}
    workers = [pid for pid in daemons if parents[pid] in daemons]
    jvm = [pid for pid in ours if commands.get(pid, b"").split(b"\0")[0].endswith(b"java")]
    return jvm, [pid for pid in daemons if pid not in workers], workers
