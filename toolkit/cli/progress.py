"""What is shown while a search runs, on standard error: a live line on a terminal, a plain line now and then in a pipe.

Trials only change numbers; a thread of its own draws them, at most 4 times a second, so that a trial costs nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from toolkit.core.study import Proposal, TrialRecord, TrialState

DRAWS_PER_S = 4
PLAIN_LINE_EVERY_S = 5.0


class Progress:
    """A `core.study.Listener` and the phases around the search. Every method returns at once and may be called from any thread."""

    def __init__(self, stream: TextIO | None = None, *, terminal: bool | None = None, every_s: float = PLAIN_LINE_EVERY_S) -> None:
        self._stream = stream or sys.stderr
        self._terminal = terminal
        self._every_s = every_s
        self._lock = threading.Lock()
        self._phase = ""
        self._num_trials = self._num_slots = self._num_before = 0
        self._metric, self._direction = "", "maximize"
        self._counts = dict.fromkeys(TrialState, 0)
        self._running: set[int] = set()
        self._best: tuple[float, int | None] | None = None
        self._began_s: float | None = None
        self._last_end_s = 0.0
        self._closed = threading.Event()
        self._drawer: threading.Thread | None = None
        self._live: Any = None
        self._last_line = ""

    def __enter__(self) -> Self:
        if self._terminal is None:
            self._terminal = self._stream.isatty()
        if self._terminal:
            self._start_live()
        else:
            self._drawer = threading.Thread(target=self._write_lines, name="progress", daemon=True)
            self._drawer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        if self._live is not None:
            self._live.stop()
        if self._drawer is not None:
            self._drawer.join(timeout=1.0)
            self._write_line()

    def phase(self, text: str) -> None:
        """What happens now: "starting Ray", "searching", "refitting", "writing report"."""
        with self._lock:
            self._phase = text
        if not self._terminal:
            self._write(text)

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
                    pieces.append(f"{_duration(left / rate)} left")
            return ", ".join(pieces)

    def _start_live(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table

        spinner = Spinner("dots")

        def draw() -> Table:
            with self._lock:
                ended, phase = sum(self._counts.values()) + self._num_before, self._phase
                searching = self._began_s is not None and ended < self._num_trials
            row = Table.grid(padding=(0, 1))
            spinner.update(text=phase)
            cells: list[Any] = [spinner if not self._closed.is_set() else phase]
            if self._began_s is not None:
                cells.append(ProgressBar(total=max(1, self._num_trials), completed=ended, width=24, pulse=searching and not ended))
                cells.append(self.line())
            row.add_row(*cells)
            return row

        # Only standard error: standard output is the answer's.
        self._live = Live(
            console=Console(file=self._stream, force_terminal=True),
            get_renderable=draw,
            refresh_per_second=DRAWS_PER_S,
            redirect_stdout=False,
            redirect_stderr=self._stream is sys.stderr,
        )
        self._live.start()

    def _write_lines(self) -> None:
        while not self._closed.wait(self._every_s):
            self._write_line()

    def _write_line(self) -> None:
        line = self.line()
        # The rate changes all the time: a line is worth its place only when a trial started or ended since the last one.
        state = line.partition(" trials/s")[0].rpartition(", ")[0] or line
        if line and state != self._last_line:
            self._last_line = state
            self._write(line)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone, or the stream closed: progress must never end a search
            pass


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
