import http.server
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from toolkit import doctor
from toolkit.doctor import Check, Diagnosis
from toolkit.settings import Settings


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server():
    """An HTTP server that answers every GET with the status it is told."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(type(self).status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield Handler, f"127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize(("version", "state"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")])
def test_python(version, state):
    assert doctor.check_python(version).state == state


def test_libraries_here_are_what_pyproject_allows():
    checks = {check.name: check for check in doctor.check_libraries()}
    assert set(checks) == set(doctor.CHECKED_LIBRARIES)
    assert {check.state for check in checks.values()} == {"ok"}


def test_a_library_of_another_version_and_one_that_is_missing(monkeypatch):
    real = doctor.importlib.metadata.version

    def version(name):
        if name == "xgboost":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "2.37.0" if name == "ray" else real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    checks = {check.name: check for check in doctor.check_libraries()}
    assert checks["ray"].state == checks["xgboost"].state == "fail"
    assert checks["ray"].advice.startswith("install ray")
    assert "2.60" in checks["ray"].advice
    assert checks["xgboost"].found == "not installed"


def test_home_is_looked_at_and_not_made(tmp_path):
    assert doctor.check_home(tmp_path / "a" / "b").state in ("ok", "warn")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place that nobody can write: /proc")
def test_a_home_that_cannot_be_written():
    check = doctor.check_home(Path("/proc/toolkit"))
    assert (check.state, "TOOLKIT_HOME" in check.advice) == ("fail", True)


def test_a_temporary_folder_too_long_for_sockets(tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    check = doctor.check_temporary_folder(str(long))
    assert check.state == "fail"
    assert "set TMPDIR=/tmp" in check.advice
    assert "Ray's sockets" not in doctor.check_temporary_folder("/tmp").advice


def test_small_shared_memory(monkeypatch):
    monkeypatch.setattr(doctor, "shared_memory_bytes", lambda path: 64 * 2**20)
    assert doctor.check_shared_memory().state == "warn"
    monkeypatch.setattr(doctor, "shared_memory_bytes", lambda path: None)
    assert doctor.check_shared_memory().state == "ok"


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (401, "ok"), (404, "ok"), (502, "fail")])
def test_a_tracking_server_that_answers(server, status, state):
    handler, address = server
    handler.status = status
    assert doctor.check_tracking(f"http://{address}").state == state


def test_a_tracking_server_that_does_not_answer(closed_port):
    check = doctor.check_tracking(f"http://user:secret@127.0.0.1:{closed_port}")
    assert check.state == "fail"
    assert "secret" not in check.found
    assert "MLFLOW_TRACKING_URI" in check.advice


def test_a_tracking_server_that_accepts_and_says_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "REACH_TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert doctor.check_tracking(f"http://127.0.0.1:{silent.getsockname()[1]}").state == "fail"


@pytest.mark.parametrize("form", ["sqlite:///{}/mlflow.db", "file://{}/mlruns", "{}/mlruns"])
def test_a_tracking_store_on_disk(tmp_path, form):
    assert doctor.check_tracking(form.format(tmp_path)).state == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("address", "state"), [(None, "ok"), ("auto", "ok"), ("nonsense", "fail"), ("ray://:10001", "fail")])
def test_ray_address(address, state):
    assert [check.state for check in doctor.check_ray_address(address)] == [state]


def test_ray_address_reached_or_not(server, closed_port):
    assert doctor.check_ray_address(f"ray://{server[1]}")[0].state == "ok"
    check = doctor.check_ray_address(f"127.0.0.1:{closed_port}")[0]
    assert (check.state, "unset RAY_ADDRESS" in check.advice) == ("fail", True)


@pytest.mark.parametrize(
    ("prints", "state"),
    [
        ('openjdk version "17.0.15" 2025-04-15', "ok"),
        ('java version "1.8.0_392"', "warn"),
        ('openjdk version "21" 2023', "ok"),
        ("what?", "warn"),
    ],
)
def test_java(tmp_path, prints, state):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho '{prints}' >&2\n")
    java.chmod(0o755)
    assert doctor.check_java(tmp_path).state == state


def test_no_java(tmp_path):
    check = doctor.check_java(tmp_path)
    assert (check.state, "JAVA_HOME" in check.advice) == ("warn", True)


def test_credentials_by_name_never_by_value():
    settings = Settings.read({"DATABRICKS_HOST": "https://somewhere", "DATABRICKS_TOKEN": "dapi-secret"})
    check = doctor.check_credentials(settings)
    assert check.found == "set: DATABRICKS_HOST, DATABRICKS_TOKEN"
    assert "secret" not in json.dumps(settings.credentials)
    assert doctor.check_credentials(Settings.read({"MLFLOW_TRACKING_URI": "databricks"})).state == "warn"
    assert doctor.check_credentials(Settings.read({})).state == "ok"


def test_every_check_that_is_not_well_says_what_to_do(tmp_path, closed_port):
    environ = {"TOOLKIT_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{closed_port}", "PATH": os.environ["PATH"]}
    found = doctor.doctor(Settings.read(environ))
    assert not found.is_healthy
    assert all(check.advice for check in found.checks if check.state != "ok")
    assert not any(check.advice for check in found.checks if check.state == "ok")
    assert len({check.name for check in found.checks}) == len(found.checks)
    assert {"python", "ray", "mlflow", "java", "cores", "memory", "tracking", "spark", "ray import", "home"} <= {
        c.name for c in found.checks
    }


def test_only_a_failure_makes_it_unhealthy():
    assert Diagnosis((Check("a", "ok", "x"), Check("b", "warn", "y", "z"))).is_healthy
    assert not Diagnosis((Check("a", "fail", "x", "y"),)).is_healthy


def test_as_html_escapes():
    assert "<b>" not in Diagnosis((Check("<b>", "ok", "x"),))._repr_html_()
