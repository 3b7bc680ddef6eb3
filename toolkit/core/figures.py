"""Figures as a bootstrap needs them: computed again and again, with the rows weighted anew.

A figure is either a function of sums over rows (losses, counts of right and wrong, means over queries), or depends on the order of the
predictions (areas under curves), and then has a linearisation: its derivative with respect to the rows' weights. For the area under the
ROC curve those are its placement values (DeLong, DeLong & Clarke-Pearson 1988), from one sort (Sun & Xu 2014).

The values are those of `engines.sklearn_evaluation.metric_of`; a test holds them to it. Shapes: n rows, k classes, m sums, b draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.core.model import Task

Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

MetricOf = Callable[..., float]
"""`metric_of(name, task, label, prediction, *, weight, group, threshold)`, as `engines.sklearn_evaluation` has it."""


@dataclass(frozen=True)
class Rows:
    """What both models are judged on.

    Attributes:
        label: (n,) classes as 0 … k-1, numbers, or relevances.
        weight: (n,) or None.
        group: (n,) query of each row; ranking only.
        unit: (n,) rows with the same code are drawn together; None: every row, or query, is drawn by itself.
    """

    task: Task
    label: Doubles
    weight: Doubles | None = None
    group: Codes | None = None
    unit: Codes | None = None

    @property
    def weights(self) -> Doubles:
        return np.ones(len(self.label)) if self.weight is None else self.weight

    @property
    def queries(self) -> tuple[Codes, Codes]:
        """(q,) first row of each query, and (n,) the query of each row as 0 … q-1."""
        assert self.group is not None, "a ranking without queries is refused by Experiment"
        _, first, query = np.unique(self.group, return_index=True, return_inverse=True)
        return first.astype(np.int64), query.astype(np.int64)

    def take(self, which: Bools) -> Rows:
        return Rows(
            self.task,
            self.label[which],
            None if self.weight is None else self.weight[which],
            None if self.group is None else self.group[which],
            None if self.unit is None else self.unit[which],
        )


@dataclass(frozen=True)
class Prediction:
    """Attributes:
    values: (n,) probability of class 1, value or score; (n, k) probabilities for classes.
    threshold: a probability above it is class 1, for accuracy, precision, recall and f1.
    """

    values: Doubles
    threshold: float = 0.5

    def take(self, which: Bools) -> Prediction:
        return Prediction(self.values[which], self.threshold)


@dataclass(frozen=True)
class Sums:
    """A figure that is a function of sums over rows.

    Attributes:
        columns: gives the m columns of (n,) one after the other: with many classes they would not fit into memory together.
        of: (b, m) sums -> (b,) figures; NaN where there is none.
    """

    columns: Callable[[], Iterator[Doubles]]
    of: Callable[[Doubles], Doubles]


@dataclass(frozen=True)
class Order:
    """A figure of the predictions' order. `exact`: (n,) weights -> the figure, NaN where there is none; `linear`: its linearisation at the
    rows' own weights."""

    exact: Callable[[Doubles], float]
    linear: Callable[[], Sums]


def figure_of(metric: str, rows: Rows, prediction: Prediction, metric_of: MetricOf) -> Sums | Order:
    """A metric of the task, ready to be weighted anew. Raises ValueError where the task has none of that name."""
    base, _, argument = metric.partition("@")
    figure: Sums | Order | None
    if rows.task == "ranking":
        figure = _by_query(metric, rows, prediction.values, metric_of)
    elif rows.task == "multiclass":
        figure = _multiclass(base, rows.label.astype(np.int64), prediction.values, rows.weights)
    elif rows.task == "binary":
        figure = _binary(base, float(argument or 0.5), rows.label, prediction, rows.weights)
    else:
        figure = _regression(base, float(argument or 0.0), rows.label, prediction.values, rows.weights)
    if figure is None:
        raise ValueError(f"no figure {metric!r} of a {rows.task} task")
    return figure


def _binary(base: str, cut: float, label: Doubles, prediction: Prediction, weight: Doubles) -> Sums | Order | None:
    is_one, values = label == 1, prediction.values
    called = values > prediction.threshold
    if base == "auc":
        return _area(is_one, values, weight)
    if base == "aucpr":
        return _average_precision(is_one, values, weight)
    if base in ("precision", "recall", "f1"):
        return _of_confusion(base, is_one, called, weight)
    if base in ("brier", "rmse"):
        return _mean((values - label) ** 2, weight, root=base == "rmse")
    losses: dict[str, Callable[[], Doubles]] = {
        "accuracy": lambda: (called == is_one).astype(np.float64),
        "error": lambda: ((values > cut) != is_one).astype(np.float64),
        "logloss": lambda: -np.log(_inside(np.where(is_one, values, 1 - values))),
        "mae": lambda: np.abs(values - label),
    }
    return _mean(losses[base](), weight) if base in losses else None


