"""The rows that a challenger and the champion are judged on, read as the challenger's spec asks for them.

Shapes: n rows of the hold-out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from toolkit.core.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.core.data import DataContext, Floats, LoadedData
    from toolkit.core.figures import Rows
    from toolkit.core.promotion_result import HoldoutSummary
    from toolkit.core.row_hashes import Hashes
    from toolkit.engines.portable_model import PortableModel


@dataclass(frozen=True)
class Encoded:
    """(n, d) features, the (n,) hashes of the rows, and the seconds that the encoding took."""

    features: Floats
    row_hashes: Hashes
    took_s: float


@dataclass(frozen=True)
class Holdout:
    """Attributes:
    frame: (n, columns) as read, for each model to encode by its own spec.
    rows: label as codes of the challenger's classes, weights, queries, and the groups that are drawn together.
    """

    frame: pd.DataFrame
    rows: Rows
    summary: HoldoutSummary
    _key_hashes: dict[str, Hashes] = field(default_factory=dict)
    _encoded: dict[str, Encoded] = field(default_factory=dict)

    def key_hashes(self, key: str | None) -> Hashes | None:
        """(n,) hashes of the column `key`; None where there is no such column. A million of text take seconds, and both models ask."""
        from toolkit.core.row_hashes import key_hashes

        if key is None or key not in self.frame.columns:
            return None
        if key not in self._key_hashes:
            self._key_hashes[key] = key_hashes(self.frame[key].to_numpy())
        return self._key_hashes[key]

    def encoded(self, model: PortableModel) -> Encoded:
        """As `model` sees the rows; two models with the same features see the same."""
        from toolkit.core.row_hashes import row_hashes

        features_of = json.dumps(model.spec["features"])
        if features_of not in self._encoded:
            began = time.perf_counter()
            features = model.encode(self.frame)
            took_s = time.perf_counter() - began
            self._encoded[features_of] = Encoded(features, row_hashes(features), took_s)
        return self._encoded[features_of]


def read_holdout(experiment: Experiment, spec: Mapping[str, Any], context: DataContext) -> Holdout:
    """The experiment's own hold-out, else the test part of its table as the honest protocol divides it.

    Raises:
        DataError: it cannot be read, or has not what the challenger's spec asks for.
    """
    import numpy as np

    from toolkit.core.figures import Rows
    from toolkit.core.promotion_result import HoldoutSummary
    from toolkit.core.secrets import without_secrets
    from toolkit.engines.sklearn_splits import split
    from toolkit.engines.tables import encode_fetched, fetch, fetch_holdout

    fetched = fetch_holdout(experiment, context)
    if fetched is not None:
        frame, description = fetched.frame, "a table of its own"
    else:
        fetched = fetch(experiment, context)
        parts = split(encode_fetched(experiment, fetched), experiment.split, "honest")
        assert parts.test_rows is not None, "without a hold-out table the test part is of the experiment's own"
        frame = fetched.frame.iloc[parts.test_rows]
        description = f"the test part of {len(fetched.frame):,} rows; {parts.description.removeprefix('honest protocol: ')}"
    location = without_secrets(fetched.location)
    encoded = _encoded(experiment, spec, frame, fetched.kind, location)
    task = experiment.model.task
    rows = Rows(
        task=task,
        label=encoded.label.astype(np.float64),
        weight=None if encoded.weight is None else encoded.weight.astype(np.float64),
        group=encoded.group if task == "ranking" else None,
        unit=encoded.group if experiment.split.by == "group" else None,
    )
    return Holdout(frame, rows, HoldoutSummary(fetched.kind, location, encoded.source.sha256, len(frame), description))


def _encoded(experiment: Experiment, spec: Mapping[str, Any], frame: pd.DataFrame, kind: str, location: str) -> LoadedData:
    """Checked, and with the challenger's features and classes."""
    import numpy as np

    from toolkit.core.data import DataSource, LoadedData
    from toolkit.core.encoding import encode

    dataset, task = experiment.dataset, experiment.model.task
    names = [feature["name"] for feature in spec["features"]]
    asked = LoadedData(
        features=np.empty((0, len(names)), dtype=np.float32),
        feature_names=tuple(names),
        label=np.empty(0, dtype=np.float32),
        classes=None if spec["classes"] is None else tuple(spec["classes"]),
        task=task,
        source=DataSource("", "", "", 0, len(names)),
        categories={feature["name"]: tuple(feature["categories"]) for feature in spec["features"] if "categories" in feature},
    )
    # A hold-out need not have what only steers a split, nor columns that no model sees. Groups it must have: their rows are drawn together.
    wanted = replace(
        dataset,
        exclude=tuple(name for name in dataset.exclude if name in frame.columns),
        categorical=(),
        key=dataset.key if dataset.key in frame.columns else None,
        time=None,
        group=dataset.group if task == "ranking" or experiment.split.by == "group" else None,
    )
    return encode(frame, kind, location, wanted, task, like=asked)
