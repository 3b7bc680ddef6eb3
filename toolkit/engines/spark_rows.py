"""Rows of a batch as Spark expressions: which are bad and why, and what is written of the others. All of it stays in the JVM.

The files engine has the same rules in Arrow (`files_tasks`); one contract suite runs over both.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import (
    BATCH_ID,
    CORRUPT,
    EXPLANATION,
    INFINITE,
    KEY_DUPLICATED,
    KEY_MISSING,
    LABEL,
    MALFORMED,
    MODEL_NAME,
    MODEL_SHA256,
    MODEL_VERSION,
    NATIVE_CRASH,
    PREDICTION,
    QUARANTINED_AT,
    RAW_ROW,
    REASON,
    SCORED_AT,
    SCORING_RUN_ID,
    UNCASTABLE,
    BatchCounts,
    Feature,
    RowRules,
    ScoringModel,
    Stamp,
)
from toolkit.engines.spark_tables import one_line

CRASHED = "_crashed"
# Times are UTC, whatever the session's time zone.
_JSON = {
    "ignoreNullFields": "false",
    "timeZone": "UTC",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSxxx",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}
_NUM_COPIES = "_num_copies"
_FRACTIONS = (T.FloatType, T.DoubleType, T.DecimalType)
_NUMBERS = (*_FRACTIONS, T.ByteType, T.ShortType, T.IntegerType, T.LongType, T.BooleanType)


def column(name: str) -> Column:
    """By its exact name, which may hold dots and backticks."""
    return F.col("`" + name.replace("`", "``") + "`")


def check_types(schema: T.StructType, features: Sequence[Feature], location: str) -> None:
    """Raises ScoringError: a feature's column can never hold what the model takes."""
    types = {each.name: each.dataType for each in schema.fields}
    for feature in features:
        found = types[feature.name]
        if feature.categories is None:
            fits = isinstance(found, (*_NUMBERS, T.StringType))
        else:
            is_text = any(isinstance(value, str) for value in feature.categories)
            fits = isinstance(found, T.StringType) if is_text else isinstance(found, _NUMBERS)
        if not fits:
            wanted = "numbers" if feature.categories is None else f"values such as {feature.categories[0]!r}"
            raise ScoringError(
                f"input: feature {feature.name!r} must hold {wanted} ({location})",
                got=found.simpleString(),
                next_step="correct the table, or score with a model that was trained on it as it is",
            )


def with_duplicates(frame: DataFrame, rules: RowRules) -> DataFrame:
    """With how often each row's key occurs in the batch, where that matters."""
    if rules.duplicates == "keep" or rules.key is None:
        return frame
    return frame.withColumn(_NUM_COPIES, F.count(F.lit(1)).over(Window.partitionBy(column(rules.key))))


def reason(frame: DataFrame, features: Sequence[Feature], rules: RowRules) -> Column | None:
    """Why a row is bad, null where it is not; None where no row of such a table can be."""
    types = {each.name: each.dataType for each in frame.schema.fields}
    numbers = [feature.name for feature in features if feature.categories is None]
    found: list[Column] = []
    if CORRUPT in types:
        found.append(F.when(column(CORRUPT).isNotNull(), F.lit(MALFORMED)))
    if rules.key is not None:
        found.append(F.when(column(rules.key).isNull(), F.lit(KEY_MISSING)))
    texts = [name for name in numbers if isinstance(types[name], T.StringType)]
    found += [F.when(column(name).isNotNull() & as_float(name).isNull(), F.lit(f"{UNCASTABLE}: {name}")) for name in texts]
    infinity = F.lit(float("inf")).cast("float")
    found += [
        F.when(F.abs(as_float(name)) == infinity, F.lit(f"{INFINITE}: {name}"))
        for name in numbers
        if isinstance(types[name], (*_FRACTIONS, T.StringType))
    ]
    if _NUM_COPIES in frame.columns and rules.duplicates == "quarantine":
        found.append(F.when(column(_NUM_COPIES) > 1, F.lit(KEY_DUPLICATED)))
    if CRASHED in frame.columns:
        found.append(F.when(column(CRASHED), F.lit(NATIVE_CRASH)))
    return F.coalesce(*found, F.lit(None).cast("string")) if found else None


def as_float(name: str) -> Column:
    """Null where it is no number."""
    return column(name).try_cast("float")


