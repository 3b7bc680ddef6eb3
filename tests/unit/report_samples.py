"""Synthetic sweeps for the report's tests: each looks as a real one would, and none needs an engine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.core.data import DataSource
from toolkit.core.evaluation import Evaluation, Threshold
from toolkit.core.experiment import Costs, Dataset, Experiment, Metric, Sweep
from toolkit.core.model import XGBoost
from toolkit.core.result import SweepResult
from toolkit.core.space import Categorical, Float, Int
from toolkit.core.study import TrialRecord, TrialResult, TrialState, best_record, pareto_front

START = 1_767_323_045.0
FEATURES = (
    "fixed_acidity", "volatile_acidity", "citric_acid", "residual_sugar", "chlorides", "free_sulfur_dioxide", "total_sulfur_dioxide",
    "density", "pH", "sulphates", "alcohol", "is_red",
)  # fmt: skip
WINE_SPACE: dict[str, Any] = {
    "max_depth": Int(4, 20),
    "learning_rate": Float(math.exp(-3), math.exp(-1), log=True),
    "reg_alpha": Float(math.exp(-5), math.exp(-1), log=True),
    "reg_lambda": Float(math.exp(-6), math.exp(-1), log=True),
    "min_child_weight": Float(math.exp(-1), math.exp(3), log=True),
    "grow_policy": Categorical(("depthwise", "lossguide")),
    "seed": 123,
}
IMPORTANCES = {
    "max_depth": 0.41,
    "learning_rate": 0.27,
    "min_child_weight": 0.18,
    "reg_alpha": 0.09,
    "reg_lambda": 0.04,
    "grow_policy": 0.0,
}
TRACEBACK = """Traceback (most recent call last):
  File "/work/toolkit/engines/xgboost_model.py", line 88, in fit
    booster = xgb.train(params, train, num_boost_round=rounds)
  File "/usr/lib/python3.12/site-packages/xgboost/training.py", line 182, in train
    bst.update(dtrain, iteration=i, fobj=obj)
