"""Moving the champion on MLflow's real stores, interrupted: killed, refused or unanswered at every call, it ends in a legal state."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.commands import workplace
from tests.engines.conftest import MlflowServer, Proxy, Request
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
    stranger,
)
from toolkit.champion import recover, roll_back
from toolkit.core.errors import RegistryError
from toolkit.engines.mlflow_registry import Registry
from toolkit.models import models

pytestmark = pytest.mark.engine
__all__ = ["database", "embedded", "embedded_model", "model", "place", "quick", "served", "served_model", "workplace"]


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


def test_models_tells_of_what_is_interrupted(embedded_model: Model) -> None:
    interrupted(embedded_model, lambda registry: embedded_model.promote(3, 1, registry=registry), is_after=True)
    found = models(embedded_model.place.name, settings=settings(embedded_model.place))
    (told,) = found.as_json()["interrupted"]
    assert told.startswith("promotion of version 3, begun ") and len(embedded_model.place.left_over()) == 1, "looking mends nothing"
