"""Studies on Optuna: sampler and scheduler as configured, every trial in an append-only journal.

The one writer of a journal is the process that holds the study's lock, so operations are kept in memory and written by groups: one
write for a trial's proposal, one write and one fsync for its end. A journal cut off in the middle of a line by a crash loses that line
only.

Optuna's pruners play the scheduler, on every runner: their state is the journal's, so that it survives a crash of the driver, which
the state of Ray Tune's own ASHA does not (docs/decisions/0002).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import BaseJournalBackend, JournalStorage
from optuna.trial import TrialState as OptunaState

from toolkit.core.errors import ExperimentError, StudyError, nearest
from toolkit.core.experiment import Asha, Experiment, Median, Sampler, Scheduler
from toolkit.core.space import Branch, check_point, draw, flatten, leaves
from toolkit.core.study import Proposal, TrialRecord, TrialResult, TrialState

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {
    OptunaState.COMPLETE: TrialState.COMPLETE,
    OptunaState.PRUNED: TrialState.PRUNED,
    OptunaState.FAIL: TrialState.FAILED,
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.WAITING: TrialState.WAITING,
}
# What a sampler imports only once it has trials to learn from.
_LIBRARIES = {"CmaEsSampler": "cmaes", "GPSampler": "torch"}
# Samplers whose draws depend on nothing but their seed and the study: a fresh one a trial, seeded by the trial's number, gives the
# same trials after a resume as without. The others (quasi-random sequences, CMA-ES) need one seed for the whole study.
_SEEDED_BY_TRIAL = ("TPESampler", "RandomSampler")


class Journal(BaseJournalBackend):
    """Optuna's journal format, one JSON object a line, written by groups. Optuna's own `JournalFileBackend` reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[str] = []
        self._unread: list[dict[str, Any]] = []
        self._num_read = 0
        self._num_bytes = 0
        if path.exists():
            self._load()

    def _load(self) -> None:
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        lines = content[:end].splitlines()
        try:
            self._unread = [json.loads(line) for line in lines]
        except ValueError as error:
            raise StudyError(f"journal {self.path} is damaged", got=str(error), next_step="restore it, or use another --study") from error
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)
        self._num_bytes = end

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        fresh = self._unread[max(0, log_number_from - self._num_read) :]
        self._num_read += len(self._unread)
        self._unread = []
        return fresh

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        self._pending.extend(lines)
        self._unread.extend(json.loads(line) for line in lines)

    def flush(self, synced: bool = True) -> None:
        """Write what is pending; `synced`: so that it outlives a power cut, not only the process.

        Raises:
            StudyError: the disk refuses (full, read-only). The file then ends where it did before.
        """
        if not self._pending:
            return
        block = ("\n".join(self._pending) + "\n").encode()
        try:
            with self.path.open("ab") as file:
                file.write(block)
                if synced:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                if self._num_bytes:
                    os.truncate(self.path, self._num_bytes)
                else:
                    self.path.unlink(missing_ok=True)
            raise StudyError(
                f"the study's journal {self.path} must be writable", got=error.strerror, next_step="free space, then --resume"
            ) from error
        self._num_bytes += len(block)
        self._pending.clear()


