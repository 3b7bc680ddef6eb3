"""The objective and the sampler that the MlflowSparkStudy arm sends to Spark's Python workers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.samplers import TPESampler

from benchmarks.workloads import Objective, Workload

if TYPE_CHECKING:
    from toolkit.core.data import TrialData

_num_done: dict[tuple[int, int], int] = {}


class ReplaySampler(TPESampler):
    """TPE that does all its work and then gives the prescribed values, so that the study's storage is read as it always is."""

    prescribed: dict[str, Any] = {}  # noqa: RUF012  # set by the objective before it asks

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        super().sample_relative(study, trial, search_space)
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.prescribed[param_name]


def replay_sampler() -> ReplaySampler:
    return ReplaySampler()


class MlflowObjective:
    """`objective(trial)` as MlflowSparkStudy calls it, with the fits told in files of `folder` on this host.

    Trial numbers of two tasks that ask at once may be equal (they are positions in a metric's history), so a trial's place in the list
    comes from its task: the k-th trial of partition p is that of row k of the partition.
    """

    def __init__(self, workload: Workload, objective: Objective, data: TrialData | None, folder: str) -> None:
        self.workload = workload
        self.objective = objective
        self.data = data
        self.folder = folder

    def __call__(self, trial: Any) -> float:
        number = self._number()
        if self.workload.replay:
            trial.study.sampler.prescribed = self.objective.points[number]
        if self.workload.kind == "sleep":
            params: dict[str, Any] = {"x": trial.suggest_float("x", 0.0, 1.0)}
        else:
            from benchmarks.rivals import WINE_LOG_BOUNDS

            params = {"max_depth": trial.suggest_int("max_depth", 4, 20)}
            for name, (low, high) in WINE_LOG_BOUNDS.items():
                params[name] = trial.suggest_float(name, low, high, log=True)
        fit = self.objective.fit(number, self.data, params)
        (Path(self.folder) / f"{number}-{os.getpid()}.json").write_text(json.dumps(fit))
        return fit[1]

    def told(self) -> list[list[float]]:
        return [json.loads(path.read_text()) for path in Path(self.folder).glob("*.json")]

    def _number(self) -> int:
        from pyspark import TaskContext

        task = TaskContext.get()
        assert task is not None
        key = (task.stageId(), task.partitionId())
        place = _num_done.get(key, 0)
        _num_done[key] = place + 1
        # As `spark.range(0, n, numPartitions=p)` divides its rows.
        first = self.workload.num_trials * task.partitionId() // self.workload.num_slots
        return first + place
