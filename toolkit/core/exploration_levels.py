"""The values of one column as levels with counts, and every figure that follows from them.

Counts add up over batches, so that the same figures come from a frame in memory, where a level is one value and all is exact, and from
partitions of a large table, where a level may be an interval between two values: then its rows count as spread evenly over it in quantiles,
and as equal in ranks.

Shapes: b levels, k label groups, h halves. The last of k + 1 groups is the rows without a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.exploration import Box, Histogram, Measure
from toolkit.core.model import Task

Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

MAX_DISCRETE_VALUES = 12
"""A number with at most so many values is shown value by value."""
NUM_BINS = 30
MAX_BARS = 12
OTHERS = "others"
# Of a class, or of what is missing: an area under a curve of fewer rows says nothing.
MIN_ROWS = 10
# Rows that a category's mean counts beside its own, with the mean of all, so that rare ones stay near it (Micci-Barreca 2001).
PRIOR_ROWS = 10.0
_OUTER_QUANTILES = (0.005, 0.995)
_BOX_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

MEASURES: dict[Task, Measure] = {
    "binary": "auc",
    "multiclass": "mean one-vs-rest auc",
    "regression": "absolute Spearman correlation",
    "ranking": "absolute Spearman correlation",
}


@dataclass(frozen=True)
class Levels:
    """Attributes:
    low, high: (b,) ends of each level, ascending; equal where it is one value. Of categories their places.
    names: (b,) of categories; None for numbers.
    counts: (b, h, k + 1) rows. One half for numbers; the rows of categories are divided at random, to score one half with the other.
    missing: (k + 1,) rows without a value.
    ranks: (b, h) sums of the label's rank over labelled rows, missing_ranks: of those without a value; squares: (h,), missing_square: of
        its square. The rank of a label is the share of labels below it, and half of those equal to it. None where labels are classes.
    has_rest: the last level is all categories that have none of their own.
    """

    low: Doubles
    high: Doubles
    names: tuple[str, ...] | None
    counts: Counts
    missing: Counts
    ranks: Doubles | None = None
    missing_ranks: float = 0.0
    squares: Doubles | None = None
    missing_square: float = 0.0
    has_rest: bool = False

    @property
    def num_rows(self) -> Counts:
        """(b,) of all halves and groups."""
        return np.asarray(self.counts.sum(axis=(1, 2)))

    @property
    def by_group(self) -> Counts:
        """(b, k) labelled rows."""
        return np.asarray(self.counts.sum(axis=1)[:, :-1])


# ---- against the label


def strength(levels: Levels, task: Task) -> float | None:
    """How well the column alone tells the label, 0.5 (areas) or 0 (correlations) … 1; None with fewer than MIN_ROWS rows a class."""
    if levels.names is None:
        return _strength(levels.by_group, levels.ranks if levels.ranks is None else levels.ranks[:, 0], levels.squares, task)
    return _cross_fitted(levels, task)


def missing_strength(levels: Levels, task: Task) -> float | None:
    """The same of whether there is a value."""
    present, missing = levels.by_group.sum(axis=0), levels.missing[:-1]
    if min(present.sum(), missing.sum()) < MIN_ROWS:
        return None
    if levels.ranks is None or levels.squares is None:
        return _strength(np.stack([present, missing]), None, None, task)
    ranks = np.array([levels.ranks.sum(), levels.missing_ranks])
    return _strength(np.stack([present, missing]), ranks, levels.squares.sum(keepdims=True) + levels.missing_square, task)


def _strength(by_group: Counts, ranks: Doubles | None, squares: Doubles | None, task: Task) -> float | None:
    if ranks is not None and squares is not None:
        found = spearman(by_group.sum(axis=1), ranks, float(squares[0]))
        return None if found is None else abs(found)
    areas = [area(by_group[:, code], by_group.sum(axis=1) - by_group[:, code]) for code in _judged(by_group.shape[1], task)]
    known = [max(found, 1 - found) for found in areas if found is not None]
    return float(np.mean(known)) if known else None


def _judged(num_groups: int, task: Task) -> Sequence[int]:
    return [1] if task == "binary" else range(num_groups)


def _cross_fitted(levels: Levels, task: Task) -> float | None:
    """Of categories in the order of their label's mean: in each half of the rows by the mean that the other half has, so that a value that
    occurs once, as an identifier's does, tells nothing. The mean of both halves, at least that of chance."""
    labelled = levels.counts[:, :, :-1]
    found = []
    for half, other in ((0, 1), (1, 0)):
        if levels.ranks is not None and levels.squares is not None:
            order, num = _order(levels.ranks[:, other], labelled[:, other].sum(axis=1))
            rows = np.bincount(order, weights=labelled[:, half].sum(axis=1), minlength=num)
            ranks = np.bincount(order, weights=levels.ranks[:, half], minlength=num).astype(np.float64)
            found.append(spearman(rows, ranks, float(levels.squares[half])))
            continue
        areas = []
        for code in _judged(labelled.shape[2], task):
            order, num = _order(labelled[:, other, code], labelled[:, other].sum(axis=1))
            ones = np.bincount(order, weights=labelled[:, half, code], minlength=num)
            all_rows = np.bincount(order, weights=labelled[:, half].sum(axis=1), minlength=num)
            areas.append(area(ones, all_rows - ones))
        known = [each for each in areas if each is not None]
        found.append(float(np.mean(known)) if known else None)
    if any(each is None for each in found):
        return None
    return max(float(np.mean([each for each in found if each is not None])), 0.0 if levels.ranks is not None else 0.5)


