"""Moving the champion on MLflow's real stores: in order, on record, one at a time, and whole however it is interrupted."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workplace, workplace
from tests.engines.conftest import MlflowServer, Proxy, Request
from tests.engines.registry_fixtures import Place, database, embedded, place, served
from toolkit import champion_lock
from toolkit.champion import Move, move_champion, recover, roll_back, rollback
from toolkit.core.errors import RegistryError
from toolkit.core.promotion import STALE_S, Contender, ProcessId, audit_records, utc
from toolkit.core.registry import GATES_TAG, METRICS_TAG, PROTOCOL_TAG
from toolkit.core.registry_tags import UNITY_CATALOG
from toolkit.engines import mlflow_registry_store
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.processes import this_process
from toolkit.models import ModelDetails, ModelList, models
from toolkit.settings import Settings

pytestmark = pytest.mark.engine
__all__ = ["database", "embedded", "place", "served", "workplace"]


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
    assert stages() == {1: "None", 2: "Production", 3: "None"}
    model.promote(3, 2, stages=True)
    assert stages() == {1: "None", 2: "Archived", 3: "Production"}
    model.roll_back(stages=True)
    assert stages() == {1: "None", 2: "Production", 3: "Archived"}


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
        (lambda model: model.roll_back(to=1), "rollback --to: another version than the champion, got 1; nothing to do"),
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


def test_rollback_to_a_model_that_is_gone(embedded_model: Model) -> None:
    embedded_model.promote(3, 1)
    source = embedded_model.place.registry().version(embedded_model.place.name, 1).source
    (Path(source) / "MLmodel").unlink()
    with pytest.raises(RegistryError, match=r"version 1 \(previous_champion\): there, and readable"):
        embedded_model.roll_back()
    assert embedded_model.state == {"champion": 3, "previous_champion": 1} and embedded_model.is_clean()


def test_rollback_names_those_it_could_go_to(embedded_model: Model) -> None:
    embedded_model.promote(3, 1)
    with pytest.raises(RegistryError, match="that was champion before, got 2; --to 1; a new one"):
        embedded_model.roll_back(to=2)


# --- one at a time -----------------------------------------------------------------------------------------------------------------


def stranger(**changes: Any) -> Contender:
    """Somebody on another machine."""
    return dataclasses.replace(Contender("0" * 32, "eve", time.time(), ProcessId("far", "elsewhere", 1, "1"), 1), **changes)


def test_while_another_machine_is_at_it(embedded_model: Model) -> None:
    other = stranger()
    registry = embedded_model.place.registry()
    registry.set_tag(embedded_model.place.name, other.tag, other.as_json())
    for call in (lambda: embedded_model.promote(3, 1), embedded_model.roll_back):
        with pytest.raises(RegistryError) as error:
            call()
        assert str(error.value) == (
            f"one promotion or rollback of {embedded_model.place.name} at a time, got another one, by eve on far (pid 1), "
            f"since {utc(other.since_unix_s)}; run it again when that has ended"
        )
    assert embedded_model.state == {"champion": 1, "challenger": 3} and embedded_model.place.left_over() == [other.tag]


def test_one_that_never_chooses_is_not_waited_for_forever(embedded_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champion_lock, "CHOOSING_TIMEOUT_S", 0.3)
    other = stranger(number=None)
    embedded_model.place.registry().set_tag(embedded_model.place.name, other.tag, other.as_json())
    with pytest.raises(RegistryError, match="another one, by eve on far"):
        embedded_model.promote(3, 1)
    assert embedded_model.state == {"champion": 1, "challenger": 3}


@pytest.mark.parametrize(
    "dead",
    [
        stranger(since_unix_s=time.time() - STALE_S - 5),
        stranger(process=dataclasses.replace(this_process(), pid=2**22 + 1)),
        stranger(process=dataclasses.replace(this_process(), started="1"), number=None),
    ],
    ids=["old", "no such process", "another process of this number"],
)
def test_the_dead_are_cleared_away(embedded_model: Model, dead: Contender) -> None:
    embedded_model.place.registry().set_tag(embedded_model.place.name, dead.tag, dead.as_json())
    embedded_model.promote(3, 1)
    assert embedded_model.state == {"champion": 3, "previous_champion": 1} and embedded_model.is_clean()


RACE = """
import sys, time
from pathlib import Path
from toolkit.champion import move_champion
from toolkit.core.errors import RegistryError
from toolkit.engines.mlflow_registry import Registry
uri, name, folder, me = sys.argv[1:]
registry = Registry(uri)
print("ready", flush=True)
for line in sys.stdin:
    round, expected, version = line.split()
    while not Path(folder, round).exists():
        pass
    try:
        move_champion(registry, name, int(version), expected_champion=int(expected), by=me, is_challenger=False)
        print("won", flush=True)
    except RegistryError as error:
        print(error, flush=True)
