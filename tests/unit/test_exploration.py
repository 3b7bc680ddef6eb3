"""The numbers of an exploration: exact against other people's software, honest about categories, and every suspect found."""

from __future__ import annotations

import dataclasses
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from toolkit.core.data import DataContext
from toolkit.core.encoding import encode
from toolkit.core.errors import DataError
from toolkit.core.experiment import Dataset, Split
from toolkit.core.exploration import Exploration
from toolkit.core.exploration_batches import NUM_SMALLEST, added, ends, num_distinct, places, smallest, tally
from toolkit.core.exploration_frame import explore_frame
from toolkit.core.exploration_labels import MAX_GROUPS, OTHER_CLASSES, Division, LabelGroups, split_figures
from toolkit.core.exploration_levels import Levels, area, number_histogram, quantiles
from toolkit.core.recipes import load_experiment
from toolkit.core.row_hashes import row_hashes
from toolkit.engines.sklearn_splits import split
from toolkit.engines.tables import encode_fetched, fetch

RECIPES = Path(__file__).parents[2] / "experiments"


def dataset(**parts: Any) -> Dataset:
    return Dataset(load="unused", **{"label": "y", **parts})


def explored(frame: pd.DataFrame, task: Any = "binary", division: Division | None = None, **parts: Any) -> Exploration:
    return explore_frame(frame, dataset(**parts), task, lambda groups: division or Division())


def table(num_rows: int = 2000) -> pd.DataFrame:
    """Ties, gaps, whole numbers, categories, and a label that depends on some of them."""
    random = np.random.RandomState(7)
    signal = random.normal(size=num_rows)
    frame = pd.DataFrame(
        {
            "smooth": signal + random.normal(size=num_rows),
            "ties": (signal + random.normal(size=num_rows)).round(1),
            "gaps": np.where(random.rand(num_rows) < 0.2, np.nan, -signal),
            "count": random.poisson(3, num_rows),
            "flag": random.rand(num_rows) < 0.3,
            "city": random.choice(["Ada", "Bo", "Cy", None], num_rows, p=[0.5, 0.3, 0.1, 0.1]),
        }
    )
    return frame.assign(y=(signal + random.normal(size=num_rows) + (frame.city == "Bo") > 0.5).astype(int))


# ---- figures against other people's


def test_areas_are_scikit_learn_s() -> None:
    frame = table()
    found = explored(frame, categorical=("city",))
    for name in ("smooth", "ties", "gaps", "count", "flag"):
        rows = frame[frame[name].notna()]
        expected = roc_auc_score(rows.y, rows[name])
        assert found.column(name).strength == pytest.approx(max(expected, 1 - expected), abs=1e-12)
        assert found.column(name).measure == "auc"
    expected = roc_auc_score(frame.y, frame.gaps.isna())
    assert found.column("gaps").missing_strength == pytest.approx(max(expected, 1 - expected), abs=1e-12)
    assert found.column("smooth").missing_strength is None
    assert [column.name for column in found.predictors[:3]] == ["gaps", "smooth", "ties"]


def test_of_several_classes_the_mean_of_one_against_the_rest() -> None:
    frame = table()
    frame["y"] = np.array(["a", "b", "c"])[np.digitize(frame.smooth + np.random.RandomState(1).normal(size=len(frame)), [-0.5, 0.8])]
    each = [roc_auc_score(frame.y == name, frame.ties) for name in "abc"]
    found = explored(frame, "multiclass").column("ties")
    assert found.strength == pytest.approx(np.mean([max(area, 1 - area) for area in each]), abs=1e-12)
    assert [box.group for box in found.boxes] == ["a", "b", "c"]


@pytest.mark.parametrize("rounded", [False, True])
def test_of_numbers_the_rank_correlation(rounded: bool) -> None:
    frame = table()
    frame["y"] = frame.smooth - 2 * frame["count"] + np.random.RandomState(2).normal(size=len(frame))
    frame["y"] = frame.y.round() if rounded else frame.y
    found = explored(frame, "regression")
    for name in ("smooth", "ties", "count", "flag"):
        assert found.column(name).strength == pytest.approx(abs(spearmanr(frame[name], frame.y).statistic), abs=1e-9)
    assert found.column("count").measure == "absolute Spearman correlation"
    assert sum(found.group_counts) == len(frame) and len(found.groups) == 5


