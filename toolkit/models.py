"""What a model registry holds: all models, or one with its versions, gates and history. Reads only."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from toolkit.core.promotion import AuditRecord, Intent, audit_records, intents
from toolkit.core.registry import (
    CHALLENGER,
    CHAMPION,
    EXPERIMENT_TAG,
    PREVIOUS_CHAMPION,
    PROTOCOL_TAG,
    STUDY_TAG,
    ModelVersion,
    RegisteredModel,
    parse_model,
)
from toolkit.core.secrets import without_secrets
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.engines.mlflow_registry import Registry


@dataclass(frozen=True)
class ModelList:
    """Every registered model. `registry_uri`: without credentials."""

    registry_uri: str
    models: tuple[RegisteredModel, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that `toolkit models --json` prints."""
        return {"registry_uri": self.registry_uri, "models": [_model_json(model) for model in self.models]}

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Heads and rows for a person."""
        rows = [
            (model.name, *(_shown(model.aliases.get(alias)) for alias in (CHAMPION, CHALLENGER, PREVIOUS_CHAMPION)))
            for model in self.models
        ]
        return ("model", CHAMPION, CHALLENGER, "previous champion"), list(rows)

    def _repr_html_(self) -> str:
        return _html(*self.table())


@dataclass(frozen=True)
class ModelDetails:
    """One registered model.

    Attributes:
        versions: the newest first.
        history: every move of its champion, the earliest first.
        interrupted: promotions and rollbacks that are under way, or whose process died: the next one finishes or undoes those.
        read_unix_s: when this was so.
    """

    registry_uri: str
    model: RegisteredModel
    versions: tuple[ModelVersion, ...]
    history: tuple[AuditRecord, ...]
    interrupted: tuple[Intent, ...]
    read_unix_s: float

    def as_json(self) -> dict[str, Any]:
        """The object that `toolkit models MODEL --json` prints."""
        return {
            "registry_uri": self.registry_uri,
            **_model_json(self.model),
            "interrupted": [str(intent) for intent in self.interrupted],
            "versions": [self._version_json(version) for version in self.versions],
            "history": [asdict(record) for record in self.history],
        }

    def _version_json(self, version: ModelVersion) -> dict[str, Any]:
        return {
            "version": version.version,
            "aliases": list(version.aliases),
            "stage": version.stage,
            "status": version.status,
            "created_unix_s": version.created_unix_s,
            "age_s": max(0.0, self.read_unix_s - version.created_unix_s),
            "run_id": version.run_id,
            "source": without_secrets(version.source),
            "experiment": version.tags.get(EXPERIMENT_TAG),
            "study": version.tags.get(STUDY_TAG),
            "protocol": version.tags.get(PROTOCOL_TAG),
            "metrics": version.metrics,
            "gates": version.gates,
            "description": version.description,
        }

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        rows = [
            (
                str(version.version),
                ", ".join(version.aliases),
                age(self.read_unix_s - version.created_unix_s),
                version.tags.get(PROTOCOL_TAG, ""),
                _metrics_line(version.metrics),
                _gates_line(version.gates),
                version.run_id,
            )
            for version in self.versions
        ]
        return ("version", "aliases", "age", "protocol", "metrics", "gates", "run"), list(rows)

    def history_table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        rows = [(each.at, each.action, _shown(each.champion_before), str(each.version), each.by, each.reason) for each in self.history]
        return ("when", "what", "from", "to", "by", "why"), list(rows)

    def _repr_html_(self) -> str:
        return _html(*self.table()) + _html(*self.history_table())


def models(
    model: str | None = None,
    *,
    registry_uri: str | None = None,
    tracking_uri: str | None = None,
    settings: Settings | None = None,
) -> ModelList | ModelDetails:
    """All registered models, or one.

    Args:
        model: a registered name; with an alias or a version, that version alone.
        registry_uri, tracking_uri: default: `MLFLOW_REGISTRY_URI`, else the registry of the tracking server.

    Raises:
        RegistryError: no such model, version or alias; no permission or no answer.
    """
    from toolkit.engines.mlflow_registry import Registry

    settings = settings or Settings.read()
    reference = parse_model(model) if model is not None else None
    registry = Registry.open(registry_uri or settings.registry_uri, tracking_uri or settings.tracking_uri)
    if reference is None:
        return ModelList(registry.display_uri, tuple(registry.models()))
    if reference.alias or reference.version:
        version = registry.find(reference)
        return _details(registry, registry.model(version.name), [version])
    found = registry.model(registry.resolve_name(reference.name))
    return _details(registry, found, registry.versions(found.name))


def age(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `5 h`, `3 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(max(seconds, 0))} s"


def _details(registry: Registry, model: RegisteredModel, versions: Iterable[ModelVersion]) -> ModelDetails:
    newest_first = tuple(sorted(versions, key=lambda version: -version.version))
    history = audit_records(model.tags, *(version.tags for version in newest_first))
    return ModelDetails(registry.display_uri, model, newest_first, tuple(history), tuple(intents(model.tags)), time.time())


def _model_json(model: RegisteredModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "champion": model.aliases.get(CHAMPION),
        "challenger": model.aliases.get(CHALLENGER),
        "previous_champion": model.aliases.get(PREVIOUS_CHAMPION),
        "aliases": dict(model.aliases),
        "description": model.description,
        "created_unix_s": model.created_unix_s,
    }


def _metrics_line(metrics: Any) -> str:
    """The test's first three, else those of another part."""
    if not isinstance(metrics, dict):
        return "unreadable"
    part = next((name for name in ("test", "holdout", "validation") if metrics.get(name)), None)
    if part is None:
        return ""
    figures = [f"{name} {value:.4g}" for name, value in metrics[part].items() if isinstance(value, int | float)]
    return f"{', '.join(figures[:3])} ({part})"


def _gates_line(gates: Any) -> str:
    """`5 passed, 1 failed`."""
    if not isinstance(gates, list):
        return "unreadable"
    states = [str(gate.get("status", "")).replace("_", " ") for gate in gates if isinstance(gate, dict)]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _html(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
