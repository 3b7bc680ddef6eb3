"""Registries with tiny models in them: MLflow's embedded database, and a server over one."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus

from tests.engines.conftest import MlflowServer
from toolkit.champion import Move, move_champion, roll_back
from toolkit.core.promotion import Contender, ProcessId, audit_records
from toolkit.core.registry import ModelVersion
from toolkit.engines import mlflow_registry_store
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_store import MlflowStore
from toolkit.settings import Settings

_numbers = itertools.count(1)
# What a registry looks at.
SPEC_FILE = '{"model_file": "model.bin"}'
SPEC_SHA256 = hashlib.sha256(SPEC_FILE.encode()).hexdigest()


@dataclass
class Place:
    """A tracking server or database with its registry, and a model name of the test's own."""

    uri: str
    folder: Path
    name: str

    def registry(self, kind: type[Registry] = Registry) -> Registry:
        return kind(self.uri)

    def log_model(self, text: str = "") -> tuple[str, str]:
        """A finished run with a logged model of three files. Its id, and `models:/m-…`."""
        text = text or f"model {next(_numbers)}"
        store = MlflowStore(self.uri)
        run_id = store.create_run(store.experiment_id("registry-tests"), text, 1_700_000_000_000, {})
        logged: Any = store.call(
            "create_logged_model", store.experiment_id("registry-tests"), name="model", source_run_id=run_id, tags=[], params=[]
        )
        folder = self.folder / uuid.uuid4().hex
        (folder / "toolkit_model").mkdir(parents=True)
        (folder / "MLmodel").write_text(
            f"artifact_path: {logged.artifact_location}\nflavors: {{}}\nmodel_id: {logged.model_id}\nrun_id: {run_id}\n"
            "utc_time_created: '2026-03-01 12:00:00'\nmlflow_version: 3.8.1\nmodel_uuid: x\n"
        )
        (folder / "toolkit_model" / "model.bin").write_text(text)
        (folder / "toolkit_model" / "spec.json").write_text(SPEC_FILE)
        mlflow.MlflowClient(tracking_uri=self.uri).log_model_artifacts(logged.model_id, str(folder))
        store.call("finalize_logged_model", logged.model_id, LoggedModelStatus.READY)
        store.update_run(run_id, "FINISHED", 1_700_000_001_000)
        return run_id, f"models:/{logged.model_id}"

    def register(self, **tags: str) -> ModelVersion:
        """A new version, and the challenger."""
        run_id, model_uri = self.log_model()
        return self.registry().create_version(self.name, model_uri, run_id=run_id, description="a test's", tags=tags)

    def aliases(self) -> dict[str, int]:
        return dict(self.registry().model(self.name).aliases)

    def left_over(self) -> list[str]:
        """Tags of promotions that are not done."""
        return [key for key in self.registry().model(self.name).tags if re.match(r"toolkit\.(promotion|intent)\.", key)]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's embedded database, made once: that takes seconds."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    Registry(f"sqlite:///{path}", create=True)
    return path


@pytest.fixture(params=["embedded", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)  # an embedded store puts its artifacts there
    if request.param == "embedded":
        uri = f"sqlite:///{request.getfixturevalue('database')}"
    else:
        uri = request.getfixturevalue("mlflow_server").uri
    return Place(uri, tmp_path / "models", f"wine_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def served(mlflow_server: MlflowServer, tmp_path: Path) -> Place:
    return Place(mlflow_server.uri, tmp_path / "models", f"wine_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def embedded(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(f"sqlite:///{database}", tmp_path / "models", f"wine_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def other_place(tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """Another registry, of a database of its own."""

    def make() -> Place:
        uri = f"sqlite:///{tmp_path}/other.db"
        Registry(uri, create=True)
        return Place(uri, tmp_path / "other-models", f"prod_{uuid.uuid4().hex[:8]}")

    yield make


@dataclasses.dataclass
class Model:
    """Three versions, of which 1 is champion, and 3 challenger."""

    place: Place

    def __post_init__(self) -> None:
        for _ in range(3):
            self.place.register()
        self.promote(1, None)
        assert self.state == {"champion": 1, "challenger": 3}

    @property
    def state(self) -> dict[str, int]:
        return self.place.aliases()

    def promote(self, version: int, expected: int | None, **changes: Any) -> Move:
        registry = changes.pop("registry", None) or self.place.registry()
        changes = {"by": "ada", "is_challenger": self.state.get("challenger") == version, **changes}
        return move_champion(registry, self.place.name, version, expected_champion=expected, **changes)

    def roll_back(self, **changes: Any) -> Move:
        return roll_back(self.place.registry(), self.place.name, **{"by": "bob", **changes})

    def history(self) -> list[tuple[str, int | None, int]]:
        """What, from, to; the same at the model and at its versions."""
        registry = self.place.registry()
        records = audit_records(registry.model(self.place.name).tags)
        assert records == audit_records(*(version.tags for version in registry.versions(self.place.name)))
        return [(record.action, record.champion_before, record.version) for record in records]

    def is_clean(self) -> bool:
        return self.place.left_over() == []


@pytest.fixture
def model(place: Place) -> Model:
    return Model(place)


@pytest.fixture
def served_model(served: Place) -> Model:
    return Model(served)


@pytest.fixture
def embedded_model(embedded: Place) -> Model:
    return Model(embedded)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_registry_store, "PAUSES_S", (0.01, 0.01))


def stranger(**changes: Any) -> Contender:
    """Somebody on another machine."""
    return dataclasses.replace(Contender("0" * 32, "eve", time.time(), ProcessId("far", "elsewhere", 1, "1"), 1), **changes)


def settings(place: Place) -> Settings:
    return Settings.read({"MLFLOW_TRACKING_URI": place.uri, "TOOLKIT_USER": "ada"})
