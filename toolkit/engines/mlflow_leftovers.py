"""What is left over in MLflow: runs whose process is gone, artifacts without a run, old versions. Only what the toolkit has made.

A run of a registered version, and its artifacts, are never touched: all versions are read before anything is offered, and a registry
that does not answer is an error.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow.entities import RunStatus, ViewType

from toolkit.core.errors import TrackingError
from toolkit.core.leftovers import OLD_S, PROCESS_TAG, Leftover, too_young
from toolkit.core.promotion import ProcessId, contenders, intents
from toolkit.core.registry import EXPERIMENT_TAG, ModelVersion
from toolkit.engines.home_leftovers import disk_use, remove_tree
from toolkit.engines.mlflow_registry import PENDING, Registry
from toolkit.engines.mlflow_registry_store import registry_uri_for
from toolkit.engines.mlflow_store import MlflowStore, Refused, Unanswered, database_path
from toolkit.engines.processes import is_alive, machine

PAGE_SIZE = 1000
OURS = "toolkit."
STUDY_ID, STUDY = "toolkit.study_id", "toolkit.study"
RUN_FOLDER, MODEL_FOLDER = re.compile(r"[0-9a-f]{32}"), re.compile(r"m-[0-9a-f]{32}")
NOTE = "ended by toolkit cleanup: RUNNING for more than a day, and no process was at it"


@dataclass(frozen=True)
class _Run:
    run_id: str
    name: str
    status: str
    is_deleted: bool
    start_s: float
    end_s: float
    tags: Mapping[str, str]

    @property
    def is_ours(self) -> bool:
        return any(key.startswith(OURS) for key in self.tags)


class MlflowLeftovers:
    """Looks at one tracking server and its registry.

    Args:
        folder: where the workspace keeps this user's experiments (`/Shared/me`), on Databricks; None: all experiments.

    Raises:
        TrackingError, RegistryError: of every method: no answer, or no permission.
    """

    def __init__(self, tracking_uri: str | None, registry_uri: str | None, folder: str | None = None) -> None:
        self._registry = Registry.open(registry_uri, tracking_uri)
        self._folder = folder
        self.display_uri = self._registry.tracking.display_uri
        self.registry_uri = self._registry.display_uri

    @staticmethod
    def exists(tracking_uri: str | None) -> bool:
        """Whether there is anything: an embedded database is made by the first run, not by looking."""
        database = database_path(registry_uri_for(None, tracking_uri)[1])
        return database is None or database.exists()

    # --- runs -------------------------------------------------------------------------------------------------------------------

    def runs(self, is_study_running: Callable[[str], bool]) -> list[Leftover]:
        """Those that say RUNNING for more than a day; a study's together. Removing sets them KILLED: nothing of them is lost."""
        old_ms = int(1000 * (time.time() - OLD_S))
        condition = f"attributes.status = 'RUNNING' AND attributes.start_time < {old_ms}"
        groups: dict[str, list[_Run]] = {}
        for run in self._runs([each.experiment_id for each in self._experiments(ViewType.ACTIVE_ONLY)], condition, ViewType.ACTIVE_ONLY):
            if run.is_ours:
                groups.setdefault(run.tags.get(STUDY_ID, run.run_id), []).append(run)
        return [self._dead(group, is_study_running) for group in groups.values()]

    def _dead(self, runs: list[_Run], is_study_running: Callable[[str], bool]) -> Leftover:
        first = min(runs, key=lambda run: ("toolkit.trial" in run.tags, run.start_s))
        study = first.tags.get(STUDY)
        last_s = self._last_sign(first) if STUDY_ID in first.tags else max(run.start_s for run in runs)
        age_s = time.time() - last_s
        if study is not None and is_study_running(study):
            kept = "a process is at it"
        elif any(_has_process(run) for run in runs):
            kept = "its process lives"
        elif any(run.run_id in self._registered_runs for run in runs):
            kept = "a registered version is of this run"
        else:
            kept = too_young(age_s)
        num_others = len(runs) - 1
        what = "RUNNING, and no process is at it" + (f"; {num_others} of its trials, too" if num_others else "")
        return Leftover("runs", f"{first.name} ({first.run_id})", what, None, age_s, kept, functools.partial(self._end, runs))

    def _last_sign(self, run: _Run) -> float:
        """When a run of the same study began or ended last."""
        condition = f"tags.`{STUDY_ID}` = '{run.tags[STUDY_ID]}'"
        experiment = str(self._call("get_run", run.run_id).info.experiment_id)
        signs = [run.start_s]
        for order in ("start_time", "end_time"):
            page = self._call(
                "search_runs", [experiment], condition, ViewType.ACTIVE_ONLY, max_results=1, order_by=[f"attributes.{order} DESC"]
            )
            signs += [sign for each in map(_run, page) for sign in (each.start_s, each.end_s)]
        return max(signs)

    def _end(self, runs: Sequence[_Run]) -> None:
        for run in runs:
            if self._call("get_run", run.run_id).info.status != "RUNNING":  # ended since it was looked at
                continue
            self._told(lambda run_id=run.run_id: self._store.log(run_id, {}, [], {"toolkit.note": NOTE}))  # type: ignore[misc]
            self._call("update_run_info", run.run_id, RunStatus.KILLED, int(1000 * time.time()), None)

    # --- artifacts --------------------------------------------------------------------------------------------------------------

    def artifacts(self) -> list[Leftover]:
        """Folders of runs and models that are deleted, where MLflow's store is on this machine."""
        if self._store.is_remote:
            return []
        found: list[Leftover] = []
        for experiment in self._experiments(ViewType.ALL):
            folder = _local_folder(str(experiment.artifact_location))
            if folder is None or not folder.is_dir():
                continue
            runs = {run.run_id: run for run in self._runs([experiment.experiment_id], "", ViewType.ALL)}
            if not any(run.is_ours for run in runs.values()):
                continue
            found += self._run_folders(folder, runs)
            found += self._model_folders(folder / "models", str(experiment.experiment_id), runs)
        return found

    def _run_folders(self, folder: Path, runs: Mapping[str, _Run]) -> Iterator[Leftover]:
        for path in sorted(folder.iterdir()):
            if not RUN_FOLDER.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            run = runs.get(path.name)
            if run is None:
                yield self._artifact(path, "artifacts of a run that MLflow does not know", path.name)
            elif run.is_deleted and run.is_ours:
                yield self._artifact(path, f"artifacts of a deleted run ({run.name})", path.name)

    def _model_folders(self, folder: Path, experiment_id: str, runs: Mapping[str, _Run]) -> Iterator[Leftover]:
        if not folder.is_dir():
            return
        models = {str(model.model_id): model for model in self._logged_models(experiment_id)}
        for path in sorted(folder.iterdir()):
            if not MODEL_FOLDER.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            model = models.get(path.name)
            if model is None:
                yield self._artifact(path, "a model that is deleted, or that MLflow does not know", path.name)
                continue
            run = runs.get(str(model.source_run_id))
            if model.source_run_id and (run is None or run.is_deleted):
                yield self._artifact(path, "a model without a run, which was deleted", str(model.source_run_id), path.name)

    def _artifact(self, path: Path, what: str, run_id: str, model_id: str | None = None) -> Leftover:
        size_bytes, changed = disk_use(path)
        age_s = max(0.0, time.time() - changed)
        is_registered = run_id in self._registered_runs or any(path.name in source for source in self._registered_sources)
        kept = "a registered version is made of it" if is_registered else too_young(age_s)

        def remove() -> None:
            if model_id is not None:
                self._call("delete_logged_model", model_id)
            remove_tree(path)

        return Leftover("artifacts", str(path), what, size_bytes, age_s, kept, remove)

    def _logged_models(self, experiment_id: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._call("search_logged_models", [experiment_id], max_results=100, page_token=token)
            yield from page
            token = page.token or None
            if token is None:
                return

    # --- versions ---------------------------------------------------------------------------------------------------------------

    def versions(self, keep: int, alone: Callable[[Registry, str], Any]) -> list[Leftover]:
        """Of each model that the toolkit has made, the versions without an alias, but for the newest `keep` of them.

        `alone(registry, model)` is a block in which nobody promotes the model.
        """
        found = []
        for name, versions in self._versions.items():
            ours = [each for each in versions if EXPERIMENT_TAG in each.tags and not each.aliases and each.status != PENDING]
            old = sorted(ours, key=lambda each: -each.version)[keep:]
            if not old:
                continue
            tags = self._registry.model(name).tags
            busy = "a promotion is under way, or was interrupted" if contenders(tags) or intents(tags) else ""
            for version in sorted(old, key=lambda each: each.version):
                age_s = max(0.0, time.time() - version.created_unix_s)
                what = f"no alias, and {keep} newer ones without" if keep else "no alias"
                remove = functools.partial(self._delete_version, version, alone)
                found.append(Leftover("versions", f"{name}/{version.version}", what, None, age_s, busy, remove))
        return found

    def _delete_version(self, version: ModelVersion, alone: Callable[[Registry, str], Any]) -> None:
        with alone(self._registry, version.name):
            self._registry.delete_version(version.name, version.version)

    @functools.cached_property
    def _versions(self) -> dict[str, list[ModelVersion]]:
        return {name: self._registry.versions(name) for name in self._registry.names()}

    @functools.cached_property
    def _registered_runs(self) -> frozenset[str]:
        return frozenset(version.run_id for versions in self._versions.values() for version in versions)

    @functools.cached_property
    def _registered_sources(self) -> frozenset[str]:
        return frozenset(version.source for versions in self._versions.values() for version in versions)

    # --- the tracking store -----------------------------------------------------------------------------------------------------

    @property
    def _store(self) -> MlflowStore:
        return self._registry.tracking

    def _experiments(self, view: Any) -> Iterator[Any]:
        condition = f"name LIKE '{self._folder}/%'" if self._folder else None
        token: str | None = None
        while True:
            page = self._call("search_experiments", view, PAGE_SIZE, condition, None, token)
            yield from page
            token = page.token or None
            if token is None:
                return

    def _runs(self, experiment_ids: Sequence[str], condition: str, view: Any) -> Iterator[_Run]:
        for start in range(0, len(experiment_ids), 100):
            token: str | None = None
            while True:
                some = list(experiment_ids[start : start + 100])
                page = self._call("search_runs", some, condition, view, max_results=PAGE_SIZE, order_by=[], page_token=token)
                yield from map(_run, page)
                token = page.token or None
                if token is None:
                    break

    def _call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        return self._told(lambda: self._store.call(method, *args, **kwargs))

    def _told(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Unanswered as error:
            raise TrackingError(
                "MLflow's tracking server must answer",
                got=f"{self.display_uri} ({error})",
                next_step="start it, or correct --tracking-uri or MLFLOW_TRACKING_URI",
            ) from error
        except Refused as error:
            raise TrackingError(
                "MLflow's tracking server refuses", got=f"{self.display_uri}: {error}", next_step="check the URI and your permissions"
            ) from error


def _run(entity: Any) -> _Run:
    info = entity.info
    return _Run(
        str(info.run_id),
        str(info.run_name or ""),
        str(info.status),
        info.lifecycle_stage == "deleted",
        (info.start_time or 0) / 1000,
        (info.end_time or 0) / 1000,
        dict(entity.data.tags),
    )


def _has_process(run: _Run) -> bool:
    """Whether the process that the run names lives on this machine."""
    try:
        process = ProcessId(**json.loads(run.tags.get(PROCESS_TAG, "{}")))
    except (TypeError, ValueError):
        return False
    return process.machine == machine() and is_alive(process)


def _local_folder(location: str) -> Path | None:
    url = urlparse(location)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return Path(location) if not url.scheme and Path(location).is_absolute() else None
