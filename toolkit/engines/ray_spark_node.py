"""One Ray node on a Spark executor: what a task of `ray_on_spark` starts, and what ends together with it.

Ray on Spark's own launcher goes through two interpreters more (`start_ray_node`, then `ray start`), each with all of Ray's imports; this is
one, and it imports while the head is still starting.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_HEAD_TIMEOUT_S = 60.0
_CHECK_EVERY_S = 0.5


def main() -> None:
    """Options come as one JSON object on standard input: `parent_pid`, `head_ip`, `head_port`, `temp_dir`, `num_cpus`, `memory_bytes`,
    `object_store_bytes`, `resources`, `dashboard`. The environment has Ray's authentication.

    Exit status 0 when it was told to end, 1 when a part of the node died.
    """
    options: dict[str, Any] = json.loads(sys.stdin.readline())
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, _end)
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        # A cancelled Spark task's process is killed: nobody could pass that on.
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # What a killed raylet leaves behind becomes ours to end; its agents would try to report to it for a minute.
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
    temp_dir = Path(options["temp_dir"])
    if temp_dir.exists() and temp_dir.stat().st_uid != os.getuid():
        # The driver's, on its own host: Spark's workers may run as another user.
        temp_dir = temp_dir.with_name(f"{temp_dir.name}-{os.getuid()}")
        options["temp_dir"] = str(temp_dir)
    temp_dir.mkdir(parents=True, exist_ok=True)
    with temp_dir.with_suffix(".lock").open("w") as lock:
        # Shared by all nodes on the host; the last one to go removes the folder.
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            _live(options)
        finally:
            remove_when_last(temp_dir, lock.fileno())


def _live(options: dict[str, Any]) -> None:
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    if not options["dashboard"]:
        ray._private.utils.get_dashboard_dependency_error = no_dashboard
    _wait_for(options["head_ip"], options["head_port"])
    node = Node(
        RayParams(
            gcs_address=f"{options['head_ip']}:{options['head_port']}",
            node_ip_address=_own_address(options["head_ip"], options["head_port"]),
            num_cpus=options["num_cpus"],
            memory=options["memory_bytes"],
            object_store_memory=options["object_store_bytes"],
            resources=options["resources"],
            temp_dir=options["temp_dir"],
            include_log_monitor=False,  # type: ignore[arg-type]  # Ray's own callers pass a bool
        ),
        head=False,
        shutdown_at_exit=False,
        spawn_reaper=True,
    )
    try:
        # What it was when the task wrote it: a task killed before the first lines here would leave a node that nobody ends.
        while os.getppid() == options["parent_pid"]:
            if dead := [kind for kind, _ in node.dead_processes()]:
                raise SystemExit(f"{', '.join(dead)} died")
            time.sleep(_CHECK_EVERY_S)
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        if sys.platform == "linux":
            _kill_orphans()


def _kill_orphans() -> None:
    """Again and again, for each one that goes hands its own children up."""
    while children := Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(pid), 0)


def no_dashboard() -> ImportError:
    """In place of Ray's own check of what is installed. A raylet waits for its agent's imports before it registers; a minimal Ray's agent
    imports little, and opens no port, where the full one answers anybody by HTTP."""
    return ImportError("the dashboard is off")


def remove_when_last(temp_dir: Path, lock: int) -> None:
    """`lock`: file descriptor with this node's shared lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shutil.rmtree(temp_dir, ignore_errors=True)
    temp_dir.with_suffix(".lock").unlink(missing_ok=True)


def _wait_for(host: str, port: int) -> None:
    until = time.monotonic() + _HEAD_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise SystemExit(f"the Ray head at {host}:{port} cannot be reached from {socket.gethostname()}: {error}") from error
        time.sleep(0.1)


def _own_address(host: str, port: int) -> str:
    """The address that the head sees this host under."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
