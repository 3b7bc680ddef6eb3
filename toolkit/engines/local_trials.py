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
from toolkit.core.search import Search
from toolkit.core.study import Proposal
from toolkit.core.trial import FitResult, Trainer, run_trial


class TrialTimeout(BaseException):
    """A trial took longer than `sweep.trial_timeout_s`; not an Exception, so that `except Exception` in the user's `fit` does not hold it up."""


@dataclass
class LocalRunner:
    """Implements `core.search.Runner` with one slot.

    A trial past `sweep.trial_timeout_s` is interrupted by SIGALRM as soon as it executes Python code: that needs the main thread, and code that
    hangs inside a native library is not ended. Ray's runner ends those, by killing their process.
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
        search.started(number)

        def report(step: int, so_far: FitResult) -> bool:
            with _alarm_held():
                return search.reported(number, step, so_far.values[0])

        try:
            with _alarm(self.sweep.trial_timeout_s):
                result = run_trial(self.trainer, proposal, self.data, self.num_threads, report, self.sweep.memory_gib_per_trial)
        except TrialTimeout as timeout:
            search.lost(number, f"TrialTimeout: {timeout}")
        else:
            search.ended(result)


@contextmanager
def _alarm(timeout_s: float | None) -> Iterator[None]:
    if timeout_s is None:
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TrialTimeout("the trial took longer than sweep.trial_timeout_s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def _alarm_held() -> Iterator[None]:
    """The study must not be torn in the middle of its own work: an alarm waits until that is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
