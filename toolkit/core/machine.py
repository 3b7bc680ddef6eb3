"""What this process may really use: cores and memory, with the affinity mask and cgroup limits (v1 and v2) counted in.

Every function takes the root of the file system it reads, so that tests can lay out a machine of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")

# cgroup v1 writes "no limit" as the largest multiple of the page size that fits: anything near it is none.
NO_LIMIT_BYTES = 2**60


def cpu_count(root: Path = ROOT) -> int:
    """Whole cores this process may use, at least 1: the affinity mask, cut to the cgroup's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        cores = os.cpu_count() or 1
    return max(1, int(min([float(cores), *_quotas(root)])))


def memory_bytes(root: Path = ROOT) -> int:
    """Memory this process may use in all: the machine's, cut to the cgroup's limit."""
    return min([_physical_bytes(root), *_memory_limits(root)])


def shared_memory_bytes(path: Path = Path("/dev/shm")) -> int | None:
    """Size of the shared memory file system, where Ray keeps its objects; None where there is none (macOS)."""
    try:
        stats = os.statvfs(path)
    except OSError:
        return None
    return stats.f_frsize * stats.f_blocks


def _physical_bytes(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _quotas(root: Path) -> Iterator[float]:
    for folder in _folders(root, ""):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
    for folder in _folders(root, "cpu"):
        quota, period = (_text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        if quota.isdecimal() and period.isdecimal() and int(period):  # "-1": no quota
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _folders(root, controller):
            limit = _text(folder / name).strip()
            if limit.isdecimal() and int(limit) < NO_LIMIT_BYTES:
                yield int(limit)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and all above it, for a limit holds for everything below: v2's with controller ""."""
    top = root / "sys/fs/cgroup" / controller
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        folder = top / path.lstrip("/")
        # Inside a container the path is often the host's, and what is mounted at `top` is already our own group.
        while folder != top and folder.is_relative_to(top):
            yield folder
            folder = folder.parent
    yield top


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
