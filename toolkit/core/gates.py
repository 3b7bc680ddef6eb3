"""Gates: the named rules that a challenger must pass to become champion, and what became of each.

Everything here fails closed: a gate that cannot be judged has failed, and only `passed`, `overridden` and `not_applicable` let a model by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from toolkit.core.errors import ExperimentError, UserError, nearest
from toolkit.core.metrics import LARGER_IS_BETTER, SMALLER_IS_BETTER, larger_is_better
from toolkit.core.model import FROZEN, PositiveInt
from toolkit.core.secrets import without_secrets

Number = Annotated[float, Field(allow_inf_nan=False)]
Margin = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

COSTS: Mapping[str, str] = {
    "predict_s_per_million_rows": "seconds that the model takes for a million rows, from the table to the predictions, on this machine",
    "model_mib": "size of the model's own bytes",
}
"""What a gate can limit beside metrics."""

RULES = ("at_least", "at_most", "no_worse_than_champion_by")


@dataclass(frozen=True, config=FROZEN)
class Gate:
    """One rule, about one figure on the hold-out. Exactly one of the three rules is given.

    Attributes:
        metric: a metric of the task, or `predict_s_per_million_rows` or `model_mib`, which take `at_most` only.
        at_least, at_most: limits of the challenger's figure. The one on the metric's bad side demands quality; the other one catches a
            figure that is too good to be true.
        no_worse_than_champion_by: what the challenger may lose against the champion, in the metric's unit, whichever way it improves. The
            lower one-sided 95 % bound of the difference decides; with `by` the difference itself.
        by: a column of the hold-out; the rule must hold for each of its values, and no figure of the whole makes up for one.
        min_rows: against the champion, fewer rows (equal ones count once) are a failure: the bound does not hold on them. A value of `by`
            with fewer rows is listed, not judged; none judged is a failure.
    """

    metric: str
    at_least: Number | None = None
    at_most: Number | None = None
    no_worse_than_champion_by: Margin | None = None
    by: str | None = None
    min_rows: PositiveInt = 100

    @model_validator(mode="after")
    def _check(self) -> Gate:
        base = self.metric.partition("@")[0]
        known = LARGER_IS_BETTER | SMALLER_IS_BETTER
        if base not in known and self.metric not in COSTS:
            raise ExperimentError("gate: unknown metric", got=repr(self.metric), next_step=nearest(base, known | set(COSTS)))
        given = [rule for rule in RULES if getattr(self, rule) is not None]
        if len(given) != 1:
            raise ExperimentError(
                f"gate: exactly one of {', '.join(RULES)}",
                got=f"{' and '.join(given) or 'none'} for {self.metric}",
                next_step="make it a gate each" if given else f"for example Gate({self.metric!r}, at_least=0.8)",
            )
        if self.metric in COSTS and (given != ["at_most"] or self.by):
            raise ExperimentError(f"gate: {self.metric} takes at_most alone", got=given[0] + (f" by {self.by!r}" if self.by else ""))
        if self.by == "":
            raise ExperimentError("gate: by needs a column's name", got="''")
        return self

    @property
    def rule(self) -> Literal["at_least", "at_most", "no_worse_than_champion_by"]:
        if self.at_least is not None:
            return "at_least"
        return "at_most" if self.at_most is not None else "no_worse_than_champion_by"

    @property
    def limit(self) -> float:
        limit = getattr(self, self.rule)
        assert limit is not None, "exactly one rule is given"
        return float(limit)

    @property
    def name(self) -> str:
        """Stable, and usable on a command line: `auc_at_least`, `auc_no_worse_than_champion_by_region`, `auc_at_least_by_region`."""
        name = f"{self.metric}_{self.rule}"
        if self.by:
            name += f"{'' if name.endswith('_by') else '_by'}_{self.by}"
        return re.sub(r"[^\w.@-]+", "_", name)

    @property
    def asks(self) -> str:
        """The rule in words."""
        words = {"at_least": "at least", "at_most": "at most", "no_worse_than_champion_by": "may lose"}[self.rule]
        return f"{words} {self.limit:g}" + (f" in each {self.by}" if self.by else "")

    @property
    def is_relative(self) -> bool:
        """Whether it compares with the champion."""
        return self.no_worse_than_champion_by is not None

    @property
    def demands_quality(self) -> bool:
        """Whether it asks for a metric of its own, without a champion: a first promotion needs at least one such gate."""
        if self.metric in COSTS or self.is_relative:
            return False
        return (self.rule == "at_least") == larger_is_better(self.metric)


class Status(StrEnum):
    """What became of a gate. Only `failed` keeps a challenger out."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"
    OVERRIDDEN = "overridden"


