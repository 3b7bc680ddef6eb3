"""ROC and precision-recall curves of a binary score, thinned so that a million rows draw like five hundred.

Shapes: n rows. A row counts as positive when its score is strictly above the threshold, as `evaluation.Threshold` defines it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MAX_POINTS = 500


@dataclass(frozen=True)
class Confusion:
    """Rows by truth and decision at one threshold."""

    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int

    @property
    def recall(self) -> float:
        """Also the true positive rate."""
        return _share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def precision(self) -> float:
        """1 when nothing is called positive: no call was wrong."""
        called = self.true_positive + self.false_positive
        return self.true_positive / called if called else 1.0

    @property
    def false_positive_rate(self) -> float:
        return _share(self.false_positive, self.false_positive + self.true_negative)

    def table(self) -> npt.NDArray[np.int64]:
        """(2, 2): row = truth, column = decision, negative first."""
        return np.array([[self.true_negative, self.false_positive], [self.false_negative, self.true_positive]])


def confusion_at(label: npt.NDArray[np.floating], score: npt.NDArray[np.floating], threshold: float) -> Confusion:
    """What the decision `score > threshold` makes of the rows; both arrays are (n,), labels 0 or 1."""
    truth, called = label > 0.5, score > threshold
    return Confusion(
        true_negative=int(np.sum(~truth & ~called)),
        false_positive=int(np.sum(~truth & called)),
        false_negative=int(np.sum(truth & ~called)),
        true_positive=int(np.sum(truth & called)),
    )


def roc_points(label: npt.NDArray[np.floating], score: npt.NDArray[np.floating], max_points: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """False and true positive rates, both rising from 0 to 1, one point for each distinct score before thinning; O(n log n).

    Raises:
        ValueError: the labels are all of one class, so that one of the rates does not exist.
    """
    positives, negatives = _cumulative(label, score)
    x = np.concatenate([[0.0], negatives / negatives[-1]])
    y = np.concatenate([[0.0], positives / positives[-1]])
    return _thin(x, y, max_points)


def precision_recall_points(
    label: npt.NDArray[np.floating], score: npt.NDArray[np.floating], max_points: int = MAX_POINTS
) -> tuple[Floats, Floats]:
    """Recall (rising) and precision at each distinct score; O(n log n). The precision at a point holds back to the recall before it.

    Raises:
        ValueError: the labels are all of one class.
    """
    positives, negatives = _cumulative(label, score)
    return _thin(positives / positives[-1], positives / (positives + negatives), max_points)


def _cumulative(label: npt.NDArray[np.floating], score: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Positives and negatives among the rows with at least each distinct score, highest score first."""
    order = np.argsort(-score.astype(np.float64), kind="stable")
    ranked, truth = score[order], label[order] > 0.5
    last_of_its_score = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    positives = np.cumsum(truth, dtype=np.float64)[last_of_its_score]
    negatives = last_of_its_score + 1.0 - positives
    if positives[-1] == 0 or negatives[-1] == 0:
        raise ValueError(f"a curve needs rows of both classes, got {int(positives[-1])} positive and {int(negatives[-1])} negative")
    return positives, negatives


def _thin(x: Floats, y: Floats, max_points: int) -> tuple[Floats, Floats]:
    """At most `max_points`, evenly spaced along the curve; the ends stay.

    Spacing by index would spend nearly all points where scores are dense and cut the corner of a steep curve.
    """
    if len(x) <= max_points:
        return x, y
    travelled = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.unique(np.searchsorted(travelled, np.linspace(0.0, travelled[-1], max_points)).clip(0, len(x) - 1))
    keep[-1] = len(x) - 1
    return x[keep], y[keep]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
