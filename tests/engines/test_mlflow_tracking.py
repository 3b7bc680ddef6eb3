"""Tracking against a real MLflow server: every trial there once, whatever the server does, and the search never waits."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.engines.conftest import MlflowServer, Proxy, Request, free_port
from tests.packages import package_of
from toolkit.core.errors import TrackingError
from toolkit.core.study import Proposal, TrialRecord, TrialResult, TrialState
from toolkit.engines import mlflow_store, mlflow_tracking
from toolkit.engines.mlflow_runs import metric_points
from toolkit.engines.mlflow_store import MlflowStore, StoredRun
from toolkit.engines.mlflow_tracking import MlflowTracker

pytestmark = pytest.mark.engine

START = 1_700_000_000.0


def a_record(number: int, state: TrialState = TrialState.COMPLETE, num_points: int = 5, **overrides: Any) -> TrialRecord:
    result: dict[str, Any] = {
        "number": number,
        "values": (0.8 + number / 1e4,),
        "metrics": {"auc": 0.8 + number / 1e4, "logloss": 0.4},
        "history": {"auc": [[10 * (step + 1), 0.7 + step / 1e5] for step in range(num_points)]},
        "best_iteration": 17,
        "started_unix_s": START + 10 * number,
        "ended_unix_s": START + 10 * number + 5.5,
        "fit_wall_s": 5.0,
        "fit_cpu_s": 4.9,
        "host": "here",
        "stopped": state is TrialState.PRUNED,
        "error": "Traceback …\n" + "x" * 9000 + "\nValueError: the reason" if state is TrialState.FAILED else None,
        **overrides,
    }
    return TrialRecord(number, state, {"max_depth": 4 + number, "d/p": 0.5, "booster": "gbtree"}, TrialResult(**result))


class Sweep:
    """One study's tracker, and what MLflow has of it."""

    def __init__(self, uri: str | None, folder: Path, server_uri: str | None = None) -> None:
        self.uri, self.server_uri, self.folder = uri, server_uri or uri, folder
        self.study_id = str(uuid.uuid4())
        self.experiment = f"tests-{self.study_id[:8]}"
        self.spool = folder / "spool" / f"{self.study_id}.jsonl"
        self.tracker = self.new_tracker()

    def new_tracker(self, **overrides: Any) -> MlflowTracker:
        arguments: dict[str, Any] = {
            "tracking_uri": self.uri,
            "experiment_name": self.experiment,
            "study_name": "wine-honest",
            "study_id": self.study_id,
            "spool": self.spool,
            "run_name": "wine-honest",
            "tags": {"protocol": "honest"},
        }
        self.tracker = MlflowTracker(**{**arguments, **overrides})
        return self.tracker

    def run_trials(self, numbers: range, state: Callable[[int], TrialState] = lambda _: TrialState.COMPLETE) -> list[TrialRecord]:
        records = []
        for number in numbers:
            self.tracker.trial_started(Proposal(number, {}), START + 10 * number)
            records.append(a_record(number, state(number)))
            self.tracker.trial_ended(records[-1])
        return records

    def runs(self) -> list[StoredRun]:
        store = MlflowStore(self.server_uri or "")
        return store.find_runs(store.experiment_id(self.experiment), {"toolkit.study_id": self.study_id})

    def children(self) -> dict[int, StoredRun]:
        """By trial; fails if a trial has two."""
        found = [run for run in self.runs() if "toolkit.trial" in run.tags]
        assert max(Counter(run.tags["toolkit.trial"] for run in found).values(), default=0) <= 1
        return {int(run.tags["toolkit.trial"]): run for run in found}

    def parent(self) -> StoredRun:
        (parent,) = [run for run in self.runs() if run.tags.get("toolkit.role") == "parent"]
        return parent

    def run_data(self, run_id: str) -> Any:
        return MlflowStore(self.server_uri or "").call("get_run", run_id)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture
def sweep(mlflow_server: MlflowServer, make_proxy: Callable[[MlflowServer], Proxy], tmp_path: Path) -> Iterator[Sweep]:
    """Through a counting proxy, `sweep.proxy`, to the session's server."""
    proxy = make_proxy(mlflow_server)
    one = Sweep(proxy.uri, tmp_path, mlflow_server.uri)
    one.proxy = proxy  # type: ignore[attr-defined]
    yield one
    proxy.rule = None
    one.tracker.close(0)


