"""How rows are divided, and how predictions are judged.

Shapes: n rows, k classes, u units. A unit is what a split never tears apart: a row, the rows with equal features, the rows of one group,
or the rows of one moment. scikit-learn is imported where it is called: most splits and the start of a sweep do without its half second.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.data import Indices, LoadedData, Part, SplitData, TrialData, concatenate, take
from toolkit.core.errors import DataError, ExperimentError, nearest
from toolkit.core.evaluation import Threshold
from toolkit.core.experiment import Costs, Protocol, Split, Task

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

KNOWN_METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("auc", "aucpr", "logloss", "error", "rmse", "mae", "brier", "accuracy", "precision", "recall", "f1"),
    "multiclass": ("auc", "mlogloss", "merror", "accuracy", "f1_macro"),
    "regression": ("rmse", "mae", "r2", "rmsle", "mape", "mphe", "poisson-nloglik", "gamma-nloglik", "gamma-deviance", "tweedie-nloglik"),
    "ranking": ("ndcg", "map", "pre", "auc"),
}
"""What `metric_of` computes, by task, with XGBoost's names where it has one."""

_REPORTED: dict[Task, tuple[str, ...]] = {
    "binary": ("auc", "aucpr", "logloss", "brier", "accuracy", "precision", "recall", "f1"),
    "multiclass": ("auc", "mlogloss", "merror", "accuracy", "f1_macro"),
    "regression": ("rmse", "mae", "r2"),
    "ranking": ("ndcg", "ndcg@10", "map"),
}


# ---- splits


def split(data: LoadedData, split: Split, protocol: Protocol) -> SplitData:
    """Divide the rows into train, validation and test.

    Honest: the test part first (the hold-out table where there is one), then validation from the rest. Published: a random split is
    scikit-learn's `train_test_split(random_state=seed)` on row positions, and the test rows are the validation rows too. The parts of a
    ranking are sorted by group; other parts keep the table's order (published: `train_test_split`'s).

    Returns:
        With folds, the counts of train and validation rows are those of the last fold.

    Raises:
        DataError: too few rows or groups, or a part with a single class.
        ExperimentError: the published protocol with folds.
    """
    if protocol == "published":
        return _published(data, split)
    units, what = _units(data, split)
    folds = split.folds or 0
    # Rows for validation and training; a time-ordered fold needs one block more, since the first can only be trained on.
    num_reserved = max(2, folds + (split.by == "time"))
    rank, sizes = _queue(data, split, units)
    needed = num_reserved + (data.test is None)
    if len(sizes) < needed:
        raise DataError(
            f"split: needs at least {needed} different {what}", got=f"{len(sizes):,} in {len(units):,} rows", next_step="add rows"
        )
    num_test = 0 if data.test is not None else _leading(sizes, math.ceil(split.test * len(units)), len(sizes) - num_reserved)
    test = take(_whole(data), _arranged(data, np.flatnonzero(rank < num_test))) if data.test is None else _sorted_whole(data.test)
    pairs: tuple[tuple[slice | Indices, slice | Indices], ...]
    if folds:
        rows = _arranged(data, np.flatnonzero(rank >= num_test))
        part = take(_whole(data), rows)
        pairs = _folds(rank[rows] - num_test, sizes[num_test:], split)
    else:
        share = math.ceil(split.validation * int(sizes[num_test:].sum()))
        num_validation = num_test + _leading(sizes[num_test:], share, len(sizes) - num_test - 1)
        train_rows = _arranged(data, np.flatnonzero(rank >= num_validation))
        validation_rows = _arranged(data, np.flatnonzero((rank >= num_test) & (rank < num_validation)))
        part = take(_whole(data), np.concatenate([train_rows, validation_rows]))
        pairs = ((slice(0, len(train_rows)), slice(len(train_rows), part.num_rows)),)
    how = {
        "random": f"{what} at random (seed {split.seed})",
        "time": f"by time, the latest {'of the rest for validation' if data.test else 'rows for the test'}",
        "group": f"whole groups at random (seed {split.seed})",
    }[split.by]
    return _checked(data, part, pairs, test, f"honest protocol: {how}", folds)


