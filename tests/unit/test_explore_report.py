"""The exploratory report: what it shows for every kind of table, and that it is one safe, self-contained, well-formed file."""

from __future__ import annotations

import functools
import html
import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.unit.test_report import Page
from toolkit.core.experiment import Dataset, Experiment, Metric
from toolkit.core.exploration import Exploration, Overlap, PartFigures, SplitFigures
from toolkit.core.exploration_frame import explore_frame
from toolkit.core.exploration_labels import Division
from toolkit.core.model import XGBoost
from toolkit.core.space import Float
from toolkit.reports import explore_plots
from toolkit.reports.explore_report import MAX_DRAWN, render_exploration
from toolkit.reports.svg import chart_style, fitted, text_width

SPLIT = SplitFigures(
    "honest protocol: rows at random (seed 0)",
    tuple(PartFigures(name, 100, (60, 40), None, None) for name in ("train", "validation", "test")),
    (Overlap("rows", "test", "train", 7, 0.07), Overlap("rows", "validation", "train", 0, 0.0)),
)


def table(num_rows: int = 400) -> pd.DataFrame:
    random = np.random.RandomState(1)
    frame = pd.DataFrame({"alcohol": random.normal(10, 1, num_rows), "sugar": np.exp(random.normal(2, 2, num_rows)).round(2)})
    frame["gaps"] = np.where(random.rand(num_rows) < 0.3, np.nan, random.rand(num_rows))
    frame["colour"] = random.choice(["red", "white", None], num_rows)
    frame["taster"] = [f"taster {n % 150}" for n in range(num_rows)]
    frame["organic"] = random.rand(num_rows) < 0.2
    frame["country"] = "PT"
    frame["quality"] = random.randint(3, 10, num_rows)
    frame["at"] = pd.Timestamp("2024-03-01") + pd.to_timedelta(np.arange(num_rows), unit="D")
    return frame.assign(good=frame.quality >= 7, id=range(num_rows))


def explored(frame: pd.DataFrame, task: Any = "binary", division: Division | None = None, **parts: Any) -> Exploration:
    dataset = Dataset(load="x", **{"label": "good", "key": "id", "exclude": ("quality",), "time": "at", **parts})
    return explore_frame(frame, dataset, task, lambda groups: division or Division(SPLIT))


def rendered(found: Exploration, name: str = "wine", **changes: Any) -> Page:
    experiment = Experiment(name, Dataset(load="x", label=found.label), XGBoost(), {"eta": Float(0.1, 0.2)}, Metric("auc", "maximize"))
    facts: dict[str, Any] = {
        "kind": "file", "location": "/data/wine.csv", "source": "wine-quality", "started_unix_s": 1_767_323_045.0, "git_commit": "4f9d1c2a7b",
        "versions": {"pandas": "3.1.1"},
    }  # fmt: skip
    return Page(render_exploration(found, experiment, **{**facts, **changes}))


def many_columns() -> Exploration:
    random = np.random.RandomState(2)
    columns = {f"x{n}": random.rand(300) for n in range(120)} | {f"c{n}": random.choice(list("abcdefgh"), 300) for n in range(60)}
    return explored(pd.DataFrame({**columns, "good": random.rand(300) < 0.5}), key=None, exclude=(), time=None)


def hostile() -> Exploration:
    frame = table().rename(columns={"alcohol": "<script>alert(1)</script>", "colour": '$x^2$ & "quoted" \x00'})
    frame["good"] = np.where(frame.good, "<b>yes</b>", "no</td>")
    frame["taster"] = [f"<i>{n % 3}</i>" + "z" * 3000 for n in range(len(frame))]
    return explored(frame, division=Division(note="<u>", obstacle="</div><script>alert(2)</script>"))


CASES = {
    "binary": lambda: explored(table()),
    "not drawn": lambda: explored(table(), division=Division(note="The split is not drawn.", obstacle="label: must not be missing")),
    "classes": lambda: explored(table().assign(good=lambda f: f.quality.astype(str)), "multiclass", exclude=()),
    "many classes": lambda: explored(table().assign(good=lambda f: f.id % 30), "multiclass", Division()),
    "numbers": lambda: explored(table().assign(good=lambda f: f.alcohol * 3 - 31 + f.quality), "regression", Division(note="none")),
    "few numbers": lambda: explored(table().assign(good=lambda f: f.quality % 3), "regression", Division(note="none")),
    "one feature": lambda: explored(table()[["alcohol", "good"]], key=None, exclude=(), time=None),
    "one category": lambda: explored(table()[["country", "good"]], key=None, exclude=(), time=None),
    "no labels for some": lambda: explored(table().assign(good=lambda f: f.good.astype(object).where(f.id > 50, None))),
    "few rows": lambda: explored(table(8)),
    "many columns": many_columns,
    "hostile": hostile,
}