def test_summaries_are_pandas_s() -> None:
    frame = table()
    found = explored(frame, key="count")
    for name in ("smooth", "ties", "gaps", "count"):
        column, expected = found.column(name), frame[name].describe()
        figures = (column.mean, column.min, column.q25, column.median, column.q75, column.max)
        assert figures == pytest.approx(tuple(expected[["mean", "min", "25%", "50%", "75%", "max"]]), rel=1e-12)
        assert column.std == pytest.approx(frame[name].std(ddof=0), rel=1e-12)
        assert column.num_distinct == frame[name].nunique() and column.num_missing == frame[name].isna().sum()
    box = found.column("smooth").boxes[1]
    expected = frame.smooth[frame.y == 1].quantile([0.05, 0.25, 0.5, 0.75, 0.95])
    assert (box.low, box.q25, box.median, box.q75, box.high) == pytest.approx(tuple(expected), rel=1e-12)
    assert found.memory_bytes == frame.memory_usage(index=False, deep=True).sum()


def test_correlations_are_pandas_s_over_the_rows_that_both_columns_have() -> None:
    frame = table().assign(flat=1.0, large=1e9 + table().smooth)
    found = explored(frame).correlations
    names = ["y", "smooth", "ties", "gaps", "count", "flag", "flat", "large"]
    assert list(found.names) == names
    expected = frame[names].astype(float).corr().to_numpy()
    for row, values in enumerate(found.values):
        for place, value in enumerate(values):
            if "flat" in (names[row], names[place]):
                assert value is None
            else:
                assert value == pytest.approx(expected[row, place], abs=1e-6)
    assert (found.strongest[0].first, found.strongest[0].second) == ("smooth", "large")


# ---- categories


def test_a_category_that_tells_nothing_does_not_seem_to() -> None:
    """With the means of its own rows, three rows a category would look like an area of 0.8."""
    random = np.random.RandomState(3)
    frame = pd.DataFrame({"x": random.rand(3000), "agent": random.randint(0, 1000, 3000).astype(str), "y": random.randint(0, 2, 3000)})
    frame["id"] = [f"row {number}" for number in range(len(frame))]
    own_means = frame.groupby("agent").y.transform("mean")
    assert roc_auc_score(frame.y, own_means) > 0.75
    found = explored(frame)
    assert found.column("agent").strength < 0.54
    assert found.column("id").strength == 0.5  # every value occurs once: nothing to be learnt
    found = explored(frame.assign(y=random.normal(size=3000)), "regression")
    assert found.column("agent").strength < 0.08 and found.column("id").strength == 0.0


def test_a_category_that_tells_the_label_is_seen() -> None:
    frame = table(20_000)
    by_city = frame.groupby("city").y.mean()
    there = frame[frame.city.notna()]
    assert explored(frame).column("city").strength == pytest.approx(roc_auc_score(there.y, there.city.map(by_city)), abs=0.01)
    told = explored(frame.assign(told=frame.y.map({0: "no", 1: "yes"})))
    assert told.column("told").strength == 1.0
    assert [finding.kind for finding in told.suspects] == ["tells_label"]


def test_whole_numbers_named_as_categories_are_categories() -> None:
    found = explored(table().assign(zone=[3, 1] * 1000), categorical=("zone",)).column("zone")
    assert found.kind == "category" and found.histogram is not None
    assert set(found.histogram.values) == {"1", "3"} and found.boxes == ()


# ---- histograms


def test_every_row_is_in_a_histogram_once() -> None:
    frame = table().assign(wide=np.r_[np.full(1995, 1.0) + np.arange(1995) / 1e4, np.full(5, 1e6)])
    frame.loc[:4, "wide"] = np.nan
    found = explored(frame)
    for column in found.features:
        histogram = column.histogram
        assert histogram is not None and sum(histogram.counts) == len(frame) - column.num_missing
        assert [sum(bars) for bars in zip(*histogram.by_group, strict=True)] == list(histogram.counts)
        if histogram.edges is not None:
            assert len(histogram.edges) == len(histogram.counts) + 1 and list(histogram.edges) == sorted(histogram.edges)
    wide = found.column("wide")
    assert wide.histogram and wide.histogram.edges and wide.histogram.edges[-1] < 2 < wide.max  # five far ones do not squash the rest


