"""The public names: all that an experiment file needs. Importing this loads none of what stands behind them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.core.data import DataContext, Loaded
    from toolkit.core.errors import DataError, UserError
    from toolkit.core.experiment import (
        Asha,
        Cluster,
        Costs,
        Dataset,
        Experiment,
        Median,
        Metric,
        Sampler,
        Split,
        Sweep,
        Training,
    )
    from toolkit.core.gates import Gate
    from toolkit.core.model import Custom, Sklearn, SparkML, XGBoost
    from toolkit.core.result import SweepResult
    from toolkit.core.space import Branch, Categorical, Float, Int
    from toolkit.engines.data_files import RemoteFiles, files_for
    from toolkit.engines.tables import read_table
    from toolkit.score_udf import spark_udf
    from toolkit.scores import read_scores

# The verb is not among them: `toolkit.sweep` is its module, and which of the two a name meant would depend on what was imported
# before. The function is `from toolkit.sweep import sweep`.
__all__ = [
    "Asha",
    "Branch",
    "Categorical",
    "Cluster",
    "Costs",
    "Custom",
    "DataContext",
    "DataError",
    "Dataset",
    "Experiment",
    "Float",
    "Gate",
    "Int",
    "Loaded",
    "Median",
    "Metric",
    "RemoteFiles",
    "Sampler",
    "Sklearn",
    "SparkML",
    "Split",
    "Sweep",
    "SweepResult",
    "Training",
    "UserError",
    "XGBoost",
    "files_for",
    "read_scores",
    "read_table",
    "spark_udf",
]

_HOMES = {
    "DataContext": "core.data",
    "Loaded": "core.data",
    "DataError": "core.errors",
    "UserError": "core.errors",
    "Gate": "core.gates",
    "Custom": "core.model",
    "Sklearn": "core.model",
    "SparkML": "core.model",
    "XGBoost": "core.model",
    "SweepResult": "core.result",
    "Branch": "core.space",
    "Categorical": "core.space",
    "Float": "core.space",
    "Int": "core.space",
    "RemoteFiles": "engines.data_files",
    "files_for": "engines.data_files",
    "read_scores": "scores",
    "read_table": "engines.tables",
    "spark_udf": "score_udf",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'core.experiment')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
