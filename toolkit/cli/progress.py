"""What is shown while a search runs, on standard error: a live line on a terminal, a plain line now and then in a pipe.

Trials only change numbers; a thread of its own draws them, at most 4 times a second, so that a trial costs nothing.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any, Self, TextIO

from toolkit.core.progress import SearchProgress

DRAWS_PER_S = 4
PLAIN_LINE_EVERY_S = 5.0


class Progress(SearchProgress):
    def __init__(self, stream: TextIO | None = None, *, terminal: bool | None = None, every_s: float = PLAIN_LINE_EVERY_S) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._terminal = terminal
        self._every_s = every_s
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
        super().phase(text)
        if not self._terminal:
            self._write(text)

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
