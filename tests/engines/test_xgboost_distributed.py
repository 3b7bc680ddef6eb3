"""One worker's part of a distributed training, alone: what a training that is broken off and begun again comes to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xgboost

from toolkit.core.errors import ExperimentError
from toolkit.engines.parquet_shards import Columns
from toolkit.engines.xgboost_distributed import Progress, RowFile, Stopping, boost, check_params, matrix_of

pytestmark = pytest.mark.engine

COLUMNS = Columns({"a": None, "b": None, "c": ("x", "y", "z"), "d": None}, "label", classes=(0, 1), weight="w", are_codes=True)
PARAMS: dict[str, Any] = {"objective": "binary:logistic", "eval_metric": ["auc", "logloss"], "eta": 0.5, "nthread": 1, "seed": 7}
STOPPING = Stopping("auc", "maximize", 8)
ROUNDS, EVERY = 40, 5


def some_rows(num_rows: int, seed: int) -> Any:
    """(n, 6): features, label, weight."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(num_rows, 6)).astype(np.float32)
    rows[:, 2] = random.integers(3, size=num_rows)
    rows[:, 4] = random.random(num_rows) < 1 / (1 + np.exp(-rows[:, 0] * rows[:, 1] - rows[:, 2]))
    rows[:, 5] = random.random(num_rows)
    rows[random.random(num_rows) < 0.1, 0] = np.nan
    return rows


TRAIN, VALIDATION = some_rows(5_000, 0), some_rows(1_000, 1)


def in_file(rows: Any, rows_per_batch: int = 777) -> RowFile:
    file = RowFile(6, rows_per_batch)
    for start in range(0, len(rows), 1234):
        file.append(rows[start : start + 1234])
    assert file.num_rows == len(rows)
    return file


def matrices(params: dict[str, Any]) -> tuple[Any, Any]:
    train = matrix_of(in_file(TRAIN), COLUMNS, params)
    return train, matrix_of(in_file(VALIDATION), COLUMNS, params, like=train)


def run(params: dict[str, Any], begun: Progress | None = None, stopping: Stopping = STOPPING) -> tuple[Progress, list[Progress]]:
    """What it ends with, and what it reports on the way."""
    reports: list[Progress] = []

    def report(progress: Progress) -> None:
        reports.append(Progress(progress.model, {name: list(curve) for name, curve in progress.history.items()}, progress.num_rounds))

    return boost(params, *matrices(params), stopping, ROUNDS, begun or Progress(), EVERY, report), reports


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"subsample": 0.5},
        {"colsample_bytree": 0.5, "colsample_bynode": 0.7},
        {"booster": "dart", "rate_drop": 0.3},
        {"max_bin": 32, "grow_policy": "lossguide", "max_leaves": 9},
        {"objective": "reg:squarederror", "eval_metric": ["rmse", "auc"]},
        {"objective": "multi:softprob", "num_class": 2, "eval_metric": ["mlogloss", "auc"]},
    ],
    ids=str,
)
def test_a_training_begun_again_ends_with_the_same_bytes(more: dict[str, Any]) -> None:
    params = {**PARAMS, **more}
    whole, reports = run(params)
    assert [each.num_rounds for each in reports] == list(range(EVERY, whole.num_rounds, EVERY)) and len(reports) >= 2
    for number, begun in enumerate(reports):
        again, later = run(params, begun)
        assert again == whole
        assert later == reports[number + 1 :]


def test_the_best_round_before_the_break_counts() -> None:
    whole, reports = run(PARAMS)
    best = int(np.argmax(whole.history["auc"]))
    assert whole.best_iteration(STOPPING) == best and whole.num_rounds == best + 1 + 8 < ROUNDS
    begun = next(each for each in reports if each.num_rounds > best + 1)
    again, _ = run(PARAMS, begun)
    assert again.num_rounds == whole.num_rounds and again.best_iteration(STOPPING) == best
    booster = xgboost.Booster()
    booster.load_model(bytearray(again.model or b""))
    assert booster.num_boosted_rounds() == best + 1 and booster.feature_names == ["a", "b", "c", "d"]
    assert booster.feature_types == ["q", "q", "c", "q"]


def test_batches_and_their_weights_are_those_of_the_rows() -> None:
    train, _ = matrices(PARAMS)
    whole = xgboost.QuantileDMatrix(
        TRAIN[:, :4],
        label=TRAIN[:, 4],
        weight=TRAIN[:, 5],
        feature_names=[*"abcd"],
        feature_types=["q", "q", "c", "q"],
        enable_categorical=True,
    )
    for of in ("get_label", "get_weight"):
        assert np.array_equal(getattr(train, of)(), getattr(whole, of)())
    assert train.num_nonmissing() == whole.num_nonmissing() and train.num_row() == len(TRAIN)
    assert np.array_equal(train.get_data().toarray(), whole.get_data().toarray())


def test_without_rounds_to_wait_for_all_are_fitted_and_the_best_is_kept() -> None:
    whole, _ = run(PARAMS, stopping=replace(STOPPING, rounds=None))
    assert whole.num_rounds == ROUNDS
    least, _ = run(PARAMS, stopping=Stopping("logloss", "minimize", 3))
    assert least.best_iteration(Stopping("logloss", "minimize", 3)) == int(np.argmin(least.history["logloss"]))


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({"max_depth": -3}, "value -3 for Parameter max_depth should be greater equal to 0"),
        ({"objective": "binary:logistical"}, "Unknown objective function: `binary:logistical`"),
        ({"tree_method": "exact"}, "tree_method='exact'"),
        ({"booster": "gblinear"}, "booster='gblinear'"),
        ({"objective": "rank:ndcg"}, "objective='rank:ndcg'"),
        ({"max_bin": 1}, "Check failed: max_bin >= 2 (1 vs. 2) : `max_bin` must be equal to or greater than 2."),
        ({"device": "cuda"}, "device='cuda'"),
        ({"eta": "quick"}, "Invalid Parameter format for learning_rate expect float but value='quick'"),
    ],
)
def test_parameters_that_do_not_fit(more: dict[str, Any], got: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        check_params({**PARAMS, **more}, "auc", COLUMNS)
    assert "\n" not in str(caught.value) and f"got {got}" in str(caught.value)


def test_parameters_that_fit() -> None:
    check_params(PARAMS, "auc", COLUMNS)
    check_params(
        {**PARAMS, "objective": "count:poisson", "eval_metric": ["poisson-nloglik"]}, "poisson-nloglik", replace(COLUMNS, classes=None)
    )
    many = {**PARAMS, "objective": "multi:softprob", "num_class": 3, "eval_metric": ["mlogloss"]}
    check_params(many, "mlogloss", replace(COLUMNS, classes=("x", "y", "z")))
