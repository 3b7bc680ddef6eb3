"""What an exploration finds: the numbers of its report and of `toolkit explore --json`, whichever engine counted them.

Shapes: k label groups, which are the classes or, for numbers, about equal shares of the rows by the label's value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.core.model import Task

Role = Literal["feature", "label", "key", "exclude", "time", "group", "weight"]
Kind = Literal["number", "boolean", "category", "time", "other"]
Measure = Literal["auc", "mean one-vs-rest auc", "absolute Spearman correlation"]

NEAR_CONSTANT_SHARE = 0.99
"""Above it, one value (a missing one is a value, too) leaves a column almost nothing to tell."""


@dataclass(frozen=True)
class Histogram:
    """Rows by value: the missing and the infinite are left out.

    Attributes:
        edges: of equal bins, one more than there are bins; each holds its lower edge, the last one both. None for values one by one. Rows
            beyond the outer edges are counted in the outer bins.
        values: names of the bars where there are no bins; the last may be `others`.
        counts: rows in each bar.
        by_group: (k, bars) the same, of each label group; empty where there is no label to divide by.
    """

    edges: tuple[float, ...] | None
    values: tuple[str, ...]
    counts: tuple[int, ...]
    by_group: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Box:
    """A number in one label group. `low` and `high` are the quantiles 0.05 and 0.95. All None where the group has no value."""

    group: str
    num_rows: int
    low: float | None
    q25: float | None
    median: float | None
    q75: float | None
    high: float | None


@dataclass(frozen=True)
class Column:
    """One column of the table. Figures of numbers are None for other kinds; those against the label for what is no feature.

    Attributes:
        type: as the engine that read the table calls it.
        num_distinct: different values, a missing one not counted.
        top_value, top_share: the most frequent value, None for a missing one, and its share of all rows.
        mean … max: of the values that are there and finite. Times are seconds since 1970, UTC.
        strength: how well the column alone tells the label, in `measure`, on rows that have a value; None with too few of them. Categories
            are scored by their label's mean, each half of the rows with the means of the other half.
        missing_by_group: (k,) rows of each label group without a value; empty where it is not compared with the label.
        missing_strength: how well it tells the label that the value is missing; None where too few are, or too few are not.
    """

    name: str
    role: Role
    kind: Kind
    type: str
    num_missing: int
    missing_share: float
    num_infinite: int
    num_distinct: int
    top_value: str | None
    top_share: float
    is_constant: bool
    is_near_constant: bool
    is_identifier: bool
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    q25: float | None = None
    median: float | None = None
    q75: float | None = None
    max: float | None = None
    histogram: Histogram | None = None
    boxes: tuple[Box, ...] = ()
    measure: Measure | None = None
    strength: float | None = None
    missing_by_group: tuple[int, ...] = ()
    missing_strength: float | None = None


@dataclass(frozen=True)
class Pair:
    first: str
    second: str
    correlation: float


@dataclass(frozen=True)
class Correlations:
    """Pearson's, each of the rows in which both columns have a value; None where one of them does not vary.

    `values` is square, in the order of `names`; `strongest` are the pairs of largest absolute value, of all numeric features.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    strongest: tuple[Pair, ...]


@dataclass(frozen=True)
class Duplicates:
    """`num_rows`: rows whose features are all equal to those of an earlier row. The other two are None without a key."""

    num_rows: int
    share: float
    num_repeated_keys: int | None
    num_missing_keys: int | None


@dataclass(frozen=True)
class PartFigures:
    """One part of the split. `by_group`: (k,) rows of each label group; mean and std of the label, None for classes."""

    name: str
    num_rows: int
    by_group: tuple[int, ...]
    label_mean: float | None
    label_std: float | None


@dataclass(frozen=True)
class Overlap:
    """`num_rows` rows of `part` have the features (`what` is "rows") or the group ("groups") of a row of `other`."""

    what: Literal["rows", "groups"]
    part: str
    other: str
    num_rows: int
    share: float


@dataclass(frozen=True)
class SplitFigures:
    description: str
    parts: tuple[PartFigures, ...]
    overlaps: tuple[Overlap, ...]


@dataclass(frozen=True)
class Finding:
    """Something to act on.

    Attributes:
        kind: `tells_label`, `missing_tells_label`, `identifier`, `rows_in_both_parts`, `groups_in_both_parts` (suspects of leakage);
            `constant`, `near_constant`, `infinite`, `label_missing`, `keys_repeated`, `keys_missing`, `not_trainable` (remarks).
        column: None where it is about the table.
        figure: the number behind it.
        what, advice: sentences.
    """

    kind: str
    column: str | None
    figure: float | None
    what: str
    advice: str


@dataclass(frozen=True)
class Exploration:
    """Attributes:
    engine: `pandas`: exact numbers; `spark`: counts of all rows, from which some numbers are approximated: `approximate` says which.
    memory_bytes: of the table where it was read: pandas' own, or Arrow's.
    groups: names of the k label groups, the positive class last; `group_counts`: rows of each; `num_unlabelled`: rows without a label,
        which are in none.
    split: None where it was not drawn; `split_note` says why.
    suspects: of leakage; `remarks`: what else should be mended or known.
    """

    engine: Literal["pandas", "spark"]
    approximate: tuple[str, ...]
    task: Task
    label: str
    num_rows: int
    num_features: int
    memory_bytes: int
    groups: tuple[str, ...]
    group_counts: tuple[int, ...]
    num_unlabelled: int
    columns: tuple[Column, ...]
    duplicates: Duplicates
    correlations: Correlations
    split: SplitFigures | None = None
    split_note: str = ""
    suspects: tuple[Finding, ...] = ()
    remarks: tuple[Finding, ...] = ()

    @property
    def num_columns(self) -> int:
        return len(self.columns)

    @property
    def positive(self) -> str | None:
        """The class of a binary label that is looked for."""
        return self.groups[1] if self.task == "binary" else None

    @property
    def features(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.role == "feature")

    @property
    def predictors(self) -> tuple[Column, ...]:
        """Features that have a strength, the strongest first."""
        known = [column for column in self.features if column.strength is not None]
        return tuple(sorted(known, key=lambda column: (-(column.strength or 0.0), column.name)))

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def as_json(self) -> dict[str, Any]:
        predictors = [{"name": c.name, "measure": c.measure, "strength": c.strength} for c in self.predictors]
        return {**dataclasses.asdict(self), "positive": self.positive, "num_columns": self.num_columns, "predictors": predictors}
