"""What every runner of trials must do: `RunnerContract`, run over `local_trials` and `ray_trials`.

A module that runs it has a fixture `make_runner`, (experiment, data) -> runner. Models are `Custom`: a trial costs nothing but its turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.core.data import Part, TrialData
from toolkit.core.errors import StudyError
from toolkit.core.experiment import Asha, Dataset, Experiment, Median, Metric, Sweep
from toolkit.core.model import Custom
from toolkit.core.recipes import load_experiment
from toolkit.core.search import Runner, Search, StopReason
from toolkit.core.space import Branch, Categorical, Float, Int
from toolkit.core.study import Proposal, TrialRecord, TrialState
from toolkit.engines import build
from toolkit.engines.optuna_study import Journal, OptunaStudy

MakeRunner = Callable[[Experiment, TrialData], Runner]
NUM_STEPS = 9
SPACE = {"x": Float(0.0, 1.0)}


def some_data(num_folds: int = 1) -> TrialData:
    rows = Part(np.zeros((12, 2), np.float32), np.tile(np.array([0, 1], np.float32), 6))
    folds = tuple((slice(0, 8), slice(8, 12)) for _ in range(num_folds))
    return TrialData(rows, folds, ("a", "b"), 2, "binary", f"contract-{num_folds}")


def an_experiment(
    fit: Callable[..., Any], space: Any = SPACE, *, metric: Any = None, points: tuple[Any, ...] = (), **sweep: Any
) -> Experiment:
    return Experiment(
        name="contract",
        dataset=Dataset(load="none.csv", label="y"),
        model=Custom(fit=fit),
        space=space,
        metric=metric or Metric("score", "maximize"),
        points_to_evaluate=points,
        sweep=Sweep(**{"num_trials": 8, "concurrency": 1, "seed": 7, **sweep}),
    )


# --- models


def in_steps(params: Mapping[str, Any], train: Part, validation: Part, report: Callable[..., None]) -> None:
    for step in range(1, NUM_STEPS + 1):
        report(step, {"score": params["x"] * step})


def at_the_gate(params: Mapping[str, Any], train: Part, validation: Part, report: Callable[..., None]) -> None:
    """Goes on, and reports, until the file `gate` is there."""
    step = 0
    while not Path(params["gate"]).exists():
        step += 1
        report(step, {"score": 0.0})
        time.sleep(0.01)
    report(step + 1, {"score": params["x"]})


def misbehaving(params: Mapping[str, Any], train: Part, validation: Part, report: Callable[..., None]) -> None:
    match params["manner"]:
        case "raises":
            raise RuntimeError("the reason")
        case "is not a number":
            report(1, {"score": math.nan})
        case "reports something else":
            report(1, {"other": 1.0})
        case "hangs":
            while True:
                try:
                    time.sleep(600)
                except Exception:
                    continue
        case "allocates":
            np.ones(2**28)
        case _:
            report(1, {"score": 1.0})


def two_scores(params: Mapping[str, Any], train: Part, validation: Part, report: Callable[..., None]) -> None:
    report(1, {"score": params["x"], "cost": params["x"] ** 2})


def leaf_sum(params: Mapping[str, Any], train: Part, validation: Part, report: Callable[..., None]) -> None:
    group = params["group"]
    report(1, {"score": params["x"] + group["y"] + (params["depth"] if params["kind"] == "deep" else 0)})


def define_by_run(trial: Any) -> dict[str, Any]:
    kind = trial.suggest_categorical("kind", ("deep", "flat"))
    extra = {"depth": trial.suggest_int("depth", 1, 3, step=1, log=False)} if kind == "deep" else {}
    x = trial.suggest_float("x", 0.0, 1.0, step=None, log=False)
    return {"kind": kind, "x": x, "group": {"y": 10}, **extra}


BRANCHES = {
    "x": Float(0.0, 1.0),
    "group": {"y": Categorical((10, 20)), "constant": 5},
    "kind": Branch({"deep": {"depth": Int(1, 3)}, "flat": {}}),
}


# --- a study to run them in


@dataclass
class Watcher:
    """A listener that notes what it is told, and calls `when_started`."""

    when_started: Callable[[int], None] = lambda number: None
    started: list[int] = field(default_factory=list)
    ended: list[TrialRecord] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)

    def trial_started(self, proposal: Proposal, started_unix_s: float) -> None:
        self.started.append(proposal.number)
        self.when_started(proposal.number)

    def trial_ended(self, record: TrialRecord) -> None:
        self.ended.append(record)

    def trial_requeued(self, number: int) -> None:
        self.requeued.append(number)


@dataclass
class Lab:
    """Runs experiments with one kind of runner, their journals in `folder`. A second run of the same name resumes."""

    make_runner: MakeRunner
    folder: Path

    def open(self, experiment: Experiment, name: str = "study") -> OptunaStudy:
        study = OptunaStudy(name, experiment, Journal(self.folder / f"{name}.jsonl"))
        study.reset_interrupted()
        return study

    def run(
        self,
        experiment: Experiment,
        *,
        name: str = "study",
        data: TrialData | None = None,
        stop: StopReason | None = None,
        when_running: int = 1,
        at_report: tuple[int, int] | None = None,
    ) -> Ran:
        """`stop`: asked for when `when_running` trials run, or at the report (trial, step)."""
        study, watcher = self.open(experiment, name), Watcher()
        search = Search(study, experiment.sweep, [watcher])
        if at_report is not None:
            report = study.report

            def stopping_report(number: int, step: int, value: float) -> bool:
                if (number, step) == at_report:
                    search.request_stop(stop or "interrupt")
                return report(number, step, value)

            study.report = stopping_report  # type: ignore[method-assign]
        elif stop is not None:
            watcher.when_started = lambda _: search.request_stop(stop) if len(watcher.started) >= when_running else None
        self.make_runner(experiment, data or some_data()).run(search)
        # As the next process would read it.
        reread = OptunaStudy(name, experiment, Journal(self.folder / f"{name}.jsonl"))
        return Ran(search, watcher, reread.records())


@dataclass
class Ran:
    search: Search
    told: Watcher
    records: list[TrialRecord]

    @property
    def states(self) -> list[TrialState]:
        return [record.state for record in self.records]

    @property
    def outcomes(self) -> list[tuple[dict[str, Any], TrialState, tuple[float, ...]]]:
        return [(dict(record.params), record.state, record.values) for record in self.records]


@pytest.fixture
def lab(make_runner: MakeRunner, tmp_path: Path) -> Lab:
    return Lab(make_runner, tmp_path)


@pytest.fixture
def reference(tmp_path: Path) -> Lab:
    """The same in this process: what every runner is compared with."""
    (tmp_path / "reference").mkdir()
    return Lab(lambda experiment, data: build.local_runner(experiment, "honest", data), tmp_path / "reference")


class RunnerContract:
    def test_every_trial_is_done_once(self, lab: Lab) -> None:
        ran = lab.run(an_experiment(in_steps, concurrency=2))
        assert ran.states == [TrialState.COMPLETE] * 8
        assert sorted(ran.told.started) == sorted(record.number for record in ran.told.ended) == list(range(8))
        assert not ran.told.requeued and ran.search.stopping is None
        for record in ran.records:
            assert record.values == (record.params["x"] * NUM_STEPS,)
            assert record.result.history["score"] == [[step, record.params["x"] * step] for step in range(1, NUM_STEPS + 1)]
            assert 0 < record.result.started_unix_s <= record.result.ended_unix_s and record.result.pid

    def test_a_bad_trial_fails_alone_with_its_reason(self, lab: Lab) -> None:
        manners = {
            "raises": "RuntimeError: the reason",
            "hangs": "TrialTimeout: the trial took longer than sweep.trial_timeout_s",
            "behaves": None,
            "is not a number": "metric is not a finite number: {'score': nan}",
            "allocates": "MemoryError",
            "reports something else": "metric: the model must report it, or have `predict`, got score",
            "behaves again": None,
        }
        experiment = an_experiment(
            misbehaving,
            {"manner": Categorical(tuple(manners))},
            points=tuple({"manner": manner} for manner in manners),
            num_trials=len(manners),
            trial_timeout_s=1.0,
            memory_gib_per_trial=0.25,
            max_failed_trials=5,
        )
        ran = lab.run(experiment)
        for record, (manner, reason) in zip(ran.records, manners.items(), strict=True):
            assert record.params["manner"] == manner
            assert record.state is (TrialState.FAILED if reason else TrialState.COMPLETE), (manner, record.error)
            assert (reason or "") in (record.error or "")
        assert "in misbehaving" in (ran.records[0].error or ""), "the traceback is kept"
        assert ran.search.num_failed == 5 and ran.search.stopping is None

    def test_too_many_failed_trials_end_the_search(self, lab: Lab) -> None:
        experiment = an_experiment(misbehaving, {"manner": "raises", "x": Float(0, 1)}, num_trials=20, concurrency=2, max_failed_trials=2)
        ran = lab.run(experiment)
        assert ran.search.stopping == "failures"
        assert ran.states.count(TrialState.FAILED) >= 3 and TrialState.RUNNING not in ran.states
        assert len(ran.records) <= 4, "at most what ran when the limit was passed"

    @pytest.mark.parametrize(
        "scheduler", [Asha(grace_period=1, reduction_factor=3), Median(grace_period=1, min_trials=2)], ids=lambda s: s.kind
    )
    def test_a_scheduler_stops_trials_early(self, lab: Lab, reference: Lab, scheduler: Asha | Median) -> None:
        experiment = an_experiment(in_steps, scheduler=scheduler, num_trials=12)
        ran = lab.run(experiment)
        assert set(ran.states) == {TrialState.COMPLETE, TrialState.PRUNED}
        for record in ran.records:
            steps = [point[0] for point in record.result.history["score"]]
            assert steps == list(range(1, len(steps) + 1))
            assert (len(steps) < NUM_STEPS) == (record.state is TrialState.PRUNED)
        assert ran.outcomes == reference.run(experiment).outcomes

    def test_a_metric_that_becomes_nan_fails_under_a_scheduler_too(self, lab: Lab) -> None:
        experiment = an_experiment(
            misbehaving, {"manner": "is not a number", "x": Float(0, 1)}, scheduler=Asha(grace_period=1), num_trials=1
        )
        ran = lab.run(experiment)
        assert ran.states == [TrialState.FAILED] and "finite" in (ran.records[0].error or "")

    def test_the_same_seed_gives_the_same_trials_and_another_others(self, lab: Lab, reference: Lab) -> None:
        experiment = an_experiment(in_steps, num_trials=14)
        assert lab.run(experiment).outcomes == reference.run(experiment).outcomes
        other = replace(experiment, sweep=replace(experiment.sweep, seed=8))
        assert reference.run(other, name="other").outcomes != reference.run(experiment).outcomes

    @pytest.mark.parametrize("step", [1, 3, 8])
    def test_an_interruption_changes_no_trial(self, lab: Lab, reference: Lab, step: int) -> None:
        experiment = an_experiment(in_steps, scheduler=Asha(grace_period=1, reduction_factor=3), num_trials=12)
        expected = reference.run(experiment)
        number = max(record.number for record in expected.records[:-1] if record.state is TrialState.COMPLETE)
        interrupted = lab.run(experiment, at_report=(number, step))
        assert interrupted.search.stopping == "interrupt" and interrupted.told.requeued == [number]
        assert interrupted.states[:-1] == expected.states[:number] and interrupted.states[-1] is TrialState.WAITING
        assert lab.run(experiment).outcomes == expected.outcomes

    @pytest.mark.parametrize("reason", ["timeout", "interrupt"])
    def test_what_runs_at_a_stop_is_put_back_and_run_again(self, lab: Lab, tmp_path: Path, reason: StopReason) -> None:
        gate = tmp_path / "gate"
        experiment = an_experiment(at_the_gate, {**SPACE, "gate": str(gate)}, num_trials=3)
        stopped = lab.run(experiment, stop=reason)
        assert stopped.search.stopping == reason
        assert stopped.states == [TrialState.WAITING] and stopped.told.requeued == [0] and not stopped.told.ended
        gate.touch()
        resumed = lab.run(experiment)
        assert resumed.states == [TrialState.COMPLETE] * 3 and resumed.told.started == [0, 1, 2]
        assert resumed.records[0].params == stopped.records[0].params

    def test_two_metrics(self, lab: Lab) -> None:
        metrics = (Metric("score", "maximize"), Metric("cost", "minimize"))
        ran = lab.run(an_experiment(two_scores, metric=metrics, num_trials=5))
        assert [record.values for record in ran.records] == [(record.params["x"], record.params["x"] ** 2) for record in ran.records]

    def test_cross_validation_reports_every_fold(self, lab: Lab) -> None:
        ran = lab.run(an_experiment(in_steps, num_trials=2), data=some_data(num_folds=3))
        for record in ran.records:
            assert record.values == pytest.approx((record.params["x"] * NUM_STEPS,))
            assert [point[0] for point in record.result.history["score"]] == [1, 2, 3]

    @pytest.mark.parametrize("space", [BRANCHES, define_by_run], ids=["branches", "define by run"])
    def test_spaces_with_groups_and_conditions(self, lab: Lab, space: Any) -> None:
        ran = lab.run(an_experiment(leaf_sum, space, num_trials=10))
        assert ran.states == [TrialState.COMPLETE] * 10, ran.records[0].error
        assert {record.params["kind"] for record in ran.records} == {"deep", "flat"}
        for record in ran.records:
            assert ("depth" in record.params) == (record.params["kind"] == "deep")
            assert record.values == (record.params["x"] + record.params["group/y"] + record.params.get("depth", 0),)

    def test_points_to_evaluate_come_first(self, lab: Lab) -> None:
        points = ({"x": 0.25, "kind": "deep", "depth": 2}, {"group": {"y": 20}})
        ran = lab.run(an_experiment(leaf_sum, BRANCHES, points=points, num_trials=4))
        first, second = ran.records[0].params, ran.records[1].params
        assert (first["x"], first["kind"], first["depth"], second["group/y"]) == (0.25, "deep", 2, 20)
        assert ran.states == [TrialState.COMPLETE] * 4

    def test_the_users_own_modules_and_closures_travel(self, lab: Lab, tmp_path: Path) -> None:
        (tmp_path / "helper_of_the_user.py").write_text("def doubled(value):\n    return 2 * value\n")
        (tmp_path / "file_of_the_user.py").write_text(USER_FILE)
        ran = lab.run(load_experiment(str(tmp_path / "file_of_the_user.py")))
        assert [record.values for record in ran.records] == [(2 * record.params["x"] + 4.0,) for record in ran.records], ran.records[
            0
        ].error

    def test_a_study_that_cannot_be_written_ends_the_search_with_its_own_words(self, lab: Lab, tmp_path: Path) -> None:
        experiment = an_experiment(in_steps, num_trials=6)
        study, watcher = lab.open(experiment), Watcher()
        journal = tmp_path / "study.jsonl"

        def fill_the_disk(number: int) -> None:
            if number == 2:
                journal.unlink()
                journal.symlink_to("/dev/full")

        watcher.when_started = fill_the_disk
        with pytest.raises(StudyError, match=r"must be writable, got No space left on device; free space, then --resume"):
            lab.make_runner(experiment, some_data()).run(Search(study, experiment.sweep, [watcher]))


USER_FILE = """
import helper_of_the_user
from toolkit import Custom, Dataset, Experiment, Float, Metric, Sweep

SHIFT = 3.0

def experiment():
    one = 1.0

    def fit(params, train, validation, report):
        report(1, {"score": helper_of_the_user.doubled(params["x"]) + SHIFT + one})

    return Experiment(
        name="mine",
        dataset=Dataset(load=lambda: None, label="y"),
        model=Custom(fit=lambda *arguments: fit(*arguments)),
        space={"x": Float(0.0, 1.0)},
        metric=Metric("score", "maximize"),
        sweep=Sweep(num_trials=2, concurrency=1),
    )
"""
