"""A booster as a package that can be logged, without a table behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from toolkit.core.model_spec import FORMAT, ModelPackage


def package_of(booster: Any, rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> ModelPackage:
    """`rows`: numbers, by feature; the logged example."""
    payload = bytes(booster.save_raw("ubj"))
    spec = {
        "format": FORMAT,
        "experiment": "a-test",
        "model_kind": "xgboost",
        "task": "binary",
        "model_file": "model.ubj",
        "model_sha256": hashlib.sha256(payload).hexdigest(),
        "features": [{"name": name, "type": "number"} for name in rows.columns],
        "label": "y",
        "key": None,
        "classes": [0, 1],
        "threshold": 0.5,
        "calibration": None,
        "protocol": "honest",
        "data": {"kind": "file", "location": "a-test.csv", "sha256": "0" * 64},
        "split": {"by": "random", "keep_duplicates_together": True},
        "study": None,
        "git_commit": None,
        "trained_unix_s": 0.0,
        "params": dict(params or {}),
        "training_rows": {"num_rows": len(rows), "has_keys": False},
    }
    return ModelPackage(spec, payload, np.zeros(len(rows), dtype=np.uint64), None, rows.astype("float64"), is_native=True)
