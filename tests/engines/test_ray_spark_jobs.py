"""What listens on the network while Ray runs on Spark, and what must not hang. No Spark is needed to look at it."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Cluster
from toolkit.engines.ray_cluster import RayConnection
from toolkit.engines.ray_spark_jobs import JobServer

pytestmark = pytest.mark.engine


@pytest.fixture
def server() -> Iterator[JobServer]:
    server = JobServer(("127.0.0.1", 0), None, {"RAY_AUTH_TOKEN": "secret"})
    server.cluster_id = "f00d"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    # Its own shutdown would cancel Spark jobs, and there is no Spark.
    super(type(server).__mro__[1], server).shutdown()
    thread.join()
    server.server_close()


def post(server: JobServer, path: str, body: bytes) -> bytes:
    url = f"http://127.0.0.1:{server.server_address[1]}/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=10) as answer:
        return bytes(answer.read())


FOREIGN = b"""{"spark_job_group_id": "ray-cluster-1-other-worker-node-1", "spark_job_group_desc": "", "using_stage_scheduling": true, "ray_head_ip": "10.0.0.1",
"ray_head_port": 1, "ray_temp_dir": "/tmp", "num_cpus_per_node": 1, "num_gpus_per_node": 0, "heap_memory_per_node": 1, "object_store_memory_per_node": 1,
"worker_node_options": {}, "collect_log_to_path": null, "node_id": "1", "node_type": "ray.worker", "tags": {}}"""


def test_strangers_start_no_nodes(server: JobServer) -> None:
    assert post(server, "create_node", FOREIGN) == b""
    assert server.query_nodes()["nodes"] == []


def test_strangers_end_no_nodes(server: JobServer) -> None:
    server.register_node("1", "ray-cluster-9000-f00d-worker-node-1", {})
    assert post(server, "terminate_node", FOREIGN) == b""
    assert [node["status"] for node in server.query_nodes()["nodes"]] == ["pending"]


def test_the_driver_is_obeyed(server: JobServer) -> None:
    created, node = server.register_node("1", "ray-cluster-9000-f00d-worker-node-1", {})
    assert created and node["status"] == "pending"


class Slow:
    """A source whose workers never come."""

    def __init__(self) -> None:
        self.stopped = False

    def start(self, stopping: threading.Event) -> None:
        assert stopping.wait(60), "nobody said so"
        raise ClusterError("stopped")

    def failure(self) -> str | None:
        return None

    def stop(self) -> None:
        self.stopped = True


def test_a_start_can_be_stopped() -> None:
    source = Slow()
    connection = RayConnection(source)
    time.sleep(0.05)
    connection.stop()
    assert source.stopped


class Broken(Slow):
    """A source whose watch meets what nobody has foreseen."""

    def start(self, stopping: threading.Event) -> None:
        pass

    def failure(self) -> str | None:
        raise RuntimeError("too many open files")


def test_an_error_of_the_watch_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    source = Broken()
    connection = RayConnection(source)
    connection.wait()
    failed = threading.Event()
    connection.on_failure(failed.set)
    assert failed.wait(30) and connection.failure == "RuntimeError: too many open files"
    connection.stop()
    assert source.stopped


@pytest.mark.parametrize(
    ("least", "most", "scales"), [(None, None, False), (2, None, False), (None, 4, False), (2, 4, True), (3, 3, False)]
)
def test_when_workers_come_and_go(least: int | None, most: int | None, scales: bool) -> None:
    assert Cluster(min_workers=least, max_workers=most).scales is scales
