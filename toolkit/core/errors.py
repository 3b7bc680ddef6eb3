"""The error tree. Domain code raises these; only `toolkit.cli.app` turns them into a line and an exit code.

UserError (ValueError)          exit 1: the user can act on it
├── ExperimentError             the experiment, its space or an override is wrong
├── DataError                   the table cannot be read or does not fit the experiment
├── StudyError                  the study's state forbids what was asked (lock, resume, fingerprint)
├── ClusterError                Ray or Spark cannot give what was asked
├── TrackingError               MLflow cannot be reached or refuses
├── RegistryError               the model registry cannot be reached, refuses, or has not what was asked for
├── ScoringError                a table cannot be scored, or not as asked
└── TooManyFailedTrials         more trials failed than `sweep.max_failed_trials`
Interrupted                     exit 130: Ctrl-C or SIGTERM; what was finished is kept
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A rule that the user's input breaks, what was received, and what to do next. Prints as one line."""

    def __init__(self, rule: str, *, got: object = None, next_step: str = "") -> None:
        line = rule if got is None else f"{rule}, got {got}"
        super().__init__(" ".join(f"{line}; {next_step}".rstrip("; ").split()))


class ExperimentError(UserError):
    """The experiment, its space or an override is wrong."""


class DataError(UserError):
    """The table cannot be read or does not fit the experiment."""


class StudyError(UserError):
    """The study's state forbids what was asked."""


class ClusterError(UserError):
    """Ray or Spark cannot give what was asked."""


class TrackingError(UserError):
    """MLflow cannot be reached or refuses."""


class RegistryError(UserError):
    """The model registry cannot be reached, refuses, or has not what was asked for."""


class ScoringError(UserError):
    """A table cannot be scored, or not as asked."""


class TooManyFailedTrials(UserError):
    """More trials failed than `sweep.max_failed_trials` allows."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM during a sweep or a distributed training. The message says what was kept and how to go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the closest of `known`, or list them all: the second half of every "unknown X" message."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(options)}" if options else "none are known"
