"""Is this machine ready? Every check says what it found and, where that is not good, what to do.

Nothing is started, changed or left behind, and no secret is read: only whether it is there.
"""

from __future__ import annotations

import html
import importlib.metadata
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.core.errors import ClusterError, UserError
from toolkit.core.machine import cpu_count, memory_bytes, shared_memory_bytes
from toolkit.engines.java import NEEDED as JAVA_NEEDED
from toolkit.engines.java import find_java
from toolkit.settings import Settings

State = Literal["ok", "warn", "fail"]

DISTRIBUTION = "ray-spark-toolkit"
CHECKED_LIBRARIES = ("ray", "optuna", "mlflow", "xgboost", "scikit-learn", "pandas")
REACH_TIMEOUT_S = 5.0
RAY_IMPORT_TIMEOUT_S = 60.0
GIB = 2**30

# Ray makes Unix sockets below the temporary folder: TMP/ray-XXXXXXXX/session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store. The system
# takes 107 bytes (macOS 103) in all.
SOCKET_SUFFIX_BYTES = len("/ray-XXXXXXXX/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107


@dataclass(frozen=True)
class Check:
    """`advice` is empty where there is nothing to do. Only what the toolkit cannot work without fails; the rest warns."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    checks: tuple[Check, ...]

    @property
    def is_healthy(self) -> bool:
        return all(check.state != "fail" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The object that `toolkit doctor --json` prints."""
        return {"ok": self.is_healthy, "checks": [asdict(check) for check in self.checks]}

    def _repr_html_(self) -> str:
        rows = (
            "".join(f"<td>{html.escape(text)}</td>" for text in (check.state, check.name, check.found, check.advice))
            for check in self.checks
        )
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def doctor(
    settings: Settings,
    *,
    spark: bool = False,
    delta: bool = False,
    spark_master: str | None = None,
    spark_conf: Mapping[str, str] | None = None,
) -> Diagnosis:
    """All checks, side by side; at most about a minute, and that only where importing Ray hangs.

    With `spark`, what a sweep on that cluster would check first, too: a session is started and its executors are asked. With `delta`, a
    small Delta table is written and read back, by a session on this machine; Delta's jar is fetched where it is missing.
    """
    jobs: tuple[Callable[[], list[Check]], ...] = (
        lambda: [check_python(), *check_libraries()],
        lambda: [check_cores(), check_memory(), check_shared_memory()],
        lambda: [check_home(settings.home), check_temporary_folder()],
        lambda: [check_tracking(settings.tracking_uri)],
        lambda: [check_ray(), *check_ray_address(settings.ray_address)],
        lambda: [check_java(settings.java_home), check_spark()],
        lambda: [check_credentials(settings), check_git()],
    )
    with ThreadPoolExecutor(len(jobs)) as pool:
        checks = [check for checks in pool.map(lambda job: job(), jobs) for check in checks]
    if spark:
        checks += check_spark_cluster(settings, spark_master, spark_conf or {})
    if delta:
        checks += [check_delta_rs(), check_delta(settings, spark_conf or {})]
    return Diagnosis(tuple(checks))


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    found = f"{version[0]}.{version[1]}"
    if (3, 11) <= version < (3, 14):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "use Python 3.11, 3.12 or 3.13: uv run --python 3.12 toolkit …")


def check_libraries() -> list[Check]:
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        return [Check("toolkit", "fail", "not installed", "run uv sync in the checkout, or install the wheel")]
    allowed = {requirement.name: requirement.specifier for requirement in requirements if requirement.marker is None}
    checks = []
    for name in CHECKED_LIBRARIES:
        wanted = allowed.get(name)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, "fail", "not installed", f"install {name}{wanted or ''}"))
            continue
        fits = wanted is None or wanted.contains(version, prereleases=True)
        checks.append(Check(name, "ok", version) if fits else Check(name, "fail", version, f"install {name}{wanted}"))
    return checks


def check_cores() -> Check:
    return Check("cores", "ok", f"{cpu_count()} usable")


def check_memory() -> Check:
    gib = memory_bytes() / GIB
    if gib >= 2:
        return Check("memory", "ok", f"{gib:.1f} GiB usable")
    return Check("memory", "warn", f"{gib:.1f} GiB usable", "Ray wants 2 GiB: give the container more, or use --cluster inprocess")


