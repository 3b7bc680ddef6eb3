"""Trials by Ray Tune: one long-lived process a slot, the study deciding, Tune executing.

What makes it fast: processes are reused from trial to trial, and keep their matrices; the data is put into the object store once; a trial
without scheduler is one call and one event; concurrency is always set (without it Tune keeps one trial pending, ray issue 46965); Tune's
own files, loggers and reporters are off, for the journal has all of it.

What makes it lose nothing: a trial's error is its result and not Tune's business, so `max_failures` counts dead processes only. A trial
that hangs is ended from the controller's own step, by killing its process.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# Read when ray.tune is imported or a run starts.
for _name, _value in {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The journal is the state; Tune's own snapshots of it would only cost time.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}.items():
    os.environ.setdefault(_name, _value)

import ray
from ray import cloudpickle, tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, Stopper, TuneConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from toolkit.core.data import TrialData
from toolkit.core.experiment import Sweep
from toolkit.core.search import TOOK_TOO_LONG, Search
from toolkit.core.study import TrialResult
from toolkit.engines.ray_patches import trials_of
from toolkit.engines.ray_trial_actor import MakeTrainer, Shared

_LOOK_EVERY_S = 0.1
# What a Tune that still answers needs to end by itself, when its cluster has failed.
_LAST_WORDS_S = 3.0
_CAUSE_LENGTH = 300


@dataclass
class RayRunner:
    """Implements `core.search.Runner` on the connected Ray. `num_slots`: trials at once."""

    make_trainer: MakeTrainer
    data: TrialData
    sweep: Sweep
    num_slots: int
    user_modules: tuple[ModuleType, ...] = ()
    """Modules that worker processes cannot import: they travel by value."""

    def run(self, search: Search) -> None:
        for module in self.user_modules:
            cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
        # What Tune calls errors are our results: a trial ended for taking too long, a search ended early.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        adapter = _Adapter(search, stepped=self.sweep.scheduler is not None)
        shared = Shared(self.make_trainer, self.sweep, ray.put(self.data))
        # What was left behind may still write there.
        with tempfile.TemporaryDirectory(prefix="tune-", ignore_cleanup_errors=True) as folder, trials_of(shared) as name:
            tuner = tune.Tuner(
                name,
                tune_config=TuneConfig(
                    search_alg=_StudySearch(adapter),
                    scheduler=_StudyScheduler(adapter),
                    num_samples=-1,
                    max_concurrent_trials=self.num_slots,
                    reuse_actors=True,
                ),
                run_config=RunConfig(
                    name="sweep",
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=self.sweep.max_retries),
                    checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                    callbacks=[_Controls(adapter)],
                    stop=_StopWhenStopping(adapter),
                    verbose=0,
                    progress_reporter=_Silent(),
                ),
            )
            try:
                _fit(tuner, search)
            except Exception:
                if adapter.error is None:
                    raise
            finally:
                with adapter.lock:
                    adapter.is_closed = True
                if search.stopping != "cluster":
                    adapter.kill_running()
                search.requeue_running()
        if adapter.error is not None:
            # Tune turns what is raised in its callbacks into text, or into a trial's failure.
            raise adapter.error


def _fit(tuner: tune.Tuner, search: Search) -> None:
    """In a thread, so that it can be left behind: a Ray whose head has died answers nothing, and Tune would wait for it."""
    done: Future[None] = Future()

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=fit, name="tune", daemon=True).start()
    left_s = _LAST_WORDS_S
    while left_s > 0:
        with suppress(FutureTimeout):
            done.result(timeout=_LOOK_EVERY_S)
            return
        if search.stopping == "cluster":
            left_s -= _LOOK_EVERY_S


class _SearchIsOver(Exception):
    """Ends Tune's thread, where it was left behind, or the search has raised an error."""