@plain_dataclass(frozen=True)
class SliceResult:
    """One value of a gate's `by` column. `passed` is None where the slice has too few rows to be judged."""

    value: str
    num_rows: int
    observed: float | None = None
    champion: float | None = None
    passed: bool | None = None


@plain_dataclass(frozen=True)
class GateResult:
    """What became of one gate.

    Attributes:
        reason: one sentence for a person; of a gate that raised, the exception's type and text.
        observed, champion: the two models' figures, with slices the worst one; limit: what the gate asks for; bound: the lower one-sided
            95 % bound of challenger - champion. None where there is none.
        asks: the rule in words; empty for the gates that every promotion has.
        override_reason: why somebody let the model by.
    """

    name: str
    status: Status
    reason: str
    observed: float | None = None
    champion: float | None = None
    limit: float | None = None
    bound: float | None = None
    slices: tuple[SliceResult, ...] = ()
    asks: str = ""
    override_reason: str = ""

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self) | {"status": self.status.value}
        return {"gate": fields.pop("name"), **fields}


# ---- gates that every promotion has

HOLDOUT_PRESENT = "holdout_present"
REAL_DATA = "real_data"
MODEL_LOADS = "model_loads"
HONEST_PROTOCOL = "honest_protocol"
SIGNATURE = "signature"
HOLDOUT_UNSEEN_BY_CHALLENGER = "holdout_unseen_by_challenger"
HOLDOUT_UNSEEN_BY_CHAMPION = "holdout_unseen_by_champion"
FINITE_METRICS = "finite_metrics"
QUALITY_DEMANDED = "quality_demanded"

IMPLICIT: Mapping[str, str] = {
    MODEL_LOADS: "the challenger is as training wrote it, and predicts its logged example",
    REAL_DATA: "neither the challenger nor the hold-out comes from the generated fallback sample",
    HONEST_PROTOCOL: "the challenger was not selected on its own test part",
    SIGNATURE: "whoever calls the champion can call the challenger",
    HOLDOUT_PRESENT: "there are labelled rows to judge on, of whose categories the challenger knows some",
    HOLDOUT_UNSEEN_BY_CHALLENGER: "the challenger was not fitted on them",
    HOLDOUT_UNSEEN_BY_CHAMPION: "nor was the champion",
    FINITE_METRICS: "every figure of the challenger is a number",
    QUALITY_DEMANDED: "without a champion, at least one gate asks for quality",
}
"""Judged in this order, before the experiment's own."""

NEVER_OVERRIDDEN = frozenset({REAL_DATA, HOLDOUT_PRESENT})


def judged(name: str, judge: Callable[[], GateResult]) -> GateResult:
    """The result of `judge`; where it raises, a failure that says why."""
    try:
        return judge()
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        reason = text if isinstance(error, UserError) else f"could not be judged: {type(error).__name__}: {text}"
        return GateResult(name, Status.FAILED, without_secrets(reason[:500]))


def may_promote(results: Sequence[GateResult]) -> bool:
    return bool(results) and all(result.status is not Status.FAILED for result in results)


def check_overrides(overrides: Mapping[str, str], gates: Iterable[Gate]) -> None:
    """Refuse an override that names no gate, has no reason, or lets by what must never pass.

    Raises:
        UserError: as said.
    """
    known = [*IMPLICIT, *(gate.name for gate in gates)]
    for name, reason in overrides.items():
        if name not in known:
            raise UserError("--override: unknown gate", got=repr(name), next_step=nearest(name, known))
        if name in NEVER_OVERRIDDEN:
            raise UserError("--override: this gate is never overridden", got=name, next_step="train on, and judge on, the real data")
        if not reason.strip():
            raise UserError(
                "--override needs --reason", got=f"none for {name}", next_step='for example --reason "agreed with risk, ticket 17"'
            )


def overridden(results: Iterable[GateResult], overrides: Mapping[str, str]) -> list[GateResult]:
    """Failures that somebody answers for let the model by; what passed stays passed."""
    return [
        replace(result, status=Status.OVERRIDDEN, override_reason=" ".join(overrides[result.name].split()))
        if result.status is Status.FAILED and result.name in overrides
        else result
        for result in results
    ]
