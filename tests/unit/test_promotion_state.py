"""The rules of a promotion: who may move the champion, who is dead, what becomes of an interrupted one, and what is kept of it."""

import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.core.errors import RegistryError
from toolkit.core.promotion import (
    HOLD_S,
    STALE_S,
    AuditRecord,
    Contender,
    Intent,
    ProcessId,
    audit_records,
    contenders,
    first_before,
    former_champions,
    intents,
    is_stale,
    next_number,
    next_of,
    utc,
    verdict,
    without_secrets_within,
)
from toolkit.core.registry import ModelReference, find_name, parse_model
from toolkit.core.registry_tags import ORDINARY, UNITY_CATALOG, TagRules
from toolkit.engines.processes import is_alive, machine, this_process

HERE = ProcessId("host", "machine", 1, "2")


def contender(name, number=None, since=0.0, process=HERE):
    return Contender(name, "ada", since, process, number)


def record(number=1, version=2, before=1, **changes):
    return AuditRecord(number, "promote", version, before, "2026-03-01T12:00:00Z", "ada", "host", **changes)


# --- the lock ----------------------------------------------------------------------------------------------------------------------


def test_the_lowest_number_wins_and_the_id_breaks_ties():
    a, b, c = contender("a", 2), contender("b", 1), contender("c", 1)
    assert [verdict(each, [a, b, c]) for each in (a, b, c)] == ["lost", "won", "lost"]
    assert first_before(a, [a, b, c]) == b and first_before(b, [a, b, c]) is None


def test_one_that_is_choosing_is_waited_for_unless_it_is_lost_anyway():
    me, choosing, lower = contender("b", 2), contender("c"), contender("a", 1)
    assert verdict(me, [me, choosing]) == "wait"
    assert verdict(me, [me, choosing, lower]) == "lost"


def test_one_whose_tag_was_cleared_away_has_lost():
    me = contender("a", 1)
    assert verdict(me, []) == "lost" and verdict(me, [contender("b")]) == "lost"


def test_a_number_is_higher_than_all_that_are_there():
    assert next_number([]) == 1
    assert next_number([contender("a"), contender("b", 7), contender("c", 3)]) == 8


class Bakery:
    """Contenders over one register each, a step a call, in whatever order: what `champion_lock.alone` does, without a registry."""

    def __init__(self, names):
        self.tags = {}
        self.inside = []
        self.most_inside = 0
        self.entered = set()
        self.steps = {name: self.contend(name) for name in names}

    def contend(self, name):
        me = contender(name)
        self.tags[name] = me
        yield
        number = next_number(list(self.tags.values()))
        yield
        me = dataclasses.replace(me, number=number)
        self.tags[name] = me
        yield
        while (outcome := verdict(me, list(self.tags.values()))) == "wait":
            yield
        if outcome == "won":
            self.inside.append(name)
            self.entered.add(name)
            self.most_inside = max(self.most_inside, len(self.inside))
            yield
            self.inside.remove(name)
        del self.tags[name]

    def run(self, schedule):
        for name in schedule:
            if name in self.steps:
                try:
                    next(self.steps[name])
                except StopIteration:
                    del self.steps[name]
        while self.steps:
            self.run(list(self.steps))


def test_two_contenders_in_every_order():
    """Every interleaving of six steps of each, which is more than an uncontested one has: one inside at a time, and at least one gets in."""
    for places in itertools.combinations(range(12), 6):
        bakery = Bakery("ab")
        bakery.run(["a" if step in places else "b" for step in range(12)])
        assert bakery.most_inside == 1 and bakery.entered and not bakery.tags


@pytest.mark.parametrize("seed", range(5))
def test_four_contenders_in_random_orders(seed):
    shuffled = random.Random(seed)
    for _ in range(2000):
        bakery = Bakery("abcd")
        bakery.run(shuffled.choices("abcd", k=40))
        assert bakery.most_inside == 1 and bakery.entered and not bakery.tags


