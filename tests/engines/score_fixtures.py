"""What the fault tests do to a scoring: end it at an exact point, hold it there, and count what is on the disk afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tests.commands import Answer, Workplace, wait_until
from tests.engines.promote_fixtures import rows
from tests.engines.score_scenes import CONF, Place, table

# Ends, or holds, the process before or after a call of one of the product's functions: `module:Class.method before|after CALL ACTION`.
DRIVER = """
import functools, importlib, os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
where, when, call, action = os.environ["TOOLKIT_TEST_FAULT"].split()
module, _, path = where.partition(":")
*owners, name = path.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
function, num_calls = getattr(owner, name), 0


def act():
    if action == "kill":
        os.killpg(0, signal.SIGKILL)
    elif action == "kill_python":
        os.kill(os.getpid(), signal.SIGKILL)
    Path("there").touch()
    while not Path("go").exists():
        time.sleep(0.02)


@functools.wraps(function)
def faulty(*arguments, **named):
    global num_calls
    num_calls += 1
    mine = num_calls
    if mine == int(call) and when == "before":
        act()
    found = function(*arguments, **named)
    if mine == int(call) and when == "after":
        act()
    return found


setattr(owner, name, faulty)
from toolkit.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Fault:
    """`at`: `module:name` or `module:Class.method`; `call`: which one of its calls, from 1."""

    at: str
    when: Literal["before", "after"] = "before"
    call: int = 1

    def act(self, action: Literal["kill", "kill_python", "wait"]) -> str:
        return f"{self.at} {self.when} {self.call} {action}"


def mixed(begin: int, end: int) -> pa.Table:
    """As `table`, and every tenth row is bad: infinite `b`."""
    values = rows()["b"].to_numpy()[begin:end].copy()
    values[np.arange(begin, end) % 10 == 3] = np.inf
    return table(begin, end, b=pa.array(values))


def is_bad(key: int) -> bool:
    return key % 10 == 3


@dataclass
class Scenario:
    """A place, and `toolkit score` of it as a command."""

    place: Place
    workplace: Workplace
    options: tuple[str, ...] = ()
    conf: dict[str, str] = field(default_factory=dict)

    def start(self, fault: str | None = None, *options: str) -> subprocess.Popen[str]:
        place, script = self.place, self.workplace.folder / "driver.py"
        script.write_text(DRIVER)
        self.workplace.environ["TOOLKIT_TEST_FAULT"] = fault or Fault("toolkit.cli.app:run", call=99).act("wait")
        conf = {**CONF, "spark.driver.memory": "1g", "spark.ui.enabled": "false", **self.conf}
        more = [word for name, value in conf.items() for word in ("--spark-conf", f"{name}={value}")]
        tables = ["--input", f"{place.source}:{place.input}", "--output", f"{place.target}:{place.output}"]
        command = ["score", place.name, *tables, "--engine", place.engine, "--tracking-uri", place.shop.uri, "--max-bad-share", "0.5"]
        return self.workplace.start(*command, *self.options, *options, *more, "--json", script=script)

    def killed(self, fault: Fault, *options: str, action: Literal["kill", "kill_python"] = "kill") -> None:
        """The run ends where the fault says, and with it (but for `kill_python`) its JVM."""
        process = self.start(fault.act(action), *options)
        answer = self.workplace.finish(process)
        assert answer.code == -signal.SIGKILL, (answer.code, answer.out, answer.err)
        if action == "kill":
            self.workplace.all_gone()

    def killed_when(self, condition: Callable[[], bool], *options: str) -> None:
        """The run and its JVM end as soon as something is seen from outside."""
        process = self.start(None, *options)
        try:
            while not condition():
                assert process.poll() is None, process.communicate()
        finally:
            kill_group(process)
        process.communicate()
        self.workplace.all_gone()

    @contextmanager
    def held(self, fault: Fault, *options: str) -> Iterator[subprocess.Popen[str]]:
        """The run stands where the fault says; `release` lets it go on."""
        process = self.start(fault.act("wait"), *options)
        there = self.workplace.folder / "there"
        try:
            wait_until(lambda: there.exists() or process.poll() is not None, 120)
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            kill_group(process)
            process.communicate()
            self.workplace.all_gone()

    def release(self) -> None:
        (self.workplace.folder / "go").touch()

    def restart(self, **options: Any) -> Any:
        """In this process."""
        return self.place.score(max_bad_share=0.5, **options)

    def here(self, *options: str) -> Answer:
        """As a command, in this process."""
        place = self.place
        tables = ["--input", f"{place.source}:{place.input}", "--output", f"{place.target}:{place.output}"]
        common = ["--engine", place.engine, "--tracking-uri", place.shop.uri, "--max-bad-share", "0.5", "--json"]
        return self.workplace.here("score", place.name, *tables, *common, *options)


def kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def quarantined_keys(place: Place) -> list[int]:
    try:
        found = place.quarantined()
    except Exception:
        if Path(f"{place.output}_quarantine").exists():
            raise
        return []
    return sorted(json.loads(text)["id"] for text in found.raw_row)


def check_exact(scenario: Scenario, keys: range, *, is_done: bool = True) -> None:
    """Every row with a key of `keys` is in one of the two tables, once; the audit has every batch of both once, with its numbers; nothing
    is left to do (`is_done`: run once more to see)."""
    place = scenario.place
    scores, audit = place.scores(), place.audit()
    assert scores.id.tolist() == [key for key in keys if not is_bad(key)]
    place.assert_scored(scores.id.tolist(), scores)
    bad = quarantined_keys(place)
    assert bad == [key for key in keys if is_bad(key)]
    assert audit.batch_id.is_unique
    assert (audit.num_input_rows == audit.num_scored_rows + audit.num_quarantined_rows).all()
    assert audit.num_input_rows.sum() == len(keys)
    counted = {number: count for number, count in zip(audit.batch_id, audit.num_scored_rows, strict=True) if count}
    assert Counter(scores.batch_id) == counted
    if bad:
        found = Counter(place.quarantined().batch_id)
        assert found == {number: count for number, count in zip(audit.batch_id, audit.num_quarantined_rows, strict=True) if count}
    assert scores.groupby("batch_id").agg({"scored_at_utc": "nunique", "model_version": "nunique"}).eq(1).all(axis=None)
    if is_done:
        before = set(place.everything())
        again = scenario.restart()
        assert (again.num_input_rows, dict(again.batches)) == (0, {})
        assert set(place.everything()) == before
