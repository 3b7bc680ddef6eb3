"""The parallel search: from an experiment to a tested winner, every trial in the journal and in MLflow.

`sweep(experiment)` is the Python API and what `toolkit sweep` calls.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ClusterError, ExperimentError, Interrupted, StudyError, TooManyFailedTrials, TrackingError
from toolkit.core.experiment import Experiment, check_fingerprint
from toolkit.core.experiment import Protocol as SweepProtocol
from toolkit.core.metrics import check_metric
from toolkit.core.model import Custom, XGBoost
from toolkit.core.search import Runner, Search, error_summary
from toolkit.core.study import TrialRecord, TrialState, best_record, pareto_front
from toolkit.registration import check_registrable
from toolkit.reports.destination import destination
from toolkit.settings import Settings
from toolkit.sweep_cluster import ClusterName, TrialCluster
from toolkit.sweep_control import Interrupts, Progress, Unwatched, interrupts
from toolkit.sweep_outputs import publish

if TYPE_CHECKING:
    from toolkit.core.data import LoadedData, SplitData
    from toolkit.core.evaluation import Evaluation
    from toolkit.core.result import SweepResult
    from toolkit.core.trial import FinalModel
    from toolkit.engines.mlflow_tracking import MlflowTracker
    from toolkit.engines.optuna_study import OptunaStudy

_logger = logging.getLogger("toolkit")


def sweep(
    experiment: Experiment,
    *,
    protocol: SweepProtocol = "honest",
    cluster: ClusterName = "auto",
    spark_master: str | None = None,
    spark_conf: Mapping[str, str] | None = None,
    resume: bool = False,
    study: str | None = None,
    data: Path | None = None,
    tracking_uri: str | None = None,
    report: Path | None = None,
    register: bool = False,
    source: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Run a study to its end: search, choose the winner, fit it for use, test it once, log and report.

    Args:
        cluster: `local`: Ray on this machine, or the one at `RAY_ADDRESS`; `spark`: Ray on the executors of the active Spark session, or of
            one started for the sweep; `inprocess`: one trial after another in this process; `auto`: `spark` with `spark_master`, and where
            the active session has executors, else `local`.
        spark_master: `spark://HOST:PORT`, `yarn` or `local-cluster[…]`; default: what spark-defaults say. spark_conf: settings of the
            session that is started.
        resume: go on with an unfinished study: finished trials are kept, interrupted ones run again.
        study: its name; default `EXPERIMENT-PROTOCOL`.
        data: file or folder in place of the experiment's own source.
        report: where the HTML goes; default `TOOLKIT_HOME/reports/STUDY.html`.
        register: make the winner a version of the registered model, with the alias `challenger`.
        source: how the experiment was named, kept with the version so that `toolkit promote` finds its gates again.

    Raises:
        UserError: whatever the user can act on; nothing is written then unless trials had already run.
        Interrupted: Ctrl-C or SIGTERM; what was finished is kept.
    """
    settings = settings or Settings.read()
    if experiment.model.kind == "sparkml" or experiment.space is None:
        raise ExperimentError(
            "a sweep needs a model and a space to search",
            got="a pipeline of Spark ML" if experiment.model.kind == "sparkml" else "space=None",
            next_step="fit it with toolkit train",
        )
    if register:
        check_registrable(experiment)
    place = TrialCluster(experiment, cluster, spark_master, spark_conf or {}, settings)
    run = _Run(experiment, protocol, place, settings, progress or Unwatched(), registers=register)
    try:
        with ExitStack() as stack:
            handler = stack.enter_context(interrupts())
            result, spec = run.execute(stack, handler, resume, study, data, tracking_uri, report)
            return run.register(result, spec, source) if register else result
    except KeyboardInterrupt:
        raise Interrupted(run.how_to_resume()) from None


@dataclass
class _Clock:
    search_s: float = 0.0
    search_started_unix_s: float = 0.0