def _multiclass(base: str, label: Codes, values: Doubles, weight: Doubles) -> Sums | Order | None:
    if base == "auc":
        return _areas_by_class(label, values, weight)
    chosen = values.argmax(axis=1)
    if base == "f1_macro":
        return _f1_macro(label, chosen, weight, values.shape[1])
    if base in ("accuracy", "merror"):
        return _mean(((chosen == label) == (base == "accuracy")).astype(np.float64), weight)
    if base == "mlogloss":
        return _mean(-np.log(_inside(values[np.arange(len(label)), label] / values.sum(axis=1))), weight)
    return None


def _regression(base: str, power: float, label: Doubles, values: Doubles, weight: Doubles) -> Sums | None:
    if base == "r2":
        return _r2(label, values, weight)
    with np.errstate(divide="ignore", invalid="ignore"):  # outside a metric's domain: NaN, and no draw has a figure
        losses = regression_losses(base, power, label, values)
    return None if losses is None else _mean(losses, weight, root=base in ("rmse", "rmsle"))


def _inside(probability: Doubles) -> Doubles:
    """Away from 0 and 1 as scikit-learn's log_loss keeps them."""
    epsilon = np.finfo(np.float64).eps
    return np.clip(probability, epsilon, 1 - epsilon)


def regression_losses(base: str, power: float, y: Doubles, p: Doubles) -> Doubles | None:
    """(n,) losses of the rows, as XGBoost's parameter reference and source define them; None for what is no mean of losses."""
    if base == "rmse":
        return (y - p) ** 2
    if base == "mae":
        return np.abs(y - p)
    if base == "rmsle":
        return (np.log1p(y) - np.log1p(p)) ** 2
    if base == "mape":
        return np.abs((y - p) / y)
    if base == "mphe":
        return np.sqrt(1 + (y - p) ** 2) - 1
    if base == "poisson-nloglik":
        log_factorial = np.array([math.lgamma(count + 1) if count > -1 else math.nan for count in y])
        return log_factorial + p - np.log(p) * y
    if base == "gamma-nloglik":
        return y / p + np.log(p)
    if base == "gamma-deviance":
        return 2 * (np.log(p / y) + y / p - 1)
    if base == "tweedie-nloglik":
        return -y * p ** (1 - power) / (1 - power) + p ** (2 - power) / (2 - power)
    return None


def _ratio(above: Doubles, below: Doubles, otherwise: float = math.nan) -> Doubles:
    ratio: Doubles = np.divide(above, below, out=np.full(above.shape, otherwise), where=below > 0)
    return ratio


def _mean(values: Doubles, weight: Doubles, *, root: bool = False) -> Sums:
    def figure(sums: Doubles) -> Doubles:
        mean = _ratio(sums[:, 1], sums[:, 0])
        return np.sqrt(mean) if root else mean

    return Sums(lambda: iter((weight, weight * values)), figure)


def _r2(label: Doubles, values: Doubles, weight: Doubles) -> Sums:
    centred = label - np.average(label, weights=weight)

    def figure(sums: Doubles) -> Doubles:
        spread = sums[:, 2] - _ratio(sums[:, 1] ** 2, sums[:, 0])
        return 1 - _ratio(sums[:, 3], spread)

    return Sums(lambda: iter((weight, weight * centred, weight * centred**2, weight * (label - values) ** 2)), figure)


def _of_confusion(base: str, is_one: Bools, called: Bools, weight: Doubles) -> Sums:
    def figure(sums: Doubles) -> Doubles:
        right, false_alarms, missed = sums.T
        if base == "precision":
            return _ratio(right, right + false_alarms, 0.0)
        return _ratio(right, right + missed, 0.0) if base == "recall" else _ratio(2 * right, 2 * right + false_alarms + missed, 0.0)

    return Sums(lambda: iter((weight * (is_one & called), weight * (~is_one & called), weight * (is_one & ~called))), figure)


def _f1_macro(label: Codes, chosen: Codes, weight: Doubles, num_classes: int) -> Sums:
    present = [code for code in range(num_classes) if (label == code).any() or (chosen == code).any()]

    def columns() -> Iterator[Doubles]:
        for code in present:
            is_one, called = label == code, chosen == code
            yield weight * (is_one & called)
            yield weight * is_one + weight * called

    def figure(sums: Doubles) -> Doubles:
        each = _ratio(2 * sums[:, 0::2], sums[:, 1::2], 0.0)
        return np.asarray(each.mean(axis=1))

    return Sums(columns, figure)


def _by_query(metric: str, rows: Rows, score: Doubles, metric_of: MetricOf) -> Sums:
    """A mean over queries. The value of a query stands in its first row's place, that of its other rows is 0."""
    first, query = rows.queries
    rows_of = np.split(np.argsort(query, kind="stable"), np.cumsum(np.bincount(query))[:-1])
    one = np.zeros(len(query), dtype=np.int64)
    values = np.array([metric_of(metric, "ranking", rows.label[those], score[those], group=one[: len(those)]) for those in rows_of])
    # metric_of weighs a query as its first row, but not in `auc`, which also leaves out queries of fewer than three rows.
    weight = np.where(np.isnan(values), 0.0, 1.0 if metric == "auc" else rows.weights[first])

    def columns() -> Iterator[Doubles]:
        for by_query in (weight, weight * np.nan_to_num(values)):
            column = np.zeros(len(score))
            column[first] = by_query
            yield column

    return Sums(columns, lambda sums: _ratio(sums[:, 1], sums[:, 0]))


