"""XGBoost over rows that no single process holds, by Ray Train.

Each worker has an equal part of the rows, the same after a restart as before, and the model goes on from its last checkpoint; so a worker
that was lost does not change the result. Nor does this process: a training that was interrupted goes on when it is called again with the
same arguments and rows.

Of Ray Train the parts are used that a training on one's own cluster needs. Left out: its metrics, its manager of datasets, and the watcher
that removes a dead controller's workers, which asks the dashboard and, where there is none, keeps a training from ending for 12 s; our
workers end with this process's Ray. What is private to Ray in this is pinned to 2.60 and watched by `tests/engines/test_ray_training.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RayError
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.callbacks import BackendSetupCallback
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.xgboost.xgboost_trainer import XGBoostTrainer  # ray.train.xgboost's, which has the older one's types
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from toolkit.core.errors import ClusterError, DataError, ExperimentError
from toolkit.core.experiment import Metric, Training
from toolkit.core.secrets import without_secrets
from toolkit.engines.parquet_shards import Columns, divide
from toolkit.engines.ray_cluster import RayConnection
from toolkit.engines.ray_rows import look
from toolkit.engines.ray_training_loop import Teller, TrainingController, WorkerTask, describe, work
from toolkit.engines.xgboost_distributed import Stopping, check_params

_LOOK_EVERY_S = 0.2
# Ray Train asks its workers each 2 s otherwise, and has a process more that watches for nodes about to be taken away, which only some
# clusters announce.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_ABORT_TIMEOUT_S = 15
_PROBE_TIMEOUT_S = 60

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class DistributedFit:
    """What is fitted.

    Attributes:
        train, validation: Parquet files, see `parquet_shards.files_of` and `write`. Validation rows decide which round is the best.
        data_id: of the rows of both: an interrupted training goes on with the same only.
        params: all of the booster's but `nthread`, `eval_metric` among them, of which `metric` is one.
        early_stopping_rounds: None: all rounds are fitted, and the best is kept.
    """

    train: Sequence[str]
    validation: Sequence[str] | None
    columns: Columns
    data_id: str
    params: Mapping[str, Any]
    metric: Metric
    num_boost_round: int
    early_stopping_rounds: int | None = None


@dataclass(frozen=True)
class DistributedResult:
    """A fitted booster.

    Attributes:
        model: UBJSON, cut to the best round where there were validation rows.
        history: for each metric on the validation rows, one value a round. Of several workers' AUC XGBoost takes the mean.
        best_iteration: from 0; None without validation rows.
        num_rounds: before the cut.
        num_restarts: how often workers were lost.
        began_at_round: where the last attempt began: 0, or its checkpoint's round.
        num_rows, peak_memory_bytes: by worker; the latter is the most that the last attempt's process had resident.
        read_s, matrix_s, boost_s: of the last attempt: its rows fetched, binned, and boosted. `wall_s` is all.
    """

    model: bytes
    history: Mapping[str, Sequence[float]]
    best_iteration: int | None
    num_rounds: int
    num_restarts: int
    began_at_round: int
    num_rows: tuple[int, ...]
    peak_memory_bytes: tuple[int, ...]
    read_s: float
    matrix_s: float
    boost_s: float
    wall_s: float


def storage_folder(training: Training, default: Path, num_hosts: int) -> Path:
    """Where rows and checkpoints of a training lie; `default` is of this host alone.

    Raises:
        ExperimentError: several hosts and no folder that they share, or an address that is no folder's.
    """
    if training.storage_path is None:
        if num_hosts > 1:
            raise ExperimentError(
                "training.storage_path: required on several hosts, a folder that all of them see",
                got=f"none, and {num_hosts} hosts",
                next_step="name a mounted one (NFS; /Volumes/… on Databricks)",
            )
        return default
    if "://" in training.storage_path or training.storage_path.startswith("dbfs:"):
        raise ExperimentError(
            "training.storage_path: a folder that every node has mounted",
            got=without_secrets(training.storage_path),
            next_step="name it by its path (/Volumes/… on Databricks)",
        )
    return Path(training.storage_path).expanduser().absolute()


def num_hosts() -> int:
    """Of the connected Ray: several of its nodes may be on one."""
    return len({node["NodeManagerAddress"] for node in _nodes()})


def train_distributed(
    fit: DistributedFit,
    training: Training,
    storage: Path,
    home: Path,
    connection: RayConnection | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> DistributedResult:
    """Fit on the connected Ray.

    Checkpoints below `storage` are removed at the end; those of a training that fails or is interrupted stay for the next call.

    Args:
        storage: of `storage_folder`.
        home: a folder of this host, for a lock.
        connection: what the training ends with, when its Ray fails.
        progress: told in a line what happens.

    Raises:
        ExperimentError: parameters that XGBoost refuses, or that need all rows in one process.
        DataError: fewer rows than workers, or rows that do not fit.
        ClusterError: the workers do not fit; a node does not see the files; workers are lost more often than `max_failures`; Ray fails.
    """
    began_s = time.perf_counter()
    check_params(fit.params, fit.metric.name, fit.columns)
    # Ray Train's controller would start it, and wait for it.
    get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
    nodes = _nodes()
    _check_room(nodes, training)
    task = WorkerTask(
        columns=fit.columns,
        train=divide(fit.train, fit.columns, training.num_workers),
        validation=None if fit.validation is None else divide(fit.validation, fit.columns, training.num_workers),
        params={**fit.params, "nthread": training.cpus_per_worker},
        stopping=Stopping(fit.metric.name, fit.metric.direction, fit.early_stopping_rounds),
        num_boost_round=fit.num_boost_round,
        checkpoint_every=training.checkpoint_every,
    )
    name = f"training-{_fingerprint(fit, training)}"
    with _locked(home, name), tempfile.TemporaryDirectory(prefix="training-") as folder:
        _check_nodes(nodes, storage, [files[0] for files in (fit.train, fit.validation) if files], training)
        told = _Told(Path(folder) / "events.jsonl", progress, fit, training)
        answer = _run(_trainer(task, training, storage, name, told.path), connection, told, training, storage / name)
        shutil.rmtree(storage / name, ignore_errors=True)
    if answer["error"] is not None:
        raise DataError(answer["error"])
    assert answer["model"] is not None
    return DistributedResult(
        model=answer["model"],
        history=answer["history"],
        best_iteration=answer["best_iteration"],
        num_rounds=answer["num_rounds"],
        num_restarts=told.num_restarts,
        began_at_round=answer["began_at_round"],
        num_rows=tuple(answer["num_rows"]),
        peak_memory_bytes=tuple(answer["peak_memory_bytes"]),
        read_s=answer["read_s"],
        matrix_s=answer["matrix_s"],
        boost_s=answer["boost_s"],
        wall_s=time.perf_counter() - began_s,
    )


def _fingerprint(fit: DistributedFit, training: Training) -> str:
    """Of all that the model depends on."""
    parts = [fit.data_id, fit.columns, sorted(fit.params.items()), fit.metric, fit.num_boost_round, fit.early_stopping_rounds]
    parts += [training.num_workers, training.cpus_per_worker, training.checkpoint_every, [len(files) for files in (fit.train, fit.validation or ())]]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextmanager
def _locked(home: Path, name: str) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError(
                "the same training must not run twice at once", got="another process at it", next_step="wait for it"
            ) from error
        yield
        Path(lock.name).unlink()


# --- before anything slow


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _check_room(nodes: Sequence[Mapping[str, Any]], training: Training) -> None:
    """Ray Train itself would wait for CPUs that never come."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes]
    if sum(each // training.cpus_per_worker for each in cpus) < training.num_workers:
        raise ClusterError(
            "the workers of a distributed training must fit on the cluster",
            got=f"training.num_workers={training.num_workers} of {training.cpus_per_worker} CPUs, "
            f"and {sum(cpus)} CPUs on {sum(each > 0 for each in cpus)} nodes",
            next_step="lower training.num_workers or training.cpus_per_worker, or use a larger cluster",
        )


def _check_nodes(nodes: Sequence[Mapping[str, Any]], storage: Path, files: Sequence[str], training: Training) -> None:
    """Every node looks for the files, and for one that this process writes, and writes one that this process looks for."""
    probe = storage / f".probe-{uuid.uuid4().hex}"
    try:
        probe.mkdir(parents=True)
        (probe / "driver").touch()
    except OSError as error:
        raise ClusterError(
            "training.storage_path must be writable", got=f"{storage}: {error.strerror or error}", next_step="name another folder"
        ) from error
    try:
        # One a worker, for each leaves behind what a reader would have to start: an interpreter, and 1 s of imports.
        places = [nodes[number % len(nodes)] for number in range(max(len(nodes), training.num_workers))]
        looks = [
            ray.remote(look)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(str(probe), node["NodeID"], list(files))
            for node in places
        ]
        if len(nodes) == 1 and nodes[0]["NodeManagerHostname"] == socket.gethostname():
            return  # this process has seen it all
        for node, answer in zip(places, looks, strict=True):
            host = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                lacks = ray.get(answer, timeout=_PROBE_TIMEOUT_S)
            except (RayError, TimeoutError) as error:
                raise ClusterError(
                    "every node of the cluster must run a task", got=f"none from {host}: {_first_line(error)}", next_step="see its log"
                ) from error
            if lacks is None and not (probe / node["NodeID"]).exists():
                lacks = f"what it writes to {storage} is not seen here"
            if lacks is not None:
                raise ClusterError(
                    "every node must see the rows, and training.storage_path as this host does",
                    got=f"node {host}: {lacks}",
                    next_step="name folders that all nodes have mounted",
                )
    finally:
        shutil.rmtree(probe, ignore_errors=True)


# --- the training


class _Trainer(XGBoostTrainer):
    """Ray's, of the parts that are used here, and with its controller in our hands."""

    controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if isinstance(each, BackendSetupCallback | UserCallbackHandler)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        # Ray's own takes SIGINT for itself, for good, and ends the process with status 0.
        self.controller = (
            ray.remote(TrainingController)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
                runtime_env={"env_vars": _ENVIRONMENT},
            )
            .remote(**options)
        )
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())

    def abort(self) -> None:
        """End controller and workers."""
        if self.controller is not None:
            with suppress(RayError):  # it ends in the middle of its answer
                ray.get(self.controller.abort.remote(), timeout=_ABORT_TIMEOUT_S)


