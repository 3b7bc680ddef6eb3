"""What was asked of a promotion, looked at before anything is judged: whose gates, which of them may fail, and on which rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import DataError, ExperimentError, UserError
from toolkit.core.experiment import Experiment
from toolkit.core.gates import check_overrides
from toolkit.core.recipes import load_experiment, override
from toolkit.core.registry import CHALLENGER, EXPERIMENT_SOURCE_TAG, EXPERIMENT_TAG

if TYPE_CHECKING:
    from toolkit.core.data import DataContext
    from toolkit.core.registry import ModelReference, ModelVersion


@dataclass(frozen=True)
class Asked:
    """The arguments of `promote`.

    Raises:
        UserError: one of them is not of its type.
    """

    reference: ModelReference
    experiment: Experiment | str | None
    changes: tuple[str, ...]
    holdout: str | Path | Callable[..., Any] | None
    data: Path | None
    overrides: Mapping[str, str]
    from_registry: str | None
    to_registry: str | None
    stages: bool
    report: Path | None

    def __post_init__(self) -> None:
        if not isinstance(self.experiment, Experiment | str | None):
            raise ExperimentError(
                "experiment: an Experiment, or how it is named on the command line",
                got=type(self.experiment).__name__,
                next_step='for example experiment="./churn.py"',
            )
        is_mapping = isinstance(self.overrides, Mapping)
        if not is_mapping or not all(isinstance(text, str) for pair in self.overrides.items() for text in pair):
            raise UserError(
                "overrides: a mapping from gates to reasons, all of them texts",
                got=repr(dict(self.overrides) if is_mapping else self.overrides)[:200],
                next_step='for example overrides={"signature": "agreed with risk, ticket 17"}',
            )

    @property
    def is_default(self) -> bool:
        """Whoever is challenger is meant."""
        return self.reference.version is None and self.reference.alias in (None, CHALLENGER)

    @property
    def needs_experiment(self) -> bool:
        """There is something to check by it, were there nothing to judge."""
        return bool(self.experiment or self.changes or self.overrides or self.holdout is not None)

    def given_experiment(self) -> Experiment | None:
        """The one that was named, ready to judge; None where the version is to name it.

        Raises:
            ExperimentError: there is no such experiment, it has no gates, or `changes` are of these. UserError: an override is refused.
        """
        if self.experiment is None:
            return None
        return self._checked(load_experiment(self.experiment) if isinstance(self.experiment, str) else self.experiment)

    def experiment_of(self, version: ModelVersion, given: Experiment | None) -> Experiment:
        """`given`, else the one that the version's tags name, ready to judge.

        Raises:
            ExperimentError: as `given_experiment`, or it is not the one that the version was made by.
        """
        named = version.tags.get(EXPERIMENT_TAG, "")
        experiment = given or self._checked(_experiment_of_tags(version, named, version.tags.get(EXPERIMENT_SOURCE_TAG, "")))
        if named and experiment.name != named:
            raise ExperimentError(
                f"version {version.version} of {version.name} is of the experiment {named!r}",
                got=repr(experiment.name),
                next_step="give --experiment with that one",
            )
        return experiment

    def with_holdout(self, experiment: Experiment, context: DataContext) -> Experiment:
        """`experiment` with the hold-out that was named as its own, which is read here: a wrong path is a mistake, no judgement.

        Raises:
            DataError: it cannot be found or read.
        """
        from toolkit.core.data import Loaded
        from toolkit.engines.tables import fetch_holdout

        if self.holdout is None:
            return experiment
        try:
            fetched = fetch_holdout(experiment, context, self.holdout)
        except UserError as error:
            raise DataError(f"--holdout: {error}") from error
        assert fetched is not None
        loaded = Loaded(fetched.frame, fetched.kind, fetched.location)
        return replace(experiment, dataset=replace(experiment.dataset, holdout=lambda: loaded))

    def _checked(self, experiment: Experiment) -> Experiment:
        changed = override(experiment, self.changes)
        if changed.gates != experiment.gates:
            raise ExperimentError(
                "--set: the gates are the experiment's own",
                got=", ".join(self.changes),
                next_step="edit the experiment, or --override GATE --reason TEXT",
            )
        if not changed.gates:
            raise ExperimentError(
                "gates: an experiment without any promotes nothing",
                got=f"none in {changed.name!r}",
                next_step='add gates=(Gate("auc", at_least=0.8), Gate("auc", no_worse_than_champion_by=0.01)) to it',
            )
        check_overrides(self.overrides, changed.gates)
        return changed


def _experiment_of_tags(version: ModelVersion, named: str, source: str) -> Experiment:
    """Never a file outside the working directory, nor a module: a tag is not to say what code runs here."""
    title = f"version {version.version} of {version.name}"
    path = Path(source.partition(":")[0])
    if source and path.suffix == ".py" and path.is_file() and path.resolve().is_relative_to(Path.cwd()):
        return load_experiment(source)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", named):
        got = f"{named!r}" if named else "none"
        step = "give --experiment NAME, or path/to/file.py"
        raise ExperimentError(f"{title}: a tag that names its experiment, whose gates judge it", got=got, next_step=step)
    try:
        return load_experiment(named)
    except ExperimentError as error:
        step = f"give --experiment {source or 'path/to/file.py'}"
        raise ExperimentError(f"{title}: its experiment, whose gates judge it", got=str(error), next_step=step) from error
