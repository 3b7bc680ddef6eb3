"""The input example that was logged with a model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from mlflow.models import Model


def logged_example(folder: Path) -> pd.DataFrame | None:
    """Of a downloaded MLflow model, as a caller would send it; None where none was logged, or it is no table."""
    example = Model.load(str(folder)).load_input_example(str(folder))
    return example if isinstance(example, pd.DataFrame) and len(example) else None