def proxy_of(sweep: Sweep) -> Proxy:
    return sweep.proxy  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracking, "FIRST_RETRY_S", 0.1)
    monkeypatch.setattr(mlflow_tracking, "LONGEST_RETRY_S", 0.4)


def states(number: int) -> TrialState:
    return [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED][number % 3]


def test_nested_runs_hold_everything_in_three_calls_each(sweep: Sweep) -> None:
    sweep.tracker.connect()
    before = len(proxy_of(sweep).requests)
    calls_before = sweep.tracker.num_calls
    records = sweep.run_trials(range(9), states)
    assert sweep.tracker.close(30) == 0
    assert len(proxy_of(sweep).requests) - before == 27 == sweep.tracker.num_calls - calls_before
    children = sweep.children()
    assert [children[number].status for number in range(3)] == ["FINISHED", "KILLED", "FAILED"]
    for record in records:
        child = children[record.number]
        assert child.tags["mlflow.parentRunId"] == sweep.tracker.parent_run_id
        assert child.tags["mlflow.runName"] == f"trial-{record.number:03d}"
        assert child.tags["protocol"] == "honest"
        assert child.start_ms == round(1000 * (START + 10 * record.number))
        assert child.end_ms == round(1000 * record.result.ended_unix_s)
    data = sweep.run_data(children[3].run_id).data
    assert data.params == {"max_depth": "7", "d/p": "0.5", "booster": "gbtree"}
    assert data.metrics["auc"] == pytest.approx(0.8003)
    assert data.metrics["best_iteration"] == 17
    failed = children[2].tags["toolkit.error"]
    assert failed.endswith("ValueError: the reason") and len(failed.encode()) <= 5000
    assert not sweep.spool.exists()


def test_a_long_history_costs_one_more_call_for_a_thousand_points(sweep: Sweep) -> None:
    sweep.tracker.connect()
    before = len(proxy_of(sweep).requests)
    sweep.tracker.trial_started(Proposal(0, {}), START)
    sweep.tracker.trial_ended(a_record(0, num_points=1500))
    assert sweep.tracker.close(30) == 0
    assert len(proxy_of(sweep).requests) - before == 4
    history = MlflowStore(sweep.server_uri or "").call("get_metric_history", sweep.children()[0].run_id, "auc", max_results=5000)
    assert len(history) == 1501
    stamps = [point.timestamp for point in sorted(history, key=lambda point: point.step)]
    assert stamps[0] >= START * 1000 and stamps == sorted(stamps)


def test_metric_points_follow_from_the_record_and_end_with_the_final_value() -> None:
    record = a_record(0, num_points=3)
    points = metric_points(record)
    assert points == metric_points(record)
    auc = [point for point in points if point[0] == "auc"]
    assert max(auc, key=lambda point: (point[3], point[2]))[1] == record.result.metrics["auc"]
    assert len(metric_points(TrialRecord(0, TrialState.FAILED, {}, TrialResult(0)))) == 2


def test_not_a_number_and_odd_names_arrive(sweep: Sweep) -> None:
    sweep.tracker.connect()
    record = a_record(0, metrics={"ndcg@10": math.nan, "loss": math.inf}, history={}, values=(math.nan,))
    sweep.tracker.trial_ended(record)
    assert sweep.tracker.close(20) == 0 and sweep.tracker.num_refused == 0
    metrics = sweep.run_data(sweep.children()[0].run_id).data.metrics
    assert math.isnan(metrics["ndcg_at_10"]) and metrics["loss"] > 1e300


def test_the_search_never_waits(sweep: Sweep, quick_retries: None) -> None:
    sweep.tracker.connect()
    proxy_of(sweep).rule = lambda request, forward: False
    started = time.perf_counter()
    sweep.run_trials(range(1000))
    assert time.perf_counter() - started < 1.0
    assert sweep.tracker.num_unsent == 2000
    assert sweep.tracker.close(0.5) == 2000


