"""The exploration of a Spark table that is too large for this process: two aggregations over its rows, of which only results come here.

The first looks at every column (what is missing, extremes, different values) and takes a sample; the second counts every row between the
sample's quantiles, by label. Works on classic and Connect frames.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pyspark.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from toolkit.core import exploration_batches, row_hashes
from toolkit.core.errors import DataError
from toolkit.core.experiment import Dataset
from toolkit.core.exploration import Column, Duplicates, Exploration, Kind
from toolkit.core.exploration_batches import Doubles, Partial, ends, num_distinct
from toolkit.core.exploration_columns import Facts, column_of
from toolkit.core.exploration_frame import assembled, check_table, levels_of, role_of
from toolkit.core.exploration_labels import Division, LabelGroups, class_groups, number_groups, ranks_of
from toolkit.core.exploration_levels import Levels
from toolkit.core.model import Task
from toolkit.engines import spark_exploration_tasks as tasks
from toolkit.engines.spark_exploration_tasks import Form, SurveyPlan, TallyPlan
from toolkit.engines.spark_tables import one_line

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_ROWS = 50_000
"""From which edges are chosen, by which all rows are counted: it decides how fine the levels are, not how they are filled."""
HASH_SAMPLE = 300_000
"""Rows of which equal ones are looked for: all copies of a row are in it, or none."""
NUM_EDGES = 512
MAX_EXACT_VALUES = 1_024
"""A number with at most so many values in the sample has an edge at each."""
NUM_CATEGORIES = 500
MAX_TEXT_CHARS = 200
MAX_CLASSES = 10_000

_NUMBERS = (T.ByteType, T.ShortType, T.IntegerType, T.LongType, T.FloatType, T.DoubleType, T.DecimalType, T.NullType)


@dataclass(frozen=True)
class _Read:
    """How a column is read: what Spark makes of it, and what that is then."""

    name: str
    type: str
    kind: Kind
    form: Form
    expression: SparkColumn


def explore_table(
    frame: DataFrame, dataset: Dataset, task: Task, *, num_rows: int, name: str, division: Division, tell: Callable[[str], None]
) -> Exploration:
    """
    Args:
        num_rows: of the frame, counted beforehand. name: for messages. tell: what happens now.

    Raises:
        DataError: as `core.exploration_frame.explore_frame`, or Spark cannot read the table.
    """
    with one_line(name, "correct the query"):
        schema = frame.schema
    check_table(schema.names, num_rows, dataset)
    reads = [_read(field, field.name in dataset.categorical, field.name == dataset.time) for field in schema.fields]
    is_classes = task in ("binary", "multiclass")
    label = schema.names.index(dataset.label)
    if reads[label].form == "nested" if is_classes else reads[label].kind not in ("number", "boolean"):
        raise DataError(
            f"label {dataset.label!r}: must be {'text, numbers or booleans' if is_classes else 'a number'}", got=reads[label].type,
            next_step="turn it into one",
        )  # fmt: skip
    selected = frame.select([read.expression.alias(f"c{place}") for place, read in enumerate(reads)])
    features = tuple(place for place, read in enumerate(reads) if role_of(read.name, dataset) == "feature")
    survey_plan = SurveyPlan(
        forms=tuple(read.form for read in reads),
        features=features,
        key=schema.names.index(dataset.key) if dataset.key else None,
        classes=label if is_classes else None,
        sampled_share=min(1.0, SAMPLE_ROWS / num_rows),
        modulus=max(1, num_rows // HASH_SAMPLE),
    )
    tell("first pass: what is in the columns")
    with _by_value(), one_line(name, "correct the query"):
        surveyed = _run(selected, functools.partial(tasks.survey, survey_plan), tasks.merge_survey)
    groups, plan = _second_plan(reads, surveyed, survey_plan, label, dataset, task)
    tell("second pass: counting against the label")
    with _by_value(), one_line(name, "correct the query"):
        tallied = _run(selected, functools.partial(tasks.tallies, plan), tasks.merge_tallies)
    duplicates, num_hashes = _duplicates(surveyed, dataset.key, reads, num_rows)
    columns = tuple(
        column_of(
            *_counted(place, read, surveyed[str(place)], tallied.get(str(place)), plan, num_rows),
            role_of(read.name, dataset), groups.names, task, num_rows, num_rows - duplicates.num_rows,
        )
        for place, read in enumerate(reads)
    )  # fmt: skip
    correlated = [dataset.label] if task != "multiclass" else []
    return assembled(
        columns,
        division,
        groups,
        tallied["label"]["groups"],
        engine="spark",
        approximate=_approximate(columns, survey_plan.modulus, num_hashes),
        task=task,
        label=dataset.label,
        memory_bytes=int(surveyed["rows"]["bytes"][0]),
        duplicates=duplicates,
        products=((*correlated, *(reads[place].name for place in plan.correlated)), tallied["products"]),
    )


def _read(field: T.StructField, is_category: bool, is_time: bool) -> _Read:
    column, kind, text = F.col("`" + field.name.replace("`", "``") + "`"), field.dataType, field.dataType.simpleString()

    def as_(kind: Kind, form: Form, expression: SparkColumn) -> _Read:
        return _Read(field.name, text, kind, form, expression)

    if is_category and isinstance(kind, T.BooleanType):
        return as_("category", "text", F.initcap(column.cast("string")))
    if is_category and isinstance(kind, _NUMBERS):
        return as_("category", "text", column.cast("bigint").cast("string"))
    is_text = isinstance(kind, T.StringType | T.CharType | T.VarcharType)
    if is_time and is_text:
        return as_("time", "number", _wall_seconds(column.try_cast("timestamp_ntz")))
    if is_text:
        return as_("category", "text", F.substring(column.cast("string"), 1, MAX_TEXT_CHARS))
    if isinstance(kind, T.BooleanType):
        return as_("boolean", "number", column)
    if isinstance(kind, _NUMBERS):
        return as_("number", "number", column.cast("double") if isinstance(kind, T.DecimalType | T.NullType) else column)
    if isinstance(kind, T.DateType):
        return as_("time", "number", F.unix_date(column) * F.lit(86400.0))
    if isinstance(kind, T.TimestampType):
        return as_("time", "number", F.unix_micros(column) / F.lit(1e6))
    if isinstance(kind, T.TimestampNTZType):  # read as if it were UTC, as pandas does
        return as_("time", "number", _wall_seconds(column))
    return as_("other", "nested", column.isNull())


def _wall_seconds(column: SparkColumn) -> SparkColumn:
    return F.timestamp_diff("MICROSECOND", F.lit("1970-01-01").cast("timestamp_ntz"), column) / F.lit(1e6)


# ---- the two passes


@contextmanager
def _by_value() -> Iterator[None]:
    """The executors get our code with the task: they need not have the toolkit."""
    modules = [tasks, exploration_batches, row_hashes]
    for module in modules:
        register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for module in modules:
            unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]


def _run(
    selected: DataFrame,
    count: Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]],
    merge: Callable[[Sequence[Partial]], Partial],
) -> dict[str, Partial]:
    """Partial results of all partitions, merged by slot in the executors, so that this process gets one of each."""
    partial = selected.mapInArrow(count, tasks.SCHEMA)
    rows = partial.groupBy("slot").applyInArrow(tasks.merging(merge), tasks.SCHEMA).collect()
    return {row["slot"]: tasks.unpacked(bytes(row["data"])) for row in rows}


def _second_plan(
    reads: Sequence[_Read], surveyed: Mapping[str, Partial], first: SurveyPlan, label: int, dataset: Dataset, task: Task
) -> tuple[LabelGroups, TallyPlan]:
    numbers = [place for place, read in enumerate(reads) if read.form == "number"]
    means = {}
    for place in numbers:
        num, missing, infinite = surveyed[str(place)]["num"]
        means[place] = float(surveyed[str(place)]["sum"][0] / max(num - missing - infinite, 1))
    plan = TallyPlan(
        forms=first.forms,
        classes=first.classes,
        numbers=None if first.classes is not None else label,
        edges={place: _edges(surveyed[str(place)]) for place in numbers},
        categories={
            place: list(tasks.unpacked_texts(surveyed[str(place)]["texts"]))[:NUM_CATEGORIES]
            for place, read in enumerate(reads)
            if read.form == "text"
        },
        means=means,
        correlated=tuple(place for place in first.features if reads[place].kind in ("number", "boolean")),
        num_groups=0,
    )
    if first.classes is None:
        sample = surveyed[str(label)]["sample"]
        groups = number_groups(sample, dataset.label)
        values, at = np.unique(sample, return_index=True)
        ranks = ranks_of(sample)[at]
        return groups, replace(plan, num_groups=len(groups.names), label_edges=groups.edges, rank_values=values, ranks=ranks)
    counts = tasks.unpacked_texts(surveyed["label"]["texts"])
    if len(counts) > MAX_CLASSES:
        raise DataError(
            f"label {dataset.label!r}: at most {MAX_CLASSES:,} classes", got=f"{len(counts):,}", next_step="use an objective for numbers"
        )
    values_of = {name: json.loads(name) for name in counts}
    groups = class_groups(list(values_of.values()), list(counts.values()), dataset.label, task, dataset.positive)
    assert groups.classes is not None
    places = {name: int(groups.places[groups.classes.index(value)]) for name, value in values_of.items()}
    return groups, replace(plan, num_groups=len(groups.names), places_of_classes=places)


def _edges(surveyed: Partial) -> Doubles:
    """Extremes, which are of all rows, and between them the sample's values or, where these are many, its quantiles."""
    sample = surveyed["sample"]
    if not np.isfinite(surveyed["low"][0]):
        return np.empty(0)
    distinct = np.unique(sample)
    if len(distinct) > MAX_EXACT_VALUES:
        distinct = np.quantile(sample, np.linspace(0, 1, NUM_EDGES), method="nearest")
    return np.unique(np.concatenate([distinct, surveyed["low"], surveyed["high"]])) + 0.0