@functools.cache
def page_of(case: str) -> Page:
    return rendered(CASES[case]())


@pytest.fixture(params=CASES)
def page(request: pytest.FixtureRequest) -> Page:
    return page_of(request.param)


def test_every_report_needs_nothing_but_itself(page: Page) -> None:
    assert not {"link", "img", "iframe", "object", "image", "script"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert "@import" not in page.html and "http" not in re.sub(r"<style>.*?</style>", "", page.html, flags=re.DOTALL)
    assert len(page.html.encode()) < 2_000_000


def test_ids_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page.html)) | {value[1:] for _, name, value in page.attributes if name == "href"}
    assert used <= set(page.ids)


def test_charts_have_a_text_and_follow_the_page(page: Page) -> None:
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == page.html.count('class="chart"')
    assert "#fe01" not in page.html and "DejaVu" not in page.html
    assert not re.search(r"\b(nan|inf|None)\b", page.html)


def test_a_full_report_has_every_part() -> None:
    page = page_of("binary")
    assert page.titles == [
        "What to look at first", "The label", "Classes", "quality", "The split", "Features alone", "Strongest single predictors",
        "Missing values", "Features against the label", "Numbers", "Few values, and categories", "Correlations", "Correlations",
        "All columns", "Where it comes from", "Data", "How it was counted", "Code", "Go on",
    ]  # fmt: skip
    for expected in (
        "7 rows of test are in train", "60.0 %", "Suspect: 7 rows of test (7.0%) are in train", "Remark: country has the value PT in all rows",
        "toolkit sweep wine-quality", "4f9d1c2a7b", "2026-01-02 03:04 UTC", "/data/wine.csv", "8 of 150 values", "(missing)", "2024-03-01",
    ):  # fmt: skip
        assert expected in page.text, expected


@pytest.mark.parametrize(
    ("case", "present", "absent"),
    [
        ("not drawn", ["The split is not drawn.", "Training would refuse this table"], ["No part has a row"]),
        ("classes", ["one-vs-rest", "Classes"], ["Label:"]),
        ("many classes", ["The first 10 of 20 classes", "other classes"], []),
        (
            "numbers",
            ["Label: good", "Absolute Spearman correlation", "share of the rows by good", "and the label, good", "the population's"],
            ["Classes", "positive class"],
        ),
        ("binary", ["The positive class is “True”", "their share of “True”", "good counts as 1 where it is “True”"], ["numeric label"]),
        ("one feature", ["alcohol"], ["Strongest pairs", "Few values, and categories"]),
        ("one category", ["country", "Every row has a value"], ["Correlations", "Numbers"]),
        ("no labels for some", ["51 rows have none", "no label"], []),
        ("many columns", [f"The {MAX_DRAWN} strongest of 120", "The 40 strongest predictors of 120", "Show 181 columns"], []),
    ],
)
def test_each_case_shows_what_it_has(case: str, present: list[str], absent: list[str]) -> None:
    page = page_of(case)
    for text in present:
        assert text in page.text, text
    for text in absent:
        assert text not in page.text, text


def test_nothing_to_look_at_is_said() -> None:
    frame = table().drop(columns=["country"])
    page = rendered(explored(frame, division=Division(SplitFigures("at random", SPLIT.parts, ()))))
    assert "Nothing looks like a leak of the label" in page.text and 'role="note"' not in page.html
    assert "Nothing looks like" not in page_of("binary").text


def test_a_fallback_sample_is_an_alarm() -> None:
    found = explored(table())
    assert "Generated fallback sample" in rendered(found, kind="fallback_sample").text
    assert "Generated fallback sample" not in rendered(found).text


def test_user_strings_cannot_break_out() -> None:
    page = page_of("hostile")
    assert not {"script", "b", "u"} & set(page.tags) and "<i>" not in page.html
    assert "<script>alert(1)</script>" in page.text and "\x00" not in page.html
    assert "z" * 120 not in page.html  # 3,000 characters a value


def test_rendering_is_deterministic() -> None:
    assert rendered(explored(table())).html == rendered(explored(table())).html


def test_far_apart_values_get_a_logarithmic_axis_and_dates_are_days() -> None:
    assert explore_plots.day(1_709_251_200.0) == "2024-03-01"
    assert explore_plots.day(1e20).endswith(" s")
    found = explored(table())
    sugar, alcohol = found.column("sugar"), found.column("alcohol")
    low, high = min(box.low or 0 for box in sugar.boxes), max(box.high or 0 for box in sugar.boxes)
    assert low > 0 and high / low > 50
    with chart_style():
        far, near = explore_plots.box_plot(sugar, "a"), explore_plots.box_plot(alcohol, "b")
    assert ">100<" in far and ">100<" not in near


