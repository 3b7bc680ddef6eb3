"""Studies on Optuna: a journal that survives what disks and processes do, and the same trials whatever happened in between."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from tests.contracts import BRANCHES, SPACE, an_experiment, define_by_run, in_steps, leaf_sum
from toolkit.core.errors import ExperimentError, StudyError
from toolkit.core.experiment import Asha, Experiment, Median, Metric, Sampler, Scheduler
from toolkit.core.space import Float, Int
from toolkit.core.study import TrialRecord, TrialResult, TrialState
from toolkit.engines.optuna_study import Journal, OptunaStudy

TWO = {"x": Float(0.0, 1.0), "depth": Int(1, 50)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def opened(path: Path, experiment: Experiment | None = None) -> OptunaStudy:
    study = OptunaStudy("study", experiment or an_experiment(in_steps), Journal(path))
    study.reset_interrupted()
    return study


def run_on(study: OptunaStudy, num: int = 10**6, *, interrupt: bool = False) -> list[TrialRecord]:
    """Ask and tell up to `num` trials; `interrupt` leaves one more running."""
    for _ in range(num):
        if (proposal := study.ask()) is None:
            break
        value = float(proposal.params["x"])
        study.tell(TrialResult(proposal.number, (value,) * len(study._experiment.metrics)))
    if interrupt:
        study.ask()
    return study.records()


def drawn(records: list[TrialRecord]) -> list[dict[str, Any]]:
    return [dict(record.params) for record in records]


# --- the journal


def test_optunas_own_backend_reads_it(path: Path) -> None:
    records = run_on(opened(path), interrupt=True)
    theirs = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(path))))
    assert [trial.params for trial in theirs.trials] == drawn(records)
    assert [trial.value for trial in theirs.trials] == [record.values[0] if record.values else None for record in records]


def test_every_group_is_on_the_disk_when_the_call_returns(path: Path) -> None:
    study = opened(path, an_experiment(in_steps, scheduler=Asha(grace_period=1)))
    proposal = study.ask()
    assert proposal is not None
    asked = path.read_bytes()
    assert opened(path).records()[0].params == proposal.params
    study = opened(path, an_experiment(in_steps, scheduler=Asha(grace_period=1)))
    study.ask()
    study.report(0, 1, 0.5)
    study.tell(TrialResult(0, (0.5,)))
    assert path.read_bytes().startswith(asked)
    told = opened(path).records()[0]
    assert told.state is TrialState.COMPLETE and told.values == (0.5,)


@pytest.mark.parametrize("num_bytes", [1, 20, 200])
def test_a_torn_end_loses_no_finished_trial(path: Path, num_bytes: int) -> None:
    expected = drawn(run_on(opened(path.with_name("whole.jsonl"))))
    before = run_on(opened(path), 3)
    size = path.stat().st_size
    run_on(opened(path), 0, interrupt=True)
    content = path.read_bytes()
    path.write_bytes(content[: size + min(num_bytes, len(content) - size - 1)])
    study = opened(path)
    assert study.records()[:3] == before
    assert drawn(run_on(study)) == expected
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_trial_torn_between_its_parameters_is_completed(path: Path) -> None:
    experiment = an_experiment(in_steps, TWO)
    run_on(opened(path, experiment), 2, interrupt=True)
    lines = path.read_bytes().splitlines(keepends=True)
    first_param = max(i for i, line in enumerate(lines) if b'"param_name":"x"' in line)
    path.write_bytes(b"".join(lines[: first_param + 1]))
    records = run_on(opened(path, experiment))
    assert [(record.state, set(record.params)) for record in records] == [(TrialState.COMPLETE, {"x", "depth"})] * 8


def test_a_damaged_line_is_told(path: Path) -> None:
    run_on(opened(path), 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"\x00garbage\n", *lines[4:]]))
    content = path.read_bytes()
    with pytest.raises(StudyError, match=r"journal .*journal.jsonl is damaged, got .*; restore it, or use another --study"):
        opened(path)
    assert path.read_bytes() == content


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """Files end at `num_bytes`, as on a full disk: a write is cut off in its middle, the next one refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_what_was_there_and_the_study_goes_on(path: Path) -> None:
    expected = drawn(run_on(opened(path.with_name("whole.jsonl"))))
    study = opened(path)
    before = run_on(study, 2)
    content = path.read_bytes()
    with disk_of(len(content) + 100), pytest.raises(StudyError, match="must be writable, got File too large; free space, then --resume"):
        run_on(study)
    assert path.read_bytes() == content
    resumed = opened(path)
    assert resumed.records() == before and drawn(run_on(resumed)) == expected
    assert drawn(run_on(study)) == expected, "nor has the process that met it lost anything"


