"""The charts of the reports. Each takes plain records or arrays and returns an inline SVG; draw inside `svg.chart_style()`.

Sizes are CSS pixels: NORMAL charts stand two abreast on a desktop and keep readable text when a phone shrinks them; WIDE ones scroll
inside their card there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import NullLocator

from toolkit.core.experiment import Metric
from toolkit.core.study import TrialRecord, TrialState
from toolkit.reports.parameters import MISSING, ParameterAxis, shortened, text_of
from toolkit.reports.svg import HALO, colour, dots, log_axis, new_axes, plain_axis, ring, to_svg

Floats = npt.NDArray[np.float64]

NORMAL_WIDTH, NORMAL_HEIGHT = 400, 250
SMALL_WIDTH, SMALL_HEIGHT = 300, 190
WIDE_WIDTH = 940
MAX_DOTS = 1200
MAX_LINES = 250
STATE_COLOURS = {TrialState.COMPLETE: "good", TrialState.PRUNED: "weak", TrialState.FAILED: "bad"}
DASHES = ("solid", (0, (5, 2)), (0, (2, 2)), (0, (6, 2, 1.5, 2)), (0, (8, 3)))


def focus(values: Floats, maximize: bool) -> tuple[float, float]:
    """Limits that show the good values apart: far worse ones would press all others into one line, so they are drawn at the edge."""
    best, worst = (values.max(), values.min()) if maximize else (values.min(), values.max())
    reach = 4.0 * abs(best - float(np.median(values)))
    far = best - reach if maximize else best + reach
    if reach > 0 and len(values) >= 8:
        worst = max(worst, far) if maximize else min(worst, far)
    low, high = min(best, worst), max(best, worst)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return float(low - margin), float(high + margin)


def value_of(record: TrialRecord, metric: Metric, number: int = 0) -> float:
    """The trial's value of the experiment's `number`-th metric; for a pruned trial what it had when it was stopped; else NaN."""
    if record.state is TrialState.COMPLETE:
        return record.values[number]
    value = record.result.metrics.get(metric.name, np.nan)
    return float(value) if record.state is TrialState.PRUNED and np.isfinite(value) else np.nan


def history(records: Sequence[TrialRecord], best: TrialRecord, metric: Metric, key: str) -> Markup:
    axes = new_axes(NORMAL_WIDTH, NORMAL_HEIGHT)
    done = [record for record in records if record.state is TrialState.COMPLETE]
    numbers, values = np.array([r.number for r in done], dtype=float), np.array([r.values[0] for r in done])
    maximize = metric.direction == "maximize"
    low, high = focus(values, maximize)
    last = max(record.number for record in records)
    axes.set_xlim(-0.5, max(last, 4) + 0.5)
    axes.set_ylim(low, high)
    best_so_far = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    kept = np.flatnonzero(np.diff(best_so_far, prepend=np.nan) != 0)  # a step line needs its corners only
    line_x, line_y = np.append(numbers[kept], last + 0.5), np.append(best_so_far[kept], best_so_far[-1])
    axes.plot(line_x, np.clip(line_y, low, high), drawstyle="steps-post", color=colour("best"), linewidth=2)
    pruned = [(r.number, value) for r in records if r.state is TrialState.PRUNED and np.isfinite(value := value_of(r, metric))]
    for points, name, alpha in ((pruned, "weak", 0.9), (list(zip(numbers, values, strict=True)), "good", 0.75)):
        if points:
            x, y = np.array(points, dtype=float).T
            dots(axes, x, np.clip(y, low, high), name, size=6 if len(records) <= 200 else 4, alpha=alpha)
    failed = [record.number for record in records if record.state is TrialState.FAILED]
    few = len(failed) <= 30
    axes.plot(
        failed, np.full(len(failed), low), "x" if few else "|", color=colour("bad"), markersize=6, markeredgewidth=1.8 if few else 0.8,
        clip_on=False, zorder=4,
    )  # fmt: skip
    ring(axes, best.number, best.values[0], "best")
    plain_axis(axes.xaxis, 6, integer=True)
    plain_axis(axes.yaxis)
    axes.set_xlabel("trial number")
    axes.set_ylabel(shortened(metric.name, 36))
    return to_svg(axes, key, f"{metric.name} by trial number; best {best.values[0]:.6g} in trial {best.number}")


def pareto(records: Sequence[TrialRecord], front: Sequence[TrialRecord], metrics: Sequence[Metric], key: str) -> Markup:
    axes = new_axes(NORMAL_WIDTH, 300)
    values = np.array([record.values for record in records if record.state is TrialState.COMPLETE])
    limits = [focus(values[:, i], metrics[i].direction == "maximize") for i in (0, 1)]
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    clipped = np.column_stack([np.clip(values[:, i], *limits[i]) for i in (0, 1)])
    dots(axes, clipped[:, 0], clipped[:, 1], "weak", size=6, alpha=0.9)
    corner = np.array(sorted({(float(r.values[0]), float(r.values[1])) for r in front}))
    corner = np.column_stack([np.clip(corner[:, i], *limits[i]) for i in (0, 1)])
    # Between two trials of the front only the worse of both is certain, hence steps; which way they turn depends on the first metric.
    steps = "steps-pre" if metrics[0].direction == "maximize" else "steps-post"
    axes.plot(corner[:, 0], corner[:, 1], drawstyle=steps, color=colour("best"), linewidth=2)
    dots(axes, corner[:, 0], corner[:, 1], "best", size=9)
    # Numbers go to the side of the better values, where no trial can be; one that would cover its neighbour's is left to the table.
    right, up = (metric.direction == "maximize" for metric in metrics)
    written: list[tuple[float, float]] = []
    for record in sorted(front, key=lambda r: r.values):
        x, y = axes.transData.transform((record.values[0], record.values[1]))
        if all(abs(x - other_x) > 22 or abs(y - other_y) > 13 for other_x, other_y in written):
            written.append((x, y))
            axes.annotate(
                str(record.number), (record.values[0], record.values[1]), xytext=(6 if right else -6, 6 if up else -6),
                textcoords="offset points", fontsize=10, ha="left" if right else "right", va="bottom" if up else "top",
            )  # fmt: skip
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    for axis, metric in ((axes.xaxis, metrics[0]), (axes.yaxis, metrics[1])):
        axis.set_label_text(f"{shortened(metric.name, 28)} ({'higher' if metric.direction == 'maximize' else 'lower'} is better)")
    return to_svg(axes, key, f"{metrics[0].name} against {metrics[1].name}: {len(front)} of {len(values)} trials are on the Pareto front")


def curves(records: Sequence[TrialRecord], metric_name: str, maximize: bool, key: str) -> Markup:
    """Metric histories, best trial first; all have at least two points. The steep first rounds are cut off: the ends are what differs."""
    axes = new_axes(NORMAL_WIDTH, NORMAL_HEIGHT)
    for place, record in enumerate(records):
        points = np.asarray(record.result.history[metric_name], dtype=float)
        points = points[np.unique(np.linspace(0, len(points) - 1, 250).astype(int))]
        name = f"s{place + 1}"
        axes.plot(points[:, 0], points[:, 1], color=colour(name), linestyle=DASHES[place], linewidth=2, zorder=8 - place)
        best = record.result.best_iteration
        if best is not None:
            nearest = points[np.argmin(np.abs(points[:, 0] - (best + 1)))]
            axes.plot([nearest[0]], [nearest[1]], "o", color=colour(name), markersize=7, zorder=9)
    values = np.array([value for record in records for _, value in record.result.history[metric_name]], dtype=float)
    if np.isfinite(values).any():
        axes.set_ylim(*focus(values[np.isfinite(values)], maximize))
    plain_axis(axes.xaxis, 6, integer=True)
    plain_axis(axes.yaxis)
    axes.set_xlabel("step")
    axes.set_ylabel(shortened(metric_name, 36))
    return to_svg(axes, key, f"{metric_name} by step for the {len(records)} best trials")


def learning_curve(points: Sequence[tuple[float, float]], metric_name: str, key: str) -> Markup:
    """One metric by boosting round."""
    axes = new_axes(NORMAL_WIDTH, NORMAL_HEIGHT)
    rounds, values = np.asarray(points, dtype=float).T
    axes.plot(rounds, values, color=colour("good"), linewidth=2.4)
    plain_axis(axes.xaxis, 6, integer=True)
    plain_axis(axes.yaxis)
    axes.set_xlabel("boosting round")
    axes.set_ylabel(shortened(metric_name, 36))
    return to_svg(axes, key, f"{metric_name} by boosting round")


def value_slice(axis: ParameterAxis, records: Sequence[TrialRecord], best: TrialRecord, metric: Metric, key: str) -> Markup:
    """The first metric against one parameter."""
    axes = new_axes(SMALL_WIDTH, SMALL_HEIGHT, left=52, bottom=26)
    values = np.array([record.values[0] for record in records])
    maximize = metric.direction == "maximize"
    low, high = focus(values, maximize)
    where = np.array([axis.position(record.params.get(axis.name, MISSING)) for record in records])
    shown = np.isfinite(where)
    x, y = where[shown], np.clip(values[shown], low, high)
    if axis.categories:
        # A fixed spread by the golden ratio: no two neighbours fall on one another, and the picture is the same every time.
        x = x + 0.5 * ((np.arange(len(x)) * 0.618034) % 1.0 - 0.5)
    keep = _sample(y, MAX_DOTS, maximize)
    if axis.log:
        log_axis(axes, "x", axis.low, axis.high)
        pad = (axis.high / axis.low) ** 0.04
        axes.set_xlim(axis.low / pad, axis.high * pad)
    else:
        pad = 0.0 if axis.categories else 0.04 * (axis.high - axis.low)
        axes.set_xlim(axis.low - pad, axis.high + pad)
        if axis.categories:
            limit = max(3, 30 // len(axis.categories))
            axes.set_xticks(range(len(axis.categories)), [shortened(text, limit) for text in axis.categories])
        else:
            plain_axis(axes.xaxis, 5, integer=axis.integer)
    axes.set_ylim(low, high)
    dots(axes, x[keep], y[keep], "good", size=6 if len(keep) <= 150 else 4, alpha=0.65)
    place = axis.position(best.params.get(axis.name, MISSING))
    if np.isfinite(place):
        ring(axes, place, best.values[0], "best", size=10)
    plain_axis(axes.yaxis, 4)
    return to_svg(axes, key, f"{metric.name} against {axis.name}; the best trial has {text_of(best.params.get(axis.name, MISSING), 60)}")


def parallel_coordinates(
    axes_of: Sequence[ParameterAxis],
    records: Sequence[TrialRecord],
    best: TrialRecord,
    top: Sequence[TrialRecord],
    metric: Metric,
    key: str,
) -> Markup:
    """A line a trial across its parameters to its value; `top` stand out, `best` most."""
    width, height = WIDE_WIDTH, 312
    axes = new_axes(width, height, left=58, right=66, top=34, bottom=16)
    maximize = metric.direction == "maximize"
    values = np.array([record.values[0] for record in records])
    low, high = focus(values, maximize)
    table = np.array([[axis.share(record.params.get(axis.name, MISSING)) for axis in axes_of] for record in records])
    table = np.column_stack([table, (np.clip(values, low, high) - low) / (high - low)])
    table[np.isnan(table)] = -0.12  # a parameter the trial does not have: below the axis
    special = {record.number for record in (*top, best)}
    rest = np.array([number for number, record in enumerate(records) if record.number not in special], dtype=int)
    rest = rest[_sample(values[rest], MAX_LINES, maximize)]
    columns = np.arange(table.shape[1], dtype=float)
    row_of = {record.number: number for number, record in enumerate(records)}

    def lines(rows: Sequence[int] | npt.NDArray[np.int_], name: str, line_width: float, alpha: float, order: int) -> None:
        segments = [np.column_stack([columns, table[row]]) for row in rows]
        axes.add_collection(LineCollection(segments, colors=colour(name), linewidths=line_width, alpha=alpha, zorder=order, clip_on=False))

    lines(rest, "weak", 1.0, 0.45, 2)
    lines([row_of[record.number] for record in top if record.number != best.number], "good", 1.6, 0.85, 3)
    lines([row_of[best.number]], "best", 3.0, 1.0, 4)
    axes.set_xlim(0, len(axes_of))
    axes.set_ylim(-0.14 if (table < -0.1).any() else -0.02, 1.02)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    room = int(9.5 * 8 / max(len(axes_of), 1)) + 3
    for column, axis in enumerate(axes_of):
        axes.axvline(column, color=colour("muted"), linewidth=1, zorder=5)
        axes.text(column, 1.075, shortened(axis.name, 2 * room), ha="center", va="bottom", fontsize=11.5, fontweight="bold")
        for share, text in _axis_labels(axis):
            _label(axes, column, share, shortened(text, room))
        if (table[:, column] < -0.1).any():
            _label(axes, column, -0.12, "not used")
    last = len(axes_of)
    axes.axvline(last, color=colour("muted"), linewidth=1, zorder=5)
    axes.text(last, 1.075, shortened(metric.name, 18), ha="center", va="bottom", fontsize=11.5, fontweight="bold")
    for share in (0.06 / 1.12, 0.5, 1 - 0.06 / 1.12):
        _label(axes, last, share, f"{low + share * (high - low):.4g}")
    return to_svg(axes, key, f"Parallel coordinates of {len(records)} trials over {len(axes_of)} parameters; best is trial {best.number}")


def _axis_labels(axis: ParameterAxis) -> list[tuple[float, str]]:
    if axis.categories:
        return [((index + 0.5) / len(axis.categories), text) for index, text in enumerate(axis.categories)]
    middle = (axis.low * axis.high) ** 0.5 if axis.log else (axis.low + axis.high) / 2
    return [(0.0, f"{axis.low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{axis.high:.3g}")]


def _label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x + 0.03, y, text, ha="left", va="center", fontsize=10.5, color=colour("text"), zorder=7, clip_on=False, gid=HALO)


def timeline(records: Sequence[TrialRecord], best: TrialRecord | None, started_unix_s: float, span_s: float, key: str) -> Markup:
    """A lane a worker process, a bar a trial, seconds since the search began. `records` have run in this search."""
    first: dict[tuple[str, int], int] = {}
    for record in sorted(records, key=lambda r: r.result.started_unix_s):
        first.setdefault((record.result.host, record.result.pid), len(first))
    lanes = {lane: row for row, lane in enumerate(sorted(first, key=lambda lane: (lane[0], first[lane])))}
    pitch = 24.0 if len(lanes) <= 16 else max(5.0, 480 / len(lanes))
    several_hosts = len({host for host, _ in lanes}) > 1
    axes = new_axes(WIDE_WIDTH, 54 + pitch * len(lanes), left=150 if several_hosts else 84, top=8, bottom=38)
    axes.set_xlim(0, span_s)
    axes.set_ylim(len(lanes) - 0.5 + 0.1, -0.6)
    pixel_s = span_s / (WIDE_WIDTH - 170)
    boxes: dict[str, list[tuple[float, float, int, int]]] = {}
    for record in records:
        start = max(0.0, record.result.started_unix_s - started_unix_s)
        end = min(span_s, max(record.result.ended_unix_s - started_unix_s, start + 1.5 * pixel_s))
        name = "best" if best is not None and record.number == best.number else STATE_COLOURS[record.state]
        boxes.setdefault(name, []).append((start, end, lanes[record.result.host, record.result.pid], record.number))
    for name, bars in sorted(boxes.items()):
        corners = [(x, lane + dy) for a, b, lane, _ in bars for x, dy in ((a, -0.38), (b, -0.38), (b, 0.38), (a, 0.38), (a, -0.38))]
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(bars)
        edge = 1.0 if len(records) <= 400 else 0.0
        axes.add_patch(PathPatch(Path(corners, codes), facecolor=colour(name), edgecolor=colour("card"), linewidth=edge, zorder=3))
        for start, end, lane, number in bars if len(records) <= 200 and pitch >= 14 else ():
            if (end - start) / pixel_s > 7 * len(str(number)) + 8:
                axes.text((start + end) / 2, lane, str(number), ha="center", va="center", fontsize=10.5, color=colour("card"), zorder=4)
    every = max(1, int(np.ceil(14 / pitch)))
    shown = [(row, lane) for lane, row in lanes.items() if row % every == 0]
    axes.set_yticks([row for row, _ in shown], [f"{shortened(h, 14)} {pid}" if several_hosts else f"pid {pid}" for _, (h, pid) in shown])
    axes.grid(False, axis="y")
    plain_axis(axes.xaxis, 10)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds since the search began")
    return to_svg(axes, key, f"{len(records)} trials on {len(lanes)} worker processes over {span_s:.1f} seconds")


def rate_curve(x: Floats, y: Floats, mark: tuple[float, float] | None, base: float | None, key: str) -> Markup:
    """ROC (`base` None: the diagonal is chance) or precision-recall (`base`: the precision of chance), with the threshold's point."""
    axes = new_axes(NORMAL_WIDTH, 300)
    is_roc = base is None
    axes.plot([0, 1], [0, 1] if base is None else [base, base], color=colour("muted"), linewidth=1.2, linestyle=(0, (4, 3)))
    axes.plot(x, y, color=colour("good"), linewidth=2.4, drawstyle="default" if is_roc else "steps-pre", zorder=3)
    if is_roc:
        axes.fill_between(x, y, color=colour("good"), alpha=0.08, linewidth=0)
    if mark is not None:
        ring(axes, *mark, "best", size=12)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    axes.set_xlabel("false positive rate" if is_roc else "recall")
    axes.set_ylabel("true positive rate (recall)" if is_roc else "precision")
    name = "ROC curve" if is_roc else "Precision-recall curve"
    return to_svg(axes, key, f"{name} on the test part" + (f"; threshold at {mark[0]:.3f}, {mark[1]:.3f}" if mark else ""))