def _published(data: LoadedData, split: Split) -> SplitData:
    if split.folds:
        raise ExperimentError(
            "split.folds: the published protocol selects on the test part", got=f"folds={split.folds}", next_step="use --protocol honest"
        )
    if data.test is not None:
        train, test, how = _sorted_whole(data), _sorted_whole(data.test), "the hold-out table is the test part"
    else:
        if split.by == "random" and data.task != "ranking":
            from sklearn.model_selection import train_test_split

            if len(data.label) < 2:
                raise DataError("split: needs at least 2 rows", got=len(data.label), next_step="add rows")
            train_rows, test_rows = train_test_split(np.arange(len(data.label)), test_size=split.test, random_state=split.seed)
            how = f"train_test_split with seed {split.seed}"
        else:
            units, what = _units(data, split)
            rank, sizes = _queue(data, split, units)
            if len(sizes) < 2:
                raise DataError(f"split: needs at least 2 different {what}", got=len(sizes), next_step="add rows")
            num_test = _leading(sizes, math.ceil(split.test * len(units)), len(sizes) - 1)
            train_rows, test_rows = np.flatnonzero(rank >= num_test), np.flatnonzero(rank < num_test)
            how = "by time" if split.by == "time" else f"{what} at random (seed {split.seed})"
        train, test = (take(_whole(data), _arranged(data, rows)) for rows in (train_rows, test_rows))
    part = concatenate([train, test])
    validation = slice(train.num_rows, part.num_rows)
    how = f"published protocol: {how}; selection and early stopping see the test rows, so figures are optimistic"
    return _checked(data, part, ((slice(0, train.num_rows), validation),), take(part, validation), how, 0)


def _units(data: LoadedData, split: Split) -> tuple[Indices, str]:
    """(n,) codes 0 … u-1 of the units, and the units' name."""
    column, what = None, "rows"
    if split.by == "time":
        column, what = data.time, "moments"
    elif split.by == "group":
        column, what = data.group, "groups"
    elif data.task == "ranking":
        column, what = data.group, "queries"
    elif split.keep_duplicates_together:
        column, what = _row_hashes(data.features), "rows (equal ones together)"
    else:
        return np.arange(len(data.label)), what
    assert column is not None, "Experiment and load_data refuse a split by a column that is not there"
    return np.unique(column, return_inverse=True)[1].astype(np.int64), what


