"""`--cluster spark` on a standalone cluster: what is checked beforehand, whole sweeps, and the runner contract over Ray on Spark."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from benchmarks.spark_standalone import SparkStandalone
from tests.commands import Answer, Workplace, runs_of, wait_until, workplace, write_experiment
from tests.contracts import Lab, MakeRunner, RunnerContract, an_experiment, lab, reference
from tests.needs import need_java
from toolkit.core.data import Part
from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Cluster, Dataset
from toolkit.core.recipes import load_experiment
from toolkit.core.result import SweepResult
from toolkit.engines import build, spark_cluster, spark_session
from toolkit.engines.ray_cluster import RayConnection
from toolkit.engines.spark_cluster import SparkCluster
from toolkit.sweep import sweep

pytestmark = pytest.mark.engine
__all__ = ["lab", "reference", "workplace"]

RECIPES = Path(__file__).parents[2] / "experiments"
# A worker has 1 GiB for the JVMs of its executors.
SMALL = {"spark.executor.memory": "512m"}
SECRET = "correct-horse-battery-staple"
# In the environment of the workers, and so of all that their executors start.
MARK = uuid.uuid4().hex


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkStandalone]:
    """A master, and a worker of two cores."""
    need_java()
    with SparkStandalone(tmp_path_factory.mktemp("standalone"), {"TOOLKIT_TEST_MARK": MARK}) as cluster:
        cluster.start_worker(cores=2, memory_mib=1024)
        yield cluster


@pytest.fixture(scope="module")
def spark(standalone: SparkStandalone) -> Iterator[SparkCluster]:
    """A session on it, active while this module's later tests run."""
    cluster = connect(standalone.url, SMALL)
    yield cluster
    cluster.close()


def connect(master: str | None, conf: dict[str, str] | None = None, **options: Any) -> SparkCluster:
    return spark_cluster.connect(master, conf or {}, **{"app_name": "tests", "java_home": None, "remote": None, **options})


