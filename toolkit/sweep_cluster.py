"""Where a sweep's trials run: chosen, checked before anything slow, started beside other work, watched, and ended."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

from toolkit.core.errors import ClusterError, UserError
from toolkit.core.experiment import Experiment
from toolkit.core.experiment import Protocol as SweepProtocol
from toolkit.core.search import Runner, Search
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.core.data import TrialData
    from toolkit.engines.ray_cluster import RayConnection
    from toolkit.engines.spark_cluster import SparkCluster

ClusterName = Literal["auto", "inprocess", "local", "spark"]

_logger = logging.getLogger("toolkit")


class TrialCluster:
    """In this process, on a Ray, or on a Ray on Spark. Its methods are called in their order here."""

    def __init__(
        self, experiment: Experiment, cluster: ClusterName, spark_master: str | None, spark_conf: Mapping[str, str], settings: Settings
    ) -> None:
        """Raises:
        UserError: the arguments contradict each other.
        ClusterError: the dashboard is asked for and not installed; on Databricks, no session can be had to look at.
        """
        self._experiment = experiment
        self._settings = settings
        self._spark_master = spark_master
        self._spark_conf = spark_conf
        self._spark: SparkCluster | None = None
        self._connection: RayConnection | None = None
        self._slots_per_worker = 0
        self._max_workers = 0
        self.start_s = 0.0
        """Until Ray was ready."""
        if spark_master and cluster not in ("auto", "spark"):
            raise UserError("--spark-master is for --cluster spark", got=f"--cluster {cluster}", next_step="leave one of them out")
        self.kind: Literal["inprocess", "local", "spark"] = self._choose() if cluster == "auto" else cluster
        if spark_conf and self.kind != "spark":
            raise UserError(
                "--spark-conf is for --cluster spark", got=f"--cluster {cluster}", next_step="add --spark-master, or leave it out"
            )
        starts_ray = self.kind == "spark" or (self.kind == "local" and settings.ray_address is None)
        if experiment.cluster.dashboard and starts_ray and (missing := _missing_for_dashboard()):
            raise ClusterError(
                "cluster.dashboard needs ray[default]",
                got=f"no {', '.join(missing)}",
                next_step=f'install "ray[default]=={importlib.metadata.version("ray")}", or leave the dashboard off',
            )

    def _choose(self) -> Literal["local", "spark"]:
        if self._spark_master:
            return "spark"
        if self._settings.ray_address:
            return "local"
        from toolkit.engines.spark_session import has_executors

        return "spark" if has_executors(open_one=self._settings.on_databricks) else "local"

    def connect_spark(self, stack: ExitStack) -> None:
        """Before the data is read: it may be a table of this session's.

        Raises:
            ClusterError: one line for whatever stands in the way, see `spark_cluster.connect`.
        """
        if self.kind != "spark":
            return
        from toolkit.engines import spark_cluster

        sweep = self._experiment.sweep
        if sweep.gpus_per_trial:
            raise ClusterError(
                "Ray on Spark gives trials no GPUs yet",
                got=f"sweep.gpus_per_trial={sweep.gpus_per_trial:g}",
                next_step="use --cluster local",
            )
        self._spark = spark_cluster.connect(
            self._spark_master,
            self._spark_conf,
            app_name=f"toolkit {self._experiment.name}",
            java_home=self._settings.java_home,
            remote=self._settings.spark_remote,
            wanted=spark_cluster.Wanted(sweep.concurrency, sweep.cpus_per_trial, self._experiment.cluster.min_workers),
        )
        stack.callback(self._spark.close)
        per_worker = int(self._spark.cores_per_worker // sweep.cpus_per_trial)
        if per_worker < 1:
            raise ClusterError(
                "a trial must fit in one executor",
                got=f"{sweep.cpus_per_trial:g} CPUs a trial, {self._spark.cores_per_worker} cores in the smallest executor",
                next_step="lower sweep.cpus_per_trial, or raise spark.executor.cores",
            )
        least = self._experiment.cluster.min_workers
        if least is not None and least > self._spark.num_workers and self._experiment.cluster.max_workers is None:
            raise ClusterError(
                f"cluster.min_workers={least} needs as many executors",
                got=f"{self._spark.num_workers} of {self._spark.cores_per_worker} cores",
                next_step="lower it, or ask Spark for more executors",
            )
        self._slots_per_worker = per_worker
        there = per_worker * max(self._spark.num_workers, self._experiment.cluster.max_workers or 0)
        if sweep.concurrency and sweep.concurrency > there:
            _logger.warning(
                "concurrency %d needs %g cores, the executors have room for %d trials: lower it, or ask Spark for more executors",
                sweep.concurrency,
                sweep.concurrency * sweep.cpus_per_trial,
                there,
            )

    def start(self, stack: ExitStack, data_bytes: int) -> None:
        """Begin to start Ray; returns at once. The data must have been read, for Ray takes the executors' cores.

        Raises:
            ClusterError: a trial would not fit.
        """
        if self.kind == "inprocess":
            return
        from toolkit.engines import build

        experiment = self._experiment
        if self._spark is not None:
            sweep = experiment.sweep
            workers = -(-sweep.concurrency // self._slots_per_worker) if sweep.concurrency else None
            self._connection, self._max_workers = build.connect_ray_on_spark(self._spark, experiment.cluster, data_bytes, workers)
        else:
            if self._settings.ray_address is None:
                from toolkit.core.machine import cpu_count

                build.slots(experiment, cpu_count(), num_gpus=None)
            self._connection = build.connect_ray(self._settings.ray_address, experiment.cluster)
        stack.callback(self._connection.stop)

    def connection(self) -> RayConnection:
        """The Ray that `start` began to start, ready.

        Raises:
            ClusterError: it does not start.
        """
        assert self._connection is not None, "start() comes first, and not in this process"
        self.start_s = self._connection.wait().start_s
        return self._connection

    @property
    def num_spark_hosts(self) -> int:
        """Of the executors; 0 without Spark."""
        return len({executor.host for executor in self._spark.executors}) if self._spark is not None else 0

    def runner(self, protocol: SweepProtocol, data: TrialData) -> Runner:
        """What executes trials; waits until Ray is ready.

        Raises:
            ClusterError: it does not start, or a trial does not fit.
        """
        from toolkit.engines import build

        experiment = self._experiment
        wanted = experiment.sweep.concurrency
        if self._connection is None:
            runner = build.local_runner(experiment, protocol, data)
        else:
            ready = self._connection.wait()
            self.start_s = ready.start_s
            if self._spark is None:
                num_slots = build.slots(experiment, ready.num_cpus, ready.num_gpus)
            else:
                there = round(ready.num_cpus / self._spark.cores_per_worker)
                num_slots = self._slots_per_worker * (self._max_workers if experiment.cluster.scales else there)
            runner = build.ray_runner(experiment, protocol, data, min(num_slots, wanted or num_slots))
        if wanted is not None and wanted > runner.num_slots and self._spark is None:
            _logger.warning(
                "concurrency %d is more than the %d slots there are: %d trials run at once", wanted, runner.num_slots, runner.num_slots
            )
        return runner

    def watch(self, search: Search) -> None:
        """From now on a Ray that fails ends the search."""
        if self._connection is not None:
            self._connection.on_failure(lambda: search.request_stop("cluster"))

    def failure(self) -> str | None:
        """Why Ray cannot be used any more."""
        return self._connection.failure if self._connection is not None else None

    def begin_stop(self) -> None:
        """The search is over: its processes go while this one fits the winner."""
        if self._connection is not None:
            self._connection.begin_stop()


def _missing_for_dashboard() -> list[str]:
    """Without them Ray's dashboard has no server, and the head waits for it in vain."""
    from packaging.requirements import Requirement

    of_extra = set()
    for requirement in map(Requirement, importlib.metadata.requires("ray") or ()):
        marker = requirement.marker
        if marker is not None and marker.evaluate({"extra": "default"}) and not marker.evaluate({"extra": ""}):
            of_extra.add(requirement.name)
    return sorted(name for name in of_extra if not _is_installed(name))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
