"""Trials in this very process, one after another: the twin of `ray_trials` in which a debugger stops where the user's code does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from toolkit.core.data import TrialData
from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Sweep
from toolkit.core.search import TOOK_TOO_LONG, Search
from toolkit.core.study import Proposal
from toolkit.core.trial import FitResult, Trainer, run_trial


class TrialTimeout(BaseException):
    """A trial took too long; not an Exception, so that `except Exception` in the user's `fit` does not hold it up."""


@dataclass
class LocalRunner:
    """Implements `core.search.Runner` with one slot.

    A trial past `sweep.trial_timeout_s` is interrupted by SIGALRM as soon as it executes Python code: that needs the main thread, and
    code that hangs inside a native library is not ended. Ray's runner ends those, by killing their process.
    """

    trainer: Trainer
    data: TrialData
    sweep: Sweep
    num_threads: int
    num_slots: int = 1

    def run(self, search: Search) -> None:
        if self.sweep.trial_timeout_s is not None and threading.current_thread() is not threading.main_thread():
            raise ClusterError(
                "sweep.trial_timeout_s: trials in this process can only be timed in its main thread",
                got=threading.current_thread().name,
                next_step="use --cluster local",
            )
        try:
            while (proposal := search.next_proposal()) is not None:
                self._run_one(search, proposal)
        finally:
            search.requeue_running()

    def _run_one(self, search: Search, proposal: Proposal) -> None:
        number = proposal.number
        alarm = _Alarm(self.sweep.trial_timeout_s)
        search.started(number)

        def report(step: int, so_far: FitResult) -> bool:
            with alarm.held():
                return search.reported(number, step, so_far.values[0])

        try:
            with alarm.timing():
                result = run_trial(self.trainer, proposal, self.data, self.num_threads, report, self.sweep.memory_gib_per_trial)
        except TrialTimeout:
            search.lost(number, TOOK_TOO_LONG)
        else:
            search.ended(result)


class _Alarm:
    """Raises TrialTimeout in the block `timing` after `timeout_s`, but never within `held`: the study must not be torn in its own work."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._is_held = False
        self._has_rung = False

    @contextmanager
    def timing(self) -> Iterator[None]:
        if self._timeout_s is None:
            yield
            return
        previous = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._has_rung:
            raise TrialTimeout

    def _ring(self, _signal: int, _frame: FrameType | None) -> None:
        self._has_rung = True
        if not self._is_held:
            raise TrialTimeout