def test_the_end_waits_for_a_slow_server_as_long_as_it_answers(sweep: Sweep) -> None:
    sweep.tracker.connect()

    def slowly(request: Request, forward: Callable[[], tuple[int, bytes]]) -> None:
        time.sleep(0.3)

    proxy_of(sweep).rule = slowly
    sweep.run_trials(range(4))
    assert sweep.tracker.close(1) == 0, "twelve requests of 0.3 s"
    assert [child.status for child in sweep.children().values()] == ["FINISHED"] * 4


def test_server_killed_in_the_middle_and_started_again(own_mlflow_server: MlflowServer, tmp_path: Path, quick_retries: None) -> None:
    sweep = Sweep(own_mlflow_server.uri, tmp_path)
    sweep.tracker.connect()
    sweep.run_trials(range(10))
    sweep.wait_until(lambda: sweep.tracker.num_sent >= 7)
    own_mlflow_server.kill()
    sweep.run_trials(range(10, 20), states)
    sweep.wait_until(sweep.spool.exists)
    own_mlflow_server.start()
    sweep.tracker.finish("FINISHED", START + 1000)
    assert sweep.tracker.close(60) == 0
    assert not sweep.spool.exists()
    children = sweep.children()
    assert sorted(children) == list(range(20))
    assert Counter(child.status for child in children.values()) == {"FINISHED": 13, "KILLED": 4, "FAILED": 3}
    assert sweep.parent().status == "FINISHED"


def test_created_but_not_answered_is_not_created_again(sweep: Sweep, quick_retries: None) -> None:
    sweep.tracker.connect()
    lost: list[str] = []

    def lose_answers(request: Request, forward: Callable[[], tuple[int, bytes]]) -> bool | None:
        if request.call in ("runs/create", "runs/log-batch", "runs/update") and lost.count(request.call) < 2:
            lost.append(request.call)
            forward()
            return False
        return None

    proxy_of(sweep).rule = lose_answers
    sweep.run_trials(range(3))
    assert sweep.tracker.close(30) == 0
    assert len(lost) == 6 and proxy_of(sweep).count("runs/create") == 1 + 3
    assert [child.status for child in sweep.children().values()] == ["FINISHED"] * 3


def test_created_after_it_was_given_up_is_deleted(sweep: Sweep, quick_retries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.tracker.connect()
    monkeypatch.setattr(mlflow_store, "CALL_TIMEOUT_S", 0.5)
    held = threading.Event()

    def hold_first(request: Request, forward: Callable[[], tuple[int, bytes]]) -> bool | None:
        if request.call == "runs/create" and not held.is_set():
            held.set()
            time.sleep(2)
            forward()
            return False
        return None

    proxy_of(sweep).rule = hold_first
    sweep.run_trials(range(2))
    time.sleep(3)
    assert proxy_of(sweep).count("runs/create") == 1 + 3
    monkeypatch.setattr(mlflow_store, "CALL_TIMEOUT_S", 20)
    sweep.tracker.finish("FINISHED", START + 100)
    assert sweep.tracker.close(30) == 0
    assert [child.status for child in sweep.children().values()] == ["FINISHED"] * 2


def test_server_that_never_comes_back(sweep: Sweep, quick_retries: None, caplog: pytest.LogCaptureFixture) -> None:
    sweep.tracker.connect()
    records = sweep.run_trials(range(3))
    sweep.wait_until(lambda: sweep.tracker.num_unsent == 0)
    proxy_of(sweep).rule = lambda request, forward: (503, b"{}")
    report = sweep.folder / "report.html"
    report.write_text("<p>report</p>")
    records += sweep.run_trials(range(3, 6), states)
    sweep.tracker.set_parent(params={"num_trials": 6}, metrics={"best_auc": 0.9})
    sweep.tracker.log_artifact(report)
    sweep.tracker.finish("FINISHED", START + 100)
    assert sweep.tracker.close(1) == 9
    assert "9 entries are not in MLflow yet" in caplog.text
    lines = [json.loads(line) for line in sweep.spool.read_text().splitlines()]
    assert Counter(line["kind"] for line in lines) == {"started": 3, "ended": 3, "parent": 1, "artifact": 1, "finish": 1}
    sweep.spool.write_text(sweep.spool.read_text() + '{"kind": "art')

    proxy_of(sweep).rule = None
    sweep.new_tracker().connect()
    sweep.tracker.reconcile(records)
    sweep.tracker.finish("FINISHED", START + 200)
    assert sweep.tracker.close(30) == 0
    assert not sweep.spool.exists()
    assert sorted(sweep.children()) == list(range(6))
    assert [child.status for child in sweep.children().values()] == ["FINISHED"] * 4 + ["KILLED", "FAILED"]
    parent = sweep.run_data(sweep.parent().run_id)
    assert parent.data.params == {"num_trials": "6"} and parent.info.end_time == 1000 * (START + 200)
    assert "report.html" in [info.path for info in mlflow_client(sweep).list_artifacts(parent.info.run_id)]


def mlflow_client(sweep: Sweep) -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=sweep.server_uri)


