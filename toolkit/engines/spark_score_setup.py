"""Before a batch: do input, model and output fit each other? And what then executes them by the engine `spark`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from toolkit.core.errors import ScoringError, nearest
from toolkit.core.scoring import (
    CORRUPT,
    SCORE_COLUMNS,
    STAMP_COLUMNS,
    Feature,
    RowRules,
    ScoringModel,
    Stamp,
    check_delta_names,
    with_key,
)
from toolkit.core.table_names import TableName
from toolkit.engines import spark_rows, spark_scoring
from toolkit.engines.spark_score_tables import DeltaSink, ParquetSink, Reader, sink_of, window_condition

# What a value may become without losing anything.
_WIDER: Mapping[type[T.DataType], tuple[type[T.DataType], ...]] = {
    T.ByteType: (T.ShortType, T.IntegerType, T.LongType, T.FloatType, T.DoubleType),
    T.ShortType: (T.IntegerType, T.LongType, T.FloatType, T.DoubleType),
    T.IntegerType: (T.LongType, T.DoubleType),
    T.FloatType: (T.DoubleType,),
    T.DateType: (T.TimestampNTZType,),
}


@dataclass(frozen=True)
class Agreement:
    """What input, model and output have agreed on.

    Attributes:
        schema: of the whole input; `inputs`: its columns that an output may have, in their order.
        features: the model's, by the names that the input's columns have.
        rules: with the key that is checked.
        widened: columns of the output that take a wider type first, by name.
        casts: columns of the input that the output has in a wider type.
    """

    reader: Reader
    schema: T.StructType
    inputs: tuple[str, ...]
    features: tuple[Feature, ...]
    rules: RowRules
    scores: DeltaSink | ParquetSink
    quarantine: DeltaSink | ParquetSink
    widened: Mapping[str, T.DataType]
    casts: Mapping[str, T.DataType]
    has_output: bool


def agree(
    session: SparkSession,
    source: TableName,
    output: TableName,
    quarantine: TableName,
    model: ScoringModel,
    rules: RowRules,
    *,
    where: str | None,
    skip_changes: bool,
    window: tuple[str, str, str] | None,
    credentials: Mapping[str, str],
    replaces: bool,
    notices: list[str],
) -> Agreement:
    """Look at schemas, and at no row.

    Args:
        replaces: whatever is in the output goes.
        notices: gets what the user should know.

    Raises:
        ScoringError: the first thing that does not fit.
        DataError: Spark cannot read a table.
    """
    reader = Reader(session, source, where, skip_changes, credentials)
    frame = reader.all_rows()
    schema, location = frame.schema, source.shown
    names = spark_scoring.column_names(frame, model)
    features = tuple(Feature(name, feature.categories) for name, feature in zip(names, model.features, strict=True))
    spark_rows.check_types(schema, features, location)
    rules = with_key(rules, model, schema.names, location, notices)
    _check_there(schema, dict.fromkeys(rules.keep or (), "--keep names the column"), location)
    if window is not None:
        _check_there(schema, {window[0]: "--time-column"}, location)
        window_condition(window, schema)
        if rules.keep is not None and window[0] not in rules.keep:
            rules = dataclasses.replace(rules, keep=(*rules.keep, window[0]))
    taken = [name for name in schema.names if name in (*SCORE_COLUMNS, spark_rows.CRASHED)]
    if taken:
        raise ScoringError(
            "input: its columns must not have the names of those that are added",
            got=f"{', '.join(map(repr, taken))} in {location}",
            next_step="rename or drop them: is it an output of another scoring?",
        )
    if model.kind != "portable":
        notices.append(f"{model} has no portable model: it is scored by MLflow's own function, which is slower")
    inputs = tuple(name for name in schema.names if name != CORRUPT)
    agreement = Agreement(
        reader, schema, inputs, features, rules, sink_of(session, output), sink_of(session, quarantine), {}, {}, has_output=False
    )
    there = None if replaces else agreement.scores.columns()
    if there is None:
        if output.kind != "parquet":
            check_delta_names((name for name in inputs if rules.keep is None or name in rules.keep or name == rules.key), location)
        return agreement
    if window is not None:
        _check_there(there, {window[0]: "--time-column"}, output.shown)
    return _as_output_has_it(agreement, frame, model, there, output.shown, notices)


def _as_output_has_it(
    agreement: Agreement, frame: DataFrame, model: ScoringModel, there: T.StructType, shown: str, notices: list[str]
) -> Agreement:
    """New columns of the input are left out, narrower types are cast, wider ones widen the output's; else the schemas must be equal."""
    old = {field.name: field.dataType for field in there.fields}
    missing = [name for name in STAMP_COLUMNS if name not in old]
    if missing:
        raise ScoringError(
            "output: must be one of toolkit score", got=f"{shown} without {', '.join(missing)}", next_step="name another --output"
        )
    new = [name for name in agreement.inputs if name not in old]
    inputs = tuple(name for name in agreement.inputs if name in old)
    if new and agreement.rules.keep is None:
        notices.append(f"new columns of the input are left out: {', '.join(new[:10])}{' …' if len(new) > 10 else ''}")
    wanted = written_schema(dataclasses.replace(agreement, inputs=inputs), frame, model)
    gone = [name for name in old if name not in wanted.names]
    added = [name for name in wanted.names if name not in old]
    if gone or added:
        what = ", ".join([*(f"no {name!r} now" for name in gone[:3]), *(f"{name!r} is new" for name in added[:3])])
        raise ScoringError(
            f"the columns of {shown} must stay",
            got=what,
            next_step=(f"{nearest(gone[0], frame.columns)} " if gone and gone[0] not in SCORE_COLUMNS else "")
            + "keep the options of the first run, name another --output, or --mode full",
        )
    widened, casts = {}, {}
    for field in wanted.fields:
        before = old[field.name]
        if before == field.dataType or _same_but_nulls(before, field.dataType):
            continue
        if isinstance(before, _WIDER.get(type(field.dataType), ())) and field.name in inputs:
            casts[field.name] = before
        elif isinstance(field.dataType, _WIDER.get(type(before), ())) and field.name in inputs:
            widened[field.name] = field.dataType
        else:
            raise ScoringError(
                f"the types of {shown} must stay, or become wider",
                got=f"{field.name!r}: {field.dataType.simpleString()} after {before.simpleString()}",
                next_step="cast it in the input, name another --output, or --mode full",
            )
    if widened:
        notices.append(f"wider types in {shown}: " + ", ".join(f"{name} {kind.simpleString()}" for name, kind in widened.items()))
    return dataclasses.replace(agreement, inputs=inputs, widened=widened, casts=casts, has_output=True)


def written_schema(agreement: Agreement, frame: DataFrame, model: ScoringModel) -> T.StructType:
    """Of a batch of scores."""
    import datetime

    stamp = Stamp.of(model, "", 0, datetime.datetime.now(datetime.UTC))
    predicted = spark_scoring.with_prediction(frame, model, explain=agreement.rules.explain)
    return spark_rows.scored_columns(predicted, model, agreement.rules, stamp, agreement.inputs).schema


def _same_but_nulls(one: T.DataType, other: T.DataType) -> bool:
    return one.simpleString() == other.simpleString()


def _check_there(schema: T.StructType, wanted: Mapping[str, str], location: str) -> None:
    for name, purpose in wanted.items():
        if name not in schema.names:
            raise ScoringError(f"{purpose}: must be a column of {location}", got=repr(name), next_step=nearest(name, schema.names))
