"""Ray on a Spark cluster: the head in this process's keeping, one Ray node an executor, and nothing left of either afterwards.

The parts are `ray.util.spark`'s: its job server (each Ray node is a Spark job of one task), its node provider and its autoscaler. How they
are put together is ours. Ray's own `setup_ray_cluster` sleeps 20 s after it has started the head, and goes through four more interpreters
on the way to the first worker; its memory and cores are the host's, not the executor's (see docs/decisions/0004). All of it is private to
Ray, pinned to 2.60 and watched by `tests/engines/test_ray_patches.py`.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import logging
import os
import secrets
import socket
import threading
import time
import warnings
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray._private import services
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._raylet import GcsClient
from ray.autoscaler._private.spark import spark_job_server
from ray.autoscaler._private.spark.node_provider import HEAD_NODE_ID, SparkNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.exceptions import RpcError
from ray.util.spark import cluster_init

from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Cluster
from toolkit.core.machine import shared_memory_bytes
from toolkit.engines.ray_cluster import OBJECT_STORE_MIN_BYTES
from toolkit.engines.ray_patches import only_needed_services, reread_authentication, without_obituaries
from toolkit.engines.ray_spark_jobs import JobServer, node_task
from toolkit.engines.ray_spark_node import remove_when_last
from toolkit.engines.spark_cluster import SparkCluster, driver_ip
from toolkit.engines.spark_session import reason_of

_WORKER = "ray.worker"
_POLL_S = 0.05
_RELAUNCH_EVERY_S = 2.0
_GCS_TIMEOUT_S = 2.0
# Longer than a node takes from its Spark task's first line to its registration.
_UNREACHABLE_S = 60.0
_IDLE_TIMEOUT_MINUTES = 1.0
# A raylet that was killed is known to be dead in 5 s (Ray's own settings: 15), one behind a cut network in 30 (65).
_HEALTH_CHECKS = {"health_check_period_ms": 1000, "health_check_timeout_ms": 5000, "health_check_failure_threshold": 5}
_HEAD_MEMORY_BYTES = 2**30
_ABANDONED_S = 60.0
_JOB_SERVER = "ray.autoscaler._private.spark.spark_job_server"

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class WorkerShape:
    num_cpus: int
    memory_bytes: int
    object_store_bytes: int


class RayOnSpark:
    """Implements `ray_cluster.RaySource` on the executors of `spark`.

    Args:
        data_bytes: what each node's object store must hold.
        wanted_workers: more would have nothing to do; None: one an executor.
    """

    def __init__(self, spark: SparkCluster, cluster: Cluster, data_bytes: int, wanted_workers: int | None = None) -> None:
        if ray.is_initialized():
            raise ClusterError(
                "Ray on Spark needs a process without Ray",
                got="one that is connected already",
                next_step="call ray.shutdown(), or use that Ray with --cluster local",
            )
        self._spark = spark
        self._cluster = cluster
        self._data_bytes = data_bytes
        self._shape = WorkerShape(spark.cores_per_worker, spark.memory_bytes_per_worker, _object_store_bytes(spark, data_bytes))
        room = spark.num_workers
        self.max_workers = cluster.max_workers or max(min(room, wanted_workers or room), cluster.min_workers or 1)
        self._accepted = cluster.min_workers or 1
        self.min_workers = self._accepted if cluster.scales else self.max_workers
        self._stack = ExitStack()
        self._head: Node | None = None
        self._server: Any = None
        self._ended = threading.Event()
        self._launched_s: list[float] = []
        self._last_alive_s = time.monotonic()
        self._missing_since_s: dict[str, float] = {}
        self._seen_alive: set[str] = set()

    # --- start ------------------------------------------------------------------------------------------------------------------

    def start(self, stopping: threading.Event) -> None:
        """Returns with `ray` connected and the workers counted, or soon after `stopping` is set.

        Raises:
            ClusterError: fewer than `cluster.min_workers`, or none, came up.
        """
        ip = driver_ip(self._spark.session)
        if ipaddress.ip_address(ip).is_loopback:  # as /etc/hosts may say of this host's own name: others would call themselves
            ip = services.resolve_ip_for_localhost("127.0.0.1")
        port = _free_port(ip)
        self._address = ip, port
        self._temp_dir = self._make_temp_dir(port)
        environ = self._authenticate(ip)
        self._cluster_id = secrets.token_hex(16)
        self._server = self._serve_jobs(ip, environ)
        config = self._autoscaling_config(ip, port)
        self._provider = SparkNodeProvider(config["provider"], "toolkit")
        self._node_config = config["available_node_types"][_WORKER]
        # Executors start interpreters and import while the head starts here.
        self._launch(self.min_workers)
        self._head = self._start_head(ip, port, config)
        with without_obituaries():
            ray.init(address=f"{ip}:{port}", log_to_driver=False, logging_level=logging.ERROR)
        self._stack.callback(ray.shutdown)
        self._wait_for_workers(stopping)

    def _make_temp_dir(self, port: int) -> Path:
        """Of the same name on all hosts. Ray's sockets lie below it, so it must be short."""
        root = Path(cluster_init._create_hook_entry(is_global=False).get_default_temp_root_dir())
        _remove_abandoned(root)
        path = root / f"ray-{port}-{secrets.token_hex(3)}"
        path.mkdir(mode=0o700, parents=True)
        lock = path.with_suffix(".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_SH)
        self._stack.callback(lock.close)
        self._stack.callback(remove_when_last, path, lock.fileno())
        return path

    def _authenticate(self, ip: str) -> dict[str, str]:
        """Without a token anybody on the network could run code on the cluster. Ray on Spark passes none on, so that one earlier local
        `ray.init`, which turns tokens on, would leave head and workers in different modes. And no proxy is to be asked for this host."""
        kept = {name: os.environ.pop(name, None) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "no_proxy", "NO_PROXY")}
        environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        no_proxy = ",".join(filter(None, (kept["no_proxy"] or kept["NO_PROXY"], ip)))

        def apply(values: dict[str, str | None]) -> None:
            for name, value in values.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            reread_authentication()

        apply({**environ, "no_proxy": no_proxy, "NO_PROXY": no_proxy})
        self._stack.callback(apply, kept)
        return environ

    def _serve_jobs(self, ip: str, environ: dict[str, str]) -> Any:
        server = JobServer((ip, 0), self._spark.session, environ, self._cluster_id)
        theirs = spark_job_server._start_ray_worker_nodes
        spark_job_server._start_ray_worker_nodes = self._run_node
        # It warns of every job that ends, and sets its own level with each request.
        logging.getLogger(_JOB_SERVER).disabled = True
        logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", "Spark session is not provided")
        threading.Thread(target=server.serve_forever, name="spark-job-server", daemon=True).start()

        def stop() -> None:
            spark_job_server._start_ray_worker_nodes = theirs
            self._end_workers()
            server.server_close()

        self._stack.callback(stop)
        return server

    def _end_workers(self) -> None:
        """Cancel their Spark jobs; once, although both the head and the server need it done before they go."""
        if not self._ended.is_set():
            self._ended.set()
            self._server.shutdown()

    def _autoscaling_config(self, ip: str, port: int) -> dict[str, Any]:
        shape = self._shape
        resources = {"CPU": shape.num_cpus, "GPU": 0, "memory": shape.memory_bytes, "object_store_memory": shape.object_store_bytes}
        config: dict[str, Any] = cluster_init.AutoscalingCluster(
            head_resources={"CPU": 0, "GPU": 0, "memory": _HEAD_MEMORY_BYTES, "object_store_memory": shape.object_store_bytes},
            worker_node_types={
                _WORKER: {"resources": resources, "node_config": {}, "min_workers": self.min_workers, "max_workers": self.max_workers}
            },
            extra_provider_config={
                "ray_head_ip": ip,
                "ray_head_port": port,
                "cluster_unique_id": self._cluster_id,
                "using_stage_scheduling": True,
                "ray_temp_dir": str(self._temp_dir),
                "worker_node_options": {},
                "collect_log_to_path": None,
                "spark_job_server_port": self._server.server_address[1],
            },
            upscaling_speed=float(self.max_workers),
            idle_timeout_minutes=_IDLE_TIMEOUT_MINUTES,
        )._config
        return config

    def _launch(self, count: int) -> None:
        node = self._node_config
        self._launched_s += [time.monotonic()] * count
        self._provider.create_node_with_resources_and_labels({}, {TAG_RAY_USER_NODE_TYPE: _WORKER}, count, node["resources"], {})

    def _run_node(self, *, spark_job_group_id: str, node_id: str, **_: Any) -> str | None:
        """In place of Ray's own: one Spark task that holds one Ray node. Returns when the node has ended.

        The request's other fields are not used: who may send one is not known, and the node is given the cluster's token.
        """
        ip, port = self._address
        task = node_task(
            server=f"http://{ip}:{self._server.server_address[1]}",
            group=spark_job_group_id,
            node_id=node_id,
            environ={"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", **self._server.ray_node_custom_env},
            options={
                "head_ip": ip,
                "head_port": port,
                "temp_dir": str(self._temp_dir),
                "num_cpus": self._shape.num_cpus,
                "memory_bytes": self._shape.memory_bytes,
                "object_store_bytes": self._shape.object_store_bytes,
                "resources": {"NODE_ID_AS_RESOURCE": int(node_id)},
                "dashboard": self._cluster.dashboard,
            },
        )
        description = f"Ray node {node_id} of the toolkit"
        try:
            cluster_init._create_hook_entry(is_global=False).on_spark_job_created(spark_job_group_id)
            last_words = self._spark.run_task(task, self._shape.num_cpus, group=spark_job_group_id, description=description)
        except Exception as error:
            # The job server's thread raises it to nobody. A job that we have cancelled ends this way, too.
            if not self._ended.is_set():
                self._server.last_worker_error = reason_of(error)
            raise
        if last_words:
            self._server.last_worker_error = last_words[0]
        return None

    def _start_head(self, ip: str, port: int, config: dict[str, Any]) -> Node:
        scales = self._scales
        path = self._temp_dir / "autoscaling.json"
        if scales:
            path.write_text(json.dumps(config))
        with only_needed_services(dashboard=self._cluster.dashboard, monitor=scales):
            node = Node(
                RayParams(
                    node_ip_address=ip,
                    gcs_server_port=port,
                    num_cpus=0,
                    num_gpus=0,
                    memory=_HEAD_MEMORY_BYTES,
                    object_store_memory=_within_shared_memory(_wanted_store_bytes(self._data_bytes), shared_memory_bytes()),
                    resources={"NODE_ID_AS_RESOURCE": HEAD_NODE_ID},
                    temp_dir=str(self._temp_dir),
                    include_dashboard=self._cluster.dashboard,
                    include_log_monitor=False,  # type: ignore[arg-type]  # Ray's own callers pass a bool
                    no_monitor=not scales,
                    autoscaling_config=str(path) if scales else None,
                    _system_config=_HEALTH_CHECKS,  # type: ignore[arg-type]  # its annotation says strings; Ray's own are numbers
                ),
                head=True,
                shutdown_at_exit=False,
                spawn_reaper=True,
            )
        self._stack.callback(node.kill_all_processes, check_alive=False, allow_graceful=True, wait=True)
        self._stack.callback(self._end_workers)
        self._gcs = GcsClient(address=f"{ip}:{port}")
        return node

    def _wait_for_workers(self, stopping: threading.Event) -> None:
        # More than there are executors for may come later, but are not waited for.
        enough = max(self._accepted, min(self.min_workers, self._spark.num_workers))
        last_progress_s, alive = time.monotonic(), 0
        while alive < enough:
            if stopping.wait(_POLL_S):
                return
            before = alive
            with suppress(RpcError):  # a head that is slow, or dead: see below
                alive = len(self._alive_workers())
            if alive > before:
                last_progress_s = time.monotonic()
            self._replace_lost()
            if reason := self._head_failure():
                raise ClusterError("Ray must start", got=reason, next_step="see `toolkit doctor --cluster spark`")
            if time.monotonic() - last_progress_s > self._cluster.start_timeout_s or self._keeps_failing():
                break
        if alive < self._accepted:
            got = f"{alive} of {self.min_workers}" + (f", the last of the others with: {self._last_error}" if self._last_error else "")
            raise ClusterError(
                f"at least {self._accepted} Ray worker{'s' if self._accepted > 1 else ''} must come up on the executors",
                got=got,
                next_step="the executors' cores may be taken: see the master's page, or lower cluster.min_workers",
            )
        if alive < self.min_workers:
            _logger.warning("%d of %d Ray workers came up: the sweep begins with these", alive, self.min_workers)

    # --- while it lasts ---------------------------------------------------------------------------------------------------------

    def failure(self) -> str | None:
        """Why nothing can run on this Ray any more, or None. To be asked about once a second: it also replaces workers that were lost."""
        if reason := self._head_failure():
            return reason
        try:
            alive = self._alive_workers()
        except RpcError:
            return self._head_failure()  # or else: asked again in a second
        if alive:
            self._last_alive_s = time.monotonic()
        elif time.monotonic() - self._last_alive_s > self._cluster.start_timeout_s:
            return f"no Ray worker for {self._cluster.start_timeout_s:g} s" + (f": {self._last_error}" if self._last_error else "")
        if self._seen_alive - alive and not self._scales:
            _logger.warning("a Ray worker was lost%s: another one is started", f" ({self._last_error})" if self._last_error else "")
        self._seen_alive = alive
        self._give_up_unreachable(alive)
        self._replace_lost()
        return None

    def _head_failure(self) -> str | None:
        dead = [str(kind) for kind, _ in self._head.dead_processes()] if self._head else []
        return f"the Ray head's {' and '.join(dead)} died" if dead else None

    @property
    def _scales(self) -> bool:
        return self._cluster.scales

    @property
    def _last_error(self) -> str:
        return " ".join((self._server.last_worker_error or "").split())[-300:]

    def _alive_workers(self) -> set[str]:
        """Their node ids with the job server."""
        nodes = self._gcs.get_all_node_info(timeout=_GCS_TIMEOUT_S, state_filter=GcsNodeInfo.GcsNodeState.ALIVE).values()
        return {str(int(node.resources_total["NODE_ID_AS_RESOURCE"])) for node in nodes if node.resources_total.get("CPU", 0) > 0}

    def _give_up_unreachable(self, alive: set[str]) -> None:
        """A node behind a cut network: its Spark task runs on, and would keep its place."""
        running = {node["node_id"] for node in self._server.query_nodes()["nodes"] if node["status"] == "running"}
        now = time.monotonic()
        self._missing_since_s = {each: self._missing_since_s.get(each, now) for each in running - alive}
        for node_id, since_s in self._missing_since_s.items():
            if now - since_s > _UNREACHABLE_S:
                self._provider.terminate_node(node_id)

    def _replace_lost(self) -> None:
        """With a fixed size there is no autoscaler to do it."""
        if self._scales or time.monotonic() - self._launched_s[-1] < _RELAUNCH_EVERY_S:
            return
        missing = self.min_workers - len(self._server.query_nodes()["nodes"])
        if missing > 0:
            self._launch(missing)

    def _keeps_failing(self) -> bool:
        """Something is wrong with every node, not with one: three generations have ended without one coming up."""
        return len(self._launched_s) > 3 * self.min_workers and bool(self._last_error)

    # --- end --------------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Everything that `start` has begun, also half-way. A dead head makes Ray's own shutdown wait for about 15 s."""
        if self._head_failure():
            assert self._head is not None
            self._head.kill_all_processes(check_alive=False, allow_graceful=False)
        self._stack.close()


