"""XGBoost over rows that no single process holds, by Ray Train.

Each worker has an equal part of the rows, the same after a restart as before, and the model goes on from its last checkpoint; so a worker
that was lost does not change the result. Nor does this process: a training that was interrupted goes on when it is called again with the
same arguments and rows.

Of Ray Train the parts are used that a training on one's own cluster needs. Left out: its metrics, its manager of datasets, and the watcher
that removes a dead controller's workers, which asks the dashboard and, where there is none, keeps a training from ending for 12 s; our
workers end with this process's Ray. What is private to Ray in this is pinned to 2.60 and watched by `tests/engines/test_ray_training.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
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

from toolkit.core.errors import ClusterError, DataError
from toolkit.core.experiment import Metric, Training
from toolkit.engines.claims import claimed
from toolkit.engines.parquet_shards import Columns, divide
from toolkit.engines.ray_cluster import RayConnection
from toolkit.engines.ray_training_cluster import check_nodes, check_room, first_line, nodes, num_hosts, storage_folder
from toolkit.engines.ray_training_loop import Teller, TrainingController, WorkerTask, describe, work
from toolkit.engines.xgboost_distributed import Stopping, check_params

__all__ = ["DistributedFit", "DistributedResult", "num_hosts", "storage_folder", "train_distributed"]

_LOOK_EVERY_S = 0.5
# Ray Train asks its workers each 2 s otherwise, and has a process more that watches for nodes about to be taken away, which only some
# clusters announce.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_ABORT_TIMEOUT_S = 15
_LAST_WORDS_S = 2.0

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
        home: a folder of this host, for the claim that keeps a second process from the same training, see `claims`.
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
    there = nodes()
    check_room(there, training)
    task = WorkerTask(
        columns=fit.columns,
        train=divide(fit.train, fit.columns, training.num_workers),
        validation=None if fit.validation is None else divide(fit.validation, fit.columns, training.num_workers),
        params={**fit.params, "nthread": training.cpus_per_worker},
        stopping=Stopping(fit.metric.name, fit.metric.direction, fit.early_stopping_rounds),
        num_boost_round=fit.num_boost_round,
        checkpoint_every=training.checkpoint_every,
    )
    folder = storage / f"training-{_fingerprint(fit, training, task)}"
    with claimed(home, folder, "training"):
        check_nodes(there, storage, [files[0] for files in (fit.train, fit.validation) if files], training)
        told = _Told(folder / "events", progress, fit, training)
        answer = _run(_trainer(task, training, folder, told.folder), connection, told, training, folder)
        shutil.rmtree(folder, ignore_errors=True)
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


def _fingerprint(fit: DistributedFit, training: Training, task: WorkerTask) -> str:
    """Of all that the model depends on."""
    num_rows = [sum(chunk.num_rows for chunks in part for chunk in chunks) for part in (task.train, task.validation or ())]
    parts = [fit.data_id, fit.columns, sorted(fit.params.items()), fit.metric, fit.num_boost_round, fit.early_stopping_rounds]
    parts += [training.num_workers, training.cpus_per_worker, training.checkpoint_every, num_rows]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


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
        """End the workers, and the controller."""
        if self.controller is not None:
            with suppress(RayError):  # it ends in the middle of its answer
                ray.get(self.controller.abort.remote(), timeout=_ABORT_TIMEOUT_S)

    def close(self) -> None:
        """End the controller, whose process would stay until this object is collected."""
        if self.controller is not None:
            with suppress(RayError):
                ray.kill(self.controller)


def _trainer(task: WorkerTask, training: Training, folder: Path, events: Path) -> _Trainer:
    return _Trainer(
        work,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            resources_per_worker={"CPU": training.cpus_per_worker},
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
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
            _check_alive(connection)
        if done.exception() is not None:
            # What a dead Ray answers may come before the news of its death.
            time.sleep(_LAST_WORDS_S)
            _check_alive(connection)
    except BaseException:
        if connection is None or connection.failure is None:
            trainer.abort()
        raise
    told.look()
    trainer.close()
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
            got=first_line(getattr(error, "controller_failure", error)),
            next_step=f"see `toolkit doctor`, or remove {folder} to begin anew",
        ) from error
    return answer


def _check_alive(connection: RayConnection | None) -> None:
    if connection is not None and connection.failure is not None:
        raise ClusterError(
            "Ray must live as long as the training", got=connection.failure, next_step="run it again: it goes on from its checkpoint"
        )


class _Told:
    """What `Teller` wrote, told as lines."""

    def __init__(self, folder: Path, progress: Callable[[str], None], fit: DistributedFit, training: Training) -> None:
        self.folder = folder
        self.num_restarts = 0
        self._progress = progress
        self._fit = fit
        self._max_failures = training.max_failures
        self._count = 0
        shutil.rmtree(folder, ignore_errors=True)  # of a training that was broken off
        folder.mkdir(parents=True)

    def look(self) -> None:
        while (path := self.folder / f"{self._count:06d}.json").exists():
            self._count += 1
            self._tell(json.loads(path.read_text(encoding="utf-8")))

    def _tell(self, event: dict[str, Any]) -> None:
        if "lost" in event:
            self.num_restarts += 1
            if self.num_restarts <= self._max_failures:
                restart = f"restart {self.num_restarts} of {self._max_failures}"
                _logger.warning("lost %s; the training goes on from its checkpoint (%s)", event["lost"], restart)
            return
        values = ", ".join(f"{name} {value:.5g}" for name, value in event["metrics"].items())
        self._progress(f"round {event['num_rounds']}/{self._fit.num_boost_round}{values and ', ' + values}")
