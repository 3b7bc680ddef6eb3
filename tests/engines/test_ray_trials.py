"""The runner contract on one local Ray, and what only Ray's runner can promise."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.commands import Workplace, workplace, write_experiment
from tests.contracts import SPACE, Lab, MakeRunner, RunnerContract, Watcher, an_experiment, at_the_gate, lab, reference, some_data
from toolkit.core.data import Part
from toolkit.core.experiment import Asha, Dataset, Experiment, Metric, Sweep
from toolkit.core.model import XGBoost
from toolkit.core.search import Search
from toolkit.core.space import Categorical, Int
from toolkit.core.study import TrialRecord, TrialState
from toolkit.engines import build
from toolkit.engines.ray_cluster import LocalRay, RayConnection

pytestmark = pytest.mark.engine
__all__ = ["lab", "reference", "workplace"]


@pytest.fixture(scope="module")
def connection() -> Iterator[RayConnection]:
    connection = RayConnection(LocalRay(dashboard=False))
    connection.wait()
    yield connection
    connection.stop()


@pytest.fixture
def make_runner(connection: RayConnection) -> MakeRunner:
    return lambda experiment, data: build.ray_runner(experiment, "honest", data, experiment.sweep.concurrency or 1)


class TestRayTrials(RunnerContract):
    pass


def dying(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    """Kills its own process, `times` times."""
    report(1, {"score": 0.0})
    deaths = sorted(Path(params["folder"]).glob(f"{params['x']}-*"))
    if len(deaths) < params["times"]:
        (Path(params["folder"]) / f"{params['x']}-{len(deaths)}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    report(2, {"score": float(params["x"])})


@pytest.mark.fault
@pytest.mark.parametrize("scheduler", [None, Asha(grace_period=1)], ids=["no scheduler", "asha"])
def test_a_killed_process_is_replaced_and_takes_no_trial(lab: Lab, tmp_path: Path, scheduler: Asha | None) -> None:
    times = {"x": Int(1, 9), "times": Categorical((0, 1, 9)), "folder": str(tmp_path)}
    points = ({"x": 1, "times": 0}, {"x": 2, "times": 1}, {"x": 3, "times": 9}, {"x": 4, "times": 0})
    ran = lab.run(an_experiment(dying, times, points=points, num_trials=4, max_retries=2, scheduler=scheduler, max_failed_trials=1))
    assert len(ran.records) == len(ran.told.ended) == 4 and ran.told.started == [0, 1, 2, 3]
    assert [record.num_retries for record in ran.records] == [0, 1, 2, 0]
    assert ran.states[1] in (TrialState.COMPLETE, TrialState.PRUNED) and ran.states[2] is TrialState.FAILED
    assert "the trial's process died 3 times; last: SYSTEM_ERROR Worker exit detail: " in (ran.records[2].error or "")
    assert len(list(tmp_path.glob("3-*"))) == 3 and ran.search.stopping is None


def dying_at_the_next_trial(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    """The first time in all, its process is left in a state in which it dies when it is given another trial."""
    try:
        os.mkdir(params["mark"])
    except FileExistsError:
        pass
    else:
        from toolkit.engines import ray_trial_actor

        ray_trial_actor.Proposal = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[misc,assignment]
    report(1, {"score": 1.0})


@pytest.mark.fault
def test_a_trial_that_is_given_to_a_dead_process_is_retried(lab: Lab, tmp_path: Path) -> None:
    ran = lab.run(an_experiment(dying_at_the_next_trial, {**SPACE, "mark": str(tmp_path / "mark")}, num_trials=4, max_retries=1))
    assert ran.states == [TrialState.COMPLETE] * 4
    assert [record.num_retries for record in ran.records] == [0, 1, 0, 0]


def obstinate(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    for step in range(1, 10):
        try:
            report(step, {"score": params["x"] * step})
        except BaseException:
            report(step, {"score": 0.0})


def test_a_fit_that_goes_on_reporting_after_it_was_stopped_holds_up_nobody(lab: Lab) -> None:
    ran = lab.run(an_experiment(obstinate, num_trials=12, scheduler=Asha(grace_period=1, reduction_factor=3)))
    assert len(ran.records) == 12 and set(ran.states) == {TrialState.COMPLETE, TrialState.PRUNED}


def leaving(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    report(1, {"score": 1.0})
    if params["leaves"]:
        sys.exit(3)


@pytest.mark.fault
@pytest.mark.parametrize("scheduler", [None, Asha(grace_period=1)], ids=["no scheduler", "asha"])
def test_a_fit_that_ends_its_process_fails_alone(lab: Lab, scheduler: Asha | None) -> None:
    space, points = {"leaves": Categorical((True, False))}, ({"leaves": True}, {"leaves": False})
    ran = lab.run(an_experiment(leaving, space, points=points, num_trials=2, max_retries=1, scheduler=scheduler))
    assert ran.states == [TrialState.FAILED, TrialState.COMPLETE]
    assert "the trial's process died 2 times" in (ran.records[0].error or "")


def asleep_in_c(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    if params["hangs"]:
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock, too
    report(1, {"score": 1.0})


@pytest.mark.fault
@pytest.mark.parametrize("scheduler", [None, Asha(grace_period=1)], ids=["no scheduler", "asha"])
def test_a_process_that_hangs_in_native_code_is_ended(lab: Lab, scheduler: Asha | None) -> None:
    space, points = {"hangs": Categorical((True, False))}, ({"hangs": True}, {"hangs": False})
    ran = lab.run(an_experiment(asleep_in_c, space, points=points, num_trials=2, trial_timeout_s=1.0, scheduler=scheduler))
    assert ran.states == [TrialState.FAILED, TrialState.COMPLETE]
    assert "TrialTimeout" in (ran.records[0].error or "")


@pytest.mark.fault
def test_a_stop_ends_a_process_that_hangs_in_native_code(lab: Lab, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def fit(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
        (Path(folder) / f"pid-{os.getpid()}").touch()
        ctypes.PyDLL(None).sleep(1000)

    pids: list[str] = []

    def stop_when_it_hangs() -> None:
        wait_until(lambda: any(tmp_path.glob("pid-*")))
        pids.extend(path.name.removeprefix("pid-") for path in tmp_path.glob("pid-*"))
        search.request_stop("interrupt")

    experiment = an_experiment(fit, num_trials=2)
    study = lab.open(experiment)
    search = Search(study, experiment.sweep)
    stopper = threading.Thread(target=stop_when_it_hangs)
    stopper.start()
    lab.make_runner(experiment, some_data()).run(search)
    stopper.join()
    assert [record.state for record in study.records()] == [TrialState.WAITING]
    wait_until(lambda: not Path(f"/proc/{pids[0]}").exists())


def together(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    """Ends only when another trial runs at the same time."""
    folder = Path(params["folder"])
    (folder / f"{params['x']}").touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    report(1, {"score": 1.0})


def test_trials_run_at_once(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    experiment = an_experiment(together, {**SPACE, "folder": str(tmp_path / "there")}, concurrency=2, num_trials=2, trial_timeout_s=60)
    assert lab.run(experiment).states == [TrialState.COMPLETE] * 2


def test_all_that_runs_at_a_stop_is_put_back(lab: Lab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    experiment = an_experiment(at_the_gate, {**SPACE, "gate": str(gate)}, num_trials=5, concurrency=2, scheduler=Asha(grace_period=500))
    stopped = lab.run(experiment, stop="interrupt", when_running=2)
    assert stopped.states == [TrialState.WAITING] * 2 and sorted(stopped.told.requeued) == [0, 1]
    gate.touch()
    resumed = lab.run(experiment)
    assert len(resumed.records) == 5 and all(state.is_finished for state in resumed.states)
    assert [record.params for record in resumed.records[:2]] == [record.params for record in stopped.records]


def test_a_process_that_starts_slowly_gets_its_share(connection: RayConnection, tmp_path: Path) -> None:
    """Stock reuse ends it each time the other process has become free: see `ray_patches._reuse_only_what_is_free`."""
    flag = str(tmp_path / "slow")

    def fit(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
        time.sleep(0.03)
        report(1, {"score": 1.0})

    def make_runner(experiment: Experiment, data: Any) -> Any:
        runner = build.ray_runner(experiment, "honest", data, 2)
        make_trainer = runner.make_trainer  # type: ignore[attr-defined]

        def slow_in_one_process() -> Any:
            try:
                os.mkdir(flag)
            except FileExistsError:
                return make_trainer()
            time.sleep(1.5)
            return make_trainer()

        return replace(runner, make_trainer=slow_in_one_process)  # type: ignore[type-var]

    ran = Lab(make_runner, tmp_path).run(an_experiment(fit, num_trials=150, concurrency=2))
    assert len(ran.records) == 150
    assert len({record.result.pid for record in ran.records}) == 2


def what_is_imported(params: dict[str, Any], train: Part, validation: Part, report: Any) -> None:
    report(1, {"score": float("ray.tune" in sys.modules), "sklearn": float("sklearn" in sys.modules)})


def test_trial_processes_import_neither_tune_nor_sklearn(lab: Lab) -> None:
    ran = lab.run(an_experiment(what_is_imported, num_trials=2))
    assert [record.result.metrics for record in ran.records] == [{"score": 0.0, "sklearn": 0.0}] * 2
    assert ran.records[0].result.pid == ran.records[1].result.pid != os.getpid(), "one process for many trials"


def test_xgboost_trials_load_xgboost_and_no_sklearn(lab: Lab) -> None:
    experiment = Experiment(
        name="booster",
        dataset=Dataset(load="none.csv", label="y"),
        model=XGBoost(num_boost_round=6, early_stopping_rounds=None),
        space={"max_depth": Int(2, 3)},
        metric=Metric("logloss", "minimize"),
        sweep=Sweep(num_trials=2, concurrency=1, report_every=2, scheduler=Asha(grace_period=2)),
    )
    study = lab.open(experiment)
    mapped: list[str] = []

    class Looking(Watcher):
        def trial_ended(self, record: TrialRecord) -> None:
            mapped.append(Path(f"/proc/{record.result.pid}/maps").read_text())

    lab.make_runner(experiment, some_data()).run(Search(study, experiment.sweep, [Looking()]))
    assert [record.state for record in study.records()] == [TrialState.COMPLETE] * 2, study.records()[0].error
    assert all("libxgboost" in text and "sklearn" not in text for text in mapped) and len(mapped) == 2


def test_a_ray_that_runs_already_is_left_running(connection: RayConnection) -> None:
    second = RayConnection(LocalRay(dashboard=False))
    assert second.wait().num_cpus == connection.wait().num_cpus
    second.stop()
    assert ray.is_initialized() and ray.get(ray.remote(lambda: 3).remote()) == 3


def test_the_command_uses_the_ray_it_is_told_and_leaves_it_running(connection: RayConnection, workplace: Workplace) -> None:
    workplace.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    answer = workplace.there("sweep", write_experiment(workplace.folder, "guest", num_trials=3), "--json")
    assert answer.code == 0 and answer.json["num_completed"] == 3, answer.err
    assert answer.json["num_slots"] == min(2, connection.wait().num_cpus)
    workplace.all_gone()
    assert ray.get(ray.remote(lambda: 3).remote()) == 3


def test_a_ray_that_does_not_answer_is_one_line() -> None:
    script = """
from toolkit.core.errors import ClusterError
from toolkit.engines.ray_cluster import RayConnection, RunningRay
connection = RayConnection(RunningRay("127.0.0.1:1"))
try:
    connection.wait()
except ClusterError as error:
    print(error)
connection.stop()
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.startswith("Ray must answer at RAY_ADDRESS=127.0.0.1:1, got ") and answer.stdout.count("\n") == 1


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
