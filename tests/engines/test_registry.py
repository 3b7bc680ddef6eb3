"""The model registry on MLflow's real stores: versions, aliases, tags, artifacts, and what is told when it does not answer as it should."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.engines.conftest import MlflowServer, Proxy, Request, free_port
from tests.engines.registry_fixtures import SPEC_SHA256, Place, database, embedded, other_place, place, served
from toolkit.core.errors import RegistryError
from toolkit.core.registry import GATES_TAG, METRICS_TAG, SPEC_SHA256_TAG, ModelReference, registration_tags
from toolkit.engines import mlflow_registry_store
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_registry_store import registry_uri_for
from toolkit.engines.mlflow_store import MlflowStore

pytestmark = pytest.mark.engine
__all__ = ["database", "embedded", "other_place", "place", "served"]

SPEC = {
    "experiment": "wine-quality", "study": "wine-quality-honest", "protocol": "honest", "model_kind": "xgboost",
    "data": {"sha256": "ab12", "kind": "file"}, "metrics": {"validation": {"auc": 0.87}, "test": {"auc": 0.85}},
}  # fmt: skip


# --- versions ----------------------------------------------------------------------------------------------------------------------


def test_a_version_says_what_it_is(place: Place) -> None:
    run_id, model_uri = place.log_model("the model")
    gates = [{"gate": "auc_at_least", "status": "passed", "observed": 0.85, "limit": 0.8}] * 200
    tags = registration_tags(SPEC) | {GATES_TAG: json.dumps(gates)}
    version = place.registry().create_version(place.name, model_uri, run_id=run_id, description="the first", tags=tags)
    assert (version.name, version.version, version.run_id, version.status) == (place.name, 1, run_id, "READY")
    assert version.aliases == ("challenger",) and version.description == "the first"
    assert version.metrics == SPEC["metrics"] and version.gates == gates
    assert {key: version.tags[key] for key in tags} == tags and version.tags[SPEC_SHA256_TAG] == SPEC_SHA256
    assert abs(version.created_unix_s - time.time()) < 60
    registry = place.registry()
    assert registry.version(place.name, 1) == registry.by_alias(place.name, "challenger") == version
    assert registry.versions(place.name) == [version]

    folder = registry.download(version, place.folder / "down")
    assert (folder / "toolkit_model" / "model.bin").read_text() == "the model"
    registry.check_artifacts(version)


def test_registering_a_run_twice_gives_the_same_version(place: Place) -> None:
    registry = place.registry()
    first, second = place.log_model(), place.log_model()
    assert registry.create_version(place.name, first[1], run_id=first[0]).version == 1
    assert registry.create_version(place.name, second[1], run_id=second[0]).aliases == ("challenger",)
    again = registry.create_version(place.name, first[1], run_id=first[0])
    assert again.version == 1 and again.aliases == () and place.aliases() == {"challenger": 2}
    assert len(registry.versions(place.name)) == 2


def test_what_was_champion_is_no_challenger_when_registered_again(place: Place) -> None:
    registry = place.registry()
    run_id, model_uri = place.log_model()
    registry.create_version(place.name, model_uri, run_id=run_id)
    registry.set_alias(place.name, "champion", 1)
    registry.delete_alias(place.name, "challenger")
    assert registry.create_version(place.name, model_uri, run_id=run_id).aliases == ("champion",)


REGISTER = """
import sys, time
from pathlib import Path
from toolkit.engines.mlflow_registry import Registry
uri, name, go, *models = sys.argv[1:]
registry = Registry(uri)
print("ready", flush=True)
while not Path(go).exists():
    time.sleep(0.002)
