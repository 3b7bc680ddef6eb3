"""What is counted of one batch of rows, in a form that adds up: runs where the rows are, in the executors of Spark too.

There this module travels by value, because the toolkit may not be installed: it imports nothing of it at its top. A partial result is a
mapping of arrays by name; what adds up is summed, and `merge_surveys` knows the rest.

Shapes: n rows, e edges, k label groups (the last of k + 1: no label), c categories, h halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Partial = dict[str, npt.NDArray[Any]]

NUM_SMALLEST = 4096
"""Hashes kept to count different values: exact up to so many, then with a standard error of 1.6 %."""


# ---- different values: the smallest hashes (Bar-Yossef et al. 2002, "counting distinct elements in a data stream")


def smallest(hashes: Hashes, kept: Hashes) -> Hashes:
    """The NUM_SMALLEST smallest different ones of both, ascending; `kept` is such a result."""
    if len(kept) >= NUM_SMALLEST:
        hashes = hashes[hashes < kept[-1]]
    found = np.sort(np.concatenate([kept, hashes]))  # np.unique hashes them first, and takes twenty times as long
    is_new = np.diff(found, prepend=~found[:1]) != 0
    return np.asarray(found[is_new][:NUM_SMALLEST], dtype=np.uint64)


def num_distinct(kept: Hashes) -> int:
    if len(kept) < NUM_SMALLEST:
        return len(kept)
    return round((NUM_SMALLEST - 1) / (float(kept[-1]) / 2**64))


# ---- levels: edges, and the open intervals between them


def places(values: Doubles, edges: Doubles) -> Codes:
    """(n,) levels 0 … 2 e: 2 i is what lies below edge i (and above the one before), 2 i + 1 the edge itself."""
    # A search for each edge among the sorted values, not for each value among the edges: a third of the time.
    order = np.argsort(values)
    bounds = np.stack([np.searchsorted(values, edges, side=side, sorter=order) for side in ("left", "right")], axis=1).ravel()
    level = np.empty(len(values), dtype=np.int64)
    level[order] = np.repeat(np.arange(2 * len(edges) + 1), np.diff(bounds, prepend=0, append=len(values)))
    return level


def ends(edges: Doubles) -> tuple[Doubles, Doubles]:
    """(2 e + 1,) lower and upper ends of the levels. Nothing lies beyond the outer edges, which are the extremes."""
    low, high = np.repeat(edges, 2), np.repeat(edges, 2)
    return np.concatenate([edges[:1], low]), np.concatenate([high, edges[-1:]])


def tally(
    level: Codes,
    num_levels: int,
    is_there: npt.NDArray[np.bool_],
    halves: Codes | None,
    groups: Codes,
    num_groups: int,
    ranks: Doubles | None,
) -> Partial:
    """Rows of a batch by level, half and label group, as `exploration_levels.Levels` holds them.

    Args:
        level: (rows that are there,) 0 … b-1. is_there: (n,) whether a row has a value.
        halves: (n,) 0 or 1 for categories; None for numbers, which are not divided.
        groups: (n,) 0 … k, k where there is no label. num_groups: k.
        ranks: (n,) of the label, 0 where there is none; None for classes.
    """
    width, num_halves = num_groups + 1, 1 if halves is None else 2
    half = np.zeros(len(level), dtype=np.int64) if halves is None else halves[is_there]
    cell = level * num_halves + half
    counts = np.bincount(cell * width + groups[is_there], minlength=num_levels * num_halves * width)
    found: Partial = {
        "counts": counts.reshape(num_levels, num_halves, width),
        "missing": np.bincount(groups[~is_there], minlength=width),
    }
    if ranks is not None:
        own, gone = ranks[is_there], ranks[~is_there]
        found["ranks"] = np.bincount(cell, weights=own, minlength=num_levels * num_halves).reshape(num_levels, num_halves)
        found["squares"] = np.bincount(half, weights=own**2, minlength=num_halves)
        found["missing_ranks"] = np.array([gone.sum(), (gone**2).sum()])
    return found


def products(values: Doubles, means: Doubles) -> Partial:
    """Sums for the correlation of every pair of columns over the rows in which both have a value: (n, d), NaN where there is none; less
    their means, so that nothing large cancels. `num`: rows; `sums`: of column i where j has a value; `squares`; `cross`: of i times j."""
    present = np.isfinite(values)
    mask = present.astype(np.float64)
    centred = np.where(present, values - means, 0.0)
    return {"num": mask.T @ mask, "sums": centred.T @ mask, "squares": (centred**2).T @ mask, "cross": centred.T @ centred}


def added(one: Partial | None, other: Partial) -> Partial:
    return other if one is None else {name: one[name] + array for name, array in other.items()}


# ---- the survey that comes before: what edges and categories are chosen from


def survey_numbers(values: Doubles, hashes: Hashes, is_sampled: npt.NDArray[np.bool_], kept: Hashes) -> Partial:
    """Of a batch of numbers.

    Args:
        values: (n,), NaN where missing. hashes: (n,) of the raw values. is_sampled: (n,) rows that are kept to choose edges from.
        kept: the smallest hashes of the batches before.
    """
    finite = np.isfinite(values)
    present = values[finite]
    return {
        "num": np.array([len(values), int(np.isnan(values).sum()), int(np.isinf(values).sum())]),
        "sum": np.array([present.sum()]),
        "fractions": np.array([int((present != np.floor(present)).sum())]),
        "low": np.array([present.min() if len(present) else np.inf]),
        "high": np.array([present.max() if len(present) else -np.inf]),
        "smallest": smallest(hashes[~np.isnan(values)], kept),
        "sample": values[finite & is_sampled],
    }


def merge_surveys(parts: Sequence[Partial]) -> Partial:
    """Of batches or of partitions."""
    found: Partial = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name == "low":
            found[name] = np.min(arrays, axis=0)
        elif name == "high":
            found[name] = np.max(arrays, axis=0)
        elif name == "smallest":
            found[name] = smallest(np.concatenate(arrays), arrays[0])
        elif name in ("sample", "hashes"):
            found[name] = np.concatenate(arrays)
        else:
            found[name] = np.sum(arrays, axis=0)
    return found


def merge_counts(parts: Sequence[Mapping[str, int]], keep: int | None = None) -> dict[str, int]:
    """Rows by value; the `keep` most frequent."""
    found: dict[str, int] = {}
    for part in parts:
        for value, count in part.items():
            found[value] = found.get(value, 0) + count
    if keep is None or len(found) <= keep:
        return found
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:keep])
