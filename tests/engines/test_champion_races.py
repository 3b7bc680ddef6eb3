"""Moving the champion on MLflow's real stores, several processes at once: one wins, and says so."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import workplace
from tests.engines.registry_fixtures import (
    Model,
    database,
    embedded,
    embedded_model,
    model,
    place,
    quick,
    served,
    served_model,
    stranger,
)
from toolkit import champion_lock
from toolkit.core.errors import RegistryError
from toolkit.core.promotion import STALE_S, Contender, utc
from toolkit.engines.processes import this_process

pytestmark = pytest.mark.engine
__all__ = ["database", "embedded", "embedded_model", "model", "place", "quick", "served", "served_model", "workplace"]


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
