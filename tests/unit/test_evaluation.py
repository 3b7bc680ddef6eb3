"""Metrics against XGBoost's own, and the threshold against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.core.errors import ExperimentError
from toolkit.core.experiment import Costs
from toolkit.core.metrics import KNOWN_METRICS, XGBOOST_METRICS, check_metric
from toolkit.core.model import Task
from toolkit.engines.sklearn_evaluation import choose_threshold, evaluate, metric_of

NUM = 400
RANDOM = np.random.RandomState(5)
X = RANDOM.normal(size=(NUM, 4)).astype(np.float32)
SIGNAL = X[:, 0] + 0.5 * X[:, 1] + RANDOM.normal(0, 1, NUM)
WEIGHT = RANDOM.uniform(0.5, 2, NUM).astype(np.float32)
GROUP = np.sort(RANDOM.randint(0, 25, NUM))


def compare(objective: str, task: Task, label: np.ndarray[Any, Any], names: list[str], *, weighted: bool, **params: Any) -> None:
    """Train three rounds, and hold every metric to what XGBoost itself reports of the same rows."""
    group = GROUP if task == "ranking" else None
    weight = WEIGHT if weighted else None
    if group is not None and weighted:
        weight = WEIGHT[: len(np.unique(group))]
    matrix = xgboost.DMatrix(X, label, weight=weight, qid=group)
    params = {"objective": objective, "max_depth": 3, "nthread": 1, "eval_metric": names, **params}
    history: dict[str, dict[str, list[float]]] = {}
    booster = xgboost.train(params, matrix, 3, evals=[(matrix, "rows")], evals_result=history, verbose_eval=False)
    prediction = booster.predict(matrix)
    by_row = weight if group is None or weight is None else weight[np.unique(group, return_inverse=True)[1]]
    for name in names:
        ours = metric_of(name, task, label, prediction, weight=by_row, group=group)
        assert ours == pytest.approx(history["rows"][name][-1], rel=2e-4, abs=1e-5), name


@pytest.mark.parametrize("weighted", [False, True])
class TestAgainstXGBoost:
    def test_binary(self, weighted: bool) -> None:
        label = (SIGNAL > 0.5).astype(np.float32)
        compare("binary:logistic", "binary", label, ["auc", "logloss", "error", "error@0.3", "rmse", "mae"], weighted=weighted)

    def test_multiclass(self, weighted: bool) -> None:
        label = np.digitize(SIGNAL, [-0.5, 0.8]).astype(np.float32)
        compare("multi:softprob", "multiclass", label, ["auc", "mlogloss", "merror"], weighted=weighted, num_class=3)

    def test_regression(self, weighted: bool) -> None:
        names = ["rmse", "mae", "rmsle", "mape", "mphe", "poisson-nloglik", "gamma-nloglik", "gamma-deviance", "tweedie-nloglik@1.3"]
        compare("reg:gamma", "regression", np.exp(SIGNAL / 3).astype(np.float32), names, weighted=weighted)
        compare("count:poisson", "regression", RANDOM.poisson(2, NUM).astype(np.float32), ["poisson-nloglik"], weighted=weighted)

    def test_ranking(self, weighted: bool) -> None:
        graded = np.digitize(SIGNAL, [0, 1, 2]).astype(np.float32)
        compare("rank:ndcg", "ranking", graded, ["ndcg", "ndcg@3", "ndcg@5-"], weighted=weighted)
        rare = (SIGNAL > 1.8).astype(np.float32)
        names = ["map", "map@3", "map@3-", "pre", "pre@4", "pre@100", "ndcg@2-"]
        # XGBoost 3.2 forgets the weight of a query without relevant rows in ndcg (and stops where the sum then passes 1).
        names += [] if weighted else ["ndcg"]
        compare("rank:map", "ranking", rare, names, weighted=weighted)

    def test_ranking_auc(self, weighted: bool) -> None:
        compare("rank:ndcg", "ranking", np.digitize(SIGNAL, [0, 1, 2]).astype(np.float32), ["auc"], weighted=weighted)


def test_all_of_xgboosts_metrics_are_known() -> None:
    for task, names in XGBOOST_METRICS.items():
        assert names <= set(KNOWN_METRICS[task])


def test_aucpr_is_near_xgboosts() -> None:
    label, score = (SIGNAL > 0.5).astype(np.float32), 1 / (1 + np.exp(-X[:, 0]))
    matrix = xgboost.DMatrix(X, label, base_margin=X[:, 0])
    booster = xgboost.train({"eta": 0, "eval_metric": "aucpr", "objective": "binary:logistic"}, matrix, 1)
    theirs = float(booster.eval(matrix).split(":")[-1])
    assert metric_of("aucpr", "binary", label, score) == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize(
    ("task", "name", "match"),
    [
        ("binary", "acu", "metric: unknown for a binary task, got 'acu'; did you mean 'auc'"),
        ("binary", "error@2", "metric: wrong argument of error, got 'error@2'; for example error@0.3"),
        ("binary", "auc@3", "metric: auc takes no argument, got 'auc@3'"),
        ("ranking", "ndcg@0", "metric: wrong argument of ndcg, got 'ndcg@0'; for example ndcg@10"),
        ("ranking", "map@", "metric: wrong argument of map"),
        ("regression", "tweedie-nloglik", "metric: tweedie-nloglik needs its power"),
        ("regression", "tweedie-nloglik@3", "metric: wrong argument of tweedie-nloglik"),
    ],
)
def test_unknown_metrics_are_refused(task: Task, name: str, match: str) -> None:
    with pytest.raises(ExperimentError, match=match):
        check_metric(task, name)


@pytest.mark.parametrize("name", ["error", "error@0.25", "error@.5", "error@1", "auc"])
def test_right_metrics_are_taken(name: str) -> None:
    check_metric("binary", name)


def test_evaluate_answers_the_usual_figures_and_the_experiments() -> None:
    label = (SIGNAL > 0.5).astype(np.float32)
    probability = (1 / (1 + np.exp(-X[:, 0]))).astype(np.float32)
    figures = evaluate("binary", label, probability, ["error@0.3", "auc"], threshold=0.3)
    assert list(figures)[:2] == ["error@0.3", "auc"]
    assert set(figures) == {"error@0.3", "auc", "aucpr", "logloss", "brier", "accuracy", "precision", "recall", "f1"}
    assert figures["accuracy"] == pytest.approx(1 - figures["error@0.3"])
    called = probability > 0.3
    assert figures["recall"] == pytest.approx((called & (label == 1)).sum() / label.sum())
    assert all(type(value) is float and math.isfinite(value) for value in figures.values())
    weighted = evaluate("binary", label, probability, weight=WEIGHT)
    assert weighted["auc"] != figures["auc"]


def test_evaluate_other_tasks() -> None:
    scores = np.abs(RANDOM.normal(size=(NUM, 3))).astype(np.float32)
    scores /= scores.sum(axis=1, keepdims=True)
    label = np.digitize(SIGNAL, [-0.5, 0.8]).astype(np.float32)
    assert set(evaluate("multiclass", label, scores)) == {"auc", "mlogloss", "merror", "accuracy", "f1_macro"}
    two_of_three = evaluate("multiclass", np.minimum(label, 1), scores)
    assert all(math.isfinite(value) for value in two_of_three.values())
    assert set(evaluate("regression", SIGNAL, X[:, 0])) == {"rmse", "mae", "r2", "mape"}
    assert set(evaluate("regression", np.round(SIGNAL), X[:, 0], ["mphe"])) == {"mphe", "rmse", "mae", "r2"}
    assert set(evaluate("ranking", label, X[:, 0], ["ndcg@5"], group=GROUP)) == {"ndcg@5", "ndcg", "ndcg@10"}
    assert "map" in evaluate("ranking", np.minimum(label, 1), X[:, 0], group=GROUP)


def test_ranking_needs_no_sorted_groups() -> None:
    shuffled = RANDOM.permutation(NUM)
    label = np.digitize(SIGNAL, [0, 1, 2])
    for name in ("ndcg", "ndcg@3", "pre@2"):
        relevance = np.minimum(label, 1) if name.startswith("pre") else label
        ordered = metric_of(name, "ranking", relevance, X[:, 0], group=GROUP)
        assert metric_of(name, "ranking", relevance[shuffled], X[shuffled, 0], group=GROUP[shuffled]) == pytest.approx(ordered)


@pytest.mark.parametrize(
    ("task", "prediction", "match"),
    [
        ("binary", np.array([0.1, 0.2]), r"must have the shape \(3,\), got \(2,\)"),
        ("binary", np.array([0.1, 0.2, 1.7]), "must be probabilities from 0 to 1, got 0.1 to 1.7"),
        ("binary", np.array([0.1, np.nan, 0.7]), "must be finite, got 1 that are not"),
        ("multiclass", np.array([0.1, 0.2, 0.7]), r"must have the shape \(3, number of classes\)"),
    ],
)
def test_predictions_that_are_none(task: Task, prediction: Any, match: str) -> None:
    with pytest.raises(ExperimentError, match=match):
        metric_of("auc", task, np.array([0, 1, 1]), prediction)


def test_precision_of_graded_relevance_is_refused() -> None:
    with pytest.raises(ExperimentError, match="metric: map needs labels 0 and 1, got a label of 2; use ndcg"):
        metric_of("map", "ranking", np.array([0, 1, 2]), np.array([1.0, 2.0, 3.0]), group=np.zeros(3, dtype=np.int64))


def cost(label: Any, score: Any, threshold: float, costs: Costs) -> float:
    called = np.asarray(score) > threshold
    positive = np.asarray(label) == 1
    return float((called & ~positive).sum() * costs.fp + (~called & positive).sum() * costs.fn) / len(positive)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 1), st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=30
    ),
    fp=st.sampled_from([0.1, 1, 3]),
    fn=st.sampled_from([0.3, 1, 5]),
)
def test_threshold_is_the_cheapest(rows: list[tuple[int, float]], fp: float, fn: float) -> None:
    label, score = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=np.float32)
    costs = Costs(fp=fp, fn=fn)
    chosen = choose_threshold(label, score, costs, "validation")
    least = min(cost(label, score, threshold, costs) for threshold in [-1.0, *score.tolist()])
    assert chosen.cost_per_row == pytest.approx(least, abs=1e-12)
    assert cost(label, score, chosen.value, costs) == pytest.approx(least, abs=1e-12)
    assert cost(label, score.astype(np.float64), chosen.value, costs) == pytest.approx(least, abs=1e-12)


def test_threshold_lies_midway_and_near_a_half() -> None:
    chosen = choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.25, 0.75, 0.9]), Costs(), "validation")
    assert (chosen.value, chosen.cost_per_row, chosen.chosen_on) == (0.5, 0.0, "validation")
    scores = np.array([0.125, 0.25, 0.5, 0.75])
    assert choose_threshold(np.array([0, 1, 0, 1]), scores, Costs(), "v").value == 0.625  # 0.1875 costs as much
    assert choose_threshold(np.array([0, 1, 0, 1]), scores, Costs(fp=1, fn=5), "v").value == 0.1875
    neighbours = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], dtype=np.float32)
    assert choose_threshold(np.array([0, 1]), neighbours, Costs(), "v").cost_per_row == 0
    assert choose_threshold(np.array([1, 1]), np.array([0.0, 0.4]), Costs(), "v").value == -1.0
