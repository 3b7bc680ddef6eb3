"""What the fault tests do to a Spark standalone cluster: whose processes are whose, a network to cut, a memory limit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.spark_standalone import SparkStandalone, kill
from tests.commands import Answer, Workplace, wait_until
from tests.needs import need_java, skip_or_fail

GONE_TIMEOUT_S = 60


@dataclass
class SparkCommand:
    """`toolkit sweep --cluster spark` of one workplace on one cluster. Executors and all that they start carry a mark of their own."""

    workplace: Workplace
    cluster: SparkStandalone

    @property
    def executor_mark(self) -> str:
        return f"{self.workplace.mark}-executor"

    def start(self, *arguments: str, script: Path | None = None) -> subprocess.Popen[str]:
        conf = {"spark.executorEnv.TOOLKIT_TEST_MARK": self.executor_mark, "spark.executor.memory": "512m"}
        more = [word for name, value in conf.items() for word in ("--spark-conf", f"{name}={value}")]
        command = ["sweep", *arguments, "--cluster", "spark", "--spark-master", self.cluster.url, *more, "--json"]
        return self.workplace.start(*command, **({"script": script} if script else {}))

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 150) -> Answer:
        return self.workplace.finish(process, timeout_s)

    def pids(self, *words: str, on_executors: bool) -> list[int]:
        """Of this command's processes, those with one of `words` in their command line."""
        ours, executors = f"TOOLKIT_TEST_MARK={self.workplace.mark}".encode(), f"TOOLKIT_TEST_MARK={self.executor_mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                environ = (folder / "environ").read_bytes().split(b"\0")
                if (executors if on_executors else ours) in environ:
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if any(word in line for word in words):
                        found.append(int(folder.name))
        return found

    def raylets(self) -> set[int]:
        """Of the workers."""
        return set(self.pids("raylet/raylet", on_executors=True))

    def all_gone(self) -> None:
        """The driver's side as everywhere; of the executors nothing at all, not even what a killed raylet leaves behind."""
        self.workplace.all_gone()
        wait_until(lambda: not self.pids("", on_executors=True), GONE_TIMEOUT_S, self.workplace.processes)


def kill_one(pids: list[int]) -> None:
    os.kill(pids[0], signal.SIGKILL)


def have_workers(cluster: SparkStandalone, num: int) -> None:
    """Exactly so many, of one core each; the newest go first."""
    cluster.workers[:] = [worker for worker in cluster.workers if worker.poll() is None]
    while len(cluster.workers) > num:
        kill(cluster.workers.pop())
    while len(cluster.workers) < num:
        cluster.start_worker(cores=1)


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkStandalone]:
    """A master; each test says how many workers it wants."""
    need_java()
    with SparkStandalone(tmp_path_factory.mktemp("standalone")) as cluster:
        yield cluster


@dataclass
class Gate:
    """The middle of a fit: each trial leaves a file that says where it ran, and after `open_for` trials they wait for `open`."""

    folder: Path
    open_for: int

    def __post_init__(self) -> None:
        self.marks.mkdir()

    @property
    def marks(self) -> Path:
        return self.folder / "marks"

    @property
    def body(self) -> str:
        return f"""import ray
        node = ray.get_runtime_context().get_node_id() if os.environ.get("TOOLKIT_TEST_MARK", "").endswith("-executor") else "the driver"
        (Path({str(self.marks)!r}) / f"{{params['tree']['x']}} {{os.getpid()}} {{node}}").touch()
        while len(list(Path({str(self.marks)!r}).iterdir())) > {self.open_for} and not Path({str(self.folder / "go")!r}).exists():
            time.sleep(0.02)
        time.sleep(0.03)"""

    def open(self) -> None:
        (self.folder / "go").touch()

    def nodes(self) -> set[str]:
        """Ray's ids of the nodes that trials have run on. (The winner is fitted in the driver.)"""
        return {path.name.split(" ", 2)[2] for path in self.marks.iterdir()} - {"the driver"}

    def wait(self) -> None:
        """Until trials wait at it."""
        wait_until(lambda: len(list(self.marks.iterdir())) > self.open_for, 60)


@dataclass
class Network:
    """Two hosts behind a switch: this one, and a namespace whose cable can be pulled."""

    host: str
    other_host: str
    namespace: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def cut(self) -> None:
        _ip("link", "set", f"{self.namespace}a", "down")

    def heal(self) -> None:
        _ip("link", "set", f"{self.namespace}a", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def network() -> Iterator[Network]:
    """Skips where a namespace cannot be made: without root, and on macOS."""
    name, net = f"tk{os.getpid() % 100000}", f"10.231.{os.getpid() % 256}"
    host, other = f"{net}.1", f"{net}.2"
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("a network namespace needs root and `ip`")
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        _ip("link", "add", f"{name}s", "type", "bridge")
        _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
        _ip("link", "set", f"{name}b", "netns", name)
        _ip("link", "set", f"{name}a", "master", f"{name}s")
        _ip("addr", "add", f"{host}/24", "dev", f"{name}s")
        _ip("link", "set", f"{name}s", "up")
        _ip("link", "set", f"{name}a", "up")
        for command in (("addr", "add", f"{other}/24", "dev", f"{name}b"), ("link", "set", f"{name}b", "up"), ("link", "set", "lo", "up")):
            _ip("-n", name, *command)
        yield Network(host, other, name)
    finally:
        # The bridge last: the veth goes with the namespace's end of it.
        subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)
        subprocess.run(["ip", "link", "del", f"{name}s"], check=False, timeout=20)


@contextmanager
def memory_limit(process: subprocess.Popen[bytes], limit_bytes: int) -> Iterator[None]:
    """For the process and all that it starts from now on: a control group of version 1, as what a container's memory limit is made of."""
    folder = Path(f"/sys/fs/cgroup/memory/toolkit-{process.pid}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            (folder / "tasks").write_text(task.name)
    except OSError as error:
        pytest.skip(f"a memory limit needs a control group (v1) that can be written: {error}")
    try:
        yield
    finally:
        kill(process)
        wait_until(lambda: not (folder / "tasks").read_text(), GONE_TIMEOUT_S)
        folder.rmdir()


@contextmanager
def own_session(folder: Path, conf: Mapping[str, str] | None = None) -> Iterator[Any]:
    """A local session of a test file's own: a process has one at a time, and other files need other masters."""
    need_java()
    if importlib.util.find_spec("pyspark") is None:
        skip_or_fail("needs pyspark")
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    assert SparkContext._active_spark_context is None, "another test has left its Spark session"
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "3",
        "spark.sql.warehouse.dir": str(folder),
        "spark.log.level": "OFF",
        **(conf or {}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
        yield session
        session.stop()
        # The session is gone, the JVM would stay until this process ends, and with it the settings for the next session.
        gateway = SparkContext._gateway
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(timeout=30)
        SparkContext._gateway = SparkContext._jvm = None
