"""One MLflow model registry, called without touching MLflow's global state and without its minutes of retries.

A call that can be repeated is tried three times; what goes wrong then is a `RegistryError`. Nothing here knows what a champion is.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.store.model_registry.base_rest_store import BaseRestStore
from mlflow.tracking._model_registry import utils as registry_utils
from mlflow.utils import proto_json_utils

from toolkit.core.errors import RegistryError, TrackingError
from toolkit.core.registry_tags import ORDINARY, UNITY_CATALOG
from toolkit.core.secrets import without_secrets
from toolkit.engines.mlflow_store import (
    MlflowStore,
    Refused,
    Unanswered,
    brief,
    check_sqlite,
    database_path,
    default_tracking_uri,
    request_once,
    told,
)

# MLflow's internals have no types.
_protos: Any = proto_json_utils
_stores: Any = registry_utils

ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
PAUSES_S = (0.2, 1.0)

# MLflow's permission and Unity Catalog's, by what the method's name begins with. The first that fits counts.
_IN_CATALOG = "USE SCHEMA and USE CATALOG"
PERMISSIONS: Mapping[str, tuple[str, str]] = {
    "create_registered_model": ("the right to create registered models", f"CREATE MODEL on the schema, with {_IN_CATALOG}"),
    "create_model_version": ("EDIT on the registered model", f"CREATE MODEL VERSION on the model, or its ownership, with {_IN_CATALOG}"),
    "delete_model_version_tag": ("EDIT on the registered model", f"APPLY TAG on the model, with {_IN_CATALOG}"),
    "delete_registered_model_tag": ("EDIT on the registered model", f"APPLY TAG on the model, with {_IN_CATALOG}"),
    "delete": ("MANAGE on the registered model", f"ownership of the model, with {_IN_CATALOG}"),
    "set_registered_model_alias": ("EDIT on the registered model", f"ownership of the model, with {_IN_CATALOG}"),
    "set": ("EDIT on the registered model", f"APPLY TAG on the model, with {_IN_CATALOG}"),
    "transition": ("EDIT on the registered model", f"ownership of the model, with {_IN_CATALOG}"),
    "": ("READ on the registered model", f"EXECUTE on the model, with {_IN_CATALOG}"),
}


class RefusedError(RegistryError):
    """The registry answered no. `code` is MLflow's error code."""

    code = ""