class _Run:
    """One call of `sweep`: its parts in the order in which they happen."""

    def __init__(
        self,
        experiment: Experiment,
        protocol: SweepProtocol,
        place: TrialCluster,
        settings: Settings,
        progress: Progress,
        *,
        registers: bool,
    ) -> None:
        self.experiment = experiment
        self.protocol = protocol
        self.place = place
        self.settings = settings
        self.progress = progress
        self.registers = registers
        self.began, self.began_unix_s = time.perf_counter(), time.time()
        self.clock = _Clock()
        self.study: OptunaStudy | None = None
        self.tracker: MlflowTracker | None = None
        self._tracking_ended = False

    def execute(
        self,
        stack: ExitStack,
        interrupts: Interrupts,
        resume: bool,
        study_name: str | None,
        data: Path | None,
        tracking_uri: str | None,
        report: Path | None,
    ) -> tuple[SweepResult, Mapping[str, Any] | None]:
        """The result, and the spec of the winner's portable model where one was logged."""
        from toolkit.engines.study_store import study_folder

        self.is_default_name = study_name is None
        if self.place.kind == "spark":
            self.progress.phase("connecting to Spark")
            self.place.connect_spark(stack)
        self.progress.phase("reading data")
        loaded = self._load(data)
        fingerprint = {**self.experiment.fingerprint(self.protocol), "data.sha256": loaded.source.sha256}
        base_name = study_name or f"{self.experiment.name}-{self.protocol}"
        folder = stack.enter_context(
            study_folder(self.settings.home, base_name, resume, self.settings.state_uri, is_exact=study_name is not None)
        )
        self.report_path = destination(report, self.settings.home / "reports" / f"{folder.name}.html")

        # Ray takes seconds to start, most of it in other processes: this one meanwhile imports, opens the study, and splits.
        if self.place.kind != "inprocess":
            self.place.start(stack, loaded.features.nbytes)
            self.progress.phase("starting Ray on Spark" if self.place.kind == "spark" else "starting Ray")
        study = self.study = self._open_study(folder.name, folder.journal, fingerprint, resume)
        # All that the experiment or its data can be refused for comes before MLflow has a run of it.
        split = self._split(loaded)
        uri = tracking_uri or self.settings.tracking_uri
        tracker = self.tracker = self._start_tracking(stack, folder.name, uri, loaded)
        if not self._is_embedded(uri):
            tracker.connect()
        runner = self.place.runner(self.protocol, split.trial)

        if not study.attributes:
            study.remember(
                study_id=self.study_id, fingerprint=fingerprint, experiment=self.experiment.name, created_unix_s=self.began_unix_s
            )
        study.remember(num_trials=self.experiment.sweep.num_trials, finished_unix_s=None)
        num_interrupted = study.reset_interrupted()
        if resume:
            self.progress.phase(f"resuming {study.name}: {num_interrupted} interrupted trials run again")
            tracker.reconcile(study.records())

        search = self._search(runner, interrupts)
        self.place.begin_stop()
        self._check_ending(search)

        best, front = self._winners(study.records())
        final, evaluation = self._fit_winner(best, split, loaded)
        tracker.connect()
        result = self._result(search, runner, loaded, split, (best, front), evaluation)
        self.progress.phase("writing the report")
        result, spec = publish(result, final, loaded, split, study, tracker, folder.path)
        self._tracking_ended = True
        num_finished = sum(record.state.is_finished for record in result.records)
        if num_finished >= result.num_trials and not result.num_unsent:
            study.remember(finished_unix_s=time.time())
        return replace(result, wall_s=time.perf_counter() - self.began), spec

    def register(self, result: SweepResult, spec: Mapping[str, Any] | None, source: str | None) -> SweepResult:
        """Last of all: whatever the registry says, the search and its model are kept."""
        from toolkit.registration import register

        if spec is None:
            _logger.warning("nothing to register: the sweep has logged no model")
            return result
        self.progress.phase("registering")
        assert self.tracker is not None
        version = register(
            self.experiment,
            spec,
            model_uri=result.model_uri,
            run_id=result.parent_run_id,
            tracking_uri=self.tracker.uri,
            settings=self.settings,
            source=source,
        )
        return replace(result, registered=version, wall_s=time.perf_counter() - self.began)

    # --- before the search ------------------------------------------------------------------------------------------------------

    def _load(self, data: Path | None) -> LoadedData:
        from toolkit.core.data import DataContext
        from toolkit.engines.tables import load_data

        if isinstance(self.experiment.model, XGBoost):
            for metric in self.experiment.metrics:
                check_metric(self.experiment.model.task, metric.name)
        context = DataContext(data=data, data_dir=self.settings.data_dir, cache_dir=self.settings.home / "cache")
        return load_data(self.experiment, context)

    def _open_study(self, name: str, journal_path: Path, fingerprint: Mapping[str, str], resume: bool) -> OptunaStudy:
        from toolkit.engines.optuna_study import Journal, OptunaStudy

        study = OptunaStudy(name, self.experiment, Journal(journal_path))
        self.study_id = str(study.attributes.get("study_id") or uuid.uuid4())
        if resume:
            check_fingerprint(name, study.attributes.get("fingerprint", {}), fingerprint)
            num_finished = sum(record.state.is_finished for record in study.records())
            is_finished = study.attributes.get("finished_unix_s") and num_finished >= self.experiment.sweep.num_trials
            # One that was interrupted while it registered its winner is finished, and goes on.
            if is_finished and not self.registers:
                raise StudyError(
                    f"study {name!r} is finished",
                    got=f"{num_finished} of {self.experiment.sweep.num_trials} trials",
                    next_step="raise --trials to extend it, or leave --resume out to begin another",
                )
        return study

    def _is_embedded(self, uri: str | None) -> bool:
        """The database is a file of ours: nothing on a network can refuse, and the search need not wait until MLflow is imported."""
        return uri.startswith("sqlite:") if uri else not self.settings.on_databricks

    def _start_tracking(self, stack: ExitStack, study: str, tracking_uri: str | None, loaded: LoadedData) -> MlflowTracker:
        from toolkit.core.naming import default_experiment_name
        from toolkit.engines.git import git_state
        from toolkit.engines.mlflow_tracking import MlflowTracker

        git = self.git = git_state()
        tracker = MlflowTracker(
            tracking_uri=tracking_uri,
            experiment_name=default_experiment_name(
                self.experiment.name, branch=git.branch, on_databricks=self.settings.on_databricks, user=self.settings.user
            ),
            study_name=study,
            study_id=self.study_id,
            spool=self.settings.home / "spool" / f"{study}.jsonl",
            run_name=study,
            tags={"toolkit.protocol": self.protocol, "data.source": loaded.source.kind},
        )
        tracker.start()

        def abandon() -> None:
            # On the good way out it is closed already. On any other the parent must not stay RUNNING.
            if self._tracking_ended:
                return
            if self.study is None or not self.study.attributes:
                tracker.withdraw()
                return
            tracker.finish("KILLED", time.time())
            tracker.close()

        stack.callback(abandon)
        return tracker

    def _split(self, loaded: LoadedData) -> SplitData:
        from toolkit.engines.sklearn_splits import split

        return split(loaded, self.experiment.split, self.protocol)

    # --- the search -------------------------------------------------------------------------------------------------------------

    def _search(self, runner: Runner, interrupts: Interrupts) -> Search:
        assert self.study is not None and self.tracker is not None
        records = self.study.records()
        metric = self.experiment.metrics[0]
        best = best_record(records, metric.direction)
        self.progress.begin(
            num_trials=self.experiment.sweep.num_trials,
            num_already_done=sum(record.state.is_finished for record in records),
            num_slots=runner.num_slots,
            metric=metric.name,
            direction=metric.direction,
            best=best.values[0] if best else None,
        )
        self.progress.phase("searching")
        search = Search(self.study, self.experiment.sweep, [self.tracker, self.progress])
        self.clock.search_started_unix_s = time.time()
        threading.Thread(target=self._watch_tracking, args=(search,), name="tracking-watch", daemon=True).start()
        self.place.watch(search)
        with interrupts.stopping(search):
            runner.run(search)
        search.conclude()
        self.clock.search_s = max(0.0, search.last_ended_unix_s - self.clock.search_started_unix_s)
        return search

    def _watch_tracking(self, search: Search) -> None:
        """An embedded database connects while the search begins; one that cannot be used ends it."""
        assert self.tracker is not None
        try:
            self.tracker.connect()
        except TrackingError:
            search.request_stop("tracking")

    def _check_ending(self, search: Search) -> None:
        """Raise unless there is something to choose a winner from."""
        assert self.study is not None and self.tracker is not None
        if search.stopping == "interrupt":
            raise Interrupted(self.how_to_resume())
        if search.stopping == "cluster":
            raise ClusterError("Ray must last as long as the search", got=self.place.failure(), next_step=self.how_to_resume())
        if search.stopping == "tracking":
            self.tracker.connect()
        failed = [record for record in self.study.records() if record.state is TrialState.FAILED]
        none_completed = len(failed) == len(self.study.records()) and search.stopping is None and failed
        if search.stopping == "failures" or none_completed:
            self.tracker.finish("FAILED", time.time())
            self.tracker.close()
            self._tracking_ended = True
            rule = (
                "no trial completed"
                if none_completed
                else f"more than {self.experiment.sweep.failure_limit} trials failed (sweep.max_failed_trials)"
            )
            raise TooManyFailedTrials(
                rule,
                got=f"{len(failed)} failed, the last with {error_summary(failed[-1].error)}",
                next_step="its traceback is in MLflow; correct the experiment, or raise sweep.max_failed_trials and --resume",
            )
        if search.stopping == "timeout":
            _logger.warning("sweep.timeout_s=%g reached: %s", self.experiment.sweep.timeout_s, self.how_to_resume())

    def how_to_resume(self) -> str:
        if self.study is None or not self.study.attributes:
            return "nothing was begun"
        records = self.study.records()
        num_finished = sum(record.state.is_finished for record in records)
        named = "" if self.is_default_name else f" --study {self.study.name}"
        return (
            f"{num_finished} of {self.experiment.sweep.num_trials} trials are kept in study {self.study.name!r}; "
            f"go on with --resume{named} added to the same command"
        )

    # --- after the search -------------------------------------------------------------------------------------------------------

    def _winners(self, records: Sequence[TrialRecord]) -> tuple[TrialRecord | None, list[TrialRecord]]:
        if len(self.experiment.metrics) == 1:
            return best_record(records, self.experiment.metrics[0].direction), []
        front = pareto_front(records, [metric.direction for metric in self.experiment.metrics])
        return (front[0] if front else None), front

    def _fit_winner(self, best: TrialRecord | None, split: SplitData, loaded: LoadedData) -> tuple[FinalModel | None, Evaluation | None]:
        model = self.experiment.model
        assert self.study is not None
        if best is None or (isinstance(model, Custom) and model.predict is None):
            return None, None
        from toolkit.final_model import fit_and_test

        self.progress.phase("fitting the winner")
        return fit_and_test(
            self.experiment, self.protocol, split, loaded.classes, self.study.params(best.number), best.result.best_iteration
        )

    def _result(
        self,
        search: Search,
        runner: Runner,
        loaded: LoadedData,
        split: SplitData,
        winner: tuple[TrialRecord | None, list[TrialRecord]],
        evaluation: Evaluation | None,
    ) -> SweepResult:
        from toolkit.core.result import SweepResult
        from toolkit.engines import build

        assert self.study is not None and self.tracker is not None
        sweep = self.experiment.sweep
        return SweepResult(
            experiment=self.experiment,
            study=self.study.name,
            protocol=self.protocol,
            cluster=self.place.kind,
            sampler=sweep.sampler.name,
            scheduler=sweep.scheduler.kind if sweep.scheduler else "none",
            seed=sweep.seed,
            num_trials=sweep.num_trials,
            records=tuple(self.study.records()),
            best=winner[0],
            pareto=tuple(winner[1]),
            evaluation=evaluation,
            stopped_by=search.stopping,
            wall_s=time.perf_counter() - self.began,
            cluster_start_s=self.place.start_s,
            search_s=self.clock.search_s,
            search_started_unix_s=self.clock.search_started_unix_s,
            fit_wall_s=sum(record.result.fit_wall_s for record in search.ended_records),
            fit_cpu_s=sum(record.result.fit_cpu_s for record in search.ended_records),
            num_slots=runner.num_slots,
            tracking_uri=self.tracker.tracking_uri,
            mlflow_experiment=self.tracker.experiment_name,
            parent_run_id=self.tracker.parent_run_id,
            model_uri="",
            report_path=str(self.report_path),
            source=loaded.source,
            feature_names=loaded.feature_names,
            split_description=split.description,
            num_train_rows=split.num_train_rows,
            num_validation_rows=split.num_validation_rows,
            num_test_rows=split.test.num_rows,
            num_unsent=0,
            started_unix_s=self.began_unix_s,
            versions=build.versions(),
            git_commit=self.git.commit or "",
        )
