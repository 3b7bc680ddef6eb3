"""One trial, in whatever process it runs: fit, and put what came of it into a `TrialResult`. The user's errors end here."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from toolkit.core.data import SplitData, TrialData
from toolkit.core.study import Proposal, TrialResult

Report = Callable[[int, "FitResult"], bool]
"""`report(step, so_far)` hands over the figures so far; True: stop fitting and return what there is."""


@dataclass
class FitResult:
    """What a fit has come to. `values` are the experiment's metrics in their order, at `best_iteration`."""

    values: tuple[float, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    best_iteration: int | None = None
    stopped: bool = False


@dataclass(frozen=True)
class FinalModel:
    """The winner, fitted for use.

    Attributes:
        payload: the model in its library's own format (XGBoost: UBJSON, scikit-learn: skops); None where there is none to store.
        validation_label, validation_prediction: rows that the model making these predictions has not seen; None where there are none.
        test_prediction: (n,) or (n, k), see `core.evaluation.Evaluation`; fitted_prediction: of all rows of train + validation, which the
            model has seen (without `refitted`: the train rows of the last fold).
        history: (round, value) on validation rows by metric, of the model that made validation_prediction; of the last fold.
        refitted: trained on train + validation; else it is the trial's own model.
    """

    payload: bytes | None
    validation_label: npt.NDArray[np.float32] | None
    validation_prediction: npt.NDArray[np.float32] | None
    test_prediction: npt.NDArray[np.float32]
    fitted_prediction: npt.NDArray[np.float32]
    importances: Mapping[str, float]
    num_rounds: int | None
    refitted: bool
    history: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


class Trainer(Protocol):
    """A kind of model: fits one configuration. Crosses processes, so it holds configuration only."""

    def fit(self, params: Mapping[str, Any], data: TrialData, num_threads: int, report: Report) -> FitResult: ...

    def fit_final(self, params: Mapping[str, Any], data: SplitData, num_threads: int, best_iteration: int | None) -> FinalModel:
        """Without `best_iteration` the one that validation rows choose in this very fit."""
        ...


def run_trial(
    trainer: Trainer, proposal: Proposal, data: TrialData, num_threads: int, report: Report, memory_gib: float | None = None
) -> TrialResult:
    """Fit one configuration. Whatever the model or the user's code raises becomes the result's `error`, MemoryError included.

    Interrupts (KeyboardInterrupt, SystemExit) pass through.
    """
    started = time.time()
    wall, cpu = time.perf_counter(), time.process_time()
    fit, error = FitResult(), None
    try:
        with _memory_limit(memory_gib):
            fit = trainer.fit(proposal.params, data, num_threads, report)
    except Exception:
        error = traceback.format_exc()
    return result_of(
        proposal.number,
        fit,
        started_unix_s=started,
        fit_wall_s=time.perf_counter() - wall,
        fit_cpu_s=time.process_time() - cpu,
        error=error,
    )


def result_of(
    number: int,
    fit: FitResult,
    *,
    started_unix_s: float,
    fit_wall_s: float,
    fit_cpu_s: float,
    error: str | None = None,
    stopped: bool = False,
) -> TrialResult:
    """`fit` with where and when it ran."""
    return TrialResult(
        number=number,
        values=tuple(float(value) for value in fit.values) if error is None else (),
        metrics={name: float(value) for name, value in fit.metrics.items()},
        history={name: [[float(step), float(value)] for step, value in points] for name, points in fit.history.items()},
        best_iteration=fit.best_iteration,
        started_unix_s=started_unix_s,
        ended_unix_s=time.time(),
        fit_wall_s=fit_wall_s,
        fit_cpu_s=fit_cpu_s,
        host=socket.gethostname(),
        pid=os.getpid(),
        stopped=fit.stopped or stopped,
        error=error,
    )


@contextmanager
def _memory_limit(memory_gib: float | None) -> Iterator[None]:
    """Let the process allocate `memory_gib` more than it holds now; beyond it, allocations fail (MemoryError, std::bad_alloc).

    RLIMIT_DATA counts private writable memory and not the shared object store (Linux >= 4.7).
    """
    if memory_gib is None:
        yield
        return
    import resource

    with open("/proc/self/statm") as statm:
        data_pages = int(statm.read().split()[5])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(data_pages * resource.getpagesize() + memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def fit_folds(
    fit_fold: Callable[[int, Report | None], FitResult], num_folds: int, metric_names: Sequence[str], report: Report
) -> FitResult:
    """A trial over all its folds: reports rounds when there is one fold, else the mean after each fold."""
    if num_folds == 1:
        return fit_fold(0, report)
    folds: list[FitResult] = []
    for number in range(num_folds):
        folds.append(fit_fold(number, None))
        merged = _merge_folds(folds, metric_names)
        if report(number + 1, merged) and number + 1 < num_folds:
            merged.stopped = True
            break
    return merged


def _merge_folds(folds: Sequence[FitResult], metric_names: Sequence[str]) -> FitResult:
    """Cross-validated figures: the mean over folds; `history` has one point a fold, the best iteration is the folds' mean."""
    names = {name for fold in folds for name in fold.metrics}
    rounds = [fold.best_iteration for fold in folds if fold.best_iteration is not None]
    metrics = {name: float(np.mean([fold.metrics[name] for fold in folds])) for name in sorted(names)}
    return FitResult(
        values=tuple(metrics[name] for name in metric_names),
        metrics=metrics,
        history={name: [(i + 1, fold.metrics[name]) for i, fold in enumerate(folds)] for name in metric_names},
        best_iteration=round(float(np.mean(rounds))) if rounds else None,
    )