def test_who_is_dead():
    there = contender("a", 1, since=1000.0)
    assert not is_stale(there, 1000 + STALE_S - 1, "machine", is_alive=True)
    assert is_stale(there, 1001, "machine", is_alive=False)
    assert not is_stale(there, 1001, "another", is_alive=False)
    assert is_stale(there, 1000 + STALE_S + 1, "another", is_alive=True)
    assert not is_stale(there, 0, "another", is_alive=False), "a clock that is behind makes nobody old"
    assert HOLD_S < STALE_S


def test_processes_are_told_apart():
    me = this_process()
    assert me.pid == os.getpid() and me.machine == machine() and is_alive(me)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_alive(dataclasses.replace(me, pid=ended.pid))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says when a process started")
def test_a_pid_that_was_given_again_and_a_zombie_are_dead():
    me = this_process()
    assert not is_alive(dataclasses.replace(me, started="1"))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    of_child = dataclasses.replace(me, pid=child.pid, started=started)
    assert is_alive(of_child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
    assert not is_alive(of_child)
    child.wait()


# --- records -----------------------------------------------------------------------------------------------------------------------


def test_records_survive_their_tags():
    a = contender("a", 3, since=12.5)
    intent = Intent("x", record(reason="better", decision={"gates": 3}), previous_before=None, stages=True)
    audit = record(number=12)
    tags = {a.tag: a.as_json(), intent.tag: intent.as_json(), audit.tag: audit.as_json(), "toolkit.gates": "[]", "other": "{"}
    assert contenders(tags) == [a] and intents(tags) == [intent] and audit_records(tags) == [audit]


@pytest.mark.parametrize("key", ["toolkit.promotion.x", "toolkit.intent.x", "toolkit.audit.1"])
@pytest.mark.parametrize("value", ["", "{}", "[1]", '{"number": 1}', "null"])
def test_a_record_that_cannot_be_read_is_an_error_and_never_none(key, value):
    with pytest.raises(RegistryError, match=f"tag {key}: as the toolkit wrote it"):
        for read in (contenders, intents, audit_records):
            read({key: value})


def test_audit_records_of_model_and_versions_are_one_list():
    first, second, tenth = record(1, 1, None), record(2, 2, 1), record(10, 3, 2)
    model = {each.tag: each.as_json() for each in (tenth, second)}
    assert audit_records(model, {first.tag: first.as_json(), second.tag: second.as_json()}) == [first, second, tenth]
    assert former_champions([first, tenth]) == {1, 2, 3}
    assert former_champions([first]) == {1}


@pytest.mark.parametrize(("champion", "expected"), [(2, "finish"), (1, "undo"), (5, "abandon"), (None, "abandon")])
def test_the_champion_alone_says_how_far_an_intent_came(champion, expected):
    assert next_of(Intent("x", record(version=2, before=1), previous_before=0), champion) == expected


def test_the_first_promotion_is_undone_to_no_champion():
    assert next_of(Intent("x", record(version=2, before=None), previous_before=None), None) == "undo"


def test_utc():
    assert utc(1_772_366_400.9) == "2026-03-01T12:00:00Z"


def test_no_secret_in_what_is_kept():
    found = without_secrets_within({"a": ["at https://ada:pw@host/x", 1], "b": {"c": None}, "d": True})
    assert found == {"a": ["at https://***@host/x", 1], "b": {"c": None}, "d": True}


# --- names -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wine-quality", ModelReference("wine-quality")),
        ("wine_quality@challenger", ModelReference("wine_quality", alias="challenger")),
        ("wine_quality/12", ModelReference("wine_quality", version=12)),
        ("main.ml.wine_quality@champion", ModelReference("main.ml.wine_quality", alias="champion")),
        ("models:/wine_quality/3", ModelReference("wine_quality", version=3)),
        (" wine ", ModelReference("wine")),
    ],
)
def test_a_model_on_the_command_line(text, expected):
    assert parse_model(text) == expected
    assert parse_model(str(expected)) == expected


