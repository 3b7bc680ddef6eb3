"""Moving the champion on MLflow's real stores: in order and on record, and the commands that show it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workplace, workplace
from tests.engines.registry_fixtures import (
    Model,
    Place,
    database,
    embedded,
    embedded_model,
    model,
    place,
    quick,
    served,
    served_model,
    settings,
)
from toolkit.champion import move_champion, roll_back, rollback
from toolkit.champion_history import lost_champion
from toolkit.core.errors import RegistryError
from toolkit.core.promotion import audit_records
from toolkit.core.registry import GATES_TAG, METRICS_TAG, PROTOCOL_TAG
from toolkit.core.registry_tags import UNITY_CATALOG
from toolkit.engines.mlflow_registry import Registry
from toolkit.models import ModelDetails, ModelList, models

pytestmark = pytest.mark.engine
__all__ = ["database", "embedded", "embedded_model", "model", "place", "quick", "served", "served_model", "workplace"]


# --- in order ----------------------------------------------------------------------------------------------------------------------


def test_the_first_promotion(place: Place) -> None:
    place.register()
    move = move_champion(place.registry(), place.name, 1, expected_champion=None, by="ada", reason="first", decision={"auc": 0.9})
    assert place.aliases() == {"champion": 1} and place.left_over() == []
    assert (move.champion, move.previous_champion, move.recovered) == (1, None, ())
    (record,) = audit_records(place.registry().version(place.name, 1).tags)
    assert record == move.record and record.decision == {"auc": 0.9} and record.by == "ada" and record.reason == "first"
    assert abs(time.time() - time.mktime(time.strptime(record.at, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 60


def test_promoted_again_and_rolled_back_twice(model: Model) -> None:
    model.promote(3, 1)
    assert model.state == {"champion": 3, "previous_champion": 1} and model.is_clean()
    move = model.roll_back(reason="it was worse")
    assert model.state == {"champion": 1, "previous_champion": 3}
    assert move.record is not None and (move.record.by, move.record.reason) == ("bob", "it was worse")
    model.roll_back()
    assert model.state == {"champion": 3, "previous_champion": 1} and model.is_clean()
    assert model.history() == [("promote", None, 1), ("promote", 1, 3), ("rollback", 3, 1), ("rollback", 1, 3)]


def test_a_version_that_is_not_challenger_leaves_the_challenger_where_it_is(model: Model) -> None:
    model.promote(2, 1)
    assert model.state == {"champion": 2, "previous_champion": 1, "challenger": 3}


def test_without_a_champion_there_is_no_previous_one(model: Model) -> None:
    """Whatever the alias said before: it was not what this champion replaced."""
    registry = model.place.registry()
    registry.set_alias(model.place.name, "previous_champion", 2)
    registry.delete_alias(model.place.name, "champion")
    model.promote(3, None)
    assert model.state == {"champion": 3}


def test_rollback_to_a_version_that_was_champion(model: Model) -> None:
    model.promote(2, 1)
    model.promote(3, 2)
    model.roll_back(to=1)
    assert model.state == {"champion": 1, "previous_champion": 3}
    model.roll_back(to=2)
    assert model.state == {"champion": 2, "previous_champion": 1}


def test_a_long_decision_is_kept_whole_and_without_secrets(model: Model) -> None:
    decision = {"gates": [{"gate": f"auc_by_{number}", "observed": 0.1 * number} for number in range(400)], "at": "https://ada:pw@host/x"}
    model.promote(3, 1, decision=decision, reason="see https://ada:pw@host/y?token=abc")
    record = audit_records(model.place.registry().model(model.place.name).tags)[-1]
    assert record.decision == {**decision, "at": "https://***@host/x"} and record.reason == "see https://***@host/y?***"
    assert model.history()[-1] == ("promote", 1, 3)
    stored: Any = model.place.registry().call("get_registered_model", model.place.name)
    assert max(len(value.encode()) for value in stored.tags.values()) <= 5000


def test_stages_follow_the_champion(model: Model) -> None:
    def stages() -> dict[int, str]:
        return {version.version: version.stage for version in model.place.registry().versions(model.place.name)}

    model.promote(2, 1, stages=True)
    assert stages() == {1: "Archived", 2: "Production", 3: "None"}
    model.promote(3, 2, stages=True)
    assert stages() == {1: "Archived", 2: "Archived", 3: "Production"}
    model.roll_back(stages=True)
    assert stages() == {1: "Archived", 2: "Production", 3: "Archived"}


@pytest.mark.parametrize("kind", ["short tags without dots", "no aliases"])
def test_in_a_registry_with_less(embedded: Place, kind: str) -> None:
    """What Unity Catalog, and Databricks' older registry, would be asked to keep."""

    class Less(Registry):
        def __init__(self, uri: str) -> None:
            super().__init__(uri)
            if kind == "no aliases":
                self.has_aliases = False
            else:
                self.rules = dataclasses.replace(UNITY_CATALOG, max_audit_records=2)

    registry = Less(embedded.uri)
    for number in (1, 2, 3):
        run_id, model_uri = embedded.log_model()
        assert registry.create_version(embedded.name, model_uri, run_id=run_id).aliases == ("challenger",)
        move_champion(registry, embedded.name, number, expected_champion=number - 1 or None, by="ada", decision={"why": "x" * 3000})
    roll_back(registry, embedded.name, by="ada")
    model = registry.model(embedded.name)
    assert model.aliases == {"champion": 2, "previous_champion": 3}
    records = audit_records(model.tags, *(version.tags for version in registry.versions(embedded.name)))
    assert [record.number for record in records] == [1, 2, 3, 4] and records[0].decision == {"why": "x" * 3000}
    stored: Any = registry.call("get_registered_model", embedded.name)
    if kind == "no aliases":
        assert stored.aliases == {}
        assert stored.tags["toolkit.alias.champion"] == "2"
    else:
        assert stored.aliases == model.aliases and not any("." in key for key in stored.tags)
        assert [record.number for record in audit_records(model.tags)] == [3, 4] and max(map(len, stored.tags.values())) <= 1000


