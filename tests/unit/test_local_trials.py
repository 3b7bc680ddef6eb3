"""The runner contract, in this process."""

from __future__ import annotations

import threading

import pytest

from tests.contracts import Lab, MakeRunner, RunnerContract, an_experiment, at_the_gate, in_steps, lab, reference, some_data
from toolkit.core.errors import ClusterError
from toolkit.core.search import Search
from toolkit.core.space import Float
from toolkit.core.study import TrialState
from toolkit.engines import build

__all__ = ["lab", "reference"]


@pytest.fixture
def make_runner() -> MakeRunner:
    return lambda experiment, data: build.local_runner(experiment, "honest", data)


class TestLocalTrials(RunnerContract):
    pass


def test_what_breaks_off_the_search_leaves_no_trial_running(lab: Lab) -> None:
    def fit(*_: object) -> None:
        raise KeyboardInterrupt

    experiment = an_experiment(fit)
    study = lab.open(experiment)
    with pytest.raises(KeyboardInterrupt):
        lab.make_runner(experiment, some_data()).run(Search(study, experiment.sweep))
    assert [record.state for record in lab.open(experiment).records()] == [TrialState.WAITING]


def test_an_alarm_never_falls_into_the_studys_own_work(lab: Lab) -> None:
    experiment = an_experiment(at_the_gate, {"x": Float(0, 1), "gate": "/never"}, num_trials=1, trial_timeout_s=0.3)
    study = lab.open(experiment)
    report, torn = study.report, []

    def slow_report(number: int, step: int, value: float) -> bool:
        torn.append(number)
        threading.Event().wait(0.5)
        torn.pop()
        return report(number, step, value)

    study.report = slow_report  # type: ignore[method-assign]
    from toolkit.core.experiment import Asha

    sweep = an_experiment(at_the_gate, scheduler=Asha(grace_period=1)).sweep
    lab.make_runner(experiment, some_data()).run(Search(study, sweep))
    assert not torn
    assert [record.state for record in study.records()] == [TrialState.FAILED] * 1


def test_trials_can_be_timed_in_the_main_thread_only(lab: Lab) -> None:
    experiment = an_experiment(in_steps, trial_timeout_s=5)
    errors: list[Exception] = []

    def run() -> None:
        try:
            lab.run(experiment)
        except ClusterError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