class _Adapter:
    """Tune's trial ids against the study's numbers; shared by the four roles that Tune asks for."""

    def __init__(self, search: Search, stepped: bool) -> None:
        self.search = search
        self.stepped = stepped
        self.lock = threading.Lock()
        """Held while Tune's thread is in the search."""
        self.is_closed = False
        """The search is over: what Tune's thread still has to say is not heard."""
        self.error: Exception | None = None
        """What the search raised: the study's refusal (a full disk), or a bug."""
        self.numbers: dict[str, int] = {}
        self.num_retries: dict[int, int] = {}
        self.actors: dict[str, Any] = {}
        """Of running trials."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Adapter:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its parts for a restore that is never asked for; a search has locks and threads behind it.
        return type(None), ()

    def number_of(self, trial: Trial) -> int:
        return self.numbers[trial.trial_id]

    @contextmanager
    def telling(self) -> Iterator[Search]:
        """The search, for Tune's thread to tell it something."""
        with self.lock:
            if self.is_closed:
                raise _SearchIsOver
            try:
                yield self.search
            except Exception as error:
                self.error, self.is_closed = error, True
                raise

    def kill_running(self) -> None:
        # By the search's thread and by Tune's, maybe at the same time.
        for trial_id in list(self.actors):
            if actor := self.actors.pop(trial_id, None):
                ray.kill(actor)


class _StudySearch(Searcher):
    """Who proposes. (Tune's own OptunaSearch tells stopped trials as complete and leaves NaN ones running: ray-on-spark.md, section 3.)"""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()
        self._adapter = adapter

    def suggest(self, trial_id: str) -> Any:
        with self._adapter.telling() as search:
            proposal = search.next_proposal()
        if proposal is None:
            return Searcher.FINISHED
        self._adapter.numbers[trial_id] = proposal.number
        return {"number": proposal.number, "params": dict(proposal.params), "stepped": self._adapter.stepped}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._adapter.actors.pop(trial_id, None)
        number = self._adapter.numbers[trial_id]
        num_retries = self._adapter.num_retries.get(number, 0)
        told = (result or {}).get("result")
        if isinstance(told, TrialResult) and told.number == number:
            with self._adapter.telling() as search:
                search.ended(told, num_retries)
        elif not error and self._adapter.search.stopping is None:
            with self._adapter.telling() as search:
                search.lost(number, f"its process answered with {told}", num_retries)

    def save(self, checkpoint_path: str) -> None:
        """Tune saves searchers with its snapshots; the journal is ours."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study is resumed from its journal")


class _StudyScheduler(FIFOScheduler):
    """Who stops early: the study (see `engines/optuna_study.py` for why not Tune's own ASHA)."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._adapter = adapter

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        told: TrialResult = result["result"]
        with self._adapter.telling() as search:
            stop = search.reported(told.number, result["step"], told.values[0])
        return FIFOScheduler.STOP if stop else FIFOScheduler.CONTINUE


class _Controls(Callback):
    """Follows the trials' processes, and ends those that hang."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._adapter.actors[trial.trial_id] = trial.temporary_state.ray_actor
        with self._adapter.telling() as search:
            search.started(self._adapter.number_of(trial))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = self._adapter.number_of(trial)
        self._adapter.num_retries[number] = self._adapter.num_retries.get(number, 0) + 1

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._adapter.search.stopping:
            return  # What did not end is put back, see `run`.
        number = self._adapter.number_of(trial)
        retries = self._adapter.num_retries.get(number, 0)
        with self._adapter.telling() as search:
            search.lost(number, f"the trial's process died {retries + 1} times; last: {_cause_of_death(trial)}", retries)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        overdue = self._adapter.search.overdue()
        if not overdue:
            return
        # One that waits for a new process, after its own died, is PENDING: its clock starts again with the process.
        for trial in [trial for trial in trials if trial.status == Trial.RUNNING]:
            number = self._adapter.number_of(trial)
            if number in overdue:
                with self._adapter.telling() as search:
                    search.lost(number, TOOK_TOO_LONG, self._adapter.num_retries.get(number, 0))
                # Its death is wanted: Tune must not start it again.
                trial.max_failures = 0
                ray.kill(self._adapter.actors[trial.trial_id])


def _cause_of_death(trial: Trial) -> str:
    """Ray's words on one line, without its lists of identifiers and its advice. (Tune's own `get_pickled_error` looks where the file is not
    yet.)"""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return "unknown"
    text = " ".join(str(cloudpickle.loads(Path(path).read_bytes())).split())
    return (text.partition("Worker exit type: ")[2] or text)[:_CAUSE_LENGTH]


class _StopWhenStopping(Stopper):
    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._adapter.search.stopping is None and self._adapter.error is None:
            return False
        if self._adapter.search.stopping == "cluster":
            return True
        # Tune would wait for each of them, and give up on one that hangs after 10 s only.
        self._adapter.kill_running()
        return True


class _Silent(tune.ProgressReporter):
    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        raise AssertionError("never asked to")
