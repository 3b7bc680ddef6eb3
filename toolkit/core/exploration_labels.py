"""What an exploration divides the rows by: the label's classes or, of numbers, about equal shares; and the parts of the split.

Shapes: n rows, c classes, k groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.core.data import LoadedData, Part, SplitData, take
from toolkit.core.encoding import encode_classes
from toolkit.core.errors import DataError
from toolkit.core.exploration import Overlap, PartFigures, SplitFigures
from toolkit.core.exploration_levels import number_text
from toolkit.core.model import Task
from toolkit.core.row_hashes import num_common, row_hashes

Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

MAX_GROUPS = 20
OTHER_CLASSES = "other classes"
NUM_SHARES = 5


@dataclass(frozen=True)
class LabelGroups:
    """Attributes:
    names: (k,).
    classes: (c,) values, sorted, the positive one last; None for numbers. Beyond MAX_GROUPS the rarest share the last group.
    places: (c,) group of each class. edges: (k - 1,) for numbers: a group ends with its edge.
    """

    names: tuple[str, ...]
    classes: tuple[Any, ...] | None
    places: Codes
    edges: npt.NDArray[np.float32]

    def codes(self, label: npt.NDArray[Any]) -> Codes:
        """(n,) groups of labels, which are classes as 0 … c-1 or numbers."""
        if self.classes is not None:
            return self.places[label.astype(np.int64)]
        return np.searchsorted(self.edges, label.astype(np.float32), side="left").astype(np.int64)


def class_groups(values: Sequence[Any], counts: Sequence[int], name: str, task: Task, positive: Any = None) -> LabelGroups:
    """
    Args:
        values, counts: the label's different values, and the rows of each. positive: of `Dataset`.

    Raises:
        DataError: these are no classes for the task.
    """
    column = pd.Series(list(values), name=name)
    _refuse_constant(len(values), sum(counts), name)
    codes, classes = encode_classes(column, f"label {name!r}", task, None, positive)
    rows = np.bincount(codes.astype(np.int64), weights=np.asarray(counts, dtype=np.float64), minlength=len(classes))
    if len(classes) <= MAX_GROUPS:
        return LabelGroups(tuple(map(str, classes)), classes, np.arange(len(classes)), np.empty(0, dtype=np.float32))
    kept = np.sort(np.argsort(-rows, kind="stable")[: MAX_GROUPS - 1])
    places = np.full(len(classes), MAX_GROUPS - 1)
    places[kept] = np.arange(len(kept))
    return LabelGroups((*(str(classes[code]) for code in kept), OTHER_CLASSES), classes, places, np.empty(0, dtype=np.float32))


def number_groups(label: Doubles, name: str) -> LabelGroups:
    """Value by value where there are few, else about NUM_SHARES equal shares. `label`: (n,) values, or a sample of them.

    Raises:
        DataError: the label is constant.
    """
    label = label.astype(np.float32).astype(np.float64)
    distinct = np.unique(label)
    _refuse_constant(len(distinct), len(label), name)
    if len(distinct) <= NUM_SHARES:
        names = tuple(number_text(round(float(value), 6)) for value in distinct)
        return LabelGroups(names, None, np.empty(0, dtype=np.int64), distinct[:-1].astype(np.float32))
    edges = np.unique(np.quantile(label, np.arange(1, NUM_SHARES) / NUM_SHARES, method="lower"))
    edges = edges[edges < distinct[-1]]
    texts = [f"{edge:.4g}" for edge in edges]
    between = " to " if texts[0].startswith("-") else "–"
    middle = (f"{low}{between}{high}" for low, high in itertools.pairwise(texts))
    names = (f"≤ {texts[0]}", *middle, f"> {texts[-1]}")
    return LabelGroups(names, None, np.empty(0, dtype=np.int64), edges.astype(np.float32))


def _refuse_constant(num_distinct: int, num_rows: int, name: str) -> None:
    if num_distinct < 2:
        raise DataError(
            f"label {name!r}: needs at least two values",
            got=f"{'one' if num_distinct else 'none'} in {num_rows:,} labelled rows",
            next_step="check dataset.label",
        )


def ranks_of(label: Doubles) -> Doubles:
    """(n,) shares of the labels below each, and half of those equal to it."""
    _, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    return ((np.cumsum(counts) - counts / 2) / max(len(label), 1))[inverse]


# ---- the split


@dataclass(frozen=True)
class Division:
    """The split as far as it could be drawn. `note` says why it was not, `obstacle` what training would say of such a table."""

    figures: SplitFigures | None = None
    note: str = ""
    obstacle: str = ""


def split_figures(data: LoadedData, split: SplitData, groups: LabelGroups, *, by_group: bool) -> SplitFigures:
    """Rows and labels of each part, and what one part has of another. `by_group`: whether the split keeps groups apart."""
    whole = split.trial.rows
    if len(split.trial.folds) > 1:
        parts = {"train + validation": whole, "test": split.test}
        pairs = [("test", "train + validation")]
    else:
        train, validation = split.trial.folds[0]
        parts = {"train": take(whole, train), "validation": take(whole, validation), "test": split.test}
        pairs = [("validation", "train"), ("test", "train"), ("test", "validation")]
    overlaps = []
    hashes = {name: np.sort(row_hashes(part.features)) for name, part in parts.items()}
    for name, other in pairs:
        overlaps.append(_overlap("rows", name, other, num_common(hashes[name], hashes[other]), parts[name]))
        own, others = parts[name].group, parts[other].group
        is_comparable = data.test is None or name != "test"  # a hold-out table numbers its groups itself
        if own is not None and others is not None and not by_group and is_comparable:
            overlaps.append(_overlap("groups", name, other, int(np.isin(own, others).sum()), parts[name]))
    figures = tuple(_part(name, part, groups) for name, part in parts.items())
    return SplitFigures(split.description, figures, tuple(overlaps))


def _overlap(what: Any, name: str, other: str, num_rows: int, part: Part) -> Overlap:
    return Overlap(what, name, other, num_rows, num_rows / part.num_rows)


def _part(name: str, part: Part, groups: LabelGroups) -> PartFigures:
    counts = np.bincount(groups.codes(part.label), minlength=len(groups.names))
    is_number = groups.classes is None
    return PartFigures(
        name=name,
        num_rows=part.num_rows,
        by_group=tuple(int(count) for count in counts),
        label_mean=float(part.label.mean(dtype=np.float64)) if is_number else None,
        label_std=float(part.label.std(dtype=np.float64)) if is_number else None,
    )
