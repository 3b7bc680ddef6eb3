"""What the gates judge: both models, and their predictions of the hold-out. Everything is made when a gate first asks for it; a failure is
remembered, and every gate that asks fails with its reason.

Shapes: n rows of the hold-out, d features, k classes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from toolkit.core.errors import DataError, UserError, nearest
from toolkit.core.experiment import Experiment
from toolkit.core.gates import (
    FINITE_METRICS,
    HOLDOUT_PRESENT,
    HOLDOUT_UNSEEN_BY_CHALLENGER,
    HOLDOUT_UNSEEN_BY_CHAMPION,
    HONEST_PROTOCOL,
    IMPLICIT,
    MODEL_LOADS,
    QUALITY_DEMANDED,
    REAL_DATA,
    SIGNATURE,
    Gate,
    GateResult,
    Status,
    judged,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from toolkit.core.figures import Prediction
    from toolkit.core.judging import Blind, Contest
    from toolkit.core.promotion_result import JudgedModel
    from toolkit.core.row_hashes import Hashes
    from toolkit.engines.portable_model import PortableModel
    from toolkit.promote_holdout import Holdout

# A call's own cost would stand for half of the time that a few hundred rows take.
TIMED_ROWS = 50_000

Made = TypeVar("Made")


class Once(Generic[Made]):
    """A value that is made when first asked for. Where that fails, each who asks gets the same exception."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: list[Made] = []
        self._failure: Exception | None = None

    def __call__(self) -> Made:
        if self._failure is not None:
            raise self._failure
        if not self._made:
            try:
                self._made.append(self._make())
            except Exception as error:
                self._failure = error
                raise
        return self._made[0]

    def or_none(self) -> Made | None:
        try:
            return self()
        except Exception:
            return None


@dataclass(frozen=True)
class Predicted:
    """(n, …) predictions of the hold-out, the (n,) hashes of its rows as the model sees them, and the time that a million would take, from
    table to prediction."""

    prediction: Prediction
    row_hashes: Hashes
    s_per_million_rows: float


@dataclass
class Candidate:
    """One of the two models, from the folder that it was downloaded to."""

    version: int
    folder: Path
    holdout: Once[Holdout]
    model: Once[PortableModel] = field(init=False)
    predicted: Once[Predicted] = field(init=False)
    figures: Once[Mapping[str, float]] = field(init=False)
    blind: Once[list[Blind]] = field(init=False)
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.model = Once(self._load)
        self.predicted = Once(self._predict)
        self.figures = Once(self._figures)
        self.blind = Once(self._blind)

    def _load(self) -> PortableModel:
        from toolkit.engines import portable_model

        return portable_model.load(self.folder)

    def _predict(self) -> Predicted:
        import numpy as np

        from toolkit.core.figures import Prediction

        model, frame = self.model(), self.holdout().frame
        encoded = self.holdout().encoded(model)
        began = time.perf_counter()
        values = model.predict_encoded(encoded.features)
        took_s, num_rows = encoded.took_s + time.perf_counter() - began, len(frame)
        if num_rows < TIMED_ROWS:
            many, num_rows = frame.iloc[np.resize(np.arange(len(frame)), TIMED_ROWS)], TIMED_ROWS
            began = time.perf_counter()
            model.predict(many)
            took_s = time.perf_counter() - began
        threshold = model.spec["threshold"]
        prediction = Prediction(np.asarray(values, dtype=np.float64), 0.5 if threshold is None else float(threshold))
        return Predicted(prediction, encoded.row_hashes, 1e6 * took_s / num_rows)

    def _figures(self) -> Mapping[str, float]:
        from toolkit.engines.sklearn_evaluation import evaluate

        rows, prediction = self.holdout().rows, self.predicted().prediction
        with _no_figure_is_told():
            return evaluate(
                rows.task,
                rows.label,
                prediction.values,
                self.metrics,
                weight=rows.weight,
                group=rows.group,
                threshold=prediction.threshold,
            )

    @property
    def costs(self) -> dict[str, float]:
        model = self.model()
        return {
            "predict_s_per_million_rows": self.predicted().s_per_million_rows,
            "model_mib": (model.folder / model.spec["model_file"]).stat().st_size / 2**20,
        }

    def seen(self, name: str) -> GateResult:
        """Whether it was fitted on rows of the hold-out."""
        from toolkit.core.judging import Overlap, judge_unseen
        from toolkit.core.row_hashes import num_common, share_repeated

        model, holdout = self.model(), self.holdout()
        told = model.spec["training_rows"]["num_rows"]
        if not len(model.training_row_hashes) or len(model.training_row_hashes) != told:
            raise UserError("the model must know the rows it was fitted on", got=f"{len(model.training_row_hashes)} of {told}")
        rows, keys = self.predicted().row_hashes, holdout.key_hashes(model.spec["key"])
        common_keys = None if model.training_keys is None or keys is None else num_common(keys, model.training_keys)
        common_rows = num_common(rows, model.training_row_hashes)
        # A table whose rows were copied would excuse itself, hence the training's repetitions as well.
        repeated = min(share_repeated(rows, keys), share_repeated(model.training_row_hashes)) if common_rows else 0.0
        return judge_unseen(name, model.spec, Overlap(holdout.summary.num_rows, common_keys, common_rows, repeated))

    def _blind(self) -> list[Blind]:
        from toolkit.core.judging import blind_features

        model, holdout = self.model(), self.holdout()
        return blind_features(model.spec, holdout.encoded(model).features, lambda name: holdout.frame[name])

    @property
    def lacks_key(self) -> str | None:
        """The column by which its training rows are known, where the hold-out does not have it."""
        model, holdout = self.model.or_none(), self.holdout.or_none()
        if model is None or holdout is None or not model.spec["training_rows"].get("has_keys"):
            return None
        key: str = model.spec["key"]
        return None if key in holdout.frame.columns else key

    def summary(self) -> JudgedModel:
        from toolkit.core.promotion_result import JudgedModel

        model, predicted = self.model.or_none(), self.predicted.or_none()
        costs = Once(lambda: self.costs).or_none() if predicted else None
        return JudgedModel(
            version=self.version,
            figures=self.figures.or_none() or {},
            threshold=model.spec["threshold"] if model else None,
            model_mib=costs["model_mib"] if costs else None,
            predict_s_per_million_rows=costs["predict_s_per_million_rows"] if costs else None,
            spec=model.spec if model else {},
        )


