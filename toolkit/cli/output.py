"""Standard output belongs to the answer. Whatever else writes there while a verb runs is sent to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

STDOUT, STDERR = 1, 2


@contextlib.contextmanager
def answer_stream() -> Iterator[TextIO]:
    """The real standard output, for the answer alone.

    Inside, `sys.stdout` and file descriptor 1 are standard error: Ray's C++ and child processes know nothing of `sys.stdout`. A reader
    that closes the pipe early (`| head`) is no error.
    """
    sys.stdout.flush()
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    answer = os.fdopen(os.dup(STDOUT), "w", encoding=encoding, errors="replace")
    os.dup2(STDERR, STDOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield answer
    finally:
        _flush_c_streams()  # else what C code has buffered for descriptor 1 is written after it is restored
        with contextlib.suppress(BrokenPipeError):
            answer.flush()
        os.dup2(answer.fileno(), STDOUT)
        with contextlib.suppress(BrokenPipeError):
            answer.close()


def seal_stdout() -> None:
    """From here to the end of the process, descriptor 1 is standard error: exit hooks of libraries print, too."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os.dup2(STDERR, STDOUT)


def write_json(answer: TextIO, value: Mapping[str, Any]) -> None:
    """One object on one line; numbers that JSON has no words for (NaN, infinity) become null."""
    with contextlib.suppress(BrokenPipeError):
        answer.write(json.dumps(_plain(value), allow_nan=False) + "\n")
        answer.flush()


def write_rows(answer: TextIO, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names and values: a table on a terminal, plain lines in a pipe."""
    with contextlib.suppress(BrokenPipeError):
        if answer.isatty():
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
            for name, value in rows:
                table.add_row(Text(name, style="cyan"), Text(value, overflow="fold"))
            Console(file=answer).print(table)
        else:
            width = max((len(name) for name, _ in rows), default=0) + 2
            answer.write("\n".join([title, *(f"{name:<{width}}{value}".rstrip() for name, value in rows)]) + "\n")
        answer.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)  # numpy's scalars


def _flush_c_streams() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


class _Plain(logging.Handler):
    """Log lines as `warning: text`, on whatever `sys.stderr` is now: the live progress line puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


def show_warnings() -> None:
    """The toolkit's own warnings go to standard error, once each; what MLflow says of its own doings on success does not."""
    told = {"mlflow.store.db.utils": logging.WARNING, "mlflow.pyfunc": logging.WARNING, "mlflow.utils.environment": logging.ERROR}
    for name, level in told.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("alembic.runtime").setLevel(logging.WARNING)
    logger = logging.getLogger("toolkit")
    if not any(isinstance(handler, _Plain) for handler in logger.handlers):
        logger.addHandler(_Plain(level=logging.WARNING))
    if not logging.root.handlers:
        # Else py4j's `logging.info` installs one, which shows ours a second time.
        others = _Plain(level=logging.WARNING)
        py4j = ("java_gateway", "clientserver")  # what they say, they also raise
        others.addFilter(lambda record: record.name.partition(".")[0] != logger.name and record.module not in py4j)
        logging.root.addHandler(others)