"""


def race(model: Model, folder: Path, rounds: int, num_processes: int) -> None:
    """In every round each wants another version, judged against the same champion: just one gets it, and the others say why they did not."""
    name = model.place.name
    command = [sys.executable, "-c", RACE, model.place.uri, name, str(folder)]
    racers = [
        subprocess.Popen([*command, f"racer {number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for number in range(num_processes)
    ]
    try:
        assert all(racer.stdout is not None and racer.stdout.readline() == "ready\n" for racer in racers)
        for number in range(rounds):
            champion = model.state["champion"]
            wanted = [version for version in range(1, num_processes + 2) if version != champion]
            for racer, version in zip(racers, wanted, strict=True):
                assert racer.stdin is not None
                racer.stdin.write(f"{number} {champion} {version}\n")
                racer.stdin.flush()
            (folder / str(number)).touch()
            answers = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
            assert answers.count("won") == 1, answers
            winner = wanted[answers.index("won")]
            assert {alias: model.state[alias] for alias in ("champion", "previous_champion")} == {
                "champion": winner,
                "previous_champion": champion,
            }
            lost = f"one promotion or rollback of {name} at a time, got another one, by racer "
            late = f"champion of {name}: the one it was judged against, version {champion}, got version {winner}"
            assert all(answer.startswith((lost, late)) for answer in answers if answer != "won"), answers
            assert model.is_clean()
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert len(model.history()) == 1 + rounds


@pytest.mark.parametrize(("num_processes", "rounds"), [(4, 3), *(pytest.param(num, 10, marks=pytest.mark.repeat) for num in (2, 4))])
def test_promotions_at_once(model: Model, tmp_path: Path, num_processes: int, rounds: int) -> None:
    for _ in range(num_processes - 2):
        model.place.register()
    race(model, tmp_path, rounds=rounds, num_processes=num_processes)


# --- interrupted -------------------------------------------------------------------------------------------------------------------

# One process prepares, and forks for every place at which a move can be killed: importing MLflow takes seconds.
KILL = """
import os, signal, sys
from toolkit.champion import move_champion, roll_back
from toolkit.engines.mlflow_registry import Registry

uri, action, when = sys.argv[1:]

class Mortal(Registry):
    num_calls, last = 0, 0

    def call(self, method, /, *args, **kwargs):
        self.num_calls += 1
        if self.num_calls == self.last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = super().call(method, *args, **kwargs)
        if self.num_calls == self.last and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

registry = Mortal(uri)
for line in sys.stdin:
    name, last = line.split()
    child = os.fork()
    if not child:
        if not registry.is_remote:
            registry._store.engine.dispose(close=False)  # a database connection must not be used on both sides of a fork
        registry.last = int(last)
        if action == "promote":
            move_champion(registry, name, 3, expected_champion=2, by="ada", decision={"gates": [0.5] * 2000})
        else:
            roll_back(registry, name, by="ada")
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def copies_of_model(place: Place, count: int) -> Iterator[str]:
    """Models that share their artifacts: champion 2, previous champion 1, challenger 3."""
    registry = place.registry()
    originals = [place.register() for _ in range(3)]
    for number in range(count):
        name = f"{place.name}_{number}"
        registry.call("create_registered_model", name)
        for original in originals:
            registry.call("create_model_version", name, original.uri, original.run_id)
        for alias, version in (("champion", 2), ("previous_champion", 1), ("challenger", 3)):
            registry.set_alias(name, alias, version)
        yield name


