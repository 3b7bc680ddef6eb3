"""The model registry, whole. New versions are made here: of a run's model, once however often it is asked for, and as copies of others."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.entities import model_registry as entities
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact import artifact_repository_registry

from toolkit.core.errors import RegistryError
from toolkit.core.promotion import AUDIT_PREFIX
from toolkit.core.registry import CHALLENGER, CHAMPION, COPIED_FROM, SPEC_SHA256_TAG, ModelVersion, parse_model
from toolkit.core.registry_tags import OURS
from toolkit.core.secrets import without_secrets
from toolkit.engines.mlflow_registry_files import MODEL_FILE, look
from toolkit.engines.mlflow_registry_models import RegisteredModels
from toolkit.engines.mlflow_registry_store import ABSENT, RefusedError, registry_uri_for
from toolkit.engines.mlflow_store import Refused, Unanswered, brief, context_tags

# MLflow's internals have no types.
_entities: Any = entities
_artifacts: Any = artifact_repository_registry

READY, PENDING, FAILED = "READY", "PENDING_REGISTRATION", "FAILED_REGISTRATION"
WAIT_S = 1.0
MODEL_URI_TAG = "toolkit.model_uri"


class Registry(RegisteredModels):
    @classmethod
    def open(cls, registry_uri: str | None, tracking_uri: str | None, *, create: bool = False) -> Registry:
        """The registry that is named, else the tracking server's own; on Databricks Unity Catalog. `create`: where there is no database."""
        uri, tracking = registry_uri_for(registry_uri, tracking_uri)
        return cls(uri, tracking, create=create)

    def create_version(
        self,
        name: str,
        source: str,
        *,
        run_id: str,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        challenger: bool = True,
        stages: bool = False,
        timeout_s: float = 300.0,
    ) -> ModelVersion:
        """A version for a run's model: the same one for the same run and source, however often and by however many at once.

        That of a logged model with a portable one keeps the digest of its spec, which a promotion believes.

        Args:
            name: of the registered model, made where there is none.
            source: `models:/m-…` (a logged model), `models:/NAME/VERSION` (a copy within this registry), or where its artifacts are.
            challenger: the alias `challenger` moves here, unless a newer version has it or this one was champion already.
            stages: it becomes Staging, too.
            timeout_s: how long a registry that copies the artifacts may take.

        Raises:
            RegistryError: no permission, no answer, or a name that the registry does not take.
        """
        self.check_name(name)
        if stages:
            self.check_stages()
        self._make_model(name)
        model_id = None
        if source.startswith("models:/m-"):
            model_id = source.removeprefix("models:/")
            source = str(self.call_tracking("get_logged_model", model_id).artifact_location)
        twin = self._twin(name, run_id, source)
        if twin is None:
            tags = {**(tags or {})}
            if model_id and f"{COPIED_FROM}.version" not in tags:  # a copy's tag is its original's
                tags |= self._seal(source)
            number = self._make_version(name, source, run_id, description, tags, model_id)
        else:
            number = twin.version
        version = self._when_ready(name, number, timeout_s)
        if challenger and not any(key.startswith(AUDIT_PREFIX) for key in version.tags):
            self._challenge(name, number, stages)
        return self.version(name, number)

    def copy_from(self, source: Registry, version: ModelVersion, name: str, *, mlflow_experiment: str) -> ModelVersion:
        """`source`'s version as one of `name` here, where it becomes challenger; once, however often.

        Within one registry MLflow copies; between two the artifacts go through this machine, into a run and a logged model. The toolkit's
        tags go along, but for audit records, which are about the source; `toolkit.copied_from.…` says where it came from.

        Args:
            mlflow_experiment: of the run, in this registry's tracking server; on Databricks a path.

        Raises:
            RegistryError: as `create_version`; the artifacts are gone, or not taken here. TrackingError: the runs' server.
        """
        kept = {
            key: value for key, value in version.tags.items() if key.startswith(OURS) and not key.startswith((AUDIT_PREFIX, COPIED_FROM))
        }
        origin = {
            f"{COPIED_FROM}.registry": source.display_uri,
            f"{COPIED_FROM}.model": version.name,
            f"{COPIED_FROM}.version": str(version.version),
            f"{COPIED_FROM}.run_id": version.run_id,
        }
        self.check_name(name)
        if source.uri == self.uri:
            run_id, model_uri = version.run_id, version.uri
        else:
            run_id, model_uri = self._import(source, version, mlflow_experiment, origin)
        return self.create_version(name, model_uri, run_id=run_id, description=version.description, tags={**kept, **origin})

    # --- one version ------------------------------------------------------------------------------------------------------------

    def _make_model(self, name: str) -> None:
        try:
            self.call("get_registered_model", name)
            return
        except RefusedError as refusal:
            if refusal.code not in ABSENT:
                raise
        try:
            self.call("create_registered_model", name)
        except RefusedError as refusal:
            if refusal.code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise

    def _make_version(self, name: str, source: str, run_id: str, description: str, tags: Mapping[str, str], model_id: str | None) -> int:
        stored = [_entities.ModelVersionTag(*pair) for key, value in tags.items() for pair in self.rules.encode(key, value).items()]
        # Unity Catalog knows the logged models of Databricks alone.
        known_id = model_id if not self.is_unity_catalog or self.tracking_uri.startswith("databricks") else None
        with self._local_copy(source) as local_path:
            places = {"local_model_path": local_path, "model_id": known_id}
            for is_last in (False, False, True):
                created, silence = 0, None
                try:
                    entity = self.call_once("create_model_version", name, source, run_id, stored, None, description, **places)
                    created = int(entity.version)
                except Unanswered as error:
                    if error.status in (401, 403):
                        raise self.forbidden("create_model_version", error) from error
                    silence = error
                # Another process may have registered the same; of two the older stays. After an answer that was lost, this finds it.
                twin = self._twin(name, run_id, source)
                if twin is not None:
                    if created > twin.version:
                        self.remove(name, created)
                    return twin.version
                if silence is None:
                    raise self.half_answer(f"no version {created} of {name}, which was made,")
                if is_last:
                    raise self.unreachable(silence) from silence
        raise AssertionError("the last round returns or raises")

    def _seal(self, source: str) -> dict[str, str]:
        try:
            sha256 = look(_artifacts.get_artifact_repository(source, tracking_uri=self.tracking_uri)).spec_sha256
        except (MlflowException, OSError) as error:
            rule = "the run's model: there, and readable"
            raise RegistryError(rule, got=f"{without_secrets(source)}: {brief(error)}", next_step="log it again") from error
        return {SPEC_SHA256_TAG: sha256} if sha256 else {}

    def _twin(self, name: str, run_id: str, source: str) -> ModelVersion | None:
        same = [each for each in self.versions(name) if each.run_id == run_id and each.source == source and each.status != FAILED]
        return same[0] if same else None

    @contextmanager
    def _local_copy(self, source: str) -> Iterator[str | None]:
        """For Unity Catalog, which has MLflow upload the files: fetched here, or MLflow would ask the process-wide server for them."""
        if not self.is_unity_catalog:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="toolkit-model-") as folder:
            if source.startswith("models:/"):
                reference = parse_model(source)
                assert reference.version is not None
                self.download(self.version(reference.name, reference.version), Path(folder))
            else:
                try:
                    _artifacts.get_artifact_repository(source, tracking_uri=self.tracking_uri).download_artifacts("", folder)
                except (MlflowException, OSError) as error:
                    rule = "the run's model: there, and readable"
                    raise RegistryError(rule, got=f"{without_secrets(source)}: {brief(error)}", next_step="log it again") from error
            yield folder

    def _when_ready(self, name: str, number: int, timeout_s: float) -> ModelVersion:
        until = time.monotonic() + timeout_s
        while (version := self.version(name, number)).status == PENDING:
            if time.monotonic() > until:
                raise RegistryError(f"{version.uri}: ready within {timeout_s:g} s", got=version.status, next_step="register it again later")
            time.sleep(WAIT_S)
        if version.status != READY:
            raise RegistryError(f"{version.uri}: registered", got=version.status, next_step="register it again")
        return version

    def _challenge(self, name: str, number: int, stages: bool) -> None:
        for _ in range(2):  # once more, for a version that was registered meanwhile and whose alias this has taken
            aliases = self.model(name).aliases
            if aliases.get(CHALLENGER, 0) >= number or aliases.get(CHAMPION) == number:
                return
            self.set_alias(name, CHALLENGER, number)
            if stages:
                self.set_stage(name, number, "Staging")
            originals: dict[tuple[str, str], ModelVersion] = {}
            for each in self.versions(name):
                originals.setdefault((each.run_id, each.source), each)  # a later twin is about to be removed
            newer = [each.version for each in originals.values() if each.version > number and each.status == READY and not each.aliases]
            if not newer:
                return
            number = newer[-1]

    # --- from another registry --------------------------------------------------------------------------------------------------

    def _import(self, source: Registry, version: ModelVersion, mlflow_experiment: str, origin: Mapping[str, str]) -> tuple[str, str]:
        """A finished run with the model; found where an earlier call has made it.

        Returns:
            Its id, and the logged model's URI.
        """
        try:
            experiment_id = self.tracking.experiment_id(mlflow_experiment)
            runs = self.tracking.find_runs(experiment_id, origin)
            now_ms = int(1000 * time.time())
            run_name = f"{version.name} version {version.version}"
            run_id = runs[0].run_id if runs else self.tracking.create_run(experiment_id, run_name, now_ms, {**context_tags(), **origin})
            model_uri = runs[0].tags.get(MODEL_URI_TAG) if runs else None
            if model_uri is None:
                model_uri = self._import_model(source, version, experiment_id, run_id)
                self.tracking.log(run_id, {}, [], {MODEL_URI_TAG: model_uri})
            if not runs or runs[0].status != "FINISHED":
                self.tracking.update_run(run_id, "FINISHED", now_ms)
        except Unanswered as silence:
            raise self.unreachable(silence) from silence
        except Refused as refusal:
            raise RegistryError("the target's tracking server: one that takes a run", got=refusal) from refusal
        return run_id, model_uri

    def _import_model(self, source: Registry, version: ModelVersion, experiment_id: str, run_id: str) -> str:
        with tempfile.TemporaryDirectory(prefix="toolkit-model-") as folder:
            path = source.download(version, Path(folder))
            logged = self.call_tracking("create_logged_model", experiment_id, name="model", source_run_id=run_id, tags=[], params=[])
            model = Model.load(str(path / MODEL_FILE))
            model.run_id, model.model_id, model.artifact_path = run_id, logged.model_id, logged.artifact_location
            model.save(str(path / MODEL_FILE))
            try:
                mlflow.MlflowClient(tracking_uri=self.tracking_uri).log_model_artifacts(logged.model_id, str(path))
            except (MlflowException, OSError) as error:
                raise RegistryError("the target's artifact store: one that takes the model", got=brief(error)) from error
        self.call_tracking("log_outputs", run_id, [LoggedModelOutput(logged.model_id, 0)])
        self.call_tracking("finalize_logged_model", logged.model_id, LoggedModelStatus.READY)
        return f"models:/{logged.model_id}"
