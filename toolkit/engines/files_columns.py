"""The columns of a scoring by files: what is read, what is written, and whether it fits what is there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from toolkit.core.errors import ScoringError, nearest
from toolkit.core.scoring import (
    BATCH_ID,
    EXPLANATION,
    LABEL,
    MODEL_NAME,
    MODEL_SHA256,
    MODEL_VERSION,
    PREDICTION,
    QUARANTINED_AT,
    RAW_ROW,
    REASON,
    SCORED_AT,
    SCORING_RUN_ID,
    RowRules,
    ScoringModel,
    check_delta_names,
)
from toolkit.engines.scorer import EXPLANATION_TYPE

UTC_MICROSECONDS = pa.timestamp("us", "UTC")
STAMP_FIELDS = (
    pa.field(MODEL_NAME, pa.string()),
    pa.field(MODEL_VERSION, pa.int64()),
    pa.field(MODEL_SHA256, pa.string()),
    pa.field(SCORING_RUN_ID, pa.string()),
    pa.field(BATCH_ID, pa.int64()),
    pa.field(SCORED_AT, UTC_MICROSECONDS),
)


_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class Schemas:
    """`columns`: the input's, of the types that the output has."""

    columns: pa.Schema
    scores: pa.Schema
    quarantine: pa.Schema

    @classmethod
    def of(
        cls,
        columns: pa.Schema,
        model: ScoringModel,
        rules: RowRules,
        *,
        location: str,
        there: pa.Schema | None,
        there_quarantined: pa.Schema | None,
        with_batch_id: bool,
    ) -> Schemas:
        """What a batch reads and writes.

        Args:
            columns: of the input, all of them; `location` is its name.
            there, there_quarantined: of the output and the quarantine; None where nothing is there that must fit.
            with_batch_id: no folder says it.

        Raises:
            ScoringError: a column is missing or of a wrong type, or a table has others.
        """
        check_columns(columns, model, rules, location)
        if with_batch_id and there is None:
            check_delta_names(names_of(columns, rules), location)
        scores = scores_schema(columns, model, rules, with_batch_id=with_batch_id)
        if there is not None:
            columns, scores = _fitted(columns, scores, there, "output")
        quarantine = quarantine_schema(columns, rules, with_batch_id=with_batch_id)
        if there_quarantined is not None:
            _, quarantine = _fitted(pa.schema([]), quarantine, there_quarantined, "quarantine")
        return cls(columns, scores, quarantine)


def check_columns(columns: pa.Schema, model: ScoringModel, rules: RowRules, location: str) -> None:
    """Raises ScoringError: a column that is needed is missing, or can never hold what the model takes."""
    wanted = {feature.name: "the feature" for feature in model.features}
    wanted |= dict.fromkeys(rules.keep or (), "--keep") | ({rules.key: "the key"} if rules.key else {})
    for name, what in wanted.items():
        if columns.names.count(name) != 1:
            raise ScoringError(f"input: {what} {name!r} must be a column of {location}", got="none", next_step=nearest(name, columns.names))
    for feature in model.features:
        found = columns.field(feature.name).type
        is_number = any(fits(found) for fits in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean))
        if feature.categories is None:
            fits = is_number or pa.types.is_string(found) or pa.types.is_null(found)
        else:
            fits = pa.types.is_string(found) if any(isinstance(value, str) for value in feature.categories) else is_number
        if not fits:
            shown = "numbers" if feature.categories is None else f"values such as {feature.categories[0]!r}"
            raise ScoringError(
                f"input: feature {feature.name!r} must hold {shown} ({location})", got=found,
                next_step="correct the table, or score with a model that was trained on it as it is",
            )  # fmt: skip