# What is left after one call is what is left before the next, and either store shows it: of the eight, two say all there is to say.
@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("place", "action", "when"),
    [
        ("server", "promote", "before"),
        ("embedded", "rollback", "after"),
        *(
            pytest.param(*case, marks=pytest.mark.repeat)
            for case in [("server", "promote", "after"), ("server", "rollback", "before"), ("server", "rollback", "after"), ("embedded", "promote", "before"),
                         ("embedded", "promote", "after"), ("embedded", "rollback", "before")]
        ),
    ],
    indirect=["place"],
)  # fmt: skip
def test_killed_at_every_call(place: Place, action: str, when: str) -> None:
    """kill -9 before, or after, each call of the registry. What is left is legal for a scorer, and the next run finishes or undoes it."""
    before = {"champion": 2, "previous_champion": 1, "challenger": 3}
    between = {"champion": 2, "previous_champion": 2, "challenger": 3}
    moved = {"champion": 3, "previous_champion": 2} if action == "promote" else {"champion": 1, "previous_champion": 2, "challenger": 3}
    child = subprocess.Popen(
        [sys.executable, "-c", KILL, place.uri, action, when], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdin is not None and child.stdout is not None
    registry, outcomes = place.registry(), []
    try:
        for last, name in enumerate(copies_of_model(place, 100), start=1):
            child.stdin.write(f"{name} {last}\n")
            child.stdin.flush()
            status = int(child.stdout.readline())
            model = Model.__new__(Model)
            model.place = dataclasses.replace(place, name=name)
            if status == 0:
                assert model.state == moved and model.is_clean()
                break
            assert status == signal.SIGKILL
            dead = model.state
            assert dead in (before, between) if dead["champion"] == 2 else moved.items() <= dead.items()

            outcome = [each.outcome for each in recover(registry, name, by="bob")]
            assert outcome in ([], ["undone"], ["finished"])
            assert outcome != ["finished" if dead["champion"] == 2 else "undone"]
            assert not [key for key in model.place.left_over() if key.startswith("toolkit.intent.")]
            has_moved = dead["champion"] != 2
            assert model.state == (moved if has_moved else before)
            assert model.history() == ([(action, 2, moved["champion"])] if has_moved else [])
            outcomes.append(outcome)

            if outcome == []:  # and on it goes, whatever the dead one left of its lock
                roll_back(registry, name, by="bob")
                assert model.state["champion"] == (2 if has_moved else 1)
            assert model.is_clean()
            assert not registry.rules.orphans("toolkit.", registry.call("get_registered_model", name).tags)
        else:
            pytest.fail("never came to its end")
    finally:
        child.kill()
        child.communicate()
    assert [] in outcomes and ["undone"] in outcomes and ["finished"] in outcomes
    assert len(outcomes) > 15


class Breaking(Registry):
    """Does something before, or after, the calls of some method."""

    method = ""
    then: Callable[[], None] = staticmethod(lambda: None)
    is_after = False

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        hit = method == self.method and (method != "set_registered_model_alias" or args[1] == "champion")
        if hit and not self.is_after:
            self.then()
        answer = super().call(method, *args, **kwargs)
        if hit and self.is_after:
            self.then()
        return answer


def breaking(model: Model, method: str, then: Callable[[], None], *, is_after: bool = False) -> Registry:
    registry = Breaking(model.place.uri)
    registry.method, registry.then, registry.is_after = method, then, is_after  # type: ignore[method-assign]
    return registry


def raising(error: BaseException) -> Callable[[], None]:
    def then() -> None:
        raise error

    return then


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("a bug")], ids=["Ctrl-C", "bug"])
def test_interrupted_it_is_put_in_order_at_once(embedded_model: Model, error: BaseException) -> None:
    before = embedded_model.state
    with pytest.raises(type(error)):
        embedded_model.promote(3, 1, registry=breaking(embedded_model, "set_registered_model_alias", raising(error)))
    assert embedded_model.state == before and embedded_model.is_clean() and len(embedded_model.history()) == 1
    with pytest.raises(type(error)):
        embedded_model.promote(3, 1, registry=breaking(embedded_model, "set_registered_model_alias", raising(error), is_after=True))
    assert embedded_model.state == {"champion": 3, "previous_champion": 1} and embedded_model.is_clean()
    assert embedded_model.history()[1:] == [("promote", 1, 3)]


def test_a_refusal_half_way_is_undone(embedded_model: Model) -> None:
    before = embedded_model.state
    refusal = RegistryError("the model registry: EDIT on the registered model")
    with pytest.raises(RegistryError, match="EDIT on the registered model"):
        embedded_model.promote(3, 1, registry=breaking(embedded_model, "set_registered_model_alias", raising(refusal)))
    assert embedded_model.state == before and embedded_model.is_clean()


