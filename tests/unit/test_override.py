import random

import pytest

from toolkit.core.errors import ExperimentError
from toolkit.core.experiment import Asha, Dataset, Experiment, Median, Metric, Sampler
from toolkit.core.model import XGBoost
from toolkit.core.overrides import override
from toolkit.core.space import Branch, Categorical, Float, Int


@pytest.fixture
def experiment():
    return Experiment(
        name="tiny",
        dataset=Dataset("table.csv", "label"),
        model=XGBoost(),
        space={
            "max_depth": Int(1, 20),
            "grow_policy": Categorical(("depthwise", "lossguide")),
            "booster": Branch({"gbtree": {}, "dart": {"rate_drop": Float(0.0, 0.5)}}),
            "tree": {"gamma": Float(0.0, 1.0)},
        },
        metric=Metric("auc", "maximize"),
        points_to_evaluate=({"max_depth": 3}, {"max_depth": 4}),
    )


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("sweep.num_trials=200", lambda e: e.sweep.num_trials == 200),
        ("sweep.timeout_s=1.5", lambda e: e.sweep.timeout_s == 1.5),
        ("sweep.concurrency=null", lambda e: e.sweep.concurrency is None),
        ("sweep.concurrency=none", lambda e: e.sweep.concurrency is None),
        ("model.early_stopping_rounds=None", lambda e: e.model.early_stopping_rounds is None),
        ("space.max_depth.high=12", lambda e: e.space["max_depth"] == Int(1, 12)),
        ('space.max_depth={"low":2,"high":4}', lambda e: e.space["max_depth"] == Int(2, 4)),
        ('space.grow_policy.choices=["lossguide"]', lambda e: e.space["grow_policy"].choices == ("lossguide",)),
        ("space.booster.options.dart.rate_drop.high=0.7", lambda e: e.space["booster"].options["dart"]["rate_drop"].high == 0.7),
        ("space.tree.gamma.low=0.5", lambda e: e.space["tree"]["gamma"].low == 0.5),
        ("space.tree.gamma=0.25", lambda e: e.space["tree"]["gamma"] == 0.25),
        ("model.params.tree_method=hist", lambda e: e.model.params == {"tree_method": "hist"}),
        ("model.params.max_bin=64", lambda e: e.model.params == {"max_bin": 64}),
        ("model.params.text=a=b", lambda e: e.model.params == {"text": "a=b"}),
        ("model.params.list=[1,2]", lambda e: e.model.params == {"list": [1, 2]}),
        ("sweep.sampler.options.n_startup_trials=4", lambda e: e.sweep.sampler.options == {"n_startup_trials": 4}),
        ("sweep.sampler=random", lambda e: e.sweep.sampler == Sampler("random")),
        ("sweep.scheduler=asha", lambda e: e.sweep.scheduler == Asha()),
        ('sweep.scheduler={"kind":"asha","grace_period":10}', lambda e: e.sweep.scheduler == Asha(grace_period=10)),
        ('sweep.scheduler={"kind":"median"}', lambda e: e.sweep.scheduler == Median()),
        ('metric={"name":"logloss","direction":"minimize"}', lambda e: e.metric == Metric("logloss", "minimize")),
        (
            'metric=[{"name":"auc","direction":"maximize"},{"name":"logloss","direction":"minimize"}]',
            lambda e: e.metrics == (Metric("auc", "maximize"), Metric("logloss", "minimize")),
        ),
        ("points_to_evaluate[1].max_depth=5", lambda e: e.points_to_evaluate == ({"max_depth": 3}, {"max_depth": 5})),
        ("points_to_evaluate.0.max_depth=5", lambda e: e.points_to_evaluate[0] == {"max_depth": 5}),
        ("points_to_evaluate[0].grow_policy=lossguide", lambda e: e.points_to_evaluate[0]["grow_policy"] == "lossguide"),
        ("dataset.label=3", lambda e: e.dataset.label == "3"),
        ('dataset.exclude=["a","b"]', lambda e: e.dataset.exclude == ("a", "b")),
        ("split.keep_duplicates_together=false", lambda e: e.split.keep_duplicates_together is False),
        ("split.keep_duplicates_together=False", lambda e: e.split.keep_duplicates_together is False),
        (" sweep.seed = 5 ", lambda e: e.sweep.seed == 5),
    ],
)
def test_what_can_be_set(experiment, setting, found):
    assert found(override(experiment, [setting]))


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("sweep.num_trails=3", "sweep.num_trails: unknown field, got 'num_trails'; did you mean 'num_trials'?"),
        ("swep.num_trials=3", "swep: unknown field, got 'swep'; did you mean 'sweep'?"),
        ("sweep.num_trials=0", "sweep.num_trials: must be at least 1, got 0"),
        ("sweep.num_trials=many", "sweep.num_trials: must be a whole number, got 'many'"),
        ("split.test=1.5", "split.test: must be less than 1, got 1.5"),
        ('split={"test":1.5,"folds":1}', "split.test: must be less than 1, got 1.5; split.folds: must be at least 2, got 1"),
        ("space.max_dept.high=3", "space.max_dept: unknown parameter, got 'max_dept'; did you mean 'max_depth'?"),
        ("space.colour=3", "space.colour: unknown parameter, got 'colour'; known: booster, grow_policy, max_depth, tree"),
        ("space.tree.gama=3", "space.tree.gama: unknown parameter, got 'gama'; did you mean 'gamma'?"),
        ("space.max_depth.lo=3", "space.max_depth.lo: unknown field, got 'lo'; did you mean 'low'?"),
        ("space.max_depth.high=0", "space.max_depth: low <= high must hold, got low=1, high=0"),
        (
            "space.booster.options.dart.rate_drop.high=-1",
            "space.booster.options.dart.rate_drop: low <= high must hold, got low=0.0, high=-1.0",
        ),
        ("sweep.scheduler=ahsa", "sweep.scheduler: kind must be one of asha, median, got 'ahsa'; did you mean 'asha'?"),
        (
            "sweep.scheduler.grace_period=3",
            "sweep.scheduler.grace_period: sweep.scheduler must have fields, got None; set it first: --set sweep.scheduler=asha",
        ),
        ('sweep.scheduler={"grace_period":10}', "sweep.scheduler: kind must be one of asha, median, got None"),
        (
            'sweep.scheduler={"kind":"asha","grace_perod":10}',
            "sweep.scheduler.grace_perod: unknown field, got 10; did you mean 'grace_period'?",
        ),
        ("points_to_evaluate[2].max_depth=5", "points_to_evaluate[2]: must be a position from 0 to 1, got 2"),
        ("points_to_evaluate[0].max_dept=5", "points_to_evaluate[0]: unknown parameter, got 'max_dept'; did you mean 'max_depth'?"),
        ("metric=auc", "metric.direction: is required"),
        ("metric.name=acu", "metric: binary:logistic does not report it, got 'acu'; did you mean 'auc'?"),
        ("sweep=3", "sweep: must be a Sweep, got 3"),
        ("sweep.num_trials.x=3", "sweep.num_trials.x: sweep.num_trials must have fields, got 50; nothing lies below sweep.num_trials"),
        ("dataset.exclude=quality", "dataset.exclude: must be a list, got 'quality'"),
        ("model.kind=custom", "model.kind: must be 'xgboost', got 'custom'"),
        ("num_trials", "an override is PATH=VALUE, got 'num_trials'; for example sweep.num_trials=200"),
        ("sweep..seed=3", "an override is PATH=VALUE, got 'sweep..seed=3'; for example sweep.num_trials=200"),
        ("]sweep.seed=3", "an override is PATH=VALUE, got ']sweep.seed=3'; for example sweep.num_trials=200"),
        ("[sweep].seed=3", "an override is PATH=VALUE, got '[sweep].seed=3'; for example sweep.num_trials=200"),
        ("sweep]seed=3", "an override is PATH=VALUE, got 'sweep]seed=3'; for example sweep.num_trials=200"),
        ("sw]eep.seed=3", "an override is PATH=VALUE, got 'sw]eep.seed=3'; for example sweep.num_trials=200"),
        (
            "points_to_evaluate[0.max_depth=3",
            "an override is PATH=VALUE, got 'points_to_evaluate[0.max_depth=3'; for example sweep.num_trials=200",
        ),
        (
            "points_to_evaluate[[0]].max_depth=3",
            "an override is PATH=VALUE, got 'points_to_evaluate[[0]].max_depth=3'; for example sweep.num_trials=200",
        ),
    ],
)
def test_what_is_refused(experiment, setting, text):
    with pytest.raises(ExperimentError) as caught:
        override(experiment, [setting])
    assert str(caught.value) == text


