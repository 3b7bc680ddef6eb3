"""Where trials run is chosen, and contradictions are refused, before anything is started."""

import dataclasses
import importlib.metadata
import sys

import pytest

from toolkit import Cluster, Dataset, Experiment, Int, Metric, XGBoost, sweep_cluster
from toolkit.core.errors import UserError
from toolkit.engines.spark_cluster import Wanted
from toolkit.settings import Settings
from toolkit.sweep_cluster import TrialCluster

EXPERIMENT = Experiment(
    name="tiny", dataset=Dataset("table.csv", "label"), model=XGBoost(), space={"max_depth": Int(1, 9)}, metric=Metric("auc", "maximize")
)


def place(cluster="auto", master=None, conf=None, environ=None, experiment=EXPERIMENT):
    return TrialCluster(experiment, cluster, master, conf or {}, Settings.read(environ or {}))


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, "local"),
        ({"master": "spark://host:7077"}, "spark"),
        ({"master": "spark://host:7077", "environ": {"RAY_ADDRESS": "host:6379"}}, "spark"),
        ({"environ": {"RAY_ADDRESS": "host:6379"}}, "local"),
        ({"cluster": "inprocess"}, "inprocess"),
        ({"cluster": "spark", "conf": {"a": "b"}}, "spark"),
    ],
)
def test_the_choice(monkeypatch, arguments, kind):
    monkeypatch.delitem(sys.modules, "pyspark.sql", raising=False)
    assert place(**arguments).kind == kind
    assert "pyspark.sql" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"cluster": "local", "master": "spark://h:1"},
            "--spark-master is for --cluster spark, got --cluster local; leave one of them out",
        ),
        ({"cluster": "inprocess", "master": "spark://h:1"}, "got --cluster inprocess"),
        (
            {"cluster": "local", "conf": {"key": "SECRET"}},
            "--spark-conf is for --cluster spark, got --cluster local; add --spark-master, or",
        ),
        ({"conf": {"key": "SECRET"}}, "--spark-conf is for --cluster spark, got --cluster auto"),
    ],
)
def test_contradictions(monkeypatch, arguments, words):
    monkeypatch.delitem(sys.modules, "pyspark.sql", raising=False)
    with pytest.raises(UserError) as caught:
        place(**arguments)
    assert words in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_dashboard_needs_its_extra(monkeypatch):
    shown = dataclasses.replace(EXPERIMENT, cluster=Cluster(dashboard=True))
    assert place(experiment=shown).kind == "local"
    real = importlib.metadata.version

    def version(name):
        if name in ("aiohttp-cors", "aiohttp_cors", "opencensus"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(sweep_cluster.importlib.metadata, "version", version)
    for arguments in ({"cluster": "local"}, {"master": "spark://host:7077"}):
        with pytest.raises(UserError) as caught:
            place(experiment=shown, **arguments)
        assert str(caught.value) == (
            f'cluster.dashboard needs ray[default], got no aiohttp_cors, opencensus; install "ray[default]=={real("ray")}", '
            "or leave the dashboard off"
        )
        place(**arguments)
    assert place("inprocess", experiment=shown).kind == "inprocess"
    assert place("local", environ={"RAY_ADDRESS": "host:6379"}, experiment=shown).kind == "local"


@pytest.mark.parametrize(
    ("slots", "cpus_per_trial", "executors", "cores", "enough"),
    [
        (None, 1, None, [4, 4], False),
        (4, 1, None, [4], True),
        (4, 2, None, [3, 3, 3], False),  # 9 cores, and room for three trials
        (4, 2, None, [3, 3, 3, 3], True),
        (4, 1, 2, [4], False),
        (6, 1, None, [2, 4], True),  # three nodes as large as the smallest
        (3, 3, None, [4, 8], True),
        (3, 3, None, [4, 4], False),
    ],
)
def test_executors_are_waited_for_until_the_trials_fit(slots, cpus_per_trial, executors, cores, enough):
    assert Wanted(slots, cpus_per_trial, executors).has_enough(cores) is enough