def _order(sums: npt.NDArray[Any], rows: Counts) -> tuple[Counts, int]:
    """(b,) places of the levels by their mean, equal where the means are; and how many places there are."""
    mean = sums.sum() / max(rows.sum(), 1)
    means = (sums + PRIOR_ROWS * mean) / (rows + PRIOR_ROWS)
    distinct, order = np.unique(means, return_inverse=True)
    return order.astype(np.int64), len(distinct)


def area(ones: npt.NDArray[Any], zeros: npt.NDArray[Any]) -> float | None:
    """Under the ROC curve of a score that grows with the level; rows of one level are ties. None with fewer than MIN_ROWS on a side."""
    num_ones, num_zeros = float(ones.sum()), float(zeros.sum())
    if min(num_ones, num_zeros) < MIN_ROWS:
        return None
    below = np.cumsum(zeros, dtype=np.float64) - zeros / 2
    return float((ones * below).sum() / (num_ones * num_zeros))


def spearman(rows: npt.NDArray[Any], ranks: Doubles, square: float) -> float | None:
    """Correlation of the level's rank with the label's; 0 where one of them does not vary, None with fewer than MIN_ROWS rows."""
    total = float(rows.sum())
    if total < MIN_ROWS:
        return None
    place = (np.cumsum(rows, dtype=np.float64) - rows / 2) / total
    mean = float(ranks.sum()) / total
    spread = ((rows * place**2).sum() / total - 0.25) * (square / total - mean**2)
    if spread <= 1e-18:
        return 0.0
    return float(np.clip(((place * ranks).sum() / total - 0.5 * mean) / np.sqrt(spread), -1.0, 1.0))


# ---- of numbers


def quantiles(levels: Levels, rows: npt.NDArray[Any], at: Sequence[float]) -> list[float] | None:
    """Linear between neighbouring rows, as numpy's default; None without rows. `rows`: (b,) the counts to take."""
    used = rows > 0
    if not used.any():
        return None
    low, high, rows = levels.low[used], levels.high[used], rows[used]
    ends = np.cumsum(rows)
    positions = np.asarray(at, dtype=np.float64) * (ends[-1] - 1)

    def value(row: Doubles) -> Doubles:
        which = np.minimum(np.searchsorted(ends, row, side="right"), len(ends) - 1)
        inside = (row - (ends[which] - rows[which]) + 0.5) / rows[which]
        return np.asarray(low[which] + (high[which] - low[which]) * inside)

    floor = np.floor(positions)
    lower, upper = value(floor), value(np.minimum(floor + 1, ends[-1] - 1))
    return [float(x) for x in lower + (upper - lower) * (positions - floor)]


def boxes(levels: Levels, groups: Sequence[str]) -> tuple[Box, ...]:
    """One a label group."""
    found = []
    for code, group in enumerate(groups):
        rows = levels.counts[:, 0, code]
        five = quantiles(levels, rows, _BOX_QUANTILES)
        found.append(Box(group, int(rows.sum()), *(five or (None,) * len(_BOX_QUANTILES))))
    return tuple(found)


def is_discrete(levels: Levels) -> bool:
    used = levels.num_rows > 0
    return bool(used.sum() <= MAX_DISCRETE_VALUES and (levels.low == levels.high)[used].all())