# ---- what follows from them


def _counted(
    place: int, read: _Read, surveyed: Partial, tallied: Partial | None, plan: TallyPlan, num_rows: int
) -> tuple[Facts, Levels | None]:
    _, num_missing, num_infinite = (int(each) for each in surveyed["num"])
    different = num_distinct(surveyed["smallest"]) if "smallest" in surveyed else 0
    different = min(different, num_rows - num_missing)
    facts = Facts(read.name, read.kind, read.type, num_missing, num_infinite, different)
    levels = None
    if tallied is not None and read.form == "number":
        num = num_rows - num_missing - num_infinite
        low, high = ends(plan.edges[place]) if len(plan.edges[place]) else (np.zeros(1), np.zeros(1))
        levels = levels_of(tallied, low, high, None, False)
        facts = replace(
            facts,
            is_whole=read.kind == "number" and not surveyed["fractions"][0],
            mean=plan.means[place] if num else None,
            std=float(np.sqrt(tallied["square"][0] / num)) if num else None,
            min=float(surveyed["low"][0]) if num else None,
            max=float(surveyed["high"][0]) if num else None,
        )
    elif tallied is not None:
        names = (*plan.categories[place], "")
        at = np.arange(len(names), dtype=np.float64)
        levels = levels_of(tallied, at, at, names, True)
    return facts, levels