def _object_store_bytes(spark: SparkCluster, data_bytes: int) -> int:
    """Of each worker; those of one host share its /dev/shm."""
    on_host = Counter[str]()
    for executor in spark.executors:
        on_host[executor.host] += executor.cores // spark.cores_per_worker
    wanted = _wanted_store_bytes(data_bytes)
    return min(_within_shared_memory(wanted, each.shared_memory_bytes, on_host[each.host]) for each in spark.executors)


def _wanted_store_bytes(data_bytes: int) -> int:
    """One copy of the data, with room for what Ray puts beside it."""
    return max(128 * 2**20, int(data_bytes * 1.3) + 64 * 2**20)


def _within_shared_memory(wanted: int, shared_bytes: int | None, num_nodes: int = 1) -> int:
    """Ray puts on disk what shared memory cannot hold."""
    room = wanted if shared_bytes is None else int(0.8 * shared_bytes / num_nodes)
    return max(OBJECT_STORE_MIN_BYTES, min(wanted, room))


def _remove_abandoned(root: Path) -> None:
    """Folders of drivers that were killed: those whose lock nobody holds. One that is made just now is left its time to take it."""
    for lock_path in root.glob("ray-[0-9]*-*.lock"):
        with suppress(FileNotFoundError, PermissionError):
            if lock_path.stat().st_uid == os.getuid() and time.time() - lock_path.stat().st_mtime > _ABANDONED_S:
                with lock_path.open("a") as lock:
                    remove_when_last(lock_path.with_suffix(""), lock.fileno())


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