def count(frame: DataFrame, why: Column | None, features: Sequence[Feature], rules: RowRules, location: str) -> BatchCounts:
    """Look at all rows once, without scoring them; a second time where there are bad ones.

    Raises:
        ScoringError: a key occurs more than once, and that was to be refused.
        DataError: Spark cannot read them.
    """
    bad = F.lit(0) if why is None else F.count_if(why.isNotNull())
    columns = [F.count(F.lit(1)).alias("rows"), bad.alias("bad")]
    categorical = [feature for feature in features if feature.categories is not None]
    good = F.lit(True) if why is None else why.isNull()
    for number, feature in enumerate(categorical):
        unseen = column(feature.name).isNotNull() & ~column(feature.name).isin(list(feature.categories or ()))
        columns.append(F.count_if(good & unseen).alias(f"unseen{number}"))
    if _NUM_COPIES in frame.columns and rules.duplicates == "refuse":
        columns.append(F.count_if((column(_NUM_COPIES) > 1) & column(rules.key or "").isNotNull()).alias("copies"))
    with one_line(location, "check the table"):
        row = frame.agg(*columns).collect()[0].asDict()
        reasons = {}
        if row["bad"]:
            assert why is not None
            reasons = {each["why"]: int(each["count"]) for each in frame.groupBy(why.alias("why")).count().collect() if each["why"]}
    if row.get("copies"):
        raise ScoringError(
            f"input: the key {rules.key!r} must be unique within a batch", got=f"{row['copies']:,} rows with a key that another row has",
            next_step="drop the copies, or choose --duplicates quarantine or keep",
        )  # fmt: skip
    return BatchCounts(
        num_input_rows=int(row["rows"]),
        num_scored_rows=int(row["rows"]) - int(row["bad"]),
        num_quarantined_rows=int(row["bad"]),
        reasons=reasons,
        unseen={feature.name: int(row[f"unseen{number}"]) for number, feature in enumerate(categorical) if row[f"unseen{number}"]},
    )


def scored_columns(frame: DataFrame, model: ScoringModel, rules: RowRules, stamp: Stamp, inputs: Sequence[str]) -> DataFrame:
    """What is written of a row that has been scored; `frame` has a prediction, `inputs` are the input's columns in their order."""
    kept = inputs if rules.keep is None else [name for name in inputs if name in rules.keep or name == rules.key]
    chosen = [column(name) for name in kept]
    prediction = column(PREDICTION)
    label = predicted_label(prediction, model)
    if model.task == "multiclass" and rules.multiclass == "argmax":
        prediction = F.array_max(prediction).alias(PREDICTION)
    chosen.append(prediction)
    if label is not None:
        chosen.append(label.alias(LABEL))
    if EXPLANATION in frame.columns:
        chosen.append(column(EXPLANATION))
    return frame.select(*chosen, *_stamp_columns(stamp, SCORED_AT))


def predicted_label(prediction: Column, model: ScoringModel) -> Column | None:
    """The class by the model's threshold, or the likeliest one; None for a model without classes."""
    if model.classes is None:
        return None
    type_ = _type_of_classes(model.classes)
    classes = [F.lit(str(each) if type_ == "string" else each).cast(type_) for each in model.classes]
    if model.task == "binary":
        no, yes = classes
        return F.when(prediction > F.lit(model.threshold), yes).otherwise(no)
    place = F.array_position(prediction, F.array_max(prediction)).cast("int")
    return F.element_at(F.array(*classes), place)


def _type_of_classes(classes: Sequence[object]) -> str:
    """As `files_tasks` has it, for an output may see both engines."""
    kinds = {type(each) for each in classes}
    known = (("boolean", {bool}), ("long", {int}), ("double", {int, float}))
    return next((name for name, all_ in known if kinds <= all_), "string")


def quarantine_columns(frame: DataFrame, why: Column, rules: RowRules, stamp: Stamp, inputs: Sequence[str]) -> DataFrame:
    """What is written of a bad row: why, its key, and the row as JSON, whatever its columns are."""
    raw = F.to_json(F.struct(*(column(name) for name in inputs)), _JSON)
    key = [] if rules.key is None else [column(rules.key)]
    return frame.where(why.isNotNull()).select(
        why.alias(REASON), *key, raw.alias(RAW_ROW), *_stamp_columns(stamp, QUARANTINED_AT)
    )  # fmt: skip


def _stamp_columns(stamp: Stamp, moment: str) -> list[Column]:
    values: dict[str, tuple[object, str]] = {
        MODEL_NAME: (stamp.model_name, "string"),
        MODEL_VERSION: (stamp.model_version, "long"),
        MODEL_SHA256: (stamp.model_sha256, "string"),
        SCORING_RUN_ID: (stamp.scoring_run_id, "string"),
        BATCH_ID: (stamp.batch_id, "long"),
        moment: (stamp.scored_at_utc, "timestamp"),
    }
    return [F.lit(value).cast(kind).alias(name) for name, (value, kind) in values.items()]
