"""One run in MLflow, written while its caller waits: for verbs that make one model or one decision. A study has `mlflow_tracking`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.core.errors import TrackingError
from toolkit.core.leftovers import PROCESS_TAG
from toolkit.engines import mlflow_models, mlflow_store
from toolkit.engines.mlflow_store import MlflowStore, Refused, Unanswered
from toolkit.engines.processes import this_process

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.core.model_spec import ModelPackage

Result = TypeVar("Result")


class MlflowRun:
    """A `with` block makes the run and ends it: FINISHED, KILLED after an interrupt, FAILED after any other exception.

    Args:
        tracking_uri: None: MLflow's own default.
        experiment_name: MLflow's experiment, created where there is none.

    Attributes:
        run_id, experiment_id: empty before the block. tracking_uri: without credentials.

    Raises:
        TrackingError: of every method: the server does not answer or refuses.
    """

    def __init__(self, *, tracking_uri: str | None, experiment_name: str, run_name: str, tags: Mapping[str, str]) -> None:
        uri = tracking_uri or mlflow_store.default_tracking_uri()
        self.experiment_name = experiment_name
        self.run_id = self.experiment_id = ""
        self._run_name = run_name
        self._tags = dict(tags)
        self._store = MlflowStore(uri)
        self.uri, self.tracking_uri = uri, self._store.display_uri

    def __enter__(self) -> MlflowRun:
        self.experiment_id = self._told(lambda: self._store.experiment_id(self.experiment_name))
        tags = {**mlflow_store.context_tags(), **self._tags, PROCESS_TAG: json.dumps(asdict(this_process()))}
        self.run_id = self._told(lambda: self._store.create_run(self.experiment_id, self._run_name, _now_ms(), tags))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        try:
            self._told(lambda: self._store.update_run(self.run_id, status, _now_ms()))
        except TrackingError:
            if error is None:
                raise

    def log(
        self,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, object] | None = None,
        curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    ) -> None:
        """`curves`: (step, value) by metric."""
        at_ms = _now_ms()
        points = [(name, float(value), at_ms, 0) for name, value in (metrics or {}).items()]
        points += [(name, float(value), at_ms, int(step)) for name, curve in (curves or {}).items() for step, value in curve]
        texts = {name: str(value) for name, value in (params or {}).items()}
        tag_texts = {name: str(value) for name, value in (tags or {}).items()}
        self._told(lambda: self._store.log(self.run_id, texts, points, tag_texts))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self._told(lambda: self._store.log_artifact(self.run_id, path, folder))

    def log_model(self, package: ModelPackage, name: str = "model") -> str:
        """Returns `models:/m-…`."""
        return self._told(lambda: mlflow_models.log_model(self._store, self.experiment_id, self.run_id, package, name))

    def log_spark_model(self, model: Any, example: pd.DataFrame, name: str = "model") -> str:
        """A fitted pipeline of Spark ML. Returns `models:/m-…`."""
        return self._told(lambda: mlflow_models.log_spark_model(self._store, self.experiment_id, self.run_id, model, example, name))

    def _told(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except Unanswered as error:
            raise TrackingError(
                "MLflow's tracking server must answer",
                got=f"{self.tracking_uri} ({error})",
                next_step="start it, or correct --tracking-uri or MLFLOW_TRACKING_URI, and run the command again",
            ) from error
        except Refused as error:
            raise TrackingError(
                "MLflow's tracking server refuses",
                got=f"{self.tracking_uri}: {error}",
                next_step="check the URI, the experiment's name and your permissions",
            ) from error


def _now_ms() -> int:
    return round(time.time() * 1000)
