"""The pictures of `sweep_cluster`'s report, in the style of the toolkit's own; draw inside `svg.chart_style()`. Sizes are CSS pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import NullLocator

from benchmarks.sweep_cluster_figures import ARM_NAMES, CurvePoint
from toolkit.reports.svg import PlainNumbers, colour, log_axis, new_axes, plain_axis, to_svg

WIDE_WIDTH, NORMAL_WIDTH = 940, 460
SEGMENTS = (
    ("fits", "best", "fitting: sum of fits / slots"),
    ("overhead", "s1", "overhead of the search"),
    ("start", "weak", "start of Ray"),
)
"""Name, colour and meaning of a bar's parts, from left to right."""
RIVAL_COLOURS = {"sparktrials": "s2", "sparktrials_tuned": "s1"}
NO_LENGTH_AT = 0.05
"""Where a logarithmic axis shows trials that take no time, s."""


def wall_bars(rows: Sequence[Mapping[str, Any]], num_slots: int, key: str) -> Markup:
    """A bar an arm, longest last: fitting, overhead and start-up stacked, seconds."""
    rows = sorted(rows, key=lambda row: row["search_s"] + row["start_s"])
    axes = new_axes(WIDE_WIDTH, 52 + 34 * len(rows), left=210, right=110, top=6, bottom=40)
    longest = max(row["search_s"] + row["start_s"] for row in rows)
    for place, row in enumerate(rows):
        fits_s = min(row["fit_s"] / num_slots, row["search_s"])
        left = 0.0
        for (_, name, _), width in zip(SEGMENTS, (fits_s, row["search_s"] - fits_s, row["start_s"]), strict=True):
            axes.barh(place, width, left=left, height=0.62, color=colour(name), edgecolor=colour("card"), linewidth=0.6)
            left += width
        text = f"{row['search_s']:.0f} s" + (f" + {row['start_s']:.0f} s" if row["start_s"] >= 0.5 else "")
        axes.text(left + 0.01 * longest, place, text, va="center", fontsize=12, color=colour("text"), clip_on=False)
    axes.set_yticks(range(len(rows)), [ARM_NAMES[row["arm"]] for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        is_ours = row["arm"].startswith("ours")
        label.set_color(colour("text"))
        label.set_fontsize(12.5)
        label.set_fontweight("bold" if is_ours else "normal")
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, longest * 1.02)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    plain_axis(axes.xaxis, 8)
    axes.set_xlabel("seconds")
    said = "; ".join(f"{ARM_NAMES[row['arm']]} {row['search_s']:.0f} s and {row['start_s']:.0f} s to start" for row in rows)
    return to_svg(axes, key, f"Search wall by arm: {said}")


def gain_curve(points: Sequence[CurvePoint], key: str) -> Markup:
    """How many times faster, by trial length, against both ways of SparkTrials, with and without our start-up; 1x is no gain."""
    points = sorted(points, key=lambda each: each.sleep_s)
    x = np.array([max(point.sleep_s, NO_LENGTH_AT) for point in points])
    axes = new_axes(NORMAL_WIDTH, 310, left=52, right=16, top=10, bottom=44)
    every = [point.gain(rival, counted) for point in points for rival in RIVAL_COLOURS for counted in (False, True)]
    log_axis(axes, "y", min(0.7, *every), max(3.0, *every))
    axes.set_ylim(min(0.7, *every) * 0.85, max(3.0, *every) * 1.25)
    axes.axhline(1.0, color=colour("text"), linewidth=1.4, zorder=2)
    axes.text(x[0], 0.97, "1×: no gain", ha="left", va="top", fontsize=11, color=colour("text"))
    for rival, name in RIVAL_COLOURS.items():
        for counted in (False, True):
            y = [point.gain(rival, counted) for point in points]
            style: Any = "solid" if counted else (0, (4, 3))
            axes.plot(x, y, color=colour(name), linewidth=2.4 if counted else 1.6, linestyle=style, zorder=3)
            for point, at, value in zip(points, x, y, strict=True):
                filled = not point.extrapolated
                axes.plot(
                    [at], [value], "o", markersize=6.5, markerfacecolor=colour(name if filled else "card"), markeredgecolor=colour(name),
                    markeredgewidth=1.8, zorder=4, clip_on=False,
                )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(NO_LENGTH_AT * 0.8, max(x[-1] * 1.2, 1.0))
    axes.set_xticks(x, ["0" if point.sleep_s == 0 else f"{point.sleep_s:g}" for point in points])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_Times())
    axes.set_xlabel("length of a trial, s")
    axes.set_ylabel("times faster")
    said = "; ".join(
        f"{point.sleep_s:g} s: {point.gain('sparktrials', True):.1f} and {point.gain('sparktrials_tuned', True):.1f} times"
        for point in points
    )
    return to_svg(axes, key, f"Gain over SparkTrials with defaults and tuned, start-up counted, by length of a trial: {said}")


class _Times(PlainNumbers):
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}×"

    def format_ticks(self, values: Any) -> list[str]:
        return [self(value) for value in values]


def best_so_far(searches: Mapping[str, Mapping[str, Any]], target: float | None, key: str) -> Markup:
    """The best validation value against the time since the search began, a line a search ("ASHA", "none")."""
    axes = new_axes(NORMAL_WIDTH, 290, left=58, right=16, top=10, bottom=44)
    colours = {"ASHA": "best", "none": "s2"}
    best: list[float] = []
    for label, measurement in searches.items():
        ended = sorted((fit[4] - measurement["began_unix_s"], fit[1]) for fit in measurement["fits"])
        times, values = [each[0] for each in ended], np.maximum.accumulate([each[1] for each in ended])
        best += list(values)
        axes.plot(times, values, drawstyle="steps-post", color=colour(colours[label]), linewidth=2.4)
        axes.plot(times, values, "o", color=colour(colours[label]), markersize=3.5)
    if target is not None:
        axes.axhline(target, color=colour("text"), linewidth=1.2, linestyle=(0, (4, 3)))
        best.append(target)
    low, high = float(np.quantile(best, 0.1)), max(best)
    margin = 0.1 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(left=0)
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    axes.set_xlabel("seconds since the search began")
    axes.set_ylabel("best validation AUC so far")
    return to_svg(axes, key, "Best validation AUC so far against time, with and without ASHA")
