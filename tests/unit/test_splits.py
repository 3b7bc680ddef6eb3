"""Which rows go where: nothing lost, nothing doubled, nothing torn apart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from experiments.wine_quality import experiment
from toolkit.core.data import DataContext, DataSource, LoadedData, Part
from toolkit.core.errors import DataError, ExperimentError
from toolkit.core.experiment import Split
from toolkit.core.model import Task
from toolkit.engines.sklearn_splits import split
from toolkit.engines.tables import load_data


def table(num: int = 200, task: Task = "binary", num_distinct: int | None = None, **columns: Any) -> LoadedData:
    """`num` rows; the last feature is the row's number unless `num_distinct` asks for equal rows."""
    number = np.arange(num) if num_distinct is None else np.arange(num) % num_distinct
    features = np.column_stack([number % 7, number]).astype(np.float32)
    label = (np.random.RandomState(0).random_sample(num) < 0.5).astype(np.float32)
    source = DataSource("function", "test", "ab" * 32, num, 2)
    return LoadedData(features, ("a", "b"), label, (0, 1) if task == "binary" else None, task, source, **columns)


def parts(data: LoadedData, how: Split, protocol: Any = "honest") -> tuple[Part, Part, Part]:
    divided = split(data, how, protocol)
    assert len(divided.trial.folds) == 1
    train, validation = divided.trial.fold(0)
    assert (train.num_rows, validation.num_rows) == (divided.num_train_rows, divided.num_validation_rows)
    return train, validation, divided.test


def ids(part: Part) -> list[int]:
    return [int(number) for number in part.features[:, 1]]


def test_published_split_is_sklearns(wine_folder: Path, tmp_path: Path) -> None:
    data = load_data(experiment(), DataContext(None, wine_folder, tmp_path))
    divided = split(data, experiment().split, "published")
    x_train, x_test, y_train, y_test = train_test_split(data.features, data.label, random_state=123)
    train, validation = divided.trial.fold(0)
    np.testing.assert_array_equal(train.features, x_train)
    np.testing.assert_array_equal(train.label, y_train)
    for part in (validation, divided.test):
        np.testing.assert_array_equal(part.features, x_test)
        np.testing.assert_array_equal(part.label, y_test)
    assert "figures are optimistic" in divided.description
    assert np.shares_memory(divided.test.features, divided.trial.rows.features)


def test_honest_wine_split_tears_no_duplicates_apart(wine_folder: Path, tmp_path: Path) -> None:
    data = load_data(experiment(), DataContext(None, wine_folder, tmp_path))
    train, validation, test = parts(data, experiment().split)
    rows = [{row.tobytes() for row in part.features} for part in (train, validation, test)]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    assert Counter(row.tobytes() for part in (train, validation, test) for row in part.features) == Counter(
        row.tobytes() for row in data.features
    )
    assert abs(test.num_rows - 0.25 * 6497) < 10
    assert abs(validation.num_rows - 0.2 * 0.75 * 6497) < 10


def test_honest_parts_are_contiguous_views() -> None:
    divided = split(table(), Split(), "honest")
    train, validation = divided.trial.fold(0)
    assert all(isinstance(which, slice) for which in divided.trial.folds[0])
    assert np.shares_memory(train.features, divided.trial.rows.features)
    assert np.shares_memory(validation.features, divided.trial.rows.features)
    assert train.features.flags.c_contiguous
    assert sorted(ids(train) + ids(validation) + ids(divided.test)) == list(range(200))
    assert [part.num_rows for part in (train, validation, divided.test)] == [120, 30, 50]
    assert divided.description == "honest protocol: rows (equal ones together) at random (seed 0); 120 train, 30 validation, 50 test"
    assert (divided.trial.num_classes, divided.trial.data_id) == (2, "ab" * 32)


def test_seed_decides() -> None:
    first, again, other = (parts(table(), Split(seed=seed))[2] for seed in (1, 1, 2))
    assert ids(first) == ids(again) != ids(other)


def test_duplicates_may_be_torn_apart_on_request() -> None:
    together = parts(table(num_distinct=50), Split())
    assert not set(ids(together[0])) & set(ids(together[2]))
    apart = parts(table(num_distinct=50), Split(keep_duplicates_together=False))
    assert set(ids(apart[0])) & set(ids(apart[2]))


def test_time_split_is_in_order_and_keeps_moments_whole() -> None:
    time = np.random.RandomState(1).permutation(200) // 4
    data = table(time=time)
    train, validation, test = (time[ids(part)] for part in parts(data, Split(by="time")))
    assert train.max() < validation.min() <= validation.max() < test.min()
    assert len(test) == 52 or len(test) == 48
    published = split(data, Split(by="time"), "published")
    assert ids(published.trial.fold(0)[1]) == ids(published.test)


def test_group_split_keeps_groups_whole() -> None:
    group = np.random.RandomState(1).randint(0, 20, 200)
    sets = [set(group[ids(part)]) for part in parts(table(group=group), Split(by="group"))]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert set.union(*sets) == set(group)


def test_ranking_queries_stay_whole_and_sorted() -> None:
    group = np.random.RandomState(1).randint(0, 40, 200)
    data = table(task="ranking", group=group)
    for protocol in ("honest", "published"):
        three = parts(data, Split(), protocol)
        assert all((np.diff(part.group) >= 0).all() for part in three if part.group is not None)
        assert not set(group[ids(three[0])]) & set(group[ids(three[2])])
    for train, validation in (split(data, Split(folds=3), "honest").trial.fold(fold) for fold in range(3)):
        assert train.group is not None and validation.group is not None
        assert (np.diff(train.group) >= 0).all() and (np.diff(validation.group) >= 0).all()
        assert not set(train.group) & set(validation.group)