def test_reconcile_twice_changes_nothing(sweep: Sweep) -> None:
    sweep.tracker.connect()
    records = sweep.run_trials(range(6), states)
    assert sweep.tracker.close(30) == 0
    parent, children = sweep.tracker.parent_run_id, sweep.children()
    for _ in range(2):
        sweep.new_tracker().connect()
        before = len(proxy_of(sweep).requests)
        sweep.tracker.reconcile(records)
        assert sweep.tracker.close(30) == 0
        assert len(proxy_of(sweep).requests) - before == 2
        assert sweep.tracker.parent_run_id == parent and sweep.children() == children


def test_resume_continues_interrupted_children_and_repairs_the_rest(sweep: Sweep) -> None:
    sweep.tracker.connect()
    for number in range(6):
        sweep.tracker.trial_started(Proposal(number, {}), START + 10 * number)
    done = a_record(0)
    sweep.tracker.trial_ended(done)
    sweep.tracker.trial_ended(a_record(5))  # the restored journal is older than this
    sweep.tracker.trial_requeued(1)
    assert sweep.tracker.close(30) == 0
    first = sweep.children()
    assert first[1].status == "KILLED" and first[2].status == "RUNNING"

    waiting = [TrialRecord(number, TrialState.WAITING, {}, TrialResult(number)) for number in (1, 2, 5)]
    unsent = a_record(3, TrialState.PRUNED)
    sweep.new_tracker().connect()
    sweep.tracker.reconcile([done, *waiting, unsent])  # 4 is not in the journal at all
    for number in (1, 2, 5):
        sweep.tracker.trial_started(Proposal(number, {}), START + 500)
    sweep.tracker.trial_ended(a_record(1, TrialState.PRUNED))
    sweep.tracker.trial_ended(a_record(5))
    sweep.wait_until(lambda: sweep.tracker.num_unsent == 0)
    assert sweep.parent().status == "RUNNING" and sweep.children()[2].status == "RUNNING"
    sweep.tracker.finish("KILLED", START + 600)
    assert sweep.tracker.close(30) == 0
    second = sweep.children()
    assert {number: child.status for number, child in second.items()} == {
        0: "FINISHED", 1: "KILLED", 2: "KILLED", 3: "KILLED", 4: "KILLED", 5: "FINISHED",
    }  # fmt: skip
    assert all(second[number].run_id == first[number].run_id for number in range(5))
    assert second[5].run_id != first[5].run_id
    assert "lost before the study recorded" in second[4].tags["toolkit.note"]
    assert second[1].has_params and second[3].has_params and second[1].end_ms == round(1000 * a_record(1).result.ended_unix_s)


def test_an_early_stopped_trial_is_not_taken_for_its_interrupted_attempt(sweep: Sweep) -> None:
    sweep.tracker.connect()
    sweep.tracker.trial_started(Proposal(0, {}), START)
    sweep.tracker.trial_requeued(0)
    assert sweep.tracker.close(30) == 0
    sweep.new_tracker().connect()
    sweep.tracker.reconcile([a_record(0, TrialState.PRUNED)])
    assert sweep.tracker.close(30) == 0
    assert sweep.children()[0].has_params


def test_another_server_gets_everything(sweep: Sweep, tmp_path: Path) -> None:
    sweep.tracker.connect()
    records = sweep.run_trials(range(3))
    assert sweep.tracker.close(30) == 0
    sweep.uri = sweep.server_uri = f"sqlite:///{tmp_path}/other.db"
    sweep.new_tracker().connect()
    sweep.tracker.reconcile(records)
    assert sweep.tracker.close(30) == 0
    assert sorted(sweep.children()) == [0, 1, 2]


