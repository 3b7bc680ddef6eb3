"""The charts of the exploratory report. Each takes plain records and returns an inline SVG; draw inside `svg.chart_style()`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from toolkit.core.exploration import Box, Column, Correlations
from toolkit.reports.parameters import shortened
from toolkit.reports.plots import NORMAL_HEIGHT, NORMAL_WIDTH, SMALL_HEIGHT, SMALL_WIDTH, WIDE_WIDTH
from toolkit.reports.svg import HALO, colour, fitted, log_axis, name_in_full, new_axes, plain_axis, text_width, to_svg

Doubles = npt.NDArray[np.float64]

GROUP_COLOURS = ("s1", "s2", "s3", "s4", "s5")
MAX_DRAWN_BOXES = 10
MAX_DRAWN_CATEGORIES = 8
# So far apart, the lower boxes would be a line at the bottom.
_LOG_RATIO = 50.0


def drawn_groups(counts: Sequence[int]) -> list[int]:
    """The label groups that have a colour: all, or the most frequent."""
    order = sorted(range(len(counts)), key=lambda code: (-counts[code], code))
    return sorted(order[: len(GROUP_COLOURS)])


def box_plot(column: Column, key: str) -> Markup:
    """One box a label group: quartiles, whiskers from the quantile 0.05 to 0.95."""
    shown = [(code, box) for code, box in enumerate(column.boxes) if box.median is not None][:MAX_DRAWN_BOXES]
    boxes = [box for _, box in shown]
    left = 54.0
    names, rotation, bottom = _under(boxes, (SMALL_WIDTH - left - 12) / len(boxes), left)
    axes = new_axes(SMALL_WIDTH, SMALL_HEIGHT - 26 + bottom, left=left, bottom=bottom)
    lows, highs = [float(box.low or 0) for box in boxes], [float(box.high or 0) for box in boxes]
    low, high = min(lows), max(highs)
    if low > 0 and high / low > _LOG_RATIO:
        log_axis(axes, "y", low, high)
        axes.set_ylim(low / 1.15, high * 1.15)
    else:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        axes.set_ylim(low - margin, high + margin)
        plain_axis(axes.yaxis, 4)
    for place, (code, box) in enumerate(shown):
        _box(axes, place, box, GROUP_COLOURS[code] if len(column.boxes) <= len(GROUP_COLOURS) else "good")
    axes.set_xlim(-0.6, len(boxes) - 0.4)
    turned: dict[str, Any] = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    axes.set_xticks(range(len(boxes)), names, **turned)
    name_in_full(axes.get_xticklabels(), [box.group for box in boxes])
    axes.grid(False, axis="x")
    told = ", ".join(f"{box.group} {box.median:.4g}" for box in boxes)
    return to_svg(axes, key, f"{column.name} by label group; medians {told}")


def _under(boxes: Sequence[Box], pitch: float, left: float) -> tuple[list[str], float, float]:
    """The names below the boxes, so that none covers its neighbour; their rotation in degrees, and the margin in CSS pixels they need.

    Args:
        pitch, left: CSS pixels between two boxes, and left of the axes.
    """
    names = [box.group if text_width(box.group) < pitch - 4 else _in_two_lines(box.group) for box in boxes]
    if all(text_width(name) < pitch - 2 for name in names):
        return names, 0.0, 40.0 if any("\n" in name for name in names) else 26.0
    # At 60 degrees a name reaches half its length to the left: of the first box no further than the picture.
    names = [fitted(box.group, min(136.0, 2 * (left + pitch / 2 - 8))) for box in boxes]
    return names, 60.0, 18 + 0.87 * max(map(text_width, names))


def _in_two_lines(name: str) -> str:
    """Broken where both lines are shortest: after a space or a dash."""
    places = [match.end() for match in re.finditer(r"[ –_-](?=.)", name[1:-1] + ".")]
    pairs = [f"{name[: place + 1].rstrip()}\n{name[place + 1 :]}" for place in places]
    return min(pairs, key=text_width, default=name)


def _box(axes: Axes, place: int, box: Box, name: str) -> None:
    low, q25, median, q75, high = (float(value) for value in (box.low, box.q25, box.median, box.q75, box.high) if value is not None)
    half, cap = 0.3, 0.12
    left, right = place - half, place + half
    corners: list[tuple[float, float]] = [(left, q25), (right, q25), (right, q75), (left, q75), (left, q25)]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=colour(name), alpha=0.25, linewidth=0, zorder=2))
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = [((place, low), (place, q25)), ((place, q75), (place, high))]
    lines += [((place - cap, y), (place + cap, y)) for y in (low, high)]
    outline = Path([*corners, *(point for line in lines for point in line)], [*codes, *(Path.MOVETO, Path.LINETO) * len(lines)])
    axes.add_patch(PathPatch(outline, fill=False, edgecolor=colour(name), linewidth=1.4, zorder=3))
    axes.plot([place - half, place + half], [median, median], color=colour(name), linewidth=3, solid_capstyle="butt", zorder=4)


def shares_by_group(column: Column, groups: Sequence[int], key: str) -> Markup:
    """Bars of the values, each label group beside the others: shares of its rows. `groups`: those to draw, by their places."""
    found = column.histogram
    assert found is not None and found.edges is None
    names = list(found.values[: num_drawn(column)])
    table = np.array([[*found.by_group[code], column.missing_by_group[code]] for code in groups], dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    shares = np.column_stack([shares[:, : len(names)], shares[:, -1:]])
    if column.num_missing:
        names.append("(missing)")
    shares = shares[:, : len(names)]
    thickness = 9.0 if len(groups) <= 2 else 6.0
    pitch = thickness * len(groups) + 7
    axes = _lanes(names, pitch, SMALL_WIDTH, "87.5 %")
    for place, bars in enumerate(shares):
        middle = np.arange(len(names)) + (place - (len(groups) - 1) / 2) * thickness / pitch
        axes.barh(middle, bars, height=0.86 * thickness / pitch, color=colour(GROUP_COLOURS[place]), linewidth=0)
    _percent(axes, float(shares.max(initial=0.0)))
    return to_svg(axes, key, f"{column.name}: share of each value in each label group")


def num_drawn(column: Column) -> int:
    """Bars of `shares_by_group`: of categories the most frequent, for a bar of all others would dwarf them."""
    assert column.histogram is not None
    num = len(column.histogram.values)
    if column.kind != "category" or column.num_distinct <= MAX_DRAWN_CATEGORIES:
        return num
    return min(num, MAX_DRAWN_CATEGORIES)


def histogram(column: Column, groups: Sequence[int], key: str) -> Markup:
    """Rows by value, of all rows; divided by `groups` where the histogram is."""
    found = column.histogram
    assert found is not None
    parts = [np.array(found.by_group[code], dtype=float) for code in groups] if found.by_group else []
    rest = np.array(found.counts, dtype=float) - (np.sum(parts, axis=0) if parts else 0.0)
    layers = [(name, part) for name, part in zip(GROUP_COLOURS, parts, strict=False)]
    if rest.any():
        layers.append(("weak" if parts else "good", rest))
    if found.edges is None:
        axes = _lanes(found.values, 24.0, NORMAL_WIDTH, str(max(found.counts)))
        start = np.zeros(len(found.counts))
        for name, part in layers:
            axes.barh(np.arange(len(start)), part, left=start, height=0.72, color=colour(name), linewidth=0)
            start = start + part
        plain_axis(axes.xaxis, 5, integer=True)
        axes.set_xlabel("rows")
        return to_svg(axes, key, f"Rows by {column.name}")
    axes = new_axes(NORMAL_WIDTH, NORMAL_HEIGHT, left=60)
    base = np.zeros(len(found.counts))
    for name, part in layers:
        axes.stairs(base + part, found.edges, baseline=base, fill=True, color=colour(name), alpha=0.85, linewidth=0)
        base = base + part
    axes.set_xlim(found.edges[0], found.edges[-1])
    axes.set_ylim(0, float(base.max()) * 1.05 or 1.0)
    plain_axis(axes.yaxis, 5, integer=True)
    axes.set_ylabel("rows")
    axes.set_xlabel(shortened(column.name, 36))
    if column.kind == "time":
        ticks = np.linspace(found.edges[0], found.edges[-1], 4)
        axes.set_xticks(ticks, [day(tick) for tick in ticks])
    else:
        plain_axis(axes.xaxis, 6)
    return to_svg(axes, key, f"Rows by {column.name}, in {len(found.counts)} bins")


def correlation_map(found: Correlations, key: str) -> Markup:
    """Squares shaded by the correlation, with its value where there is room."""
    num = len(found.names)
    longest = max(map(len, found.names))
    left, right, top, bottom = 20 + 6.6 * min(longest, 22), 10, 8, 30 + 4.4 * min(longest, 20)
    width = (WIDE_WIDTH - left - right) / num
    height = min(width, 30.0)
    axes = new_axes(WIDE_WIDTH, top + bottom + height * num, left=left, right=right, top=top, bottom=bottom)
    axes.set_xlim(0, num)
    axes.set_ylim(num, 0)
    # One path for each shade and sign: a path a cell would be ten times the bytes.
    shades: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for row, values in enumerate(found.values):
        for place, value in enumerate(values):
            if value is not None and row != place:
                shades.setdefault(("s1" if value >= 0 else "s2", round(20 * abs(value))), []).append((place, row))
                if width >= 30 and height >= 15:
                    text = f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
                    gid = HALO if abs(value) > 0.45 else None
                    axes.text(place + 0.5, row + 0.5, text, ha="center", va="center", fontsize=10.5, gid=gid)
    for (name, shade), cells in shades.items():
        corners = [(x + dx, y + dy) for x, y in cells for dx, dy in ((0.02, 0.03), (0.98, 0.03), (0.98, 0.97), (0.02, 0.97), (0.02, 0.03))]
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(cells)
        axes.add_patch(PathPatch(Path(corners, codes), facecolor=colour(name), alpha=0.02 + 0.048 * shade, linewidth=0, zorder=1))
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    size = 11.5 if height >= 14 else max(6.0, height * 0.8)
    axes.set_yticks(np.arange(num) + 0.5, [shortened(name, 22) for name in found.names], fontsize=size)
    axes.set_xticks(np.arange(num) + 0.5, [shortened(name, 20) for name in found.names], fontsize=size, rotation=40, ha="right")
    return to_svg(axes, key, f"Correlations of {num} columns")


def day(seconds: float) -> str:
    """The day of a moment, UTC; its seconds where the calendar does not reach."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.4g} s"


def _lanes(names: Sequence[str], pitch: float, width: float, longest_tick: str) -> Axes:
    """A lane a name, from above; `longest_tick` of the axis below may stand at its end. Sizes in CSS pixels."""
    texts = [fitted(name, 0.42 * width) for name in names]
    left, right = 10 + max(map(text_width, texts), default=0.0), 4 + text_width(longest_tick) / 2
    axes = new_axes(width, 34 + pitch * len(names), left=left, right=right, top=4, bottom=30)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), texts)
    name_in_full(axes.get_yticklabels(), names)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    return axes


def _percent(axes: Axes, largest: float) -> None:
    axes.set_xlim(0, max(largest * 1.04, 0.01))
    plain_axis(axes.xaxis, 4)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= max(largest * 1.04, 0.01)]
    axes.set_xticks(ticks, [f"{100 * tick:.3g} %" for tick in ticks])
