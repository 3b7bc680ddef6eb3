"""Reference profiles: what a model's features and scores looked like at training, small enough to travel with it as JSON.

Monitoring compares later rows with them, so all is kept as counts in fixed bins, which add up over batches. Every kind has the same shape:
`{"kind", "missing", "counts", …}`, where `counts` leaves the missing values out. Shapes: n rows, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_BINS = 20
# A number with at most so many values is counted value by value: quantiles of 0 and 1 would put all rows into one bin.
MAX_DISCRETE_VALUES = 20


def reference_profile(
    features: npt.NDArray[np.float32],
    names: Sequence[str],
    categories: Mapping[str, Sequence[Any]],
    score: npt.NDArray[np.float32] | None,
) -> dict[str, Any]:
    """Profile of the rows that a model is fitted on, and of its scores of rows that it had not seen.

    Args:
        features: (n, d), categories as their places in `categories`.
        score: (m,) or, for classes, (m, k); None where there are none.

    Returns:
        `{"num_rows", "features": {name: profile}, "score": profile | [profile a class] | None}`.
    """
    by_name = {
        name: category_profile(features[:, number], categories[name]) if name in categories else number_profile(features[:, number])
        for number, name in enumerate(names)
    }
    scores: Any = None
    if score is not None:
        scores = number_profile(score) if score.ndim == 1 else [number_profile(score[:, code]) for code in range(score.shape[1])]
    return {"num_rows": len(features), "features": by_name, "score": scores}


def number_profile(values: npt.NDArray[Any]) -> dict[str, Any]:
    """`discrete`: `values` and their counts; `number`: `edges` of NUM_BINS quantile bins and counts. Edge i and i + 1 bound bin i, which
    holds its lower edge, the last one both. Mean and standard deviation leave the missing values out."""
    present = values[~np.isnan(values)].astype(np.float64)
    missing = int(len(values) - len(present))
    summary = {
        "missing": missing,
        "mean": float(present.mean()) if len(present) else None,
        "std": float(present.std()) if len(present) else None,
    }
    distinct, counts = np.unique(present, return_counts=True)
    if len(distinct) <= MAX_DISCRETE_VALUES:
        return {"kind": "discrete", **summary, "values": distinct.tolist(), "counts": counts.tolist()}
    edges = np.unique(np.quantile(present, np.linspace(0, 1, NUM_BINS + 1)))
    return {"kind": "number", **summary, "edges": edges.tolist(), "counts": np.histogram(present, edges)[0].tolist()}


def category_profile(codes: npt.NDArray[Any], categories: Sequence[Any]) -> dict[str, Any]:
    """Counts by category, in the order of `categories`."""
    present = codes[~np.isnan(codes)].astype(np.int64)
    counts = np.bincount(present, minlength=len(categories))
    return {"kind": "category", "missing": int(len(codes) - len(present)), "categories": list(categories), "counts": counts.tolist()}
