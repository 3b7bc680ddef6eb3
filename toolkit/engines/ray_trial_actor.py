"""What runs in a slot's process. Imports as little as it can: neither ray.tune (1.8 s) nor, for XGBoost, scikit-learn (3 s).

It has the methods of `ray.tune.Trainable` that Tune's controller calls, without being one: the base class would bring the import.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from toolkit.core.data import TrialData
from toolkit.core.experiment import Sweep
from toolkit.core.study import Proposal, TrialResult
from toolkit.core.trial import FitResult, Report, Trainer, result_of, run_trial

MakeTrainer = Callable[[], Trainer]


@dataclass(frozen=True)
class Shared:
    """What all trials have in common. `data` is in the object store: each process maps the same copy."""

    make_trainer: MakeTrainer
    sweep: Sweep
    data: ray.ObjectRef[TrialData]


class TrialActor:
    """One process, many trials. Without scheduler a trial is one `train` call; with one, a call lasts until the next report."""

    shared: Shared

    def __init__(self, config: dict[str, Any], storage: None = None) -> None:
        self._data: TrialData = ray.get(self.shared.data)
        self._trainer = self.shared.make_trainer()
        self._fit: _SteppedFit | None = None
        self._proposal: Proposal | None = None
        self._configure(config)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Called in the driver, by Tune."""
        from ray.tune import PlacementGroupFactory

        sweep = cls.shared.sweep
        return PlacementGroupFactory([{"CPU": sweep.cpus_per_trial, **({"GPU": sweep.gpus_per_trial} if sweep.gpus_per_trial else {})}])

    def reset(self, new_config: dict[str, Any]) -> None:
        """Nobody hears how it ends: see `ray_patches._reset_without_waiting`."""
        self._proposal = None
        if self._fit is not None:
            self._fit.abandon()
            self._fit = None
        self._configure(new_config)

    def train(self) -> dict[str, Any]:
        assert self._proposal is not None, "the process could not be made ready for the trial"
        if not self._stepped:
            step, result = None, self._run(_never_stop)
        else:
            if self._fit is None:
                self._fit = _SteppedFit(self._run, self._proposal.number)
            step, result = self._fit.next()
        if step is None:
            self._proposal = None
        return {"result": result, "step": step, "done": step is None}

    def get_auto_filled_metrics(self, debug_metrics_only: bool = False) -> dict[str, Any]:
        """Tune's first call, for the fields that it would print while a trial has no result."""
        return {}

    def stop(self) -> None:
        """Tune's last call before the process ends."""

    def _configure(self, config: dict[str, Any]) -> None:
        self._proposal = Proposal(config["number"], config["params"])
        self._stepped: bool = config["stepped"]

    def _run(self, report: Report) -> TrialResult:
        assert self._proposal is not None
        sweep = self.shared.sweep
        num_threads = max(1, int(sweep.cpus_per_trial))
        return run_trial(self._trainer, self._proposal, self._data, num_threads, report, sweep.memory_gib_per_trial)


def nothing(_: object) -> None:
    """What arrives in place of Tune's objects, see `ray_patches`. Stands here because this module is what a trial process can afford
    to import."""
    return None


def _never_stop(step: int, so_far: FitResult) -> bool:
    return False


class _SteppedFit:
    """A fit in a thread that waits at every report for the word to go on; `next` gives (step, partial result), at last (None, result)."""

    def __init__(self, run: Callable[[Report], TrialResult], number: int) -> None:
        self._reports: queue.Queue[tuple[int | None, TrialResult] | BaseException] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._number = number
        self._waiting = self._abandoned = False
        self._started_unix_s, self._wall, self._cpu = time.time(), time.perf_counter(), time.process_time()
        self._thread = threading.Thread(target=self._work, args=(run,), daemon=True)
        self._thread.start()

    def next(self) -> tuple[int | None, TrialResult]:
        if self._waiting:
            self._answers.put(False)
        reported = self._reports.get()
        if isinstance(reported, BaseException):
            raise reported
        step, result = reported
        self._waiting = step is not None
        return step, result

    def abandon(self) -> None:
        self._abandoned = True
        if self._waiting:
            self._answers.put(True)
        self._thread.join()

    def _work(self, run: Callable[[Report], TrialResult]) -> None:
        try:
            self._reports.put((None, run(self._report)))
        except BaseException as error:  # a SystemExit of the user's code: it ends the process, as it does without a scheduler
            self._reports.put(error)

    def _report(self, step: int, so_far: FitResult) -> bool:
        if self._abandoned:
            return True  # A fit that reports once more, after it was told to stop, finds nobody who answers.
        partial = result_of(
            self._number,
            so_far,
            started_unix_s=self._started_unix_s,
            fit_wall_s=time.perf_counter() - self._wall,
            fit_cpu_s=time.process_time() - self._cpu,
            stopped=True,
        )
        self._reports.put((step, partial))
        return self._answers.get()
