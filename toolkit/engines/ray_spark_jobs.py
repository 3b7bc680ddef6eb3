"""The Spark jobs that hold Ray's nodes: who may ask for one, and what its task does on the executor."""

from __future__ import annotations

import logging
import socketserver
from collections.abc import Callable, Iterator
from typing import Any

from ray.autoscaler._private.spark import spark_job_server

_logger = logging.getLogger("toolkit")


# What a node's task on an executor asks; all else is for the autoscaler, on the driver's own host.
_ASKED_FROM_AFAR = ("check_node_id_availability", "notify_task_launched")


class _Handler(spark_job_server.SparkJobServerRequestHandler):
    server: JobServer

    def handle_POST(self, path: str, data: dict[str, Any]) -> Any:
        if path.strip("/") in _ASKED_FROM_AFAR:
            self.server.check(data["spark_job_group_id"])
        elif self.client_address[0] != self.server.server_address[0]:
            raise PermissionError("for the driver's host only")
        return super().handle_POST(path, data)


class JobServer(spark_job_server.SparkJobServer):
    """Obeys only those who know this cluster's id, and tells it only on the driver's host: it listens on the network, and Ray's own would
    start and cancel for anybody."""

    def __init__(self, address: tuple[str, int], session: Any, node_environ: dict[str, str], cluster_id: str) -> None:
        super().__init__(address, session, node_environ)
        self.RequestHandlerClass = _Handler
        self._cluster_id = cluster_id

    def server_bind(self) -> None:
        """Not `http.server`'s: it asks the name service for this host's name, which nobody needs, and which can take half a minute."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def register_node(self, node_id: str, spark_job_group_id: str, tags: Any) -> Any:
        self.check(spark_job_group_id)
        return super().register_node(node_id, spark_job_group_id, tags)

    def terminate_node(self, node_id: str, spark_job_group_id: str) -> None:
        self.check(spark_job_group_id)
        super().terminate_node(node_id, spark_job_group_id)

    def check(self, group: str) -> None:
        if f"-{self._cluster_id}-" not in group:
            raise PermissionError("not a node of this cluster")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A request that was refused: its traceback would be all over the terminal."""
        _logger.debug("request to the job server from %s failed", client_address, exc_info=True)


def node_task(
    server: str, group: str, node_id: str, environ: dict[str, str], options: dict[str, Any]
) -> Callable[[Iterator[int]], Iterator[str]]:
    def run(_: Iterator[int]) -> Iterator[str]:
        # With the standard library only: what is imported here delays the node.
        import collections
        import json
        import os
        import socket
        import subprocess
        import sys
        import urllib.request

        def ask(path: str) -> dict[str, bool]:
            body = json.dumps({"node_id": node_id, "spark_job_group_id": group}).encode()
            request = urllib.request.Request(f"{server}/{path}", body, {"Content-Type": "application/json"})
            # Whatever proxy the host has, it is not for the driver.
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return dict(json.loads(answer.read()))

        # Spark runs a task again whose executor was lost; the node has been replaced by then.
        try:
            if not ask("check_node_id_availability")["available"]:
                return
        except OSError as error:
            yield f"the driver cannot be reached at {server} from {socket.gethostname()}: {error}"
            return
        ask("notify_task_launched")
        node = subprocess.Popen(
            [sys.executable, "-m", "toolkit.engines.ray_spark_node"],
            # What Spark itself has put on the path (`spark.submit.pyFiles`) is the node's, too.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert node.stdin is not None and node.stdout is not None
        node.stdin.write(json.dumps({**options, "parent_pid": os.getpid()}) + "\n")
        node.stdin.close()
        last_words = collections.deque(node.stdout, maxlen=5)
        if node.wait():
            yield f"exit status {node.returncode}: {''.join(last_words)}"

    return run