@pytest.mark.parametrize("text", ["", " ", "/1", "@champion", "wine/", "wine@", "wine/0", "wine/-1", "wine/1.5", "wine/v2", "wine/1/2", "a@b@c",
                                  "wine@champion/2", "wine/2@champion", "http://x", "wine quality", "wine@x y", "wine/²"])  # fmt: skip
def test_what_is_no_model(text):
    with pytest.raises(RegistryError, match="MODEL: a registered name, NAME@ALIAS or NAME/VERSION"):
        parse_model(text)


def test_dash_and_underscore_are_the_same_where_that_is_clear():
    assert find_name("wine-quality", ["wine_quality", "wine"]) == "wine_quality"
    assert find_name("wine_quality", ["wine-quality"]) == "wine-quality"
    assert find_name("a-b", ["a-b", "a_b"]) == "a-b"
    assert find_name("a-b-c", ["a_b-c", "a-b_c"]) is None
    assert find_name("wine", ["wines"]) is None


# --- tags --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [ORDINARY, UNITY_CATALOG, TagRules(max_bytes=40, has_dots=True)])
@pytest.mark.parametrize(
    "value", ["", "short", "x" * 4999, "é" * 4000, json.dumps([{"gate": "auc", "limit": 0.8}] * 500), "toolkit-parts:1"]
)
def test_a_value_of_any_length_comes_back(rules, value):
    stored = rules.encode("toolkit.gates", value)
    assert rules.decode({**stored, "other.tag": "x"}) == {"toolkit.gates": value, "other.tag": "x"}
    assert max(len(text.encode()) for text in stored.values()) <= rules.max_bytes
    assert list(stored)[-1] == rules.key("toolkit.gates"), "whoever dies before the last one has changed nothing"
    assert set(rules.parts("toolkit.gates", stored)) == set(stored) - {rules.key("toolkit.gates")}


def test_keys_in_unity_catalog():
    stored = UNITY_CATALOG.encode("toolkit.copied_from.run_id", "x" * 2500)
    assert not [key for key in stored if set(key) & set(".,-=/:")]
    assert not [text for text in stored.values() if text != text.strip()]
    assert UNITY_CATALOG.decode({"toolkit__copied_from__run_id": "x", "a__b": "y"}) == {"toolkit.copied_from.run_id": "x", "a__b": "y"}


def test_parts_that_are_missing_or_changed_are_an_error():
    stored = ORDINARY.encode("toolkit.gates", "x" * 12_000)
    first = next(iter(stored))
    for broken in ({key: value for key, value in stored.items() if key != first}, {**stored, first: "[y]"}):
        with pytest.raises(RegistryError, match=r"tag toolkit\.gates: all of its parts"):
            ORDINARY.decode(broken)


@pytest.mark.parametrize("rules", [ORDINARY, UNITY_CATALOG])
def test_parts_without_a_head_are_known(rules):
    whole, begun = rules.encode("toolkit.intent.a", "x" * 12_000), rules.encode("toolkit.intent.b", "y" * 12_000)
    *parts, head = begun
    stored = {**whole, **{key: begun[key] for key in parts}}
    assert rules.orphans("toolkit.intent.", stored) == parts
    assert rules.orphans("toolkit.intent.", {**stored, head: begun[head]}) == rules.orphans("toolkit.audit.", stored) == []


def test_an_older_value_is_whole_until_the_last_part_of_the_new_one():
    old, new = (ORDINARY.encode("toolkit.gates", letter * 12_000) for letter in "ab")
    stored = dict(old)
    for key, value in list(new.items())[:-1]:
        stored[key] = value
        assert ORDINARY.decode(stored) == {"toolkit.gates": "a" * 12_000}
