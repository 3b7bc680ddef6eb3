"""What the gates say of a challenger, from what is known of it: its spec, the champion's, and both models' predictions of the hold-out.

Pure, and fails closed: each gate is judged by itself, and one that raises has failed (`gates.judged`). Shapes: n rows of the hold-out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit.core.comparison import Units, compare, units_of
from toolkit.core.errors import UserError
from toolkit.core.figures import MetricOf, Prediction, Rows
from toolkit.core.gates import (
    COSTS,
    FINITE_METRICS,
    HOLDOUT_PRESENT,
    HOLDOUT_UNSEEN_BY_CHALLENGER,
    HONEST_PROTOCOL,
    QUALITY_DEMANDED,
    REAL_DATA,
    SIGNATURE,
    Gate,
    GateResult,
    SliceResult,
    Status,
)
from toolkit.core.metrics import larger_is_better
from toolkit.core.row_hashes import Hashes

MAX_SLICES = 1000
# Fewer groups or queries say too little of others, however many rows they have.
MIN_UNITS = 10
# Of the hold-out's rows: below, chance alone makes rows equal to others.
MAX_EQUAL_SHARE = 0.01
MAX_UNKNOWN_SHARE = 0.01

Spec = Mapping[str, Any]
Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class Contest:
    """Both models on the same rows.

    Attributes:
        champion: None on a first promotion.
        column: (n,) values of a column of the hold-out by its name; raises UserError where it has none.
        costs: the challenger's figures by name, see `gates.COSTS`.
        row_hashes: (n,) of the rows as the challenger sees them; None where all are known to differ.
    """

    rows: Rows
    challenger: Prediction
    champion: Prediction | None
    metric_of: MetricOf
    column: Callable[[str], Labels]
    costs: Mapping[str, float]
    row_hashes: Hashes | None = None

    @cached_property
    def units(self) -> Units:
        return units_of(self.rows, self.row_hashes)

    def figure(self, metric: str, prediction: Prediction, which: npt.NDArray[np.bool_] | None = None) -> float:
        """A metric of one model, of all rows or of some. May be NaN."""
        rows = self.rows if which is None else self.rows.take(which)
        prediction = prediction if which is None else prediction.take(which)
        return float(
            self.metric_of(
                metric, rows.task, rows.label, prediction.values, weight=rows.weight, group=rows.group, threshold=prediction.threshold
            )
        )


# ---- the experiment's own gates


def judge_gate(gate: Gate, contest: Contest) -> GateResult:
    if gate.metric in COSTS:
        return _absolute(gate, contest.costs[gate.metric], None)
    if gate.is_relative and contest.champion is None:
        return GateResult(gate.name, Status.NOT_APPLICABLE, "there is no champion to compare with", limit=gate.limit)
    if gate.is_relative and (too_few := _too_few(gate, contest)):
        return GateResult(gate.name, Status.FAILED, too_few, limit=gate.limit)
    if gate.by is not None:
        return _by_slice(gate, gate.by, contest)
    if gate.is_relative:
        return _relative(gate, contest)
    champion = None if contest.champion is None else contest.figure(gate.metric, contest.champion)
    return _absolute(gate, contest.figure(gate.metric, contest.challenger), champion)


def _too_few(gate: Gate, contest: Contest) -> str:
    """Why the rows cannot tell two models apart; empty where they can."""
    units = contest.units
    name, num = ("rows", len(contest.rows.label)) if not units.are_rows else (units.name, units.num)
    if num < gate.min_rows:
        return f"too few {name} to tell: {num:,}, at least {gate.min_rows:,}"
    return f"too few {units.name} to tell: {units.num:,}, at least {MIN_UNITS}" if units.num < MIN_UNITS else ""


def _absolute(gate: Gate, observed: float, champion: float | None) -> GateResult:
    passed = _margin(gate, observed, None) >= 0
    relation = {"at_least": ("at least", "below"), "at_most": ("at most", "above")}[gate.rule][0 if passed else 1]
    reason = f"{gate.metric} {shown(observed)} is {relation} {shown(gate.limit)}"
    if math.isnan(observed):
        reason = f"{gate.metric} has no value on these rows"
    return GateResult(gate.name, _status(passed), reason, observed, champion, gate.limit)


def _relative(gate: Gate, contest: Contest) -> GateResult:
    assert contest.champion is not None
    observed, champion = (contest.figure(gate.metric, each) for each in (contest.challenger, contest.champion))
    if math.isnan(observed) or math.isnan(champion):
        who = "the challenger" if math.isnan(observed) else "the champion"
        return GateResult(gate.name, Status.FAILED, f"{gate.metric} of {who} has no value on these rows", observed, champion, gate.limit)
    result = compare(gate.metric, contest.rows, contest.challenger, contest.champion, contest.metric_of, contest.units)
    passed = result.bound >= -gate.limit
    change = "no difference"
    if result.difference:
        change = f"{shown(abs(result.difference))} {'better' if result.difference > 0 else 'worse'}"
    bound = "too few rows of a class for a bound"
    if result.bound > -math.inf:
        worst = "no worse" if result.bound >= 0 else f"at most {shown(-result.bound)} worse"
        bound = f"with 95 % confidence {worst}"
    may_lose = shown(gate.limit) if gate.limit else "nothing"
    reason = f"{gate.metric} {shown(observed)} against {shown(champion)}: {change}, {bound}; it may lose {may_lose} ({result.method})"
    return GateResult(gate.name, _status(passed), reason, observed, champion, gate.limit, result.bound)


def _by_slice(gate: Gate, by: str, contest: Contest) -> GateResult:
    column = pd.Series(contest.column(by))
    if column.isna().all():
        return GateResult(gate.name, Status.FAILED, f"column {by!r} is missing in every row of the hold-out", limit=gate.limit)
    codes, values = pd.factorize(column, sort=True, use_na_sentinel=True)
    counts = np.bincount(codes + 1, minlength=len(values) + 1)  # the first is what is missing
    num_judged = int((counts >= gate.min_rows).sum())
    if num_judged > MAX_SLICES:
        raise UserError(f"gate {gate.name}: at most {MAX_SLICES:,} slices can be judged", got=f"{num_judged:,} of column {by!r}")
    slices: list[SliceResult] = []
    margins: dict[float, SliceResult] = {}
    for place in np.flatnonzero(counts):
        name, num_rows = "missing" if place == 0 else str(values[int(place) - 1]), int(counts[place])
        if num_rows < gate.min_rows:
            slices.append(SliceResult(name, num_rows))
            continue
        which = np.asarray(codes + 1 == place)
        observed = contest.figure(gate.metric, contest.challenger, which)
        champion = None if contest.champion is None else contest.figure(gate.metric, contest.champion, which)
        margin = _margin(gate, observed, champion)
        slices.append(SliceResult(name, num_rows, observed, champion, margin >= 0))
        margins.setdefault(margin, slices[-1])
    judged = [each for each in slices if each.passed is not None]
    if not judged:
        reason = f"no value of {by!r} has {gate.min_rows:,} rows"
        return GateResult(gate.name, Status.FAILED, reason, limit=gate.limit, slices=tuple(slices))
    failed = [each for each in judged if not each.passed]
    worst = margins[min(margins)]
    versus = f" against {shown(worst.champion)}" if gate.is_relative and worst.champion is not None else ""
    reason = (
        f"{len(failed) or 'none'} of {len(judged)} slices of {by!r} {_broken(gate)}; the worst is {worst.value!r}: "
        f"{gate.metric} {shown(worst.observed)}{versus}"
    )
    if len(judged) < len(slices):
        reason += f"; {len(slices) - len(judged)} with fewer than {gate.min_rows:,} rows not judged"
    return GateResult(gate.name, _status(not failed), reason, worst.observed, worst.champion, gate.limit, slices=tuple(slices))


def _margin(gate: Gate, observed: float, champion: float | None) -> float:
    """How far a point estimate is on the good side of the rule, which holds from 0 on. A figure that is not a number is on no side."""
    if gate.is_relative:
        assert champion is not None
        margin = (observed - champion) * (1.0 if larger_is_better(gate.metric) else -1.0) + gate.limit
    else:
        margin = observed - gate.limit if gate.rule == "at_least" else gate.limit - observed
    return -math.inf if math.isnan(margin) else margin


def _broken(gate: Gate) -> str:
    if gate.is_relative:
        return f"lose more than {shown(gate.limit)}"
    return f"are {'below' if gate.rule == 'at_least' else 'above'} {shown(gate.limit)}"


# ---- gates that every promotion has


def judge_protocol(spec: Spec) -> GateResult:
    if spec["protocol"] == "honest":
        return GateResult(HONEST_PROTOCOL, Status.PASSED, "made under the honest protocol")
    reason = f"made under the {spec['protocol']} protocol: it was selected on its own test part, so no figure of it can be trusted"
    return GateResult(HONEST_PROTOCOL, Status.FAILED, reason)


def judge_real_data(spec: Spec, holdout_kind: str | None) -> GateResult:
    """Args:
    holdout_kind: of `DataSource`; None where there is no hold-out, which is another gate's matter.
    """
    if spec["data"]["kind"] == "fallback_sample":
        return GateResult(REAL_DATA, Status.FAILED, "the challenger was trained on the generated sample that stands in for the real data")
    if holdout_kind == "fallback_sample":
        return GateResult(REAL_DATA, Status.FAILED, "the hold-out is the generated sample that stands in for the real data")
    return GateResult(REAL_DATA, Status.PASSED, f"trained on {spec['data']['location']} ({spec['data']['kind']})")


def judge_signature(challenger: Spec, champion: Spec | None) -> GateResult:
    if champion is None:
        return GateResult(SIGNATURE, Status.NOT_APPLICABLE, "there is no champion to compare with")
    problems = []
    for field in ("task", "label", "classes"):
        if challenger[field] != champion[field]:
            problems.append(f"{field} {_brief(challenger[field])}, the champion's is {_brief(champion[field])}")
    types = {feature["name"]: feature["type"] for feature in champion["features"]}
    more = [feature["name"] for feature in challenger["features"] if feature["name"] not in types]
    if more:
        problems.append(f"it needs {_names(more)}, which the champion does not")
    for feature in challenger["features"]:
        if types.get(feature["name"], feature["type"]) != feature["type"]:
            problems.append(f"{feature['name']!r} is a {feature['type']}, for the champion a {types[feature['name']]}")
    if problems:
        return GateResult(SIGNATURE, Status.FAILED, "; ".join(problems[:5]))
    fewer = len(types) - len(challenger["features"])
    reason = "compatible with the champion's" + (f"; it needs {fewer} features less" if fewer else "")
    return GateResult(SIGNATURE, Status.PASSED, reason)


@dataclass(frozen=True)
class Overlap:
    """What the n rows of the hold-out have in common with those that a model was fitted on.

    Attributes:
        common_keys: rows with a key that the model was fitted on; None where either side has no keys.
        common_rows: rows that equal one that it was fitted on.
        share_repeated: of rows that equal another row of their own table; the smaller one of the hold-out's and the training's.
    """

    num_rows: int
    common_keys: int | None
    common_rows: int
    share_repeated: float = 0.0


def judge_unseen(name: str, spec: Spec, overlap: Overlap) -> GateResult:
    """Whether a model was fitted on rows of the hold-out.

    A common key refuses. Equal features refuse too. Where both sides have keys and the model's split did not promise to keep equal rows on
    one side, two rows that are equal may be two rows: then they refuse if they are more than the tables' own repetitions explain.
    """
    split, num_rows = spec["split"], overlap.num_rows
    promised = spec["protocol"] == "honest" and split["by"] == "random" and split["keep_duplicates_together"]
    who = "the challenger" if name == HOLDOUT_UNSEEN_BY_CHALLENGER else "the champion"
    advice = "judge on rows that neither has seen: dataset.holdout, or --holdout TABLE"
    if overlap.common_keys:
        share = f"{overlap.common_keys:,} of {num_rows:,} rows ({overlap.common_keys / num_rows:.1%})"
        reason = f"{who} was fitted on {share} of the hold-out, by their key; {advice}"
        return GateResult(name, Status.FAILED, reason, observed=overlap.common_keys)
    may_be_common = max(MAX_EQUAL_SHARE, 2 * overlap.share_repeated)
    are_too_many = overlap.common_rows > may_be_common * num_rows
    if overlap.common_rows and (overlap.common_keys is None or promised or are_too_many):
        share = f"{overlap.common_rows:,} of {num_rows:,} rows ({overlap.common_rows / num_rows:.1%})"
        why = "" if overlap.common_keys is None or promised else f", though with other keys (at most {may_be_common:.1%} may be chance)"
        reason = f"{who} was fitted on rows equal to {share} of the hold-out{why}; {advice}"
        return GateResult(name, Status.FAILED, reason, observed=overlap.common_rows)
    how = "by rows" if overlap.common_keys is None else "by key and by rows"
    also = f"; {overlap.common_rows:,} equal rows have keys of their own" if overlap.common_rows else ""
    return GateResult(name, Status.PASSED, f"{who} was fitted on none of {num_rows:,} rows, compared {how}{also}", observed=0)


@dataclass(frozen=True)
class Blind:
    """A feature of which a model sees little or nothing in the hold-out.

    Attributes:
        share: of the values that are there but unknown to the model; None where all are missing.
        example: an unknown value.
    """

    feature: str
    share: float | None
    example: Any = None

    def told_of(self, who: str) -> str:
        if self.share is None:
            return f"feature {self.feature!r} is missing in every row of the hold-out"
        share = "all" if self.share == 1 else f"{self.share:.1%}"
        return f"feature {self.feature!r}: {share} of the hold-out's values are unknown to {who}, for example {_brief(self.example)}"


def blind_features(spec: Spec, features: npt.NDArray[np.float32], column: Callable[[str], pd.Series[Any]]) -> list[Blind]:
    """Features that are missing throughout, or categorical with more than 1 % of their values unknown to the model.

    Args:
        features: (n, d) as the model sees them.
        column: (n,) values as read.
    """
    found = []
    for number in np.flatnonzero(np.isnan(features).any(axis=0)):
        feature, unseen = spec["features"][number], np.isnan(features[:, number])
        values = column(feature["name"])
        present = values.notna().to_numpy()
        num_present = int(present.sum())
        if not num_present:
            found.append(Blind(feature["name"], None))
            continue
        unknown = unseen & present
        share = int(unknown.sum()) / num_present
        if "categories" in feature and share > MAX_UNKNOWN_SHARE:
            found.append(Blind(feature["name"], share, values.iloc[int(unknown.argmax())]))
    return found


def judge_holdout(description: str, num_rows: int, blind: Sequence[Blind]) -> GateResult:
    """Args:
    blind: what the challenger does not see.
    """
    unfit = [each for each in blind if each.share == 1]
    if unfit:
        reason = "; ".join(each.told_of("the challenger") for each in unfit[:5])
        return GateResult(HOLDOUT_PRESENT, Status.FAILED, f"{reason}: it would be judged without", observed=num_rows)
    return GateResult(HOLDOUT_PRESENT, Status.PASSED, f"{num_rows:,} labelled rows: {description}", observed=num_rows)


def judge_finite(figures: Mapping[str, float]) -> GateResult:
    """Args:
    figures: the challenger's, by metric.
    """
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if not figures or broken:
        return GateResult(FINITE_METRICS, Status.FAILED, f"no value: {', '.join(broken) or 'no metric was computed'}")
    return GateResult(FINITE_METRICS, Status.PASSED, f"all {len(figures)} figures are finite")


def judge_quality_demanded(gates: Sequence[Gate], has_champion: bool) -> GateResult:
    if has_champion:
        return GateResult(QUALITY_DEMANDED, Status.NOT_APPLICABLE, "there is a champion to compare with")
    demanding = [gate.name for gate in gates if gate.demands_quality]
    if demanding:
        return GateResult(QUALITY_DEMANDED, Status.PASSED, f"asked for by {', '.join(demanding)}")
    reason = 'a first champion needs a gate that asks for quality by itself; add one, for example Gate("auc", at_least=0.8)'
    return GateResult(QUALITY_DEMANDED, Status.FAILED, reason)


def compares_nothing(gates: Sequence[Gate]) -> bool:
    """Whether nothing but the gates that every promotion has, and limits of cost, keeps a worse challenger from a champion's place."""
    return not any(gate.is_relative or gate.demands_quality for gate in gates)


def _status(passed: bool) -> Status:
    return Status.PASSED if passed else Status.FAILED


def shown(value: float | None) -> str:
    if value is None:
        return "none"
    return "not a number" if math.isnan(value) else f"{value:.5g}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
