"""From counts to the columns of an exploration, and to the correlations between them.

Shapes: n rows, d numeric columns, k label groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.exploration import NEAR_CONSTANT_SHARE, Box, Column, Correlations, Kind, Pair, Role
from toolkit.core.exploration_levels import (
    MEASURES,
    Levels,
    boxes,
    category_histogram,
    is_discrete,
    missing_strength,
    number_histogram,
    quantiles,
    strength,
    top,
)
from toolkit.core.model import Task

# Nearly every row has a value of its own. Below one, for the counts of large tables are estimates.
IDENTIFIER_SHARE = 0.95
MIN_IDENTIFIER_ROWS = 100
MAX_CORRELATED = 40
"""Columns of the correlation matrix: the strongest predictors where there are more."""
MAX_PAIRS = 20
# What float64's rounding leaves of the spread of a column that does not vary, relative to its squares.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Facts:
    """What is known of a column beside its levels. `is_whole`: all its numbers are; mean … max leave out the missing and infinite."""

    name: str
    kind: Kind
    type: str
    num_missing: int
    num_infinite: int
    num_distinct: int
    is_whole: bool = False
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None


def column_of(
    facts: Facts, levels: Levels | None, role: Role, groups: Sequence[str], task: Task, num_rows: int, num_different: int
) -> Column:
    """
    Args:
        levels: None where the column's values are not looked at (nested ones).
        num_different: rows less those that repeat an earlier one, whose identifiers are repeated, too.
    """
    num_present = num_rows - facts.num_missing
    top_value, num_top = top(levels, is_boolean=facts.kind == "boolean") if levels else (None, facts.num_missing)
    top_share = max(num_top, facts.num_missing) / num_rows
    is_constant = facts.num_distinct + (facts.num_missing > 0) <= 1
    has_own_values = facts.kind == "category" or (facts.kind == "number" and facts.is_whole)
    num_own = min(num_present, num_different)
    is_identifier = has_own_values and num_own >= MIN_IDENTIFIER_ROWS and facts.num_distinct >= IDENTIFIER_SHARE * num_own
    against_label = role in ("feature", "exclude")
    is_number = facts.kind in ("number", "boolean", "time")
    histogram, five = None, None
    found_boxes: tuple[Box, ...] = ()
    if levels is not None and is_number:
        histogram = number_histogram(
            levels, is_whole=facts.is_whole, is_boolean=facts.kind == "boolean", by_group=against_label and facts.kind != "time"
        )
        five = quantiles(levels, levels.num_rows, (0.25, 0.5, 0.75))
        if against_label and facts.kind == "number" and not is_discrete(levels):
            found_boxes = boxes(levels, groups)
    elif levels is not None:
        histogram = category_histogram(levels, by_group=against_label)
    is_judged = role == "feature" and levels is not None and facts.kind != "time"
    return Column(
        name=facts.name,
        role=role,
        kind=facts.kind,
        type=facts.type,
        num_missing=facts.num_missing,
        missing_share=facts.num_missing / num_rows,
        num_infinite=facts.num_infinite,
        num_distinct=facts.num_distinct,
        top_value=top_value,
        top_share=top_share,
        is_constant=is_constant,
        is_near_constant=not is_constant and top_share > NEAR_CONSTANT_SHARE,
        is_identifier=is_identifier,
        mean=facts.mean,
        std=facts.std,
        min=facts.min,
        q25=five[0] if five else None,
        median=five[1] if five else None,
        q75=five[2] if five else None,
        max=facts.max,
        histogram=histogram,
        boxes=found_boxes,
        measure=MEASURES[task] if is_judged else None,
        strength=strength(levels, task) if is_judged and levels is not None else None,
        missing_by_group=tuple(int(rows) for rows in levels.missing[:-1]) if against_label and levels is not None else (),
        missing_strength=missing_strength(levels, task) if role == "feature" and levels is not None else None,
    )


# ---- correlations


def correlations(products: Mapping[str, npt.NDArray[Any]], names: Sequence[str], preferred: Sequence[str]) -> Correlations:
    """
    Args:
        products: of `exploration_batches.products`, over all rows; (d, d) each.
        preferred: names in the order in which they have a place in the matrix; the matrix keeps the order of `names`.
    """
    num, sums, squares, cross = (products[name] for name in ("num", "sums", "squares", "cross"))
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = cross - sums * sums.T / num
        spread = squares - sums**2 / num
        is_flat = (num < 2) | (spread <= _NO_SPREAD * squares)
        matrix = np.where(is_flat | is_flat.T, np.nan, np.clip(covariance / np.sqrt(spread * spread.T), -1.0, 1.0))
    shown = set(sorted(names, key=lambda name: preferred.index(name) if name in preferred else len(preferred))[:MAX_CORRELATED])
    places = [place for place, name in enumerate(names) if name in shown]
    upper = np.argwhere(np.triu(np.isfinite(matrix), 1))
    ranked = sorted(upper.tolist(), key=lambda pair: (-abs(matrix[pair[0], pair[1]]), pair))[:MAX_PAIRS]
    return Correlations(
        names=tuple(names[place] for place in places),
        values=tuple(tuple(_or_none(matrix[i, j]) for j in places) for i in places),
        strongest=tuple(Pair(names[i], names[j], float(matrix[i, j])) for i, j in ranked),
    )


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
