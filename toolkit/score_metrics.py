"""A run's figures as a file for Prometheus' textfile collector. Part of `score`."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from toolkit.core import prometheus
from toolkit.core.errors import ScoringError
from toolkit.core.scoring_result import ScoreResult

if TYPE_CHECKING:
    from toolkit.score_asked import Asked


_logger = logging.getLogger("toolkit")


class Metrics:
    """A `with` block around a run: the file is written when it ends, well or not.

    Args:
        path: None: nothing is written.
        began_s: monotonic.

    Attributes:
        model: its registered name, once it is known.
        result: set inside by a run that has ended well.

    Raises:
        ScoringError: at the beginning, where the file's folder is missing.
    """

    def __init__(self, path: Path | None, asked: Asked, began_s: float) -> None:
        self.result: ScoreResult | None = None
        self.model = asked.model.name
        self._path, self._output, self._began_s = path, asked.output.shown, began_s

    def __enter__(self) -> Metrics:
        if self._path is not None and not self._path.absolute().parent.is_dir():
            raise ScoringError("--metrics-file must be in a folder that is there", got=self._path, next_step="make it, or name another")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._path is None:
            return
        result = self.result
        gauges = prometheus.score_gauges(
            model=self.model,
            output=self._output,
            succeeded=result is not None,
            ended_unix_s=time.time(),
            wall_s=time.monotonic() - self._began_s,
            former=prometheus.read_text(self._path),
            num_scored_rows=None if result is None else result.num_scored_rows,
            num_quarantined_rows=None if result is None else result.num_quarantined_rows,
            model_version=None if result is None else result.version,
            model_age_s=None if result is None else result.model_age_s,
        )
        try:
            prometheus.write_text(self._path, prometheus.exposition(gauges))
        except OSError as failure:  # the scores are written: a figure less must not fail the run
            _logger.warning("--metrics-file could not be written: %s", failure)
