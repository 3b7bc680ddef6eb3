"""A search parameter as a report shows it: on a number axis or on one of categories, and its values as text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.core.space import Branch, Categorical, Float, Int, leaves
from toolkit.core.study import TrialRecord

MISSING = object()
"""The value of a parameter in a trial whose branch does not have it."""
OTHER = "(other)"
MAX_CATEGORIES = 12
_LOG_RATIO = 1000  # a define-by-run space does not say what is logarithmic


def text_of(value: Any, limit: int = 400) -> str:
    """A value for people: at most six significant digits, strings bare, cut to `limit` characters."""
    if value is MISSING:
        return "\N{EM DASH}"
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, str):
        text = value
    else:
        text = repr(value)
    return shortened(text, limit)


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class ParameterAxis:
    """Where the values of one parameter stand.

    Attributes:
        low, high: ends of the axis; for categories -0.5 and their number - 0.5.
        categories: texts of the values in their order; empty for numbers.
    """

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False
    categories: tuple[str, ...] = ()

    def position(self, value: Any) -> float:
        """Place on the axis; NaN where the trial does not have the parameter."""
        if value is MISSING:
            return math.nan
        if not self.categories:
            return float(value) if _is_number(value) else math.nan
        text = text_of(value)
        if text in self.categories:
            return float(self.categories.index(text))
        return float(self.categories.index(OTHER)) if OTHER in self.categories else math.nan

    def share(self, value: Any) -> float:
        """Place between the ends of the axis as 0 … 1; NaN where there is none."""
        position = self.position(value)
        if math.isnan(position) or self.high <= self.low:
            return position if math.isnan(position) else 0.5
        if self.log:
            return math.log(position / self.low) / math.log(self.high / self.low)
        return (position - self.low) / (self.high - self.low)

    def is_at_edge(self, value: Any) -> bool:
        """Within 2 % of an end of a numeric range: a sign that the range should be wider."""
        share = math.nan if self.categories else self.share(value)
        return share <= 0.02 or share >= 0.98


def parameter_axes(space: Any, records: Sequence[TrialRecord], importances: Mapping[str, float] | None) -> list[ParameterAxis]:
    """The parameters that vary, the most important first; constants and parameters with one observed value are left out."""
    distributions = dict(leaves(space)) if isinstance(space, Mapping) else {}
    names = list(dict.fromkeys([*distributions, *(name for record in records for name in record.params)]))
    axes = [axis for name in names if (axis := _axis(name, distributions.get(name, MISSING), records))]
    return sorted(axes, key=lambda axis: -(importances or {}).get(axis.name, 0.0))


def searched_ranges(space: Any) -> dict[str, str]:
    """What each parameter was searched over, in words; a define-by-run space says nothing."""
    return {name: _searched(distribution) for name, distribution in leaves(space)} if isinstance(space, Mapping) else {}


def params_json(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), indent=2, default=repr)


def _axis(name: str, distribution: Any, records: Sequence[TrialRecord]) -> ParameterAxis | None:
    values = [record.params[name] for record in records if name in record.params]
    if len(set(map(repr, values))) < 2:
        return None
    if isinstance(distribution, Float | Int):
        return ParameterAxis(name, float(distribution.low), float(distribution.high), distribution.log, isinstance(distribution, Int))
    numbers = [float(value) for value in values if _is_number(value)]
    if not isinstance(distribution, Categorical | Branch) and len(set(numbers)) > 1 and len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        is_log = low > 0 and high / low >= _LOG_RATIO
        return ParameterAxis(name, low, high, is_log, integer=all(number.is_integer() for number in numbers))
    choices = [text_of(choice) for choice in distribution.choices] if isinstance(distribution, Categorical | Branch) else []
    counts = Counter(map(text_of, values))
    categories = list(dict.fromkeys([*choices, *sorted(counts)]))
    if len(categories) > MAX_CATEGORIES:
        frequent = {text for text, _ in counts.most_common(MAX_CATEGORIES - 1)}
        categories = [*(text for text in categories if text in frequent), OTHER]
    return ParameterAxis(name, -0.5, len(categories) - 0.5, categories=tuple(categories))


def _searched(distribution: Any) -> str:
    if isinstance(distribution, Float | Int):
        step = distribution.step if isinstance(distribution, Float) or distribution.step != 1 else None
        notes = [note for note in ("log" if distribution.log else "", f"step {step:g}" if step else "") if note]
        text = f"{distribution.low:.4g} to {distribution.high:.4g}"
        return f"{text} ({', '.join(notes)})" if notes else text
    if isinstance(distribution, Categorical | Branch):
        return shortened(", ".join(text_of(choice, 40) for choice in distribution.choices), 200)
    return "" if distribution is MISSING else "fixed"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
