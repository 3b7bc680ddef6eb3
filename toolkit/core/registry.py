"""Registered models as the toolkit knows them: how one is named on the command line, and what a registry says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.core.errors import RegistryError

CHAMPION, CHALLENGER, PREVIOUS_CHAMPION = "champion", "challenger", "previous_champion"

# Tags of a version. Those of the promotion itself are in `core.promotion`.
EXPERIMENT_TAG = "toolkit.experiment"
EXPERIMENT_SOURCE_TAG = "toolkit.experiment_source"
"""How the experiment was named: a file's absolute path, a recipe or `package.module:function`."""
STUDY_TAG = "toolkit.study"
PROTOCOL_TAG = "toolkit.protocol"
MODEL_KIND_TAG = "toolkit.model_kind"
DATA_SHA256_TAG = "toolkit.data_sha256"
DATA_KIND_TAG = "toolkit.data_kind"
SPEC_SHA256_TAG = "toolkit.spec_sha256"
"""Of the bytes of the portable model's `spec.json`, as they were when the version was made."""
METRICS_TAG = "toolkit.metrics"
"""JSON: {part: {metric: value}}, part being validation, test or holdout."""
GATES_TAG = "toolkit.gates"
"""JSON: [{gate, status, observed, limit}]."""
COPIED_FROM = "toolkit.copied_from"
"""Prefix of a copy's provenance: `.registry` (without credentials), `.model`, `.version`, `.run_id`."""


@dataclass(frozen=True)
class ModelReference:
    """MODEL of the command line: a name, and at most one of alias and version."""

    name: str
    alias: str | None = None
    version: int | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}/{self.version}"
        return f"{self.name}@{self.alias}" if self.alias else self.name


def parse_model(text: str) -> ModelReference:
    """`NAME`, `NAME@ALIAS` or `NAME/VERSION`; MLflow's `models:/` before it is allowed. NAME may be `catalog.schema.name`.

    Raises:
        RegistryError: anything else.
    """
    if not isinstance(text, str):
        raise RegistryError("MODEL: a text", got=type(text).__name__, next_step='for example "wine_quality" or "wine_quality@challenger"')
    rest = text.strip().removeprefix("models:/")
    name, slash, version = rest.partition("/")
    name, at, alias = name.partition("@")
    is_name = bool(name.strip()) and not re.search(r"[:\s]", name)
    is_rest = re.fullmatch(r"[1-9]\d{0,9}", version) if slash else re.fullmatch(r"[\w-]+", alias) if at else True
    if not is_name or not is_rest or (slash and at):
        raise RegistryError(
            "MODEL: a registered name, NAME@ALIAS or NAME/VERSION",
            got=repr(text),
            next_step="for example wine_quality, wine_quality@challenger or wine_quality/3; toolkit models lists them",
        )
    return ModelReference(name, alias or None, int(version) if slash else None)


def find_name(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` means: itself, else the only one that differs in `-` and `_` alone."""
    names = list(known)
    if name in names:
        return name
    same = [each for each in names if each.replace("-", "_") == name.replace("-", "_")]
    return same[0] if len(same) == 1 else None


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model, and how to name it on the command line."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class RegisteredModel:
    """`aliases`: alias -> version."""

    name: str
    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    description: str
    created_unix_s: float


@dataclass(frozen=True)
class ModelVersion:
    """One version.

    Attributes:
        source: where its artifacts were when it was registered.
        status: MLflow's: READY, PENDING_REGISTRATION or FAILED_REGISTRATION.
        stage: legacy: None, Staging, Production or Archived; empty where the registry has none.
    """

    name: str
    version: int
    run_id: str
    source: str
    status: str
    stage: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    description: str
    created_unix_s: float

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def metrics(self) -> Any:
        """{part: {metric: value}}; empty without such a tag, None where it cannot be read."""
        return _json(self.tags.get(METRICS_TAG, "{}"))

    @property
    def gates(self) -> Any:
        """[{gate, status, observed, limit}]; empty for a version that was never judged, None where the tag cannot be read."""
        return _json(self.tags.get(GATES_TAG, "[]"))


def registration_tags(spec: Mapping[str, Any]) -> dict[str, str]:
    """What a registered version says of its making, from the portable model's `spec.json`."""
    tags = {
        EXPERIMENT_TAG: spec["experiment"],
        STUDY_TAG: spec.get("study"),
        PROTOCOL_TAG: spec["protocol"],
        MODEL_KIND_TAG: spec["model_kind"],
        DATA_SHA256_TAG: spec["data"]["sha256"],
        DATA_KIND_TAG: spec["data"]["kind"],
        METRICS_TAG: json.dumps(spec["metrics"]),
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