# --- refused -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.promote(1, 1), "version 1 of {name}: not champion yet, got champion already; nothing to do"),
        (lambda model: model.promote(3, 2), "champion of {name}: the one it was judged against, version 2, got version 1; run toolkit promote again, to judge it against this one"),
        (lambda model: model.promote(3, None), "champion of {name}: the one it was judged against, none, got version 1; run toolkit promote again, to judge it against this one"),
        (lambda model: model.promote(2, 1, is_challenger=True), "challenger of {name}: the one that was judged, version 2, got version 3; run toolkit promote again, to judge that one"),
        (lambda model: model.promote(9, 1), "version of {name}: one that exists, got 9; there are 1, 2, 3"),
        (lambda model: model.roll_back(), "rollback of {name}: a previous champion, got none; name a version that was champion before: there is none"),
        (lambda model: model.roll_back(to=2), "rollback --to: a version of {name} that was champion before, got 2; there is none; a new one goes through toolkit promote"),
        (lambda model: model.roll_back(to=9), "version of {name}: one that exists, got 9; there are 1, 2, 3"),
    ],
)  # fmt: skip
def test_refusals_move_nothing(embedded_model: Model, call: Callable[[Model], object], message: str) -> None:
    before = embedded_model.state
    with pytest.raises(RegistryError) as error:
        call(embedded_model)
    assert str(error.value) == message.format(name=embedded_model.place.name)
    assert embedded_model.state == before and embedded_model.is_clean() and embedded_model.history() == [("promote", None, 1)]