def test_few_values_are_shown_one_by_one_and_many_in_even_bins() -> None:
    found = explored(table().assign(dollars=np.arange(2000) % 100, price=(np.arange(2000) % 500) / 100))
    histogram = found.column("flag").histogram
    assert histogram is not None and histogram.edges is None and histogram.values == ("False", "True")
    dollars, price = found.column("dollars").histogram, found.column("price").histogram
    assert dollars and dollars.edges and price and price.edges
    assert set(dollars.counts) == {80} and len(set(np.round(np.diff(dollars.edges), 9))) == 1  # four values a bin: no comb
    assert set(price.counts[:-1]) == {68}
    cities = explored(table().assign(town=[f"town {n % 40}" for n in range(2000)])).column("town").histogram
    assert cities and cities.values[-1] == "others" and len(cities.values) == 12 and sum(cities.counts) == 2000


def test_levels_that_are_intervals_spread_their_rows() -> None:
    """As a large table has them: ten rows below 1, five at 1, ten between 1 and 3."""
    counts = np.array([[[10]], [[5]], [[10]]])
    levels = Levels(
        np.array([0.0, 1, 1]), np.array([1.0, 1, 3]), None, np.concatenate([counts, 0 * counts], axis=2), np.zeros(2, dtype=int)
    )
    assert quantiles(levels, levels.num_rows, (0.0, 0.5, 1.0)) == pytest.approx([0.05, 1.0, 2.9])
    histogram = number_histogram(levels, is_whole=False, is_boolean=False, by_group=True)
    assert histogram and histogram.edges and sum(histogram.counts) == 25 and histogram.by_group == (histogram.counts,)
    assert sum(count for count, edge in zip(histogram.counts, histogram.edges, strict=False) if edge >= 2) == 5


# ---- suspects and remarks


def kinds(found: Exploration) -> set[tuple[str, str | None]]:
    return {(finding.kind, finding.column) for finding in (*found.suspects, *found.remarks)}


def test_an_ordinary_table_raises_no_suspicion() -> None:
    assert kinds(explored(table(), categorical=("city",))) == set()


