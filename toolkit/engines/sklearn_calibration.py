"""Calibration of a binary model's probabilities on rows it has not seen. Applied by `engines.portable_model.calibrate`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from toolkit.core.errors import DataError
from toolkit.engines.portable_model import log_odds

# Fewer rows of a class than this, and an isotonic curve learns single rows by heart (Niculescu-Mizil and Caruana, ICML 2005, find sigmoid
# the better one below about 1,000 rows). It is the user's choice then, but below this there is nothing to fit.
MIN_ROWS_OF_A_CLASS = 10


def fit(method: Literal["isotonic", "sigmoid"], label: npt.NDArray[Any], probability: npt.NDArray[Any]) -> dict[str, Any]:
    """Args:
        label: (n,) 0 or 1. probability: (n,) of class 1, of rows that the model has not seen.

    Returns:
        `{"method": "isotonic", "x", "y"}`: a piecewise linear, rising map; or `{"method": "sigmoid", "slope", "intercept"}`: of the
        log-odds.

    Raises:
        DataError: too few rows of a class.
    """
    rarest = int(min((label == 1).sum(), (label == 0).sum()))
    if rarest < MIN_ROWS_OF_A_CLASS:
        raise DataError(
            f"calibration: needs {MIN_ROWS_OF_A_CLASS} validation rows of each class",
            got=rarest,
            next_step="raise split.validation, or remove calibration",
        )
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(probability.astype(np.float64), label)
        return {"method": "isotonic", "x": curve.X_thresholds_.tolist(), "y": curve.y_thresholds_.tolist()}
    from sklearn.linear_model import LogisticRegression

    # Platt's targets, which keep a separable sample from an infinite slope.
    positives, negatives = float((label == 1).sum()), float((label == 0).sum())
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    target = np.where(label == 1, high, low)
    odds = log_odds(probability).reshape(-1, 1)
    rows, classes = np.concatenate([odds, odds]), np.repeat([1, 0], len(odds))
    line = LogisticRegression(C=np.inf, max_iter=1000).fit(rows, classes, sample_weight=np.concatenate([target, 1 - target]))
    return {"method": "sigmoid", "slope": float(line.coef_[0, 0]), "intercept": float(line.intercept_[0])}