def test_rollback_without_a_champion(embedded: Place) -> None:
    embedded.register()
    with pytest.raises(
        RegistryError, match=f"rollback of {embedded.name}: a champion, got none; make one: toolkit promote {embedded.name}"
    ):
        roll_back(embedded.registry(), embedded.name, by="ada")


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("MLmodel", "no MLmodel there"),
        ("toolkit_model/spec.json", "no toolkit_model/spec.json there"),
        ("toolkit_model/model.bin", "no toolkit_model/model.bin there"),
        ("toolkit_model", "no toolkit_model/spec.json there"),
    ],
)
def test_rollback_to_a_model_that_is_gone(embedded_model: Model, lost: str, reason: str) -> None:
    embedded_model.promote(3, 1)
    source = embedded_model.place.registry().version(embedded_model.place.name, 1).source
    path = Path(source) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RegistryError, match=rf"version 1 \(previous_champion\): there, and readable, got .*: {reason}; restore it"):
        embedded_model.roll_back()
    assert embedded_model.state == {"champion": 3, "previous_champion": 1} and embedded_model.is_clean()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [('{"model_file": "model.bin", "protocol": "honest"}', "is not the one that was registered"), ("[]", "is not the one")],
)
def test_rollback_to_a_model_that_was_changed(embedded_model: Model, spec: str, reason: str) -> None:
    embedded_model.promote(3, 1)
    (Path(embedded_model.place.registry().version(embedded_model.place.name, 1).source) / "toolkit_model" / "spec.json").write_text(spec)
    with pytest.raises(RegistryError, match=reason):
        embedded_model.roll_back()
    assert embedded_model.state == {"champion": 3, "previous_champion": 1} and embedded_model.is_clean()


def test_rollback_to_the_champion_moves_nothing(embedded_model: Model) -> None:
    move = embedded_model.roll_back(to=1)
    assert (move.champion, move.as_json()["moved"], move.rows()) == (1, False, [("moved", "nothing: it is champion")])
    assert embedded_model.state == {"champion": 1, "challenger": 3} and embedded_model.is_clean() and len(embedded_model.history()) == 1


def test_a_champion_that_was_lost_by_hand_is_put_back(embedded_model: Model) -> None:
    embedded_model.promote(2, 1)
    registry, name = embedded_model.place.registry(), embedded_model.place.name
    registry.delete_alias(name, "champion")
    with pytest.raises(RegistryError, match=f"a champion, got none; put one back: toolkit rollback {name} --to 1 or 2"):
        embedded_model.roll_back()
    with pytest.raises(RegistryError, match=f"version 2, .*, got no champion: its alias was .*; toolkit rollback {name} --to 2, then"):
        lost_champion(registry, name)
    embedded_model.roll_back(to=2)
    assert embedded_model.state == {"champion": 2, "previous_champion": 1, "challenger": 3} and embedded_model.is_clean()


def test_a_champion_whose_version_was_deleted(embedded_model: Model) -> None:
    embedded_model.promote(2, 1)
    registry, name = embedded_model.place.registry(), embedded_model.place.name
    registry.remove(name, 2)
    assert embedded_model.state == {"previous_champion": 1, "challenger": 3}
    with pytest.raises(RegistryError, match=f"version 2, .*, got no champion: the version was deleted .*; toolkit rollback {name} --to 1"):
        lost_champion(registry, name)
    embedded_model.roll_back(to=1)
    assert embedded_model.state == {"champion": 1, "challenger": 3} and embedded_model.is_clean()
    registry.remove(name, 1)
    assert lost_champion(registry, name) == 1


def test_rollback_names_those_it_could_go_to(embedded_model: Model) -> None:
    embedded_model.promote(3, 1)
    with pytest.raises(RegistryError, match="that was champion before, got 2; --to 1; a new one"):
        embedded_model.roll_back(to=2)


# --- the verbs ---------------------------------------------------------------------------------------------------------------------


