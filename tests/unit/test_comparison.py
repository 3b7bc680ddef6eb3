"""The paired bootstrap: its figures are `metric_of`'s, its bound covers what it should, and the two ways of drawing agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from toolkit.core import comparison
from toolkit.core.comparison import compare, units_of
from toolkit.core.figures import Order, Prediction, Rows, figure_of
from toolkit.core.metrics import KNOWN_METRICS, LARGER_IS_BETTER, SMALLER_IS_BETTER, larger_is_better
from toolkit.core.model import Task
from toolkit.engines.sklearn_evaluation import metric_of

NUM = 400
ARGUMENTS = {"tweedie-nloglik": "@1.5", "ndcg": "@4", "pre": "@3"}
CASES = [(task, name + ARGUMENTS.get(name, "")) for task, names in KNOWN_METRICS.items() for name in names]


def problem(task: Task, num: int = NUM, *, weighted: bool, seed: int = 3) -> tuple[Rows, Prediction, Prediction]:
    """Rows, a better and a worse prediction of them, with ties."""
    random = np.random.default_rng(seed)
    signal = random.normal(size=num)
    noises = (0.4, 0.9)
    group = None
    if task == "binary":
        label = (random.random(num) < 1 / (1 + np.exp(-2 * signal))).astype(np.float64)
        values = [np.round(1 / (1 + np.exp(-2 * (signal + noise * random.normal(size=num)))), 3) for noise in noises]
    elif task == "multiclass":
        label = np.clip(np.round(signal + 1.5), 0, 3)
        logits = [-((np.arange(4) - 1.5 - (signal + noise * random.normal(size=num))[:, None]) ** 2) for noise in noises]
        values = [np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in logits]
    elif task == "regression":
        label = np.exp(signal)
        values = [np.exp(signal + noise * random.normal(size=num)) for noise in noises]
    else:
        group = np.sort(random.integers(0, num // 9, num))
        label = (signal > 0.3).astype(np.float64)
        values = [np.round(signal + noise * random.normal(size=num), 2) for noise in noises]
    weight = random.uniform(0.2, 3, num) if weighted else None
    if weight is not None and group is not None:
        weight = weight[group]
    better, worse = (Prediction(each, threshold) for each, threshold in zip(values, (0.45, 0.6), strict=True))
    return Rows(task, label, weight, group), better, worse


def direct(name: str, rows: Rows, prediction: Prediction) -> float:
    return metric_of(name, rows.task, rows.label, prediction.values, weight=rows.weight, group=rows.group, threshold=prediction.threshold)


def test_every_metric_has_a_direction() -> None:
    assert {name for names in KNOWN_METRICS.values() for name in names} == LARGER_IS_BETTER | SMALLER_IS_BETTER
    assert not LARGER_IS_BETTER & SMALLER_IS_BETTER


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("task", "name"), CASES)
def test_difference_is_that_of_the_metric_and_points_to_the_better_model(task: Task, name: str, weighted: bool) -> None:
    rows, better, worse = problem(task, weighted=weighted)
    result = compare(name, rows, better, worse, metric_of)
    sign = 1 if larger_is_better(name) else -1
    assert result.difference == pytest.approx(sign * (direct(name, rows, better) - direct(name, rows, worse)), abs=1e-9)
    assert result.difference > 0, "the prediction with less noise is the better one"
    assert result.bound < result.difference
    other = compare(name, rows, worse, better, metric_of)
    assert other.difference == pytest.approx(-result.difference)
    assert other.bound < 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("task", "name"), [("binary", "auc"), ("binary", "aucpr"), ("multiclass", "auc")])
def test_a_linearised_figure_is_the_derivative_of_the_exact_one(task: Task, name: str, weighted: bool) -> None:
    rows, better, _ = problem(task, weighted=weighted)
    figure = figure_of(name, rows, better, metric_of)
    assert isinstance(figure, Order)
    sums = figure.linear()
    columns = np.stack(list(sums.columns()), axis=1)
    assert sums.of(columns.sum(axis=0, keepdims=True))[0] == pytest.approx(direct(name, rows, better), abs=1e-12)
    nudge = 1 + 1e-5 * np.random.default_rng(0).normal(size=NUM)
    exact = figure.exact(rows.weights * nudge) - figure.exact(rows.weights)
    linear = sums.of((nudge[:, None] * columns).sum(axis=0, keepdims=True))[0] - figure.exact(rows.weights)
    assert linear == pytest.approx(exact, rel=1e-2, abs=1e-10)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_the_same_model_twice_differs_by_nothing(task: Task, name: str) -> None:
    rows, better, _ = problem(task, weighted=False)
    result = compare(name, rows, better, better, metric_of)
    assert (result.difference, result.bound) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("task", "name"),
    [("binary", "auc"), ("binary", "aucpr"), ("binary", "logloss"), ("binary", "f1"), ("multiclass", "auc"), ("regression", "r2")],
)
def test_blocks_and_rows_give_the_same_bound(task: Task, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the error of 2,000 draws, about 4 % of the half width between them."""
    rows, better, worse = problem(task, 4_000, weighted=True)
    exact = compare(name, rows, better, worse, metric_of)
    assert "4,000 rows" in exact.method
    monkeypatch.setattr(comparison, "EXACT_ROWS", 3_000)
    monkeypatch.setattr(comparison, "NUM_BLOCKS", 1_000)
    blocks = compare(name, rows, better, worse, metric_of)
    assert "1,000 random blocks of the 4,000 rows" in blocks.method
    assert blocks.difference == pytest.approx(exact.difference, abs=1e-12)
    half_width = exact.difference - exact.bound
    assert blocks.bound == pytest.approx(exact.bound, abs=0.15 * half_width)


