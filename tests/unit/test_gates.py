"""What a gate may say, and what the gates say of a challenger."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from toolkit.core.errors import UserError
from toolkit.core.figures import Prediction, Rows
from toolkit.core.gates import IMPLICIT, NEVER_OVERRIDDEN, Gate, GateResult, Status, check_overrides, judged, may_promote, overridden
from toolkit.core.judging import (
    MAX_SLICES,
    Contest,
    judge_gate,
)
from toolkit.core.overrides import problems
from toolkit.engines.sklearn_evaluation import metric_of

NUM = 1_200
RANDOM = np.random.default_rng(5)
SIGNAL = RANDOM.normal(size=NUM)
LABEL = (RANDOM.random(NUM) < 1 / (1 + np.exp(-2 * SIGNAL))).astype(np.float64)
REGION = np.array(["north", "south", "west"])[RANDOM.choice(3, NUM, p=[0.6, 0.37, 0.03])]


def prediction(noise: float, seed: int = 0) -> Prediction:
    return Prediction(1 / (1 + np.exp(-2 * (SIGNAL + noise * np.random.default_rng(seed).normal(size=NUM)))))


GOOD, BAD = prediction(0.2), prediction(1.5)


def contest(challenger: Prediction = GOOD, champion: Prediction | None = BAD, **columns: Any) -> Contest:
    known = {"region": REGION, **columns}

    def column(name: str) -> Any:
        if name not in known:
            raise UserError("the hold-out must have the column", got=repr(name))
        return known[name]

    return Contest(Rows("binary", LABEL), challenger, champion, metric_of, column, {"predict_s_per_million_rows": 2.0, "model_mib": 0.5})


# ---- the rule


@pytest.mark.parametrize(
    ("gate", "name", "demands_quality"),
    [
        (Gate("auc", at_least=0.8), "auc_at_least", True),
        (Gate("auc", at_most=0.99), "auc_at_most", False),
        (Gate("logloss", at_most=0.4), "logloss_at_most", True),
        (Gate("logloss", at_least=0.01), "logloss_at_least", False),
        (Gate("auc", no_worse_than_champion_by=0.01), "auc_no_worse_than_champion_by", False),
        (Gate("auc", no_worse_than_champion_by=0.05, by="region"), "auc_no_worse_than_champion_by_region", False),
        (Gate("auc", at_least=0.7, by="sales region"), "auc_at_least_by_sales_region", True),
        (Gate("ndcg@10", at_least=0.7), "ndcg@10_at_least", True),
        (Gate("predict_s_per_million_rows", at_most=3), "predict_s_per_million_rows_at_most", False),
        (Gate("model_mib", at_most=3), "model_mib_at_most", False),
    ],
)
def test_name_and_demand(gate: Gate, name: str, demands_quality: bool) -> None:
    assert gate.name == name
    assert gate.demands_quality is demands_quality
    assert name not in IMPLICIT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "auc"}, "gate: exactly one of at_least, at_most, no_worse_than_champion_by, got none for auc; for example"),
        ({"metric": "auc", "at_least": 0.8, "at_most": 0.9}, "got at_least and at_most for auc; make it a gate each"),
        ({"metric": "aux", "at_least": 0.8}, "gate: unknown metric, got 'aux'; did you mean 'auc'?"),
        ({"metric": "model_mib", "at_least": 1}, "gate: model_mib takes at_most alone, got at_least"),
        ({"metric": "model_mib", "at_most": 1, "by": "region"}, "gate: model_mib takes at_most alone, got at_most by 'region'"),
        ({"metric": "auc", "at_least": math.nan}, "Gate.at_least: must be a finite number, got nan"),
        ({"metric": "auc", "no_worse_than_champion_by": -0.1}, "must be at least 0, got -0.1"),
        ({"metric": "auc", "at_least": 0.5, "min_rows": 0}, "Gate.min_rows: must be at least 1, got 0"),
        ({"metric": "auc", "at_least": 0.5, "by": ""}, "gate: by needs a column's name, got ''"),
    ],
)
def test_a_gate_that_says_nothing_clear_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Gate(**fields)
    assert message in problems(error.value)


# ---- absolute gates


@pytest.mark.parametrize(
    ("gate", "status"),
    [
        (Gate("auc", at_least=0.8), Status.PASSED),
        (Gate("auc", at_least=0.99), Status.FAILED),
        (Gate("auc", at_most=0.85), Status.FAILED),
        (Gate("logloss", at_most=0.6), Status.PASSED),
        (Gate("logloss", at_most=0.1), Status.FAILED),
        (Gate("predict_s_per_million_rows", at_most=2.0), Status.PASSED),
        (Gate("predict_s_per_million_rows", at_most=1.99), Status.FAILED),
        (Gate("model_mib", at_most=0.4), Status.FAILED),
    ],
)
def test_absolute(gate: Gate, status: Status) -> None:
    result = judge_gate(gate, contest(champion=None))
    assert result.status is status
    assert result.observed is not None and result.limit == gate.limit
    assert f"{result.observed:.5g}" in result.reason


def test_absolute_gate_shows_the_champions_figure_too() -> None:
    result = judge_gate(Gate("auc", at_least=0.8), contest())
    assert result.champion == pytest.approx(metric_of("auc", "binary", LABEL, BAD.values))


def test_a_figure_that_is_not_a_number_passes_nowhere() -> None:
    one_class = Contest(Rows("binary", np.zeros(NUM)), GOOD, BAD, metric_of, lambda name: REGION, {"model_mib": math.nan})
    for gate in (
        Gate("auc", at_least=0.0),
        Gate("auc", at_most=1.0),
        Gate("auc", no_worse_than_champion_by=1.0),
        Gate("auc", no_worse_than_champion_by=1.0, by="region"),
        Gate("auc", at_least=0.0, by="region"),
        Gate("model_mib", at_most=1e9),
    ):
        assert judge_gate(gate, one_class).status is Status.FAILED, gate.name


# ---- against the champion


@pytest.mark.parametrize("metric", ["auc", "logloss", "aucpr", "error", "f1"])
def test_better_passes_and_worse_fails_whichever_way_the_metric_improves(metric: str) -> None:
    gate = Gate(metric, no_worse_than_champion_by=0.0)
    better = judge_gate(gate, contest(GOOD, BAD))
    assert better.status is Status.PASSED and better.bound is not None and better.bound > 0
    worse = judge_gate(gate, contest(BAD, GOOD))
    assert worse.status is Status.FAILED and worse.bound is not None and worse.bound < 0
    assert "worse" in worse.reason and "better" in better.reason


def test_the_same_model_loses_nothing() -> None:
    result = judge_gate(Gate("auc", no_worse_than_champion_by=0.0), contest(GOOD, GOOD))
    assert (result.status, result.bound) == (Status.PASSED, 0.0)
    assert "no difference" in result.reason


def test_equally_good_by_its_figure_is_not_enough() -> None:
    """The point estimate is within the margin; its bound is not."""
    one, other = prediction(0.6, 1), prediction(0.6, 2)
    result = judge_gate(Gate("auc", no_worse_than_champion_by=0.0), contest(one, other))
    reverse = judge_gate(Gate("auc", no_worse_than_champion_by=0.0), contest(other, one))
    assert {result.status, reverse.status} == {Status.FAILED}
    assert judge_gate(Gate("auc", no_worse_than_champion_by=0.1), contest(one, other)).status is Status.PASSED


def test_without_champion_not_applicable() -> None:
    for by in (None, "region"):
        assert judge_gate(Gate("auc", no_worse_than_champion_by=0.1, by=by), contest(champion=None)).status is Status.NOT_APPLICABLE


def few(num: int, unit: npt.NDArray[Any] | None = None, copies: int = 1) -> Contest:
    """The first rows, each of them so many times."""
    rows = np.tile(np.arange(num), copies)
    good, bad = (Prediction(each.values[rows]) for each in (GOOD, BAD))
    columns = {"region": np.repeat("north", len(rows))}
    return Contest(Rows("binary", LABEL[rows], unit=unit), good, bad, metric_of, columns.__getitem__, {}, rows.astype(np.uint64))


@pytest.mark.parametrize(
    ("contest", "min_rows", "reason"),
    [
        (few(99), 100, "too few rows to tell: 99, at least 100"),
        (few(50, copies=20), 100, "too few different rows to tell: 50, at least 100"),
        (few(9, copies=20), 1, "too few different rows to tell: 9, at least 10"),
        (few(9), 1, "too few rows to tell: 9, at least 10"),
        (few(1_000, np.zeros(1_000, dtype=np.int64)), 100, "too few groups to tell: 1, at least 10"),
        (few(1_000, np.arange(1_000) % 9), 100, "too few groups to tell: 9, at least 10"),
        (few(90, np.arange(90)), 100, "too few rows to tell: 90, at least 100"),
    ],
)
def test_few_rows_cannot_tell_two_models_apart(contest: Contest, min_rows: int, reason: str) -> None:
    for by in (None, "region"):
        result = judge_gate(Gate("logloss", no_worse_than_champion_by=9, min_rows=min_rows, by=by), contest)
        assert (result.status, result.reason) == (Status.FAILED, reason)
    assert judge_gate(Gate("logloss", at_most=9, min_rows=min_rows), contest).status is Status.PASSED


def test_enough_rows_can() -> None:
    for enough in (few(100), few(100, copies=3), few(1_000, np.arange(1_000) % 10)):
        assert judge_gate(Gate("logloss", no_worse_than_champion_by=9), enough).status is Status.PASSED


def test_copies_of_rows_say_nothing_more() -> None:
    gate = Gate("logloss", no_worse_than_champion_by=0.0)
    once, often = judge_gate(gate, few(400)), judge_gate(gate, few(400, copies=25))
    assert once.bound == pytest.approx(often.bound, abs=1e-12) and "400 different rows" in often.reason


# ---- slices


def test_a_slice_that_loses_fails_though_the_whole_gains() -> None:
    values = GOOD.values.copy()
    south = REGION == "south"
    values[south] = prediction(4.0, 9).values[south]
    challenger = Prediction(values)
    champion = prediction(0.9)
    gate = Gate("auc", no_worse_than_champion_by=0.05, by="region")
    result = judge_gate(gate, contest(challenger, champion))
    assert result.status is Status.FAILED
    assert {each.value: each.passed for each in result.slices} == {"north": True, "south": False, "west": None}
    assert "1 of 2 slices of 'region' lose more than 0.05; the worst is 'south'" in result.reason
    assert "1 with fewer than 100 rows not judged" in result.reason
    assert judge_gate(gate, contest(GOOD, champion)).status is Status.PASSED


def test_absolute_gate_by_slice() -> None:
    assert judge_gate(Gate("auc", at_least=0.8, by="region"), contest(champion=None)).status is Status.PASSED
    failed = judge_gate(Gate("logloss", at_most=0.01, by="region"), contest(champion=None))
    assert "2 of 2 slices of 'region' are above 0.01" in failed.reason


def test_missing_values_are_a_slice() -> None:
    column = np.where(REGION == "north", None, REGION)
    result = judge_gate(Gate("auc", at_least=0.5, by="region"), contest(region=column))
    assert {each.value for each in result.slices} == {"missing", "south", "west"}


def test_a_column_of_slices_that_is_missing_throughout() -> None:
    result = judge_gate(Gate("auc", at_least=0.5, by="region"), contest(region=np.full(NUM, None)))
    assert (result.status, result.reason) == (Status.FAILED, "column 'region' is missing in every row of the hold-out")


def test_no_slice_large_enough_is_a_failure() -> None:
    result = judge_gate(Gate("auc", at_least=0.5, by="region", min_rows=NUM), contest())
    assert result.status is Status.FAILED and "no value of 'region' has 1,200 rows" in result.reason


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (Gate("auc", at_least=0.5, by="regoin"), "the hold-out must have the column, got 'regoin'"),
        (Gate("auc", at_least=0.5, by="row", min_rows=1), f"at most {MAX_SLICES:,} slices can be judged, got 1,200 of column 'row'"),
        (Gate("ndcg", at_least=0.5), "metric: unknown for a binary task"),
        (Gate("mlogloss", no_worse_than_champion_by=0.5), "metric: unknown for a binary task"),
    ],
)
def test_a_gate_that_raises_has_failed(gate: Gate, reason: str) -> None:
    result = judged(gate.name, lambda: judge_gate(gate, contest(row=np.arange(NUM))))
    assert result.status is Status.FAILED and result.name == gate.name
    assert reason in result.reason


def test_predictions_that_are_not_numbers_fail_every_metric_gate() -> None:
    broken = Prediction(np.where(np.arange(NUM) == 3, math.nan, GOOD.values))
    for gate in (Gate("auc", at_least=0.1), Gate("auc", no_worse_than_champion_by=0.9), Gate("logloss", at_most=99)):
        for challenger, champion in ((broken, BAD), (GOOD, broken)):
            if gate.rule == "no_worse_than_champion_by" or challenger is broken:
                result = judged(gate.name, lambda g=gate, a=challenger, b=champion: judge_gate(g, contest(a, b)))
                assert result.status is Status.FAILED and "finite" in result.reason


def test_the_reason_of_a_gate_that_raised_holds_no_secret() -> None:
    def fail() -> GateResult:
        raise RuntimeError("no answer from https://user:geheim@host/path?sig=geheim\nat all")

    result = judged("auc_at_least", fail)
    assert result.reason.startswith("could not be judged: RuntimeError: no answer from https://***@host/path")
    assert "geheim" not in result.reason and "\n" not in result.reason


# ---- the verdict, and overriding it


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ([], False),
        ([Status.PASSED], True),
        ([Status.PASSED, Status.NOT_APPLICABLE, Status.OVERRIDDEN], True),
        ([Status.PASSED, Status.FAILED], False),
    ],
)
def test_verdict(statuses: list[Status], verdict: bool) -> None:
    assert may_promote([GateResult("a", status, "") for status in statuses]) is verdict


def test_an_override_lets_a_failure_by_and_changes_nothing_else() -> None:
    results = [GateResult("a", Status.FAILED, "bad"), GateResult("b", Status.PASSED, "fine"), GateResult("c", Status.FAILED, "bad")]
    after = overridden(results, {"a": "agreed\nwith risk", "b": "just in case"})
    assert [(each.status, each.override_reason) for each in after] == [
        (Status.OVERRIDDEN, "agreed with risk"),
        (Status.PASSED, ""),
        (Status.FAILED, ""),
    ]
    assert after[0].reason == "bad"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"auc_at_leats": "because"}, "--override: unknown gate, got 'auc_at_leats'; did you mean 'auc_at_least'?"),
        ({"auc_at_least": " "}, "--override needs --reason, got none for auc_at_least"),
        *(({name: "because"}, f"--override: this gate is never overridden, got {name}") for name in sorted(NEVER_OVERRIDDEN)),
    ],
)
def test_overrides_that_are_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_overrides(overrides, [Gate("auc", at_least=0.8)])
    assert message in str(error.value)
    check_overrides({"auc_at_least": "agreed", "honest_protocol": "agreed"}, [Gate("auc", at_least=0.8)])