def refusal(master: str | None, conf: dict[str, str] | None = None, **options: Any) -> str:
    """The one line; no session and no JVM is left behind it."""
    with pytest.raises(ClusterError) as caught:
        connect(master, conf, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ray_processes() -> list[str]:
    """What an executor holds for Ray."""
    workplace = Workplace(Path(), capfd=None, mark=MARK)  # type: ignore[arg-type]
    return [line for line in workplace.processes() if re.search(r"ray_spark_node|raylet|ray::", line)]


def no_jvm() -> bool:
    from pyspark import SparkContext

    return SparkContext._gateway is None and SparkContext._active_spark_context is None


# --- before a session: no test here has one, and each leaves none


def java_that_says(folder: Path, text: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
    java.chmod(0o755)
    return folder


def test_java_missing_or_too_old(tmp_path: Path) -> None:
    advice = "; install it, and set JAVA_HOME"
    assert refusal("yarn", java_home=tmp_path) == f"Spark needs Java 17 or later, got none in {tmp_path}{advice}"
    old = java_that_says(tmp_path, 'java version "1.8.0_392"')
    assert refusal("yarn", java_home=old) == f"Spark needs Java 17 or later, got 1.8.0_392, {old}/bin/java{advice}"
    assert no_jvm()


def test_a_jvm_that_does_not_start_says_why(standalone: SparkStandalone, capfd: pytest.CaptureFixture[str]) -> None:
    got = refusal(standalone.url, {"spark.driver.memory": "1q"})
    assert got.startswith("Spark's JVM must start, got ") and got.endswith("; check JAVA_HOME, and spark.driver.* of --spark-conf")
    assert "1q" in got.partition("got ")[2]
    assert capfd.readouterr().err == "" and no_jvm()


def test_a_session_that_does_not_start_says_why(standalone: SparkStandalone, capfd: pytest.CaptureFixture[str]) -> None:
    got = refusal(standalone.url, {"spark.executor.memory": "lots"})
    assert got.startswith("a Spark session must start, got ") and "lots" in got, got
    assert capfd.readouterr().err == "" and no_jvm()


def test_no_executor(standalone: SparkStandalone, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(spark_cluster, "EXECUTOR_TIMEOUT_S", 2.0)
    got = refusal(standalone.url, {"spark.executor.memory": "8g"})
    assert got.startswith("Spark must give the application an executor, got none within 2 s; its cores or memory may be taken")
    assert capfd.readouterr().err == "" and no_jvm()


def test_a_driver_address_that_is_not_this_host_s(standalone: SparkStandalone, capfd: pytest.CaptureFixture[str]) -> None:
    got = refusal(standalone.url, {"spark.driver.host": "198.51.100.7", "spark.driver.bindAddress": "127.0.0.1"})
    assert got.startswith(
        "Ray's head listens at spark.driver.host, got 198.51.100.7: Cannot assign requested address; set it to an address"
    )
    assert capfd.readouterr().err == "" and no_jvm()


def test_a_session_in_somebody_elses_jvm_ends_and_a_dead_jvm_is_cleared_away(standalone: SparkStandalone) -> None:
    from pyspark import SparkContext

    first = connect(standalone.url, SMALL)
    first.session.stop()
    second = connect(standalone.url, SMALL)
    second.close()
    assert SparkContext._active_spark_context is None and SparkContext._gateway.proc.poll() is None, "the JVM is the first one's"
    SparkContext._gateway.proc.kill()
    SparkContext._gateway.proc.wait()
    first.close()
    assert no_jvm() and spark_session.active_session() is None


def test_of_what_spark_says_one_line_is_seen(standalone: SparkStandalone, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "/no/such/python")
    experiment = write_experiment(workplace.folder, "refused")
    answer = workplace.here("sweep", experiment, "--spark-master", standalone.url, "--spark-conf", "spark.executor.memory=512m", "--json")
    reason = "executors must find the Python interpreter, got none at /no/such/python; set PYSPARK_PYTHON to one that all hosts have"
    assert (answer.code, answer.out, answer.err) == (1, "", f"connecting to Spark\nerror: {reason}\n")
    assert no_jvm() and workplace.files() == {"refused.py"}


# --- whole commands, in processes of their own


class CommandLines(threading.Thread):
    """Of all processes on this machine, until `stop`: everyone can read them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: set[bytes] = set()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.found.add(path.read_bytes())
                except OSError:
                    continue

    def stop(self) -> set[bytes]:
        self._stopping.set()
        self.join()
        return self.found


def run_sweep(workplace: Workplace, *arguments: str) -> tuple[Answer, set[bytes]]:
    lines = CommandLines()
    lines.start()
    try:
        answer = workplace.there("sweep", *arguments, "--json")
    finally:
        found = lines.stop()
    workplace.all_gone()
    return answer, found


PHASES = ["connecting to Spark", "reading data", "starting Ray on Spark", "searching", "fitting the winner", "writing the report"]


def assert_only_progress(err: str) -> None:
    lines = [line for line in err.splitlines() if not re.match(r"\d+/\d+ trials, ", line)]
    assert lines == PHASES


@pytest.mark.e2e
def test_a_sweep_on_two_executors_of_one_host(standalone: SparkStandalone, workplace: Workplace, wine_folder: Path) -> None:
    """Without --cluster: a master is enough. Nor does a secret setting show anywhere."""
    conf = {**SMALL, "spark.executor.cores": "1", "spark.hadoop.fs.azure.account.key.x": SECRET}
    flags = [word for name, value in conf.items() for word in ("--spark-conf", f"{name}={value}")]
    workplace.environ["TOOLKIT_DATA_DIR"] = str(wine_folder)
    answer, processes = run_sweep(workplace, "wine-quality", "--spark-master", standalone.url, *flags, "--trials", "6")
    assert answer.code == 0, answer.err
    assert_only_progress(answer.err)
    assert answer.out.count("\n") == 1
    result = answer.json
    assert (result["cluster"], result["num_slots"], result["num_completed"], result["stopped_by"]) == ("spark", 2, 6, None)
    assert 0 < result["cluster_start_s"] < result["wall_s"] and result["search_s"] > 0 and 0 < result["efficiency"] <= 1
    assert result["test_metrics"]["auc"] > 0.7 and result["data"]["num_rows"] == 6497
    parent, children = runs_of(result["tracking_uri"], result["mlflow_experiment"])
    assert parent.run_id == result["parent_run_id"] and set(children) == set(range(6))

    jvms = [line for line in processes if b"org.apache.spark.deploy.SparkSubmit" in line or b"CoarseGrainedExecutorBackend" in line]
    assert len(jvms) >= 3, "the driver's and two executors'"
    assert [line for line in processes if SECRET.encode() in line and b"\0sweep\0" not in line] == [], "but where the user typed it"
    assert not [path for path in workplace.folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert SECRET not in answer.err + answer.out


@pytest.mark.e2e
def test_a_sweep_on_local_cluster_with_the_dashboard(standalone: SparkStandalone, workplace: Workplace) -> None:
    """Spark's own small cluster: two workers of a core each. pip's pyspark needs no SPARK_HOME for it."""
    experiment = write_experiment(workplace.folder, "small")
    flags = ["--cluster", "spark", "--spark-master", "local-cluster[2,1,1024]", "--set", "cluster.dashboard=true"]
    answer, processes = run_sweep(workplace, experiment, *flags)
    assert answer.code == 0, answer.err
    assert_only_progress(answer.err)
    assert (answer.json["num_slots"], answer.json["num_completed"]) == (2, 6)
    assert any(b"dashboard.py" in line for line in processes)


# --- doctor


def spark_check(answer: Answer) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in answer.json["checks"] if check["name"] in ("spark cluster", "ray workers")}


def test_doctor(standalone: SparkStandalone, workplace: Workplace) -> None:
    flags = ["--spark-conf", "spark.executor.memory=512m", "--spark-conf", "spark.executor.cores=1"]
    answer = workplace.here("doctor", "--cluster", "spark", "--spark-master", standalone.url, *flags, "--json")
    assert (answer.code, answer.err, answer.json["ok"]) == (0, "", True), answer
    checks = spark_check(answer)
    assert checks["spark cluster"]["found"] == f"{standalone.url}: 2 executors on 1 hosts, with the Python, Ray and toolkit of this machine"
    assert re.fullmatch(r"up to 2, each with 1 cores and \d+\.\d GiB", checks["ray workers"]["found"])
    assert no_jvm()


def test_doctor_says_what_is_wrong(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = workplace.here("doctor", "--spark-master", "spark://127.0.0.1:1", "--json")
    assert (answer.code, answer.err, answer.json["ok"]) == (1, "", False)
    check = spark_check(answer)["spark cluster"]
    assert (check["state"], check["found"]) == ("fail", "a Spark master must answer, got 127.0.0.1:1: Connection refused")
    assert check["advice"].startswith("start it, or check --spark-master")
    monkeypatch.setenv("SPARK_REMOTE", "sc://host")
    assert "got SPARK_REMOTE" in spark_check(workplace.here("doctor", "--cluster", "spark", "--json"))["spark cluster"]["found"]
    plain = workplace.here("doctor", "--spark-master", "spark://127.0.0.1:1")
    assert plain.code == 1 and "fail  spark cluster" in plain.out


# --- an active session: from here on there is one, to the end of the module


def test_what_an_executor_is(spark: SparkCluster, standalone: SparkStandalone) -> None:
    (executor,) = spark.executors
    assert (spark.master, executor.cores, spark.cores_per_worker, spark.num_workers) == (standalone.url, 2, 2, 1)
    # This machine's, for they are on it: all that is not its JVM's.
    assert spark.memory_bytes_per_worker == executor.memory_bytes - 2**29
    found = connect(None)
    assert found.session is spark.session and found.executors == spark.executors
    found.close()
    assert spark.session.range(3).count() == 3, "left running"


def test_settings_are_for_a_session_that_is_started(spark: SparkCluster) -> None:
    for master, conf in (("spark://other:7077", {}), (None, {"spark.executor.cores": "1"})):
        assert refusal(master, conf) == (
            f"--spark-master and --spark-conf are for a session that the sweep starts itself, got an active session on {spark.master}; "
            "leave them out, or stop that session"
        )
    connect(spark.master).close()


def test_a_session_that_is_none_of_the_classic_kind(spark: SparkCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_cluster, "active_session", object)
    assert "got a Spark Connect session; use a cluster in dedicated access mode" in refusal(None)


@pytest.fixture
def on_executors(spark: SparkCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a sweep says when the executors run another Python."""

    def run(executable: str | None = None, version: str | None = None) -> str:
        context = spark.session.sparkContext
        monkeypatch.setattr(context, "pythonExec", executable or context.pythonExec)
        monkeypatch.setattr(context, "pythonVer", version or context.pythonVer)
        return refusal(None)

    return run


def bare_python(folder: Path) -> tuple[str, Path]:
    """An environment of this Python without a package, and where its packages would be."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    return str(folder / "bin" / "python"), next((folder / "lib").glob("python3.*")) / "site-packages"


def test_another_python_on_the_executors(on_executors: Callable[..., str]) -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert on_executors(version="3.9") == (
        f"driver and executors need the same Python, got 3.9 here and {here} there; set PYSPARK_PYTHON to an interpreter that all hosts have"
    )


def test_a_python_that_is_not_there(on_executors: Callable[..., str]) -> None:
    assert on_executors("/no/such/python") == (
        "executors must find the Python interpreter, got none at /no/such/python; set PYSPARK_PYTHON to one that all hosts have"
    )


def test_a_python_without_ray_or_with_another(on_executors: Callable[..., str], tmp_path: Path) -> None:
    executable, packages = bare_python(tmp_path / "env")
    got = on_executors(executable)
    assert re.fullmatch(
        rf"driver and executors need the same ray, got {ray.__version__} here and none on \S+ \({executable}\); "
        rf"install ray=={ray.__version__} on every node, or set PYSPARK_PYTHON to an environment that has it",
        got,
    ), got
    (packages / "ray-2.37.0.dist-info").mkdir()
    (packages / "ray-2.37.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.37.0\n")
    assert f"got {ray.__version__} here and 2.37.0 on " in on_executors(executable)
    (packages / "ray-2.37.0.dist-info").rename(packages / f"ray-{ray.__version__}.dist-info")
    (packages / f"ray-{ray.__version__}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: ray\nVersion: {ray.__version__}\n"
    )
    assert "driver and executors need the same ray-spark-toolkit, got " in on_executors(executable)


def test_cores_that_others_have(spark: SparkCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_cluster, "PROBE_TIMEOUT_S", 1.0)
    context = spark.session.sparkContext

    def sleep(_: Any) -> Iterator[int]:
        import time

        time.sleep(60)
        yield 1

    def occupy() -> None:
        context.setJobGroup("occupying", "one core")
        with pytest.raises(Exception, match=r"occupying|cancelled"):
            context.parallelize([0], 1).mapPartitions(sleep).collect()

    from pyspark import inheritable_thread_target

    thread = threading.Thread(target=inheritable_thread_target(occupy))
    thread.start()
    wait_until(lambda: bool(context.statusTracker().getActiveStageIds()), 30)
    try:
        assert refusal(None) == "the executors' cores must be free, got no task of ours ran within 1 s; wait for what else runs there"
    finally:
        context.cancelJobGroup("occupying")
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["sweep.cpus_per_trial=3"], "a trial must fit in one executor, got 3 CPUs a trial, 2 cores in the smallest executor; lower"),
        (["cluster.min_workers=2"], "cluster.min_workers=2 needs as many executors, got 1 of 2 cores; lower it, or"),
        (["sweep.gpus_per_trial=0.5"], "Ray on Spark gives trials no GPUs yet, got sweep.gpus_per_trial=0.5; use --cluster local"),
    ],
)
def test_what_does_not_fit(spark: SparkCluster, workplace: Workplace, changes: list[str], words: str) -> None:
    experiment = write_experiment(workplace.folder, "large")
    answer = workplace.here("sweep", experiment, *(word for change in changes for word in ("--set", change)), "--json")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.splitlines()[-1].startswith(f"error: {words}") and answer.err.count("\n") <= 2
    assert not workplace.journal("large-honest").exists()


def test_ray_on_spark_between_local_rays(
    spark: SparkCluster, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four sweeps in this process. A local Ray turns token authentication on, which would keep Ray on Spark's workers out; and the other
    way round, Ray on Spark's token must not stay; nor that of a local Ray, when the user sets another. The data is a table of the session,
    which is left running."""
    import numpy as np
    import pandas as pd
    from ray.autoscaler._private.spark import spark_job_server

    rays_own = spark_job_server._start_ray_worker_nodes
    rows = pd.DataFrame({"a": np.random.default_rng(0).random(80), "b": 0.5, "y": np.arange(80) % 2})
    spark.session.createDataFrame(rows).write.parquet(str(workplace.folder / "rows.parquet"))
    spark.session.read.parquet(str(workplace.folder / "rows.parquet")).createOrReplaceGlobalTempView("rows")
    experiment = load_experiment(write_experiment(workplace.folder, "table"))
    experiment = replace(experiment, dataset=Dataset(load="global_temp.rows", label="y"))

    def authentication() -> list[str | None]:
        return [os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")]

    def run(cluster: Any) -> SweepResult:
        before = authentication()
        result = sweep(experiment, cluster=cluster)
        assert authentication() == before or cluster == "local", "Ray itself turns tokens on, for good"
        assert result.as_json()["num_completed"] == 6 and not ray.is_initialized()
        assert spark_job_server._start_ray_worker_nodes is rays_own
        wait_until(lambda: not ray_processes(), 30, ray_processes)
        return result

    results = [run("local")]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's own")
    results += [run(cluster) for cluster in ("local", "auto", "local")]
    assert [result.cluster for result in results] == ["local", "local", "spark", "local"]
    assert len({result.source.sha256 for result in results}) == 1
    assert len({json.dumps([[dict(r.params), r.values] for r in result.records]) for result in results}) == 1, "the same trials everywhere"
    assert spark.session.table("global_temp.rows").count() == 80
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name == "toolkit"]


# --- the contract


@pytest.fixture(scope="module")
def connection(spark: SparkCluster) -> Iterator[RayConnection]:
    connection, num_workers = build.connect_ray_on_spark(spark, Cluster(), 0, None)
    assert num_workers == 1
    connection.wait()
    yield connection
    connection.stop()


@pytest.fixture
def make_runner(connection: RayConnection) -> MakeRunner:
    return lambda experiment, data: build.ray_runner(experiment, "honest", data, experiment.sweep.concurrency or 1)


def below_an_executor(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    """1.0 where an executor is among the process's ancestors."""
    commands, pid = b"", os.getpid()
    while pid > 1:
        commands += Path(f"/proc/{pid}/cmdline").read_bytes()
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    report(1, {"score": float(b"CoarseGrainedExecutorBackend" in commands)})


class TestRayOnSpark(RunnerContract):
    def test_trials_run_on_the_executor(self, connection: RayConnection, lab: Lab) -> None:
        ready = connection.wait()
        assert (ready.num_cpus, ready.num_gpus) == (2, 0)
        ran = lab.run(an_experiment(below_an_executor, num_trials=2))
        assert [record.values for record in ran.records] == [(1.0,)] * 2
        assert not any(b"ray_client_server" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