def _trainer(task: WorkerTask, training: Training, storage: Path, name: str, events: Path) -> _Trainer:
    return _Trainer(
        work,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            resources_per_worker={"CPU": training.cpus_per_worker},
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=training.max_failures, controller_failure_limit=training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[Teller(str(events))],
        ),
    )


def _run(trainer: _Trainer, connection: RayConnection | None, told: _Told, training: Training, folder: Path) -> dict[str, Any]:
    """In a thread, so that it can be left behind: a Ray whose head has died answers nothing."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    try:
        while not done.done():
            wait([done], _LOOK_EVERY_S)
            told.look()
            if connection is not None and connection.failure is not None:
                raise ClusterError(
                    "Ray must live as long as the training",
                    got=connection.failure,
                    next_step="run it again: it goes on from its checkpoint",
                )
    except BaseException:
        if connection is None or connection.failure is None:
            trainer.abort()
        raise
    told.look()
    try:
        answer: dict[str, Any] = done.result().return_value
    except WorkerGroupError as error:
        raise ClusterError(
            f"training.max_failures={training.max_failures}: workers were lost more often",
            got=f"last {describe(error.worker_failures)}",
            next_step="run it again: it goes on from its checkpoint; give the workers more memory, or use more of them",
        ) from error
    except (TrainingFailedError, RayError) as error:
        raise ClusterError(
            "Ray Train must run to its end",
            got=_first_line(getattr(error, "controller_failure", error)),
            next_step=f"see `toolkit doctor`, or remove {folder} to begin anew",
        ) from error
    return answer


class _Told:
    """What `Teller` wrote, told as lines."""

    def __init__(self, path: Path, progress: Callable[[str], None], fit: DistributedFit, training: Training) -> None:
        self.path = path
        self.num_restarts = 0
        self._progress = progress
        self._fit = fit
        self._max_failures = training.max_failures
        self._position = 0

    def look(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                self._tell(json.loads(line))

    def _tell(self, event: dict[str, Any]) -> None:
        if "lost" in event:
            self.num_restarts += 1
            if self.num_restarts <= self._max_failures:
                restart = f"restart {self.num_restarts} of {self._max_failures}"
                _logger.warning("lost %s; the training goes on from its checkpoint (%s)", event["lost"], restart)
            return
        values = ", ".join(f"{name} {value:.5g}" for name, value in event["metrics"].items())
        self._progress(f"round {event['num_rounds']}/{self._fit.num_boost_round}{values and ', ' + values}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(f"{type(error).__name__}: {lines[0] if lines else ''}")
