"""What listens on the network while Ray runs on Spark, and what must not hang. No Spark is needed to look at it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Cluster
from toolkit.engines.ray_cluster import RayConnection
from toolkit.engines.ray_on_spark import _remove_abandoned
from toolkit.engines.ray_spark_jobs import JobServer

pytestmark = pytest.mark.engine


@pytest.fixture
def server() -> Iterator[JobServer]:
    server = JobServer(("127.0.0.1", 0), None, {"RAY_AUTH_TOKEN": "secret"}, "f00d")
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


def ask_from_afar(server: JobServer, path: str, body: dict[str, str]) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10, source_address=("127.0.0.2", 0))
    connection.request("POST", f"/{path}", json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse().read()


def test_only_the_driver_s_host_learns_the_cluster_s_id(server: JobServer) -> None:
    group = "ray-cluster-9000-f00d-worker-node-1"
    server.register_node("1", group, {})
    for path in ("query_nodes", "terminate_node", "query_last_worker_err", "set_node_tags"):
        assert ask_from_afar(server, path, {"node_id": "1", "spark_job_group_id": group}) == b""
    assert group.encode() in post(server, "query_nodes", b"{}")


def test_a_node_s_task_is_answered_and_a_stranger_s_is_not(server: JobServer) -> None:
    node = {"node_id": "1", "spark_job_group_id": "ray-cluster-9000-f00d-worker-node-1"}
    assert ask_from_afar(server, "check_node_id_availability", {**node, "spark_job_group_id": "other"}) == b""
    assert json.loads(ask_from_afar(server, "check_node_id_availability", node)) == {"available": True}


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


def test_folders_of_killed_drivers_are_removed(tmp_path: Path) -> None:
    """Those that nobody holds, and that are not just being made."""
    for name, age_s in (("ray-1-dead", 100), ("ray-2-alive", 100), ("ray-3-new", 0), ("ray-local-4-x", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.lock").touch()
        os.utime(tmp_path / f"{name}.lock", (time.time() - age_s,) * 2)
    with (tmp_path / "ray-2-alive.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        _remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"ray-2-alive", "ray-3-new", "ray-local-4-x"}
    assert not (tmp_path / "ray-1-dead.lock").exists()