xgboost.core.XGBoostError: [06:13:02] bad allocation: 18.2 GiB for depth 20"""


def experiment(space: Any = None, metric: Any = None, **parts: Any) -> Experiment:
    parts.setdefault("model", XGBoost())
    parts.setdefault("sweep", Sweep(num_trials=50))
    return Experiment(
        name="wine-quality",
        dataset=Dataset(load="wine.csv", label="high_quality", key="wine_id"),
        space=WINE_SPACE if space is None else space,
        metric=metric or Metric("auc", "maximize"),
        costs=Costs(fp=1, fn=5),
        **parts,
    )


def drawn(space: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, part in space.items():
        if isinstance(part, Float):
            low, high = (math.log(part.low), math.log(part.high)) if part.log else (part.low, part.high)
            value = rng.uniform(low, high)
            params[name] = float(math.exp(value) if part.log else value)
        elif isinstance(part, Int):
            params[name] = int(rng.integers(part.low, part.high + 1))
        elif isinstance(part, Categorical):
            params[name] = part.choices[int(rng.integers(len(part.choices)))]
        else:
            params[name] = part
    return params


def records(
    num_trials: int = 50,
    space: Mapping[str, Any] | None = None,
    metric: str = "auc",
    num_slots: int = 4,
    with_other_states: bool = True,
    seed: int = 7,
) -> list[TrialRecord]:
    """Trials on `num_slots` processes, one after another with small gaps; some pruned and some failed."""
    rng = np.random.default_rng(seed)
    free = [START + 0.35 + 0.12 * slot for slot in range(num_slots)]
    made = []
    for number in range(num_trials):
        params = drawn(WINE_SPACE if space is None else space, rng)
        state = TrialState.COMPLETE
        if with_other_states and number % 17 == 11:
            state = TrialState.FAILED
        elif with_other_states and number % 6 == 4:
            state = TrialState.PRUNED
        seconds = float(rng.gamma(4, 0.12)) * (0.3 if state is not TrialState.COMPLETE else 1.0)
        depth, rate = params.get("max_depth", 8), params.get("learning_rate", 0.1)
        value = 0.86 - 0.0004 * (depth - 13) ** 2 - 0.012 * abs(math.log(float(rate) / 0.09)) + float(rng.normal(0, 0.004))
        value = 0.62 if number == 3 else value
        if state is TrialState.PRUNED:
            value -= 0.02
        slot = int(np.argmin(free))
        started = free[slot]
        free[slot] = started + seconds + 0.03
        rounds = int(rng.integers(60, 260)) if state is TrialState.COMPLETE else 40
        steps = range(10, rounds + 21, 10)
        history = [[step, value - 0.16 * math.exp(-step / 28) - 2e-7 * max(0, step - rounds) ** 2] for step in steps]
        made.append(
            TrialRecord(
                number,
                state,
                params,
                TrialResult(
                    number=number,
                    values=(value,) if state is TrialState.COMPLETE else (),
                    metrics={} if state is TrialState.FAILED else {metric: value},
                    history={} if state is TrialState.FAILED else {metric: history},
                    best_iteration=rounds - 1 if state is TrialState.COMPLETE else None,
                    started_unix_s=started,
                    ended_unix_s=started + seconds,
                    fit_wall_s=seconds * 0.97,
                    fit_cpu_s=seconds * 0.95,
                    host="node-a",
                    pid=4100 + slot,
                    stopped=state is TrialState.PRUNED,
                    error=TRACEBACK if state is TrialState.FAILED else None,
                ),
                num_retries=int(number == 28),
            )
        )
    return made


def binary_evaluation(num_rows: int = 1625, seed: int = 5) -> Evaluation:
    rng = np.random.default_rng(seed)
    label = (rng.random(num_rows) < 0.2).astype(np.float32)
    score = (1 / (1 + np.exp(-(rng.normal(-2.2, 1.2, num_rows) + 2.2 * label)))).astype(np.float32)
    gains = rng.gamma(1.2, 30, len(FEATURES))
    gains[-1] = 0.0
    return Evaluation(
        task="binary",
        classes=(False, True),
        label=label,
        prediction=score,
        metrics={"auc": 0.8521, "aucpr": 0.6214, "logloss": 0.3422, "accuracy": 0.8511, "f1": 0.5712},
        threshold=Threshold(0.173, Costs(fp=1, fn=5), "validation predictions", 0.31),
        importances=dict(zip(FEATURES, map(float, gains), strict=True)),
        num_rounds=188,
    )


def multiclass_evaluation(num_classes: int = 10, num_rows: int = 450) -> Evaluation:
    rng = np.random.default_rng(2)
    label = rng.integers(0, num_classes, num_rows).astype(np.float32)
    prediction = rng.random((num_rows, num_classes)).astype(np.float32)
    prediction[np.arange(num_rows), label.astype(int)] += 0.75
    prediction /= prediction.sum(axis=1, keepdims=True)
    metrics = {"mlogloss": 0.2412, "accuracy": 0.94}
    return Evaluation("multiclass", tuple(range(num_classes)), label, prediction, metrics, None, {"pixel_1": 3.0, "pixel_2": 1.0}, 90)


def regression_evaluation(num_rows: int = 111) -> Evaluation:
    rng = np.random.default_rng(3)
    label = rng.uniform(30, 330, num_rows).astype(np.float32)
    prediction = (0.6 * label + 60 + rng.normal(0, 40, num_rows)).astype(np.float32)
    return Evaluation("regression", None, label, prediction, {"rmse": 54.1, "mae": 43.2}, None, {"bmi": 10.0, "s5": 8.0}, 40)


def sweep_result(made: list[TrialRecord] | None = None, **changes: Any) -> SweepResult:
    """A finished honest sweep of 50 trials; any field of `SweepResult` may be replaced."""
    made = records() if made is None else made
    spec: Experiment = changes.pop("experiment", None) or experiment()
    front = pareto_front(made, [metric.direction for metric in spec.metrics]) if len(spec.metrics) > 1 else []
    best = front[0] if front else best_record(made, spec.metrics[0].direction)
    ended = max((record.result.ended_unix_s for record in made), default=START)
    fitted = sum(record.result.fit_wall_s for record in made)
    result = SweepResult(
        experiment=spec,
        study="wine-quality-honest",
        protocol="honest",
        cluster="local",
        sampler="tpe",
        scheduler="none",
        seed=123,
        num_trials=len(made),
        records=tuple(made),
        best=best,
        pareto=tuple(front),
        evaluation=binary_evaluation() if best else None,
        stopped_by=None,
        wall_s=ended - START + 5.6,
        cluster_start_s=3.1,
        search_s=ended - START,
        search_started_unix_s=START,
        fit_wall_s=fitted,
        fit_cpu_s=fitted * 0.97,
        num_slots=4,
        tracking_uri="sqlite:///mlflow.db",
        mlflow_experiment="main_wine-quality",
        parent_run_id="0f3c9a7be2d14b5c8a6e1d2f3b4c5d6e",
        model_uri="models:/m-5f0c2",
        report_path=".toolkit/reports/wine-quality-honest.html",
        source=DataSource("environment", "/work/shared/data", "b1c2" * 16, 6497, 12),
        feature_names=FEATURES,
        split_description="Random: a quarter for the test, a fifth of the rest for validation; equal rows stay together (seed 123).",
        num_train_rows=3897,
        num_validation_rows=975,
        num_test_rows=1625,
        num_unsent=0,
        started_unix_s=START - 4.0,
        versions={"python": "3.12.3", "ray": "2.60.1", "optuna": "5.0.0", "xgboost": "3.1.1", "mlflow": "3.8.1"},
        git_commit="4f9d1c2a7b",
    )
    return dataclasses.replace(result, **changes)


def two_metric_result(num_trials: int = 50) -> SweepResult:
    rng = np.random.default_rng(11)
    made = []
    for record in records(num_trials):
        if record.state is TrialState.COMPLETE:
            values = (record.values[0], float(record.params["max_depth"]) * 0.2 + float(rng.gamma(3, 0.3)))
            result = dataclasses.replace(record.result, values=values, metrics={"auc": values[0], "logloss": values[1]})
            record = dataclasses.replace(record, result=result)
        made.append(record)
    metrics = (Metric("auc", "maximize"), Metric("logloss", "minimize"))
    return sweep_result(made, experiment=experiment(metric=metrics))