# ---- figures of the order


@dataclass(frozen=True)
class _Levels:
    """Rows by the distinct values of a prediction, lowest first."""

    level: Codes
    count: int

    @classmethod
    def of(cls, values: Doubles) -> _Levels:
        distinct, level = np.unique(values, return_inverse=True)
        return cls(level.astype(np.int64), len(distinct))

    def sums(self, weight: Doubles) -> Doubles:
        return np.bincount(self.level, weights=weight, minlength=self.count).astype(np.float64)


def _area(is_one: Bools, values: Doubles, weight: Doubles) -> Order:
    """Under the ROC curve: the share of pairs of unequal label that are in the right order, half of those with equal predictions."""
    levels = _Levels.of(values)

    def exact(weights: Doubles) -> float:
        ones, zeros = levels.sums(weights * is_one), levels.sums(weights * ~is_one)
        pairs = ones.sum() * zeros.sum()
        return float(ones @ (np.cumsum(zeros) - zeros / 2) / pairs) if pairs > 0 else math.nan

    def linear() -> Sums:
        area, columns = _placements(levels, is_one, weight)
        return Sums(lambda: iter(columns), lambda sums: area + _ratio(sums[:, 1], sums[:, 0]) + _ratio(sums[:, 3], sums[:, 2]))

    return Order(exact, linear)


def _placements(levels: _Levels, is_one: Bools, weight: Doubles) -> tuple[float, tuple[Doubles, ...]]:
    """The area, and four columns: weight of the ones, times placement less the area; the same of the zeros."""
    of_ones, of_zeros = weight * is_one, weight * ~is_one
    ones, zeros = levels.sums(of_ones), levels.sums(of_zeros)
    num_ones, num_zeros = ones.sum(), zeros.sum()
    if not num_ones * num_zeros > 0:
        empty = np.zeros(len(weight))
        return math.nan, (empty, empty, empty, empty)
    below = (np.cumsum(zeros) - zeros / 2) / num_zeros
    above = 1 - (np.cumsum(ones) - ones / 2) / num_ones
    area = float(ones @ below / num_ones)
    return area, (of_ones, of_ones * (below[levels.level] - area), of_zeros, of_zeros * (above[levels.level] - area))


def _areas_by_class(label: Codes, values: Doubles, weight: Doubles) -> Order:
    """One class against the rest, the mean weighted by how frequent the class is. A class without rows has no area."""
    present = [code for code in range(values.shape[1]) if 0 < (label == code).sum() < len(label)]
    areas = {code: _area(label == code, values[:, code], weight) for code in present}

    def exact(weights: Doubles) -> float:
        total = np.array([weights[label == code].sum() for code in present])
        each = np.array([areas[code].exact(weights) for code in present])
        return _weighted(each[None], total[None])[0] if present else math.nan

    def linear() -> Sums:
        of_class = [areas[code].linear() for code in present]

        def columns() -> Iterator[Doubles]:
            for each in of_class:
                yield from each.columns()

        def figure(sums: Doubles) -> Doubles:
            each = np.stack([part.of(sums[:, 4 * place : 4 * place + 4]) for place, part in enumerate(of_class)], axis=1)
            return _weighted(each, sums[:, 0::4])

        return Sums(columns, figure)

    return Order(exact, linear)


def _weighted(values: Doubles, weights: Doubles) -> Doubles:
    """(b,) means over the classes that have a value."""
    weights = np.where(np.isnan(values), 0.0, weights)
    return _ratio((np.nan_to_num(values) * weights).sum(axis=1), weights.sum(axis=1))


def _average_precision(is_one: Bools, values: Doubles, weight: Doubles) -> Order:
    """The mean over the ones of the precision at their own prediction."""
    levels = _Levels.of(values)

    def at_levels(weights: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        """Weight of the ones at each level, of the ones at or above it, of all rows at or above it."""
        ones, rows = levels.sums(weights * is_one), levels.sums(weights)
        return ones, np.cumsum(ones[::-1])[::-1], np.cumsum(rows[::-1])[::-1]

    def exact(weights: Doubles) -> float:
        ones, ones_above, rows_above = at_levels(weights)
        total = ones.sum()
        return float(ones @ _ratio(ones_above, rows_above, 0.0) / total) if total > 0 else math.nan

    def linear() -> Sums:
        value = exact(weight)
        ones, ones_above, rows_above = at_levels(weight)
        precision = _ratio(ones_above, rows_above, 0.0)
        share = np.cumsum(_ratio(ones, rows_above, 0.0))[levels.level]
        lost = np.cumsum(_ratio(ones * precision, rows_above, 0.0))[levels.level]
        total = ones.sum()
        slope = (is_one * (precision[levels.level] - value + share) - lost) / total if total > 0 else np.full(len(weight), math.nan)
        return Sums(lambda: iter((weight * slope,)), lambda sums: value + sums[:, 0])

    return Order(exact, linear)
