"""The experiment: the user's whole configuration, one frozen object returned by one function.

Every part validates itself when it is made; what only the whole can tell (a metric that the model does not report, a
parameter that is both fixed and searched) is checked by `Experiment`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from toolkit.core.errors import ExperimentError, StudyError, nearest
from toolkit.core.gates import COSTS, Gate
from toolkit.core.metrics import XGBOOST_METRICS, check_metric
from toolkit.core.model import FROZEN, Model, PositiveInt, XGBoost
from toolkit.core.space import check_point, check_space, leaves

Protocol = Literal["honest", "published"]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveSeconds = Annotated[float, Field(gt=0.0)]

_WITHOUT_PROBABILITIES = ("binary:logitraw", "binary:hinge")


@dataclass(frozen=True, config=FROZEN)
class Dataset:
    """Where the rows come from and what the columns mean.

    Attributes:
        load: a path (CSV, Parquet, Delta), a `catalog.schema.table`, or a function of no argument or of one `DataContext` that
            returns one of these, a pandas frame, an Arrow table or a Spark DataFrame.
        label: column to predict. Binary and multiclass: any two or more values; regression: numbers.
        positive: of a binary label, the class that is looked for: probability, threshold, precision and recall are of it. None: the last in
            order: 1 of 0 and 1, but "nein" of "ja" and "nein".
        key: column that identifies a row; never a feature. The rows of a Spark or Delta table, which have no order, are sorted by it;
            without one by all columns.
        exclude: columns that are explored but never features (here: what the label was made from).
        categorical: features whose values are categories: text, whole numbers or booleans. XGBoost splits on sets of them, scikit-learn
            gets them one-hot encoded; a category that training did not know counts as missing.
        time: column that orders the rows, for `Split(by="time")`; never a feature.
        group: column whose values must not be spread over parts, for `Split(by="group")`; the query of a ranking task; never a feature.
        weight: column of row weights >= 0; never a feature.
        holdout: a table of its own for the final test, in any form of `load`.
    """

    load: str | Callable[..., Any]
    label: str
    key: str | None = None
    exclude: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    time: str | None = None
    group: str | None = None
    weight: str | None = None
    holdout: str | Callable[..., Any] | None = None
    positive: str | bool | int | float | None = None

    @property
    def not_features(self) -> frozenset[str]:
        named = (self.label, self.key, self.time, self.group, self.weight, *self.exclude)
        return frozenset(name for name in named if name)


@dataclass(frozen=True, config=FROZEN)
class Split:
    """How rows are divided. The test part is `test` of all rows; the validation part is `validation` of the rest.

    Attributes:
        by: `random`; `time`: the latest rows are the test part, the latest of the rest validation; `group`: no value of
        `dataset.group` in two parts.
        folds: with a number, trials are cross-validated over that many folds of train + validation.
        keep_duplicates_together: rows with equal features go to the same part (random splits only); the published protocol ignores it.
    """

    by: Literal["random", "time", "group"] = "random"
    test: Fraction = 0.25
    validation: Fraction = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    folds: Annotated[int, Field(ge=2)] | None = None
    keep_duplicates_together: bool = True


@dataclass(frozen=True, config=FROZEN)
class Metric:
    """What the search improves: a name that the model reports, and the direction."""

    name: str
    direction: Literal["maximize", "minimize"]


@dataclass(frozen=True, config=FROZEN)
class Sampler:
    """Who proposes parameters: `tpe`, `random`, or any sampler of Optuna by its class name (`GPSampler`, `CmaEsSampler`).

    `options` are the class's own arguments; `seed` comes from the sweep.
    """

    name: str = "tpe"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=FROZEN)
class Asha:
    """Asynchronous successive halving: at `grace_period` rounds, then at every `reduction_factor` times more, only the best
    1 / `reduction_factor` of what got there goes on (Li et al., arXiv 1810.05934)."""

    grace_period: PositiveInt = 20
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    kind: Literal["asha"] = "asha"


@dataclass(frozen=True, config=FROZEN)
class Median:
    """Stops a trial whose best value so far is worse than the median of the others at the same round."""

    grace_period: Annotated[int, Field(ge=0)] = 20
    min_trials: PositiveInt = 5
    kind: Literal["median"] = "median"


Scheduler = Annotated[Asha | Median, Field(discriminator="kind")]


@dataclass(frozen=True, config=FROZEN)
class Sweep:
    """The search: how many trials, how many at once, with what resources, and when to give up.

    Attributes:
        concurrency: trials at once; None: as many as there are slots.
        timeout_s: ends the search; running trials are stopped, finished ones count.
        trial_timeout_s: ends one trial, as failed.
        memory_gib_per_trial: what a trial may allocate beyond what its process holds when it starts; more fails it.
        max_failed_trials: more failed trials than this end the sweep; None: a fifth of `num_trials`, at least one.
        max_retries: how often a trial is started again when its process or node dies.
        report_every: boosting rounds between two reports, also the resolution of metric histories.
    """

    num_trials: PositiveInt = 50
    concurrency: PositiveInt | None = None
    cpus_per_trial: Annotated[float, Field(gt=0.0)] = 1
    gpus_per_trial: Annotated[float, Field(ge=0.0)] = 0
    sampler: Sampler = Sampler()
    scheduler: Scheduler | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    timeout_s: PositiveSeconds | None = None
    trial_timeout_s: PositiveSeconds | None = None
    memory_gib_per_trial: Annotated[float, Field(gt=0.0)] | None = None
    max_failed_trials: Annotated[int, Field(ge=0)] | None = None
    max_retries: Annotated[int, Field(ge=0)] = 3
    report_every: PositiveInt = 10

    @property
    def failure_limit(self) -> int:
        return max(1, self.num_trials // 5) if self.max_failed_trials is None else self.max_failed_trials


@dataclass(frozen=True, config=FROZEN)
class Costs:
    """What a false positive and a false negative cost, in the same unit: they choose the classification threshold."""

    fp: Annotated[float, Field(gt=0.0)] = 1.0
    fn: Annotated[float, Field(gt=0.0)] = 1.0


@dataclass(frozen=True, config=FROZEN)
class Training:
    """`toolkit train --distributed`: one XGBoost model over rows that no single process holds.

    Attributes:
        num_workers, cpus_per_worker: processes that share the rows, and the threads of each.
        checkpoint_every: boosting rounds between two checkpoints; a lost worker costs at most so many rounds.
        storage_path: a folder that all nodes of the cluster see, for rows and checkpoints; None: in TOOLKIT_HOME, on a single node only.
        max_failures: how often the training goes on from its checkpoint after a worker was lost.
        gather_gib: a table up to this size as float32 is gathered here and divided as a sweep divides it; a larger one never is: its rows
            go from Parquet to Parquet, into parts by their hashes.
    """

    num_workers: PositiveInt = 2
    cpus_per_worker: PositiveInt = 1
    checkpoint_every: PositiveInt = 25
    storage_path: str | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3
    gather_gib: Annotated[float, Field(ge=0.0)] = 2.0


@dataclass(frozen=True, config=FROZEN)
class Cluster:
    """The Ray cluster. The counts are for `--cluster spark`, where a worker is one Ray node, which fills one Spark executor.

    Attributes:
        dashboard: Ray's own; costs start-up time and memory.
        max_workers: so many are asked for; None: one for each executor that is there at the start.
        min_workers: with fewer the sweep fails; None: one will do. Where both are given and differ, the search begins with `min_workers`,
            and up to `max_workers` are added while trials wait, and given back when idle.
        start_timeout_s: how long nothing may happen, while workers start or when all of them are lost, before the sweep gives up.
    """

    dashboard: bool = False
    min_workers: PositiveInt | None = None
    max_workers: PositiveInt | None = None
    start_timeout_s: PositiveSeconds = 120.0

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        if self.min_workers is not None and self.max_workers is not None and self.min_workers > self.max_workers:
            raise ExperimentError("cluster.min_workers: at most cluster.max_workers", got=f"{self.min_workers} and {self.max_workers}")
        return self

    @property
    def scales(self) -> bool:
        return self.min_workers is not None and self.max_workers is not None and self.min_workers < self.max_workers


@dataclass(frozen=True, config=FROZEN)
class Experiment:
    """One modelling problem.

    Attributes:
        space: what a sweep searches; None: the model can be trained, not searched.
        metric: what it improves; with two entries a sweep searches a Pareto front, without scheduler.
        baseline: what `toolkit train --baseline` fits; None: a predictor of the mean, and XGBoost with its defaults.
        calibration: of a binary model's probabilities, on validation rows, before the threshold is chosen.
        gates: what a challenger must pass to become champion. Without any, nothing is promoted.
        model_name: of the registered model; default: `name` with `_` for `-`.
    """

    name: str
    dataset: Dataset
    model: Model
    space: Any
    metric: Metric | tuple[Metric, Metric]
    split: Split = Split()
    sweep: Sweep = Sweep()
    costs: Costs = Costs()
    cluster: Cluster = Cluster()
    training: Training = Training()
    baseline: Model | None = None
    calibration: Literal["isotonic", "sigmoid"] | None = None
    gates: tuple[Gate, ...] = ()
    points_to_evaluate: tuple[Mapping[str, Any], ...] = ()
    model_name: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", self.name):
            raise ExperimentError("name: lower-case letters, digits, '-' and '_', at most 63", got=repr(self.name))
        if self.space is not None and not isinstance(self.space, Mapping) and not callable(self.space):
            raise ExperimentError("space: a mapping or a function of a trial", got=type(self.space).__name__)
        if self.space is not None:
            check_space(self.space)
        for number, point in enumerate(self.points_to_evaluate):
            check_point(self.space, point, f"points_to_evaluate[{number}]")
        if len(self.metrics) != len({metric.name for metric in self.metrics}):
            raise ExperimentError("metric: the two names must differ", got=repr(self.metrics[0].name))
        if len(self.metrics) > 1 and self.sweep.scheduler is not None:
            raise ExperimentError(
                "sweep.scheduler: none with two metrics, for there is no order to stop by",
                got=self.sweep.scheduler.kind,
                next_step="remove the scheduler or one metric",
            )
        if self.split.by == "time" and not self.dataset.time:
            raise ExperimentError('split.by: "time" needs dataset.time', got="no time column")
        if self.split.by == "group" and not self.dataset.group:
            raise ExperimentError('split.by: "group" needs dataset.group', got="no group column")
        if isinstance(self.model, XGBoost):
            self._check_xgboost(self.model)
        self._check_roles()
        return self

    def _check_roles(self) -> None:
        both = set(self.dataset.categorical) & self.dataset.not_features
        if both:
            raise ExperimentError(
                "dataset.categorical: features only", got=", ".join(map(repr, sorted(both))), next_step="name it in one place"
            )
        if self.dataset.positive is not None and self.model.task != "binary":
            raise ExperimentError(
                "dataset.positive: for binary models",
                got=f"{self.dataset.positive!r} and a {self.model.task} model",
                next_step="remove it",
            )
        if self.calibration and self.model.task != "binary":
            raise ExperimentError("calibration: for binary models", got=f"a {self.model.task} model", next_step="remove it")
        if self.baseline is not None and self.baseline.task != self.model.task:
            raise ExperimentError("baseline: must have the model's task", got=f"{self.baseline.task} and {self.model.task}")
        for gate in self.gates:
            if gate.metric not in COSTS:
                check_metric(self.model.task, gate.metric)
        names = [gate.name for gate in self.gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ExperimentError("gates: each once", got=", ".join(twice), next_step="remove one")

    def _check_xgboost(self, model: XGBoost) -> None:
        if model.objective in _WITHOUT_PROBABILITIES:
            raise ExperimentError(
                "model.objective: a classifier must give probabilities", got=repr(model.objective), next_step='use "binary:logistic"'
            )
        known = XGBOOST_METRICS[model.task]
        for metric in self.metrics:
            if metric.name.split("@")[0] not in known:
                raise ExperimentError(
                    f"metric: {model.objective} does not report it", got=repr(metric.name), next_step=nearest(metric.name, known)
                )
        if model.task == "ranking" and not self.dataset.group:
            raise ExperimentError("dataset.group: a ranking needs the column that holds its queries", got="none")
        if model.device == "cuda" and not self.sweep.gpus_per_trial:
            raise ExperimentError('model.device: "cuda" needs sweep.gpus_per_trial', got="0", next_step="add --set sweep.gpus_per_trial=1")
        searched = {name.rsplit("/", 1)[-1] for name, _ in leaves(self.space)} if isinstance(self.space, Mapping) else set()
        fixed = {"objective", "num_boost_round", "early_stopping_rounds", "device", "nthread", "eval_metric", *model.params}
        for name in sorted(searched & fixed):
            raise ExperimentError(
                "space: parameter is set by the model already", got=repr(name), next_step="name it in one of the two places"
            )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return self.metric if isinstance(self.metric, tuple) else (self.metric,)

    @property
    def registered_name(self) -> str:
        return self.model_name or self.name.replace("-", "_")

    def fingerprint(self, protocol: Protocol) -> dict[str, str]:
        """What makes two searches comparable, by dotted path: resuming refuses a study in which any of it differs."""
        parts: dict[str, Any] = {
            "protocol": protocol,
            "space": self.space,
            "model": self.model,
            "metric": self.metrics,
            "split": self.split,
            "sampler": self.sweep.sampler,
            "scheduler": self.sweep.scheduler,
            "report_every": self.sweep.report_every if self.sweep.scheduler else None,
            "seed": self.sweep.seed,
            "dataset": {"label": self.dataset.label, "not_features": sorted(self.dataset.not_features)}
            | ({"categorical": sorted(self.dataset.categorical)} if self.dataset.categorical else {})
            # As text: `--set` types it as it likes.
            | ({} if self.dataset.positive is None else {"positive": str(self.dataset.positive)}),
        }
        flat: dict[str, str] = {}
        for name, value in parts.items():
            flat.update(_describe(value, name))
        return flat


def _describe(value: Any, path: str) -> dict[str, str]:
    """`value` by dotted paths. Functions count by their source, so that an edit shows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        flat = {path: type(value).__name__}
        for field in dataclasses.fields(value):
            flat.update(_describe(getattr(value, field.name), f"{path}.{field.name}"))
        return flat
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in _describe(item, f"{path}.{name}").items()} or {path: "{}"}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in _describe(item, f"{path}[{i}]").items()} or {path: "[]"}
    if callable(value):
        return {path: source_id(value)}
    return {path: repr(value)}


def source_id(function: Callable[..., Any]) -> str:
    """A name for a function that changes with its source text."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr((code.co_code, code.co_names, code.co_varnames)) if code else repr(type(function))
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def check_fingerprint(study: str, was: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with another search under the same name, and say what differs.

    Raises:
        StudyError: something of `was` is not so any more.
    """
    different = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    if different:
        shown = ", ".join(f"{name} was {was.get(name, 'absent')}, is {now.get(name, 'absent')}" for name in different[:3])
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise StudyError(
            f"study {study!r} was begun with another experiment",
            got=shown + more,
            next_step="undo that, or begin another with --study NAME",
        )
