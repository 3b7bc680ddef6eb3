"""A registered model as a function for the user's own Spark frames and SQL."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.core.registry import parse_model
from toolkit.settings import Settings


def spark_udf(
    spark: Any,
    model: str,
    *,
    register: str | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    settings: Settings | None = None,
) -> Callable[..., Any]:
    """In place of `mlflow.pyfunc.spark_udf(spark, model_uri)`: the same calls, the toolkit's scorer.

    The function that is returned takes columns, or their names, and gives a column of doubles: the probability of the second class, or
    the value; of several classes an array of probabilities. `predict(struct(…))` takes the features by name. `predict(a, b, …)` takes
    them in the order of the model, unless all are names, and the very names of the features: then each is taken by its name, in any order.
    `predict()` takes the columns that are named as the features are. In SQL: `predict_wine(a, b, …)` or `predict_wine(struct(*))`.
    Values that cannot be cast fail the query (`try_cast` them before); missing ones are what they were in training.

    The model is looked up once, here: a later move of its alias changes nothing. One without the toolkit's spec goes through MLflow's own
    function, with a warning.

    Args:
        spark: a classic session or one of Spark Connect.
        model: a registered name (`@champion`), `name@alias` or `name/version`, with or without `models:/`.
        register: under which name SQL knows it in this session.

    Raises:
        RegistryError: no such model, or it is not what was registered.
        ScoringError: it cannot predict here.
    """
    from toolkit.engines.mlflow_registry import Registry
    from toolkit.engines.mlflow_scoring_model import fetch
    from toolkit.engines.spark_scoring import prediction_function, register_function

    settings = settings or Settings.read()
    registry = Registry.open(registry_uri or settings.registry_uri, tracking_uri or settings.tracking_uri)
    folder = Path(tempfile.mkdtemp(prefix="toolkit-model-"))
    # MLflow's own function reads the model when a query runs.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fetched = fetch(registry, registry.find(parse_model(model)), folder / "model")
    if register is not None:
        register_function(spark, fetched, register)
    return prediction_function(spark, fetched)