def _duplicates(surveyed: Mapping[str, Partial], key: str | None, reads: Sequence[_Read], num_rows: int) -> tuple[Duplicates, int]:
    """And how many rows were compared."""

    def repeated(hashes: Any, among: int) -> int:
        return round((len(hashes) - len(np.unique(hashes))) / max(len(hashes), 1) * among)

    num_repeated = repeated(surveyed["rows"]["hashes"], num_rows)
    num_missing = None
    if key is not None:
        place = next(place for place, read in enumerate(reads) if read.name == key)
        num_missing = int(surveyed[str(place)]["num"][1])
    return Duplicates(
        num_rows=num_repeated,
        share=num_repeated / num_rows,
        num_repeated_keys=None if num_missing is None else repeated(surveyed["key"]["hashes"], num_rows - num_missing),
        num_missing_keys=num_missing,
    ), len(surveyed["rows"]["hashes"])


def _approximate(columns: Sequence[Column], modulus: int, num_hashes: int) -> tuple[str, ...]:
    found = [
        f"quantiles, boxes, histograms and strengths of numbers with many values: from counts of all rows in {2 * NUM_EDGES - 1} levels",
        f"strengths of categories: values beyond the {NUM_CATEGORIES} most frequent count as one",
    ]
    if any(column.num_distinct > exploration_batches.NUM_SMALLEST for column in columns):
        found.append(f"different values above {exploration_batches.NUM_SMALLEST:,}: estimated, with a standard error of 1.6 %")
    if modulus > 1:
        found.append(f"duplicates: estimated from {num_hashes:,} rows, among which are all copies of a row or none")
    return tuple(found)