def number_histogram(levels: Levels, *, is_whole: bool, is_boolean: bool, by_group: bool) -> Histogram | None:
    """Value by value where there are few; else in equal bins over what lies between the outer quantiles, if the rest lies far out."""
    rows = levels.num_rows
    if not rows.any():
        return None
    table = levels.by_group if by_group else np.zeros((len(rows), 0), dtype=np.int64)
    if is_discrete(levels):
        used = rows > 0
        names = tuple(str(bool(value)) if is_boolean else number_text(value) for value in levels.low[used])
        return Histogram(None, names, _ints(rows[used]), tuple(_ints(column[used]) for column in table.T))
    low, high = float(levels.low[rows > 0][0]), float(levels.high[rows > 0][-1])
    outer = quantiles(levels, rows, _OUTER_QUANTILES)
    assert outer is not None
    if outer[1] > outer[0] and high - low > 1.5 * (outer[1] - outer[0]):
        low, high = outer
    unit = 1.0 if is_whole else _unit(levels)
    edges: Doubles
    if unit is None:
        edges = np.linspace(low, high, NUM_BINS + 1)
    else:  # as many possible values in each bin: other bins make a comb of rounded numbers
        first, last = round(low / unit), round(high / unit)
        step = max(1, -(-(last - first + 1) // NUM_BINS))
        edges = np.asarray((first - 0.5 + step * np.arange(-(-(last - first + 1) // step) + 1)) * unit, dtype=np.float64)
    return Histogram(
        tuple(float(edge) for edge in edges), (), _binned(levels, rows, edges), tuple(_binned(levels, each, edges) for each in table.T)
    )


def _unit(levels: Levels) -> float | None:
    """What all values are multiples of: 0.1 … 0.0001; None where they are not rounded."""
    used = levels.num_rows > 0
    values = levels.low[used]
    if (values != levels.high[used]).any():
        return None
    return next((10.0**-digits for digits in range(1, 5) if (np.abs(values - values.round(digits)) <= 1e-9 * np.abs(values)).all()), None)


def _binned(levels: Levels, rows: npt.NDArray[Any], edges: Doubles) -> tuple[int, ...]:
    """(bins,) rows between edges; what lies beyond the outer ones is in the outer bins."""
    before = np.concatenate([[0], np.cumsum(rows)])
    inner = edges[1:-1]
    which = np.searchsorted(levels.low, inner, side="left")  # levels that begin below the edge
    last = np.maximum(which - 1, 0)
    width = levels.high[last] - levels.low[last]
    inside = np.where(width > 0, np.minimum((inner - levels.low[last]) / np.where(width > 0, width, 1.0), 1.0), 1.0)
    below = np.where(which > 0, before[last] + inside * rows[last], 0.0)
    return _ints(np.diff(np.rint(np.concatenate([[0.0], below, [before[-1]]]))))


# ---- of categories


def category_histogram(levels: Levels, *, by_group: bool) -> Histogram | None:
    """The most frequent values; the others together."""
    assert levels.names is not None
    rows = levels.num_rows
    if not rows.any():
        return None
    table = levels.by_group if by_group else np.zeros((len(rows), 0), dtype=np.int64)
    order = np.argsort(-rows, kind="stable")
    order = order[rows[order] > 0]
    named = [place for place in order if not (levels.has_rest and place == len(rows) - 1)]
    shown = named[: MAX_BARS if len(order) <= MAX_BARS else MAX_BARS - 1]
    names = [levels.names[place] for place in shown]
    counts, groups = [int(rows[place]) for place in shown], [[int(column[place]) for place in shown] for column in table.T]
    if len(shown) < len(order):
        names.append(OTHERS)
        counts.append(int(rows.sum()) - sum(counts))
        for column, bars in zip(table.T, groups, strict=True):
            bars.append(int(column.sum()) - sum(bars))
    return Histogram(None, tuple(names), tuple(counts), tuple(tuple(bars) for bars in groups))


def top(levels: Levels, *, is_boolean: bool) -> tuple[str | None, int]:
    """The most frequent value and its rows; None where it is a missing one. Of intervals nothing is known."""
    rows = np.where(levels.low == levels.high, levels.num_rows, 0)
    if levels.has_rest:
        rows[-1] = 0
    num_missing = int(levels.missing.sum())
    if not len(rows) or num_missing >= rows.max():
        return None, num_missing
    place = int(rows.argmax())
    if levels.names is not None:
        return levels.names[place], int(rows[place])
    return str(bool(levels.low[place])) if is_boolean else number_text(levels.low[place]), int(rows[place])


def number_text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _ints(values: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
