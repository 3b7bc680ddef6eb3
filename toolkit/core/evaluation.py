"""The winner on rows it has not seen, as the report, MLflow and `--json` need it.

Shapes: n test rows, k classes, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.experiment import Costs
from toolkit.core.model import Task


@dataclass(frozen=True)
class Threshold:
    """Above it a row counts as positive. Chosen on `chosen_on` (never test rows under the honest protocol) for the least `cost_per_row`."""

    value: float
    costs: Costs
    chosen_on: str
    cost_per_row: float


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    label: (n,) true values; classes as 0 … k-1.
    prediction: (n,) probability of the second class, which is the positive one (binary), value (regression) or score (ranking); (n, k)
        probabilities (multiclass).
    metrics: every test figure by name; the experiment's metrics among them under their own names.
    validation_metrics: the same of validation rows, of the model before it was fitted on them too; empty where there are none.
    fitted_metrics: the same of the rows that the model was fitted on: how far it has learnt them by heart.
    calibration: as `engines.portable_model.calibrate` takes it; predictions here are calibrated already.
    importances: feature -> gain, in no order; features never used are 0.
    num_rounds: boosting rounds of the final model; None where the model has none.
    """

    task: Task
    classes: tuple[Any, ...] | None
    label: npt.NDArray[np.float32]
    prediction: npt.NDArray[np.float32]
    metrics: Mapping[str, float]
    threshold: Threshold | None
    importances: Mapping[str, float]
    num_rounds: int | None = None
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    fitted_metrics: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None

    @property
    def positive(self) -> str | None:
        """The class of a binary label that is looked for."""
        return str(self.classes[1]) if self.task == "binary" and self.classes is not None else None