run_id, model_uri = models[0].split(",")
print(registry.create_version(name, model_uri, run_id=run_id).version)
"""


def register_at_once(place: Place, models: list[tuple[str, str]], tmp_path: Path) -> list[int]:
    go = tmp_path / "go"
    command = [sys.executable, "-c", REGISTER, place.uri, place.name, str(go)]
    processes = [
        subprocess.Popen([*command, ",".join(model)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for model in models
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n", process.communicate()
    go.touch()
    answers = [process.communicate(timeout=120) for process in processes]
    return [int(out) if out else pytest.fail(err) for out, err in answers]


def test_three_processes_register_the_same_run(place: Place, tmp_path: Path) -> None:
    """In a model that none of them has made."""
    model = place.log_model()
    found = register_at_once(place, [model] * 3, tmp_path)
    assert len(set(found)) == 1
    versions = place.registry().versions(place.name)
    assert [version.version for version in versions] == found[:1] and place.aliases() == {"challenger": found[0]}


def test_three_processes_register_different_runs(place: Place, tmp_path: Path) -> None:
    place.register()
    found = register_at_once(place, [place.log_model() for _ in range(3)], tmp_path)
    assert sorted(found) == [2, 3, 4] and place.aliases() == {"challenger": 4}


def test_a_lost_answer_makes_no_second_version(
    served: Place, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy]
) -> None:
    proxy = make_proxy(mlflow_server)
    run_id, model_uri = served.log_model()

    def lose_answers(request: Request, forward: Callable[[], tuple[int, bytes]]) -> bool | None:
        is_first = request.method == "POST" and proxy.count(request.call) == 1
        if is_first and request.call in ("registered-models/create", "model-versions/create", "registered-models/alias"):
            forward()
            return False
        return None

    proxy.rule = lose_answers
    version = Registry(proxy.uri).create_version(served.name, model_uri, run_id=run_id)
    assert version.version == 1 and version.aliases == ("challenger",)
    assert [each.version for each in served.registry().versions(served.name)] == [1]
    assert proxy.count("model-versions/create") == 1


def test_a_version_with_an_alias_is_not_deleted(place: Place) -> None:
    registry = place.registry()
    for _ in range(2):
        place.register()
    with pytest.raises(RegistryError, match=rf"version 2 of {place.name}: without an alias, to be deleted, got challenger"):
        registry.delete_version(place.name, 2)
    registry.delete_version(place.name, 1)
    assert [version.version for version in registry.versions(place.name)] == [2]


# --- names -------------------------------------------------------------------------------------------------------------------------


def test_what_there_is_not_is_told_with_what_there_is(place: Place) -> None:
    place.register()
    registry, name = place.registry(), place.name
    dashed = name.replace("_", "-")
    assert registry.resolve_name(dashed) == name and registry.find(ModelReference(dashed), "challenger").version == 1
    assert registry.find(ModelReference(dashed, version=1)).version == 1
    for wrong, message in [
        (
            lambda: registry.resolve_name(name + "x"),
            f"registered model: one of {registry.display_uri}, got '{name}x'; did you mean '{name}'?",
        ),
        (lambda: registry.model(name + "x"), f"registered model: one of {registry.display_uri}, got '{name}x'; did you mean '{name}'?"),
        (lambda: registry.version(name, 7), f"version of {name}: one that exists, got 7; there are 1"),
        (lambda: registry.find(ModelReference(name)), f"alias of {name}: one that is set, got 'champion'; set are: challenger (version 1)"),
        (
            lambda: registry.find(ModelReference(name, "prod")),
            f"alias of {name}: one that is set, got 'prod'; set are: challenger (version 1)",
        ),
    ]:
        with pytest.raises(RegistryError) as error:
            wrong()
        assert str(error.value) == message
    assert registry.has_model(name) and not registry.has_model(name + "x")


def test_no_such_alias_is_none_and_no_such_model_is_an_error(place: Place) -> None:
    place.register()
    registry = place.registry()
    assert registry.by_alias(place.name, "champion") is None
    registry.delete_alias(place.name, "champion")
    assert place.aliases() == {"challenger": 1}
    with pytest.raises(RegistryError, match="registered model: one of"):
        registry.by_alias(place.name + "x", "champion")


def test_the_alias_of_a_deleted_version_is_gone(place: Place) -> None:
    place.register()
    place.register()
    registry = place.registry()
    registry.set_alias(place.name, "champion", 1)
    mlflow.MlflowClient(registry_uri=place.uri, tracking_uri=place.uri).delete_model_version(place.name, "1")
    assert registry.by_alias(place.name, "champion") is None


def test_all_models(place: Place) -> None:
    place.register()
    (model,) = [each for each in place.registry().models() if each.name == place.name]
    assert model.aliases == {"challenger": 1} and place.name in place.registry().names()


def test_more_versions_than_a_page(embedded: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.engines import mlflow_registry_models

    for _ in range(3):
        embedded.register()
    monkeypatch.setattr(mlflow_registry_models, "PAGE_SIZE", 1)
    assert [version.version for version in embedded.registry().versions(embedded.name)] == [1, 2, 3]


# --- tags and stages ---------------------------------------------------------------------------------------------------------------


def test_long_tags_leave_nothing_behind(place: Place) -> None:
    place.register()
    registry = place.registry()
    for value in ("a" * 12_000, "b" * 7000, "short"):
        registry.set_tag(place.name, GATES_TAG, value, version=1)
        assert registry.version(place.name, 1).tags[GATES_TAG] == value
    stored: Any = registry.call("get_model_version", place.name, "1")
    assert [key for key in stored.tags if ".part" in key] == []
    registry.set_tag(place.name, "toolkit.note", "c" * 12_000)
    assert registry.model(place.name).tags["toolkit.note"] == "c" * 12_000
    registry.delete_tag(place.name, "toolkit.note")
    registry.delete_tag(place.name, "toolkit.note")
    assert registry.model(place.name).tags == {}


def test_a_metrics_tag_that_cannot_be_read_is_none(place: Place) -> None:
    version = place.register(**{METRICS_TAG: "{auc: 1}"})
    assert version.metrics is None and version.gates == []


def test_stages(place: Place) -> None:
    registry = place.registry()
    for _ in range(2):
        run_id, model_uri = place.log_model()
        registry.create_version(place.name, model_uri, run_id=run_id, stages=True)
    assert [version.stage for version in registry.versions(place.name)] == ["Staging", "Staging"]
    registry.set_stage(place.name, 1, "Production", archive_others=True)
    registry.set_stage(place.name, 2, "Production", archive_others=True)
    assert [version.stage for version in registry.versions(place.name)] == ["Archived", "Production"]


def test_unity_catalog_without_a_workspace() -> None:
    """What can be said before it is asked: its names, and that it has no stages."""
    registry = Registry("databricks-uc")
    with pytest.raises(RegistryError, match="--stages: a registry with stages, got Unity Catalog"):
        registry.create_version("main.ml.wine", "models:/m-1", run_id="1", stages=True)
    for call in (registry.resolve_name, registry.check_name):
        with pytest.raises(RegistryError, match=r"registered model in Unity Catalog: catalog\.schema\.name, got 'wine_quality'"):
            call("wine_quality")


# --- artifacts ---------------------------------------------------------------------------------------------------------------------


def local_folder(place: Place, version: Any, mlflow_server: MlflowServer) -> Path:
    """Where the files of a version really are."""
    if place.uri.startswith("sqlite"):
        return Path(version.source)
    return mlflow_server.folder / "artifacts" / version.source.removeprefix("mlflow-artifacts:/")


@pytest.mark.parametrize("loss", ["all", "one file"])
def test_artifacts_that_are_gone(place: Place, mlflow_server: MlflowServer, loss: str) -> None:
    version = place.register()
    folder = local_folder(place, version, mlflow_server)
    assert (folder / "MLmodel").is_file()
    if loss == "all":
        shutil.rmtree(folder)
    else:
        (folder / "MLmodel").unlink()
    for use in (lambda: place.registry().download(version, place.folder / "down"), lambda: place.registry().check_artifacts(version)):
        with pytest.raises(RegistryError) as error:
            use()
        message = str(error.value)
        assert message.startswith(f"the model of {place.name} version 1 (challenger): there, and readable, got {version.source}: ")
        assert message.endswith("; restore it, or use another version")


# --- copies ------------------------------------------------------------------------------------------------------------------------


def test_a_copy_within_the_registry(place: Place) -> None:
    version = place.register(**{GATES_TAG: "[]", "toolkit.audit.1": "{}", "mine": "x"})
    registry = place.registry()
    for _ in range(2):
        copy = registry.copy_from(place.registry(), version, f"{place.name}_prod", mlflow_experiment="copies")
        assert (copy.version, copy.run_id, copy.aliases) == (1, version.run_id, ("challenger",))
        assert copy.tags == {
            GATES_TAG: "[]", SPEC_SHA256_TAG: SPEC_SHA256, "toolkit.copied_from.registry": registry.display_uri, "toolkit.copied_from.model": place.name,
            "toolkit.copied_from.version": "1", "toolkit.copied_from.run_id": version.run_id,
        }  # fmt: skip
    folder = registry.download(copy, place.folder / "down")
    assert (folder / "toolkit_model" / "model.bin").read_text().startswith("model ")


def test_a_copy_in_another_registry(place: Place, other_place: Callable[[], Place]) -> None:
    version = place.register(**{METRICS_TAG: '{"test": {"auc": 0.9}}'})
    there = other_place()
    for _ in range(2):
        copy = there.registry().copy_from(place.registry(), version, there.name, mlflow_experiment="copies")
        assert copy.version == 1 and copy.aliases == ("challenger",) and copy.description == version.description
        assert copy.metrics == version.metrics and copy.run_id != version.run_id
        assert copy.tags["toolkit.copied_from.run_id"] == version.run_id and copy.tags["toolkit.copied_from.version"] == "1"
    store = MlflowStore(there.uri)
    (run,) = store.find_runs(store.experiment_id("copies"), {})
    assert run.run_id == copy.run_id and run.status == "FINISHED" and run.tags["toolkit.copied_from.model"] == place.name
    here, copied = place.registry().download(version, place.folder / "here"), there.registry().download(copy, place.folder / "there")
    assert (copied / "toolkit_model" / "model.bin").read_bytes() == (here / "toolkit_model" / "model.bin").read_bytes()
    described = mlflow.models.Model.load(str(copied / "MLmodel"))
    assert described.run_id == copy.run_id and f"models:/{described.model_id}" == run.tags["toolkit.model_uri"]


def test_a_copy_that_was_interrupted_goes_on(place: Place, other_place: Callable[[], Place], monkeypatch: pytest.MonkeyPatch) -> None:
    version = place.register()
    there = other_place()
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "download", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            there.registry().copy_from(place.registry(), version, there.name, mlflow_experiment="copies")
    copy = there.registry().copy_from(place.registry(), version, there.name, mlflow_experiment="copies")
    store = MlflowStore(there.uri)
    (run,) = store.find_runs(store.experiment_id("copies"), {})
    assert copy.version == 1 and run.run_id == copy.run_id


# --- a registry that does not answer as it should -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_registry_store, "PAUSES_S", (0.01, 0.01))


FORGED: list[tuple[int, bytes] | bool] = [
    (200, b"{}"), (200, b""), (200, b"<html>sign in</html>"), (200, b'{"registered_model": {"name": "'), (200, b"[]"), (200, b"null"),
    (200, b'{"registered_model": {}, "model_version": {}}'), (200, b'{"model_version": {"version": "x", "name": "y"}}'),
    (200, b'{"model_version": 3, "registered_model": 3}'), (404, b"not here"), (400, b"{}"), (429, b"{}"), (500, b"{}"), (502, b"bad gateway"),
    (503, b'{"error_code": "TEMPORARILY_UNAVAILABLE"}'), (302, b""), (400, b'{"error_code": "INVALID_STATE", "message": "alias champion not found"}'),
    False,
]  # fmt: skip


@pytest.mark.parametrize("forged", FORGED, ids=str)
@pytest.mark.parametrize("call", ["registered-models/get", "registered-models/alias", "both"])
def test_half_an_answer_is_never_no_champion(
    served: Place, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], quick: None, forged: Any, call: str
) -> None:
    served.register()
    served.registry().set_alias(served.name, "champion", 1)
    proxy = make_proxy(mlflow_server)
    proxy.rule = lambda request, forward: forged if request.method == "GET" and (request.call == call or call == "both") else None
    with pytest.raises(RegistryError) as error:
        Registry(proxy.uri).by_alias(served.name, "champion")
    assert "\n" not in str(error.value) and len(proxy.requests) <= 6


def test_a_denied_alias_that_the_model_has_is_half_an_answer(
    served: Place, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], quick: None
) -> None:
    served.register()
    served.registry().set_alias(served.name, "champion", 1)
    proxy = make_proxy(mlflow_server)
    denied = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias champion not found."}'
    proxy.rule = lambda request, forward: (400, denied) if request.call == "registered-models/alias" else None
    with pytest.raises(RegistryError, match="the model registry must answer whole, got no version for the alias 'champion'"):
        Registry(proxy.uri).by_alias(served.name, "champion")


def test_versions_that_lack_one_with_an_alias_are_half_an_answer(
    served: Place, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], quick: None
) -> None:
    served.register()
    proxy = make_proxy(mlflow_server)
    proxy.rule = lambda request, forward: (200, b"{}") if request.call == "model-versions/search" else None
    with pytest.raises(RegistryError, match=rf"must answer whole, got versions of {served.name} without the one that is challenger"):
        Registry(proxy.uri).versions(served.name)


def test_a_registry_that_is_away(quick: None) -> None:
    registry = Registry(f"http://ada:secret@127.0.0.1:{free_port()}")
    with pytest.raises(RegistryError) as error:
        registry.names()
    message = str(error.value)
    assert message.startswith("the model registry must answer, got http://***@127.0.0.1:") and "secret" not in message
    assert message.endswith("start it, or correct --registry-uri or MLFLOW_REGISTRY_URI")


def test_an_answer_at_the_third_attempt_will_do(
    served: Place, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], quick: None
) -> None:
    served.register()
    proxy = make_proxy(mlflow_server)
    proxy.rule = lambda request, forward: (503, b"{}") if len(proxy.requests) < 3 else None
    assert Registry(proxy.uri).model(served.name).aliases == {"challenger": 1}


@pytest.mark.parametrize("status", [401, 403])
def test_a_permission_that_is_missing_is_named(
    served: Place, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], quick: None, status: int
) -> None:
    version = served.register()
    proxy = make_proxy(mlflow_server)
    registry = Registry(proxy.uri)
    proxy.rule = lambda request, forward: (status, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}')
    for call, permission in [
        (lambda: registry.model(served.name), "READ on the registered model"),
        (lambda: registry.set_alias(served.name, "champion", 1), "EDIT on the registered model"),
        (lambda: registry.delete_alias(served.name, "champion"), "MANAGE on the registered model"),
        (lambda: registry.set_tag(served.name, "a", "b"), "EDIT on the registered model"),
        (lambda: registry.remove(served.name, 1), "MANAGE on the registered model"),
    ]:
        before = len(proxy.requests)
        with pytest.raises(
            RegistryError, match=f"the model registry: {permission}, got .*Permission denied.*; ask the model's owner for it"
        ):
            call()
        assert len(proxy.requests) == before + 1, "a refusal is not tried again"
    proxy.rule = lambda request, forward: (status, b"{}") if request.call == "model-versions/create" else None
    run_id, model_uri = served.log_model()
    with pytest.raises(RegistryError, match="the model registry: EDIT on the registered model"):
        registry.create_version(served.name, model_uri, run_id=run_id)
    assert proxy.count("model-versions/create") == 1 and served.registry().versions(served.name) == [version]


def test_permissions_of_unity_catalog() -> None:
    registry = Registry("databricks-uc")
    assert "USE SCHEMA and USE CATALOG" in str(registry.forbidden("get_registered_model", Exception("no")))
    assert "CREATE MODEL on the schema" in str(registry.forbidden("create_registered_model", Exception("no")))
    assert "APPLY TAG on the model" in str(registry.forbidden("set_model_version_tag", Exception("no")))
    assert "ownership of the model" in str(registry.forbidden("set_registered_model_alias", Exception("no")))


# --- where it is -------------------------------------------------------------------------------------------------------------------


def test_looking_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"model registry: a database that exists, got .*none\.db; register a model first"):
        Registry(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database, but long enough to be taken for one " * 20)
    with pytest.raises(RegistryError, match=r"MLflow's database: a file that can be written, got .*notes\.db"):
        Registry(f"sqlite:///{path}")
    assert path.read_text().startswith("not a database")


def test_a_scheme_that_nobody_speaks() -> None:
    with pytest.raises(RegistryError, match=r"model registry: one that MLflow can open, got ftp://\*\*\*@host/x|ftp://ada:\*\*\*@host/x"):
        Registry("ftp://ada:secret@host/x")


@pytest.mark.parametrize(
    ("registry", "tracking", "expected"),
    [
        (None, "http://host", ("http://host", "http://host")),
        ("sqlite:///r.db", "http://host", ("sqlite:///r.db", "http://host")),
        (None, "databricks", ("databricks-uc", "databricks")),
        (None, "databricks://staging", ("databricks-uc://staging", "databricks://staging")),
        ("databricks", "databricks", ("databricks", "databricks")),
    ],
)
def test_which_registry_belongs_to_which_server(registry: str | None, tracking: str, expected: tuple[str, str]) -> None:
    assert registry_uri_for(registry, tracking) == expected


def test_nothing_is_process_wide(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own tracking and registry URIs are of no account, and stay as they were."""
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    version = place.register()
    place.registry().download(version, place.folder / "down")
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before != (place.uri, place.uri)