def test_what_models_says(model: Model) -> None:
    place = model.place
    registry = place.registry()
    for key, value in {PROTOCOL_TAG: "honest", METRICS_TAG: '{"test": {"auc": 0.85, "logloss": 0.4}}',
                       GATES_TAG: '[{"gate": "auc_at_least", "status": "passed", "observed": 0.85, "limit": 0.8}]'}.items():  # fmt: skip
        registry.set_tag(place.name, key, value, version=3)
    model.promote(3, 1, reason="better")
    found = models(place.name.replace("_", "-"), settings=settings(place))
    assert isinstance(found, ModelDetails)
    answer = found.as_json()
    assert (answer["model"], answer["champion"], answer["previous_champion"], answer["challenger"]) == (place.name, 3, 1, None)
    assert [version["version"] for version in answer["versions"]] == [3, 2, 1] and answer["interrupted"] == []
    newest = answer["versions"][0]
    assert newest["aliases"] == ["champion"] and newest["protocol"] == "honest" and newest["metrics"]["test"]["auc"] == 0.85
    assert newest["gates"][0]["gate"] == "auc_at_least" and 0 <= newest["age_s"] < 300 and newest["run_id"]
    assert [record["reason"] for record in answer["history"]] == ["", "better"]
    assert found.table()[1][0][4:6] == ("auc 0.85, logloss 0.4 (test)", "1 passed") and "<td>better</td>" in found._repr_html_()
    one = models(f"{place.name}@previous_champion", settings=settings(place))
    assert isinstance(one, ModelDetails) and [version.version for version in one.versions] == [1]
    everything = models(settings=settings(place))
    assert isinstance(everything, ModelList)
    assert (place.name, "3", "", "1") in everything.table()[1]


@pytest.mark.parametrize(
    ("wrong", "hint"), [("{name}@challenger", "toolkit rollback {name} [--to VERSION]"), ("{name}/2", "toolkit rollback {name} [--to 2]")]
)
def test_rollback_takes_a_name(embedded_model: Model, wrong: str, hint: str) -> None:
    name = embedded_model.place.name
    with pytest.raises(RegistryError) as error:
        rollback(wrong.format(name=name), settings=settings(embedded_model.place))
    assert str(error.value).endswith(hint.format(name=name))


def test_rollback_takes_a_whole_number(embedded_model: Model) -> None:
    with pytest.raises(RegistryError, match="rollback to: a version as a whole number, got str '1'; for example to=3"):
        rollback(embedded_model.place.name, to="1", settings=settings(embedded_model.place))  # type: ignore[arg-type]


@pytest.mark.e2e
def test_on_the_command_line(embedded_model: Model, workplace: Workplace) -> None:
    place, name = embedded_model.place, embedded_model.place.name
    embedded_model.promote(3, 1)
    at = ["--tracking-uri", place.uri]
    answer = workplace.here("models", *at)
    assert answer.code == 0 and answer.out.startswith(f"models in {place.uri}\nmodel ") and answer.err == ""
    answer = workplace.here("models", name, *at)
    assert answer.code == 0 and "history\nwhen" in answer.out and "champion" in answer.out
    answer = workplace.here("rollback", name.replace("_", "-"), "--reason", "it was worse", "--json", *at)
    assert answer.code == 0 and answer.json["champion"] == 1 and answer.json["audit"]["reason"] == "it was worse"
    answer = workplace.here("rollback", name, *at)
    assert answer.code == 0 and answer.out.startswith(f"{name}: champion is version 3, previous champion version 1\nby")
    answer = workplace.here("models", name, "--json", *at)
    assert [record["action"] for record in answer.json["history"]] == ["promote", "promote", "rollback", "rollback"]
    for arguments, message in [
        (("rollback", name, "--to", "2"), "error: rollback --to: a version of"),
        (("rollback", "nothing"), "error: registered model: one of"),
        (("models", f"{name}/9"), f"error: version of {name}: one that exists, got 9; there are 1, 2, 3"),
        (("models", "a b"), "error: MODEL: a registered name"),
    ]:
        answer = workplace.here(*arguments, *at)
        assert answer.code == 1 and answer.err.startswith(message) and answer.err.count("\n") == 1 and answer.out == ""
    assert workplace.here("rollback", name, "--to", "0", *at).code == 2
    empty = workplace.here("models")
    assert empty.code == 1 and empty.err.startswith("error: model registry: a database that exists") and workplace.files() == set()
