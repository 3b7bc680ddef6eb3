"""What a report is made of: tiles, and cards with a chart, a table or bars. The templates know these and nothing of sweeps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from markupsafe import Markup

CardKind = Literal["chart", "params", "table", "bars", "multiples", "stack", "confusion", "text"]


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    note: str
    is_main: bool = False
    is_bad: bool = False


@dataclass(frozen=True)
class Legend:
    """`colour` names a CSS variable. In HTML, not in the chart: it stays readable when a phone shrinks the chart."""

    colour: str
    text: str
    shape: str = "dot"


@dataclass(frozen=True)
class Bar:
    """`share` in 0 … 1 is the length."""

    name: str
    value: str
    share: float
    note: str = ""
    colour: str = "good"


@dataclass(frozen=True)
class Card:
    """`caption` is one sentence on what to look for; `data` is what the template of its `kind` needs."""

    title: str
    caption: str
    svg: Markup | None = None
    kind: CardKind = "chart"
    is_wide: bool = False
    legend: Sequence[Legend] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def without_holes(cards: Sequence[Card]) -> list[Card]:
    """The same cards; one that would stand beside nothing is made wide, unless it is a chart, which would only be blown up."""
    filled: list[Card] = []
    is_left = True
    for card, following in zip(cards, [*cards[1:], None], strict=True):
        alone = is_left and not card.is_wide and (following is None or following.is_wide)
        filled.append(replace(card, is_wide=True) if alone and card.kind != "chart" else card)
        is_left = True if card.is_wide or alone else not is_left
    return filled


def quoted(name: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def figure_text(value: float) -> str:
    """A metric: four decimals where it is about one, else five significant digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if 0.1 <= abs(value) < 10 else f"{value:,.5g}"


def seconds_text(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 180:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def ranked_bars(values: Mapping[str, float], limit: int) -> list[Bar]:
    """The largest, longest first; lengths are relative to the largest."""
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))[:limit]
    largest = max((value for _, value in ranked), default=0.0)
    return [Bar(name, f"{value:.3g}", max(0.0, value / largest) if largest > 0 else 0.0) for name, value in ranked]


def without_control_characters(text: str) -> str:
    """Neither XML nor UTF-8 has a place for these, and a parameter's value or a traceback may hold some."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