class RegistryStore:
    """The calls of the registry at `uri`.

    Attributes:
        display_uri: without credentials.
        tracking_uri: of the runs and logged models that versions come from.
        is_unity_catalog: names are `catalog.schema.name`, there are no stages, and tags are short.
        is_workspace: Databricks' older registry. has_aliases: it has none.

    Raises:
        RegistryError: no registry speaks this URI's scheme, or the embedded database cannot be opened; without `create`: there is none.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None, *, create: bool = False) -> None:
        self.uri = uri
        self.display_uri = without_secrets(uri)
        self.is_unity_catalog = uri.startswith("databricks-uc")
        self.is_workspace = uri.startswith("databricks") and not self.is_unity_catalog
        self.has_aliases = not self.is_workspace
        self.tracking_uri = tracking_uri or uri.replace("databricks-uc", "databricks", 1)
        self.rules = UNITY_CATALOG if self.is_unity_catalog else ORDINARY
        self._tracking: MlflowStore | None = None
        if database := database_path(uri):
            _check_database(database, create)
        try:
            store = _stores._get_store(uri, self.tracking_uri)
        except Exception as error:
            raise RegistryError(
                "model registry: one that MLflow can open",
                got=f"{self.display_uri} ({brief(error)})",
                next_step="correct --registry-uri or MLFLOW_REGISTRY_URI (http://…, sqlite:///…, databricks-uc)",
            ) from error
        self.is_remote = isinstance(store, BaseRestStore)
        self._store = _without_retries(store) if self.is_remote else store

    @property
    def tracking(self) -> MlflowStore:
        """The tracking server or database. Raises TrackingError."""
        if self._tracking is None:
            self._tracking = MlflowStore(self.tracking_uri)
        return self._tracking

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """One call of MLflow's registry store, repeated where it went unanswered.

        Raises:
            RefusedError: the answer is no. RegistryError: no permission, or no answer.
        """
        for pause_s in (*PAUSES_S, None):
            try:
                return self.call_once(method, *args, **kwargs)
            except Unanswered as silence:
                if silence.status in (401, 403):
                    raise self.forbidden(method, silence) from silence
                if pause_s is None:
                    raise self.unreachable(silence) from silence
            except RefusedError as refusal:
                # MLflow's word for "two at once": its "set" looks first and inserts then.
                if refusal.code != "BAD_REQUEST" or pause_s is None:
                    raise
            time.sleep(pause_s)
        raise AssertionError("the last round returns or raises")

    def call_once(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """As `call`, for what must not be done twice.

        Raises:
            Unanswered: it may have been carried out. RefusedError: the answer is no.
        """
        try:
            return told(lambda: getattr(self._store, method)(*args, **kwargs))
        except Refused as refusal:
            if refusal.code == "PERMISSION_DENIED":
                raise self.forbidden(method, refusal) from refusal
            error = RefusedError("the model registry must take it", got=f"{refusal} (from {self.display_uri})")
            error.code = refusal.code
            raise error from refusal

    def call_tracking(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """One call of the tracking store, as `call`."""
        try:
            return self.tracking.call(method, *args, **kwargs)
        except Unanswered as silence:
            raise TrackingError("MLflow must answer", got=f"{self.tracking.display_uri} ({silence})", next_step="try again") from silence
        except Refused as refusal:
            error = RefusedError("MLflow must know it", got=f"{refusal} (from {self.tracking.display_uri})")
            error.code = refusal.code
            raise error from refusal

    def unreachable(self, silence: Unanswered) -> RegistryError:
        is_databricks = self.is_unity_catalog or self.is_workspace
        mend = "sign in to Databricks (DATABRICKS_HOST and DATABRICKS_TOKEN, or a profile)" if is_databricks else "start it"
        return RegistryError(
            "the model registry must answer",
            got=f"{self.display_uri} ({silence})",
            next_step=f"{mend}, or correct --registry-uri or MLFLOW_REGISTRY_URI",
        )

    def half_answer(self, what: str) -> RegistryError:
        """For an answer that cannot be all of it: never to be taken for "there is none"."""
        return RegistryError(
            "the model registry must answer whole", got=f"{what} from {self.display_uri}", next_step="look at the server, and try again"
        )

    def forbidden(self, method: str, reason: Exception) -> RegistryError:
        needed = next(both for start, both in PERMISSIONS.items() if method.startswith(start))[self.is_unity_catalog]
        return RegistryError(
            f"the model registry: {needed}",
            got=f"{reason} (from {self.display_uri})",
            next_step="ask the model's owner for it, or sign in as somebody who has it",
        )


def _check_database(path: Path, create: bool) -> None:
    if not create and not path.exists():
        raise RegistryError(
            "model registry: a database that exists",
            got=str(path),
            next_step="register a model first (toolkit sweep EXP --register), or name another with --registry-uri",
        )
    try:
        check_sqlite(path)
    except TrackingError as error:
        raise RegistryError(str(error)) from error


def registry_uri_for(registry_uri: str | None, tracking_uri: str | None) -> tuple[str, str]:
    """The registry's URI and the tracking server's: what is given, else as MLflow pairs them."""
    tracking = tracking_uri or default_tracking_uri()
    if registry_uri:
        return registry_uri, tracking
    is_databricks = tracking == "databricks" or tracking.startswith("databricks:")
    return (tracking.replace("databricks", "databricks-uc", 1) if is_databricks else tracking), tracking


def _without_retries(store: Any) -> Any:
    """A copy of a REST store whose calls are one request each; MLflow caches and shares the original."""
    bounded = copy.copy(store)

    def request(endpoint: str, method: str, json_body: str | None, response: Any, extra_headers: Any) -> Any:
        text = request_once(store, endpoint, method, json.loads(json_body) if json_body else None, extra_headers)
        try:
            _protos.parse_dict(js_dict=json.loads(text), message=response)
        except Exception as error:  # protobuf's own, or json's
            raise Unanswered(f"an answer that is not MLflow's: {brief(error)}") from error
        return response

    def call_endpoint(api: Any, json_body: str | None, call_all_endpoints: bool = False, extra_headers: Any = None) -> Any:
        assert not call_all_endpoints, "only stages' latest versions need it"
        endpoint, method = store._get_endpoint_from_method(api)
        return request(endpoint, method, json_body, store._get_response_from_method(api), extra_headers)

    def edit_endpoint_and_call(endpoint: str, method: str, req_body: str, proto_name: Any, extra_headers: Any = None, **parts: Any) -> Any:
        """Unity Catalog's newer interface, with names in the path."""
        for key, value in parts.items():
            endpoint = endpoint.replace(f"{{{key}}}", str(value)) if value is not None else endpoint
        return request(endpoint, method, req_body, store._get_response_from_method(proto_name), extra_headers)

    bounded._call_endpoint = call_endpoint
    bounded._edit_endpoint_and_call = edit_endpoint_and_call
    return bounded
