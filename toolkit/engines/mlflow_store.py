"""One MLflow tracking server (or embedded database), called without touching MLflow's global state and without its minutes of retries.

MLflow's fluent interface and `Model.log` take the process-wide tracking URI, and its HTTP client tries every call eight times over
minutes. So everything here goes through the tracking store of one URI, a call is one request, and a failed one is told as `Unanswered`
(send it again) or `Refused` (never will be taken): when and how often to repeat is the caller's to decide.
Times are seconds since the epoch (`_unix_s`) or milliseconds, as MLflow keeps them (`_ms`).
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import mlflow
from mlflow.entities import (
    LifecycleStage,
    Metric,
    Param,
    RunStatus,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service import utils as tracking_utils
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import proto_json_utils, rest_utils

from toolkit.core.errors import TrackingError
from toolkit.core.secrets import without_secrets

logger = logging.getLogger(__name__)

# MLflow's internals have no types.
_rest: Any = rest_utils
_protos: Any = proto_json_utils
_stores: Any = tracking_utils

Result = TypeVar("Result")

CALL_TIMEOUT_S = 20
PAGE_SIZE = 1000

# MLflow's limits: 1,000 entities a batch, of which 100 parameters and 100 tags; 6,000 bytes a parameter, 5,000 a tag in older servers.
MAX_BATCH = 1000
MAX_BATCH_PARAMS = 100
MAX_PARAM_BYTES = 6000
MAX_TAG_BYTES = 5000

# Answers that another attempt can change: no permission (a token that ran out), timeouts, too many requests.
TRANSIENT_HTTP = frozenset({401, 403, 408, 425, 429})


class Unanswered(Exception):
    """No answer, or one that says "not now". The call may have been carried out all the same. `status`: HTTP's; 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Refused(Exception):
    """The server will never take this. `code` is MLflow's error code."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class StoredRun:
    """A run as MLflow has it. `has_params`: its one batch of parameters and metrics has arrived."""

    run_id: str
    status: str
    start_ms: int
    end_ms: int | None
    tags: Mapping[str, str]
    has_params: bool


class MlflowStore:
    """The calls that tracking needs, over MLflow's store of `uri`. Thread-safe.

    Attributes:
        uri: with credentials, where it has some; `display_uri`: without.
        num_calls: calls made so far; with a server, one REST request each (artifact uploads not counted).
        num_answers: those of them that the store has carried out.

    Raises:
        TrackingError: no store speaks this URI's scheme, or the embedded database cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.display_uri = without_secrets(self.uri)
        self.num_calls = self.num_answers = 0
        self._lock = threading.Lock()
        if database := database_path(self.uri):
            check_sqlite(database)
        try:
            store = _stores._get_store(self.uri)
        except Exception as error:
            raise TrackingError(
                "tracking URI: a store that MLflow can open",
                got=f"{self.display_uri} ({brief(error)})",
                next_step="correct --tracking-uri or MLFLOW_TRACKING_URI (http://…, sqlite:///…, databricks)",
            ) from error
        self.is_remote = isinstance(store, RestStore)
        self._store = _without_retries(store) if self.is_remote else store

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """One call of the store.

        Raises:
            Unanswered, Refused: as their names say.
        """
        with self._lock:
            self.num_calls += 1
        answer = told(lambda: getattr(self._store, method)(*args, **kwargs))
        with self._lock:
            self.num_answers += 1
        return answer

    def experiment_id(self, name: str) -> str:
        """The experiment of this name, created where there is none.

        Raises:
            TrackingError: it was deleted.
            Unanswered, Refused: as their names say.
        """
        experiment = self.call("get_experiment_by_name", name)
        if experiment is None:
            try:
                return str(self._create_experiment(name))
            except Refused as refusal:
                if refusal.code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.call("get_experiment_by_name", name)
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise TrackingError(
                "MLflow experiment: one that was not deleted",
                got=repr(name),
                next_step=f"restore it (mlflow experiments restore --experiment-id {experiment.experiment_id}) or check out another branch",
            )
        return str(experiment.experiment_id)

    def _create_experiment(self, name: str) -> str:
        try:
            return str(self.call("create_experiment", name, None, []))
        except Refused as refusal:
            # A Databricks workspace keeps experiments in folders, and does not make them on the way.
            if refusal.code != "RESOURCE_DOES_NOT_EXIST" or not name.startswith("/"):
                raise
        folder = {"path": name.rsplit("/", 1)[0]}
        told(lambda: request_once(self._store, "/api/2.0/workspace/mkdirs", "POST", folder))
        return str(self.call("create_experiment", name, None, []))

    def find_runs(self, experiment_id: str, tags: Mapping[str, str]) -> list[StoredRun]:
        """All runs of the experiment that carry these tags and are not deleted, the earliest first; one call for 1,000 of them."""
        condition = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found: list[StoredRun] = []
        token: str | None = None
        while True:
            page = self.call(
                "search_runs",
                [experiment_id],
                condition,
                ViewType.ACTIVE_ONLY,
                max_results=PAGE_SIZE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += [
                StoredRun(
                    run_id=run.info.run_id,
                    status=run.info.status,
                    start_ms=run.info.start_time or 0,
                    end_ms=run.info.end_time or None,
                    tags=dict(run.data.tags),
                    has_params=bool(run.data.params),
                )
                for run in page
            ]
            token = page.token or None
            if token is None:
                return found

    def create_run(self, experiment_id: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Start a run; returns its id."""
        entities = [RunTag(key, clip(value, MAX_TAG_BYTES)) for key, value in {**tags, "mlflow.runName": name}.items()]
        user = tags.get("mlflow.user", "unknown")
        return str(self.call("create_run", experiment_id, user, start_ms, entities, name).info.run_id)

    def log(
        self,
        run_id: str,
        params: Mapping[str, str],
        metrics: Sequence[tuple[str, float, int, int]],
        tags: Mapping[str, str],
    ) -> None:
        """Parameters, metric points (key, value, timestamp in ms, step) and tags, in as few calls as MLflow's limits allow."""
        points = [Metric(mlflow_name(key), value, timestamp_ms, step) for key, value, timestamp_ms, step in metrics]
        long = sorted(key for key, value in params.items() if len(value.encode()) > MAX_PARAM_BYTES)
        if long:
            logger.warning("MLflow keeps %d bytes of a parameter: %s cut in run %s", MAX_PARAM_BYTES, ", ".join(long), run_id)
        param_batches = _chunks([Param(mlflow_name(key), clip(value, MAX_PARAM_BYTES)) for key, value in params.items()])
        tag_batches = _chunks([RunTag(mlflow_name(key), clip(value, MAX_TAG_BYTES)) for key, value in tags.items()])
        some_params: list[Any]
        some_tags: list[Any]
        for some_params, some_tags in zip_longest(param_batches, tag_batches, fillvalue=[]):
            room = MAX_BATCH - len(some_params) - len(some_tags)
            self.call("log_batch", run_id, points[:room], some_params, some_tags)
            points = points[room:]
        for start in range(0, len(points), MAX_BATCH):
            self.call("log_batch", run_id, points[start : start + MAX_BATCH], [], [])

    def update_run(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set the status: RUNNING, FINISHED, KILLED or FAILED."""
        self.call("update_run_info", run_id, RunStatus.from_string(status), end_ms, None)

    def delete_run(self, run_id: str) -> None:
        """Delete softly: MLflow's interface can restore it."""
        self.call("delete_run", run_id)

    def log_artifact(self, run_id: str, path: Path, folder: str) -> None:
        """Upload one file. The server is asked for the run first, so that MLflow's own retries hardly ever begin."""
        if not path.exists():
            raise Refused(f"artifact {path} is gone")
        self.call("get_run", run_id)
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        told(lambda: client.log_artifact(run_id, str(path), folder or None))


def default_tracking_uri() -> str:
    """Where MLflow itself would write from here: what the process has set, else the embedded database of the working directory."""
    uri: str = mlflow.get_tracking_uri()
    relative = uri.removeprefix("sqlite:///")
    if relative != uri and not relative.startswith("/"):  # MLflow < 3.10 gives a relative path, and caches its store by that name
        return f"sqlite:///{Path(relative).resolve()}"
    return uri


def context_tags() -> dict[str, str]:
    """Who and what runs here, as MLflow's own runs say it: user, source, and the Databricks notebook or job."""
    return {key: str(value) for key, value in resolve_tags().items() if value is not None}


def database_path(uri: str) -> Path | None:
    """The file of an embedded database; None: `uri` is of something else."""
    return Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])) if uri.startswith("sqlite:///") else None


