"""How rows are divided.

Shapes: n rows, u units. A unit is what a split never tears apart: a row, the rows with equal features, the rows of one group, or the rows
of one moment. scikit-learn is imported where it is called: most splits do without its half second.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.data import Indices, LoadedData, Part, SplitData, TrialData, concatenate, take
from toolkit.core.errors import DataError, ExperimentError
from toolkit.core.experiment import Protocol, Split
from toolkit.core.row_hashes import row_hashes

Array = npt.NDArray[Any]


def split(data: LoadedData, split: Split, protocol: Protocol) -> SplitData:
    """Divide the rows into train, validation and test.

    Honest: the test part first (the hold-out table where there is one), then validation from the rest. Published: a random split is
    scikit-learn's `train_test_split(random_state=seed)` on row positions, and the test rows are the validation rows too. The parts of a
    ranking are sorted by group; other parts keep the table's order (published: `train_test_split`'s).

    Returns:
        With folds, the counts of train and validation rows are those of the last fold.

    Raises:
        DataError: too few rows or groups, or a part with a single class.
        ExperimentError: the published protocol with folds.
    """
    if protocol == "published":
        return _published(data, split)
    units, what = _units(data, split)
    folds = split.folds or 0
    # Rows for validation and training; a time-ordered fold needs one block more, since the first can only be trained on.
    num_reserved = max(2, folds + (split.by == "time"))
    rank, sizes = _queue(data, split, units)
    needed = num_reserved + (data.test is None)
    if len(sizes) < needed:
        raise DataError(
            f"split: needs at least {needed} different {what}", got=f"{len(sizes):,} in {len(units):,} rows", next_step="add rows"
        )
    num_test = 0 if data.test is not None else _leading(sizes, math.ceil(split.test * len(units)), len(sizes) - num_reserved)
    test_rows = None
    if data.test is None:
        test_rows = _arranged(data, np.flatnonzero(rank < num_test))
        test = take(_whole(data), test_rows)
    else:
        test = _sorted_whole(data.test)
    pairs: tuple[tuple[slice | Indices, slice | Indices], ...]
    if folds:
        rows = _arranged(data, np.flatnonzero(rank >= num_test))
        part = take(_whole(data), rows)
        fitted_rows = rows
        pairs = _folds(rank[rows] - num_test, sizes[num_test:], split)
    else:
        share = math.ceil(split.validation * int(sizes[num_test:].sum()))
        num_validation = num_test + _leading(sizes[num_test:], share, len(sizes) - num_test - 1)
        train_rows = _arranged(data, np.flatnonzero(rank >= num_validation))
        validation_rows = _arranged(data, np.flatnonzero((rank >= num_test) & (rank < num_validation)))
        fitted_rows = np.concatenate([train_rows, validation_rows])
        part = take(_whole(data), fitted_rows)
        pairs = ((slice(0, len(train_rows)), slice(len(train_rows), part.num_rows)),)
    how = {
        "random": f"{what} at random (seed {split.seed})",
        "time": f"by time, the latest {'of the rest for validation' if data.test else 'rows for the test'}",
        "group": f"whole groups at random (seed {split.seed})",
    }[split.by]
    return _checked(data, part, pairs, test, f"honest protocol: {how}", folds, fitted_rows, test_rows)


def _published(data: LoadedData, split: Split) -> SplitData:
    if split.folds:
        raise ExperimentError(
            "split.folds: the published protocol selects on the test part", got=f"folds={split.folds}", next_step="use --protocol honest"
        )
    if data.test is not None:
        train_rows, test_rows = _arranged(data, np.arange(len(data.label))), None
        train, test, how = _sorted_whole(data), _sorted_whole(data.test), "the hold-out table is the test part"
    else:
        if split.by == "random" and data.task != "ranking":
            from sklearn.model_selection import train_test_split

            if len(data.label) < 2:
                raise DataError("split: needs at least 2 rows", got=len(data.label), next_step="add rows")
            train_rows, test_rows = train_test_split(np.arange(len(data.label)), test_size=split.test, random_state=split.seed)
            how = f"train_test_split with seed {split.seed}"
        else:
            units, what = _units(data, split)
            rank, sizes = _queue(data, split, units)
            if len(sizes) < 2:
                raise DataError(f"split: needs at least 2 different {what}", got=len(sizes), next_step="add rows")
            num_test = _leading(sizes, math.ceil(split.test * len(units)), len(sizes) - 1)
            train_rows, test_rows = np.flatnonzero(rank >= num_test), np.flatnonzero(rank < num_test)
            how = "by time" if split.by == "time" else f"{what} at random (seed {split.seed})"
        train_rows, test_rows = _arranged(data, train_rows), _arranged(data, test_rows)
        train, test = take(_whole(data), train_rows), take(_whole(data), test_rows)
    part = concatenate([train, test])
    validation = slice(train.num_rows, part.num_rows)
    how = f"published protocol: {how}; selection and early stopping see the test rows, so figures are optimistic"
    return _checked(data, part, ((slice(0, train.num_rows), validation),), take(part, validation), how, 0, train_rows, test_rows)


def _units(data: LoadedData, split: Split) -> tuple[Indices, str]:
    """(n,) codes 0 … u-1 of the units, and the units' name."""
    column, what = None, "rows"
    if split.by == "time":
        column, what = data.time, "moments"
    elif split.by == "group":
        column, what = data.group, "groups"
    elif data.task == "ranking":
        column, what = data.group, "queries"
    elif split.keep_duplicates_together:
        # Two rows that collide stay together as if they were equal: harmless, and sorting numbers is fast.
        column, what = row_hashes(data.features), "rows (equal ones together)"
    else:
        return np.arange(len(data.label)), what
    assert column is not None, "Experiment and load_data refuse a split by a column that is not there"
    return np.unique(column, return_inverse=True)[1].astype(np.int64), what


