"""From a label's values to its task, its metric, and the class that is looked for; each choice with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from toolkit.core.column_kinds import Kind, infinite_values, kind_of, plain
from toolkit.core.errors import DataError
from toolkit.core.model import Task

MOST_CLASSES = 100
MOST_CODES = 20
"""Whole numbers with so many different values may be classes."""
RARE_POSITIVES = 0.05
WORDS_FOR_YES = frozenset({"1", "churned", "j", "ja", "pos", "positive", "t", "true", "y", "yes"})


@dataclass(frozen=True)
class Label:
    """What is predicted.

    Attributes:
        classes: sorted, the positive one last, with the rows of each; None: a regression.
        floor: what a model that looks at no feature reaches in `metric`: guessing, the classes' shares, or the mean.
        margin: a difference of `metric` that hardly matters.
        reason: why this task; alternative: the other task that the values would allow, or None.
        num_missing: rows without a label, which cannot be trained on.
        positive_reason: why this class is looked for, of a binary label. is_positive_named: the experiment must name it, for which class
            is meant does not go without saying, as it does of 0 and 1.
    """

    name: str
    task: Task
    objective: str
    metric: str
    direction: Literal["maximize", "minimize"]
    classes: Mapping[Any, int] | None
    floor: float
    margin: float
    reason: str
    alternative: Task | None
    num_missing: int
    positive_reason: str = ""
    is_positive_named: bool = False

    @property
    def positive(self) -> Any:
        """The class that is looked for; None: the label is not binary."""
        return None if self.classes is None or self.task != "binary" else list(self.classes)[-1]

    @property
    def positive_share(self) -> float:
        """Of the labelled rows."""
        assert self.classes is not None
        return self.classes[self.positive] / sum(self.classes.values())


def label_of(column: pd.Series[Any]) -> Label:
    """Look at the whole label column.

    Raises:
        DataError: it is constant or missing, holds dates, lists or mixed values, or free text.
    """
    name = str(column.name)
    kind = kind_of(column)
    present = column[~infinite_values(column)].dropna()
    num_missing = len(column) - len(present)
    if present.empty:
        raise DataError(f"--label {name!r}: needs values", got=f"{len(column):,} rows, all missing", next_step="name another column")
    if kind in ("date", "other"):
        types = " and ".join(sorted({type(value).__name__ for value in present.iloc[:1000]}))
        what = "dates" if kind == "date" else types
        raise DataError(f"--label {name!r}: must be numbers or classes", got=what, next_step="make a number or classes of it first")
    counts = _counts(present)
    if len(counts) == 1:
        raise DataError(
            f"--label {name!r}: needs at least two values",
            got=f"{_shown(next(iter(counts)))} in all {len(present):,} rows",
            next_step="name another column",
        )
    if kind == "text" and len(counts) > MOST_CLASSES:
        raise DataError(
            f"--label {name!r}: at most {MOST_CLASSES} classes",
            got=f"{len(counts):,} different texts in {len(present):,} rows",
            next_step="group the rare ones, or name another column",
        )
    task, reason, alternative = _task(kind, counts, len(present))
    if task == "regression":
        numbers = pd.to_numeric(present).astype(float)
        spread = float(numbers.std(ddof=0))
        margin = _rounded(spread / 100)
        return Label(name, task, "reg:squarederror", "rmse", "minimize", None, _rounded(spread), margin, reason, alternative, num_missing)
    if task == "multiclass":
        shares = np.array(list(counts.values())) / len(present)
        entropy = _rounded(float(-(shares * np.log(shares)).sum()))
        return Label(name, task, "multi:softprob", "mlogloss", "minimize", counts, entropy, 0.01, reason, alternative, num_missing)
    positive, why = _positive(counts)
    is_named = not set(counts) <= {0, 1}
    counts = {**{value: num for value, num in counts.items() if value != positive}, positive: counts[positive]}
    share = counts[positive] / len(present)
    metric, floor = ("aucpr", _rounded(share)) if share < RARE_POSITIVES else ("auc", 0.5)
    return Label(name, task, "binary:logistic", metric, "maximize", counts, floor, 0.01, reason, alternative, num_missing, why, is_named)


def _positive(counts: Mapping[Any, int]) -> tuple[Any, str]:
    """Which of two classes is looked for, and why."""
    first, last = counts
    if set(counts) <= {0, 1}:
        return last, "the second of the two"
    # Of numbers 1 says yes only beside -1: where 1 and 2 are codes, either may be meant.
    yes = [value for value in counts if str(value).strip().lower() in WORDS_FOR_YES and (isinstance(value, str) or first == -1)]
    if len(yes) == 1:
        return yes[0], "it says yes"
    if counts[first] == counts[last]:
        return last, "the second in order, of two that are equally frequent"
    return min(counts, key=lambda value: counts[value]), "the rarer of the two"


def _task(kind: Kind, counts: Mapping[Any, int], num_rows: int) -> tuple[Task, str, Task | None]:
    """The task, why, and what else it could be."""
    num = len(counts)
    if num == 2:
        return "binary", "two values", None
    if kind == "text":
        some = ", ".join(map(_shown, list(counts)[:5])) + (", …" if num > 5 else "")
        return "multiclass", f"{num} different texts ({some})", None
    values = list(counts)
    if any(float(value) != int(value) for value in values):
        return "regression", "numbers with fractions", None
    if num > MOST_CODES:
        return "regression", f"{num:,} different whole numbers", None
    # Codes count from 0 or 1 without a gap, and none of them is a tenth as rare as even shares would be; a tail that thins out is a count.
    low, high = int(values[0]), int(values[-1])
    are_codes = low in (0, 1) and high - low == num - 1 and min(counts.values()) * num * 10 >= num_rows
    if are_codes:
        return "multiclass", f"the whole numbers {low} to {high}, none rare: read as codes of {num} classes", "regression"
    why = f"{num} different whole numbers from {low} to {high}, not even codes from 0 or 1: read as amounts"
    return "regression", why, "multiclass"


def _counts(present: pd.Series[Any]) -> dict[Any, int]:
    """Rows of each value, sorted as the classes of an experiment are."""
    found = {plain(value): int(count) for value, count in present.value_counts().items() if count}
    return dict(sorted(found.items()))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
