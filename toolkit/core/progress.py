"""What a search has done so far, in one line: what `cli.progress` and `notebook` draw."""

from __future__ import annotations

import threading
import time
from typing import Literal

from toolkit.core.study import Proposal, TrialRecord, TrialState


class SearchProgress:
    """A `core.study.Listener` and the phases around the search. Every method returns at once and may be called from any thread.

    Trials only change numbers; who draws them asks for `line`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = ""
        self._num_trials = self._num_slots = self._num_before = 0
        self._metric, self._direction = "", "maximize"
        self._counts = dict.fromkeys(TrialState, 0)
        self._running: set[int] = set()
        self._best: tuple[float, int | None] | None = None
        self._began_s: float | None = None
        self._last_end_s = 0.0

    def phase(self, text: str) -> None:
        """What happens now: "starting Ray", "searching", "refitting", "writing report"."""
        with self._lock:
            self._phase = text

    def begin(
        self,
        *,
        num_trials: int,
        num_already_done: int,
        num_slots: int,
        metric: str,
        direction: Literal["maximize", "minimize"],
        best: float | None = None,
    ) -> None:
        """The search starts. `num_already_done`: finished by earlier processes; `best`: the best value among those."""
        with self._lock:
            self._num_trials, self._num_before, self._num_slots = num_trials, num_already_done, num_slots
            self._metric, self._direction = metric, direction
            self._best = None if best is None else (best, None)
            self._began_s = time.monotonic()

    def trial_started(self, proposal: Proposal, started_unix_s: float) -> None:
        with self._lock:
            self._running.add(proposal.number)

    def trial_ended(self, record: TrialRecord) -> None:
        with self._lock:
            self._running.discard(record.number)
            self._counts[record.state] += 1
            self._last_end_s = time.monotonic()
            if record.state is TrialState.COMPLETE and record.values:
                value = record.values[0]
                if self._best is None or (value > self._best[0] if self._direction == "maximize" else value < self._best[0]):
                    self._best = (value, record.number)

    def trial_requeued(self, number: int) -> None:
        with self._lock:
            self._running.discard(number)

    def line(self) -> str:
        """The state of the search in one line; empty before `begin`."""
        with self._lock:
            if self._began_s is None:
                return ""
            ended_here = sum(self._counts.values())
            left = self._num_trials - self._num_before - ended_here
            elapsed_s = (time.monotonic() if left > 0 else self._last_end_s) - self._began_s
            pieces = [f"{self._num_before + ended_here}/{self._num_trials} trials", f"{len(self._running)}/{self._num_slots} slots"]
            for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAILED, "failed")):
                if self._counts[state]:
                    pieces.append(f"{self._counts[state]} {word}")
            if self._best is not None:
                value, number = self._best
                pieces.append(f"best {self._metric} {value:.5g}" + (f" (trial {number})" if number is not None else ""))
            if ended_here and elapsed_s > 0:
                rate = ended_here / elapsed_s
                pieces.append(f"{rate:.3g} trials/s")
                if left > 0:
                    pieces.append(f"{duration(left / rate)} left")
            return ", ".join(pieces)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