LEAKS: dict[str, tuple[dict[str, Any], str]] = {
    "made from the label": ({"leak": lambda f: f.y * 2.0 - np.arange(len(f)) * 1e-9}, "tells_label"),
    "a copy as text": ({"leak": lambda f: f.y.astype(str)}, "tells_label"),
    "known afterwards": ({"leak": lambda f: np.where(f.y == 1, f.smooth, np.nan)}, "missing_tells_label"),
    "text known afterwards": ({"leak": lambda f: np.where((f.y == 1) & f.flag, "why", None)}, "missing_tells_label"),
    "a row number": ({"leak": lambda f: np.arange(len(f)) + 1000}, "identifier"),
    "a row number that a gap made a float": ({"leak": lambda f: np.r_[np.nan, np.arange(1, len(f))]}, "identifier"),
    "a name a row": ({"leak": lambda f: [f"id-{n}" for n in range(len(f))]}, "identifier"),
    "long identifiers": ({"leak": lambda f: np.arange(len(f)) + 2**62}, "identifier"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_a_suspect(name: str) -> None:
    columns, kind = LEAKS[name]
    found = explored(table().assign(**columns))
    assert (kind, "leak") in {(finding.kind, finding.column) for finding in found.suspects}
    assert all(finding.column == "leak" and finding.figure and finding.advice for finding in found.suspects)


def test_a_number_that_follows_the_label_is_a_suspect_of_a_regression_too() -> None:
    frame = table().assign(y=table().smooth, leak=np.exp(table().smooth), known=np.where(table().smooth > 0, 1.0, np.nan))
    assert kinds(explored(frame.drop(columns="smooth"), "regression")) >= {("tells_label", "leak"), ("missing_tells_label", "known")}


@pytest.mark.parametrize("role", ["key", "exclude", "time"])
def test_what_is_no_feature_cannot_leak(role: str) -> None:
    frame = table().assign(leak=np.arange(2000) + 10_000 * table().y)
    parts: dict[str, Any] = {role: ("leak",) if role == "exclude" else "leak"}
    found = explored(frame, **parts)
    assert found.suspects == () and found.column("leak").role == role and found.column("leak").strength is None


def test_measurements_are_no_identifiers() -> None:
    frame = table().assign(day=pd.date_range("2020-01-01", periods=2000), few=np.arange(2000) // 10)
    assert not any(column.is_identifier for column in explored(frame).columns)
    tiny = table(60).assign(cents=np.random.RandomState(0).permutation(60))
    assert not explored(tiny).column("cents").is_identifier


REMARKS: dict[str, tuple[Any, str]] = {
    "one value": (7, "constant"),
    "no value": (np.nan, "constant"),
    "one text": ("DE", "constant"),
    "nearly always one": (np.r_[np.ones(3), np.zeros(1997)], "near_constant"),
    "nearly always missing": (np.r_[np.arange(3.0), np.full(1997, np.nan)], "near_constant"),
    "infinite": (np.r_[np.inf, np.arange(1999) % 50], "infinite"),
}


@pytest.mark.parametrize("name", REMARKS)
def test_remarks(name: str) -> None:
    values, kind = REMARKS[name]
    found = explored(table().assign(odd=values))
    assert kinds(found) == {(kind, "odd")}


def test_one_value_and_gaps_are_not_constant() -> None:
    found = explored(table().assign(odd=np.where(np.arange(2000) % 2, 1.0, np.nan))).column("odd")
    assert not found.is_constant and not found.is_near_constant and found.top_share == 0.5


def test_infinite_values_count_for_nothing_else() -> None:
    frame = table()
    with_infinite = frame.assign(smooth=frame.smooth.where(frame.index >= 50, np.inf))
    column, expected = explored(with_infinite).column("smooth"), explored(frame[50:].reset_index(drop=True)).column("smooth")
    assert column.num_infinite == 50 and column.num_missing == 0
    assert (column.mean, column.max, column.strength) == pytest.approx((expected.mean, expected.max, expected.strength))


def test_duplicates_and_keys() -> None:
    frame = table(300).drop_duplicates(["smooth"]).reset_index(drop=True)
    frame["id"] = range(len(frame))
    twice = pd.concat([frame, frame[:25], frame[:5].assign(id=900)], ignore_index=True)
    twice.loc[40:42, "id"] = np.nan
    found = explored(twice, key="id")
    assert found.duplicates.num_rows == 30 and found.duplicates.share == 30 / len(twice)
    assert found.duplicates.num_repeated_keys == twice.id.dropna().duplicated().sum() == 29
    assert found.duplicates.num_missing_keys == 3
    assert kinds(found) == {("keys_repeated", None), ("keys_missing", None)}
    assert explored(twice.drop(columns="id")).duplicates.num_repeated_keys is None
    # Equal as a model sees them: float32, and one zero.
    near = pd.DataFrame({"x": [0.0, -0.0, 1.0, 1.0 + 1e-12, np.nan, np.nan], "y": [0, 1, 0, 1, 0, 1]})
    assert explored(near).duplicates.num_rows == 3


# ---- labels


def test_rows_without_a_label_count_in_columns_only() -> None:
    frame = table().assign(y=table().y.astype(float))
    frame.loc[:99, "y"] = np.nan
    found, labelled = explored(frame), explored(frame[100:].reset_index(drop=True))
    assert found.num_unlabelled == 100 and sum(found.group_counts) == 1900 and found.groups == ("0", "1")
    assert found.column("smooth").strength == labelled.column("smooth").strength
    histogram = found.column("count").histogram
    assert histogram and sum(histogram.counts) == 2000 and sum(map(sum, histogram.by_group)) == 1900
    assert kinds(found) == {("label_missing", None)}


def test_beyond_twenty_classes_the_rarest_are_one() -> None:
    sizes = np.arange(1, 31) * 10
    frame = pd.DataFrame({"y": np.repeat([f"c{n:02}" for n in range(30)], sizes)})
    frame["x"] = np.random.RandomState(0).rand(len(frame))
    found = explored(frame, "multiclass")
    assert len(found.groups) == MAX_GROUPS and found.groups[-1] == OTHER_CLASSES and found.groups[0] == "c11"
    assert sum(found.group_counts) == len(frame) and found.group_counts[-1] == sizes[:11].sum()


@pytest.mark.parametrize(
    ("changes", "task", "parts", "message"),
    [
        ({"y": 1}, "binary", {}, "label 'y': needs at least two values, got one in 2,000 labelled rows; check dataset.label"),
        ({"y": None}, "binary", {}, "label 'y': needs at least two values, got none in 0 labelled rows"),
        ({"y": np.arange(2000) % 3}, "binary", {}, "a binary objective needs exactly two values, got 3 (0, 1, 2)"),
        ({"y": "a"}, "regression", {}, "label 'y': must be numeric, got 'a' in row 1; use a classification objective"),
        ({"y": 2.5}, "regression", {}, "label 'y': needs at least two values, got one"),
        ({}, "binary", {"label": "Y"}, "dataset.label: no such column in the table, got 'Y'; known: city,"),
        ({}, "binary", {"exclude": ("citty",)}, "dataset.exclude: no such column in the table, got 'citty'; did you mean 'city'?"),
        ({}, "binary", {"exclude": ("smooth", "ties", "gaps", "count", "flag", "city")}, "data: needs a column beside label"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], task: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        explored(table().assign(**changes), task, **parts)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="data: needs rows"):
        explored(table()[:0])


# ---- types


def test_every_type_has_a_kind() -> None:
    num = 200
    frame = pd.DataFrame(
        {
            "decimal": [Decimal(n) / 8 for n in range(num)],
            "nullable": pd.array([None, *range(1, num)], dtype="Int64"),
            "yes": pd.array([None, *[True, False] * 100][:num], dtype="boolean"),
            "object_yes": pd.Series([None, *[True, False] * 100][:num], dtype=object),
            "factor": pd.Categorical(["a", "b"] * 100),
            "mixed": [1, "one"] * 100,
            "day": [datetime.date(2024, 1, 1 + n % 28) for n in range(num)],
            "moment": pd.date_range("2024-01-01", periods=num, tz="Europe/Berlin"),
            "nested": [[n] for n in range(num)],
            "span": pd.to_timedelta(np.arange(num), unit="h"),
            "empty": np.full(num, None, dtype=object),
            "y": [0, 1] * 100,
        }
    )
    found = explored(frame)
    assert {column.name: column.kind for column in found.columns} == {
        "decimal": "number", "nullable": "number", "yes": "boolean", "object_yes": "boolean", "factor": "category", "mixed": "category",
        "day": "time", "moment": "time", "nested": "other", "span": "other", "empty": "number", "y": "number",
    }  # fmt: skip
    assert found.column("yes").num_missing == found.column("object_yes").num_missing == 1
    assert found.column("day").min == datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert found.column("empty").is_constant
    json.dumps(found.as_json(), allow_nan=False)


def test_times_that_a_csv_file_has_as_text() -> None:
    found = explored(table().assign(at=[f"2024-01-{1 + n % 28:02}T10:00:00" for n in range(2000)]), time="at").column("at")
    assert found.kind == "time" and found.min == datetime.datetime(2024, 1, 1, 10, tzinfo=datetime.UTC).timestamp()


# ---- the split


def test_wine(wine_folder: Path) -> None:
    """The published figures of the data, and what the honest split is for."""
    wine = load_experiment("wine-quality", [RECIPES])
    fetched = fetch(wine, DataContext(None, wine_folder, wine_folder))
    loaded = encode_fetched(wine, fetched)

    def divided(how: Split) -> Exploration:
        def divide(groups: LabelGroups) -> Division:
            return Division(split_figures(loaded, split(loaded, how, "honest"), groups, by_group=False))

        return explore_frame(fetched.frame, wine.dataset, "binary", divide)

    found = divided(wine.split)
    quality = found.column("quality")
    assert quality.role == "exclude" and quality.histogram is not None
    assert dict(zip(quality.histogram.values, quality.histogram.counts, strict=True)) == {
        "3": 30, "4": 216, "5": 2138, "6": 2836, "7": 1079, "8": 193, "9": 5,
    }  # fmt: skip
    assert found.num_rows == 6497 and found.num_features == 12 and found.duplicates.num_rows == 1177
    assert found.group_counts == (5220, 1277) and found.suspects == () and found.remarks == ()
    assert found.predictors[0].name == "alcohol" and found.predictors[0].strength == pytest.approx(0.7643, abs=1e-4)
    assert found.split and [part.name for part in found.split.parts] == ["train", "validation", "test"]
    assert sum(part.num_rows for part in found.split.parts) == 6497
    assert [sum(part.by_group[code] for part in found.split.parts) for code in (0, 1)] == [5220, 1277]

    leaky = divided(dataclasses.replace(wine.split, keep_duplicates_together=False))
    assert {finding.kind for finding in leaky.suspects} == {"rows_in_both_parts"}
    assert leaky.split and leaky.split.overlaps[1].part == "test" and leaky.split.overlaps[1].num_rows > 300


@pytest.mark.parametrize("how", [Split(by="group"), Split(), Split(folds=3)], ids=["groups", "rows", "folds"])
def test_groups_in_both_parts(how: Split) -> None:
    frame = table().assign(person=np.arange(2000) % 200, city=0)
    data = dataset(group="person")
    loaded = encode(frame, "file", "x", data, "binary")

    def divide(groups: LabelGroups) -> Division:
        return Division(split_figures(loaded, split(loaded, how, "honest"), groups, by_group=how.by == "group"))

    found = explore_frame(frame, data, "binary", divide)
    expected = set() if how.by == "group" else {"groups_in_both_parts"}
    assert {finding.kind for finding in found.suspects} == expected
    assert found.split and len(found.split.parts) == (2 if how.folds else 3)


def test_a_table_that_training_refuses_is_explored_all_the_same() -> None:
    found = explored(table(), division=Division(note="not drawn", obstacle="feature 'city': must be numeric"))
    assert found.split is None and found.split_note == "not drawn"
    assert [finding.kind for finding in found.remarks] == ["not_trainable"] and "must be numeric" in found.remarks[0].what


# ---- counts that add up


def test_levels_of_edges_and_what_lies_between() -> None:
    random = np.random.RandomState(5)
    edges = np.unique(random.rand(40).round(2))
    values = np.concatenate([random.rand(1000), edges, edges])
    values = values[(values >= edges[0]) & (values <= edges[-1])]
    below = np.searchsorted(edges, values)
    expected = 2 * below + (edges[below] == values)
    np.testing.assert_array_equal(places(values, edges), expected)
    low, high = ends(edges)
    assert ((low[expected] <= values) & (values <= high[expected])).all()


def test_tallies_of_parts_add_up_to_that_of_the_whole() -> None:
    random = np.random.RandomState(6)
    values, groups, ranks = random.rand(900), random.randint(0, 4, 900), random.rand(900)
    values[::7] = np.nan
    edges = np.linspace(0, 1, 20)

    def of(rows: slice) -> Any:
        there = np.isfinite(values[rows])
        return tally(places(values[rows][there], edges), 41, there, None, groups[rows], 3, ranks[rows])

    whole, parts = of(slice(0, 900)), added(added(None, of(slice(0, 300))), of(slice(300, 900)))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name])
    assert whole["counts"].sum() + whole["missing"].sum() == 900


@pytest.mark.parametrize("num", [0, 1, 1000, NUM_SMALLEST, 500_000])
def test_different_values_are_counted_exactly_and_then_nearly(num: int) -> None:
    hashes = row_hashes(np.arange(num, dtype=np.float32)[:, None]) if num else np.empty(0, dtype=np.uint64)
    kept = np.empty(0, dtype=np.uint64)
    for part in np.array_split(np.concatenate([hashes, hashes]), 7):
        kept = smallest(part, kept)
    assert num_distinct(kept) == (num if num < NUM_SMALLEST else pytest.approx(num, rel=0.05))


def test_too_few_rows_say_nothing() -> None:
    assert area(np.array([9.0, 0]), np.array([0, 100.0])) is None
    frame = table(15)
    assert all(column.strength is None for column in explored(frame).features if frame.y.sum() < 10)
