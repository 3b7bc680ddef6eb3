"""One search in progress: stands between the study (which decides) and a runner (which executes).

All of it runs in the runner's thread. A runner asks `next_proposal`, and tells `started`, `reported`, `ended` or `lost`; when
`stopping` it hands
nothing new out, stops what runs, and calls `requeue_running`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from toolkit.core.experiment import Sweep
from toolkit.core.study import Listener, Proposal, Study, TrialRecord, TrialResult, TrialState

StopReason = Literal["timeout", "interrupt", "failures", "tracking", "cluster"]

TOOK_TOO_LONG = "TrialTimeout: the trial took longer than sweep.trial_timeout_s"

_logger = logging.getLogger("toolkit")


class Search:
    """Attributes:
    num_failed: failed trials of the whole study, those of earlier processes included.
    ended_records: what ended in this process, in the order of ending; last_ended_unix_s: when the last of it was told.
    """

    def __init__(
        self,
        study: Study,
        sweep: Sweep,
        listeners: Sequence[Listener] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._study = study
        self._sweep = sweep
        self._listeners = listeners
        self._clock = clock
        self._asked: dict[int, Proposal] = {}
        self._started_unix_s: dict[int, float] = {}
        self._pruned: set[int] = set()
        self._stop_reason: StopReason | None = None
        self._is_concluded = False
        self._deadline_unix_s = clock() + sweep.timeout_s if sweep.timeout_s else None
        self.num_failed = sum(record.state is TrialState.FAILED for record in study.records())
        self.ended_records: list[TrialRecord] = []
        self.last_ended_unix_s = clock()

    @property
    def stopping(self) -> StopReason | None:
        """Why the search ends before its last trial, or None."""
        if self._stop_reason is None and self._deadline_unix_s is not None and self._clock() >= self._deadline_unix_s:
            self._stop_reason = "timeout"
        return self._stop_reason

    def request_stop(self, reason: StopReason) -> None:
        """Safe to call from a signal handler or another thread. The first reason stays."""
        if not self._is_concluded:
            self._stop_reason = self._stop_reason or reason

    def next_proposal(self) -> Proposal | None:
        """What to run next; None when there is nothing left or the search is stopping."""
        if self.stopping:
            return None
        proposal = self._study.ask()
        if proposal is not None:
            self._asked[proposal.number] = proposal
        return proposal

    def started(self, number: int) -> None:
        """A process begins with the trial. A second call, after its process died, only restarts its clock."""
        first = number not in self._started_unix_s
        self._started_unix_s[number] = self._clock()
        if first:
            for listener in self._listeners:
                listener.trial_started(self._asked[number], self._started_unix_s[number])

    def reported(self, number: int, step: int, value: float) -> bool:
        """Keep an intermediate value; True when the trial must stop now."""
        if number not in self._asked:
            return True
        if self._sweep.scheduler is not None and self._study.report(number, step, value):
            self._pruned.add(number)
            return True
        return self.stopping is not None

    def ended(self, result: TrialResult, num_retries: int = 0) -> None:
        """The trial's own word. Comes too late for a trial already given up on: ignored."""
        if result.number not in self._asked:
            return
        if result.stopped and result.number not in self._pruned:
            self._requeue(result.number)
            return
        record = self._study.tell(result, num_retries)
        self._forget(result.number)
        self.ended_records.append(record)
        self.last_ended_unix_s = self._clock()
        if record.state is TrialState.FAILED:
            self.num_failed += 1
            _logger.warning("trial %d failed: %s", record.number, error_summary(record.error))
            if self.num_failed > self._sweep.failure_limit:
                self.request_stop("failures")
        for listener in self._listeners:
            listener.trial_ended(record)

    def lost(self, number: int, error: str, num_retries: int = 0) -> None:
        """The trial's process died for good, or was ended for taking too long: it failed, with `error` as the reason."""
        now = self._clock()
        started = self._started_unix_s.get(number, now)
        self.ended(TrialResult(number=number, error=error, started_unix_s=started, ended_unix_s=now), num_retries)

    def overdue(self) -> list[int]:
        """Running trials past `sweep.trial_timeout_s`."""
        limit_s = self._sweep.trial_timeout_s
        if limit_s is None:
            return []
        now = self._clock()
        return [number for number, started in self._started_unix_s.items() if now - started > limit_s]

    def conclude(self) -> None:
        """The runner has returned: nothing can stop the search any more, and one that has all its trials was not stopped."""
        self._deadline_unix_s = None
        num_finished = sum(record.state.is_finished for record in self._study.records())
        if num_finished >= self._sweep.num_trials and self._stop_reason in ("timeout", "interrupt", "cluster"):
            self._stop_reason = None
        self._is_concluded = True

    def requeue_running(self) -> None:
        """Put back whatever was handed out and has not ended; for the end of a search that stops early."""
        for number in sorted(self._asked):
            self._requeue(number)

    def _requeue(self, number: int) -> None:
        self._study.requeue(number)
        started = number in self._started_unix_s
        self._forget(number)
        if started:
            for listener in self._listeners:
                listener.trial_requeued(number)

    def _forget(self, number: int) -> None:
        self._asked.pop(number)
        self._started_unix_s.pop(number, None)
        self._pruned.discard(number)


class Runner(Protocol):
    """Executes a search. `num_slots` trials run at once; `run` returns when none is left, or soon after the search is stopping.

    When `run` returns or raises, no trial runs any more and none that it took is left unfinished and unqueued.
    """

    num_slots: int

    def run(self, search: Search) -> None: ...


def error_summary(error: str | None) -> str:
    """What a traceback says happened, on one line: the exception's type and its whole message."""
    lines = (error or "").strip().splitlines()
    last_frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=-1)
    message = [number for number, line in enumerate(lines) if number > last_frame and not line.startswith(" ")]
    return " ".join(" ".join(lines[message[0] :]).split()) if message else ""