def test_a_failure_after_the_move_is_finished(embedded_model: Model) -> None:
    """Once: the second attempt gets through, and the promotion is one."""
    errors = [RegistryError("the model registry must answer")]
    registry = breaking(embedded_model, "set_model_version_tag", lambda: raising(errors.pop())() if errors else None)
    move = embedded_model.promote(3, 1, registry=registry)
    assert move.champion == 3 and embedded_model.state == {"champion": 3, "previous_champion": 1} and embedded_model.is_clean()
    assert embedded_model.history()[-1] == ("promote", 1, 3)


def test_a_promotion_that_was_taken_for_dead_stops(embedded_model: Model) -> None:
    """Its place was cleared away while it waited for the registry: it leaves everything to whoever has the place now."""
    place = embedded_model.place

    def clear() -> None:
        for key in place.left_over():
            if key.startswith("toolkit.promotion."):
                place.registry().delete_tag(place.name, key)

    registry = breaking(embedded_model, "set_registered_model_tag", clear, is_after=True)
    with pytest.raises(RegistryError, match="at a time, got another one"):
        embedded_model.promote(3, 1, registry=registry)
    intents: list[str] = []
    original = Registry.set_tag

    class Late(Registry):
        def set_tag(self, name: str, key: str, value: str, version: int | None = None) -> None:
            original(self, name, key, value, version)
            if key.startswith("toolkit.intent."):
                intents.append(key)
                clear()

    with pytest.raises(RegistryError, match="done within 200 s, got cleared away by another process; run it again"):
        embedded_model.promote(3, 1, registry=Late(place.uri))
    assert embedded_model.state["champion"] == 1 and place.left_over() == intents
    assert [each.outcome for each in recover(place.registry(), place.name, by="bob")] == ["undone"]
    assert embedded_model.state == {"champion": 1, "challenger": 3} and embedded_model.is_clean()


def test_a_champion_moved_by_hand_after_an_interruption_stays(embedded_model: Model) -> None:
    place = embedded_model.place
    registry = breaking(embedded_model, "set_registered_model_alias", raising(RegistryError("away")))
    embedded_model.promote(2, 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RegistryError, match="away"):
        patch.setattr("toolkit.champion._settle", raising(RegistryError("away")))
        patch.setattr("toolkit.champion._settled", lambda *_: "")
        embedded_model.promote(3, 2, registry=registry)
    place.registry().set_alias(place.name, "champion", 1)
    assert [each.outcome for each in recover(place.registry(), place.name, by="bob")] == ["abandoned"]
    assert embedded_model.state["champion"] == 1 and embedded_model.is_clean()


def interrupted(model: Model, move: Callable[[Registry], object], *, is_after: bool) -> None:
    """Killed before, or after, the champion moved."""
    registry = breaking(model, "set_registered_model_alias", raising(RegistryError("killed")), is_after=is_after)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RegistryError, match="killed"):
        patch.setattr("toolkit.champion._settled", lambda *_: "")
        move(registry)
    assert len(model.place.left_over()) == 1


def test_rollback_after_an_interrupted_promotion(embedded_model: Model) -> None:
    """One that did not come to moving the champion is undone, and that is the way back; from one that did, it goes back."""
    place = embedded_model.place
    embedded_model.promote(2, 1)
    interrupted(embedded_model, lambda registry: embedded_model.promote(3, 2, registry=registry), is_after=False)
    move = embedded_model.roll_back()
    assert move.record is None and str(move.recovered[0]).startswith("an interrupted promotion of version 3, begun ")
    assert embedded_model.state == {"champion": 2, "previous_champion": 1, "challenger": 3} and embedded_model.is_clean()

    interrupted(embedded_model, lambda registry: embedded_model.promote(3, 2, registry=registry), is_after=True)
    move = embedded_model.roll_back()
    assert [each.outcome for each in move.recovered] == ["finished"] and move.champion == 2
    assert embedded_model.state == {"champion": 2, "previous_champion": 3} and embedded_model.is_clean()

    interrupted(embedded_model, lambda registry: roll_back(registry, place.name, by="bob"), is_after=True)
    assert embedded_model.roll_back().record is None
    assert embedded_model.state == {"champion": 3, "previous_champion": 2}
    assert embedded_model.history()[2:] == [("promote", 2, 3), ("rollback", 3, 2), ("rollback", 2, 3)]

    interrupted(embedded_model, lambda registry: roll_back(registry, place.name, by="bob"), is_after=False)
    assert embedded_model.roll_back().record is not None
    assert embedded_model.state == {"champion": 2, "previous_champion": 3} and embedded_model.is_clean()


