"""What predicts in a worker's process: a portable model that is loaded once a process, given one batch of columns after another.

Runs on executors, where neither mlflow, ray nor pyspark is imported by it. Columns come as Arrow or pandas has them, in the order of the
model's features: numbers of any type, categories as their values.
Shapes: n rows of a batch, d features, k classes.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toolkit.core.errors import ScoringError, nearest
from toolkit.engines import portable_model
from toolkit.engines.lean_imports import forget_archives, own_xgboost
from toolkit.engines.portable_model import PortableModel, PortableModelError

Floats = npt.NDArray[np.float32]
Column = Any  # pa.Array, pa.ChunkedArray, pd.Series or a NumPy array

MAX_LOADED = 3
MAX_CRASHED_ROWS = 50
"""More than these in one batch, and it is the model that crashes, not a row."""
GUARD_TIMEOUT_S = 600

EXPLANATION_TYPE = pa.list_(pa.struct([("feature", pa.string()), ("contribution", pa.float64())]))

_loaded: dict[str, Scorer] = {}


def scorer_of(sha256: str, payload_of: Callable[[], bytes], spec: Mapping[str, Any]) -> Scorer:
    """The scorer of a model: one that this process has loaded before, else a new one. The three used last are kept.

    Args:
        sha256: of the payload.
        payload_of: called only where it must be loaded.
        spec: `scorer_spec` of the model's.
    """
    found = _loaded.pop(sha256, None)
    if found is None or found.spec != spec:  # one payload, calibrated otherwise
        found = Scorer(payload_of(), spec)
    forget_archives()
    _loaded[sha256] = found
    while len(_loaded) > MAX_LOADED:
        del _loaded[next(iter(_loaded))]
    return found


def scorer_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a scorer needs of a model's spec, which travels to every task."""
    features = [{"name": feature["name"], "categories": feature.get("categories")} for feature in spec["features"]]
    return {"features": features, **{key: spec[key] for key in ("model_kind", "task", "classes", "calibration")}}


@dataclass(frozen=True)
class Scores:
    """Of one batch.

    Attributes:
        prediction: (n,) or (n, k); NaN where the row crashed.
        top_features, contributions: (n, t) of the t features that contribute most, the largest first: their places, and what they add to
            the margin; None where they were not asked for.
        crashed: (n,) rows that kill the process that predicts them; None where nobody looked.
    """

    prediction: Floats
    top_features: npt.NDArray[np.int64] | None = None
    contributions: Floats | None = None
    crashed: npt.NDArray[np.bool_] | None = None