def test_same_judgement_twice() -> None:
    rows, better, worse = problem("binary", weighted=False)
    assert compare("auc", rows, better, worse, metric_of) == compare("auc", rows, better, worse, metric_of)


@pytest.mark.parametrize("name", ["auc", "logloss"])
def test_the_bound_covers_the_truth_in_95_of_100_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models are equally good by construction, so the true difference is 0 and the bound must be below it 95 times in 100.

    Wide limits: 300 samples have a standard error of 1.3 %.
    """
    monkeypatch.setattr(comparison, "NUM_DRAWS", 200)
    random = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        signal = random.normal(size=200)
        label = (random.random(200) < 1 / (1 + np.exp(-2 * signal))).astype(np.float64)
        one, other = (Prediction(1 / (1 + np.exp(-2 * (signal + 0.6 * random.normal(size=200))))) for _ in range(2))
        covered += compare(name, Rows("binary", label), one, other, metric_of).bound <= 0
    assert 0.90 <= covered / 300 <= 0.985


def test_rows_of_one_group_are_drawn_together() -> None:
    """Ten copies of each row say no more than one; drawn one by one they would claim to."""
    rows, better, worse = problem("binary", 200, weighted=False)
    repeated = Rows("binary", np.repeat(rows.label, 10))
    many = [Prediction(np.repeat(each.values, 10), each.threshold) for each in (better, worse)]
    grouped = Rows("binary", repeated.label, unit=np.repeat(np.arange(200) * 7, 10))
    honest = compare("auc", rows, better, worse, metric_of)
    assert compare("auc", grouped, many[0], many[1], metric_of).bound == pytest.approx(honest.bound, abs=1e-12)
    assert compare("auc", repeated, many[0], many[1], metric_of).bound > honest.bound


def test_equal_rows_are_drawn_together() -> None:
    rows, better, worse = problem("binary", 200, weighted=False)
    copies = np.tile(np.arange(200), 10)
    repeated = Rows("binary", rows.label[copies])
    many = [Prediction(each.values[copies], each.threshold) for each in (better, worse)]
    units = units_of(repeated, copies.astype(np.uint64))
    assert (units.num, units.name) == (200, "different rows")
    honest = compare("auc", rows, better, worse, metric_of)
    assert compare("auc", repeated, many[0], many[1], metric_of, units).bound == pytest.approx(honest.bound, abs=1e-12)
    distinct = units_of(rows, np.arange(200, dtype=np.uint64))
    assert distinct.name == "rows" and compare("auc", rows, better, worse, metric_of, distinct) == honest
    groups = units_of(Rows("binary", rows.label, unit=np.arange(200) % 20), np.zeros(200, dtype=np.uint64))
    assert (groups.num, groups.name, groups.are_rows) == (20, "groups", False)


def test_a_class_too_rare_to_be_drawn_gives_no_bound() -> None:
    _, better, worse = problem("binary", weighted=False)
    label = np.zeros(NUM)
    label[7] = 1
    result = compare("auc", Rows("binary", label), better, worse, metric_of)
    assert result.bound == -math.inf


@pytest.mark.parametrize("name", ["auc", "logloss"])
def test_a_prediction_that_is_not_a_number_is_refused(name: str) -> None:
    rows, better, worse = problem("binary", weighted=False)
    broken: Any = better.values.copy()
    broken[3] = math.nan
    with pytest.raises(ValueError, match="finite"):
        compare(name, rows, Prediction(broken), worse, metric_of)


def test_a_figure_outside_its_domain_gives_no_bound() -> None:
    rows, better, worse = problem("regression", weighted=False)
    below = Prediction(better.values - 100)
    assert compare("rmsle", rows, below, worse, metric_of).bound == -math.inf


def test_a_metric_of_another_task_is_refused() -> None:
    rows, better, worse = problem("binary", weighted=False)
    with pytest.raises(ValueError, match="no figure 'ndcg' of a binary task"):
        compare("ndcg", rows, better, worse, metric_of)