@pytest.mark.parametrize("by", ["random", "group"])
def test_folds_validate_every_row_once(by: Any) -> None:
    group = np.random.RandomState(1).randint(0, 30, 200)
    data = table(num_distinct=100, group=group)
    divided = split(data, Split(by=by, folds=4), "honest")
    rows = divided.trial.rows
    seen: list[int] = []
    for number, (train, validation) in enumerate(divided.trial.folds):
        assert not isinstance(train, slice) and not isinstance(validation, slice)
        assert sorted([*train, *validation]) == list(range(rows.num_rows))
        seen += validation.tolist()
        left, right = divided.trial.fold(number)
        if by == "random":
            assert not set(ids(left)) & set(ids(right))
        else:
            assert left.group is not None and right.group is not None and not set(left.group) & set(right.group)
        assert abs(right.num_rows - rows.num_rows / 4) < 10
    assert sorted(seen) == list(range(rows.num_rows))
    assert "4 folds of" in divided.description


def test_time_folds_look_forward_only() -> None:
    time = np.random.RandomState(1).permutation(200)
    divided = split(table(time=time), Split(by="time", folds=3), "honest")
    sizes = []
    for number in range(3):
        train, validation = (time[ids(part)] for part in divided.trial.fold(number))
        assert train.max() < validation.min()
        sizes.append((len(train), len(validation)))
    assert [size for size, _ in sizes] == [38, 75, 113]
    assert min(time[ids(divided.test)]) > max(time[ids(divided.trial.rows)])


@pytest.mark.parametrize("protocol", ["honest", "published"])
def test_holdout_table_is_the_test_part(protocol: Any) -> None:
    data = LoadedData(**{**table().__dict__, "test": table(30)})
    divided = split(data, Split(), protocol)
    assert ids(divided.test) == list(range(30))
    train, validation = divided.trial.fold(0)
    assert (train.num_rows, validation.num_rows) == ((160, 40) if protocol == "honest" else (200, 30))


def test_weights_travel() -> None:
    for part in parts(table(weight=np.arange(200, dtype=np.float32)), Split()):
        assert part.weight is not None and part.weight.tolist() == ids(part)


def one_class(*, where: slice) -> LoadedData:
    data = table(time=np.arange(200))
    data.label[where] = 0
    return data


@pytest.mark.parametrize(
    ("data", "how", "match"),
    [
        (table(2), Split(), r"needs at least 3 different rows \(equal ones together\), got 2 in 2 rows"),
        (table(50, num_distinct=2), Split(), "needs at least 3 different rows.* got 2 in 50 rows"),
        (table(50, group=np.arange(50) % 4), Split(by="group", folds=4), "needs at least 5 different groups, got 4 in 50 rows"),
        (one_class(where=slice(150, 200)), Split(by="time"), "the test part must have two classes, got 50 rows of 0; change split.seed"),
        (one_class(where=slice(120, 150)), Split(by="time"), "the validation part must have two classes, got 30 rows of 0"),
        (one_class(where=slice(0, 120)), Split(by="time"), "the train part must have two classes, got 120 rows of 0"),
        (one_class(where=slice(0, 50)), Split(by="time", folds=3), "the train part of fold 0 must have two classes"),
        (table(weight=np.zeros(200, dtype=np.float32)), Split(), "the train part must have a row with weight"),
    ],
)
def test_what_cannot_be_divided(data: LoadedData, how: Split, match: str) -> None:
    with pytest.raises(DataError, match=match):
        split(data, how, "honest")


def test_published_protocol_refuses_folds_and_a_single_row() -> None:
    with pytest.raises(ExperimentError, match="the published protocol selects on the test part, got folds=3"):
        split(table(), Split(folds=3), "published")
    with pytest.raises(DataError, match="needs at least 2 rows, got 1"):
        split(table(1), Split(), "published")


@settings(max_examples=150, deadline=None)
@given(
    group=st.lists(st.integers(0, 12), min_size=8, max_size=80),
    test=st.floats(0.01, 0.99),
    validation=st.floats(0.01, 0.99),
    folds=st.none() | st.integers(2, 4),
    by=st.sampled_from(["random", "time", "group"]),
)
def test_every_row_is_somewhere_once(group: list[int], test: float, validation: float, folds: int | None, by: Any) -> None:
    column = np.unique(group, return_inverse=True)[1]
    data = table(len(group), "regression", group=column, time=column)
    how = Split(by=by, test=test, validation=validation, folds=folds)
    if column.max() + 1 < 6 and by != "random":
        return
    divided = split(data, how, "honest")
    assert sorted(ids(divided.trial.rows) + ids(divided.test)) == list(range(len(group)))
    for number in range(len(divided.trial.folds)):
        train, validation_part = divided.trial.fold(number)
        assert train.num_rows and validation_part.num_rows
        assert not set(ids(train)) & set(ids(validation_part))
        if by != "random":
            assert not set(column[ids(train)]) & set(column[ids(validation_part)])
            assert not set(column[ids(train)]) & set(column[ids(divided.test)])