def _queue(data: LoadedData, split: Split, units: Indices) -> tuple[Indices, Indices]:
    """Each row's place in the queue from which the test part is served first: (n,) ranks, and (u,) rows by rank."""
    num_units = int(units.max()) + 1
    # RandomState: its stream is frozen, so that a split outlives numpy's versions.
    shuffled = np.random.RandomState(split.seed).permutation(num_units)
    rank = (num_units - 1 - units if split.by == "time" else shuffled[units]).astype(np.int64)
    return rank, np.bincount(rank, minlength=num_units).astype(np.int64)


def _leading(sizes: Indices, num_rows: int, most: int) -> int:
    """How many units from the front come nearest to `num_rows` rows; at least 1, at most `most`."""
    ends = np.cumsum(sizes)
    over = int(np.searchsorted(ends, num_rows))
    if over >= len(ends) or (over > 0 and num_rows - ends[over - 1] <= ends[over] - num_rows):
        over -= 1
    return min(max(over + 1, 1), most)


def _folds(rank: Indices, sizes: Indices, split: Split) -> tuple[tuple[Indices, Indices], ...]:
    """Pairs of row positions; `rank` (n,) and `sizes` (u,) of what is left after the test part."""
    assert split.folds is not None
    if split.by == "time":  # rank 0 is the latest moment
        age = len(sizes) - 1 - rank
        ends, block_of_unit = np.cumsum(sizes[::-1]), np.empty(len(sizes), dtype=np.int64)
        num_blocks = split.folds + 1
        start = 0
        for block in range(num_blocks):
            left = num_blocks - block - 1
            done = int(ends[start - 1]) if start else 0
            share = round((int(ends[-1]) - done) / (left + 1))
            taken = _leading(sizes[::-1][start:], share, len(sizes) - start - left) if left else len(sizes) - start
            block_of_unit[start : start + taken] = block
            start += taken
        blocks = block_of_unit[age]
        return tuple((np.flatnonzero(blocks <= fold), np.flatnonzero(blocks == fold + 1)) for fold in range(split.folds))
    # The largest units first, each to the lightest fold: even folds also where groups are not. Stable, so that equal sizes stay shuffled.
    fold_of_unit = np.empty(len(sizes), dtype=np.int64)
    lightest = [(0, fold) for fold in range(split.folds)]
    for unit in np.argsort(-sizes, kind="stable"):
        num_rows, fold = lightest[0]
        fold_of_unit[unit] = fold
        heapq.heapreplace(lightest, (num_rows + int(sizes[unit]), fold))
    folds = fold_of_unit[rank]
    return tuple((np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(split.folds))


def _whole(data: LoadedData) -> Part:
    return Part(data.features, data.label, data.weight, data.group)


def _sorted_whole(data: LoadedData) -> Part:
    return take(_whole(data), _arranged(data, np.arange(len(data.label)))) if data.task == "ranking" else _whole(data)


def _arranged(data: LoadedData, rows: Indices) -> Indices:
    """A ranking's rows by group, for XGBoost takes queries in no other way; other rows as they come."""
    if data.task != "ranking" or data.group is None:
        return rows
    return rows[np.argsort(data.group[rows], kind="stable")]


def _checked(
    data: LoadedData,
    part: Part,
    folds: tuple[tuple[slice | Indices, slice | Indices], ...],
    test: Part,
    how: str,
    num_folds: int,
    fitted_rows: Indices,
    test_rows: Indices | None,
) -> SplitData:
    classes = data.classes or ()
    trial = TrialData(part, folds, data.feature_names, len(classes), data.task, data.source.sha256, data.categories)
    for number, (train, validation) in enumerate(folds):
        fold = f" of fold {number}" if num_folds else ""
        for name, which in ((f"train part{fold}", train), (f"validation part{fold}", validation)):
            _check_part(name, part.label[which], None if part.weight is None else part.weight[which], classes)
    _check_part("test part", test.label, test.weight, classes)
    train_rows, validation_rows = (len(part.label[which]) for which in folds[-1])
    counts = f"{num_folds} folds of {part.num_rows:,} rows" if num_folds else f"{train_rows:,} train, {validation_rows:,} validation"
    description = f"{how}; {counts}, {test.num_rows:,} test"
    return SplitData(trial, test, train_rows, validation_rows, description, fitted_rows, test_rows)


def _check_part(name: str, label: Array, weight: Array | None, classes: Sequence[Any]) -> None:
    if not len(label):
        raise DataError(f"split: the {name} must have rows", got="none", next_step="change split.test or split.validation")
    if weight is not None and not weight.sum() > 0:
        raise DataError(f"split: the {name} must have a row with weight", got=f"{len(label):,} of weight 0", next_step="change split.seed")
    if classes and (label == label[0]).all():
        raise DataError(
            f"split: the {name} must have two classes",
            got=f"{len(label):,} rows of {classes[int(label[0])]!r}",
            next_step="change split.seed or the part's share, or add rows",
        )
