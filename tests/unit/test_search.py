"""The search between a study and a runner, its clock in the test's hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.contracts import Watcher, an_experiment, in_steps
from toolkit.core.experiment import Asha
from toolkit.core.search import Search, error_summary
from toolkit.core.study import TrialResult, TrialState
from toolkit.engines.optuna_study import Journal, OptunaStudy


@dataclass
class Bench:
    """A search without a runner: the test plays it."""

    study: OptunaStudy
    search: Search
    watcher: Watcher = field(default_factory=Watcher)
    now_s: float = 1000.0

    def begin(self) -> int:
        proposal = self.search.next_proposal()
        assert proposal is not None
        self.search.started(proposal.number)
        return proposal.number

    @property
    def states(self) -> list[TrialState]:
        return [record.state for record in self.study.records()]


def a_bench(folder: Path, **sweep: object) -> Bench:
    experiment = an_experiment(in_steps, **sweep)
    study, watcher = OptunaStudy("study", experiment, Journal(folder / "journal.jsonl")), Watcher()
    bench = Bench(study, None, watcher)  # type: ignore[arg-type]
    bench.search = Search(study, experiment.sweep, [watcher], clock=lambda: bench.now_s)
    return bench


def done(number: int, value: float = 0.5, **changes: object) -> TrialResult:
    return replace(TrialResult(number, (value,), {"score": value}), **changes)  # type: ignore[arg-type]


def test_results_end_trials_and_are_told(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, num_trials=3)
    numbers = [bench.begin(), bench.begin()]
    bench.search.ended(done(numbers[1]))
    bench.search.ended(done(numbers[0], error="Traceback\nValueError: no"), num_retries=2)
    assert [(record.number, record.state, record.num_retries) for record in bench.watcher.ended] == [
        (1, TrialState.COMPLETE, 0),
        (0, TrialState.FAILED, 2),
    ]
    assert bench.search.ended_records == bench.watcher.ended and bench.search.num_failed == 1
    bench.begin()
    assert bench.search.next_proposal() is None


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (done(0), TrialState.COMPLETE),
        (done(0, stopped=True), TrialState.PRUNED),
        (done(0, math.nan), TrialState.FAILED),
        (done(0, math.inf), TrialState.FAILED),
        (done(0, math.nan, stopped=True), TrialState.FAILED),
        (TrialResult(0), TrialState.FAILED),
        (done(0, error="no", stopped=True), TrialState.FAILED),
    ],
)
def test_the_state_of_a_result(result: TrialResult, state: TrialState) -> None:
    assert result.state is state


def test_the_deadline_stops_and_puts_back(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, timeout_s=10)
    first, second = bench.begin(), bench.begin()
    assert not bench.search.reported(first, 1, 0.1)
    bench.now_s += 10
    assert bench.search.stopping == "timeout" and bench.search.next_proposal() is None
    assert bench.search.reported(first, 2, 0.1), "the trial is told to stop"
    bench.search.ended(done(first, stopped=True))
    bench.search.ended(done(second))
    bench.search.requeue_running()
    assert bench.states == [TrialState.WAITING, TrialState.COMPLETE] and bench.watcher.requeued == [first]


def test_the_first_reason_stays(tmp_path: Path) -> None:
    search = a_bench(tmp_path).search
    search.request_stop("interrupt")
    search.request_stop("failures")
    assert search.stopping == "interrupt"


def test_a_pruned_trial_stays_pruned_when_the_search_stops(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, scheduler=Asha(grace_period=1, reduction_factor=2))
    best, worse = bench.begin(), bench.begin()
    assert not bench.search.reported(best, 1, 0.9)
    assert bench.search.reported(worse, 1, 0.1)
    bench.search.request_stop("interrupt")
    bench.search.ended(done(worse, stopped=True))
    bench.search.requeue_running()
    assert bench.states == [TrialState.WAITING, TrialState.PRUNED]


def test_overdue_trials_and_their_late_words(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, trial_timeout_s=5)
    first = bench.begin()
    bench.now_s += 4
    second = bench.begin()
    bench.now_s += 2
    assert bench.search.overdue() == [first]
    bench.search.started(first)
    assert not bench.search.overdue() and bench.watcher.started == [first, second], "a new process has a new clock and is no new trial"
    bench.search.lost(first, "TrialTimeout: too long")
    assert bench.search.reported(first, 9, 0.5), "whoever still runs it is told to stop"
    bench.search.ended(done(first))
    bench.search.lost(first, "again")
    assert [(record.number, record.error) for record in bench.watcher.ended] == [(first, "TrialTimeout: too long")]


def test_failures_of_earlier_processes_count(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, max_failed_trials=1)
    bench.search.lost(bench.begin(), "one")
    assert bench.search.stopping is None
    later = a_bench(tmp_path, max_failed_trials=1)
    assert later.search.num_failed == 1
    later.search.lost(later.begin(), "two")
    assert later.search.stopping == "failures"


def test_a_trial_that_never_began_is_put_back_without_a_word(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    bench.search.next_proposal()
    bench.search.requeue_running()
    assert bench.states == [TrialState.WAITING] and not bench.watcher.requeued and not bench.watcher.started


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (None, ""),
        ("", ""),
        ("TrialTimeout: too long", "TrialTimeout: too long"),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\nValueError: boom\nsecond line',
            "ValueError: boom second line",
        ),
        ('Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n    ^^^\nMemoryError', "MemoryError"),
    ],
)
def test_error_summary(error: str | None, summary: str) -> None:
    assert error_summary(error) == summary


def test_a_search_with_all_its_trials_was_not_stopped(tmp_path: Path) -> None:
    """The deadline passes while the winner is fitted."""
    bench = a_bench(tmp_path, num_trials=1, timeout_s=10.0)
    bench.search.ended(done(bench.begin()))
    bench.search.conclude()
    bench.now_s += 60
    assert bench.search.stopping is None
    bench.search.request_stop("interrupt")
    assert bench.search.stopping is None


def test_a_search_without_all_its_trials_stays_stopped(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, num_trials=2, timeout_s=10.0)
    bench.search.ended(done(bench.begin()))
    bench.now_s += 60
    assert bench.search.stopping == "timeout"
    bench.search.conclude()
    assert bench.search.stopping == "timeout"