def check_shared_memory(path: Path = Path("/dev/shm")) -> Check:
    size = shared_memory_bytes(path)
    if size is None:
        return Check("shared memory", "ok", f"no {path} on this system")
    found = f"{size / GIB:.2f} GiB in {path}"
    if size >= GIB / 4:
        return Check("shared memory", "ok", found)
    return Check("shared memory", "warn", found, "Ray puts its objects on disk instead, slowly: start the container with --shm-size=1g")


def check_home(home: Path) -> Check:
    """Can journals and reports be written? The folder itself is not made."""
    advice = "set TOOLKIT_HOME to a folder you may write, on a disk with room"
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
        free = shutil.disk_usage(existing).free / GIB
    except OSError as error:
        return Check("home", "fail", f"{home}: {error.strerror}", advice)
    found = f"{home}, {free:.1f} GiB free"
    if free < 0.1:
        return Check("home", "fail", found, advice)
    return Check("home", "ok", found) if free >= 2 else Check("home", "warn", found, advice)


def check_temporary_folder(folder: str | None = None) -> Check:
    folder = folder or tempfile.gettempdir()
    length = len(folder.encode()) + SOCKET_SUFFIX_BYTES
    usage = shutil.disk_usage(folder)
    found = f"{folder}, {usage.free / GIB:.1f} GiB free"
    if length > SOCKET_PATH_BYTES:
        limit = SOCKET_PATH_BYTES - SOCKET_SUFFIX_BYTES
        return Check("temporary folder", "fail", f"{found}, {len(folder)} characters", f"Ray's sockets allow {limit}: set TMPDIR=/tmp")
    if usage.free < 0.05 * usage.total:
        return Check("temporary folder", "warn", f"{found}, over 95% full", "Ray stops working on a full disk: free some, or set TMPDIR")
    return Check("temporary folder", "ok", found)


def check_tracking(uri: str | None) -> Check:
    """Does the MLflow server answer, or can its store be written?"""
    if not uri:
        return Check("tracking", "ok", f"MLflow's own default in {Path.cwd()}")
    parsed = urllib.parse.urlparse(uri)
    shown = parsed._replace(netloc=parsed.netloc.rpartition("@")[2], query="").geturl()  # a URI may hold a password
    if parsed.scheme in ("http", "https"):
        problem = _within(REACH_TIMEOUT_S, lambda: _answers(uri))
        advice = "start it (mlflow server), or set MLFLOW_TRACKING_URI to one that runs"
        return Check("tracking", "fail", f"{shown}: {problem}", advice) if problem else Check("tracking", "ok", f"{shown} answers")
    if parsed.scheme in ("", "file", "sqlite"):
        local = re.sub(r"^(file://|sqlite:///)", "", uri)
        folder = Path(local).expanduser().resolve()
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        try:
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            return Check("tracking", "fail", f"{shown}: {error.strerror}", "set MLFLOW_TRACKING_URI to a place you may write")
        return Check("tracking", "ok", f"{shown} can be written")
    return Check("tracking", "ok", f"{shown}, not tried")


