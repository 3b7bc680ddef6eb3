"""What an exploration runs in the executors of Spark: a partition's batches become one partial result a column, and those of all partitions
one. It travels by value, as `core.exploration_batches` does, and needs numpy, pandas and pyarrow there.

A partial result is a row `(slot, data)`: the slot is the place of a column, or `rows`, `key`, `label`, `products`; data are arrays as
numpy writes them. Columns come as numbers or booleans, as text, or, where their values are not looked at, as whether one is missing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from toolkit.core.exploration_batches import (
    Codes,
    Doubles,
    Hashes,
    Partial,
    added,
    merge_counts,
    merge_surveys,
    places,
    products,
    smallest,
    survey_numbers,
    tally,
)
from toolkit.core.row_hashes import row_hashes

Form = Literal["number", "text", "nested"]

SCHEMA = "slot string, data binary"
# Values of a text column that a partition counts: the rarest are dropped when there are more than the first.
_MAX_TEXTS, _KEPT_TEXTS = 50_000, 5_000


@dataclass(frozen=True)
class SurveyPlan:
    """Attributes:
    forms: of the columns, by their places. features: their places. key, classes: the key's place, and that of a label of classes.
    sampled_share: of rows, whose numbers are kept. modulus: of row and key hashes those are kept that it divides.
    """

    forms: tuple[Form, ...]
    features: tuple[int, ...]
    key: int | None
    classes: int | None
    sampled_share: float
    modulus: int


@dataclass(frozen=True)
class TallyPlan:
    """Attributes:
    forms, classes: as in SurveyPlan. numbers: the place of a label of numbers.
    edges: by place, of numbers. categories: by place, of texts; those that are not named share the last level.
    means: by place, of numbers. correlated: places. num_groups: k.
    places_of_classes: group by a class as JSON. label_edges, rank_values, ranks: of a label of numbers.
    """

    forms: tuple[Form, ...]
    classes: int | None
    numbers: int | None
    edges: Mapping[int, Doubles]
    categories: Mapping[int, Sequence[str]]
    means: Mapping[int, float]
    correlated: tuple[int, ...]
    num_groups: int
    places_of_classes: Mapping[str, int] = field(default_factory=dict)
    label_edges: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    rank_values: Doubles = field(default_factory=lambda: np.empty(0))
    ranks: Doubles = field(default_factory=lambda: np.empty(0))


# ---- first pass


def survey(plan: SurveyPlan, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Of one partition."""
    random = _random()
    slots: dict[str, Partial] = {}
    texts: dict[str, dict[str, int]] = {}
    for batch in batches:
        is_sampled = random.random(batch.num_rows) < plan.sampled_share
        block = np.zeros((batch.num_rows, len(plan.features)), dtype=np.float32)
        for place, form in enumerate(plan.forms):
            slot, column = str(place), batch.column(place)
            kept = slots[slot]["smallest"] if slot in slots else np.empty(0, dtype=np.uint64)
            if form == "number":
                values = _doubles(column)
                hashes = _number_hashes(column, values)
                found = survey_numbers(values, hashes, is_sampled, kept)
                bits = values.astype(np.float32) + np.float32(0.0)
                bits[np.isnan(bits)] = np.nan
            elif form == "text":
                codes, names = _texts(column)
                hashes = np.append(pd.util.hash_array(np.array(names, dtype=object), categorize=False), np.uint64(0))[codes]
                counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
                texts[slot] = _counted(texts.get(slot, {}), dict(zip(names, counts, strict=True)))
                found = {"num": np.array([len(codes), int((codes < 0).sum()), 0]), "smallest": smallest(hashes[codes >= 0], kept)}
                bits = (hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
            else:
                is_missing = column.to_numpy(zero_copy_only=False)
                found = {"num": np.array([len(is_missing), int(is_missing.sum()), 0])}
                hashes, bits = np.zeros(batch.num_rows, dtype=np.uint64), np.zeros(batch.num_rows, dtype=np.float32)
            slots[slot] = _with_batch(slots[slot], found) if slot in slots else found
            if place in plan.features:
                block[:, plan.features.index(place)] = bits
            if place == plan.key:
                _keep_hashes(slots, "key", hashes[column.is_valid().to_numpy(zero_copy_only=False)], plan.modulus)
            if place == plan.classes:
                codes, classes = _classes(column)
                counts = np.bincount(codes[codes >= 0], minlength=len(classes)).tolist()
                texts["label"] = merge_counts([texts.get("label", {}), dict(zip(classes, counts, strict=True))])
        _keep_hashes(slots, "rows", row_hashes(block), plan.modulus)
        slots["rows"]["bytes"] = slots["rows"].get("bytes", 0) + np.array([batch.nbytes])
    for slot, counted in texts.items():
        slots.setdefault(slot, {})["texts"] = _packed_texts(merge_counts([counted], _KEPT_TEXTS if slot != "label" else None))
    yield from _rows_of(slots)


def _with_batch(before: Partial, batch: Partial) -> Partial:
    """The smallest hashes of the batch are those of all batches already."""
    merged = merge_surveys([{name: array for name, array in part.items() if name != "smallest"} for part in (before, batch)])
    return {**merged, **{name: array for name, array in batch.items() if name == "smallest"}}


def _keep_hashes(slots: dict[str, Partial], slot: str, hashes: Hashes, modulus: int) -> None:
    kept = hashes[hashes % np.uint64(modulus) == 0]
    before = slots.setdefault(slot, {"hashes": np.empty(0, dtype=np.uint64)})
    before["hashes"] = np.concatenate([before["hashes"], kept])


def _counted(before: dict[str, int], batch: dict[str, int]) -> dict[str, int]:
    found = merge_counts([before, batch])
    return merge_counts([found], _KEPT_TEXTS) if len(found) > _MAX_TEXTS else found


def merge_survey(parts: Sequence[Partial]) -> Partial:
    """Of several partitions."""
    texts = [unpacked_texts(part["texts"]) for part in parts if "texts" in part]
    found = merge_surveys([{name: array for name, array in part.items() if name != "texts"} for part in parts])
    if texts:
        found["texts"] = _packed_texts(merge_counts(texts))
    return found


# ---- second pass


def tallies(plan: TallyPlan, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Of one partition."""
    random = _random()
    codes_of = {place: {name: code for code, name in enumerate(names)} for place, names in plan.categories.items()}
    slots: dict[str, Partial] = {}
    for batch in batches:
        groups, ranks, numbers = _label(plan, batch)
        halves = random.integers(0, 2, batch.num_rows)
        _add(slots, "label", {"groups": np.bincount(groups, minlength=plan.num_groups + 1)})
        correlated = {} if numbers is None else {-1: numbers}
        for place, form in enumerate(plan.forms):
            column = batch.column(place)
            if form == "number":
                values = _doubles(column)
                is_there = np.isfinite(values)
                level = places(values[is_there], plan.edges[place]) if len(plan.edges[place]) else np.zeros(0, dtype=np.int64)
                found = tally(level, 2 * len(plan.edges[place]) + 1, is_there, None, groups, plan.num_groups, ranks)
                found["square"] = np.array([((values[is_there] - plan.means[place]) ** 2).sum()])
                _add(slots, str(place), found)
                if place in plan.correlated:
                    correlated[place] = values
            elif form == "text":
                codes, names = _texts(column)
                known = codes_of[place]
                codes = np.array([*(known.get(name, len(known)) for name in names), -1], dtype=np.int64)[codes]
                found = tally(codes[codes >= 0], len(known) + 1, codes >= 0, halves, groups, plan.num_groups, ranks)
                _add(slots, str(place), found)
        if correlated:
            means = np.array([plan.means[place] if place >= 0 else 0.0 for place in correlated])
            _add(slots, "products", products(np.column_stack(list(correlated.values())), means))
    yield from _rows_of(slots)


def _label(plan: TallyPlan, batch: pa.RecordBatch) -> tuple[Codes, Doubles | None, Doubles | None]:
    """(n,) groups, k without a label; (n,) ranks of numbers; (n,) what is correlated with the features."""
    if plan.classes is not None:
        codes, names = _classes(batch.column(plan.classes))
        groups = np.array([*(plan.places_of_classes[name] for name in names), plan.num_groups], dtype=np.int64)[codes]
        return groups, None, np.where(codes >= 0, groups, np.nan) if plan.num_groups == 2 else None
    assert plan.numbers is not None
    values = _doubles(batch.column(plan.numbers))
    is_there = np.isfinite(values)
    groups = np.full(len(values), plan.num_groups, dtype=np.int64)
    groups[is_there] = np.searchsorted(plan.label_edges, values[is_there].astype(np.float32), side="left")
    ranks = np.zeros(len(values))
    ranks[is_there] = np.interp(values[is_there], plan.rank_values, plan.ranks)
    return groups, ranks, values - plan.means[plan.numbers]


def _add(slots: dict[str, Partial], slot: str, found: Partial) -> None:
    slots[slot] = added(slots.get(slot), found)


def merge_tallies(parts: Sequence[Partial]) -> Partial:
    """Of several partitions."""
    found: Partial | None = None
    for part in parts:
        found = added(found, part)
    assert found is not None
    return found


# ---- columns of a batch


def _random() -> np.random.Generator:
    """Of this partition: the same each time, as far as Spark's partitions are."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return np.random.default_rng(context.partitionId() if context else 0)


def _doubles(column: pa.Array) -> Doubles:
    column = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _number_hashes(column: pa.Array, values: Doubles) -> Hashes:
    """Of all 64 bits of a whole number: as a double, long identifiers would merge."""
    is_whole = pa.types.is_integer(column.type)
    bits = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64) if is_whole else values + 0.0  # one zero
    return row_hashes(np.ascontiguousarray(bits).view(np.float32).reshape(-1, 2))


def _texts(column: pa.Array) -> tuple[Codes, list[str]]:
    """(n,) places among the names, -1 where missing."""
    encoded = column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary.to_pylist()


def _classes(column: pa.Array) -> tuple[Codes, list[str]]:
    """Likewise of any values, named by their JSON; what is not a number counts as missing."""
    codes, values = _texts(column)
    if pa.types.is_floating(column.type):
        is_nan = [value != value for value in values]
        codes = np.where((codes >= 0) & np.array([*is_nan, False])[codes], -1, codes)
    return codes, [json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value) for value in values]


# ---- rows of partial results


def _rows_of(slots: Mapping[str, Partial]) -> Iterator[pa.RecordBatch]:
    if slots:
        yield pa.RecordBatch.from_pydict({"slot": list(slots), "data": [packed(found) for found in slots.values()]})


def merging(merge: Callable[[Sequence[Partial]], Partial]) -> Callable[[pa.Table], pa.Table]:
    """What makes one row of the rows of one slot."""

    def merged(rows: pa.Table) -> pa.Table:  # Spark reads the types
        found = merge([unpacked(data) for data in rows["data"].to_pylist()])
        return pa.table({"slot": rows["slot"][:1], "data": [packed(found)]})

    return merged


def packed(arrays: Partial) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpacked(data: bytes) -> Partial:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _packed_texts(counts: Mapping[str, int]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(counts).encode(), dtype=np.uint8)


def unpacked_texts(array: npt.NDArray[np.uint8]) -> dict[str, int]:
    found: dict[str, int] = json.loads(array.tobytes())
    return found
