"""What a promotion answers, and the page that is drawn from it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from toolkit.core.gates import GateResult, SliceResult, Status
from toolkit.core.promotion_result import HoldoutSummary, JudgedModel, PromotionResult, decision, strict
from toolkit.reports.promotion_report import render_promotion

SPEC: dict[str, Any] = {
    "objective": "binary:logistic",
    "model_kind": "xgboost",
    "trained_unix_s": 1_700_000_000.0,
    "protocol": "honest",
    "study": None,
    "data": {"kind": "file", "location": "https://user:geheim@host/rows.csv", "sha256": "a" * 64},
    "training_rows": {"num_rows": 1000},
    "features": [{"name": "a"}],
    "git_commit": "",
}
PASSED = GateResult("auc_at_least", Status.PASSED, "auc 0.85 is at least 0.8", 0.85, 0.84, 0.8, asks="at least 0.8")
FAILED = GateResult(
    "auc_no_worse_than_champion_by_region",
    Status.FAILED,
    "1 of 2 slices of 'region' lose more than 0.05",
    0.6,
    0.7,
    0.05,
    slices=(SliceResult("north", 900, 0.9, 0.8, True), SliceResult("<b>south</b>", 300, 0.6, 0.7, False), SliceResult("west", 9)),
    asks="may lose 0.05 in each region",
)
NO_FIGURE = GateResult("logloss_no_worse_than_champion_by", Status.PASSED, "fine", 0.4, 0.5, 0.0, bound=-math.inf, asks="may lose 0")


def judged(version: int, auc: float) -> JudgedModel:
    return JudgedModel(version, {"auc": auc, "logloss": math.nan}, 0.5, 1.5, 2.0, SPEC)


def result(*gates: GateResult, **changes: Any) -> PromotionResult:
    whole = PromotionResult(
        experiment="churn",
        model="churn",
        version=7,
        is_promoted=False,
        was_champion=False,
        gates=gates,
        challenger=judged(7, 0.85),
        champion=judged(4, 0.84),
        holdout=HoldoutSummary("file", "rows.csv", "b" * 64, 1_200, "a table of its own"),
        notices=("the challenger was trained on <script>alert(1)</script>",),
        recovered="",
        by="ada",
        run_id="run",
        mlflow_experiment="churn",
        tracking_uri="http://user:geheim@host",
        registry_uri="sqlite:///registry.db",
        report_path="report.html",
        started_unix_s=1_700_000_000.0,
        wall_s=3.0,
    )
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("of", "title", "verdict"),
    [
        (result(PASSED), "Promote version 7", "version 7 of churn may become champion, in place of version 4"),
        (result(PASSED, is_promoted=True), "Promote version 7", "version 7 of churn is champion now, in place of version 4"),
        (result(PASSED, champion=None), "Promote version 7", "may become champion, the first one"),
        (result(PASSED, FAILED), "Do not promote version 7", "version 7 of churn is not promoted: 1 of 2 gates says no"),
        (
            result(PASSED, replace(FAILED, status=Status.OVERRIDDEN, override_reason="agreed")),
            "Promote version 7, by override",
            "in place of version 4; overridden: auc_no_worse_than_champion_by_region",
        ),
    ],
)
def test_verdict_on_top(of: PromotionResult, title: str, verdict: str) -> None:
    page = render_promotion(of)
    assert f"<h1>{title}</h1>" in page
    assert verdict in of.verdict


def test_the_page_says_what_one_decides_by_and_no_secret() -> None:
    page = render_promotion(result(PASSED, FAILED, NO_FIGURE))
    for text in ("auc_at_least", "at least 0.8", "may lose 0.05 in each region", "0.8500", "0.8400", "0.01 better", "too few rows"):
        assert text in page, text
    assert "<script>alert" not in page and "<b>south" not in page and "&lt;b&gt;south&lt;/b&gt;" in page
    assert "geheim" not in page
    assert page.index("south") < page.index("north"), "the slice that failed comes first"


def test_a_page_without_holdout_or_model() -> None:
    empty = JudgedModel(7, {}, None, None, None, {})
    page = render_promotion(result(FAILED, challenger=empty, champion=None, holdout=None))
    assert "Both on the same rows" not in page and "There is no champion yet." in page


def test_the_first_promotion_speaks_of_the_challenger_alone() -> None:
    first = render_promotion(result(PASSED, FAILED, champion=None))
    later = render_promotion(result(PASSED, FAILED))
    assert "rows that the challenger has not seen" in first and "The challenger on the hold-out" in first
    assert "rows that neither has seen" in later and "Both on the same rows" in later
    for text in ("neither", "Both on the same rows", '<th scope="col" class="number">champion</th>', "95 % bound", "The champion"):
        assert text not in first, text
        assert text in later, text


def test_on_a_phone_each_figure_stands_beside_its_name() -> None:
    page = render_promotion(result(PASSED))
    for name, figure in (("asks for", "at least 0.8"), ("challenger", "0.8500"), ("the challenger is", "0.01 better")):
        assert f'data-name="{name}">{figure}</td>' in page


def test_what_is_written_down_is_strict_json() -> None:
    whole = result(PASSED, FAILED, NO_FIGURE)
    decided = json.loads(json.dumps(decision(whole), allow_nan=False))
    assert decided["decision"] == "do not promote" and decided["champion_before"] == 4
    assert [gate["gate"] for gate in decided["gates"]] == ["auc_at_least", FAILED.name, NO_FIGURE.name]
    assert decided["metrics"]["challenger"] == {"auc": 0.85, "logloss": None}
    json.dumps(strict(whole.as_json()), allow_nan=False)
    assert "&#x27;region&#x27;" in whole._repr_html_()