def _fitted(columns: pa.Schema, written: pa.Schema, there: pa.Schema, shown: str) -> tuple[pa.Schema, pa.Schema]:
    """Both in the types of the table that is there, and `written` in its order; what it lacks is left out, with a notice."""
    new = [name for name in written.names if name not in there.names]
    ignored = [name for name in new if name in columns.names]
    differences = [f"no {name}" for name in new if name not in ignored]
    differences += [f"{name} beside what is scored now" for name in there.names if name not in written.names]
    for name in written.names:
        if name in there.names and not _widens(written.field(name).type, there.field(name).type):
            differences.append(f"{name} as {there.field(name).type} instead of {written.field(name).type}")
    if differences:
        raise ScoringError(
            f"{shown}: its table must have the columns that are written", got=", ".join(differences[:5]),
            next_step="score to another output, or replace it by --mode full --engine spark",
        )  # fmt: skip
    if ignored:
        _logger.warning("columns that the %s has not are left out: %s", shown, ", ".join(ignored))
    fitted = [
        pa.field(each.name, there.field(each.name).type) if each.name in there.names and each.name in written.names else each
        for each in columns
    ]
    return pa.schema(fitted), pa.schema([pa.field(name, there.field(name).type) for name in there.names])


def _widens(narrow: pa.DataType, wide: pa.DataType) -> bool:
    """Whether values of one type are values of the other."""
    if pa.types.is_nested(narrow):
        return str(narrow).replace("element", "item") == str(wide).replace("element", "item")
    both = (narrow, wide)
    if all(pa.types.is_signed_integer(each) for each in both) or all(pa.types.is_floating(each) for each in both):
        return bool(narrow.bit_width <= wide.bit_width)
    return bool(narrow == wide) or pa.types.is_null(narrow)


def scores_schema(columns: pa.Schema, model: ScoringModel, rules: RowRules, *, with_batch_id: bool) -> pa.Schema:
    """Of the output: the input's columns, or those that are kept and the key, and what scoring adds; all nullable.

    Raises:
        ScoringError: a column of the input has a name that is to be added.
    """
    names = names_of(columns, rules)
    prediction = pa.list_(pa.float64()) if model.task == "multiclass" and rules.multiclass == "array" else pa.float64()
    added = [pa.field(PREDICTION, prediction)]
    if model.classes is not None:
        added.append(pa.field(LABEL, _type_of_classes(model.classes)))
    if rules.explain:
        added.append(pa.field(EXPLANATION, EXPLANATION_TYPE))
    added += _stamp_fields(with_batch_id)
    taken = {each.name.lower() for each in added} & {name.lower() for name in names}
    if taken:
        raise ScoringError(
            "input: no column may have a name that scoring adds", got=", ".join(sorted(map(repr, taken))),
            next_step="rename it, or leave it out by --keep",
        )  # fmt: skip
    return pa.schema([pa.field(name, columns.field(name).type) for name in names] + added)


def names_of(columns: pa.Schema, rules: RowRules) -> list[str]:
    """Of the input's columns, those that the output has."""
    return [name for name in columns.names if rules.keep is None or name in rules.keep or name == rules.key]


def quarantine_schema(columns: pa.Schema, rules: RowRules, *, with_batch_id: bool) -> pa.Schema:
    key = [] if rules.key is None else [pa.field(rules.key, columns.field(rules.key).type)]
    stamp = [each.with_name(QUARANTINED_AT) if each.name == SCORED_AT else each for each in _stamp_fields(with_batch_id)]
    return pa.schema([pa.field(REASON, pa.string()), *key, pa.field(RAW_ROW, pa.string()), *stamp])


def _stamp_fields(with_batch_id: bool) -> list[pa.Field]:
    return [each for each in STAMP_FIELDS if with_batch_id or each.name != BATCH_ID]


def _type_of_classes(classes: Sequence[Any]) -> pa.DataType:
    kinds = {type(each) for each in classes}
    for type_, known in ((pa.bool_(), {bool}), (pa.int64(), {int}), (pa.float64(), {int, float})):
        if kinds <= known:
            return type_
    return pa.string()
