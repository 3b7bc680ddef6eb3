"""Trials and their study: the records, and who talks to whom.

A `Study` decides what is tried next and keeps what came of it (`engines/optuna_study.py`). A runner executes
(`engines/local_trials.py`, `engines/ray_trials.py`). Between them stands `core.search.Search`, which also tells the listeners:
tracking and progress. Times are seconds since the epoch (`_unix_s`) or durations (`_s`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class TrialState(StrEnum):
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"

    @property
    def is_finished(self) -> bool:
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED)


@dataclass(frozen=True)
class Proposal:
    """One configuration to evaluate. `number` counts from 0 within the study; `params` are nested as the space is."""

    number: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class TrialResult:
    """What one evaluation reports from the process that ran it; plain types only, for it crosses processes.

    Attributes:
        values: the experiment's metrics, in their order; empty unless the fit ended well.
        metrics: every figure by name, the experiment's among them, at `best_iteration`.
        history: metric -> [[step, value], …]; step is the number of boosting rounds done (folds: of folds done).
        best_iteration: 0-based index of the best boosting round; None where the model has none.
        fit_wall_s, fit_cpu_s: the fit alone: data preparation that is paid once a process is not in it.
        stopped: the scheduler ended it early.
        error: traceback, where the user's code or the model raised.
    """

    number: int
    values: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    best_iteration: int | None = None
    started_unix_s: float = 0.0
    ended_unix_s: float = 0.0
    fit_wall_s: float = 0.0
    fit_cpu_s: float = 0.0
    host: str = ""
    pid: int = 0
    stopped: bool = False
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def state(self) -> TrialState:
        """FAILED on an error or a value that is not a finite number, else PRUNED when stopped early, else COMPLETE."""
        if self.error is not None:
            return TrialState.FAILED
        if not self.values or not all(math.isfinite(value) for value in self.values):
            return TrialState.FAILED
        return TrialState.PRUNED if self.stopped else TrialState.COMPLETE


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the study keeps it. `params` are flat, by study names, and hold constants too."""

    number: int
    state: TrialState
    params: Mapping[str, Any]
    result: TrialResult
    num_retries: int = 0

    @property
    def values(self) -> tuple[float, ...]:
        return self.result.values

    @property
    def error(self) -> str | None:
        if self.state is TrialState.FAILED and self.result.error is None:
            return f"metric is not a finite number: {dict(self.result.metrics) or 'nothing was reported'}"
        return self.result.error


class Study(Protocol):
    """The decider. Not thread-safe: one thread of one process holds it, under the study's lock."""

    name: str

    def ask(self) -> Proposal | None:
        """The next trial, an interrupted one first; None when `num_trials` are finished or running."""

    def report(self, number: int, step: int, value: float) -> bool:
        """Keep an intermediate value; True if the scheduler wants the trial stopped. Repeated steps are ignored."""

    def tell(self, result: TrialResult, num_retries: int = 0) -> TrialRecord:
        """Finish a trial, durably: when this returns, a kill -9 cannot lose it."""

    def requeue(self, number: int) -> None:
        """Put an unfinished trial back: the next `ask`, perhaps of a later process, hands it out again, unchanged."""

    def records(self) -> list[TrialRecord]:
        """All trials, by number."""


class Listener(Protocol):
    """Told of every trial by `Search`, in the thread that runs the search: must return at once and never raise."""

    def trial_started(self, proposal: Proposal, started_unix_s: float) -> None: ...
    def trial_ended(self, record: TrialRecord) -> None: ...
    def trial_requeued(self, number: int) -> None: ...


def best_record(records: Sequence[TrialRecord], direction: str) -> TrialRecord | None:
    """The best completed trial by its first metric; the earlier one on a tie."""
    done = [record for record in records if record.state is TrialState.COMPLETE]
    sign = -1.0 if direction == "maximize" else 1.0
    return min(done, key=lambda record: (sign * record.values[0], record.number), default=None)


def pareto_front(records: Sequence[TrialRecord], directions: Sequence[str]) -> list[TrialRecord]:
    """Completed trials that no other one equals or beats in every metric and beats in one, by number."""
    done = [record for record in records if record.state is TrialState.COMPLETE]
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
    costs = [[sign * value for sign, value in zip(signs, record.values, strict=True)] for record in done]

    def beaten(cost: list[float]) -> bool:
        return any(other != cost and all(o <= c for o, c in zip(other, cost, strict=True)) for other in costs)

    return [record for record, cost in zip(done, costs, strict=True) if not beaten(cost)]
