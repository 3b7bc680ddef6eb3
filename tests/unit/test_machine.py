import os

import pytest

from toolkit.core import machine

GIB = 2**30


@pytest.fixture
def root(tmp_path):
    """A machine of 64 GiB; tests lay out its cgroups."""
    write(tmp_path / "proc/meminfo", "MemTotal:       67108864 kB\nMemFree: 1 kB\n")
    return tmp_path


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_no_cgroup(root):
    assert machine.cpu_count(root) == 8
    assert machine.memory_bytes(root) == 64 * GIB


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)]
)
def test_v2_quota(root, quota, cores):
    write(root / "proc/self/cgroup", "0::/job\n")
    write(root / "sys/fs/cgroup/job/cpu.max", quota + "\n")
    assert machine.cpu_count(root) == cores


def test_v2_the_tightest_of_all_levels_counts(root):
    write(root / "proc/self/cgroup", "0::/slice/job\n")
    write(root / "sys/fs/cgroup/slice/cpu.max", "300000 100000\n")
    write(root / "sys/fs/cgroup/slice/job/cpu.max", "max 100000\n")
    write(root / "sys/fs/cgroup/slice/memory.max", f"{4 * GIB}\n")
    write(root / "sys/fs/cgroup/slice/job/memory.max", f"{6 * GIB}\n")
    assert machine.cpu_count(root) == 3
    assert machine.memory_bytes(root) == 4 * GIB


def test_v2_in_a_container_whose_path_is_the_hosts(root):
    write(root / "proc/self/cgroup", "0::/kubepods/pod1/abc\n")
    write(root / "sys/fs/cgroup/cpu.max", "100000 100000\n")
    write(root / "sys/fs/cgroup/memory.max", f"{2 * GIB}\n")
    assert machine.cpu_count(root) == 1
    assert machine.memory_bytes(root) == 2 * GIB


def test_v1(root):
    write(root / "proc/self/cgroup", "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n")
    write(root / "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "400000\n")
    write(root / "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000\n")
    write(root / "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", f"{3 * GIB}\n")
    assert machine.cpu_count(root) == 4
    assert machine.memory_bytes(root) == 3 * GIB


def test_v1_without_limits(root):
    write(root / "proc/self/cgroup", "4:memory:/\n1:cpu:/\n")
    write(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert machine.cpu_count(root) == 8
    assert machine.memory_bytes(root) == 64 * GIB


def test_affinity_counts(root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert machine.cpu_count(root) == 1


def test_this_machine():
    assert machine.cpu_count() >= 1
    assert machine.memory_bytes() > 2**27


def test_shared_memory(tmp_path):
    assert machine.shared_memory_bytes(tmp_path) > 0
    assert machine.shared_memory_bytes(tmp_path / "none") is None
