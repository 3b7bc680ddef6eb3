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
from toolkit.core.trial import FitResult, Trainer, run_trial


class TrialTimeout(Exception):
    """A trial took longer than `sweep.trial_timeout_s`."""


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
        while (proposal := search.next_proposal()) is not None:
            number = proposal.number
            search.started(number)

            def report(step: int, so_far: FitResult, number: int = number) -> bool:
                return search.reported(number, step, so_far.values[0])

            with _alarm(self.sweep.trial_timeout_s):
                result = run_trial(self.trainer, proposal, self.data, self.num_threads, report, self.sweep.memory_gib_per_trial)
            search.ended(result)
        search.requeue_running()


@contextmanager
def _alarm(timeout_s: float | None) -> Iterator[None]:
    if timeout_s is None:
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TrialTimeout(f"the trial took longer than sweep.trial_timeout_s={timeout_s:g}")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