class Scorer:
    """One model, on one thread."""

    def __init__(self, payload: bytes, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        try:
            with self._library():
                self._model: PortableModel = portable_model.from_payload(payload, spec)
        except PortableModelError as error:
            raise ScoringError("a worker must be able to load the model", got=error) from error
        _use_one_thread(self._model.native)
        self.feature_names: tuple[str, ...] = tuple(self._model.feature_names)
        self._codes = [_codes_by_value(feature["categories"]) for feature in spec["features"]]

    def predict(self, columns: Sequence[Column]) -> Floats:
        """(n,) probability of the second class or value, (n, k) probabilities; calibrated where the model is."""
        return self._predict(self.encode(columns))

    def score(self, columns: Sequence[Column], *, explain: int = 0, guarded: bool = False) -> Scores:
        """Predict, and more. `explain`: how many features' contributions; `guarded`: as `predict_guarded`."""
        features = self.encode(columns)
        prediction, crashed = self._predict_guarded(features) if guarded else (self._predict(features), None)
        if not explain:
            return Scores(prediction, crashed=crashed)
        top, values = self._explain(features, prediction, explain, crashed)
        return Scores(prediction, top, values, crashed)

    def predict_guarded(self, columns: Sequence[Column]) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """As `predict`, in a child process; where that dies, rows are halved until those that kill it are found.

        Returns:
            predictions, NaN for rows that crash; (n,) which these are.

        Raises:
            ScoringError: more than 50 rows crash, or a child does not end.
        """
        return self._predict_guarded(self.encode(columns))

    def explain(self, columns: Sequence[Column], top_k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """(n, t) places of the features that contribute most, the largest first, and their contributions (SHAP) to the margin; with
        classes, to that of the likeliest one. t: `top_k`, or d where it is less."""
        features = self.encode(columns)
        return self._explain(features, self._predict(features), top_k, None)

    def encode(self, columns: Sequence[Column]) -> Floats:
        """(n, d) as the model sees them; unknown categories count as missing.

        Raises:
            ScoringError: not d columns, or one that is not numeric.
        """
        if len(columns) != len(self.feature_names):
            raise ScoringError(
                f"the model: {len(self.feature_names)} columns, in the order {', '.join(self.feature_names)}", got=len(columns)
            )
        features = np.empty((len(columns[0]), len(columns)), dtype=np.float32)
        with np.errstate(over="ignore"):  # infinite: such rows are quarantined before
            for place, (name, column, codes) in enumerate(zip(self.feature_names, columns, self._codes, strict=True)):
                features[:, place] = _numbers(name, column) if codes is None else _codes(column, codes)
        return features

    def unseen(self, columns: Sequence[Column]) -> dict[str, int]:
        """Values of categorical features that training did not see, by feature; features without any are left out."""
        found: dict[str, int] = {}
        for name, column, codes in zip(self.feature_names, columns, self._codes, strict=True):
            if codes is not None:
                array = _arrow(column)
                count = int(np.isnan(_codes(array, codes)).sum()) - (pc.sum(pc.is_null(array, nan_is_null=True)).as_py() or 0)
                found |= {name: count} if count else {}
        return found

    def _library(self) -> AbstractContextManager[None]:
        return own_xgboost() if self.spec["model_kind"] == "xgboost" else nullcontext()

    def _predict(self, features: Floats) -> Floats:
        if not len(features):
            return np.empty(self._shape(0), dtype=np.float32)
        with self._library():
            return self._model.predict_encoded(features)

    def _shape(self, num_rows: int) -> tuple[int, ...]:
        return (num_rows, len(self.spec["classes"])) if self.spec["task"] == "multiclass" else (num_rows,)

    def _explain(
        self, features: Floats, prediction: Floats, top_k: int, crashed: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        num_top = min(top_k, features.shape[1])
        top, values = np.zeros((len(features), num_top), dtype=np.int64), np.full((len(features), num_top), np.nan, dtype=np.float32)
        rows = np.arange(len(features)) if crashed is None else np.flatnonzero(~crashed)
        if len(rows):
            with self._library():
                found = self._model.contributions(features[rows], num_threads=1)
            if found.ndim == 3:
                found = found[np.arange(len(rows)), prediction[rows].argmax(axis=1)]
            found = found[:, :-1]  # the last is the bias
            order = np.argsort(-np.abs(found), axis=1, kind="stable")[:, :num_top]
            top[rows], values[rows] = order, np.take_along_axis(found, order, axis=1)
        return top, values

    def _predict_guarded(self, features: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        crashed = np.zeros(len(features), dtype=bool)
        shape = self._shape(len(features))
        if not len(features):
            return np.empty(shape, dtype=np.float32), crashed
        # Memory that a child shares; gone with the array.
        results: Floats = np.frombuffer(mmap.mmap(-1, 4 * int(np.prod(shape))), dtype=np.float32).reshape(shape)
        results[:] = np.nan
        pending = [slice(0, len(features))]
        while pending:
            rows = pending.pop()
            if self._survives(features[rows], results[rows]):
                continue
            middle = (rows.start + rows.stop) // 2
            if middle > rows.start:
                pending += [slice(middle, rows.stop), slice(rows.start, middle)]
                continue
            results[rows], crashed[rows] = np.nan, True
            if crashed.sum() > MAX_CRASHED_ROWS:
                raise ScoringError(
                    "the model's library: one that predicts without crashing",
                    got=f"more than {MAX_CRASHED_ROWS} rows of a batch that crash it",
                    next_step="install the versions that the model was trained with",
                )
        return results.copy(), crashed

    def _survives(self, features: Floats, results: Floats) -> bool:
        """Predict in a child, into memory that is shared with it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child does nothing but predict, on one
            child = os.fork()
        if child == 0:
            status = 1
            try:
                faulthandler.disable()  # a crash is expected here
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(GUARD_TIMEOUT_S)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                results[:] = self._predict(features)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGALRM:
            raise ScoringError("prediction of a batch: done in time", got=f"none after {GUARD_TIMEOUT_S} s")
        if status > 0:  # an exception, which is the same here
            results[:] = self._predict(features)
        return status >= 0


def score_batches(
    batches: Iterable[Any], scorer: Callable[[], Scorer], explain: int, guarded: bool, type_: pa.DataType
) -> Iterator[pa.Array]:
    """What Spark calls in a task, with batches of Arrow arrays.

    Args:
        batches: tuples of columns; a single array where there is one column, or a struct which has the features by name.
        type_: of the result: of predictions alone, or a struct which also has `explanation` and `crashed`.
    """
    loaded = scorer()
    for batch in batches:
        columns = list(batch) if isinstance(batch, tuple) else [batch]
        if len(columns) == 1 and isinstance(columns[0], pa.StructArray):
            columns = fields_of(columns[0], loaded.feature_names)
        scores = loaded.score(columns, explain=explain, guarded=guarded)
        if not pa.types.is_struct(type_):
            yield prediction_array(scores).cast(type_)
            continue
        parts = {"prediction": prediction_array(scores)}
        if explain:
            parts["explanation"] = explanation_array(scores, loaded.feature_names)
        if guarded:
            parts["crashed"] = pa.array(scores.crashed)
        yield pa.StructArray.from_arrays([parts[field.name].cast(field.type) for field in type_], fields=list(type_))


def fields_of(struct: pa.StructArray, names: Sequence[str]) -> list[pa.Array]:
    """Raises ScoringError: a field is missing. Upper and lower case are the same where that leaves no doubt."""
    there = [field.name for field in struct.type]
    places = []
    for name in names:
        same = [each for each in there if each == name] or [each for each in there if each.lower() == name.lower()]
        if len(same) != 1:
            got = f"no {name!r}" if not same else f"several {name!r}"
            raise ScoringError("the struct: a field for each feature of the model", got=got, next_step=nearest(name, there))
        places.append(there.index(same[0]))
    fields = struct.flatten()  # missing where the struct is
    return [fields[place] for place in places]


def prediction_array(scores: Scores) -> pa.Array:
    """(n,) of float, or of lists of k floats; null where the row crashed."""
    mask = None if scores.crashed is None or not scores.crashed.any() else scores.crashed
    if scores.prediction.ndim == 1:
        return pa.array(scores.prediction, mask=mask)
    num_rows, num_classes = scores.prediction.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * num_classes)
    return pa.ListArray.from_arrays(offsets, pa.array(scores.prediction.ravel()), mask=None if mask is None else pa.array(mask))


def explanation_array(scores: Scores, feature_names: Sequence[str]) -> pa.Array:
    """(n,) of EXPLANATION_TYPE; null where the row crashed."""
    assert scores.top_features is not None and scores.contributions is not None
    num_rows, num_top = scores.top_features.shape
    names = pa.array(feature_names, pa.string()).take(pa.array(scores.top_features.ravel()))
    values = pa.array(scores.contributions.ravel().astype(np.float64))
    pairs = pa.StructArray.from_arrays([names, values], fields=list(EXPLANATION_TYPE.value_type))
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * num_top)
    mask = None if scores.crashed is None or not scores.crashed.any() else pa.array(scores.crashed)
    return pa.ListArray.from_arrays(offsets, pairs, mask=mask)


def _use_one_thread(native: Any) -> None:
    """A task has one core. Of scikit-learn's estimators all that are inside, the fitted ones too."""
    if hasattr(native, "set_param"):
        native.set_param({"nthread": 1})
        return
    pending, seen = [native], set[int]()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, list | tuple):
            pending += each
        elif isinstance(each, dict):
            pending += each.values()
        elif hasattr(each, "get_params") and not isinstance(each, type):
            if hasattr(each, "n_jobs"):
                each.n_jobs = 1
            pending += vars(each).values()


def _codes_by_value(categories: Sequence[Any] | None) -> dict[Any, float] | None:
    return None if categories is None else {value: float(code) for code, value in enumerate(categories)}


def _arrow(column: Column) -> pa.Array:
    array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _numbers(name: str, column: Column) -> npt.NDArray[Any]:
    """(n,) numbers, what is missing NaN; the column's own memory where it can be."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
        return column
    try:
        array = _arrow(column)
        if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
            array = array.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ScoringError(f"feature {name!r}: numeric", got=str(error)) from error
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers


def _codes(column: Column, codes: Mapping[Any, float]) -> Floats:
    """(n,) places among the known categories, NaN where missing or unknown."""
    array = _arrow(column)
    array = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    distinct = array.dictionary.to_pylist()
    by_value = np.array([*(codes.get(portable_model.plain(value), np.nan) for value in distinct), np.nan], dtype=np.float32)
    places: npt.NDArray[np.int32] = array.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    return by_value[places]