def test_a_disk_that_is_full_at_once_leaves_no_journal(path: Path) -> None:
    with disk_of(10), pytest.raises(StudyError, match="must be writable"):
        opened(path).remember(study_id="x")
    assert not path.exists()


def test_attributes_are_kept(path: Path) -> None:
    opened(path).remember(study_id="a", fingerprint={"seed": "1"}, num_trials=3)
    opened(path).remember(num_trials=5)
    assert opened(path).attributes == {"study_id": "a", "fingerprint": {"seed": "1"}, "num_trials": 5}


# --- trials


@pytest.mark.parametrize("space", [TWO, BRANCHES, define_by_run], ids=["flat", "branches", "define by run"])
@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler("random"), Sampler("tpe", {"n_startup_trials": 3})], ids=["tpe", "random", "early tpe"]
)
def test_a_resumed_study_goes_on_as_if_nothing_had_been(path: Path, sampler: Sampler, space: Any) -> None:
    check_resumed(path, sampler, space)


def test_a_resumed_sequence_goes_on(path: Path) -> None:
    check_resumed(path, Sampler("QMCSampler"), TWO)


def check_resumed(path: Path, sampler: Sampler, space: Any) -> None:
    experiment = an_experiment(leaf_sum, space, sampler=sampler, num_trials=20)
    expected = drawn(run_on(opened(path.with_name("whole.jsonl"), experiment)))
    assert len({tuple(params.items()) for params in expected}) > 15
    for num in (2, 9, 0):
        run_on(opened(path, experiment), num, interrupt=True)
    assert drawn(run_on(opened(path, experiment))) == expected


def test_a_requeued_trial_is_next_and_unchanged(path: Path) -> None:
    study = opened(path)
    first, second = study.ask(), study.ask()
    assert first is not None and second is not None
    study.requeue(first.number)
    assert [record.state for record in study.records()] == [TrialState.WAITING, TrialState.RUNNING]
    assert study.ask() == first
    third = study.ask()
    assert third is not None and third.number == 2


def test_num_trials_counts_what_is_finished_or_running(path: Path) -> None:
    experiment = an_experiment(in_steps, num_trials=3)
    assert len(run_on(opened(path, experiment), interrupt=True)) == 3
    longer = replace(experiment, sweep=replace(experiment.sweep, num_trials=5))
    assert len(run_on(opened(path, longer))) == 5
    assert opened(path, experiment).ask() is None


def test_points_are_queued_once(path: Path) -> None:
    points = ({"x": 0.5}, {"x": 0.25}, {"x": 0.75})
    experiment = an_experiment(in_steps, points=points, num_trials=2)
    opened(path, experiment).remember(study_id="x")
    run_on(opened(path, experiment), 1)
    assert [params["x"] for params in drawn(run_on(opened(path, experiment)))] == [0.5, 0.25]


def test_a_space_function_that_raises_is_the_users_error(path: Path) -> None:
    def space(trial: Any) -> dict[str, Any]:
        trial.suggest_int("a", 1, 2)
        raise ZeroDivisionError("mine")

    study = opened(path, an_experiment(in_steps, space))
    with pytest.raises(ExperimentError, match="space: drawing parameters failed, got ZeroDivisionError: mine"):
        study.ask()
    assert not study.records()


def test_params_are_nested_as_the_model_got_them(path: Path) -> None:
    for space in (BRANCHES, define_by_run):
        study = opened(path.with_name(f"{id(space)}.jsonl"), an_experiment(leaf_sum, space))
        proposals = [study.ask() for _ in range(5)]
        assert [study.params(proposal.number) for proposal in proposals if proposal] == [p.params for p in proposals if p]


