"""The way to the champion's place: a challenger is judged against the champion on rows that neither has seen, and the aliases move only if
every gate lets it by.

`promote(model)` is the Python API and what `toolkit promote` calls. What the gates ask is in `promote_evidence`, what they say in
`core.judging`, the moving in `champion`.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import RegistryError
from toolkit.core.experiment import Experiment
from toolkit.core.gates import COSTS, may_promote, overridden
from toolkit.core.registry import (
    CHALLENGER,
    CHAMPION,
    COPIED_FROM,
    EXPERIMENT_TAG,
    parse_model,
)
from toolkit.promote_asked import Asked
from toolkit.reports.destination import destination
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.core.data import DataContext
    from toolkit.core.promotion_result import PromotionResult
    from toolkit.core.registry import ModelVersion
    from toolkit.promote_evidence import Candidate, Evidence
    from toolkit.sweep_control import Progress


def promote(
    model: str,
    *,
    experiment: Experiment | str | None = None,
    changes: Sequence[str] = (),
    holdout: str | Path | Callable[..., Any] | None = None,
    data: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    from_registry: str | None = None,
    to_registry: str | None = None,
    stages: bool = False,
    tracking_uri: str | None = None,
    report: Path | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> PromotionResult:
    """Judge a challenger by every gate of its experiment, and make it the champion if all let it by.

    The gates are those that the experiment has now. Where no experiment is given it is the recipe that the version's tags name or, if that
    lies in the working directory, the file it was registered from: the word of a registry makes no other code run here.

    Args:
        model: a registered name (`@challenger`), `name@alias` or `name/version`.
        experiment: itself, or how it is named on the command line. changes: `PATH=VALUE`, of anything but its gates.
        holdout: a table to judge on, in any form of `dataset.holdout`, in place of the experiment's own or of its test part.
        data: file or folder in place of the experiment's own source.
        overrides: gate -> why it may be failed. What passed stays passed; fallback data and a missing hold-out never pass.
        from_registry, to_registry: the challenger is in the one, and becomes champion in the other, by a copy.
        stages: legacy stages follow.
        report: where the HTML goes; default `TOOLKIT_HOME/reports/MODEL-VERSION-promotion.html`.

    Returns:
        the judgement; `is_promoted` says whether the champion has moved. Where no challenger waits, or it is champion already, nothing is
        judged.

    Raises:
        UserError: it could not be judged, or the aliases could not be moved. They are where they were, or the message says how to go on.
    """
    from toolkit.sweep_control import Unwatched

    settings = settings or Settings.read()
    asked = Asked(
        reference=parse_model(model),
        experiment=experiment,
        changes=tuple(changes),
        holdout=holdout,
        data=data,
        overrides={} if overrides is None else overrides,
        from_registry=from_registry,
        to_registry=to_registry,
        stages=stages,
        report=report,
    )
    return _Promotion(asked, tracking_uri or settings.tracking_uri, settings, progress or Unwatched()).execute()


class _Promotion:
    """One call of `promote`: its parts in the order in which they happen."""

    def __init__(self, asked: Asked, tracking_uri: str | None, settings: Settings, progress: Progress) -> None:
        self.asked = asked
        self.tracking_uri = tracking_uri
        self.settings = settings
        self.progress = progress
        self.began, self.began_unix_s = time.perf_counter(), time.time()

    def execute(self) -> PromotionResult:
        from toolkit.champion import recover
        from toolkit.champion_history import lost_champion

        if self.asked.report is not None:
            destination(self.asked.report, self.asked.report)
        given = self.asked.given_experiment()
        self.progress.phase("looking at the registry")
        self._open_registries()
        if self.asked.stages:
            self.target.check_stages()
        recovered = recover(self.target, self.name, by=self.settings.user) if self.is_in_target else ()
        self.recovered = "; ".join(map(str, recovered))
        self.champion = self.target.by_alias(self.name, CHAMPION) if self.is_in_target else None
        self.lost = lost_champion(self.target, self.name) if self.champion is None and self.is_in_target else None
        challenger = self._find_challenger()
        if challenger is None or self._is(challenger, self.champion):
            assert self.champion is not None
            if self.asked.needs_experiment:  # what was asked is right or wrong, whatever there is to judge
                self._experiment(self.champion, given)
            return self._nothing_to_do(self.champion)
        self.challenger = challenger
        self.report_path = self._report_path()
        self.experiment = self._experiment(challenger, given)
        with tempfile.TemporaryDirectory(prefix="toolkit-promote-") as folder:
            return self._judge_and_move(Path(folder))

    # --- who, and by which gates --------------------------------------------------------------------------------------------------

    def _open_registries(self) -> None:
        from toolkit.engines.mlflow_registry import Registry
        from toolkit.engines.mlflow_store import database_path

        def opened(named: str | None, *, create: bool = False) -> Registry:
            # One that is named brings its own tracking server, which holds its models.
            return Registry(named, create=create) if named else Registry.open(self.settings.registry_uri, self.tracking_uri)

        self.source = self.target = opened(self.asked.from_registry)
        self.source_name = self.name = self.source.resolve_name(self.asked.reference.name)
        self.is_in_target = True
        if self.asked.to_registry == self.asked.from_registry:
            return
        database = database_path(self.asked.to_registry or "")
        if database and not database.parent.is_dir():
            raise RegistryError(
                "--to-registry: a database in a folder that exists", got=str(database), next_step="make the folder, or correct the path"
            )
        other = opened(self.asked.to_registry, create=True)
        if other.uri != self.source.uri:
            other.check_name(self.name)
            self.target, self.is_in_target = other, other.has_model(self.name)

    @property
    def has_two_registries(self) -> bool:
        return self.target is not self.source

    def _find_challenger(self) -> ModelVersion | None:
        """None where none is waiting, which after a promotion is as it should be: a job that runs again has nothing to do."""
        if self.asked.is_default and self.champion is not None and self.source.by_alias(self.source_name, CHALLENGER) is None:
            return None
        return self.source.find(replace(self.asked.reference, name=self.source_name), default_alias=CHALLENGER)

    def _is(self, challenger: ModelVersion, champion: ModelVersion | None) -> bool:
        if champion is None:
            return False
        if not self.has_two_registries:
            return challenger.version == champion.version
        origin = {"registry": self.source.display_uri, "model": challenger.name, "version": str(challenger.version)}
        return all(champion.tags.get(f"{COPIED_FROM}.{key}") == value for key, value in origin.items())

    def _experiment(self, version: ModelVersion, given: Experiment | None) -> Experiment:
        return self.asked.with_holdout(self.asked.experiment_of(version, given), self._context())

    def _context(self) -> DataContext:
        from toolkit.core.data import DataContext

        return DataContext(data=self.asked.data, data_dir=self.settings.data_dir, cache_dir=self.settings.home / "cache")

    def _report_path(self) -> Path:
        safe = re.sub(r"[^\w.-]+", "_", self.challenger.name)
        default = self.settings.home / "reports" / f"{safe}-{self.challenger.version}-promotion.html"
        return destination(self.asked.report, default)

    # --- judging ------------------------------------------------------------------------------------------------------------------

    def _judge_and_move(self, folder: Path) -> PromotionResult:
        from toolkit.core.promotion_result import PromotionResult
        from toolkit.promote_outputs import notices, promotion_run, record

        evidence = self._evidence(folder)
        self.progress.phase("judging")
        gates = overridden(evidence.judge(), self.asked.overrides)
        holdout = evidence.holdout.or_none()
        run = promotion_run(self.experiment, self.challenger, self.champion, self.tracking_uri, self.settings)
        result = PromotionResult(
            experiment=self.experiment.name,
            model=self.name,
            version=self.challenger.version,
            is_promoted=False,
            was_champion=False,
            gates=tuple(gates),
            challenger=evidence.challenger.summary(),
            champion=evidence.champion.summary() if evidence.champion else None,
            holdout=holdout.summary if holdout else None,
            notices=(*self._notices(), *notices(evidence, gates, self.asked.overrides)),
            recovered=self.recovered,
            by=self.settings.user,
            run_id="",
            mlflow_experiment=run.experiment_name,
            tracking_uri=run.tracking_uri,
            registry_uri=self.target.display_uri,
            report_path=str(self.report_path),
            started_unix_s=self.began_unix_s,
            wall_s=0.0,
        )
        self.progress.phase("writing the report")
        with run:
            result = replace(result, run_id=run.run_id, wall_s=time.perf_counter() - self.began)
            record(result, run, self.source, self.challenger, folder)
        if may_promote(gates):
            result = self._move(result)
        return replace(result, wall_s=time.perf_counter() - self.began)

    def _evidence(self, folder: Path) -> Evidence:
        from toolkit.promote_evidence import Candidate, Evidence, Once
        from toolkit.promote_holdout import read_holdout
        from toolkit.registration import registered_model

        self.progress.phase("fetching the models")
        challenger_folder = self.source.download(self.challenger, folder / "challenger")
        champion_folder = self.target.download(self.champion, folder / "champion") if self.champion else None
        holdout = Once(lambda: read_holdout(self.experiment, challenger.model().spec, self._context()))
        metrics = tuple(dict.fromkeys(gate.metric for gate in self.experiment.gates if gate.metric not in COSTS))
        challenger = Candidate(self.challenger.version, challenger_folder, holdout, metrics)
        challenger.model = Once(partial(registered_model, self.challenger, challenger_folder))
        champion = None
        if self.champion and champion_folder:
            champion = Candidate(self.champion.version, champion_folder, holdout, metrics)
            champion.model = Once(partial(registered_model, self.champion, champion_folder))
            self._check_champion(champion)
        return Evidence(self.experiment, holdout, challenger, champion)

    def _notices(self) -> list[str]:
        """What the registry has to say."""
        found = []
        if self.lost is not None:
            found.append(f"version {self.lost}, the last champion, was deleted, and all before it: nothing is left to compare with")
        both = (("challenger", self.source, self.challenger), ("champion", self.target, self.champion))
        for who, registry, version in both:
            if version and not registry.has_run(version):
                found.append(
                    f"the MLflow run of the {who}, version {version.version}, is deleted or out of reach: nothing says how it was made"
                )
        return found

    def _check_champion(self, champion: Candidate) -> None:
        try:
            champion.model()
        except ValueError as error:
            raise RegistryError(
                f"the champion, version {champion.version} of {self.name}: a model to compare with",
                got=str(error),
                next_step=f"roll back to one that is whole: toolkit rollback {self.name}",
            ) from error

    # --- moving -------------------------------------------------------------------------------------------------------------------

    def _move(self, result: PromotionResult) -> PromotionResult:
        from toolkit.champion import move_champion
        from toolkit.core.promotion_result import decision

        version, is_challenger = self.challenger, self.asked.is_default
        if self.has_two_registries:
            self.progress.phase("copying the version")
            judged_version = self.source.version(self.challenger.name, self.challenger.version)
            version = self.target.copy_from(self.source, judged_version, self.name, mlflow_experiment=result.mlflow_experiment)
            is_challenger = False  # of the other registry
        self.progress.phase("moving the champion")
        move = move_champion(
            self.target,
            self.name,
            version.version,
            expected_champion=self.champion.version if self.champion else None,
            by=self.settings.user,
            reason="; ".join(f"{gate.name} overridden: {gate.override_reason}" for gate in result.overridden),
            decision=decision(result),
            is_challenger=is_challenger,
            stages=self.asked.stages,
        )
        recovered = "; ".join([result.recovered] * bool(result.recovered) + [str(each) for each in move.recovered])
        return replace(result, version=version.version, is_promoted=True, recovered=recovered)

    def _nothing_to_do(self, champion: ModelVersion) -> PromotionResult:
        from toolkit.core.promotion_result import PromotionResult
        from toolkit.core.secrets import without_secrets

        return PromotionResult(
            experiment=champion.tags.get(EXPERIMENT_TAG, ""),
            model=self.name,
            version=champion.version,
            is_promoted=False,
            was_champion=True,
            gates=(),
            challenger=None,
            champion=None,
            holdout=None,
            notices=(),
            recovered=self.recovered,
            by=self.settings.user,
            run_id="",
            mlflow_experiment="",
            tracking_uri=without_secrets(self.tracking_uri or ""),
            registry_uri=self.target.display_uri,
            report_path="",
            started_unix_s=self.began_unix_s,
            wall_s=time.perf_counter() - self.began,
        )
