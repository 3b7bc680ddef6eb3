"""What a scoring has done."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.core.scoring import BatchCounts


@dataclass(frozen=True)
class ScoreResult:
    """One run of `toolkit score`.

    Attributes:
        model, version: what new batches were scored with; `replayed` names batches that were finished with what they were begun with.
        batches: of this run, by their number.
        high_watermark: how far the input has been read: the version of a Delta table, the end of a window; None where nothing has been.
        notices: for people, a line each.
        output, quarantine, audit: tables, without secrets.
    """

    model: str
    version: int
    mode: str
    engine: str
    batches: Mapping[int, BatchCounts]
    replayed: Mapping[int, str]
    wall_s: float
    high_watermark: str | None
    input: str
    output: str
    quarantine: str
    audit: str
    mlflow_run_id: str
    model_age_s: float
    notices: tuple[str, ...] = ()

    @property
    def num_input_rows(self) -> int:
        return sum(counts.num_input_rows for counts in self.batches.values())

    @property
    def num_scored_rows(self) -> int:
        return sum(counts.num_scored_rows for counts in self.batches.values())

    @property
    def num_quarantined_rows(self) -> int:
        return sum(counts.num_quarantined_rows for counts in self.batches.values())

    @property
    def rows_per_s(self) -> float:
        return self.num_scored_rows / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def bad_share(self) -> float:
        return self.num_quarantined_rows / self.num_input_rows if self.num_input_rows else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """Why rows were quarantined."""
        return dict(sum((Counter(counts.reasons) for counts in self.batches.values()), Counter[str]()))

    @property
    def unseen(self) -> dict[str, int]:
        """Values of categorical features that training did not see, by feature."""
        return dict(sum((Counter(counts.unseen) for counts in self.batches.values()), Counter[str]()))

    def as_json(self) -> dict[str, Any]:
        """The object that `toolkit score --json` prints."""
        return {
            "model": self.model,
            "version": self.version,
            "mode": self.mode,
            "engine": self.engine,
            "num_input_rows": self.num_input_rows,
            "num_scored_rows": self.num_scored_rows,
            "num_quarantined_rows": self.num_quarantined_rows,
            "num_batches": len(self.batches),
            "wall_s": self.wall_s,
            "rows_per_s": self.rows_per_s,
            "high_watermark": self.high_watermark,
            "input": self.input,
            "output": self.output,
            "quarantine": self.quarantine,
            "audit": self.audit,
            "mlflow_run_id": self.mlflow_run_id,
            "bad_share": self.bad_share,
            "quarantine_reasons": self.reasons,
            "unseen_categories": self.unseen,
            "replayed_batches": {str(number): model for number, model in self.replayed.items()},
            "model_age_s": self.model_age_s,
        }

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in self.as_json().items())
        return f"<table>{rows}</table>"
