"""`toolkit.notebook`, and the Databricks notebook: run cell by cell, as Databricks does, on a small table in this process."""

import ast
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from toolkit.core.study import Proposal, TrialRecord, TrialResult, TrialState
from toolkit.notebook import Line, Progress
from toolkit.sweep_cluster import ClusterName

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "databricks_sweep.py"
SEPARATOR = "\n\n# COMMAND ----------\n\n"


def begun(progress, **changes):
    values = {"num_trials": 4, "num_already_done": 1, "num_slots": 2, "metric": "auc", "direction": "maximize"}
    progress.begin(**{**values, **changes})


def ended(number, value):
    return TrialRecord(number, TrialState.COMPLETE, {}, TrialResult(number, values=(value,)))


# ---- progress


def test_each_state_is_shown_once_and_the_last_one_always():
    shown = []
    with Progress(shown.append, every_s=60) as progress:
        progress.phase("searching")
        begun(progress)
        progress.trial_started(Proposal(1, {}), 0.0)
        progress.trial_ended(ended(1, 0.75))
    assert len(shown) == 1
    assert str(shown[0]).startswith("searching: 2/4 trials, 0/2 slots, best auc 0.75 (trial 1)")
    assert '<progress value="2" max="4">' in shown[0]._repr_html_()


def test_it_is_drawn_while_the_search_goes_on_and_by_no_thread_afterwards():
    drawn = threading.Event()
    with Progress(lambda line: drawn.set(), every_s=0.01) as progress:
        progress.phase("searching")
        assert drawn.wait(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_notebook_that_is_gone_ends_nothing():
    def fail(line):
        raise RuntimeError("comm is closed")

    with Progress(fail, every_s=60) as progress:
        progress.phase("searching")
        begun(progress)


def test_a_line_is_no_markup():
    assert "<b>" not in Line("<b>", "", 0, 0)._repr_html_()


def test_outside_of_a_notebook_phases_go_to_standard_error(capfd):
    with Progress() as progress:
        progress.phase("reading data")
        progress.phase("searching")
        begun(progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["reading data", "searching", "searching: 1/4 trials, 0/2 slots"]


FAKE_IPYTHON = """
import sys, types

class ZMQInteractiveShell: ...

class Handle:
    def update(self, line):
        print("update", line)

def display(line, *, display_id):
    assert display_id is True
    return Handle()

ipython, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
ipython.get_ipython, module.display = ZMQInteractiveShell, display
sys.modules.update({"IPython": ipython, "IPython.display": module})

from toolkit.notebook import Progress
with Progress() as progress:
    progress.phase("searching")
"""


def test_in_a_notebook_the_cells_output_is_updated():
    done = subprocess.run([sys.executable, "-c", FAKE_IPYTHON], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "update searching"


# ---- the Databricks notebook


def cells():
    first, *others = NOTEBOOK.read_text().removesuffix("\n").split(SEPARATOR)
    header, _, first = first.partition("\n")
    assert header == "# Databricks notebook source"
    return [first, *others]


def is_magic(cell):
    return cell.startswith("# MAGIC ")


def python_cells():
    return [cell for cell in cells() if not is_magic(cell)]


def test_it_has_the_form_that_databricks_reads():
    for cell in cells():
        lines = cell.splitlines()
        assert "COMMAND ---" not in cell, "a separator needs an empty line before and after it"
        if is_magic(cell):
            assert all(re.match(r"# MAGIC( |$)", line) for line in lines), cell
            assert re.match(r"# MAGIC %(md|pip)\b", lines[0]), cell
        else:
            assert not any(line.startswith("# MAGIC") for line in lines), cell
            ast.parse(cell)


def test_python_is_restarted_between_installing_and_importing():
    source = cells()
    installed = next(i for i, cell in enumerate(source) if cell.startswith("# MAGIC %pip install"))
    restarted = source.index("dbutils.library.restartPython()")
    imported = next(i for i, cell in enumerate(source) if re.search(r"^(from|import) toolkit", cell, re.M))
    assert installed < restarted < imported


def test_what_it_offers_as_places_for_trials_is_what_there_is():
    offered = re.search(r'dropdown\("cluster", "auto", (\[.*?\])', NOTEBOOK.read_text())
    assert set(ast.literal_eval(offered[1])) == set(get_args(ClusterName))


class Widgets:
    """Those of `dbutils`: a value that was set wins over the default."""

    def __init__(self, values):
        self.values = values
        self.known = {}

    def text(self, name, default, label):
        self.known[name] = self.values.pop(name, default)

    def dropdown(self, name, default, choices, label):
        assert default in choices
        self.text(name, default, label)
        assert self.known[name] in choices

    def get(self, name):
        return self.known[name]


@pytest.fixture
def trips(tmp_path):
    """A table with the columns of samples.nyctaxi.trips."""
    random = np.random.default_rng(1)
    began = pd.Timestamp("2016-02-01") + pd.to_timedelta(np.sort(random.uniform(0, 28, 300)), unit="D").round("s")
    miles = random.gamma(2, 1.5, 300).round(2)
    frame = pd.DataFrame(
        {
            "tpep_pickup_datetime": began,
            "tpep_dropoff_datetime": began + pd.to_timedelta((miles * 300).round(), unit="s"),
            "trip_distance": miles,
            "fare_amount": (2.5 + 2.5 * miles + random.normal(0, 1, 300)).round(1),
            "pickup_zip": random.integers(10001, 10030, 300),
            "dropoff_zip": random.integers(10001, 10030, 300),
        }
    )
    path = tmp_path / "trips.parquet"
    frame.to_parquet(path)
    return path


def run(python, dbutils, namespace):
    """The cells in one namespace, as a notebook has it; returns the value of the last expression of each."""
    values = []
    for cell in python:
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), namespace)
        values.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), namespace) if last else None)
        if "restartPython" in cell:
            namespace = {name: namespace[name] for name in ("dbutils", "displayHTML", "spark")}
    return values, namespace


@pytest.fixture
def own_mlflow(tmp_path):
    """The notebook asks MLflow's process-wide store, which an earlier test may have set."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield
    mlflow.set_tracking_uri(before)


def test_it_runs_from_the_first_cell_to_the_last(trips, tmp_path, monkeypatch, capfd, own_mlflow):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("TOOLKIT_STATE_URI", "TOOLKIT_USER"):
        monkeypatch.setenv(name, "")  # set by the notebook; this restores them
    shown, restarts = [], []
    widgets = Widgets({"table": str(trips), "trials": "2", "cluster": "inprocess", "state": str(tmp_path / "volume")})
    dbutils = SimpleNamespace(widgets=widgets, library=SimpleNamespace(restartPython=lambda: restarts.append(True)))
    who = SimpleNamespace(sql=lambda query: SimpleNamespace(first=lambda: ("somebody@example.com",)))
    values, namespace = run(python_cells(), dbutils, {"dbutils": dbutils, "displayHTML": shown.append, "spark": who})

    assert widgets.values == {} and restarts == [True]
    result = namespace["result"]
    assert (result.cluster, result.num_trials, len(result.records)) == ("inprocess", 2, 2)
    assert any(value is result for value in values) and "<table>" in result._repr_html_()
    report, link = shown
    assert report.lstrip().lower().startswith("<!doctype html>") and "taxi-fares" in report
    assert f"/runs/{result.parent_run_id}" in link
    assert values[-1][0] == result.best.params
    assert (tmp_path / "volume" / result.study / "journal.jsonl").exists()
    assert "fitting the winner" in capfd.readouterr().err