def test_the_later_one_wins(experiment):
    assert override(experiment, ["sweep.num_trials=5", 'sweep={"num_trials":6}', "sweep.num_trials=7"]).sweep.num_trials == 7


@pytest.mark.parametrize(
    "settings",
    [
        ["model.device=cuda", "sweep.gpus_per_trial=1"],
        ["space.max_depth.low=30", "space.max_depth.high=40", "points_to_evaluate=[]"],
        ["sweep.scheduler=null", 'metric=[{"name":"auc","direction":"maximize"},{"name":"error","direction":"minimize"}]'],
    ],
)
def test_what_only_holds_together_may_come_in_any_order(experiment, settings):
    random.Random(1).shuffle(settings)
    assert override(experiment, settings) == override(experiment, settings[::-1])


def test_a_field_of_a_part_that_was_just_chosen(experiment):
    assert override(experiment, ["sweep.scheduler=asha", "sweep.scheduler.grace_period=5"]).sweep.scheduler == Asha(grace_period=5)


def test_nothing_else_changes(experiment):
    changed = override(experiment, ["sweep.num_trials=5"])
    assert changed.fingerprint("honest") == experiment.fingerprint("honest")
    assert experiment.sweep.num_trials == 50
    assert override(experiment, []) is experiment


def test_a_space_that_is_a_function_has_no_parameters_to_set(experiment):
    by_function = Experiment(**{name: getattr(experiment, name) for name in ("name", "dataset", "model", "metric")}, space=lambda trial: {})
    with pytest.raises(ExperimentError, match=r"space\.max_depth: space must have fields"):
        override(by_function, ["space.max_depth=3"])
    assert override(by_function, ["sweep.seed=3"]).space is by_function.space
