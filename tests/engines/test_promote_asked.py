"""What is refused before a challenger is judged, and what the registry knows that no model says. A real MLflow server on SQLite."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.commands import Workplace, workplace
from tests.engines.conftest import MlflowServer
from tests.engines.promote_fixtures import Case, Logged, Scene, Shop, edit_spec, experiment, holdout, rows, set_up, text_of
from toolkit import Gate
from toolkit.champion import rollback
from toolkit.core import comparison
from toolkit.core.errors import UserError
from toolkit.core.registry import PROTOCOL_TAG, SPEC_SHA256_TAG
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_store import MlflowStore
from toolkit.promote import promote

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    return Shop(mlflow_server, mlflow_server.uri)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """How good the bound is, is tested elsewhere."""
    monkeypatch.setattr(comparison, "NUM_DRAWS", 400)


@pytest.fixture
def home(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setenv("TOOLKIT_HOME", str(workplace.folder / ".toolkit"))
    return workplace


def other_experiment(scene: Scene) -> None:
    path = scene.workplace.folder / "churn.py"
    (scene.workplace.folder / "other.py").write_text(path.read_text().replace("name='churn'", "name='other'"))


OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "a hold-out that is not there": (("--holdout", "nope.csv"), "--holdout: data: no such file, folder or table, got 'nope.csv'"),
    "a hold-out that cannot be read": (("--holdout", "empty.csv"), "--holdout: data: the file is empty"),
    "a report in a file": (("--report", "rows.csv/report.html"), "--report must name a file"),
    "a report in a place that takes none": (("--report", "/proc/report.html"), "--report must name a file that can be written"),
    "another experiment": (("--experiment", "./other.py"), "is of the experiment 'churn', got 'other'; give --experiment"),
    "an override without a reason": (("--override", "auc_at_least"), "--override needs --reason"),
    "an override of no gate": (("--override", "auc", "--reason", "why"), "unknown gate, got 'auc'"),
    "a gate changed": (("--set", "gates[0].at_least=0.1"), "--set: the gates are the experiment's own"),
    "a gate changed in disguise": (("--set", "]gates[0].at_least=0.1"), "an override is PATH=VALUE, got ']gates[0].at_least=0.1'"),
    "all gates changed": (("--set", "gates=[]"), "--set: the gates are the experiment's own"),
}


def test_options_are_looked_at_whatever_there_is_to_judge(shop: Shop, workplace: Workplace) -> None:
    """With a challenger that would pass, and with nothing to judge: exit code 1, one line, and nothing is left of it."""
    scene = set_up(shop, workplace, Case(1, ""), "options")
    other_experiment(scene)
    (workplace.folder / "empty.csv").write_text("")
    for has_challenger in (True, False):
        if not has_challenger:
            assert scene.run().code == 0
        before = shop.aliases(scene.model), shop.registry.versions(scene.model), num_runs(shop), reports(workplace)
        for name, (arguments, message) in OPTIONS.items():
            answer = scene.run(*arguments, experiment=None if "--experiment" in arguments else "./churn.py")
            assert answer.code == 1, (name, answer.err)
            assert message in text_of(answer), name
            assert answer.err.count("error: ") == 1 and "Traceback" not in answer.err
            assert (shop.aliases(scene.model), shop.registry.versions(scene.model), num_runs(shop), reports(workplace)) == before, name


def num_runs(shop: Shop) -> int:
    store = MlflowStore(shop.uri)
    return len(store.find_runs(store.experiment_id("churn"), {"toolkit.role": "promotion"}))


def reports(workplace: Workplace) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (workplace.folder / ".toolkit").rglob("*.html")}


def test_a_home_that_takes_no_report_is_to_blame(shop: Shop, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = set_up(shop, workplace, Case(1, ""), "no_home")
    monkeypatch.setenv("TOOLKIT_HOME", "/proc/toolkit")
    with pytest.raises(UserError, match=r"TOOLKIT_HOME must be writable, got /proc/toolkit/reports/.*: .*; set TOOLKIT_HOME to a folder"):
        promote(scene.model, experiment="./churn.py", tracking_uri=shop.uri)


GATES = (Gate("auc", at_least=0.6), Gate("auc", no_worse_than_champion_by=0.0))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": 3}, "MODEL: a text, got int; for example"),
    "experiment": ({"experiment": Path("churn.py")}, "experiment: an Experiment, or how it is named on the command line, got P.*; for"),
    "overrides": ({"overrides": ["signature"]}, r"overrides: a mapping from gates to reasons, all of them texts, got \['signature'\]; for"),
    "reason": ({"overrides": {"signature": None}}, "overrides: a mapping from .* got {'signature': None}; for example"),
    "holdout": (
        {"holdout": rows()},
        "--holdout: hold-out: a path, a table name, or a function .*, got DataFrame; for example holdout=lambda",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_are_one_line(name: str, shop: Shop, home: Workplace) -> None:
    scene = set_up(shop, home, Case(1, ""), f"types_{name}")
    changes, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        promote(**{"model": scene.model, "experiment": replace(experiment(), gates=GATES), "tracking_uri": shop.uri, **changes})


def test_a_function_as_the_holdout(shop: Shop, home: Workplace) -> None:
    scene = set_up(shop, home, Case(0, "", before=holdout(lambda frame: frame)), "function")
    fresh = pd.read_csv(home.folder / "holdout.csv")
    chosen = replace(experiment(), gates=GATES, dataset=replace(experiment().dataset, load=rows))
    result = promote(scene.model, experiment=chosen, holdout=lambda: fresh, tracking_uri=shop.uri)
    assert result.is_promoted and result.holdout is not None and result.holdout.kind == "function"


# ---- a model that is not what was registered


def change_later(shop: Shop, edit: Callable[[Path], None], model: str = "good") -> tuple[Logged, Callable[[], None]]:
    logged = shop.tampered(lambda folder: None, model)
    return logged, lambda: edit(logged.folder)


@pytest.mark.parametrize("who", ["challenger", "champion"])
def test_a_spec_that_was_changed_after_registration(who: str, shop: Shop, workplace: Workplace) -> None:
    """Every gate would believe it: published becomes honest."""
    logged, change = change_later(shop, edit_spec(protocol="honest"), "published" if who == "challenger" else "weak")
    models: dict[str, Any] = {who: lambda _: logged}
    scene = set_up(shop, workplace, Case(0, "", **models), f"changed_{who}")
    change()
    before = shop.aliases(scene.model)
    answer = scene.run()
    assert f"its spec.json and its tag {SPEC_SHA256_TAG} must agree, got " in text_of(answer)
    assert answer.code == (3 if who == "challenger" else 1), answer.err
    assert ("not promoted: model_loads: " if who == "challenger" else f"toolkit rollback {scene.model}") in text_of(answer)
    assert shop.aliases(scene.model) == before and "Traceback" not in answer.err


def test_a_version_that_says_otherwise_than_its_model(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(3, "", tags={PROTOCOL_TAG: "published"}), "tag")
    answer = scene.run()
    assert answer.code == 3 and f"its tag {PROTOCOL_TAG} must agree, got 'honest' and 'published'" in text_of(answer)
    shop.registry.set_tag(scene.model, PROTOCOL_TAG, "honest", version=2)
    shop.registry.delete_tag(scene.model, SPEC_SHA256_TAG, version=2)
    answer = scene.run()
    assert answer.code == 3 and f"its tag {SPEC_SHA256_TAG} must agree, got" in text_of(answer) and "and no such tag" in text_of(answer)


@pytest.mark.parametrize("spec", ['{"format": 1}', "[]", "{"])
def test_a_champion_that_is_damaged(spec: str, shop: Shop, workplace: Workplace) -> None:
    def damage(folder: Path) -> None:
        next(folder.rglob("spec.json")).write_text(spec)

    scene = set_up(shop, workplace, Case(1, "", champion=lambda shop: shop.tampered(damage, "weak")), f"damaged_{len(spec)}")
    answer = scene.run()
    assert answer.code == 1 and "Traceback" not in answer.err
    assert f"roll back to one that is whole: toolkit rollback {scene.model}" in text_of(answer) and "got spec.json must " in text_of(answer)


# ---- a champion that was lost by hand


def test_a_lost_champion_is_not_no_champion(shop: Shop, home: Workplace) -> None:
    scene = set_up(shop, home, Case(0, "", challenger="good", champion=None), "lost")
    assert scene.run().code == 0
    shop.register(scene.model, shop.model("weak"))
    registry = shop.registry
    registry.delete_alias(scene.model, "champion")
    answer = scene.run()
    assert answer.code == 1, answer.err
    assert f"toolkit rollback {scene.model} --to 1, then promote again" in text_of(answer)
    assert shop.aliases(scene.model) == {"challenger": 2}
    rollback(scene.model, to=1, tracking_uri=shop.uri)
    assert scene.run().code == 3 and shop.aliases(scene.model) == {"challenger": 2, "champion": 1}

    registry.remove(scene.model, 1)
    answer = scene.run()
    assert answer.code == 0, answer.err
    assert "warning: version 1, the last champion, was deleted, and all before it: nothing is left to compare with" in text_of(answer)
    assert shop.aliases(scene.model) == {"champion": 2}


# ---- provenance, stages, another registry


def test_a_run_that_was_deleted_gets_a_notice(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(0, ""), "no_run")
    run_id = shop.model("weak").run_id
    shop.registry.call_tracking("delete_run", run_id)
    try:
        answer = scene.run()
    finally:
        shop.registry.call_tracking("restore_run", run_id)
    assert answer.code == 0, answer.err
    assert "warning: the MLflow run of the champion, version 1, is deleted or out of reach" in text_of(answer)
    assert "run of the challenger" not in answer.err


def test_stages_of_a_champion_that_had_none(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(0, ""), "stages")
    answer = scene.run("--stages")
    assert answer.code == 0, answer.err
    assert [version.stage for version in shop.registry.versions(scene.model)] == ["Archived", "Production"]


def test_into_a_registry_that_is_not_there_yet(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(0, "", champion=None), "new_registry")
    asked = ("--from-registry", shop.uri, "--to-registry")
    answer = scene.run(*asked, f"sqlite:///{workplace.folder}/nowhere/new.db")
    assert answer.code == 1 and "--to-registry: a database in a folder that exists" in text_of(answer)
    assert not (workplace.folder / "nowhere").exists()
    uri = f"sqlite:///{workplace.folder}/new.db"
    answer = scene.run(*asked, uri)
    assert answer.code == 0, answer.err
    target = Registry(uri)
    assert target.model(scene.model).aliases == {"champion": 1}
    source, copy = shop.registry.version(scene.model, 1), target.version(scene.model, 1)
    assert copy.tags[SPEC_SHA256_TAG] == source.tags[SPEC_SHA256_TAG]
    assert json.loads(copy.tags["toolkit.gates"])
