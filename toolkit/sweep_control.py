"""Who watches a sweep, and how it is stopped from outside."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, Protocol

from toolkit.core.search import Search
from toolkit.core.study import Listener, TrialRecord

_logger = logging.getLogger("toolkit")


class Progress(Listener, Protocol):
    """Who watches: `toolkit.cli.progress.Progress`, or anything like it."""

    def phase(self, text: str) -> None: ...

    def begin(
        self,
        *,
        num_trials: int,
        num_already_done: int,
        num_slots: int,
        metric: str,
        direction: Literal["maximize", "minimize"],
        best: float | None = None,
    ) -> None: ...


class Interrupts:
    """Ctrl-C and SIGTERM: during a search the first one asks it to stop; elsewhere, and the second time, KeyboardInterrupt."""

    def __init__(self) -> None:
        self._search: Search | None = None

    @contextmanager
    def stopping(self, search: Search) -> Iterator[None]:
        self._search = search
        if threading.current_thread() is threading.main_thread():
            # Ray has put one of its own before it, see `handle`.
            signal.signal(signal.SIGTERM, self.handle)
        try:
            yield
        finally:
            self._search = None

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        # Ray's handler calls this one, and has set an alarm that aborts the process 3 s later: shutting down on Spark takes longer.
        signal.alarm(0)
        if self._search is None or self._search.stopping is not None:
            raise KeyboardInterrupt
        self._search.request_stop("interrupt")
        _logger.warning("stopping: running trials are put back; once more to stop at once")


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    handler = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {each: signal.signal(each, handler.handle) for each in signals}
    try:
        yield handler
    finally:
        for each in signals:
            signal.signal(each, previous[each])


class Unwatched:
    """No progress shown: `sweep` called without one."""

    def phase(self, text: str) -> None: ...
    def begin(self, **figures: Any) -> None: ...
    def trial_started(self, proposal: Any, started_unix_s: float) -> None: ...
    def trial_ended(self, record: TrialRecord) -> None: ...
    def trial_requeued(self, number: int) -> None: ...
