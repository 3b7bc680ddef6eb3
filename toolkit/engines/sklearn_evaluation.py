"""How predictions are judged.

Shapes: n rows, k classes. scikit-learn is imported where it is called: the start of a sweep does without its half second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.data import Indices, Part, take
from toolkit.core.errors import ExperimentError
from toolkit.core.evaluation import Threshold
from toolkit.core.experiment import Costs, Metric
from toolkit.core.figures import regression_losses
from toolkit.core.metrics import check_metric
from toolkit.core.model import Task

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

_REPORTED: dict[Task, tuple[str, ...]] = {
    "binary": ("auc", "aucpr", "logloss", "brier", "accuracy", "precision", "recall", "f1"),
    "multiclass": ("auc", "mlogloss", "merror", "accuracy", "f1_macro"),
    "regression": ("rmse", "mae", "r2"),
    "ranking": ("ndcg", "ndcg@10", "map"),
}


def metric_of(
    name: str,
    task: Task,
    label: Array,
    prediction: Array,
    *,
    weight: Array | None = None,
    group: Indices | None = None,
    threshold: float = 0.5,
) -> float:
    """One figure, by XGBoost's name or one of `core.metrics.KNOWN_METRICS`.

    `aucpr` is average precision, which differs a little from XGBoost's interpolated area. Ranking metrics are XGBoost's: gain 2^label - 1,
    1 for a query without relevant rows (0 with a `-` after the number), ties in row order; a query weighs what its first row does, but
    `auc` leaves out weights and queries of fewer than three rows.

    Args:
        label: (n,) classes as 0 … k-1, numbers, or relevances.
        prediction: (n,) probability of class 1, value or score; (n, k) probabilities for classes.
        group: (n,) query of each row; ranking only.
        threshold: a probability above it is class 1, for accuracy, precision, recall and f1 (`error` has its own, 0.5 unless named).

    Raises:
        ExperimentError: an unknown metric, or predictions of another shape, not finite, or no probabilities where they must be.
    """
    check_metric(task, name)
    label = np.asarray(label, dtype=np.float64)
    prediction = _checked_prediction(task, label, np.asarray(prediction, dtype=np.float64))
    base, _, argument = name.partition("@")
    if task == "binary":
        return _binary(base, float(argument) if argument else 0.5, label, prediction, weight, threshold)
    if task == "multiclass":
        return _multiclass(base, label.astype(np.int64), prediction, weight)
    if task == "regression":
        return _regression(base, float(argument) if argument else 0.0, label, prediction, weight)
    assert group is not None, "a ranking without groups is refused by Experiment"
    return _ranking(base, argument, label, prediction, weight, group)


def evaluate(
    task: Task,
    label: Array,
    prediction: Array,
    metrics: Sequence[str] = (),
    *,
    weight: Array | None = None,
    group: Indices | None = None,
    threshold: float = 0.5,
) -> dict[str, float]:
    """The task's usual figures and those in `metrics`, by name; see `metric_of` for shapes, threshold and errors.

    Without the experiment's metrics: binary auc, aucpr, logloss, brier, accuracy, precision, recall, f1; multiclass auc, mlogloss, merror,
    accuracy, f1_macro; regression rmse, mae, r2, and mape unless a label is 0; ranking ndcg, ndcg@10, map (for labels 0 and 1).
    """
    names = list(_REPORTED[task])
    if task == "regression" and not (np.asarray(label) == 0).any():
        names.append("mape")
    if task == "ranking" and (np.asarray(label) > 1).any():
        names.remove("map")
    return {
        name: metric_of(name, task, label, prediction, weight=weight, group=group, threshold=threshold)
        for name in dict.fromkeys([*metrics, *names])
    }


def permutation_importances(
    metric: Metric,
    task: Task,
    predict: Callable[[npt.NDArray[np.float32]], Array],
    part: Part,
    names: Sequence[str],
    *,
    num_repeats: int = 3,
    max_rows: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """How much worse `metric` gets when one feature's values are shuffled among the rows (Breiman, Random Forests, 2001, section 10).

    The mean over `num_repeats` shuffles, on the first `max_rows` rows; below zero by chance. Features that say the same hide each other.
    """
    part = take(part, slice(0, max_rows))
    random = np.random.RandomState(seed)

    def figure(features: npt.NDArray[np.float32]) -> float:
        return metric_of(metric.name, task, part.label, predict(features), weight=part.weight, group=part.group)

    sign = 1.0 if metric.direction == "maximize" else -1.0
    before = figure(part.features)
    found = {}
    for number, name in enumerate(names):
        shuffled = part.features.copy()
        losses = []
        for _ in range(num_repeats):
            shuffled[:, number] = part.features[random.permutation(part.num_rows), number]
            losses.append(sign * (before - figure(shuffled)))
        found[name] = float(np.mean(losses))
    return found


def _checked_prediction(task: Task, label: Doubles, prediction: Doubles) -> Doubles:
    if task == "multiclass":
        fits = prediction.ndim == 2 and len(prediction) == len(label) and prediction.shape[1] > label.max(initial=0)
        shape = f"({len(label)}, number of classes)"
    else:
        prediction = prediction[:, 0] if prediction.ndim == 2 and prediction.shape[1] == 1 else prediction
        fits, shape = prediction.shape == label.shape, f"({len(label)},)"
    if not fits:
        raise ExperimentError(f"model: predictions of a {task} task must have the shape {shape}", got=prediction.shape)
    if not np.isfinite(prediction).all():
        raise ExperimentError("model: predictions must be finite", got=f"{int((~np.isfinite(prediction)).sum()):,} that are not")
    if task in ("binary", "multiclass") and (prediction.min(initial=0) < 0 or prediction.max(initial=0) > 1 + 1e-6):
        raise ExperimentError(
            "model: predictions must be probabilities from 0 to 1",
            got=f"{prediction.min():g} to {prediction.max():g}",
            next_step="use an objective or a predict function that gives probabilities",
        )
    return prediction


def _binary(base: str, cut: float, label: Doubles, probability: Doubles, weight: Array | None, threshold: float) -> float:
    from sklearn import metrics

    positive = probability > threshold
    by_probability: dict[str, Callable[..., float]] = {
        "auc": metrics.roc_auc_score,
        "aucpr": metrics.average_precision_score,
        "logloss": lambda y, p, sample_weight: metrics.log_loss(y, p, sample_weight=sample_weight, labels=[0, 1]),
        "brier": metrics.brier_score_loss,
        "rmse": lambda y, p, sample_weight: math.sqrt(metrics.mean_squared_error(y, p, sample_weight=sample_weight)),
        "mae": metrics.mean_absolute_error,
        "error": lambda y, p, sample_weight: metrics.zero_one_loss(y == 1, p > cut, sample_weight=sample_weight),
    }
    if base in by_probability:
        return float(by_probability[base](label, np.minimum(probability, 1.0), sample_weight=weight))
    if base == "accuracy":
        return float(metrics.accuracy_score(label == 1, positive, sample_weight=weight))
    function = {"precision": metrics.precision_score, "recall": metrics.recall_score, "f1": metrics.f1_score}[base]
    return float(function(label == 1, positive, sample_weight=weight, zero_division=0.0))


def _multiclass(base: str, label: Indices, probability: Doubles, weight: Array | None) -> float:
    from sklearn import metrics

    if base == "auc":
        # XGBoost's way: one class against the rest, weighted by how frequent it is. A class without rows has no such figure.
        weights = np.ones(len(label)) if weight is None else np.asarray(weight, dtype=np.float64)
        present = [code for code in range(probability.shape[1]) if 0 < (label == code).sum() < len(label)]
        areas = [metrics.roc_auc_score(label == code, probability[:, code], sample_weight=weight) for code in present]
        return float(np.average(areas, weights=[weights[label == code].sum() for code in present])) if present else math.nan
    if base == "mlogloss":
        probability = probability / probability.sum(axis=1, keepdims=True)  # float32 rows miss 1 by more than log_loss accepts
        return float(metrics.log_loss(label, probability, sample_weight=weight, labels=np.arange(probability.shape[1])))
    chosen = probability.argmax(axis=1)
    if base == "f1_macro":
        return float(metrics.f1_score(label, chosen, average="macro", sample_weight=weight, zero_division=0.0))
    accuracy = float(metrics.accuracy_score(label, chosen, sample_weight=weight))
    return accuracy if base == "accuracy" else 1.0 - accuracy


def _regression(base: str, power: float, label: Doubles, value: Doubles, weight: Array | None) -> float:
    from sklearn import metrics

    if base == "r2":
        return float(metrics.r2_score(label, value, sample_weight=weight)) if len(label) > 1 else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):  # outside a metric's domain it is NaN or infinite, as XGBoost's is
        losses = regression_losses(base, power, label, value)
    assert losses is not None, "check_metric knows all regression metrics"
    loss = float(np.average(losses, weights=weight))
    return math.sqrt(loss) if base in ("rmse", "rmsle") else loss


def _ranking(base: str, argument: str, label: Doubles, score: Doubles, weight: Array | None, group: Indices) -> float:
    if base in ("map", "pre") and not np.isin(label, (0, 1)).all():
        raise ExperimentError(f"metric: {base} needs labels 0 and 1", got=f"a label of {label.max():g}", next_step="use ndcg")
    codes, first, query = np.unique(group, return_index=True, return_inverse=True)
    weights = None if weight is None else np.asarray(weight, dtype=np.float64)[first]
    if base == "auc":
        areas = [_pair_auc(label[query == code], score[query == code]) for code in np.flatnonzero(np.bincount(query) > 2)]
        return float(np.mean(areas)) if areas else math.nan
    empty = 0.0 if argument.endswith("-") else 1.0
    most = int(argument.rstrip("-")) if argument else len(label)
    sizes = np.bincount(query)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    by_score = np.lexsort((-score, query))
    place = np.arange(len(label)) - np.repeat(starts, sizes)  # 0 for the best of its query
    by_label = np.lexsort((-label, query))
    query, ranked, ideal = query[by_score], label[by_score], label[by_label]
    counts = place < most
    if base == "pre":
        figures = np.bincount(query, weights=counts * ranked) / np.minimum(sizes, most)
    elif base == "ndcg":
        discount = counts / np.log2(place + 2)
        gains, best = (np.bincount(query, weights=(2**relevance - 1) * discount) for relevance in (ranked, ideal))
        figures = np.divide(gains, best, out=np.full(len(codes), empty), where=best > 0)
    else:
        hits = np.cumsum(ranked) - np.repeat((np.cumsum(ranked) - ranked)[starts], sizes)
        precision = np.bincount(query, weights=counts * ranked * hits / (place + 1))
        relevant = np.minimum(np.bincount(query, weights=ranked), most)
        figures = np.divide(precision, relevant, out=np.full(len(codes), empty), where=relevant > 0)
    return float(np.average(figures, weights=weights))


def _pair_auc(label: Doubles, score: Doubles) -> float:
    """Share of a query's pairs that the score orders as the label does; a tie of scores counts half. As in XGBoost, pairs of equal label
    are among them, in row order."""
    score = score[np.argsort(-label, kind="stable")]
    right = sum((score[i] > score[i + 1 :]).sum() + 0.5 * (score[i] == score[i + 1 :]).sum() for i in range(len(score)))
    return float(right) / math.comb(len(score), 2)


def choose_threshold(label: Array, probability: Array, costs: Costs, chosen_on: str) -> Threshold:
    """The threshold with the least `fp * costs.fp + fn * costs.fn` on these rows; of equally cheap ones, the nearest to 0.5.

    Lies midway between neighbouring scores, and is a float32, so that comparing float32 scores with it in either precision agrees;
    -1 where calling every row positive is cheapest though a score is 0.

    Args:
        label: (n,) 0 or 1; n > 0. probability: (n,) of class 1.
        chosen_on: what the rows are, for the report.
    """
    score = np.asarray(probability, dtype=np.float32)
    order = np.argsort(score, kind="stable")
    positive = np.asarray(label)[order] == 1
    score = score[order]
    # Threshold i lies above the first `ends[i]` rows: those are called negative.
    ends = np.concatenate([[0], np.flatnonzero(np.diff(score)) + 1, [len(score)]])
    missed = np.concatenate([[0], np.cumsum(positive)])[ends]
    false_alarms = int((~positive).sum()) - (ends - missed)
    cost = (false_alarms * costs.fp + missed * costs.fn) / len(score)
    below = np.concatenate([[np.float32(0.0)], score[ends[1:] - 1]])
    above = np.concatenate([score[ends[:-1]], [max(np.float32(1.0), score[-1])]])
    middle = ((below.astype(np.float64) + above) / 2).astype(np.float32)
    # Between two neighbouring float32 the middle rounds up to one that would no longer be above it.
    value = np.where((middle >= above) & (above > below), below, middle)
    if score[0] <= 0:
        value[0] = -1.0
    cheapest = np.flatnonzero(cost <= cost.min() * (1 + 1e-12))
    best = cheapest[np.argmin(np.abs(value[cheapest] - 0.5))]
    return Threshold(float(value[best]), costs, chosen_on, float(cost[best]))
