"""Features that know the label: what was recorded with it, after it, or is made from it. Each is looked at alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.core.model import Task

SUSPICIOUS = 0.999
"""So well no honest feature alone orders the rows. `toolkit explore` names suspects from 0.99 on: there a person decides, here a column is
left out for it."""


def knows_label(feature: pd.Series[Any], target: npt.NDArray[np.float64], task: Task, *, is_category: bool) -> bool:
    """Whether a feature alone orders the rows as the label does (numbers; two classes, amounts) or tells the classes apart.

    Args:
        feature: (n,), values may be missing. target: (n,) at least two different values; classes as 0 … k-1.
    """
    if is_category:
        codes = pd.factorize(feature, use_na_sentinel=False)[0]
        if codes.max() + 1 > len(target) / 10:  # so few rows a value that any label would be learnt by heart
            return False
    else:
        values = pd.to_numeric(feature.astype(object)).astype(float).to_numpy()
        if task != "multiclass":
            # That a value is missing may be what tells.
            return any(_order(np.nan_to_num(values, nan=end), target, task) >= SUSPICIOUS for end in (-np.inf, np.inf))
        ranks = pd.Series(values).rank(method="average", na_option="top").to_numpy()
        codes = np.minimum(ranks / (len(ranks) + 1) * min(50, len(ranks) // 20), 49).astype(np.int64)
    if task != "multiclass":
        means = np.bincount(codes, weights=target) / np.maximum(np.bincount(codes), 1)
        return _order(means[codes], target, task) >= SUSPICIOUS
    table = np.zeros((codes.max() + 1, int(target.max()) + 1))
    np.add.at(table, (codes, target.astype(np.int64)), 1)
    most_common = table.sum(axis=0).max()
    return bool((table.max(axis=1).sum() - most_common) / (len(target) - most_common) >= SUSPICIOUS)


def _order(feature: npt.NDArray[np.float64], target: npt.NDArray[np.float64], task: Task) -> float:
    """AUC (two classes) or the size of Spearman's correlation (amounts), in whichever direction."""
    ranks = pd.Series(feature).rank().to_numpy()
    if task == "binary":
        positive = target == target.max()
        num = int(positive.sum())
        auc = (ranks[positive].sum() - num * (num + 1) / 2) / (num * (len(target) - num))
        return float(max(auc, 1 - auc))
    others = pd.Series(target).rank().to_numpy()
    if ranks.std() == 0 or others.std() == 0:
        return 0.0
    return float(abs(np.corrcoef(ranks, others)[0, 1]))
