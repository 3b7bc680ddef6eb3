"""Registered models: their versions, aliases and tags, and the models themselves.

What a registry does not say is never taken for an answer: "there is no such alias" is believed only where two calls agree on it. Missing
aliases are INVALID_PARAMETER_VALUE from MLflow's own stores, and RESOURCE_DOES_NOT_EXIST from Unity Catalog.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import model_registry as entities
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from toolkit.core.errors import RegistryError, TrackingError, nearest
from toolkit.core.registry import CHAMPION, ModelReference, ModelVersion, RegisteredModel, find_name
from toolkit.core.secrets import without_secrets
from toolkit.engines.mlflow_registry_files import MODEL_FILE, look
from toolkit.engines.mlflow_registry_store import ABSENT, RefusedError, RegistryStore
from toolkit.engines.mlflow_store import brief

# It would write to standard error at every download.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# MLflow's internals have no types.
_entities: Any = entities

PAGE_SIZE = 500
CATALOG_PAGE_SIZE = 100

# Databricks' older registry has no aliases; there they are tags of the model.
ALIAS_TAG = "toolkit.alias."

NO_SUCH_ALIAS = (*ABSENT, "INVALID_PARAMETER_VALUE")


class RegisteredModels(RegistryStore):
    """What there is at `uri`, and small changes of it. Versions are whole numbers from 1."""

    # --- models -----------------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return [str(entity.name) for entity in self._search("search_registered_models", None)]

    def models(self) -> list[RegisteredModel]:
        """All, by name. In Unity Catalog a call each."""
        found = [
            self.model(entity.name) if self.is_unity_catalog else self._model(entity)
            for entity in self._search("search_registered_models", None)
        ]
        return sorted(found, key=lambda model: model.name)

    def model(self, name: str) -> RegisteredModel:
        """Raises RegistryError: there is none of this very name."""
        try:
            entity = self.call("get_registered_model", name)
        except RefusedError as refusal:
            if refusal.code in ABSENT:
                raise self._unknown_model(name) from refusal
            raise
        if str(entity.name).casefold() != name.casefold():
            raise self.half_answer(f"no name for {name!r}")
        return self._model(entity)

    def has_model(self, name: str) -> bool:
        """Whether there is one of this very name; the registry's word, not its silence."""
        try:
            self.model(name)
        except RegistryError as error:
            if isinstance(error.__cause__, RefusedError) and error.__cause__.code in ABSENT:
                return False
            raise
        return True

    def resolve_name(self, name: str) -> str:
        """The registered model that `name` means; `-` and `_` are the same.

        Raises:
            RegistryError: none, or one that is not named `catalog.schema.name` in Unity Catalog.
        """
        self.check_name(name)
        if self.is_unity_catalog:  # which may hold thousands
            for each in dict.fromkeys((name, name.replace("-", "_"))):
                try:
                    return str(self.call("get_registered_model", each).name)
                except RefusedError as refusal:
                    if refusal.code not in ABSENT:
                        raise
            raise self._unknown_model(name)
        known = self.names()
        found = find_name(name, known)
        if found is None:
            raise self._unknown_model(name, known)
        return found

    def check_name(self, name: str) -> None:
        if self.is_unity_catalog and name.count(".") != 2:
            raise RegistryError(
                "registered model in Unity Catalog: catalog.schema.name",
                got=repr(name),
                next_step="give the whole name, or set the experiment's model_name",
            )

    def _unknown_model(self, name: str, known: list[str] | None = None) -> RegistryError:
        if self.is_unity_catalog:
            advice = "check its name, and that you may EXECUTE it"
        else:
            advice = nearest(name, self.names() if known is None else known)
        return RegistryError(f"registered model: one of {self.display_uri}", got=repr(name), next_step=advice)

    # --- versions ---------------------------------------------------------------------------------------------------------------

    def versions(self, name: str) -> list[ModelVersion]:
        """All, the oldest first."""
        aliases = self.model(name).aliases
        entities = self._search("search_model_versions", f"name = {name!r}")
        found = [
            self.version(name, int(entity.version)) if self.is_unity_catalog else self._version(entity, aliases) for entity in entities
        ]
        lost = sorted(alias for alias, number in aliases.items() if number not in {each.version for each in found})
        if lost and any(alias in self.model(name).aliases for alias in lost):  # unless it was deleted in between
            raise self.half_answer(f"versions of {name} without the one that is {lost[0]}")
        return sorted(found, key=lambda version: version.version)

    def version(self, name: str, number: int) -> ModelVersion:
        """Raises RegistryError: there is none, and which there are."""
        try:
            entity = self.call("get_model_version", name, str(number))
        except RefusedError as refusal:
            if refusal.code not in ABSENT:
                raise
            there = ", ".join(str(each.version) for each in self.versions(name)) or "none"
            raise RegistryError(f"version of {name}: one that exists", got=number, next_step=f"there are {there}") from refusal
        return self._version(entity, None)

    def by_alias(self, name: str, alias: str) -> ModelVersion | None:
        """None only where the registry says, twice, that the model has no such alias."""
        listed = self.model(name).aliases
        if not self.has_aliases:
            return self.version(name, listed[alias]) if alias in listed else None
        try:
            entity = self.call("get_model_version_by_alias", name, alias)
        except RefusedError as refusal:
            if refusal.code not in NO_SUCH_ALIAS:
                raise
            if alias in listed and alias in self.model(name).aliases:
                raise self.half_answer(f"no version for the alias {alias!r} of {name}, which exists,") from refusal
            return None
        version = self._version(entity, None)
        return version if alias in version.aliases else self.version(name, version.version)

    def find(self, reference: ModelReference, default_alias: str = CHAMPION) -> ModelVersion:
        """The version that is meant.

        Raises:
            RegistryError: no such model, version or alias, with those that exist.
        """
        name = self.resolve_name(reference.name)
        if reference.version is not None:
            return self.version(name, reference.version)
        alias = reference.alias or default_alias
        version = self.by_alias(name, alias)
        if version is None:
            there = ", ".join(f"{each} (version {number})" for each, number in sorted(self.model(name).aliases.items())) or "none"
            raise RegistryError(f"alias of {name}: one that is set", got=repr(alias), next_step=f"set are: {there}")
        return version

    def delete_version(self, name: str, number: int) -> None:
        """Raises RegistryError: it has an alias."""
        aliases = self.version(name, number).aliases
        if aliases:
            raise RegistryError(
                f"version {number} of {name}: without an alias, to be deleted",
                got=", ".join(aliases),
                next_step="promote or roll back to another first",
            )
        self.remove(name, number)

    def remove(self, name: str, number: int) -> None:
        """Delete a version, whatever points there; no error where there is none."""
        try:
            self.call("delete_model_version", name, str(number))
        except RefusedError as refusal:
            if refusal.code not in ABSENT:
                raise

    # --- aliases, tags, stages --------------------------------------------------------------------------------------------------

    def set_alias(self, name: str, alias: str, number: int) -> None:
        if not self.has_aliases:
            self.set_tag(name, ALIAS_TAG + alias, str(number))
        else:
            self.call("set_registered_model_alias", name, alias, str(number))

    def delete_alias(self, name: str, alias: str) -> None:
        """No error where there is none."""
        if not self.has_aliases:
            self.delete_tag(name, ALIAS_TAG + alias)
            return
        try:
            self.call("delete_registered_model_alias", name, alias)
        except RefusedError as refusal:
            if refusal.code not in ABSENT or alias in self.model(name).aliases:
                raise

    def set_tag(self, name: str, key: str, value: str, version: int | None = None) -> None:
        """Of the model, or of a version. A value of any length: see `core.registry_tags`. A model's tag is written once."""
        written = self.rules.encode(key, value)
        for stored_key, stored in written.items():
            if version is None:
                self.call("set_registered_model_tag", name, _entities.RegisteredModelTag(stored_key, stored))
            else:
                self.call("set_model_version_tag", name, str(version), _entities.ModelVersionTag(stored_key, stored))
        if version is not None:
            for part in self._parts(name, key, version):
                if part not in written:
                    self._delete_stored(name, part, version)

    def delete_tag(self, name: str, key: str, version: int | None = None) -> None:
        """No error where there is none."""
        self._delete_stored(name, self.rules.key(key), version)
        for part in self._parts(name, key, version):
            self._delete_stored(name, part, version)

    def drop_orphans(self, name: str, prefix: str) -> None:
        """Remove what is left of long tags of the model. For the only one who may write tags that begin with `prefix`."""
        for stored_key in self.rules.orphans(prefix, self.call("get_registered_model", name).tags):
            self._delete_stored(name, stored_key, None)

    def _parts(self, name: str, key: str, version: int | None) -> list[str]:
        get = ("get_registered_model", name) if version is None else ("get_model_version", name, str(version))
        return self.rules.parts(key, self.call(*get).tags)

    def _delete_stored(self, name: str, stored_key: str, version: int | None) -> None:
        try:
            if version is None:
                self.call("delete_registered_model_tag", name, stored_key)
            else:
                self.call("delete_model_version_tag", name, str(version), stored_key)
        except RefusedError as refusal:
            if refusal.code not in ABSENT:
                raise

    def check_stages(self) -> None:
        """Raises RegistryError: this registry has no stages."""
        if self.is_unity_catalog:
            raise RegistryError(
                "--stages: a registry with stages", got="Unity Catalog", next_step="leave --stages out; aliases say the same"
            )

    def set_stage(self, name: str, number: int, stage: str, *, archive_others: bool = False) -> None:
        """Legacy. `archive_others`: versions that are in `stage` now."""
        self.check_stages()
        self.call("transition_model_version_stage", name, str(number), stage, archive_others)

    # --- the models themselves --------------------------------------------------------------------------------------------------

    def download(self, version: ModelVersion, folder: Path) -> Path:
        """The whole MLflow model, in `folder`, which is made.

        Raises:
            RegistryError: it is gone, or cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(self._artifacts(version, lambda repository: repository.download_artifacts("", str(folder))))
        if not (path / MODEL_FILE).is_file():
            raise self._gone(version, f"no {MODEL_FILE} there")
        return path

    def check_artifacts(self, version: ModelVersion) -> None:
        """Raises RegistryError: they are gone, those of the portable model too, where it has one; or cannot be listed."""
        if problem := self._artifacts(version, look).problem(version.tags):
            raise self._gone(version, problem)

    def has_run(self, version: ModelVersion) -> bool:
        """Whether the run that it comes from is there to be looked at, and not deleted."""
        if not version.run_id:
            return False
        try:
            return bool(self.call_tracking("get_run", version.run_id).info.lifecycle_stage == "active")
        except (RefusedError, TrackingError):
            return False

    def _artifacts(self, version: ModelVersion, use: Callable[[Any], Any]) -> Any:
        try:
            return use(self._repository(version))
        except (MlflowException, OSError) as error:
            raise self._gone(version, brief(error)) from error

    def _repository(self, version: ModelVersion) -> Any:
        if self.is_unity_catalog:
            from mlflow.store.artifact.unity_catalog_models_artifact_repo import UnityCatalogModelsArtifactRepository

            repository: Any = UnityCatalogModelsArtifactRepository
        elif self.is_workspace:
            from mlflow.store.artifact.databricks_models_artifact_repo import DatabricksModelsArtifactRepository

            repository = DatabricksModelsArtifactRepository
        else:
            # Asked first: MLflow tries an artifact server that is away for minutes.
            uri = self.call("get_model_version_download_uri", version.name, str(version.version))
            return get_artifact_repository(uri, tracking_uri=self.tracking_uri)
        return repository(version.uri, tracking_uri=self.tracking_uri, registry_uri=self.uri)

    def _gone(self, version: ModelVersion, reason: str) -> RegistryError:
        aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
        return RegistryError(
            f"the model of {version.name} version {version.version}{aliases}: there, and readable",
            got=f"{without_secrets(version.source)}: {reason}",
            next_step="restore it, or use another version",
        )

    # --- MLflow's entities ------------------------------------------------------------------------------------------------------

    def _search(self, method: str, condition: str | None) -> list[Any]:
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self.call(method, condition, CATALOG_PAGE_SIZE if self.is_unity_catalog else PAGE_SIZE, None, token)
            found += page
            token = page.token or None
            if token is None:
                return found

    def _model(self, entity: Any) -> RegisteredModel:
        tags = self.rules.decode(entity.tags)
        found = entity.aliases
        if not self.has_aliases:
            found = {key.removeprefix(ALIAS_TAG): value for key, value in tags.items() if key.startswith(ALIAS_TAG)}
        aliases = {str(alias): self._whole_number(number, entity.name) for alias, number in found.items()}
        return RegisteredModel(str(entity.name), aliases, tags, entity.description or "", (entity.creation_timestamp or 0) / 1000)

    def _whole_number(self, number: Any, name: str) -> int:
        if not str(number).isdecimal():
            raise self.half_answer(f"version {str(number)!r} of {name}")
        return int(number)

    def _version(self, entity: Any, aliases: Mapping[str, int] | None) -> ModelVersion:
        """`aliases`: of the model, where the entity comes from a search, which leaves them out."""
        if not entity.name:
            raise self.half_answer("a version without a name")
        number = self._whole_number(entity.version, entity.name)
        if aliases is None:
            own = self.model(entity.name).aliases if not self.has_aliases else dict.fromkeys(entity.aliases, number)
        else:
            own = aliases
        return ModelVersion(
            name=str(entity.name),
            version=number,
            run_id=entity.run_id or "",
            source=entity.source or "",
            status=str(entity.status),
            stage="" if self.is_unity_catalog else str(entity.current_stage or ""),
            aliases=tuple(sorted(alias for alias, each in own.items() if each == number)),
            tags=self.rules.decode(entity.tags),
            description=entity.description or "",
            created_unix_s=(entity.creation_timestamp or 0) / 1000,
        )
