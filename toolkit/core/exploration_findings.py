"""What in an exploration must be looked at: suspects of leakage, and remarks on what training would stumble over."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.core.exploration import NEAR_CONSTANT_SHARE, Column, Duplicates, Finding, Overlap, SplitFigures
from toolkit.core.model import Task

LEAK_STRENGTH = 0.99
"""Of a single feature, as an area under a curve or a correlation: real predictors are seldom so good."""
# By how much more often a value is missing in one class: 20 points make an area of 0.6.
MISSING_STRENGTH = {"binary": 0.6, "multiclass": 0.6, "regression": 0.2, "ranking": 0.2}


def suspects(columns: tuple[Column, ...], split: SplitFigures | None, task: Task) -> tuple[Finding, ...]:
    """Of leakage, those that tell the label first."""
    features = [column for column in columns if column.role == "feature"]
    found = [finding for column in features for finding in _of_feature(column, task)]
    found += [_of_overlap(overlap) for overlap in (split.overlaps if split else ()) if overlap.num_rows]
    order = ("tells_label", "missing_tells_label", "rows_in_both_parts", "groups_in_both_parts", "identifier")
    return tuple(sorted(found, key=lambda finding: (order.index(finding.kind), -(finding.figure or 0.0))))


def _of_feature(column: Column, task: Task) -> Iterator[Finding]:
    name = column.name
    if column.strength is not None and column.strength > LEAK_STRENGTH:
        yield Finding(
            "tells_label", name, column.strength,
            f"{name} alone tells the label: {column.measure} {column.strength:.4f}.",
            "Find out when its value is known. If it is made from the label, or after it, name it in dataset.exclude.",
        )  # fmt: skip
    if column.missing_strength is not None and column.missing_strength >= MISSING_STRENGTH[task]:
        yield Finding(
            "missing_tells_label", name, column.missing_strength,
            f"Whether {name} is missing tells the label: {column.measure} {column.missing_strength:.3f}.",
            "Find out who fills it in, and when: a gap that is closed only once the outcome is known will not be there in production.",
        )  # fmt: skip
    if column.is_identifier:
        share = column.num_distinct
        yield Finding(
            "identifier", name, float(share),
            f"{name} has {share:,} different values: nearly every row has its own, as an identifier would.",
            "If it names a row, make it dataset.key or name it in dataset.exclude. If it measures something, leave it.",
        )  # fmt: skip


def _of_overlap(overlap: Overlap) -> Finding:
    if overlap.what == "rows":
        return Finding(
            "rows_in_both_parts", None, float(overlap.num_rows),
            f"{overlap.num_rows:,} rows of {overlap.part} ({overlap.share:.1%}) are in {overlap.other}, too: a model knows them by heart.",
            "Set split.keep_duplicates_together, or drop the copies in dataset.load.",
        )  # fmt: skip
    return Finding(
        "groups_in_both_parts", None, float(overlap.num_rows),
        f"{overlap.num_rows:,} rows of {overlap.part} ({overlap.share:.1%}) belong to groups that are in {overlap.other}, too.",
        'Set split.by="group", unless production scores groups that training has seen.',
    )  # fmt: skip


def remarks(columns: tuple[Column, ...], duplicates: Duplicates, num_unlabelled: int, num_rows: int, obstacle: str) -> tuple[Finding, ...]:
    """`obstacle`: why the table cannot be trained on as it is, as training itself would say it; empty where it can."""
    found = list(_remarks_on_table(duplicates, num_unlabelled, num_rows, obstacle))
    for column in columns:
        if column.role == "feature":
            found += _remarks_on(column)
    return tuple(found)


def _remarks_on_table(duplicates: Duplicates, num_unlabelled: int, num_rows: int, obstacle: str) -> Iterator[Finding]:
    if obstacle:
        yield Finding("not_trainable", None, None, f"Training would refuse this table: {obstacle}.", "Mend that first.")
    if num_unlabelled:
        yield Finding(
            "label_missing", None, num_unlabelled / num_rows,
            f"{num_unlabelled:,} rows have no label; they count in the columns, and nowhere against the label.",
            "Drop or label them in dataset.load.",
        )  # fmt: skip
    if duplicates.num_repeated_keys:
        yield Finding(
            "keys_repeated", None, float(duplicates.num_repeated_keys), f"{duplicates.num_repeated_keys:,} rows repeat a key.",
            "Drop the copies in dataset.load, or name another dataset.key.",
        )  # fmt: skip
    if duplicates.num_missing_keys:
        yield Finding(
            "keys_missing", None, float(duplicates.num_missing_keys), f"{duplicates.num_missing_keys:,} rows have no key.",
            "Fill or drop them in dataset.load.",
        )  # fmt: skip


def _remarks_on(column: Column) -> Iterator[Finding]:
    name = column.name
    if column.is_constant:
        value = "no value" if column.num_distinct == 0 else f"the value {column.top_value}"
        yield Finding("constant", name, 1.0, f"{name} has {value} in all rows.", "Drop it: it tells nothing.")
    if column.is_near_constant:
        value = "no value" if column.top_value is None else f"the value {column.top_value}"
        yield Finding(
            "near_constant", name, column.top_share,
            f"{name} has {value} in {column.top_share:.2%} of the rows, more than {NEAR_CONSTANT_SHARE:.0%}.",
            "Keep it only if the rare rows matter.",
        )  # fmt: skip
    if column.num_infinite:
        yield Finding(
            "infinite", name, float(column.num_infinite), f"{name} has {column.num_infinite:,} infinite values, which training refuses.",
            "Leave them empty (missing), or clip them.",
        )  # fmt: skip