class OptunaStudy:
    """Implements `core.study.Study`.

    Attributes:
        attributes: what the sweep keeps with the study (its id, fingerprint, parent run, …): JSON values by name; see `remember`.
    """

    def __init__(self, name: str, experiment: Experiment, journal: Journal) -> None:
        self.name = name
        self._experiment = experiment
        self._journal = journal
        self._is_new = not journal.path.exists()
        self._study = optuna.create_study(
            storage=JournalStorage(journal),
            study_name=name,
            directions=[metric.direction for metric in experiment.metrics],
            pruner=_pruner(experiment.sweep.scheduler),
            sampler=optuna.samplers.RandomSampler(),
            load_if_exists=True,
        )
        self._make_sampler = _sampler_factory(experiment)
        self._sampler_of_study: optuna.samplers.BaseSampler | None = None
        self._running: dict[int, optuna.Trial] = {}
        num_queued = sum("fixed_params" in trial.system_attrs for trial in self._study.get_trials(deepcopy=False))
        for number, point in enumerate(experiment.points_to_evaluate[: experiment.sweep.num_trials]):
            if number >= num_queued:
                self._study.enqueue_trial(check_point(experiment.space, point, f"points_to_evaluate[{number}]"))

    @property
    def attributes(self) -> Mapping[str, Any]:
        return dict(self._study.user_attrs)

    def remember(self, **attributes: Any) -> None:
        """Keep JSON values with the study, durably."""
        for name, value in attributes.items():
            self._study.set_user_attr(name, value)
        self._journal.flush()

    def reset_interrupted(self) -> int:
        """Queue again what a process that no longer lives left running; how many that were."""
        left = self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        for trial in left:
            self._set_waiting(trial.number)
        self._journal.flush()
        return len(left)

    def ask(self) -> Proposal | None:
        trials = self._study.get_trials(deepcopy=False)
        waiting = [trial for trial in trials if trial.state is OptunaState.WAITING]
        if len(trials) - len(waiting) >= self._experiment.sweep.num_trials:
            return None
        number = waiting[0].number if waiting else len(trials)
        self._study.sampler = self._sampler_for(number)
        trial = self._study.ask()
        assert trial.number == number, f"asked for trial {number}, got {trial.number}"
        try:
            params = draw(self._experiment.space, trial)
        except Exception as error:
            self._set_waiting(number)
            self._journal.flush()
            raise ExperimentError("space: drawing parameters failed", got=f"{type(error).__name__}: {error}") from error
        trial.set_user_attr("params", flatten(params))
        self._running[number] = trial
        # A power cut may take it back before the next trial's end is written: then it was never asked for, and is asked for again.
        self._journal.flush(synced=False)
        return Proposal(number, params)

    def report(self, number: int, step: int, value: float) -> bool:
        trial = self._running[number]
        if step not in self._frozen(number).intermediate_values:
            trial.report(value, step)
        # Not flushed: a crash may lose it, for the trial would be run again anyway.
        return trial.should_prune()

    def tell(self, result: TrialResult, num_retries: int = 0) -> TrialRecord:
        trial = self._running.pop(result.number)
        trial.set_user_attr("result", result.as_dict())
        if num_retries:
            trial.set_user_attr("num_retries", num_retries)
        if result.state is TrialState.COMPLETE:
            self._study.tell(trial, list(result.values))
        else:
            self._study.tell(trial, state=OptunaState.PRUNED if result.state is TrialState.PRUNED else OptunaState.FAIL)
        self._journal.flush()
        return _record(self._frozen(result.number))

    def requeue(self, number: int) -> None:
        # One whose end could not be written has ended nevertheless, and is tried again when a later process finds it unfinished.
        if self._running.pop(number, None) is not None:
            self._set_waiting(number)
        self._journal.flush()

    def records(self) -> list[TrialRecord]:
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False) if "params" in trial.user_attrs]

    def params(self, number: int) -> dict[str, Any]:
        """A trial's parameters as its model got them: groups nested."""
        return draw(self._experiment.space, optuna.trial.FixedTrial(self._frozen(number).params, number))

    def importances(self) -> dict[str, float]:
        """Share of each parameter in the variation of the first metric (PED-ANOVA, Watanabe et al., arXiv 2304.10255); empty under 4
        completed trials."""
        completed = self._study.get_trials(deepcopy=False, states=(OptunaState.COMPLETE,))
        if len(completed) < 4 or not completed[0].params:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(
            optuna.importance.get_param_importances(
                self._study, evaluator=evaluator, target=(lambda t: t.values[0]) if len(self._experiment.metrics) > 1 else None
            )
        )

    def _set_waiting(self, number: int) -> None:
        self._study._storage.set_trial_state_values(self._frozen(number)._trial_id, OptunaState.WAITING)

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _sampler_for(self, number: int) -> optuna.samplers.BaseSampler:
        name, make = self._make_sampler
        if name in _SEEDED_BY_TRIAL:
            return make(int(np.random.SeedSequence([self._experiment.sweep.seed, number]).generate_state(1)[0]))
        if self._sampler_of_study is None:
            self._sampler_of_study = make(self._experiment.sweep.seed)
        return self._sampler_of_study


def _record(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    told = trial.user_attrs.get("result")
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        params=trial.user_attrs["params"],
        result=TrialResult(**{**told, "values": tuple(told["values"])}) if told else TrialResult(number=trial.number),
        num_retries=trial.user_attrs.get("num_retries", 0),
    )


def _sampler_factory(experiment: Experiment) -> tuple[str, Callable[[int], optuna.samplers.BaseSampler]]:
    """The class's name and a function of a seed.

    Raises:
        ExperimentError: unknown sampler, or options that it does not take.
    """
    config: Sampler = experiment.sweep.sampler
    name = {"tpe": "TPESampler", "random": "RandomSampler"}.get(config.name, config.name)
    known = [each for each in optuna.samplers.__all__ if each.endswith("Sampler") and not each.startswith(("Base", "PartialFixed"))]
    if name not in known:
        raise ExperimentError("sweep.sampler.name: unknown", got=repr(config.name), next_step=nearest(name, ["tpe", "random", *known]))
    library = _LIBRARIES.get(name)
    if library and importlib.util.find_spec(library) is None:
        raise ExperimentError(f"sweep.sampler.name: {name} needs {library}", got="none", next_step=f"install {library}")
    options = dict(config.options)
    if name == "TPESampler":
        branches = isinstance(experiment.space, Mapping) and any(isinstance(value, Branch) for _, value in leaves(experiment.space))
        if branches or callable(experiment.space):
            # A space with parameters that come and go is sampled jointly only within the groups that occur together.
            options.setdefault("group", True)
            options.setdefault("multivariate", True)

    def make(seed: int) -> optuna.samplers.BaseSampler:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                made: optuna.samplers.BaseSampler = getattr(optuna.samplers, name)(**options, seed=seed)
        except (TypeError, ValueError, ImportError) as error:
            raise ExperimentError(f"sweep.sampler.options: {name} refuses them", got=str(error).splitlines()[0]) from error
        return made

    make(0)
    return name, make


def _pruner(scheduler: Scheduler | None) -> optuna.pruners.BasePruner:
    if isinstance(scheduler, Asha):
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=scheduler.grace_period, reduction_factor=scheduler.reduction_factor, min_early_stopping_rate=0
        )
    if isinstance(scheduler, Median):
        return optuna.pruners.MedianPruner(n_startup_trials=scheduler.min_trials, n_warmup_steps=scheduler.grace_period)
    return optuna.pruners.NopPruner()