def test_many_children_are_read_by_pages(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.tracker.connect()
    records = sweep.run_trials(range(25))
    assert sweep.tracker.close(60) == 0
    monkeypatch.setattr(mlflow_store, "PAGE_SIZE", 10)
    sweep.new_tracker().connect()
    before = len(proxy_of(sweep).requests)
    sweep.tracker.reconcile(records)
    assert sweep.tracker.close(30) == 0
    assert len(proxy_of(sweep).requests) - before == 1 + 3


def test_a_refused_entry_is_counted_and_blocks_nothing(sweep: Sweep, caplog: pytest.LogCaptureFixture) -> None:
    sweep.tracker.connect()

    def refuse(request: Request, forward: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes] | None:
        if request.call == "runs/log-batch" and b"gbtree" in request.body and b'"5"' in request.body:
            return 413, b"<html>too large</html>"
        return None

    proxy_of(sweep).rule = refuse
    sweep.run_trials(range(4))
    assert sweep.tracker.close(30) == 0
    assert sweep.tracker.num_refused == 1
    assert [child.status for child in sweep.children().values()] == ["FINISHED"] * 4
    assert "trial 1 ended" in caplog.text and "413" in caplog.text


def test_expired_permission_is_not_a_refusal(sweep: Sweep, quick_retries: None) -> None:
    sweep.tracker.connect()
    proxy_of(sweep).rule = lambda request, forward: (401, b'{"error_code": "CUSTOMER_UNAUTHORIZED", "message": "expired"}')
    sweep.run_trials(range(1))
    sweep.wait_until(sweep.spool.exists)
    proxy_of(sweep).rule = None
    assert sweep.tracker.close(30) == 0 and sweep.tracker.num_refused == 0
    assert sweep.children()[0].status == "FINISHED"


@pytest.mark.parametrize("what", ["refused", "silent", "error", "not-mlflow", "scheme", "read-only", "deleted"])
def test_no_tracking_at_the_start_is_one_line_in_time(what: str, sweep: Sweep, tmp_path: Path) -> None:
    uri = proxy_of(sweep).uri
    with socket.socket() as silent:
        if what == "refused":
            uri = f"http://user:secret@127.0.0.1:{free_port()}"
        elif what == "silent":
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        elif what == "error":
            proxy_of(sweep).rule = lambda request, forward: (500, b"boom")
        elif what == "not-mlflow":
            proxy_of(sweep).rule = lambda request, forward: (404, b"<html>nothing here</html>")
        elif what == "scheme":
            uri = "gopher://127.0.0.1"
        elif what == "read-only":
            (tmp_path / "file").write_text("")
            uri = f"sqlite:///{tmp_path}/file/mlflow.db"
        else:
            store = MlflowStore(sweep.server_uri or "")
            store.call("delete_experiment", store.experiment_id(sweep.experiment))
        tracker = sweep.new_tracker(tracking_uri=uri)
        started = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            tracker.connect(timeout_s=3)
        assert time.monotonic() - started < 5
        line = str(caught.value)
        assert "\n" not in line and ", got " in line and "; " in line and "secret" not in line
        assert what != "deleted" or "restore" in line
        tracker.close(0)


def test_a_missing_workspace_folder_is_made(sweep: Sweep) -> None:
    """What a Databricks workspace answers, as documented; not tried on a real one."""
    made: list[str] = []

    def workspace(request: Request, forward: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes] | None:
        if request.path.endswith("/workspace/mkdirs"):
            made.append(request.json()["path"])
            return 200, b"{}"
        if request.call == "experiments/create" and not made:
            return 404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Workspace directory not found"}'
        return None

    proxy_of(sweep).rule = workspace
    sweep.experiment = f"/Shared/someone@example.com/{sweep.experiment}"
    sweep.new_tracker().connect()
    assert made == ["/Shared/someone@example.com"]


def test_a_full_disk_is_told_once_and_fails_nothing(
    sweep: Sweep, quick_retries: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep.tracker.connect()

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    proxy_of(sweep).rule = lambda request, forward: False
    sweep.run_trials(range(2))
    assert sweep.tracker.close(1) == 4
    assert "in memory only" in caplog.text


GLOBAL_STATE = """
import os, sys, json
from pathlib import Path
import mlflow, mlflow.xgboost
import numpy as np, pandas as pd, xgboost as xgb
before = dict(os.environ)
from tests.engines.test_mlflow_tracking import Sweep
from tests.packages import package_of
from mlflow.tracking._tracking_service import utils
from mlflow.tracking._model_registry import utils as registry_utils
sweep = Sweep(sys.argv[1] or None, Path(sys.argv[2]))
sweep.tracker.connect()
sweep.run_trials(range(2))
sweep.tracker.set_parent(params={"a": 1}, metrics={"b": 2.0})
report = Path(sys.argv[2], "report.html"); report.write_text("x"); sweep.tracker.log_artifact(report)
frame = pd.DataFrame(np.random.default_rng(0).random((50, 3)), columns=list("xyz"))
matrix = xgb.DMatrix(frame, label=(frame["x"] > 0.5).astype(float))
booster = xgb.train({"objective": "binary:logistic"}, matrix, num_boost_round=3)
model = sweep.tracker.log_model(package_of(booster, frame.head(3)))
sweep.tracker.finish("FINISHED", 1.0)
assert sweep.tracker.close(30) == 0
assert dict(os.environ) == before, {k: v for k, v in os.environ.items() if before.get(k) != v}
assert mlflow.active_run() is None and mlflow.last_active_run() is None
assert utils._tracking_uri is None and registry_utils._registry_uri is None
assert mlflow.get_active_model_id() is None
print(json.dumps({"uri": sweep.tracker.tracking_uri, "children": sorted(sweep.children()) if sys.argv[1] else None}))
"""


@pytest.mark.parametrize("embedded", [False, True])
def test_global_state_stays_as_it_was(embedded: bool, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", GLOBAL_STATE, "" if embedded else mlflow_server.uri, str(tmp_path)],
        env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    if embedded:
        assert answer["uri"] == f"sqlite:///{tmp_path}/mlflow.db" and (tmp_path / "mlflow.db").exists()
    else:
        assert answer["children"] == [0, 1] and not (tmp_path / "mlflow.db").exists()


LOAD = """
import sys, mlflow, pandas as pd, numpy as np
frame = pd.read_parquet(sys.argv[1])
for uri in sys.argv[2:]:
    model = mlflow.pyfunc.load_model(uri)
    assert model.metadata.signature is not None and model.input_example is not None
    np.save(sys.argv[1] + "." + uri.split(":")[0] + ".npy", model.predict(frame))
"""


def test_the_model_loads_by_both_uris_and_predicts_probabilities(sweep: Sweep, tmp_path: Path) -> None:
    import xgboost

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.random((200, 4)).astype(np.float32), columns=["fixed acidity", "b", "c", "d"])
    label = (frame["b"] + rng.normal(0, 0.2, 200) > 0.5).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(frame, label=label), num_boost_round=7)
    sweep.tracker.connect()
    uri = sweep.tracker.log_model(package_of(booster, frame.head(5), params={"max_depth": 3}))
    assert uri.startswith("models:/m-")
    path = tmp_path / "rows.parquet"
    frame.astype("float64").to_parquet(path)
    # MLflow 3.8 looks among the run's own artifacts first, which its server answers with 500: not to be retried for minutes.
    environ = {**os.environ, "MLFLOW_TRACKING_URI": sweep.server_uri or "", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    uris = [uri, f"runs:/{sweep.tracker.parent_run_id}/model"]
    command = [sys.executable, "-c", LOAD, str(path), *uris]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = booster.predict(xgboost.DMatrix(frame))
    for kind in ("models", "runs"):
        predicted = np.load(f"{path}.{kind}.npy")
        assert np.array_equal(predicted, expected) and predicted.min() > 0 and predicted.max() < 1
    assert sweep.run_data(sweep.tracker.parent_run_id).outputs.model_outputs[0].model_id == uri.removeprefix("models:/")


def test_a_model_that_cannot_be_stored_is_one_line(sweep: Sweep) -> None:
    import xgboost

    rows = pd.DataFrame({"a": [0.0, 1.0]})
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=[0.0, 1.0]), num_boost_round=1)
    sweep.tracker.connect()
    proxy_of(sweep).rule = lambda request, forward: False
    with pytest.raises(TrackingError, match="--resume"):
        sweep.tracker.log_model(package_of(booster, rows))