@pytest.mark.parametrize(
    ("space", "value", "names"),
    [
        (TWO, lambda params: params["x"], {"x", "depth"}),
        (TWO, lambda params: 1.0, {"x", "depth"}),
        (BRANCHES, lambda params: params["x"], {"x", "group/y", "kind", "depth"}),
        ({"x": Float(0, 1), "fixed": 3}, lambda params: params["x"], {"x"}),
        (lambda trial: {"x": trial.suggest_float(f"x{trial.number}", 0, 1)}, lambda params: params["x"], {f"x{i}" for i in range(12)}),
    ],
    ids=["plain", "all the same", "branches", "constant", "nothing in common"],
)
def test_importances(path: Path, space: Any, value: Any, names: set[str]) -> None:
    study = opened(path, an_experiment(in_steps, space, num_trials=12))
    while (proposal := study.ask()) is not None:
        study.tell(TrialResult(proposal.number, (float(value(proposal.params)),)))
    found = study.importances()
    assert set(found) == names and all(0 <= share <= 1 for share in found.values()), found


def test_importances_need_completed_trials_and_take_the_first_metric(path: Path) -> None:
    experiment = an_experiment(in_steps, TWO, metric=(Metric("a", "maximize"), Metric("b", "minimize")))
    study = opened(path, experiment)
    run_on(study, 3)
    assert study.importances() == {}
    run_on(study)
    assert max(study.importances(), key=lambda name: study.importances()[name]) == "x"


# --- configuration


@pytest.mark.parametrize("name", ["tpe", "random", "CmaEsSampler", "QMCSampler", "GPSampler", "NSGAIISampler"])
def test_samplers_by_name(path: Path, name: str) -> None:
    experiment = an_experiment(in_steps, TWO, sampler=Sampler(name), num_trials=12)
    needed = {"CmaEsSampler": "cmaes", "GPSampler": "torch"}.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        with pytest.raises(ExperimentError, match=rf"sweep.sampler.name: {name} needs {needed}, got none; install {needed}"):
            opened(path, experiment)
    else:
        assert len(run_on(opened(path, experiment))) == 12


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (Sampler("tpee"), r"sweep.sampler.name: unknown, got 'tpee'; did you mean 'tpe'\?"),
        (Sampler("BaseSampler"), "sweep.sampler.name: unknown, got 'BaseSampler'"),
        (Sampler("tpe", {"gamm": 3}), "sweep.sampler.options: TPESampler refuses them, got .*gamm"),
        (Sampler("QMCSampler", {"qmc_type": "nonsense"}), "sweep.sampler.options: QMCSampler refuses them"),
    ],
)
def test_a_wrong_sampler_is_refused_before_anything_is_written(path: Path, sampler: Sampler, words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        opened(path, an_experiment(in_steps, sampler=sampler))
    assert not path.exists()


@pytest.mark.parametrize(
    ("scheduler", "values", "first_stop"),
    [
        (Asha(grace_period=2, reduction_factor=2), [0.9, 0.1], 2),
        (Asha(grace_period=4, reduction_factor=2), [0.9, 0.1], 4),
        (Median(grace_period=3, min_trials=2), [0.9, 0.8, 0.1], 3),
        (Median(grace_period=0, min_trials=2), [0.9, 0.8, 0.1], 1),
        (Median(grace_period=0, min_trials=3), [0.9, 0.8, 0.1], None),
        (None, [0.9, 0.1], None),
    ],
)
def test_when_a_scheduler_stops_a_trial(path: Path, scheduler: Scheduler | None, values: list[float], first_stop: int | None) -> None:
    study = opened(path, an_experiment(in_steps, scheduler=scheduler))
    for number, value in enumerate(values):
        study.ask()
        stops = [step for step in range(1, 9) if study.report(number, step, value)]
        if number < len(values) - 1:
            assert not stops
            study.tell(TrialResult(number, (value,)))
    assert (stops[0] if stops else None) == first_stop


def test_a_step_reported_twice_counts_once(path: Path) -> None:
    study = opened(path, an_experiment(in_steps, SPACE, scheduler=Asha(grace_period=1)))
    study.ask()
    study.report(0, 1, 0.9)
    study.report(0, 1, 0.1)
    assert study._frozen(0).intermediate_values == {1: 0.9}
