import dataclasses

import pytest
from pydantic import ValidationError

from toolkit.core.errors import ExperimentError
from toolkit.core.experiment import Asha, Dataset, Experiment, Median, Metric, Split, Sweep
from toolkit.core.gates import Gate
from toolkit.core.model import Custom, XGBoost
from toolkit.core.overrides import problems
from toolkit.core.space import Categorical, Int

PARTS = {
    "name": "tiny",
    "dataset": Dataset("table.csv", "label"),
    "model": XGBoost(),
    "space": {"max_depth": Int(1, 9)},
    "metric": Metric("auc", "maximize"),
}


def build(**changes):
    return Experiment(**{**PARTS, **changes})


def line(**changes):
    """The one line a user sees."""
    with pytest.raises(ValidationError) as caught:
        build(**changes)
    text = problems(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {}}, "space: needs at least one Float, Int, Categorical or Branch, got an empty space"),
        ({"space": {"max_depth": 4}}, "got 1 constants"),
        ({"space": 3}, "space: a mapping or a function of a trial, got int"),
        ({"name": "Wine Quality"}, "name: lower-case letters"),
        ({"name": ""}, "name: lower-case letters"),
        ({"metric": Metric("f1", "maximize")}, "metric: binary:logistic does not report it, got 'f1'"),
        ({"metric": Metric("acu", "maximize")}, "did you mean 'auc'?"),
        ({"metric": Metric("rmsle", "minimize")}, "metric: binary:logistic does not report it"),
        ({"metric": (Metric("auc", "maximize"), Metric("auc", "minimize"))}, "metric: the two names must differ, got 'auc'"),
        ({"points_to_evaluate": ({"max_dept": 3},)}, "points_to_evaluate[0]: unknown parameter, got 'max_dept'; did you mean 'max_depth'?"),
        (
            {"points_to_evaluate": ({"max_depth": 3}, {"max_depth": 10})},
            "points_to_evaluate[1].max_depth must be a whole number from 1 to 9",
        ),
        ({"split": Split(by="time")}, 'split.by: "time" needs dataset.time'),
        ({"split": Split(by="group")}, 'split.by: "group" needs dataset.group'),
        ({"model": XGBoost(params={"max_depth": 3})}, "space: parameter is set by the model already, got 'max_depth'"),
        ({"space": {"objective": Categorical(["a", "b"])}}, "space: parameter is set by the model already, got 'objective'"),
        ({"model": XGBoost(device="cuda")}, 'model.device: "cuda" needs sweep.gpus_per_trial, got 0; add --set sweep.gpus_per_trial=1'),
        ({"model": XGBoost(objective="rank:ndcg"), "metric": Metric("ndcg@10", "maximize")}, "dataset.group: a ranking needs"),
        ({"model": {"kind": "forest"}}, "Experiment.model: kind must be one of 'xgboost', 'custom'"),
        ({"gates": (Gate("rmse", at_most=3), Gate("r2", at_least=0.5))}, "metric: unknown for a binary task, got 'r2'"),
        ({"gates": (Gate("auc@5", at_least=0.5),)}, "metric: auc takes no argument, got 'auc@5'"),
        ({"metric": 3}, "Experiment.metric: must be a Metric, got 3"),
        (
            {
                "dataset": Dataset("table.csv", "label", positive="ja"),
                "model": XGBoost("reg:squarederror"),
                "metric": Metric("rmse", "minimize"),
            },
            "dataset.positive: for binary models, got 'ja' and a regression model; remove it",
        ),
        (
            {"sweep": {"scheduler": {"kind": "asha", "grace_period": 0}}},
            "Experiment.sweep.scheduler.grace_period: must be at least 1, got 0",
        ),
    ],
)
def test_a_wrong_experiment_is_refused_in_one_line(changes, words):
    assert words in line(**changes)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Split(test=1.5), "Split.test: must be less than 1, got 1.5"),
        (lambda: Split(test=1.5, folds=1), "Split.test: must be less than 1, got 1.5; Split.folds: must be at least 2, got 1"),
        (lambda: Split(tset=0.5), "Split.tset: unknown field, got 0.5; did you mean 'test'?"),
        (lambda: Split("weekly"), "Split.by: must be 'random', 'time' or 'group', got 'weekly'"),
        (lambda: Sweep(num_trials=0), "Sweep.num_trials: must be at least 1, got 0"),
        (lambda: Sweep(num_trials=2.5), "Sweep.num_trials: must be a whole number, got 2.5"),
        (lambda: Sweep(concurrency=-1), "Sweep.concurrency: must be at least 1, got -1"),
        (lambda: Sweep(timeout_s=0), "Sweep.timeout_s: must be greater than 0, got 0"),
        (lambda: Sweep(seed=2**32), f"Sweep.seed: must be less than 4294967296, got {2**32}"),
        (lambda: Dataset("x"), "Dataset.label: is required"),
        (lambda: Int(5, 2), "Int: low <= high must hold, got low=5, high=2"),
        (lambda: Int("many", 2), "Int.low: must be a whole number, got 'many'"),
        (lambda: Custom(fit="no"), "Custom.fit: must be a function, got 'no'"),
    ],
)
def test_validation_errors_name_the_field(make, text):
    with pytest.raises(ValidationError) as caught:
        make()
    assert problems(caught.value) == text


