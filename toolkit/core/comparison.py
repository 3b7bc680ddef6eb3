"""Is the challenger worse than the champion? A paired bootstrap on the rows that both have predicted.

What is drawn again are units: rows (equal ones together: copies would otherwise narrow the bound), or the queries of a ranking, or the
groups that the split keeps together, for rows of one group are not independent. The seed is fixed: judging twice gives the same bound.

- Up to EXACT_ROWS, the figure of every draw is computed exactly.
- Beyond, the units are dealt at random into NUM_BLOCKS blocks, whose sums are drawn; a figure of the order, such as the area
  under a curve, is linearised first (`core.figures`).

Shapes: n rows, u units, m sums, b draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.figures import Codes, Doubles, MetricOf, Order, Prediction, Rows, Sums, figure_of
from toolkit.core.metrics import larger_is_better
from toolkit.core.row_hashes import Hashes

EXACT_ROWS = 20_000
NUM_DRAWS = 2_000
NUM_BLOCKS = 4_096
CONFIDENCE = 0.95
SEED = 20_261

DRAWS_AT_ONCE = 100


@dataclass(frozen=True)
class Units:
    """What is drawn. `codes`: (n,) 0 … u-1; `are_rows`: rather than groups of different rows; `name` in the plural."""

    codes: Codes
    num: int
    are_rows: bool
    name: str


def units_of(rows: Rows, row_hashes: Hashes | None = None) -> Units:
    """Args:
    row_hashes: (n,) of the features; None where all rows are known to differ.
    """
    if rows.task == "ranking":
        return _coded(rows.queries[1], False, "queries")
    if rows.unit is not None:
        return _coded(rows.unit, False, "groups")
    num_rows = len(rows.label)
    if row_hashes is not None:
        in_order = np.sort(row_hashes)  # a tenth of the time that the codes take
        if (in_order[1:] == in_order[:-1]).any():
            return _coded(row_hashes, True, "different rows")
    return Units(np.arange(num_rows), num_rows, True, "rows")


def _coded(values: npt.NDArray[Any], are_rows: bool, name: str) -> Units:
    distinct, codes = np.unique(values, return_inverse=True)
    return Units(codes.astype(np.int64), len(distinct), are_rows, name)


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    difference: of the figures; positive where the challenger is better, whichever way the metric improves.
    bound: its lower one-sided 95 % bound; minus infinity where too many draws have no figure, because a class is too rare.
    method: in words, for the report.
    """

    difference: float
    bound: float
    method: str


def compare(
    metric: str, rows: Rows, challenger: Prediction, champion: Prediction, metric_of: MetricOf, units: Units | None = None
) -> Comparison:
    """The difference of a metric, and how bad it may really be. On few units the bound is too narrow: that is for the caller to refuse.

    Args:
        metric_of: asked for the figure of each query of a ranking.
        units: default: those of `rows`, none of them equal.

    Raises:
        ValueError: the metric is none of the task's, or a prediction is not finite.
    """
    if not all(np.isfinite(prediction.values).all() for prediction in (challenger, champion)):
        raise ValueError("predictions must be finite")
    units = units or units_of(rows)
    unit, num_units = units.codes, units.num
    method = f"{NUM_DRAWS:,} draws of {num_units:,} {units.name}"
    pair = [figure_of(metric, rows, prediction, metric_of) for prediction in (challenger, champion)]
    orders = [figure for figure in pair if isinstance(figure, Order)]
    if orders and len(rows.label) <= EXACT_ROWS:
        whole, drawn = _draw_orders(orders, rows.weights, unit, num_units)
    else:
        if num_units > EXACT_ROWS:
            method = f"{NUM_DRAWS:,} draws of {NUM_BLOCKS:,} random blocks of the {num_units:,} {units.name}"
            unit, num_units = np.random.default_rng(SEED).permutation(num_units)[unit] % NUM_BLOCKS, NUM_BLOCKS
        sums = [figure.linear() if isinstance(figure, Order) else figure for figure in pair]
        whole, drawn = _draw_sums(sums, unit, num_units)
    sign = 1.0 if larger_is_better(metric) else -1.0
    differences = sign * (drawn[0] - drawn[1])
    differences[np.isnan(differences)] = -math.inf  # a draw without a figure must not speak for the challenger
    bound = float(np.quantile(differences, 1 - CONFIDENCE, method="lower"))
    return Comparison(sign * (whole[0] - whole[1]), bound, method)


def _draws(num_units: int) -> Iterator[Doubles]:
    """How often each unit is drawn: (u,), NUM_DRAWS times."""
    generator = np.random.default_rng(SEED)
    for _ in range(NUM_DRAWS):
        yield np.bincount(generator.integers(0, num_units, num_units), minlength=num_units).astype(np.float64)


def _draw_orders(pair: Sequence[Order], weights: Doubles, unit: Codes, num_units: int) -> tuple[list[float], Doubles]:
    """The two figures, and (2, b) of the draws."""
    drawn = np.array([[figure.exact(counts[unit] * weights) for figure in pair] for counts in _draws(num_units)])
    return [figure.exact(weights) for figure in pair], drawn.T


def _draw_sums(pair: Sequence[Sums], unit: Codes, num_units: int) -> tuple[list[float], Doubles]:
    """The two figures, and (2, b) of the draws."""
    totals = [np.stack([np.bincount(unit, weights=column, minlength=num_units) for column in figure.columns()], axis=1) for figure in pair]
    whole = [float(figure.of(total.sum(axis=0, keepdims=True))[0]) for figure, total in zip(pair, totals, strict=True)]
    drawn = np.empty((2, NUM_DRAWS))
    draws = _draws(num_units)
    for start in range(0, NUM_DRAWS, DRAWS_AT_ONCE):
        counts = np.stack([next(draws) for _ in range(DRAWS_AT_ONCE)])
        for place, (figure, total) in enumerate(zip(pair, totals, strict=True)):
            drawn[place, start : start + DRAWS_AT_ONCE] = figure.of(counts @ total)
    return whole, drawn