@dataclass(frozen=True)
class Evidence:
    """All that the gates ask."""

    experiment: Experiment
    holdout: Once[Holdout]
    challenger: Candidate
    champion: Candidate | None

    def judge(self) -> list[GateResult]:
        """Every gate, in the order of `gates.IMPLICIT`, then the experiment's own."""
        judges: dict[str, Callable[[], GateResult]] = {
            MODEL_LOADS: self._loads,
            REAL_DATA: self._real_data,
            HONEST_PROTOCOL: self._protocol,
            SIGNATURE: self._signature,
            HOLDOUT_PRESENT: self._holdout_present,
            HOLDOUT_UNSEEN_BY_CHALLENGER: lambda: self.challenger.seen(HOLDOUT_UNSEEN_BY_CHALLENGER),
            HOLDOUT_UNSEEN_BY_CHAMPION: self._unseen_by_champion,
            FINITE_METRICS: self._finite,
            QUALITY_DEMANDED: self._quality_demanded,
        }
        assert list(judges) == list(IMPLICIT)
        results = [judged(name, judge) for name, judge in judges.items()]
        with_champion, alone = Once(partial(self._contest, self.champion)), Once(partial(self._contest, None))
        for gate in self.experiment.gates:
            # A champion that cannot be compared with fails the gates that compare, and no other.
            judge = partial(self._own, gate, with_champion if gate.is_relative or with_champion.or_none() else alone)
            results.append(replace(judged(gate.name, judge), limit=gate.limit, asks=gate.asks))
        return results

    def _own(self, gate: Gate, contest: Once[Contest]) -> GateResult:
        from toolkit.core.judging import judge_gate

        with _no_figure_is_told():
            return judge_gate(gate, contest())

    def _loads(self) -> GateResult:
        from toolkit.engines.mlflow_examples import logged_example

        model = self.challenger.model()
        spec = model.spec
        for what, of_model, of_experiment in (
            ("experiment", spec["experiment"], self.experiment.name),
            ("task", spec["task"], self.experiment.model.task),
            ("label", spec["label"], self.experiment.dataset.label),
        ):
            if of_model != of_experiment:
                return GateResult(MODEL_LOADS, Status.FAILED, f"its {what} is {of_model!r}, the experiment's is {of_experiment!r}")
        example = logged_example(self.challenger.folder)
        if example is None:
            return GateResult(MODEL_LOADS, Status.FAILED, "no input example was logged with it")
        _check_prediction(model.predict(example), len(example), spec)
        return GateResult(MODEL_LOADS, Status.PASSED, f"as training wrote it; predicts the logged example of {len(example)} rows")

    def _real_data(self) -> GateResult:
        from toolkit.core.judging import judge_real_data

        holdout = self.holdout.or_none()
        return judge_real_data(self.challenger.model().spec, holdout.summary.kind if holdout else None)

    def _protocol(self) -> GateResult:
        from toolkit.core.judging import judge_protocol

        return judge_protocol(self.challenger.model().spec)

    def _signature(self) -> GateResult:
        from toolkit.core.judging import judge_signature

        return judge_signature(self.challenger.model().spec, self.champion.model().spec if self.champion else None)

    def _holdout_present(self) -> GateResult:
        from toolkit.core.judging import judge_holdout

        summary = self.holdout().summary
        return judge_holdout(summary.description, summary.num_rows, self.challenger.blind())

    def _unseen_by_champion(self) -> GateResult:
        if self.champion is None:
            return GateResult(HOLDOUT_UNSEEN_BY_CHAMPION, Status.NOT_APPLICABLE, "there is no champion")
        return self.champion.seen(HOLDOUT_UNSEEN_BY_CHAMPION)

    def _finite(self) -> GateResult:
        from toolkit.core.judging import judge_finite

        return judge_finite(self.challenger.figures())

    def _quality_demanded(self) -> GateResult:
        from toolkit.core.judging import judge_quality_demanded

        return judge_quality_demanded(self.experiment.gates, has_champion=self.champion is not None)

    def _contest(self, champion: Candidate | None) -> Contest:
        from toolkit.core.judging import Contest

        known: dict[tuple[str, int], float] = {}
        pair = [self.challenger, champion] if champion else [self.challenger]
        for each in pair:
            values = each.predicted().prediction.values
            known |= {(name, id(values)): value for name, value in each.figures().items()}
        specs = [each.model().spec for each in pair]
        if any(spec[name] != specs[0][name] for spec in specs for name in ("task", "classes")):
            raise UserError("the two models must predict the same to be compared", got="other classes or another task")
        return Contest(
            rows=self.holdout().rows,
            challenger=self.challenger.predicted().prediction,
            champion=champion.predicted().prediction if champion else None,
            metric_of=_KnownFigures(known),
            column=self._column,
            costs=self.challenger.costs,
            row_hashes=self.challenger.predicted().row_hashes,
        )

    def notices(self) -> tuple[str, ...]:
        """What is worth knowing of the judgement, and refuses nothing."""
        from toolkit.core.judging import compares_nothing

        pair = {"the challenger": self.challenger} | ({"the champion": self.champion} if self.champion else {})
        found = [blind.told_of(who) for who, each in pair.items() for blind in each.blind.or_none() or ()]
        found += [
            f"the hold-out has no column {each.lacks_key!r}: its rows are compared by their features alone, not by key"
            for each in pair.values()
            if each.lacks_key
        ]
        if self.champion and compares_nothing(self.experiment.gates):
            found.append("no gate compared the challenger with the champion or asked for quality; add one with no_worse_than_champion_by")
        return tuple(dict.fromkeys(found))

    def _column(self, name: str) -> npt.NDArray[Any]:
        frame = self.holdout().frame
        if name not in frame.columns:
            raise DataError("gate: by must be a column of the hold-out", got=repr(name), next_step=nearest(name, map(str, frame.columns)))
        return frame[name].to_numpy()


class _KnownFigures:
    """`metric_of`, which does not compute a second time what is known of all rows: a million of them take a third of a second."""

    def __init__(self, known: Mapping[tuple[str, int], float]) -> None:
        self._known = known

    def __call__(self, name: str, task: Any, label: Any, prediction: Any, **options: Any) -> float:
        from toolkit.engines.sklearn_evaluation import metric_of

        known = self._known.get((name, id(prediction)))
        return metric_of(name, task, label, prediction, **options) if known is None else known


def _check_prediction(prediction: npt.NDArray[np.float32], num_rows: int, spec: Mapping[str, Any]) -> None:
    import numpy as np

    shape = (num_rows, len(spec["classes"])) if spec["task"] == "multiclass" else (num_rows,)
    if prediction.shape != shape:
        raise UserError(f"its predictions of the logged example must have the shape {shape}", got=prediction.shape)
    if not np.isfinite(prediction).all():
        raise UserError("its predictions of the logged example must be finite", got=f"{int((~np.isfinite(prediction)).sum())} that are not")


def _no_figure_is_told() -> warnings.catch_warnings[None]:
    """scikit-learn warns where a metric has no value, of which the gate speaks better."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
