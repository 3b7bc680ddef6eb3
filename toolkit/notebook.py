"""A sweep's progress in a notebook (Databricks, Jupyter): one line below the cell, drawn over itself.

with Progress() as progress:
    result = sweep(experiment, progress=progress)
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import sys
import threading
from collections.abc import Callable
from html import escape
from types import TracebackType
from typing import Self

from toolkit.core.progress import SearchProgress

DRAW_EVERY_S = 0.5


class Line:
    """What is shown: as a bar and a line of text where HTML is understood, else the text."""

    def __init__(self, phase: str, state: str, num_ended: int, num_trials: int) -> None:
        self._text = ": ".join(part for part in (phase, state) if part)
        self._bar = f'<progress value="{num_ended}" max="{num_trials}"></progress> ' if num_trials else ""

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._bar}<span>{escape(self._text)}</span>"


class Progress(SearchProgress):
    """`show` is called with each new line, in the order of time; default: the cell's output, and outside of a notebook the text on standard
    error once a phase."""

    def __init__(self, show: Callable[[Line], None] | None = None, *, every_s: float = DRAW_EVERY_S) -> None:
        super().__init__()
        self._show = show
        self._every_s = every_s
        self._last = ""
        self._drawing = threading.Lock()
        self._closed = threading.Event()
        self._drawer: threading.Thread | None = None

    def __enter__(self) -> Self:
        show = self._show or _shown_in_place()
        if show is None:
            self._show = _written
            return self
        self._show = show
        # A notebook finds the cell that an output belongs to in the context, which a new thread does not have by itself.
        context = contextvars.copy_context()
        self._drawer = threading.Thread(target=context.run, args=(self._draw_now_and_then,), name="progress", daemon=True)
        self._drawer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        if self._drawer is not None:
            self._drawer.join(timeout=1.0)
        self._draw()

    def phase(self, text: str) -> None:
        super().phase(text)
        if self._drawer is None:
            self._draw()

    def _draw_now_and_then(self) -> None:
        while not self._closed.wait(self._every_s):
            self._draw()

    def _draw(self) -> None:
        state = self.line()
        with self._lock:
            line = Line(self._phase, state, sum(self._counts.values()) + self._num_before, self._num_trials)
        with self._drawing:
            if self._show is not None and str(line) != self._last:
                self._last = str(line)
                # The notebook may be gone: that must never end a search.
                with contextlib.suppress(Exception):
                    self._show(line)


def _shown_in_place() -> Callable[[Line], None] | None:
    """Into the output of the running cell; None where there is none. A notebook has loaded IPython long before us."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or type(shell).__name__ == "TerminalInteractiveShell":
        return None
    # Not the `display` of a Databricks notebook's globals, which knows tables and no display_id.
    handle = importlib.import_module("IPython.display").display(Line("", "", 0, 0), display_id=True)
    return handle.update  # type: ignore[no-any-return]


def _written(line: Line) -> None:
    sys.stderr.write(f"{line}\n")
