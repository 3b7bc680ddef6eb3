"""The portable model: one folder that holds all a scorer needs, and the one reader of it.

`toolkit_model/` inside a logged MLflow model: `spec.json` (schema: `core.model_spec`), the model in its library's own format, and
`training_rows.npz`. This file imports nothing of the toolkit: MLflow copies it into models that its own flavours cannot describe
(categories, calibration, scikit-learn's probabilities), and loads it there as a module of its own. Hence its own way of encoding, which a
test holds equal to that of training (`core.encoding.encode_features`). Nothing is unpickled: XGBoost reads UBJSON, skops rebuilds
scikit-learn's objects from known types.

Shapes: n rows, d features, k classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FOLDER = "toolkit_model"
SPEC_FILE = "spec.json"
TRAINING_ROWS_FILE = "training_rows.npz"
FORMAT = 1
# What is read of a spec, here and by those who judge or use the model; null only where it says so.
_NULL, _MISSING = type(None), object()
ENTRIES: Mapping[str, type | tuple[type, ...]] = {
    "experiment": str,
    "model_kind": str,
    "task": str,
    "model_file": str,
    "model_sha256": str,
    "features": list,
    "features[].name": str,
    "features[].type": str,
    "label": str,
    "key": (str, _NULL),
    "classes": (list, _NULL),
    "threshold": (int, float, _NULL),
    "calibration": (dict, _NULL),
    "protocol": str,
    "data": dict,
    "data.kind": str,
    "data.location": str,
    "data.sha256": str,
    "split": dict,
    "split.by": str,
    "split.keep_duplicates_together": bool,
    "study": (str, _NULL),
    "training_rows": dict,
    "training_rows.num_rows": int,
    "training_rows.sha256": str,
    "git_commit": (str, _NULL),
    "trained_unix_s": (int, float),
}
# skops builds only objects of these libraries: a model file that names another type is refused.
TRUSTED_LIBRARIES = ("sklearn.", "numpy.", "scipy.")

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]


class PortableModelError(ValueError):
    """The folder is no portable model, was changed since training, or the rows do not fit it. One line."""


class PortableModel:
    """A model and what it needs to know of its rows.

    Attributes:
        spec: the content of `spec.json`.
        native: its library's own object: an XGBoost booster or a scikit-learn estimator.
        training_row_hashes, training_keys: sorted hashes (`core.row_hashes`) of the rows it was fitted on; keys None without `dataset.key`.
    """

    def __init__(self, folder: Path, spec: Mapping[str, Any], native: Any, raw_predict: Callable[[Floats], Floats]) -> None:
        self.folder = folder
        self.spec = spec
        self.native = native
        self._raw_predict = raw_predict
        self._training_rows: tuple[Hashes, Hashes | None] | None = None

    @property
    def feature_names(self) -> list[str]:
        return [feature["name"] for feature in self.spec["features"]]

    @property
    def training_row_hashes(self) -> Hashes:
        return self._read_training_rows()[0]

    @property
    def training_keys(self) -> Hashes | None:
        return self._read_training_rows()[1]

    def encode(self, frame: pd.DataFrame) -> Floats:
        """(n, d) features in the model's order, from a frame that has at least these columns; unknown categories count as missing.

        Raises:
            PortableModelError: a column is missing or not numeric.
        """
        missing = [name for name in self.feature_names if name not in frame.columns]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (" …" if len(missing) > 5 else "")
            raise PortableModelError(f"the rows must have the model's features, got none of {shown}")
        features = np.empty((len(frame), len(self.spec["features"])), dtype=np.float32)
        for number, feature in enumerate(self.spec["features"]):
            column = frame[feature["name"]]
            known = feature.get("categories")
            features[:, number] = _numbers(column) if known is None else _codes(column, known)
        # One zero and one NaN, so that equal rows are equal bytes.
        features += np.float32(0.0)
        features[np.isnan(features)] = np.nan
        return features

    def predict(self, frame: pd.DataFrame) -> Floats:
        """(n,) probability of the second class or value, (n, k) probabilities; calibrated where the model is."""
        return self.predict_encoded(self.encode(frame))

    def predict_encoded(self, features: Floats) -> Floats:
        """As `predict`, of encoded features."""
        return calibrate(self._raw_predict(features), self.spec["calibration"])

    def contributions(self, features: Floats, num_threads: int | None = None) -> Floats:
        """(n, d + 1), or (n, k, d + 1) of k classes: what each feature adds to a row's margin (SHAP), and the bias; before calibration.

        Raises:
            PortableModelError: the model is not XGBoost's.
        """
        if self.spec["model_kind"] != "xgboost":
            raise PortableModelError(f"contributions: of a model of XGBoost, got {self.spec['model_kind']!r}")
        import xgboost

        kinds = ["q" if feature.get("categories") is None else "c" for feature in self.spec["features"]]
        matrix = xgboost.DMatrix(features, feature_types=kinds, enable_categorical="c" in kinds, nthread=num_threads)
        found: Floats = self.native.predict(matrix, pred_contribs=True, validate_features=False)
        return found

    def _read_training_rows(self) -> tuple[Hashes, Hashes | None]:
        if self._training_rows is None:
            path = self.folder / TRAINING_ROWS_FILE
            _check_sha256(path, self.spec["training_rows"]["sha256"])
            with np.load(path, allow_pickle=False) as arrays:
                self._training_rows = (arrays["row_hashes"], arrays.get("keys", None))
        return self._training_rows


def load(folder: str | Path) -> PortableModel:
    """Read a model from the folder of a downloaded MLflow model, or from its `toolkit_model` itself.

    Raises:
        PortableModelError: there is none, it is of a newer format, lacks entries, does not load, or its bytes are not those that training
            wrote.
    """
    places = [Path(folder) / FOLDER, Path(folder) / "data" / FOLDER, Path(folder)]
    found = next((place for place in places if (place / SPEC_FILE).is_file()), None)
    if found is None:
        raise PortableModelError(f"the model must hold {FOLDER}/{SPEC_FILE}, which the toolkit writes, got none")
    try:
        spec = json.loads((found / SPEC_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise PortableModelError(f"{SPEC_FILE} must be JSON, got {error}") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        got = spec.get("format") if isinstance(spec, dict) else type(spec).__name__
        raise PortableModelError(f"{SPEC_FILE} must have the format {FORMAT}, got {got!r}; use a toolkit that knows it")
    _check_entries(spec)
    path = found / spec["model_file"]
    _check_sha256(path, spec["model_sha256"])
    try:
        return from_payload(path.read_bytes(), spec, found)
    except PortableModelError:
        raise
    except Exception as error:  # the library's own, of many kinds
        text = " ".join(str(error).split())[:200]
        raise PortableModelError(f"{path.name} must load with this {spec['model_kind']}, got {type(error).__name__}: {text}") from error


def from_payload(payload: bytes, spec: Mapping[str, Any], folder: Path = Path()) -> PortableModel:
    """A model from its bytes; `folder` is where its training rows lie.

    Raises:
        PortableModelError: an unknown kind, or types that are not trusted.
    """
    loaders = {"xgboost": _load_xgboost, "sklearn": _load_sklearn}
    if spec["model_kind"] not in loaders:
        raise PortableModelError(f"the model's kind must be one of {', '.join(loaders)}, got {spec['model_kind']!r}")
    return PortableModel(folder, spec, *loaders[spec["model_kind"]](payload, spec))


def calibrate(prediction: Floats, calibration: Mapping[str, Any] | None) -> Floats:
    """Apply what `sklearn_calibration.fit` found: `isotonic`, a piecewise linear map; `sigmoid`, of the log-odds (Platt, 1999)."""
    if calibration is None:
        return prediction
    if calibration["method"] == "isotonic":
        return np.asarray(np.interp(prediction, calibration["x"], calibration["y"]), dtype=np.float32)
    odds = calibration["slope"] * log_odds(prediction) + calibration["intercept"]
    return np.asarray(1.0 / (1.0 + np.exp(-odds)), dtype=np.float32)


def log_odds(probability: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Finite also at 0 and 1."""
    inside = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(inside / (1 - inside)))