def test_two_metrics_exclude_a_scheduler():
    both = (Metric("auc", "maximize"), Metric("logloss", "minimize"))
    assert build(metric=both).metrics == both
    assert "sweep.scheduler: none with two metrics" in line(metric=both, sweep=Sweep(scheduler=Asha()))


@pytest.mark.parametrize(
    ("objective", "task"),
    [("binary:logistic", "binary"), ("multi:softprob", "multiclass"), ("reg:squarederror", "regression"), ("rank:ndcg", "ranking")],
)
def test_the_objective_decides_the_task(objective, task):
    assert XGBoost(objective=objective).task == task


def test_an_experiment_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().name = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().sweep.seed = 3


def test_registered_name():
    assert build(name="wine-quality").registered_name == "wine_quality"
    assert build(model_name="catalog.schema.wine").registered_name == "catalog.schema.wine"


def test_failure_limit_is_a_fifth_at_least_one():
    assert [Sweep(num_trials=n).failure_limit for n in (1, 4, 50)] == [1, 1, 10]
    assert Sweep(max_failed_trials=0).failure_limit == 0


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"space": {"max_depth": Int(1, 8)}}, "space.max_depth.high"),
        ({"space": {"max_depth": Int(1, 9), "eta": Int(1, 2)}}, "space.eta"),
        ({"metric": Metric("logloss", "minimize")}, "metric[0].name"),
        ({"split": Split(seed=1)}, "split.seed"),
        ({"sweep": Sweep(scheduler=Median())}, "scheduler"),
        ({"model": XGBoost(params={"eta": 0.1})}, "model.params.eta"),
        ({"dataset": Dataset("table.csv", "other")}, "dataset.label"),
        ({"dataset": Dataset("table.csv", "label", positive="ja")}, "dataset.positive"),
    ],
)
def test_the_fingerprint_shows_what_differs(changes, path):
    one, other = build().fingerprint("honest"), build(**changes).fingerprint("honest")
    assert path in {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_the_fingerprint_does_not_count_how_the_search_is_run():
    assert build().fingerprint("honest") == build(sweep=Sweep(num_trials=9, concurrency=3, timeout_s=5)).fingerprint("honest")
    assert build().fingerprint("honest") != build().fingerprint("published")


def test_the_fingerprint_of_a_study_without_a_positive_class_is_what_it_was():
    assert "dataset.positive" not in build().fingerprint("honest")
    one, other = (build(dataset=Dataset("table.csv", "label", positive=value)).fingerprint("honest") for value in (1, "1"))
    assert one == other


def test_the_fingerprint_counts_the_source_of_functions():
    def fit(params, train, validation, report):
        return 1

    def other(params, train, validation, report):
        return 2

    custom = build(model=Custom(fit=fit))
    assert custom.fingerprint("honest") == build(model=Custom(fit=fit)).fingerprint("honest")
    assert custom.fingerprint("honest") != build(model=Custom(fit=other)).fingerprint("honest")


def test_a_raised_experiment_error_keeps_its_words():
    error = ExperimentError("a rule\nin two lines", got="x", next_step="do that")
    assert str(error) == "a rule in two lines, got x; do that"
