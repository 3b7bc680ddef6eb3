"""What batch scoring is about: the model as a scorer needs it, what is stamped on every row, and what is counted of every batch.

Two engines execute it (`engines.spark_scoring` and `engines.files_scoring`); names, reasons and arithmetic are the same for both.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from toolkit.core.errors import ScoringError, nearest

Mode = Literal["incremental", "window", "full"]
ModelKind = Literal["portable", "sparkml", "pyfunc"]
Duplicates = Literal["keep", "quarantine", "refuse"]
Multiclass = Literal["array", "argmax"]

PREDICTION, LABEL, EXPLANATION = "prediction", "predicted_label", "explanation"
MODEL_NAME, MODEL_VERSION, MODEL_SHA256 = "model_name", "model_version", "model_sha256"
SCORING_RUN_ID, BATCH_ID, SCORED_AT = "scoring_run_id", "batch_id", "scored_at_utc"
STAMP_COLUMNS = (MODEL_NAME, MODEL_VERSION, MODEL_SHA256, SCORING_RUN_ID, BATCH_ID, SCORED_AT)
SCORE_COLUMNS = (PREDICTION, LABEL, EXPLANATION, *STAMP_COLUMNS)
REASON, RAW_ROW, QUARANTINED_AT = "quarantine_reason", "raw_row", "quarantined_at_utc"

# Reasons of the quarantine; those of a column are followed by ": COLUMN". A row with several has the first in this order, of columns the
# model's first.
MALFORMED, KEY_MISSING, UNCASTABLE, INFINITE, KEY_DUPLICATED, NATIVE_CRASH = (
    "malformed",
    "key_missing",
    "uncastable",
    "infinite",
    "key_duplicated",
    "native_crash",
)

CORRUPT = "_corrupt_record"
"""A line of a CSV file that could not be taken apart; null in all other rows."""

STATE_FOLDER = "_toolkit"
"""In the folder of an output, hidden from Spark and Delta: lease, checkpoints, plans and manifests."""


@dataclass(frozen=True)
class Feature:
    """`categories`: the known values of a categorical feature, in the order of their codes; None for a number."""

    name: str
    categories: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class ScoringModel:
    """One version of a registered model, fetched once by the driver.

    Attributes:
        kind: `portable` has a spec and a payload, which is all that an executor gets; `sparkml` and `pyfunc` are MLflow's own, in `folder`.
        sha256: 64 hex digits, of the payload; without one, of all files of the model.
        features: ordered; of a model without a spec, the columns of its signature.
        classes, threshold, task: of the spec; None, None and "" without one.
        folder: the downloaded MLflow model, on this machine.
    """

    name: str
    version: int
    kind: ModelKind
    sha256: str
    features: tuple[Feature, ...]
    folder: Path
    created_unix_s: float
    spec: Mapping[str, Any] | None = None
    payload: bytes = b""

    @property
    def task(self) -> str:
        return "" if self.spec is None else str(self.spec["task"])

    @property
    def classes(self) -> tuple[Any, ...] | None:
        found = None if self.spec is None else self.spec["classes"]
        return None if found is None else tuple(found)

    @property
    def threshold(self) -> float | None:
        """A probability above it is the second class; 0.5 where a binary model names none."""
        if self.task != "binary" or self.spec is None:
            return None
        found = self.spec["threshold"]
        return 0.5 if found is None else float(found)

    @property
    def key(self) -> str | None:
        return None if self.spec is None else self.spec["key"]

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Stamp:
    """On every row that is scored. `scored_at_utc`: one moment a batch, with a time zone; `model_sha256`: 12 hex digits."""

    model_name: str
    model_version: int
    model_sha256: str
    scoring_run_id: str
    batch_id: int
    scored_at_utc: datetime.datetime

    @classmethod
    def of(cls, model: ScoringModel, scoring_run_id: str, batch_id: int, scored_at_utc: datetime.datetime) -> Stamp:
        return cls(model.name, model.version, model.sha256[:12], scoring_run_id, batch_id, scored_at_utc)


@dataclass(frozen=True)
class RowRules:
    """What makes a row bad, and how many may be.

    Attributes:
        key: column that must not be null; None: rows are not checked for one.
        duplicates: what becomes of rows whose key occurs more than once in a batch; of those that are quarantined, all copies are.
        max_bad_share: 0 to 1; above it a batch is not committed.
        keep: columns of the input in the output; None: all.
        multiclass: `array`: a probability for each class; `argmax`: that of the likeliest one, beside its label.
        explain: how many features' contributions a row gets; 0: none.
    """

    key: str | None = None
    duplicates: Duplicates = "keep"
    max_bad_share: float = 0.05
    keep: tuple[str, ...] | None = None
    multiclass: Multiclass = "array"
    explain: int = 0


def with_key(rules: RowRules, model: ScoringModel, names: Sequence[str], location: str, notices: list[str]) -> RowRules:
    """The rules for an input with the columns `names`: their key, else the model's where it is there. `notices` hears that it is not.

    Raises:
        ScoringError: the key that was asked for is not there, or one is needed.
    """
    if rules.key is not None:
        if rules.key not in names:
            raise ScoringError(f"--key: must be a column of {location}", got=repr(rules.key), next_step=nearest(rules.key, names))
        return rules
    if model.key is not None and model.key in names:
        return replace(rules, key=model.key)
    if rules.duplicates != "keep":
        raise ScoringError(f"--duplicates {rules.duplicates} needs a key", got="none", next_step="name one with --key")
    if model.key is not None:
        notices.append(f"{location} has no column {model.key!r}, the model's key: rows are not checked for one")
    return rules


def check_delta_names(names: Iterable[str], location: str) -> None:
    """Raises ScoringError: a new Delta table cannot have such columns (without column mapping, which not every reader knows)."""
    wrong = [name for name in names if set(name) & set(" ,;{}()\n\t=")]
    if wrong:
        raise ScoringError(
            "output: names of Delta's columns must be without blanks and any of ,;{}()=",
            got=f"{', '.join(map(repr, wrong[:3]))} in {location}",
            next_step="write Parquet (--output parquet:PATH), leave the columns out by --keep, or rename them",
        )


@dataclass(frozen=True)
class BatchCounts:
    """Of one batch: `reasons` sums to `num_quarantined_rows`; `unseen` counts values of categorical features that training did not see,
    by feature."""

    num_input_rows: int
    num_scored_rows: int
    num_quarantined_rows: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    unseen: Mapping[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """The promise of scoring: every row is in one of the two places."""
        assert self.num_input_rows == self.num_scored_rows + self.num_quarantined_rows, (
            f"{self.num_input_rows} rows in, {self.num_scored_rows} scored, {self.num_quarantined_rows} quarantined"
        )

    @property
    def bad_share(self) -> float:
        return self.num_quarantined_rows / self.num_input_rows if self.num_input_rows else 0.0
