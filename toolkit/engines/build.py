"""The one place where engines are chosen and made, from an experiment and the settings. Imports each only when it is asked for."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.core.data import TrialData
from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Cluster, Experiment, Metric, Protocol
from toolkit.core.model import Custom, Model, Sklearn, XGBoost
from toolkit.core.search import Runner
from toolkit.core.trial import Trainer

if TYPE_CHECKING:
    from toolkit.engines.ray_cluster import RayConnection
    from toolkit.engines.spark_cluster import SparkCluster

REPORTED_VERSIONS = ("ray-spark-toolkit", "ray", "optuna", "mlflow", "xgboost", "scikit-learn", "pandas", "numpy", "pyspark")


def make_trainer(experiment: Experiment, protocol: Protocol) -> Callable[[], Trainer]:
    """What makes the trainer in a trial's process: the driver need not import the model's library to start a search."""
    sweep = experiment.sweep
    return functools.partial(trainer_of, experiment.model, experiment.metrics, sweep.seed, sweep.report_every, protocol == "published")


def trainer_of(model: Model, metrics: tuple[Metric, ...], seed: int, report_every: int, keep_trial_model: bool) -> Trainer:
    if isinstance(model, Custom):
        from toolkit.engines.custom_model import CustomTrainer

        return CustomTrainer(model, metrics)
    if isinstance(model, Sklearn):
        from toolkit.engines.sklearn_model import SklearnTrainer

        return SklearnTrainer(model, metrics, seed, keep_trial_model)
    assert isinstance(model, XGBoost), "a pipeline of Spark ML is refused by the verbs that search"
    if "toolkit.engines.ray_trial_actor" in sys.modules and "ray.tune" not in sys.modules:  # a trial's process
        from toolkit.engines.lean_imports import without_sklearn

        with without_sklearn():
            from toolkit.engines.xgboost_model import XGBoostTrainer
    else:
        from toolkit.engines.xgboost_model import XGBoostTrainer
    return XGBoostTrainer(model, metrics, seed, report_every, keep_trial_model)


def local_runner(experiment: Experiment, protocol: Protocol, data: TrialData) -> Runner:
    from toolkit.engines.local_trials import LocalRunner

    trainer = make_trainer(experiment, protocol)()
    return LocalRunner(trainer, data, experiment.sweep, num_threads=max(1, int(experiment.sweep.cpus_per_trial)))


def ray_runner(experiment: Experiment, protocol: Protocol, data: TrialData, num_slots: int) -> Runner:
    from toolkit.core.recipes import user_modules
    from toolkit.engines.ray_trials import RayRunner

    return RayRunner(make_trainer(experiment, protocol), data, experiment.sweep, num_slots, user_modules(experiment))


def connect_ray(address: str | None, cluster: Cluster) -> RayConnection:
    """A local Ray, or the one at `address`."""
    from toolkit.engines.ray_cluster import LocalRay, RayConnection, RunningRay

    return RayConnection(LocalRay(cluster.dashboard) if address is None else RunningRay(address))


def connect_ray_on_spark(spark: SparkCluster, cluster: Cluster, data_bytes: int, wanted_workers: int | None) -> tuple[RayConnection, int]:
    """A Ray on the executors, and of how many workers it may come to be. `data_bytes`: what each has to hold.

    Raises:
        ClusterError: this process is connected to a Ray already.
    """
    from toolkit.engines.ray_cluster import RayConnection
    from toolkit.engines.ray_on_spark import RayOnSpark

    source = RayOnSpark(spark, cluster, data_bytes, wanted_workers)
    return RayConnection(source), source.max_workers


def slots(experiment: Experiment, num_cpus: float, num_gpus: float | None) -> int:
    """How many trials fit at once. `num_gpus`: None while it is not known.

    Raises:
        ClusterError: not even one does.
    """
    sweep = experiment.sweep
    fit = int(num_cpus // sweep.cpus_per_trial)
    if sweep.gpus_per_trial and num_gpus is not None:
        fit = min(fit, int(num_gpus // sweep.gpus_per_trial))
    if fit < 1:
        there = f"{num_cpus:g} CPUs" + ("" if num_gpus is None else f" and {num_gpus:g} GPUs")
        raise ClusterError(
            "a trial must fit on the cluster",
            got=f"{sweep.cpus_per_trial:g} CPUs and {sweep.gpus_per_trial:g} GPUs a trial, {there} in all",
            next_step="lower sweep.cpus_per_trial or sweep.gpus_per_trial",
        )
    return fit


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in REPORTED_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