def check_sqlite(path: Path) -> None:
    """Whether the file can be made, read and written: MLflow itself would try ten times, for more than a minute.

    Raises:
        TrackingError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is read-only")
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            "MLflow's database: a file that can be written",
            got=f"{path} ({error})",
            next_step="mend it or give --tracking-uri",
        ) from error


def brief(error: BaseException) -> str:
    """The innermost reason, on one short line, without credentials."""
    reason = error
    while isinstance(inner := reason.__cause__ or reason.__context__, BaseException):
        reason = inner
    text = " ".join(str(reason).split()) or type(reason).__name__
    return without_secrets(text if len(text) <= 300 else f"{text[:300]}…")


def mlflow_name(name: str) -> str:
    """A parameter's or metric's name in the letters that MLflow takes: `ndcg@10` becomes `ndcg_at_10`."""
    return re.sub(r"[^\w.\- :/]", "_", name.replace("@", "_at_"))[:250]


def clip(value: str, max_bytes: int) -> str:
    """The beginning of `value`, if it is too long for MLflow."""
    raw = value.encode()
    return value if len(raw) <= max_bytes else raw[: max_bytes - 3].decode(errors="ignore") + "…"


def told(call: Callable[[], Result]) -> Result:
    """Carry out a call; its failure as one of the two kinds."""
    try:
        return call()
    except MlflowException as error:
        status = _http_status(error)
        if 400 <= status < 500 and status not in TRANSIENT_HTTP:
            raise Refused(brief(error), error.error_code) from error
        raise Unanswered(brief(error), status) from error
    except OSError as error:  # requests' errors are among them
        raise Unanswered(brief(error)) from error


def _http_status(error: Any) -> int:
    return int(getattr(error, "http_status", None) or error.get_http_status_code())


def _without_retries(store: Any) -> Any:
    """A copy of a REST store whose calls are one request each, of at most CALL_TIMEOUT_S seconds between two bytes.

    MLflow reads the number of retries from the environment alone. The copy keeps the original, which MLflow caches and shares, as it is.
    """
    bounded = copy.copy(store)

    def call_endpoint(api: Any, json_body: str | None = None, endpoint: str | None = None, response_proto: Any = None, **_: Any) -> Any:
        info = store._V3_METHOD_TO_INFO if api in store._V3_APIS else store._METHOD_TO_INFO
        usual_endpoint, method = info[api]
        text = request_once(store, endpoint or usual_endpoint, method, json.loads(json_body) if json_body else None)
        response = response_proto or api.Response()
        _protos.parse_dict(js_dict=json.loads(text), message=response)
        return response

    bounded._call_endpoint = call_endpoint
    return bounded


def request_once(store: Any, endpoint: str, method: str, body: Any, extra_headers: Mapping[str, str] | None = None) -> str:
    """The text of the answer to one request, of at most CALL_TIMEOUT_S seconds between two bytes."""
    response = _rest.http_request(
        host_creds=store.get_host_creds(),
        endpoint=endpoint,
        method=method,
        max_retries=0,
        timeout=CALL_TIMEOUT_S,
        retry_timeout_seconds=CALL_TIMEOUT_S,
        raise_on_status=False,
        extra_headers=extra_headers,
        **({"params": body} if method == "GET" else {"json": body}),
    )
    try:
        return str(_rest.verify_rest_response(response, endpoint).text)
    except MlflowException as error:
        # MLflow turns unknown statuses (413 of a proxy) into "internal error", which would be sent again for ever.
        answer: Any = error
        answer.http_status = response.status_code
        raise


def _chunks(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + MAX_BATCH_PARAMS] for start in range(0, len(items), MAX_BATCH_PARAMS)]