def _row_hashes(features: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """(n,) hashes of whole rows. Two rows that collide stay together as if they were equal: harmless, and sorting numbers is fast."""
    hashes = np.zeros(len(features), dtype=np.uint64)
    bits = features.view(np.uint32)
    for column in range(features.shape[1]):  # splitmix64's steps, for bits of floats differ in few places
        hashes ^= bits[:, column]
        hashes += np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(30)
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(27)
        hashes *= np.uint64(0x94D049BB133111EB)
        hashes ^= hashes >> np.uint64(31)
    return hashes


def _queue(data: LoadedData, split: Split, units: Indices) -> tuple[Indices, Indices]:
    """Each row's place in the queue from which the test part is served first: (n,) ranks, and (u,) rows by rank."""
    num_units = int(units.max()) + 1
    # RandomState: its stream is frozen, so that a split outlives numpy's versions.
    shuffled = np.random.RandomState(split.seed).permutation(num_units)
    rank = (num_units - 1 - units if split.by == "time" else shuffled[units]).astype(np.int64)
    return rank, np.bincount(rank, minlength=num_units).astype(np.int64)


def _leading(sizes: Indices, num_rows: int, most: int) -> int:
    """How many units from the front come nearest to `num_rows` rows; at least 1, at most `most`."""
    ends = np.cumsum(sizes)
    over = int(np.searchsorted(ends, num_rows))
    if over >= len(ends) or (over > 0 and num_rows - ends[over - 1] <= ends[over] - num_rows):
        over -= 1
    return min(max(over + 1, 1), most)


def _folds(rank: Indices, sizes: Indices, split: Split) -> tuple[tuple[Indices, Indices], ...]:
    """Pairs of row positions; `rank` (n,) and `sizes` (u,) of what is left after the test part."""
    assert split.folds is not None
    if split.by == "time":  # rank 0 is the latest moment
        age = len(sizes) - 1 - rank
        ends, block_of_unit = np.cumsum(sizes[::-1]), np.empty(len(sizes), dtype=np.int64)
        num_blocks = split.folds + 1
        start = 0
        for block in range(num_blocks):
            left = num_blocks - block - 1
            done = int(ends[start - 1]) if start else 0
            share = round((int(ends[-1]) - done) / (left + 1))
            taken = _leading(sizes[::-1][start:], share, len(sizes) - start - left) if left else len(sizes) - start
            block_of_unit[start : start + taken] = block
            start += taken
        blocks = block_of_unit[age]
        return tuple((np.flatnonzero(blocks <= fold), np.flatnonzero(blocks == fold + 1)) for fold in range(split.folds))
    # The largest units first, each to the lightest fold: even folds also where groups are not. Stable, so that equal sizes stay shuffled.
    fold_of_unit = np.empty(len(sizes), dtype=np.int64)
    lightest = [(0, fold) for fold in range(split.folds)]
    for unit in np.argsort(-sizes, kind="stable"):
        num_rows, fold = lightest[0]
        fold_of_unit[unit] = fold
        heapq.heapreplace(lightest, (num_rows + int(sizes[unit]), fold))
    folds = fold_of_unit[rank]
    return tuple((np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(split.folds))


def _whole(data: LoadedData) -> Part:
    return Part(data.features, data.label, data.weight, data.group)


def _sorted_whole(data: LoadedData) -> Part:
    return take(_whole(data), _arranged(data, np.arange(len(data.label)))) if data.task == "ranking" else _whole(data)


def _arranged(data: LoadedData, rows: Indices) -> Indices:
    """A ranking's rows by group, for XGBoost takes queries in no other way; other rows as they come."""
    if data.task != "ranking" or data.group is None:
        return rows
    return rows[np.argsort(data.group[rows], kind="stable")]


def _checked(
    data: LoadedData,
    part: Part,
    folds: tuple[tuple[slice | Indices, slice | Indices], ...],
    test: Part,
    how: str,
    num_folds: int,
) -> SplitData:
    classes = data.classes or ()
    trial = TrialData(part, folds, data.feature_names, len(classes), data.task, data.source.sha256)
    for number, (train, validation) in enumerate(folds):
        fold = f" of fold {number}" if num_folds else ""
        for name, which in ((f"train part{fold}", train), (f"validation part{fold}", validation)):
            _check_part(name, part.label[which], None if part.weight is None else part.weight[which], classes)
    _check_part("test part", test.label, test.weight, classes)
    train_rows, validation_rows = (len(part.label[which]) for which in folds[-1])
    counts = f"{num_folds} folds of {part.num_rows:,} rows" if num_folds else f"{train_rows:,} train, {validation_rows:,} validation"
    return SplitData(trial, test, train_rows, validation_rows, f"{how}; {counts}, {test.num_rows:,} test")


def _check_part(name: str, label: Array, weight: Array | None, classes: Sequence[Any]) -> None:
    if not len(label):
        raise DataError(f"split: the {name} must have rows", got="none", next_step="change split.test or split.validation")
    if weight is not None and not weight.sum() > 0:
        raise DataError(f"split: the {name} must have a row with weight", got=f"{len(label):,} of weight 0", next_step="change split.seed")
    if classes and (label == label[0]).all():
        raise DataError(
            f"split: the {name} must have two classes",
            got=f"{len(label):,} rows of {classes[int(label[0])]!r}",
            next_step="change split.seed or the part's share, or add rows",
        )


# ---- metrics


def check_metric(task: Task, name: str) -> None:
    """Refuse a metric that `metric_of` cannot compute.

    Raises:
        ExperimentError: an unknown name, or an argument (`error@0.3`, `ndcg@10`) that is missing, wrong or not taken.
    """
    base, mark, argument = name.partition("@")
    if base not in KNOWN_METRICS[task]:
        raise ExperimentError(f"metric: unknown for a {task} task", got=repr(name), next_step=nearest(base, KNOWN_METRICS[task]))
    pattern, example = {
        "error": (r"0?\.\d+|[01](\.\d*)?", "error@0.3"),
        "tweedie-nloglik": (r"1\.\d+", "tweedie-nloglik@1.5"),
        "ndcg": (r"[1-9]\d*-?", "ndcg@10"),
        "map": (r"[1-9]\d*-?", "map@10"),
        "pre": (r"[1-9]\d*", "pre@10"),
    }.get(base, (None, base))
    if base == "tweedie-nloglik" and not mark:
        raise ExperimentError("metric: tweedie-nloglik needs its power", got=repr(name), next_step=f"for example {example}")
    if mark and (pattern is None or not re.fullmatch(pattern, argument)):
        rule = f"metric: {base} takes no argument" if pattern is None else f"metric: wrong argument of {base}"
        raise ExperimentError(rule, got=repr(name), next_step=f"for example {example}")


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
    """One figure, by XGBoost's name or one of `KNOWN_METRICS`.

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
        loss = float(np.average(_losses(base, power, label, value), weights=weight))
    return math.sqrt(loss) if base in ("rmse", "rmsle") else loss


def _losses(base: str, power: float, y: Doubles, p: Doubles) -> Doubles:
    """(n,) losses of the rows, as XGBoost's parameter reference and source define them."""
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
    assert base == "tweedie-nloglik"
    return -y * p ** (1 - power) / (1 - power) + p ** (2 - power) / (2 - power)


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
