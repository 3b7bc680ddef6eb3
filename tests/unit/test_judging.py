"""What the gates that every promotion has say of a challenger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from toolkit.core import gates
from toolkit.core.gates import Gate, Status
from toolkit.core.judging import (
    Blind,
    Overlap,
    blind_features,
    compares_nothing,
    judge_finite,
    judge_holdout,
    judge_protocol,
    judge_quality_demanded,
    judge_real_data,
    judge_signature,
    judge_unseen,
)


def spec(**changes: Any) -> Mapping[str, Any]:
    return {
        "task": "binary",
        "label": "y",
        "classes": [0, 1],
        "features": [{"name": "a", "type": "number"}, {"name": "b", "type": "category", "categories": ["x"]}],
        "protocol": "honest",
        "data": {"kind": "file", "location": "rows.csv"},
        "split": {"by": "random", "keep_duplicates_together": True},
        **changes,
    }


def test_protocol() -> None:
    assert judge_protocol(spec()).status is Status.PASSED
    assert judge_protocol(spec(protocol="published")).status is Status.FAILED


@pytest.mark.parametrize(
    ("kind", "holdout_kind", "status"),
    [
        ("file", "file", Status.PASSED),
        ("file", None, Status.PASSED),
        ("fallback_sample", "file", Status.FAILED),
        ("file", "fallback_sample", Status.FAILED),
    ],
)
def test_real_data(kind: str, holdout_kind: str | None, status: Status) -> None:
    assert judge_real_data(spec(data={"kind": kind, "location": "somewhere"}), holdout_kind).status is status


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "multiclass"}, "task 'multiclass', the champion's is 'binary'"),
        ({"label": "z"}, "label 'z', the champion's is 'y'"),
        ({"classes": [0, 1, 2]}, "classes [0, 1, 2], the champion's is [0, 1]"),
        ({"features": [*spec()["features"], {"name": "c", "type": "number"}]}, "it needs 'c', which the champion does not"),
        ({"features": [{"name": "b", "type": "number"}]}, "'b' is a number, for the champion a category"),
    ],
)
def test_another_signature_is_refused(changes: dict[str, Any], reason: str) -> None:
    result = judge_signature(spec(**changes), spec())
    assert result.status is Status.FAILED and reason in result.reason


def test_fewer_features_in_another_order_and_other_categories_are_compatible() -> None:
    fewer = spec(features=[{"name": "b", "type": "category", "categories": ["x", "y"]}])
    assert judge_signature(fewer, spec()).status is Status.PASSED
    assert judge_signature(spec(), None).status is Status.NOT_APPLICABLE


RANDOM_SPLIT = {"by": "random", "keep_duplicates_together": True}
LOOSE_SPLIT = {"by": "random", "keep_duplicates_together": False}
TIME_SPLIT = {"by": "time", "keep_duplicates_together": True}


@pytest.mark.parametrize(
    ("split", "protocol", "overlap", "status"),
    [
        (RANDOM_SPLIT, "honest", Overlap(1_000, 0, 0), Status.PASSED),
        (RANDOM_SPLIT, "honest", Overlap(1_000, None, 0), Status.PASSED),
        (RANDOM_SPLIT, "honest", Overlap(1_000, 1, 0), Status.FAILED),
        (RANDOM_SPLIT, "honest", Overlap(1_000, 0, 1), Status.FAILED),
        (RANDOM_SPLIT, "honest", Overlap(1_000, 0, 1, 0.5), Status.FAILED),
        (RANDOM_SPLIT, "honest", Overlap(1_000, None, 1), Status.FAILED),
        (LOOSE_SPLIT, "honest", Overlap(1_000, 0, 9), Status.PASSED),
        (LOOSE_SPLIT, "honest", Overlap(1_000, 0, 11), Status.FAILED),
        (LOOSE_SPLIT, "honest", Overlap(1_000, 0, 200, 0.1), Status.PASSED),
        (LOOSE_SPLIT, "honest", Overlap(1_000, 0, 201, 0.1), Status.FAILED),
        (LOOSE_SPLIT, "honest", Overlap(1_000, 1, 1, 0.1), Status.FAILED),
        (LOOSE_SPLIT, "honest", Overlap(1_000, None, 9, 0.1), Status.FAILED),
        (TIME_SPLIT, "honest", Overlap(1_000, 0, 9), Status.PASSED),
        (TIME_SPLIT, "honest", Overlap(1_000, 0, 1_000), Status.FAILED),
        (TIME_SPLIT, "honest", Overlap(1_000, 2, 9), Status.FAILED),
        (RANDOM_SPLIT, "published", Overlap(1_000, 0, 9), Status.PASSED),
        (RANDOM_SPLIT, "published", Overlap(1_000, 3, 9), Status.FAILED),
    ],
)
def test_rows_that_a_model_has_seen(split: dict[str, Any], protocol: str, overlap: Overlap, status: Status) -> None:
    for name in (gates.HOLDOUT_UNSEEN_BY_CHALLENGER, gates.HOLDOUT_UNSEEN_BY_CHAMPION):
        result = judge_unseen(name, spec(split=split, protocol=protocol), overlap)
        assert (result.name, result.status) == (name, status)


def test_categories_that_a_model_does_not_know() -> None:
    features = [{"name": name, "type": "category", "categories": ["x"]} for name in "abcde"] + [{"name": "f", "type": "number"}]
    table = pd.DataFrame(
        {"a": ["x"] * 200, "b": ["x"] * 198 + ["new", None], "c": ["x"] * 197 + ["new"] * 3, "d": "new", "e": None, "f": None}
    )
    table.loc[:9, "d"] = None
    seen = np.array([[0.0 if table[name][row] == "x" else math.nan for name in table] for row in range(200)], dtype=np.float32)
    found = blind_features(spec(features=features), seen, lambda name: table[name])
    assert found == [Blind("c", 0.015, "new"), Blind("d", 1.0, "new"), Blind("e", None), Blind("f", None)]
    assert found[0].told_of("the champion") == "feature 'c': 1.5% of the hold-out's values are unknown to the champion, for example 'new'"
    assert found[2].told_of("the champion") == "feature 'e' is missing in every row of the hold-out"
    assert judge_holdout("a table", 200, [found[0], *found[2:]]).status is Status.PASSED
    refused = judge_holdout("a table", 200, found)
    assert refused.status is Status.FAILED and "'d': all of the hold-out's values are unknown to the challenger" in refused.reason


def test_gates_that_compare_nothing() -> None:
    costs = [Gate("model_mib", at_most=3), Gate("auc", at_most=0.99)]
    assert compares_nothing(costs)
    assert not compares_nothing([*costs, Gate("auc", at_least=0.5)])
    assert not compares_nothing([*costs, Gate("auc", no_worse_than_champion_by=0.1)])


def test_finite() -> None:
    assert judge_finite({"auc": 0.8, "rmse": 1.0}).status is Status.PASSED
    assert judge_finite({"auc": math.nan, "rmse": math.inf}).reason == "no value: auc, rmse"
    assert judge_finite({}).status is Status.FAILED


def test_a_first_champion_needs_a_gate_of_its_own() -> None:
    relative = Gate("auc", no_worse_than_champion_by=0.1)
    for only in ([], [relative], [relative, Gate("model_mib", at_most=3)], [Gate("auc", at_most=0.99)]):
        assert judge_quality_demanded(only, has_champion=False).status is Status.FAILED
    assert judge_quality_demanded([relative, Gate("auc", at_least=0.5)], has_champion=False).status is Status.PASSED
    assert judge_quality_demanded([relative], has_champion=True).status is Status.NOT_APPLICABLE