def test_promote_after_an_interrupted_promotion(embedded_model: Model) -> None:
    interrupted(embedded_model, lambda registry: embedded_model.promote(3, 1, registry=registry), is_after=False)
    move = embedded_model.promote(3, 1)
    assert [each.outcome for each in move.recovered] == ["undone"] and embedded_model.state == {"champion": 3, "previous_champion": 1}
    interrupted(embedded_model, lambda registry: embedded_model.promote(2, 3, registry=registry), is_after=True)
    with pytest.raises(RegistryError, match=r"version 2 of .*: not champion yet, got champion already"):
        embedded_model.promote(2, 3)
    assert embedded_model.state == {"champion": 2, "previous_champion": 3} and embedded_model.is_clean()
    assert [each[2] for each in embedded_model.history()] == [1, 3, 2]


def test_nothing_to_recover_takes_no_lock(embedded_model: Model) -> None:
    other = stranger()
    registry = embedded_model.place.registry()
    registry.set_tag(embedded_model.place.name, other.tag, other.as_json())
    assert recover(registry, embedded_model.place.name, by="ada") == ()


@pytest.mark.parametrize("loses", ["the request", "the answer"])
def test_every_call_once_unanswered(
    served_model: Model, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], quick: None, loses: str
) -> None:
    """Each is sent again, and nothing is done twice that must not be."""
    proxy = make_proxy(mlflow_server)
    seen: set[bytes] = set()

    def lose(request: Request, forward: Callable[[], tuple[int, bytes]]) -> bool | None:
        key = f"{request.method} {request.path} ".encode() + request.body
        if key in seen:
            return None
        seen.add(key)
        if loses == "the answer":
            forward()
        return False

    proxy.rule = lose
    move = served_model.promote(3, 1, registry=Registry(proxy.uri))
    assert move.champion == 3 and served_model.state == {"champion": 3, "previous_champion": 1} and served_model.is_clean()
    assert served_model.history() == [("promote", None, 1), ("promote", 1, 3)] and len(seen) > 10


def test_a_registry_that_goes_away_for_good_half_way(
    served_model: Model, mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], quick: None
) -> None:
    """At every place: the error says so, no champion is lost, and the next run ends what was begun."""
    outcomes = set()
    for last in range(0, 100, 3):
        proxy = make_proxy(mlflow_server)
        proxy.rule = lambda request, forward: False if len(proxy.requests) > last else None  # noqa: B023
        champion = served_model.state["champion"]
        version = 3 if champion == 1 else 1
        try:
            served_model.promote(version, champion, registry=Registry(proxy.uri))
            assert last > 15
            break
        except RegistryError as error:
            assert str(error).startswith(f"the model registry must answer, got {proxy.uri} (")
        assert served_model.state["champion"] in (champion, version)
        # This process lives on, so that its place is not cleared away before its time: as after its death.
        for key in served_model.place.left_over():
            if key.startswith("toolkit.promotion."):
                served_model.place.registry().delete_tag(served_model.place.name, key)
        outcomes |= {each.outcome for each in recover(served_model.place.registry(), served_model.place.name, by="bob")}
        assert served_model.is_clean()
        served_model.history()
    assert outcomes == {"undone", "finished"}


# --- the verbs ---------------------------------------------------------------------------------------------------------------------


def settings(place: Place) -> Settings:
    return Settings.read({"MLFLOW_TRACKING_URI": place.uri, "TOOLKIT_USER": "ada"})


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


def test_models_tells_of_what_is_interrupted(embedded_model: Model) -> None:
    interrupted(embedded_model, lambda registry: embedded_model.promote(3, 1, registry=registry), is_after=True)
    found = models(embedded_model.place.name, settings=settings(embedded_model.place))
    (told,) = found.as_json()["interrupted"]
    assert told.startswith("promotion of version 3, begun ") and len(embedded_model.place.left_over()) == 1, "looking mends nothing"


@pytest.mark.parametrize(
    ("wrong", "hint"), [("{name}@challenger", "toolkit rollback {name} [--to VERSION]"), ("{name}/2", "toolkit rollback {name} [--to 2]")]
)
def test_rollback_takes_a_name(embedded_model: Model, wrong: str, hint: str) -> None:
    name = embedded_model.place.name
    with pytest.raises(RegistryError) as error:
        rollback(wrong.format(name=name), settings=settings(embedded_model.place))
    assert str(error.value).endswith(hint.format(name=name))


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
