"""Real services on loopback, started and stopped by the tests that need them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class MlflowServer:
    """`mlflow server` on SQLite; can be killed and started again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> MlflowServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", str(self.folder / "artifacts")]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        until = time.monotonic() + 90
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return self
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"mlflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL to the server and its workers, which are a process group of their own."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@dataclass
class Request:
    method: str
    path: str
    body: bytes

    @property
    def call(self) -> str:
        """`runs/create` of `/api/2.0/mlflow/runs/create?…`."""
        return self.path.split("?")[0].partition("/mlflow/")[2]

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


# What a rule does with a request: forwards it and gives the answer (None), or answers itself (status, body), or hangs up (False).
Verdict = tuple[int, bytes] | bool | None
Rule = Callable[[Request, Callable[[], tuple[int, bytes]]], Verdict]


@dataclass
class Proxy:
    """A loopback proxy that counts requests and, by `rule`, loses or forges answers."""

    upstream_port: int
    requests: list[Request] = field(default_factory=list)
    rule: Rule | None = None
    uri: str = ""

    def count(self, call: str) -> int:
        return sum(request.call == call for request in self.requests)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server")).start()
    yield server
    server.kill()


@pytest.fixture
def own_mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    """One that the test may kill."""
    server = MlflowServer(tmp_path / "own-server").start()
    yield server
    server.kill()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[MlflowServer], Proxy]]:
    running: list[ThreadingHTTPServer] = []

    def make(server: MlflowServer) -> Proxy:
        proxy = Proxy(server.port)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, body)
                proxy.requests.append(request)

                def forward() -> tuple[int, bytes]:
                    upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=60)
                    headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
                    upstream.request(request.method, request.path, body=body, headers=headers)
                    answer = upstream.getresponse()
                    result = answer.status, answer.read()
                    upstream.close()
                    return result

                verdict = proxy.rule(request, forward) if proxy.rule else None
                if verdict is False:
                    self.close_connection = True
                    return
                try:
                    status, content = verdict if isinstance(verdict, tuple) else forward()
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # server or client gone
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        running.append(listener)
        proxy.uri = f"http://127.0.0.1:{listener.server_address[1]}"
        return proxy

    yield make
    for listener in running:
        listener.shutdown()
        listener.server_close()
