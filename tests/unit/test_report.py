"""The sweep report: what it shows for every kind of sweep, and that it is one safe, self-contained, well-formed file."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.unit import report_samples as samples
from toolkit.core.curves import confusion_at, precision_recall_points, roc_points
from toolkit.core.experiment import Metric, Split, Sweep
from toolkit.core.model import XGBoost
from toolkit.core.secrets import without_secrets
from toolkit.core.space import Branch, Categorical, Float, Int
from toolkit.core.study import TrialState
from toolkit.reports.parameters import parameter_axes
from toolkit.reports.sweep_report import render_sweep

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The page as a browser would see it; raises where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.titles.append(data)
        self.text += data

    def _seen(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")


def failed(record):
    result = dataclasses.replace(record.result, values=(), metrics={}, history={}, error=samples.TRACEBACK, best_iteration=None)
    return dataclasses.replace(record, state=TrialState.FAILED, result=result)


def multiclass():
    spec = samples.experiment(metric=Metric("mlogloss", "minimize"), model=XGBoost(objective="multi:softprob"))
    return samples.sweep_result(samples.records(20, metric="mlogloss"), experiment=spec, evaluation=samples.multiclass_evaluation())


def regression():
    spec = samples.experiment(metric=Metric("rmse", "minimize"), model=XGBoost(objective="reg:squarederror"))
    return samples.sweep_result(samples.records(20, metric="rmse"), experiment=spec, evaluation=samples.regression_evaluation())


def define_by_run():
    spec = samples.experiment(space=lambda trial: {"max_depth": trial.suggest_int("max_depth", 1, 9)})
    return samples.sweep_result(samples.records(12), experiment=spec)


CASES = {
    "binary": samples.sweep_result,
    "one trial": lambda: samples.sweep_result(samples.records(1)),
    "two equal trials": lambda: samples.sweep_result([samples.records(1)[0], dataclasses.replace(samples.records(1)[0], number=1)]),
    "no trial": lambda: samples.sweep_result([]),
    "none completed": lambda: samples.sweep_result([failed(record) for record in samples.records(5)]),
    "no evaluation": lambda: samples.sweep_result(samples.records(10), evaluation=None),
    "regression": regression,
    "multiclass": multiclass,
    "many classes": lambda: dataclasses.replace(multiclass(), evaluation=samples.multiclass_evaluation(40, 4000)),
    "two metrics": samples.two_metric_result,
    "define by run": define_by_run,
    "published": lambda: samples.sweep_result(protocol="published"),
    "no time": lambda: samples.sweep_result(samples.records(3), search_s=0.0, wall_s=0.0, fit_wall_s=0.0, cluster_start_s=0.0),
}


@pytest.fixture(params=CASES)
def page(request) -> Page:
    return page_of(request.param)


@functools.cache
def page_of(case: str) -> Page:
    return Page(render_sweep(CASES[case](), samples.IMPORTANCES, "fANOVA"))


def test_every_report_needs_nothing_but_itself(page: Page) -> None:
    assert not {"link", "img", "iframe", "object", "image"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert set(re.findall(r"url\((.)", page.html)) <= {"#"}
    assert "@import" not in page.html
    assert "http" not in re.sub(r"<(style|script)>.*?</\1>", "", page.html, flags=re.DOTALL).replace(samples.TRACEBACK, "")


def test_ids_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page.html)) | {value[1:] for _, name, value in page.attributes if name == "href"}
    assert used <= set(page.ids)


def test_charts_have_a_text_and_follow_the_page(page: Page) -> None:
    labels = {value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"}
    assert len(labels) == page.html.count('class="chart"')
    assert "#fe01" not in page.html  # a sentinel colour that was not replaced
    assert "DejaVu" not in page.html
    assert "prefers-color-scheme: dark" in page.html
    # Every colour that a chart asks for is defined, for light and for dark.
    for name in set(re.findall(r"var\(--([a-z0-9]+)\)", page.html)) - {"shade", "share"}:
        assert page.html.count(f"--{name}: ") >= 2, name


def test_a_full_report_has_every_part() -> None:
    page = page_of("binary")
    assert page.titles == [
        "The winner", "Best parameters", "Figures on the test part",
        "The search", "Optimisation history", "Metric curves of the best 5", "Parameter importances", "Slices", "Parallel coordinates",
        "The winner on the test part", "ROC curve", "Precision and recall", "Confusion matrix", "Feature importances",
        "The run", "Trial timeline", "Where the time went",
        "Failures", "All trials", "Where it comes from", "Data", "Search and record", "Code", "Go on",
    ]  # fmt: skip
    for expected in (
        "wine-quality-honest", "2026-01-02 03:04 UTC", "honest protocol", "by fANOVA", "sqlite:///mlflow.db", "4f9d1c2a7b", "2.60.1",
        "b1c2" * 16, "6,497 rows", "--protocol honest --seed 123 --study wine-quality-honest --resume --trials 100",
        "false positive at 1 and a false negative at 5", "xgboost.core.XGBoostError: [06:13:02] bad allocation",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert 'role="note"' not in page.html  # nothing alarming


@pytest.mark.parametrize(
    ("case", "present", "absent"),
    [
        ("one trial", ["Optimisation history", "Trial timeline"], ["Slices", "Parallel coordinates", "Failures"]),
        ("no trial", ["Where the time went"], ["The winner", "The search", "Trial timeline", "All trials", "Failures"]),
        ("none completed", ["Failures", "Trial timeline"], ["The winner", "The search", "The winner on the test part"]),
        ("no evaluation", ["Best parameters"], ["ROC curve", "Confusion matrix", "Figures on the test part"]),
        ("regression", ["Predicted against true", "Residuals"], ["ROC curve", "Confusion matrix"]),
        ("multiclass", ["Confusion matrix", "Feature importances"], ["ROC curve", "Residuals"]),
        ("two metrics", ["Pareto front"], ["Optimisation history"]),
        ("define by run", ["Slices", "Parallel coordinates"], []),
    ],
)
def test_each_case_shows_what_it_has(case: str, present: list[str], absent: list[str]) -> None:
    titles = page_of(case).titles
    assert set(present) <= set(titles)
    assert not set(absent) & set(titles)


def test_the_positive_class_has_its_name() -> None:
    evaluation = dataclasses.replace(samples.binary_evaluation(), classes=("nein", "ja"))
    text = Page(render_sweep(samples.sweep_result(samples.records(2), evaluation=evaluation))).text
    for expected in ("rows of “ja” are found", "the share of “ja”, ", "calling a row “ja” above"):
        assert expected in text, expected
    assert "positives" not in text


def test_importances_appear_only_where_the_caller_has_some() -> None:
    assert "Parameter importances" not in render_sweep(samples.sweep_result(samples.records(8)))


@pytest.mark.parametrize(
    ("changes", "alarm"),
    [
        ({"protocol": "published"}, "Its figures are flattered"),
        ({"stopped_by": "timeout", "num_trials": 8}, "4 of 8 trials were finished"),
        ({"num_unsent": 3}, "3 entries wait in the spool"),
        ({"evaluation": None}, "Not evaluated on the test part"),
        (
            {"source": dataclasses.replace(samples.sweep_result().source, kind="fallback_sample")},
            "Generated fallback sample, not real data",
        ),
    ],
)
def test_alarms(changes: dict, alarm: str) -> None:
    made = samples.records(4)
    assert alarm in Page(render_sweep(samples.sweep_result(made, **changes))).text
    assert alarm not in Page(render_sweep(samples.sweep_result(made))).text


def test_too_many_failures_are_an_alarm() -> None:
    made = [failed(record) if record.number % 2 else record for record in samples.records(40)]
    spec = samples.experiment(sweep=Sweep(num_trials=40))
    page = Page(render_sweep(samples.sweep_result(made, experiment=spec)))
    assert "More than the 8 that the experiment allows" in page.text
    assert page.html.count("bst.update(dtrain") == 1  # one traceback, however many have it
    assert "The same error as in trial 1." in page.text


def test_the_best_value_says_what_it_was_measured_on() -> None:
    assert "best auc on validation" in render_sweep(samples.sweep_result(samples.records(2)))
    assert "best auc on test, selected there" in render_sweep(samples.sweep_result(samples.records(2), protocol="published"))
    folded = samples.experiment(split=Split(folds=5))
    assert "best auc mean of 5 folds" in render_sweep(samples.sweep_result(samples.records(2), experiment=folded))


HOSTILE_SPACE = {
    "booster": Branch({"gbtree": {}, "dart": {"rate_drop": Float(0.0, 0.5)}}),
    "flag": Categorical((True, False, None)),
    "<script>name": Categorical(("<script>alert(1)</script>", '$x^2$ & "quoted" \x00\x1b', "z" * 5000)),
    "few": Int(1, 3),
    "\N{CJK UNIFIED IDEOGRAPH-65E5}": Float(-1.0, 1.0),
    "nothing": None,
    'same" onload="x': 5,
}


def hostile():
    made = []
    for record in samples.records(24, space={**HOSTILE_SPACE, "booster": Categorical(("gbtree", "dart"))}):
        dart = {"rate_drop": record.number / 60} if record.params["booster"] == "dart" else {}
        error = "Traceback</pre></details><script>alert(2)</script>\nValueError: <b>bad</b>" if record.error else None
        result = dataclasses.replace(record.result, error=error, host="<i>host", history={"<u>": record.result.history.get("auc", [])})
        made.append(dataclasses.replace(record, params={**record.params, **dart}, result=result))
    return samples.sweep_result(
        made,
        experiment=samples.experiment(space=HOSTILE_SPACE),
        study="<script>alert(3)</script>",
        versions={"<b>": "</code><script>"},
        tracking_uri="https://user:secret@mlflow.example/?token=secret",
    )


def test_user_strings_cannot_break_out() -> None:
    page = Page(render_sweep(hostile(), {"<script>name": 1.0}, "<em>fANOVA"))
    assert page.tags.count("script") == 1  # the table's own
    assert not {"i", "b", "u", "em"} & set(re.findall(r"<(\w+)>", page.html))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "\x00" not in page.html
    assert "secret" not in page.html
    assert len(page.html) < 1_000_000  # 5,000 characters a value, in every table


def test_parameters_of_every_kind_get_their_axis() -> None:
    result = hostile()
    axes = {axis.name: axis for axis in parameter_axes(result.experiment.space, result.records, {"few": 1.0})}
    assert next(iter(axes)) == "few"
    assert not {"nothing", 'same" onload="x'} & set(axes)
    assert axes["flag"].categories == ("True", "False", "None")
    assert axes["flag"].position(None) == 2.0
    assert axes["few"].integer
    assert axes["few"].is_at_edge(3) and not axes["few"].is_at_edge(2)
    assert not axes["rate_drop"].categories


def test_values_that_differ_only_in_type_are_different_categories() -> None:
    made = [dataclasses.replace(record, params={"x": [1, "a", None][record.number % 3]}) for record in samples.records(6)]
    (axis,) = parameter_axes(lambda trial: {}, made, None)
    assert set(axis.categories) == {"1", "a", "None"}


def test_rendering_is_deterministic() -> None:
    first, second = (render_sweep(samples.sweep_result(samples.records(20)), samples.IMPORTANCES, "m") for _ in range(2))
    assert first == second


def test_thousands_of_trials_stay_a_small_file() -> None:
    result = samples.sweep_result(samples.records(3000, num_slots=64), num_slots=64, evaluation=samples.binary_evaluation(300_000))
    page = Page(render_sweep(result, samples.IMPORTANCES, "fANOVA"))
    assert len(page.html.encode()) < 3_000_000
    assert "The best 2000 of 3000" in page.text
    assert f"trial {result.best.number}" in page.text


def test_a_long_table_is_folded_and_a_short_one_is_not() -> None:
    assert "Show 61 trials" in render_sweep(samples.sweep_result(samples.records(61)))
    assert "Show 60 trials" not in render_sweep(samples.sweep_result(samples.records(60)))


def test_trials_of_an_earlier_run_are_counted_but_not_drawn() -> None:
    result = samples.sweep_result()
    later = dataclasses.replace(result, search_started_unix_s=samples.START + 2.0)
    drawn = sum(record.result.started_unix_s >= samples.START + 1.5 for record in result.records)
    assert f"{50 - drawn} trials of earlier runs of this study are not drawn" in render_sweep(later)


def test_the_best_parameters_can_be_copied_in_full_precision() -> None:
    result = samples.sweep_result()
    text = Page(render_sweep(result)).text
    assert json.dumps(result.best.params["learning_rate"]) in text


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_that_predicts_no_numbers_is_said_to_be_broken(broken: float) -> None:
    evaluation = samples.binary_evaluation()
    evaluation.prediction[3] = broken
    assert "Some predictions are not finite numbers" in render_sweep(samples.sweep_result(evaluation=evaluation))


def test_a_test_part_of_one_class_has_no_curves() -> None:
    evaluation = dataclasses.replace(samples.binary_evaluation(), label=np.zeros(1625, dtype=np.float32))
    page = Page(render_sweep(samples.sweep_result(evaluation=evaluation)))
    assert "The test part holds one class only" in page.text
    assert "ROC curve" not in page.titles


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://token@host/path", "https://***@host/path"),
        ("postgresql://me:pw@db/mlflow", "postgresql://me:***@db/mlflow"),
        ("abfss://data@account.dfs.core.windows.net/wine", "abfss://data@account.dfs.core.windows.net/wine"),
        ("https://account.blob/wine.csv?sv=1&sig=abc", "https://account.blob/wine.csv?***"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_addresses_lose_their_secrets(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_importing_the_report_loads_no_engine() -> None:
    heavy = ("sklearn", "optuna", "mlflow", "ray", "xgboost", "matplotlib.pyplot")
    code = f"import sys, toolkit.reports.sweep_report; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_curves_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    evaluation = samples.binary_evaluation(400)
    label, score = evaluation.label, np.round(evaluation.prediction, 2)  # many ties
    fpr, tpr = roc_points(label, score)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.roc_auc_score(label, score))
    recall, precision = precision_recall_points(label, score)
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    assert area == pytest.approx(metrics.average_precision_score(label, score))
    assert (confusion_at(label, score, 0.2).table() == metrics.confusion_matrix(label, score > 0.2)).all()


def test_thinned_curves_keep_their_shape() -> None:
    evaluation = samples.binary_evaluation(200_000)
    full = roc_points(evaluation.label, evaluation.prediction, max_points=10**6)
    thin = roc_points(evaluation.label, evaluation.prediction)
    assert len(thin[0]) <= 500
    assert np.trapezoid(thin[1], thin[0]) == pytest.approx(np.trapezoid(full[1], full[0]), abs=1e-4)
    assert (thin[0][-1], thin[1][-1]) == (1.0, 1.0)


def test_a_curve_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="needs rows of both classes, got 0 positive and 4 negative"):
        roc_points(np.zeros(4), np.arange(4.0))


def test_a_notebook_shows_the_headline():
    shown = samples.sweep_result(study="<script>")._repr_html_()
    assert "best" in shown and "complete" in shown
    assert "&lt;script&gt;" in shown and "<script>" not in shown
    assert "no trial completed" in samples.sweep_result([], evaluation=None)._repr_html_()
