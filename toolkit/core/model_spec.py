"""What travels with a model: the content of its `toolkit_model/spec.json` (read by `engines.portable_model`), made once, at training.

Everything downstream (promotion, scorer, server, monitor) reads this and nothing else of the model's making.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.core.data import Floats, LoadedData, SplitData
from toolkit.core.evaluation import Evaluation
from toolkit.core.experiment import Experiment, Protocol
from toolkit.core.profile import reference_profile
from toolkit.core.row_hashes import Hashes, key_hashes, row_hashes
from toolkit.core.trial import FinalModel

FORMAT = 1
MODEL_FILES = {"xgboost": "model.ubj", "sklearn": "model.skops"}
NUM_EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class ModelPackage:
    """A fitted model, ready to be logged.

    Attributes:
        spec: JSON; `training_rows.sha256` is set when the file is written.
        payload: the model in its library's own format.
        row_hashes, keys: sorted hashes of the rows it was fitted on; keys None without `dataset.key`.
        example: some rows as a caller has them: numbers as float64 (a float32 signature would refuse the float64 columns that most tables
            have), categories as their values.
        is_native: MLflow's own flavour of the library predicts the same: numbers only, not calibrated.
    """

    spec: Mapping[str, Any]
    payload: bytes
    row_hashes: Hashes
    keys: Hashes | None
    example: pd.DataFrame
    is_native: bool


@dataclass(frozen=True)
class FittedRows:
    """The rows that the model for use is fitted on.

    Attributes:
        profiled: (n, d) features, all of them or a sample.
        hashes, keys: sorted, of all of them; keys None without `dataset.key`.
    """

    profiled: Floats
    hashes: Hashes
    keys: Hashes | None
    split_description: str

    @classmethod
    def of(cls, loaded: LoadedData, split: SplitData) -> FittedRows:
        fitted = loaded.features[split.fitted_rows]
        keys = None if loaded.keys is None else np.sort(key_hashes(loaded.keys[split.fitted_rows]))
        return cls(fitted, np.sort(row_hashes(fitted)), keys, split.description)


def package(
    experiment: Experiment,
    protocol: Protocol,
    loaded: LoadedData,
    rows: FittedRows,
    final: FinalModel,
    evaluation: Evaluation,
    *,
    params: Mapping[str, Any],
    study: str | None,
    versions: Mapping[str, str],
    git_commit: str,
) -> ModelPackage:
    """Put together what the model for use needs to know.

    Of `loaded` only what it says of the columns and of its source is read. `params` are those that were searched or given, `study` where
    they came from.
    """
    model = experiment.model
    assert final.payload is not None and model.kind in MODEL_FILES
    metrics = {"train": evaluation.fitted_metrics, "validation": evaluation.validation_metrics, "test": evaluation.metrics}
    spec = {
        "format": FORMAT,
        "experiment": experiment.name,
        "model_kind": model.kind,
        "task": loaded.task,
        "objective": model.objective if model.kind == "xgboost" else None,
        "estimator": model.estimator_name if model.kind == "sklearn" else None,
        "model_file": MODEL_FILES[model.kind],
        "model_sha256": hashlib.sha256(final.payload).hexdigest(),
        "features": [
            {"name": name, "type": "category", "categories": list(loaded.categories[name])}
            if name in loaded.categories
            else {"name": name, "type": "number"}
            for name in loaded.feature_names
        ],
        "label": experiment.dataset.label,
        "key": experiment.dataset.key,
        "classes": None if loaded.classes is None else list(loaded.classes),
        "num_rounds": final.num_rounds,
        "threshold": evaluation.threshold.value if evaluation.threshold else None,
        "calibration": None if evaluation.calibration is None else dict(evaluation.calibration),
        "protocol": protocol,
        "data": asdict(loaded.source),
        "split": asdict(experiment.split) | {"description": rows.split_description},
        "study": study,
        "params": {name: _json_value(value) for name, value in params.items()},
        "metrics": {part: {name: _json_value(value) for name, value in figures.items()} for part, figures in metrics.items()},
        "importances": {name: float(value) for name, value in final.importances.items()},
        "training_rows": {"num_rows": len(rows.hashes), "has_keys": rows.keys is not None},
        "reference_profile": reference_profile(rows.profiled, loaded.feature_names, loaded.categories, final.validation_prediction),
        "versions": dict(versions),
        "git_commit": git_commit,
        "trained_unix_s": time.time(),
    }
    return ModelPackage(
        spec=spec,
        payload=final.payload,
        row_hashes=rows.hashes,
        keys=rows.keys,
        example=_example(loaded, rows.profiled[:NUM_EXAMPLE_ROWS]),
        is_native=model.kind == "xgboost" and evaluation.calibration is None and not loaded.categories,
    )


def _example(loaded: LoadedData, rows: Floats) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for number, name in enumerate(loaded.feature_names):
        values = rows[:, number].astype(np.float64)
        columns[name] = values if name not in loaded.categories else _category_values(values, loaded.categories[name])
    return pd.DataFrame(columns)


def _category_values(codes: npt.NDArray[np.float64], known: Sequence[Any]) -> Any:
    """Whole numbers as float64, for a column of them that has a gap is no longer one of integers, which a signature of integers refuses."""
    values = [None if np.isnan(code) else known[int(code)] for code in codes]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return np.array([np.nan if value is None else float(value) for value in values])
    if all(isinstance(value, bool) for value in known):
        return np.array([known[0] if value is None else value for value in values], dtype=bool)
    return values


def _json_value(value: Any) -> Any:
    """JSON has no NaN: a figure that is none becomes null."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else repr(value)
