"""A Spark standalone cluster on loopback, from pyspark's own scripts: for tests, benchmarks, and to try `--cluster spark` on a laptop.

    task spark:standalone              # starts one, prints its address, ends it with Ctrl-C

`local[*]` is no cluster: it has no executors, no worker processes to lose, and no stage-level scheduling.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyspark

SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
START_TIMEOUT_S = 60.0


class SparkStandalone:
    """One master and any number of workers, each a process in a group of its own.

    `environ` is added to the environment of all of them, and so of the executors. `host` is the address that the master answers at.
    `prefix` goes before a worker's command (`ip netns exec NAME`). Use as a context manager.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "SPARK_LOG_DIR": str(folder / "logs"),
            "SPARK_NO_DAEMONIZE": "1",
            # Executors find the interpreter of this environment, and its `ray`.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **(environ or {}),
        }
        self.master_port = _free_port()
        self.host = host
        self.workers: list[subprocess.Popen[bytes]] = []
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"spark://{self.host}:{self.master_port}"

    def __enter__(self) -> SparkStandalone:
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = ["--port", str(self.master_port), "--webui-port", "0"]
        self._master = self._spawn("master", ["org.apache.spark.deploy.master.Master", "--host", self.host, *ports])
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.master_port), timeout=1):
                return self
            assert self._master.poll() is None and time.monotonic() < until, (self.folder / "master.log").read_text()[-2000:]
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, *([self._master] if self._master else [])]:
            kill(process)

    def start_worker(
        self, cores: int, memory_mib: int = 2048, host: str = "127.0.0.1", prefix: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Returns when the worker has registered with the master."""
        name = f"worker-{len(self.workers)}"
        command = ["org.apache.spark.deploy.worker.Worker", "--host", host, "--webui-port", "0"]
        command += ["--cores", str(cores), "--memory", f"{memory_mib}m", "--work-dir", str(self.folder / name), self.url]
        process = self._spawn(name, command, prefix)
        self.workers.append(process)
        log = self.folder / f"{name}.log"
        until = time.monotonic() + START_TIMEOUT_S
        while b"Successfully registered with master" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.1)
        return process

    def _spawn(self, name: str, command: Sequence[str], prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*prefix, str(SPARK_CLASS), *command],
                env=self.environ, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process alone: what it started must notice by itself, as on a host that crashes."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="A Spark standalone cluster on loopback, until Ctrl-C.")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="of each worker")
    parser.add_argument("--memory-mib", type=int, default=2048, help="of each worker, for its executors' JVMs")
    options = parser.parse_args()
    # `kill` ends it as Ctrl-C does, its processes included. (In the background of a script SIGINT is ignored.)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="spark-") as folder, SparkStandalone(Path(folder)) as cluster:
        for _ in range(options.workers):
            cluster.start_worker(options.cores, options.memory_mib)
        print(cluster.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