def _answers(uri: str) -> str:
    """What stands in the way, or nothing. Any answer will do: a proxy that asks for a password is reachable."""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=REACH_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"answers with HTTP status {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _within(timeout_s: float, job: Callable[[], str]) -> str:
    """The job's answer. Looking a name up has no timeout of its own, so it is left behind in its thread."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(job()), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else f"no answer within {timeout_s:g} s"


def check_ray() -> Check:
    """Ray in a process of its own: importing it takes a second and changes this one."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import ray; print(ray.__version__)"], capture_output=True, text=True, timeout=RAY_IMPORT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return Check(
            "ray import", "fail", f"not done within {RAY_IMPORT_TIMEOUT_S:g} s", "use --cluster inprocess; look at the disk's speed"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Check("ray import", "fail", last, "reinstall: uv sync --reinstall-package ray")
    return Check("ray import", "ok", "imports")


def check_ray_address(address: str | None) -> list[Check]:
    if not address or address in ("auto", "local"):
        return [
            Check("ray address", "ok", f"RAY_ADDRESS={address}, not tried" if address else "none: a local Ray is started for each sweep")
        ]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return [Check("ray address", "fail", address, "RAY_ADDRESS is HOST:PORT or ray://HOST:PORT; unset it to start a local Ray")]
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        found = f"{address}: {error.strerror or error}"
        return [Check("ray address", "fail", found, "start that Ray, or unset RAY_ADDRESS to start a local one")]
    return [Check("ray address", "ok", f"{address} answers")]


def check_java(java_home: Path | None) -> Check:
    """Only Spark needs it."""
    java = find_java(java_home)
    advice = f"only Spark needs it: install Java {JAVA_NEEDED} or later, and set JAVA_HOME"
    return Check("java", "warn", java.problem, advice) if java.problem else Check("java", "ok", java.found)


def check_spark() -> Check:
    for name in ("pyspark", "databricks-connect"):
        try:
            return Check("spark", "ok", f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check("spark", "warn", "pyspark is not installed", 'only Spark clusters need it: install "ray-spark-toolkit[spark]"')


def check_spark_cluster(settings: Settings, master: str | None, conf: Mapping[str, str]) -> list[Check]:
    """What stands in the way of a sweep there is one line, the first that is found."""
    from toolkit.engines import spark_cluster

    try:
        cluster = spark_cluster.connect(master, conf, app_name="toolkit doctor", java_home=settings.java_home, remote=settings.spark_remote)
    except ClusterError as error:
        found, _, advice = str(error).partition("; ")
        return [Check("spark cluster", "fail", found, advice)]
    try:
        there = f"{len(cluster.executors)} executors on {len({executor.host for executor in cluster.executors})} hosts"
        worker = f"{cluster.cores_per_worker} cores and {cluster.memory_bytes_per_worker / GIB:.1f} GiB"
        return [
            Check("spark cluster", "ok", f"{cluster.master}: {there}, with the Python, Ray and toolkit of this machine"),
            Check("ray workers", "ok", f"up to {cluster.num_workers}, each with {worker}"),
        ]
    finally:
        cluster.close()


def check_delta_rs() -> Check:
    try:
        return Check("delta-rs", "ok", f"deltalake {importlib.metadata.version('deltalake')}")
    except importlib.metadata.PackageNotFoundError:
        advice = 'only Delta tables without Spark need it: install "ray-spark-toolkit[delta]"'
        return Check("delta-rs", "warn", "deltalake is not installed", advice)


def check_delta(settings: Settings, conf: Mapping[str, str]) -> Check:
    """A round trip through a session that is started here and ends here."""
    if settings.on_databricks:
        return Check("delta", "ok", "part of Databricks' Spark")
    from toolkit.engines import spark_delta

    try:
        with tempfile.TemporaryDirectory(prefix="toolkit-doctor-") as folder, ExitStack() as stack:
            session = spark_delta.open_session(stack, None, conf, settings, "toolkit doctor")
            num_rows = spark_delta.round_trip(session, Path(folder))
            return Check("delta", "ok", f"{num_rows} rows written and read back by Spark {session.version}")
    except UserError as error:
        found, _, advice = str(error).partition("; ")
        return Check("delta", "fail", found, advice)


def check_credentials(settings: Settings) -> Check:
    if settings.on_databricks:
        return Check("databricks", "ok", "on a Databricks cluster")
    if settings.credentials:
        return Check("databricks", "ok", f"set: {', '.join(settings.credentials)}")
    wanted = (settings.tracking_uri or "").startswith("databricks")
    advice = "set DATABRICKS_HOST and DATABRICKS_TOKEN, or a profile in DATABRICKS_CONFIG_PROFILE"
    return Check("databricks", "warn" if wanted else "ok", "no credentials in the environment", advice if wanted else "")


def check_git() -> Check:
    git = shutil.which("git")
    if git is None:
        return Check("git", "warn", "not found", "install it: runs are then tagged with branch and commit")
    done = subprocess.run([git, "rev-parse", "--abbrev-ref", "HEAD"], capture_output=True, text=True, timeout=20)
    return Check("git", "ok", f"on branch {done.stdout.strip()}" if done.returncode == 0 else "installed; not in a repository")