LONG_NAMES = ["Nordrhein-Westfalen", "Baden-Württemberg", "\N{CJK UNIFIED IDEOGRAPH-65E5}" * 30, "Rückruf gewünscht, " * 5]


def tick_labels(svg: str) -> list[tuple[str, float, float]]:
    """Text, and CSS pixels from the left edge to its start and its end, of what is not turned."""
    found = []
    for attributes, escaped in re.findall(r"<text ([^>]*)>([^<]*)</text>", svg):
        text, at = html.unescape(escaped), re.search(r'(?:x="|translate\()([\d.]+)', attributes)
        if at and "rotate" not in attributes:
            before = text_width(text) * (1.0 if "anchor: end" in attributes else 0.5 if "anchor: middle" in attributes else 0.0)
            found.append((text, float(at[1]) - before, float(at[1]) - before + text_width(text)))
    return found


def test_no_label_is_cut_by_the_edge_and_the_whole_name_is_a_tooltip() -> None:
    found = explored(table().assign(land=lambda f: [LONG_NAMES[n % 4] for n in f.id]))
    with chart_style():
        land, country = (explore_plots.shares_by_group(found.column(name), [0, 1], "a") for name in ("land", "country"))
    for svg in (land, country):
        assert all(start >= 0 and end <= explore_plots.SMALL_WIDTH for _, start, end in tick_labels(svg)), tick_labels(svg)
    texts = [text for text, _, _ in tick_labels(land)]
    assert "Baden-Württemberg" in texts and "100 %" in [text for text, _, _ in tick_labels(country)]
    assert f"<title>{LONG_NAMES[2]}</title>" in land and f"<title>{LONG_NAMES[3]}</title>" in land
    assert "<title>" not in country


def test_text_is_cut_at_its_end() -> None:
    assert fitted("Bayern", 100) == "Bayern"
    cut = fitted("Rückruf gewünscht", 60)
    assert cut.startswith("Rück") and cut.endswith("…") and text_width(cut) <= 60


def test_the_names_below_boxes_do_not_cover_each_other() -> None:
    found = explored(table().assign(good=lambda f: 660.12 + 123.4 * f.quality + f.alcohol), "regression", Division(note="none"))
    with chart_style():
        svg = explore_plots.box_plot(found.column("sugar"), "a")
    lanes: dict[str, list[tuple[float, float]]] = {"upper": [], "lower": []}
    for text, start, end in tick_labels(svg):
        if re.search("[\u2264>\u2013]", text):
            lanes["upper"].append((start, end))
        elif len(text) == 4:
            lanes["lower"].append((start, end))
    assert [len(labels) for labels in lanes.values()] == [5, 3]
    for labels in lanes.values():
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(labels)), labels


def test_long_class_names_are_turned_and_in_a_legend() -> None:
    found = explored(table().assign(good=lambda f: [LONG_NAMES[n % 4] for n in f.id]), "multiclass")
    with chart_style():
        assert "rotate(-60" in explore_plots.box_plot(found.column("sugar"), "a")
        assert "rotate(-60" not in explore_plots.box_plot(explored(table()).column("sugar"), "a")
    assert rendered(found).html.count('class="legend"') > page_of("classes").html.count('class="legend"')


def test_a_box_keeps_its_groups_colour_where_another_group_has_none() -> None:
    frame = table().assign(good=lambda f: [list("abc")[n % 3] for n in f.id], half=lambda f: f.alcohol.where(f.id % 3 != 0))
    with chart_style():
        svg = explore_plots.box_plot(explored(frame, "multiclass").column("half"), "a")
    assert "var(--s1)" not in svg and "var(--s2)" in svg and "var(--s3)" in svg


def test_many_rare_values_are_a_line_and_no_picture() -> None:
    frame = table().assign(since=lambda f: [f"{n % 200}.2024" for n in f.id], few=lambda f: [f"{n % 4}." for n in f.id])
    page = rendered(explored(frame, exclude=("quality", "since", "few")))
    assert "200 different values in 400 rows, none in more than 5 % of them" in page.text
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert "Rows by few" in labels and "Rows by since" not in labels


def test_the_columns_table_leaves_out_what_no_column_has() -> None:
    complete = table().drop(columns=["gaps", "colour"])
    heads = [re.findall(r"<span>([^<]*)</span></th>", rendered(explored(frame)).html) for frame in (complete, table())]
    assert "missing" not in heads[0] and heads[1] == ["column", "role", "type", "missing", *heads[0][3:]]
    assert "std is the population's" in page_of("binary").text


def test_strong_pairs_say_what_the_label_is_as_a_number() -> None:
    page = rendered(explored(table().assign(near=lambda f: f.good + f.alcohol / 9)))
    assert "Strongest pairs" in page.titles and "and of good as 1 where it is “True”, else 0" in page.text
