"""The `toolkit` command in a folder of its own, in this process or in another, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli.app import run
from toolkit.core.study import TrialState
from toolkit.engines.mlflow_store import MlflowStore, StoredRun

SCRIPT = Path(sys.executable).with_name("toolkit")


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Workplace:
    """A working folder. Its processes carry a mark in their environment, so that what is left of them can be told from other people's."""

    folder: Path
    capfd: pytest.CaptureFixture[str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    environ: dict[str, str] = field(default_factory=dict)

    def here(self, *arguments: str) -> Answer:
        """In this process: no imports to wait for."""
        self.capfd.readouterr()
        code = run(arguments)
        out, err = self.capfd.readouterr()
        return Answer(code, out, err)

    def start(self, *arguments: str, script: Path = SCRIPT) -> subprocess.Popen[str]:
        """In a process group of its own, as a terminal would."""
        environ = {**os.environ, **self.environ, "TOOLKIT_TEST_MARK": self.mark}
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=self.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 240) -> Answer:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return Answer(process.returncode, out, err)

    def there(self, *arguments: str) -> Answer:
        return self.finish(self.start(*arguments))

    def processes(self) -> list[str]:
        """Command lines of what still lives, Ray's processes among them."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if f"TOOLKIT_TEST_MARK={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return [line for line in found if line]

    def all_gone(self) -> None:
        """A killed driver's processes are ended by the kernel, which takes a moment. Two of Ray's own helpers, which hold no cores and none of
        our code, try for up to a minute to report that to the cluster that is gone, and then end by themselves: they are not waited for."""

        def left() -> list[str]:
            return [line for line in self.processes() if not line.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))]

        wait_until(lambda: not left(), 30, left)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def journal(self, study: str) -> Path:
        return self.folder / ".toolkit" / "studies" / study / "journal.jsonl"

    def wait_for_trials(self, study: str, num: int, process: subprocess.Popen[str]) -> None:
        """Until `num` trials of the study have ended."""

        def enough() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"ended too early: {process.communicate()}")
            path = self.journal(study)
            return path.exists() and sum(count for state, count in states(path).items() if state.is_finished) >= num

        wait_until(enough, 120)


def states(journal: Path) -> Counter[TrialState]:
    """How many trials are in which state, read by Optuna's own backend."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    if not names:
        return Counter()
    trials = storage.get_all_trials(storage.get_study_id_from_name(names[0]))
    return Counter(TrialState(trial.state.name.lower().replace("fail", "failed")) for trial in trials)


def runs_of(tracking_uri: str, experiment: str) -> tuple[StoredRun, dict[int, StoredRun]]:
    """The one parent run, and its nested runs by trial; fails where a trial has two."""
    store = MlflowStore(tracking_uri)
    runs = store.find_runs(store.experiment_id(experiment), {})
    (parent,) = [run for run in runs if run.tags.get("toolkit.role") == "parent"]
    children = [run for run in runs if "toolkit.trial" in run.tags]
    assert len(children) == len(runs) - 1 and {run.tags["mlflow.parentRunId"] for run in children} <= {parent.run_id}
    assert max(Counter(run.tags["toolkit.trial"] for run in children).values(), default=0) <= 1
    return parent, {int(run.tags["toolkit.trial"]): run for run in children}


def wait_until(condition: Callable[[], bool], timeout_s: float, what: Callable[[], object] = lambda: "") -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, what()
        time.sleep(0.02)


@pytest.fixture
def workplace(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Workplace:
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("TOOLKIT_HOME", "TOOLKIT_STATE_URI", "TOOLKIT_DATA_DIR", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return Workplace(folder, capfd)


# An experiment whose trials cost what the test wants: `{name}`, `{num_trials}`, and `{body}`, the middle of its fit.
EXPERIMENT = """
import ctypes, os, time
from pathlib import Path

import numpy as np
import pandas as pd
from toolkit import Asha, Custom, Dataset, Experiment, Float, Int, Metric, Split, Sweep

def load():
    random = np.random.default_rng(0)
    return pd.DataFrame({{"a": random.random(80), "b": random.random(80), "y": np.arange(80) % 2}})

def fit(params, train, validation, report):
    for step in range(1, 4):
        {body}
        report(step, {{"score": params["tree"]["x"]}})
    return params["tree"]["x"]

def experiment():
    return Experiment(
        name="{name}",
        dataset=Dataset(load=load, label="y"),
        model=Custom(fit=fit, predict=lambda model, features: np.full(len(features), model)),
        space={{"tree": {{"x": Float(0.0, 1.0)}}}},
        metric=Metric("score", "maximize"),
        sweep=Sweep(num_trials={num_trials}, concurrency=2, seed=1),
    )
"""


def write_experiment(folder: Path, name: str, *, num_trials: int = 6, body: str = "pass") -> str:
    """Its path, for the command line."""
    path = folder / f"{name.replace('-', '_')}.py"
    path.write_text(EXPERIMENT.format(name=name, num_trials=num_trials, body=body))
    return str(path)