def _load_xgboost(payload: bytes, spec: Mapping[str, Any]) -> tuple[Any, Callable[[Floats], Floats]]:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(payload))

    def predict(features: Floats) -> Floats:
        prediction: Floats = booster.inplace_predict(features, validate_features=False)
        return prediction

    return booster, predict


def _load_sklearn(payload: bytes, spec: Mapping[str, Any]) -> tuple[Any, Callable[[Floats], Floats]]:
    import skops.io

    unknown = skops.io.get_untrusted_types(data=payload)
    foreign = [name for name in unknown if not name.startswith(TRUSTED_LIBRARIES)]
    if foreign:
        raise PortableModelError(f"the model must be of scikit-learn's types, got {', '.join(foreign[:3])}")
    estimator: Any = skops.io.loads(payload, trusted=unknown)

    def predict(features: Floats) -> Floats:
        if spec["task"] == "regression":
            return np.asarray(estimator.predict(features), dtype=np.float32)
        probability = np.asarray(estimator.predict_proba(features), dtype=np.float32)
        return probability[:, 1] if spec["task"] == "binary" else probability

    return estimator, predict


def _check_entries(spec: Mapping[str, Any]) -> None:
    for name, kinds in ENTRIES.items():
        found: list[Any] = [spec]
        for key in name.replace("[]", ".[]").split("."):
            if key == "[]":
                found = [item for each in found for item in each]
            else:
                found = [each.get(key, _MISSING) if isinstance(each, dict) else _MISSING for each in found]
        wrong = [each for each in found if not isinstance(each, kinds)]
        if wrong:
            got = "none" if wrong[0] is _MISSING else type(wrong[0]).__name__
            wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)) if kind is not _NULL)
            raise PortableModelError(f"{SPEC_FILE} must have the entry {name} of the type {wanted}, got {got}")


def _check_sha256(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise PortableModelError(f"the model's file {path.name} must be there, got none")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted:
        raise PortableModelError(f"{path.name} must be as training wrote it (sha256 {wanted[:12]}), got {found[:12]}")


def _numbers(column: pd.Series[Any]) -> npt.NDArray[Any]:
    try:
        return np.asarray(pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise PortableModelError(f"feature {column.name!r} must be numeric, got {error}") from error


def _codes(column: pd.Series[Any], categories: Sequence[Any]) -> Floats:
    codes = {value: float(code) for code, value in enumerate(categories)}
    inverse, distinct = pd.factorize(column)
    by_value = np.array([*(codes.get(plain(value), np.nan) for value in distinct), np.nan], dtype=np.float32)
    return by_value[inverse]


def plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Scorer:
    """What `mlflow.pyfunc.load_model` returns a wrapper of."""

    def __init__(self, model: PortableModel) -> None:
        self._model = model

    def predict(self, model_input: pd.DataFrame) -> Floats:
        return self._model.predict(model_input)


def _load_pyfunc(path: str) -> _Scorer:
    return _Scorer(load(path))
