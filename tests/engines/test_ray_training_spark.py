"""Distributed training by Ray on a Spark standalone cluster of two executors, one core each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.spark_standalone import SparkStandalone
from tests.engines.test_ray_training import NAMES, PARAMS, TEST, TRAIN, VALIDATION, Lab, predict, single_process
from tests.needs import need_java
from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Cluster
from toolkit.engines import build, spark_cluster
from toolkit.engines.ray_cluster import RayConnection
from toolkit.engines.ray_rows import OBJECT_STORE_BYTES
from toolkit.engines.ray_training_cluster import num_hosts

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkStandalone]:
    """A master; each test starts the workers that it wants, and ends them."""
    need_java()
    with SparkStandalone(tmp_path_factory.mktemp("standalone")) as cluster:
        yield cluster


@contextmanager
def ray_on(standalone: SparkStandalone) -> Iterator[RayConnection]:
    conf = {"spark.executor.memory": "512m", "spark.executor.cores": "1", "spark.cores.max": "2"}
    wanted = spark_cluster.Wanted(slots=2)
    spark = spark_cluster.connect(standalone.url, conf, app_name="tests", java_home=None, remote=None, wanted=wanted)
    try:
        connection, _ = build.connect_ray_on_spark(spark, Cluster(min_workers=2), OBJECT_STORE_BYTES, 2)
        try:
            connection.wait()
            yield connection
        finally:
            connection.stop()
    finally:
        spark.close()
        for worker in standalone.workers:
            worker.terminate()
            worker.wait()
        standalone.workers.clear()


def test_as_good_as_one_process(standalone: SparkStandalone, tmp_path: Path) -> None:
    for _ in range(2):
        standalone.start_worker(cores=1, memory_mib=768)
    with ray_on(standalone) as connection:
        assert num_hosts() == 1
        lab = Lab(tmp_path, connection)
        result = lab.run(lab.a_fit)
    assert result.num_rows == (10_000, 10_000) and result.num_restarts == 0 and lab.left == []
    single = single_process(TRAIN, VALIDATION, NAMES, PARAMS, 60, stop_after=10)
    found, wanted = (roc_auc_score(TEST.label, predict(model, TEST.features)) for model in (result.model, single))
    assert abs(found - wanted) <= 0.002


def test_a_node_that_does_not_see_the_rows_is_named(standalone: SparkStandalone, tmp_path: Path) -> None:
    hidden = tmp_path / "storage"
    hidden.mkdir()
    # In a mount namespace of its own there is another, empty, folder in that place.
    prefix = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh")
    if os.geteuid() != 0 or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace needs root")
    standalone.start_worker(cores=1, memory_mib=768)
    standalone.start_worker(cores=1, memory_mib=768, prefix=prefix)
    with ray_on(standalone) as connection:
        lab = Lab(tmp_path, connection)
        with pytest.raises(ClusterError) as caught:
            lab.run(lab.a_fit)
    got = str(caught.value)
    assert got.startswith("every node must see the rows, and training.storage_path as this host does, got node ")
    assert f": no {hidden}/.probe-" in got and got.endswith("/driver there; name folders that all nodes have mounted")
    assert lab.told == [] and lab.left == []