def predicted_against_true(label: Floats, prediction: Floats, key: str) -> Markup:
    axes = new_axes(NORMAL_WIDTH, 300, left=64)
    low, high = float(min(label.min(), prediction.min())), float(max(label.max(), prediction.max()))
    margin = 0.04 * (high - low) or 0.5
    axes.plot([low, high], [low, high], color=colour("muted"), linewidth=1.2, linestyle=(0, (4, 3)))
    keep = _sample(label, MAX_DOTS, True, num_best=0)
    dots(axes, label[keep], prediction[keep], "good", size=6 if len(keep) <= 300 else 3.5, alpha=0.6)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    axes.set_xlabel("true value")
    axes.set_ylabel("predicted value")
    return to_svg(axes, key, f"Predicted against true value of {len(label)} test rows")


def residual_histogram(residual: Floats, key: str) -> Markup:
    axes = new_axes(NORMAL_WIDTH, 300)
    counts, edges = np.histogram(residual, bins=min(40, max(5, round(len(residual) ** 0.5))))
    axes.stairs(counts, edges, fill=True, color=colour("good"), alpha=0.8)
    axes.axvline(0, color=colour("muted"), linewidth=1.4, linestyle=(0, (4, 3)))
    axes.set_ylim(0, counts.max() * 1.05)
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis, 5, integer=True)
    axes.set_xlabel("predicted minus true")
    axes.set_ylabel("test rows")
    return to_svg(axes, key, f"Histogram of {len(residual)} residuals, mean {residual.mean():.4g}")


def _sample(values: Floats, limit: int, maximize: bool, num_best: int = 60) -> npt.NDArray[np.int_]:
    """Indices of at most `limit` values: the best `num_best`, and the others evenly."""
    if len(values) <= limit:
        return np.arange(len(values))
    order = np.argsort(-values if maximize else values, kind="stable")
    others = np.sort(order[num_best:])
    spread = others[np.linspace(0, len(others) - 1, limit - num_best).astype(int)]
    return np.sort(np.concatenate([order[:num_best], spread]))
