"""`toolkit cleanup`: what it lists, what it removes, and what it never touches."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.commands import Workplace, workplace, write_experiment
from tests.engines.conftest import MlflowServer
from toolkit.cleanup import cleanup
from toolkit.core.errors import StudyError
from toolkit.core.leftovers import OLD_S, PROCESS_TAG, Leftover
from toolkit.engines.home_leftovers import is_running, unfinished_studies
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_store import MlflowStore
from toolkit.engines.processes import this_process
from toolkit.engines.study_store import study_folder

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]

TWO_DAYS_S = 2 * OLD_S


def age(*paths: Path, by_s: float = TWO_DAYS_S) -> None:
    """As if nothing of it had changed for so long."""
    then = time.time() - by_s
    for path in paths:
        for each in (*path.rglob("*"), path):
            os.utime(each, (then, then))


@pytest.fixture
def quick(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps without a database of their own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)


def interrupted(workplace: Workplace, name: str, num_trials: int = 4) -> Path:
    """A study that its time limit has ended before its trials were done; the folder."""
    path = write_experiment(workplace.folder, name, num_trials=num_trials, body="time.sleep(0.2)")
    answer = workplace.here("sweep", path, "--cluster", "inprocess", "--timeout-s", "0.5", "--json")
    assert answer.code == 0 and answer.json["num_completed"] < num_trials, answer.err
    return workplace.folder / ".toolkit" / "studies" / f"{name}-honest"


def items(workplace: Workplace, *arguments: str) -> dict[str, dict[str, Any]]:
    answer = workplace.here("cleanup", *arguments, "--json")
    assert answer.code == 0, answer.err
    return {item["name"]: item for item in answer.json["items"]}


# ---- TOOLKIT_HOME


def test_nothing_is_left_over_and_nothing_is_made(workplace: Workplace) -> None:
    answer = workplace.here("cleanup")
    assert (answer.code, answer.out, answer.err) == (0, "nothing is left over\n", "")
    assert workplace.here("cleanup", "--yes", "--keep", "3", "--json").json["items"] == []
    assert workplace.files() == set()


@pytest.mark.usefixtures("quick")
def test_unfinished_studies(workplace: Workplace) -> None:
    old, young = interrupted(workplace, "old"), interrupted(workplace, "young")
    finished = write_experiment(workplace.folder, "finished", num_trials=1)
    assert workplace.here("sweep", finished, "--cluster", "inprocess").code == 0
    spool = workplace.folder / ".toolkit" / "spool" / "old-honest.jsonl"
    spool.parent.mkdir(exist_ok=True)
    spool.write_text("{}\n")
    age(old, spool, old.parent / "finished-honest")
    only = ["--only", "studies", "--only", "spool"]
    found = items(workplace, *only)
    assert {name: item["state"] for name, item in found.items()} == {"old-honest": "left_over", "young-honest": "kept"}
    assert "of 4 trials; the same toolkit sweep with --resume would go on" in found["old-honest"]["what"]
    assert found["young-honest"]["reason"] == "changed within the last day"
    files = [path for path in (*old.rglob("*"), spool) if path.is_file()]
    assert found["old-honest"]["size_bytes"] == sum(path.stat().st_size for path in files)
    assert found["old-honest"]["age_s"] == pytest.approx(TWO_DAYS_S, abs=60)

    # Looking changes nothing; a person is told how to go on.
    answer = workplace.here("cleanup", *only)
    assert answer.out.splitlines()[0].startswith("1 left over, ") and answer.out.splitlines()[0].endswith("; --yes removes them")
    assert old.exists() and spool.exists()

    with study_folder(workplace.folder / ".toolkit", "old-honest", True, None):
        assert is_running(workplace.folder / ".toolkit", "old-honest")
        assert items(workplace, *only)["old-honest"]["reason"] == "a process is at it"
        age(old)
    assert workplace.here("cleanup", "--yes", *only).out.splitlines()[0].startswith("1 removed, ")
    assert not old.exists() and not spool.exists() and young.exists()
    assert (old.parent / "finished-honest" / "journal.jsonl").exists()
    assert items(workplace, "--yes", *only).keys() == {"young-honest"}
    # The name is free again.
    assert workplace.here("sweep", "old.py", "--cluster", "inprocess", "--trials", "1").code == 0


@pytest.mark.usefixtures("quick")
def test_a_study_that_another_one_follows_is_kept(workplace: Workplace) -> None:
    folder = interrupted(workplace, "first")
    later = folder.with_name("first-honest-2")
    later.mkdir()
    (later / "journal.jsonl").write_bytes((folder / "journal.jsonl").read_bytes())
    age(folder, later)
    found = items(workplace, "--only", "studies")
    assert found["first-honest"]["reason"] == "first-honest-2 follows it, and would not be found without it"
    assert found["first-honest-2"]["state"] == "left_over"


@pytest.mark.usefixtures("quick")
def test_a_study_that_is_taken_up_meanwhile_is_not_removed(workplace: Workplace) -> None:
    folder = interrupted(workplace, "raced")
    age(folder)
    home = workplace.folder / ".toolkit"
    (item,) = unfinished_studies(home)
    with study_folder(home, "raced-honest", True, None), pytest.raises(StudyError, match="is run by another process"):
        item.remove()
    assert (folder / "journal.jsonl").exists()


def test_orphan_spool_files_and_caches(workplace: Workplace) -> None:
    home = workplace.folder / ".toolkit"
    for path in (home / "spool" / "gone.jsonl", home / "spool" / "fresh.jsonl", home / "cache" / "wine" / "a.csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 2000)
    outside = workplace.folder / "mine"
    outside.mkdir()
    (outside / "precious").touch()
    (home / "cache" / "link").symlink_to(outside)
    age(home / "spool" / "gone.jsonl")
    found = items(workplace)
    assert {name: (item["kind"], item["state"]) for name, item in found.items()} == {
        "gone.jsonl": ("spool", "left_over"),
        "fresh.jsonl": ("spool", "kept"),
        "wine": ("caches", "left_over"),
        "link": ("caches", "left_over"),
    }
    assert found["wine"]["size_bytes"] == 2000
    removed = workplace.here("cleanup", "--yes", "--json").json
    assert (removed["num_removed"], removed["num_failed"]) == (3, 0)
    assert sorted(path.name for path in home.rglob("*") if not path.is_dir()) == ["fresh.jsonl"]
    assert (outside / "precious").exists()
    assert workplace.here("cleanup", "--yes", "--json").json["num_removed"] == 0


# ---- MLflow


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's embedded database, made once: that takes seconds."""
    path = tmp_path_factory.mktemp("cleanup") / "mlflow.db"
    MlflowStore(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(workplace: Workplace, empty_database: Path) -> MlflowStore:
    """The working folder's own embedded database."""
    shutil.copy(empty_database, workplace.folder / "mlflow.db")
    return MlflowStore(f"sqlite:///{workplace.folder}/mlflow.db")


def dead_run(store: MlflowStore, name: str, *, hours: float = 50, **tags: str) -> str:
    start_ms = int(1000 * (time.time() - 3600 * hours))
    return store.create_run(store.experiment_id("mine"), name, start_ms, {key.replace("__", "."): value for key, value in tags.items()})


def status(store: MlflowStore, run_id: str) -> str:
    return str(store.call("get_run", run_id).info.status)


def test_runs_without_a_process_are_ended(workplace: Workplace, store: MlflowStore) -> None:
    study = {"toolkit__study_id": "s1", "toolkit__study": "lost-honest"}
    parent = dead_run(store, "lost", toolkit__role="parent", **study)
    trials = [dead_run(store, f"trial-{number}", toolkit__trial=str(number), **study) for number in range(2)]
    training = dead_run(store, "wine-train", toolkit__role="training")
    young = dead_run(store, "young", hours=3, toolkit__role="training")
    foreign = dead_run(store, "somebody's")
    alive = dead_run(store, "alive", toolkit__role="training", **{PROCESS_TAG.replace(".", "__"): json.dumps(asdict(this_process()))})
    dead = replace(this_process(), started="1")
    gone = dead_run(store, "gone", toolkit__role="training", **{PROCESS_TAG.replace(".", "__"): json.dumps(asdict(dead))})
    # A study of which a trial ended an hour ago is being searched somewhere.
    searched = dead_run(store, "searched", toolkit__role="parent", toolkit__study_id="s2", toolkit__study="searched-honest")
    trial = dead_run(store, "trial-0", hours=40, toolkit__trial="0", toolkit__study_id="s2", toolkit__study="searched-honest")
    store.update_run(trial, "FINISHED", int(1000 * (time.time() - 3600)))
    locked = dead_run(store, "locked", toolkit__role="parent", toolkit__study_id="s3", toolkit__study="locked-honest")

    with study_folder(workplace.folder / ".toolkit", "locked-honest", False, None):
        found = {item["name"].split()[0]: item for item in items(workplace, "--only", "runs").values()}
        assert {name: (item["state"], item["reason"]) for name, item in found.items()} == {
            "lost": ("left_over", ""),
            "wine-train": ("left_over", ""),
            "gone": ("left_over", ""),
            "alive": ("kept", "its process lives"),
            "searched": ("kept", "changed within the last day"),
            "locked": ("kept", "a process is at it"),
        }
        assert found["lost"]["what"] == "RUNNING, and no process is at it; 2 of its trials, too"
        assert workplace.here("cleanup", "--yes", "--only", "runs", "--json").json["num_removed"] == 3
    ended = [parent, *trials, training, gone]
    assert {status(store, run_id) for run_id in ended} == {"KILLED"}
    assert {status(store, run_id) for run_id in (young, foreign, alive, searched, locked)} == {"RUNNING"}
    assert "ended by toolkit cleanup" in store.call("get_run", parent).data.tags["toolkit.note"]


def lifecycle(workplace: Workplace, num_versions: int) -> list[dict[str, Any]]:
    """As many registered sweeps of a table: their answers. MLflow is the embedded database."""
    random = np.random.default_rng(5)
    table = pd.DataFrame({"x": random.normal(size=200), "z": random.normal(size=200)})
    table["y"] = (table.x + random.normal(0, 0.5, 200) > 0).map({True: "yes", False: "no"})
    table.to_csv(workplace.folder / "shop.csv", index=False)
    assert workplace.here("new", "shop", "--data", "shop.csv", "--label", "y").code == 0
    answers = []
    for _ in range(num_versions):
        flags = ["--trials", "1", "--cluster", "inprocess", "--set", "model.num_boost_round=5", "--register", "--json"]
        answer = workplace.here("sweep", "./shop.py", *flags)
        assert answer.code == 0, answer.err
        answers.append(answer.json)
    return answers


def test_orphan_artifacts_and_old_versions(workplace: Workplace, store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    answers = lifecycle(workplace, 4)
    runs = workplace.folder / "mlruns"
    registry = Registry.open(None, store.uri)
    (name,) = registry.names()
    registry.set_alias(name, "champion", 1)
    registry.set_alias(name, "previous_champion", 2)

    # A deleted run of a registered version, a deleted run of none, a folder that MLflow does not know, a deleted model, others' things.
    folders = {path.name: path for path in runs.glob("*/*") if path.name != "models"}
    parents = [answer["parent_run_id"] for answer in answers]
    store.delete_run(parents[0])
    store.delete_run(parents[3])
    registry.delete_alias(name, "challenger")
    registry.remove(name, 4)
    models = sorted(runs.glob("*/models/m-*"), key=lambda path: path.stat().st_mtime)
    assert len(models) == 4
    home = folders[parents[0]].parent
    unknown = home / ("0" * 32)
    (home / "keep").mkdir()
    (unknown / "artifacts").mkdir(parents=True)
    age(runs)
    found = items(workplace, "--only", "artifacts")
    assert {Path(path).name: (item["state"], item["reason"]) for path, item in found.items()} == {
        parents[0]: ("kept", "a registered version is made of it"),
        models[0].name: ("kept", "a registered version is made of it"),
        parents[3]: ("left_over", ""),
        models[3].name: ("left_over", ""),
        "0" * 32: ("left_over", ""),
    }
    assert found[str(models[3])]["size_bytes"] > 1000
    assert workplace.here("cleanup", "--yes", "--only", "artifacts", "--json").json["num_removed"] == 3
    assert not unknown.exists() and not models[3].exists() and not folders[parents[3]].exists()
    assert all(path.exists() for path in (*models[:3], *(folders[run] for run in parents[:3]), home / "keep"))
    assert not [item for item in items(workplace, "--only", "artifacts").values() if item["state"] == "left_over"]

    # Versions 1 and 2 have aliases; 3 has none, and is the newest without.
    assert items(workplace, "--keep", "1", "--only", "versions") == {}
    assert "versions" not in {item["kind"] for item in items(workplace).values()}  # ten stay where nothing else is said
    found = items(workplace, "--keep", "0", "--only", "versions")
    assert {version: (item["state"], item["what"]) for version, item in found.items()} == {f"{name}/3": ("left_over", "no alias")}
    assert workplace.here("cleanup", "--keep", "0", "--yes", "--only", "versions", "--json").json["num_removed"] == 1
    assert [version.version for version in registry.versions(name)] == [1, 2]
    assert registry.model(name).aliases == {"champion": 1, "previous_champion": 2}
    assert items(workplace, "--keep", "0", "--yes", "--only", "versions") == {}


def test_a_version_that_gets_an_alias_meanwhile_stays(workplace: Workplace, store: MlflowStore) -> None:
    registry = Registry.open(None, store.uri)
    for run in ("a", "b"):
        run_id = dead_run(store, run)
        registry.create_version("shop", f"runs:/{run_id}/model", run_id=run_id, tags={"toolkit.experiment": "shop"}, challenger=False)
    listed: list[Leftover] = []

    def promoted_first(registry: Registry, name: str) -> Any:
        from toolkit.champion_lock import alone

        registry.set_alias(name, "champion", 1)
        return alone(registry, name, "a test")

    from toolkit.engines.mlflow_leftovers import MlflowLeftovers

    listed = MlflowLeftovers(store.uri, None).versions(0, promoted_first)
    assert [item.name for item in listed] == ["shop/1", "shop/2"]
    with pytest.raises(ValueError, match="without an alias, to be deleted, got champion"):
        listed[0].remove()
    assert [version.version for version in registry.versions("shop")] == [1, 2]


def test_others_versions_are_left_alone(workplace: Workplace, store: MlflowStore) -> None:
    client = mlflow.MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "/somewhere")
    assert items(workplace, "--keep", "0", "--yes", "--only", "versions") == {}
    assert len(client.search_model_versions("name = 'theirs'")) == 1


# ---- refusals


BAD: list[tuple[list[str], int, str]] = [
    (["--only", "everything"], 2, "'--only': 'everything' is not one of"),
    (["--keep", "-1"], 2, "'--keep'"),
    (["--keep", "some"], 2, "'--keep'"),
    (["now"], 2, "unexpected extra argument"),
    (["--yes", "--tracking-uri", "http://127.0.0.1:9"], 1, "must answer"),
    (["--yes", "--tracking-uri", "gopher://x"], 1, "that MLflow can open"),
    (["--yes", "--registry-uri", "sqlite:///nowhere/registry.db"], 1, "model registry: a database that exists"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_refusals_are_one_line_and_remove_nothing(
    arguments: list[str], code: int, words: str, workplace: Workplace, store: MlflowStore
) -> None:
    cached = workplace.folder / ".toolkit" / "cache" / "wine" / "a.csv"
    cached.parent.mkdir(parents=True)
    cached.touch()
    answer = workplace.here("cleanup", *arguments, "--json")
    assert (answer.code, answer.out, answer.err.count("\n")) == (code, "", 1), answer.err
    assert words in answer.err
    assert cached.exists()


def test_what_cannot_be_removed_is_told_and_exits_1(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel would refuse what is not ours; root, which tests may run as, is refused nothing."""
    home = workplace.folder / ".toolkit"
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "proc").symlink_to("/proc")
    (home / "cache" / "wine").touch()
    real: Callable[..., None] = Path.unlink

    def refuses(path: Path, missing_ok: bool = False) -> None:
        if path.name == "proc":
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    answer = workplace.here("cleanup", "--yes", "--only", "caches")
    assert answer.code == 1
    assert answer.out.splitlines()[0] == "1 removed, 0 B, 1 could not be removed"
    assert "Operation not permitted" in answer.out
    assert cleanup(only=("caches",)).count("left over") == 1
