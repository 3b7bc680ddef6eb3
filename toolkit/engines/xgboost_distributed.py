"""One worker's part of an XGBoost training over many processes: its rows as bins, and its rounds.

XGBoost's own collective adds the workers' sketches and histograms. All workers must call `agree`, `gather`, `matrix_of` and `boost` in the
same order.

Shapes: n rows, d features; a matrix of rows is (n, d + 1) float32, or (n, d + 2) with weights: features, label, weight.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xgboost
from xgboost import collective

from toolkit.core.data import Floats
from toolkit.core.errors import ExperimentError
from toolkit.engines.parquet_shards import Columns

VALIDATION = "validation"
_NEEDS_ALL_ROWS = {"tree_method": ("exact", "approx"), "booster": ("gblinear",), "device": ("cuda",), "objective": ()}
_CHECKED_ROWS = 64
_SHARES = ("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode")


def check_params(params: Mapping[str, Any], metric: str, columns: Columns) -> None:
    """By a round on made-up rows, in no time: a worker that fails is started again, several times, before anyone is told.

    Raises:
        ExperimentError: parameters that XGBoost refuses, or that need all rows in one process.
    """
    for name, unfit in _NEEDS_ALL_ROWS.items():
        if params.get(name) in unfit or str(params.get(name)).startswith("rank:"):
            raise ExperimentError(
                "distributed training: hist trees on independent rows",
                got=f"{name}={params[name]!r}",
                next_step="change it, or train without --distributed",
            )
    num_classes = len(columns.classes or ())
    label = np.arange(_CHECKED_ROWS) % num_classes if num_classes else np.linspace(0.1, 0.9, _CHECKED_ROWS)
    features = np.zeros((_CHECKED_ROWS, len(columns.features)), dtype=np.float32)
    try:
        matrix = xgboost.QuantileDMatrix(features, label=label, **_bins(params))
        booster = xgboost.Booster({**params, "nthread": 1}, [matrix])
        booster.update(matrix, iteration=0)
        told = booster.eval_set([(matrix, VALIDATION)])
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        reason = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", str(error)).splitlines()[0]  # [12:00:00] file.cc:7: …
        raise ExperimentError("model.params: XGBoost refuses them", got=reason, next_step="correct them") from error
    assert f"{VALIDATION}-{metric}:" in told, f"{metric} is among eval_metric"


class RowFile:
    """A worker's rows, on its disk: XGBoost reads them four times (sizes, quantiles, bins, bins by column), and the bins that remain take a
    quarter of the memory."""

    def __init__(self, width: int, rows_per_batch: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="toolkit-rows-")  # noqa: SIM115  # closed by `close`
        self._width = width
        self._buffer = np.empty((rows_per_batch, width), dtype=np.float32)
        self.num_rows = 0

    def append(self, matrix: Floats) -> None:
        assert matrix.shape[1] == self._width
        self._file.write(np.ascontiguousarray(matrix).data)
        self.num_rows += len(matrix)

    def rewind(self) -> None:
        self._file.flush()
        self._file.seek(0)

    def next_batch(self) -> Floats | None:
        """The next rows, in memory that the batch after them will overwrite; None after the last."""
        num_bytes = self._file.readinto(self._buffer.data.cast("B"))
        rows, rest = divmod(num_bytes, self._buffer.strides[0])
        assert rest == 0
        return self._buffer[:rows] if rows else None

    def close(self) -> None:
        self._file.close()


class _Batches(xgboost.DataIter):
    def __init__(self, rows: RowFile, columns: Columns) -> None:
        self._rows = rows
        self._num_features = len(columns.features)
        types = ["q" if known is None else "c" for known in columns.features.values()]
        self._options = {"feature_names": list(columns.features), "feature_types": types}
        # The buffer is XGBoost's until it asks for the next batch, which is when it is overwritten.
        super().__init__(release_data=False)

    def reset(self) -> None:
        self._rows.rewind()

    def next(self, input_data: Callable[..., None]) -> bool:
        batch = self._rows.next_batch()
        if batch is None:
            return False
        weight = batch[:, self._num_features + 1] if batch.shape[1] > self._num_features + 1 else None
        input_data(data=batch[:, : self._num_features], label=batch[:, self._num_features], weight=weight, **self._options)
        return True


def matrix_of(
    rows: RowFile, columns: Columns, params: Mapping[str, Any], like: xgboost.QuantileDMatrix | None = None
) -> xgboost.QuantileDMatrix:
    """The worker's rows in the bins of all workers' rows; with `like` in those of another matrix."""
    has_categories = any(known is not None for known in columns.features.values())
    return xgboost.QuantileDMatrix(
        _Batches(rows, columns), ref=like, nthread=params["nthread"], enable_categorical=has_categories, **_bins(params)
    )


def _bins(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"max_bin": params["max_bin"]} if params.get("max_bin") else {}


@dataclass(frozen=True)
class Stopping:
    """How the best round is found: by the first of `eval_metric`. `rounds`: without improvement, that end the training; None: none do."""

    metric: str
    direction: Literal["maximize", "minimize"]
    rounds: int | None


@dataclass
class Progress:
    """A training between two rounds: all that the rest of it depends on.

    `history` has a list for each metric on the validation rows, with one value a round.
    """

    model: bytes | None = None
    history: dict[str, list[float]] = field(default_factory=dict)
    num_rounds: int = 0

    def best_iteration(self, stopping: Stopping) -> int | None:
        """From 0; the first of equals; None without validation rows."""
        if not self.history:
            return None
        curve = np.asarray(self.history[stopping.metric])
        if np.isnan(curve).all():
            return len(curve) - 1
        return int(np.nanargmax(curve) if stopping.direction == "maximize" else np.nanargmin(curve))

    def is_over(self, stopping: Stopping) -> bool:
        best = self.best_iteration(stopping)
        return best is not None and stopping.rounds is not None and self.num_rounds - 1 - best >= stopping.rounds


def boost(
    params: Mapping[str, Any],
    train: xgboost.QuantileDMatrix,
    validation: xgboost.QuantileDMatrix | None,
    stopping: Stopping,
    num_boost_round: int,
    begun: Progress,
    every: int,
    report: Callable[[Progress], None],
) -> Progress:
    """Rounds until `num_boost_round`, or until none has improved the metric for long enough.

    The model is the same however often the training was broken off at a report and begun again there: a round depends on the model so far
    and on each rank's rows. Where it also depends on chance (samples of rows or columns), every report begins a new series of draws: the
    generator's state is not in the model, nor can it be had.

    Args:
        params: with `nthread`; all workers' alike.
        begun: where an earlier process got to.
        report: called every `every` rounds, and not after the last.

    Returns:
        The last round's model, cut to the best where there are validation rows.
    """
    matrices = [train] if validation is None else [train, validation]
    seed, draws = int(params.get("seed", 0)), _draws(params)

    first = {**params, "seed": seed + begun.num_rounds if draws else seed}
    booster = xgboost.Booster(first, matrices, model_file=bytearray(begun.model) if begun.model else None)
    progress = Progress(None, {name: list(curve) for name, curve in begun.history.items()}, begun.num_rounds)
    while progress.num_rounds < num_boost_round and not progress.is_over(stopping):
        if progress.num_rounds > begun.num_rounds and progress.num_rounds % every == 0:
            progress.model = bytes(booster.save_raw("ubj"))
            report(progress)
            if draws:
                booster.set_param("seed", str(seed + progress.num_rounds))
                booster.reset()
        booster.update(train, iteration=progress.num_rounds)
        if validation is not None:
            # [7]<tab>validation-auc:0.75<tab>…
            told = booster.eval_set([(validation, VALIDATION)], progress.num_rounds).split("\t")[1:]
            for name, value in (each.rsplit(":", 1) for each in told):
                progress.history.setdefault(name.removeprefix(f"{VALIDATION}-"), []).append(float(value))
        progress.num_rounds += 1
    best = progress.best_iteration(stopping)
    cut = booster if best is None else booster[: best + 1]
    return Progress(bytes(cut.save_raw("ubj")), progress.history, progress.num_rounds)


def _draws(params: Mapping[str, Any]) -> bool:
    return params.get("booster") == "dart" or any(float(params.get(name, 1)) != 1 for name in _SHARES)


def gather(value: float) -> npt.NDArray[np.float64]:
    """(workers,) the value of each, by rank."""
    values = np.zeros(collective.get_world_size(), dtype=np.float64)
    values[collective.get_rank()] = value
    return collective.allreduce(values, collective.Op.SUM)


def agree(error: str | None) -> str | None:
    """What stands in the way of any worker, the first rank's: None where nothing does. What only one of them knew would leave the others
    waiting for it."""
    is_wrong = gather(float(error is not None))
    if not is_wrong.any():
        return None
    told: str = collective.broadcast(error or "", int(is_wrong.argmax()))
    return told
