"""The report of a sweep: one HTML file that needs nothing but itself, to be read by somebody who did not run it.

This module decides what is said; `templates/` how it is set, `plots` how it is drawn. It computes no statistics of its own beyond
counting: importances come from the caller, test figures from the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.core.evaluation import Evaluation
from toolkit.core.experiment import Metric
from toolkit.core.result import SweepResult
from toolkit.core.study import TrialRecord, TrialState
from toolkit.reports import page, plots, provenance, winner
from toolkit.reports.cards import Bar, Card, Legend, Tile, figure_text, ranked_bars, seconds_text, without_holes
from toolkit.reports.page import utc
from toolkit.reports.parameters import MISSING, ParameterAxis, parameter_axes, params_json, searched_ranges, shortened, text_of
from toolkit.reports.svg import chart_style

MAX_SLICES = 12
MAX_PARALLEL = 8
MAX_TABLE_ROWS = 2000
MAX_FAILURES = 100
MAX_TRACEBACK_CHARS = 6000
FOLD_TABLE_ABOVE = 60


def render_sweep(result: SweepResult, importances: Mapping[str, float] | None = None, importance_method: str = "") -> str:
    """The whole page.

    Args:
        importances: parameter -> importance for the first metric, as the caller computed it; None leaves the card out.
        importance_method: its name for the caption, such as "fANOVA". Needed with `importances`.
    """
    with chart_style():
        sections = [
            ("The winner", _winner_cards(result)),
            ("The search", _search_cards(result, importances, importance_method)),
            ("The winner on the test part", winner.evaluation_cards(result.evaluation) if result.evaluation else []),
            ("The run", _run_cards(result)),
        ]
    return page.render(
        "sweep.html.j2",
        result=result,
        started=utc(result.started_unix_s),
        badge=_protocol_sentence(result),
        alarms=_alarms(result),
        tiles=_tiles(result),
        sections=[(title, without_holes(cards)) for title, cards in sections if cards],
        failures=_failures(result),
        trials=_trials_table(result),
        provenance=provenance.facts(result),
        commands=provenance.commands(result),
    )  # fmt: skip


def _protocol_sentence(result: SweepResult) -> str:
    if result.protocol == "published":
        return "Does what the source notebooks did, to reproduce their figures: trials stop early on, and are selected by, the test part."
    has_threshold = result.evaluation is not None and result.evaluation.threshold is not None
    what = "Early stopping, selection and the threshold" if has_threshold else "Early stopping and selection"
    return f"{what} saw validation rows only; the test part was touched once, at the end."


def _alarms(result: SweepResult) -> list[tuple[str, str, str]]:
    """(severity, title, text), the gravest first."""
    alarms = []
    if result.source.is_fallback:
        text = "The real data could not be reached, so a generated sample was used. These figures say nothing about the real problem."
        alarms.append(("bad", "Generated fallback sample, not real data", text))
    if result.protocol == "published":
        text = (
            "Its figures are flattered: equal rows stand on both sides of the split, and the best of many trials was selected on the "
            "rows it is scored on. Expect less in production; the honest protocol says how much less."
        )
        alarms.append(("warn", "Published protocol", text))
    failed, limit = result.count(TrialState.FAILED), result.experiment.sweep.failure_limit
    if result.best is None:
        text = "There are no best parameters and no model. The failures below say why." if failed else "There is nothing to choose from."
        alarms.append(("bad", "No trial completed", text))
    elif failed > limit:
        alarms.append(("bad", f"{failed} trials failed", f"More than the {limit} that the experiment allows: the search was ended."))
    if result.stopped_by:
        done = sum(record.state.is_finished for record in result.records)
        text = f"{done} of {result.num_trials} trials were finished. What is finished counts; the last section says how to go on."
        alarms.append(("warn", f"Stopped early: {result.stopped_by}", text))
    if result.best is not None and result.evaluation is None:
        alarms.append(("warn", "Not evaluated on the test part", "The search ended with the best parameters and without a final model."))
    if result.num_unsent:
        text = f"{result.num_unsent} entries wait in the spool because the tracking server did not answer; --resume sends them."
        alarms.append(("warn", "MLflow is incomplete", text))
    return alarms


def _tiles(result: SweepResult) -> list[Tile]:
    tiles = []
    metrics = result.experiment.metrics
    if result.best is not None:
        for number, metric in enumerate(metrics):
            where = "on test, selected there" if result.protocol == "published" else "on validation"
            if result.experiment.split.folds and result.protocol != "published":
                where = f"mean of {result.experiment.split.folds} folds"
            note = f"trial {result.best.number}" if len(metrics) == 1 else f"trial {result.best.number}, first of the Pareto front"
            tiles.append(Tile(f"best {metric.name} {where}", figure_text(result.best.values[number]), note, is_main=number == 0))
    if result.evaluation is not None and result.protocol == "honest":  # the published best value is the test value
        for metric in metrics:
            if metric.name in result.evaluation.metrics:
                note = f"{len(result.evaluation.label):,} unseen rows"
                tiles.append(Tile(f"{metric.name} on test", figure_text(result.evaluation.metrics[metric.name]), note, is_main=True))
    done, pruned, failed = (result.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED))
    tiles.append(Tile("trials completed", f"{done:,}", f"{pruned:,} stopped early, {failed:,} failed", is_bad=done == 0))
    per_second = len(result.records) / result.search_s if result.search_s > 0 else 0.0
    tiles.append(Tile("search time", seconds_text(result.search_s), f"{per_second:.3g} trials a second"))
    slots = f"{result.num_slots} slots'" if result.num_slots != 1 else "the slot's"
    tiles.append(Tile("efficiency", f"{100 * result.efficiency:.0f} %", f"of {slots} time was fitting"))
    return tiles


def _winner_cards(result: SweepResult) -> list[Card]:
    best = result.best
    if best is None:
        return []
    ranges = searched_ranges(result.experiment.space)
    axes = {axis.name: axis for axis in parameter_axes(result.experiment.space, result.records, None)}
    rows, at_edge = [], 0
    for name, value in best.params.items():
        edge = name in axes and name in ranges and axes[name].is_at_edge(value)
        at_edge += edge
        rows.append((name, text_of(value, 2000), ranges.get(name, ""), edge))
    caption = f"Trial {best.number}, the best of {result.count(TrialState.COMPLETE)} completed trials."
    if len(result.experiment.metrics) > 1:
        caption = f"Trial {best.number}, the first of {len(result.pareto)} on the Pareto front: which one to take is your choice."
    if at_edge:
        caption += " A value at the edge of its range suggests a wider range."
    if best.result.best_iteration is not None:
        caption += f" Its best boosting round was number {best.result.best_iteration + 1}."
    cards = [Card("Best parameters", caption, kind="params", data={"rows": rows, "json": params_json(best.params)})]
    if result.evaluation is not None:
        cards.append(_test_figures(result, result.evaluation, best))
    if len(result.experiment.metrics) > 1:
        header = ["trial", *(metric.name for metric in result.experiment.metrics), *best.params]
        front = [
            [str(r.number), *map(figure_text, r.values), *(text_of(r.params.get(name, MISSING), 60) for name in best.params)]
            for r in result.pareto[:50]
        ]
        caption = "No other trial equals or beats these in both metrics and beats them in one."
        cards.append(Card("Pareto front", caption, kind="table", is_wide=True, data={"header": header, "rows": front}))
    return cards


def _test_figures(result: SweepResult, evaluation: Evaluation, best: TrialRecord) -> Card:
    own = {metric.name: value for metric, value in zip(result.experiment.metrics, best.values, strict=True)}
    names = [*(name for name in own if name in evaluation.metrics), *(name for name in evaluation.metrics if name not in own)]
    rows = [[name, figure_text(own[name]) if name in own else "", figure_text(evaluation.metrics[name])] for name in names]
    caption = "Much better on validation than on test means that the search has fitted the validation rows."
    if result.protocol == "published":
        caption = "Both columns come from the test part, on which the trial was selected."
    if evaluation.num_rounds is not None:
        caption += f" The final model has {evaluation.num_rounds} boosting rounds."
    header = ["metric", "selected on test" if result.protocol == "published" else "validation", "test"]
    return Card("Figures on the test part", caption, kind="table", data={"header": header, "rows": rows})


def _search_cards(result: SweepResult, importances: Mapping[str, float] | None, method: str) -> list[Card]:
    best, records = result.best, result.records
    if best is None:
        return []
    metrics = result.experiment.metrics
    done = [record for record in records if record.state is TrialState.COMPLETE]
    top = _top(done, metrics[0], 5)
    cards = [_pareto_card(result) if len(metrics) > 1 else _history_card(result, best)]
    curve = _curve_metric(metrics[0], top)
    if curve:
        shown = [record for record in top if len(record.result.history.get(curve, ())) > 1]
        legend = [
            Legend(f"s{place + 1}", f"trial {record.number}: {figure_text(record.values[0])}", f"line{place}")
            for place, record in enumerate(shown)
        ]
        maximize = metrics[0].direction == "maximize"
        caption = (
            f"{curve} during the fits; one that still {'rises' if maximize else 'falls'} at its dot, the round that was kept, wants more."
        )
        svg = plots.curves(shown, curve, maximize, "curves")
        cards.append(Card(f"Metric curves of the best {len(shown)}", caption, svg, legend=legend))
    if importances:
        caption = f"How much each parameter decides {metrics[0].name}, by {method}; estimates from few trials are rough."
        cards.append(Card("Parameter importances", caption, kind="bars", data={"bars": ranked_bars(importances, 20)}))
    axes = parameter_axes(result.experiment.space, done, importances)
    if len(done) > 1 and axes:
        cards.append(_slices_card(axes, done, best, metrics[0], is_ranked=bool(importances)))
        cards.append(_parallel_card(axes[:MAX_PARALLEL], len(axes), done, best, metrics[0]))
    return cards


def _history_card(result: SweepResult, best: TrialRecord) -> Card:
    metric = result.experiment.metrics[0]
    legend = [Legend("best", "best so far", "line"), Legend("good", "completed")]
    if result.count(TrialState.PRUNED):
        legend.append(Legend("weak", "stopped early"))
    if result.count(TrialState.FAILED):
        legend.append(Legend("bad", "failed", "cross"))
    caption = "A best-so-far line that still climbs at the right end asks for more trials. Values far worse are drawn at the edge."
    if metric.direction == "minimize":
        caption = caption.replace("climbs", "falls")
    return Card("Optimisation history", caption, plots.history(result.records, best, metric, "history"), legend=legend)


def _pareto_card(result: SweepResult) -> Card:
    svg = plots.pareto(result.records, result.pareto, result.experiment.metrics, "pareto")
    legend = [Legend("best", "Pareto front"), Legend("weak", "other completed trials")]
    caption = "Along the front one metric is paid for with the other; look for the bend, where a little of one buys much of the other."
    return Card("Pareto front", caption, svg, legend=legend)


def _curve_metric(metric: Metric, top: Sequence[TrialRecord]) -> str | None:
    """The history to show: the metric's own, else the first that any of the best trials has with two points or more."""
    names = [name for record in top for name, points in record.result.history.items() if len(points) > 1]
    return metric.name if metric.name in names else next(iter(names), None)


def _slices_card(axes: Sequence[ParameterAxis], done: Sequence[TrialRecord], best: TrialRecord, metric: Metric, is_ranked: bool) -> Card:
    shown = axes[:MAX_SLICES]
    charts = [(axis.name, plots.value_slice(axis, done, best, metric, f"slice{number}")) for number, axis in enumerate(shown)]
    caption = f"{metric.name} of each completed trial against one parameter: a cloud that leans towards an end asks for a wider range."
    if len(axes) > len(shown):
        which = "most important" if is_ranked else "first"
        caption += f" The {len(shown)} {which} of {len(axes)} parameters."
    return Card("Slices", caption, kind="multiples", is_wide=True, data={"charts": charts}, legend=[Legend("best", "best trial", "ring")])


def _parallel_card(axes: Sequence[ParameterAxis], num_axes: int, done: Sequence[TrialRecord], best: TrialRecord, metric: Metric) -> Card:
    top = _top(done, metric, max(3, min(15, len(done) // 10)))
    svg = plots.parallel_coordinates(axes, done, best, top, metric, "parallel")
    legend = [Legend("best", "best", "line"), Legend("good", f"best {len(top)}", "line"), Legend("weak", "other completed trials", "line")]
    caption = "Where the highlighted lines pass through a narrow gap, that parameter matters and its good values are known."
    if num_axes > len(axes):
        caption += f" The first {len(axes)} of {num_axes} parameters."
    return Card("Parallel coordinates", caption, svg, is_wide=True, legend=legend)


def _run_cards(result: SweepResult) -> list[Card]:
    cards = []
    here = [r for r in result.records if r.result.ended_unix_s > 0 and r.result.started_unix_s >= result.search_started_unix_s - 0.5]
    if here:
        span = max([result.search_s, *(record.result.ended_unix_s - result.search_started_unix_s for record in here)]) or 1.0
        names = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "stopped early", TrialState.FAILED: "failed"}
        states = {record.state for record in here}
        legend = [Legend(plots.STATE_COLOURS[state], text, "square") for state, text in names.items() if state in states]
        if result.best is not None and any(record.number == result.best.number for record in here):
            legend.insert(0, Legend("best", "best trial", "square"))
        caption = (
            "A lane is a worker process, a bar a trial; a gap is time in which a slot waited: at the left for start-up, at the right "
            "for the last trial."
        )
        earlier = sum(record.state.is_finished for record in result.records) - len(here)
        if earlier > 0:
            caption += f" {earlier} trials of earlier runs of this study are not drawn."
        finished = [record for record in here if record.state in plots.STATE_COLOURS]
        svg = plots.timeline(finished, result.best, result.search_started_unix_s, span, "timeline") if finished else None
        if svg:
            cards.append(Card("Trial timeline", caption, svg, is_wide=True, legend=legend))
    cards.append(_time_card(result))
    return cards


def _time_card(result: SweepResult) -> Card:
    fitting = min(result.search_s, result.fit_wall_s / result.num_slots) if result.num_slots else 0.0
    rest = max(0.0, result.wall_s - result.cluster_start_s - result.search_s)
    parts = [
        ("s4", "cluster start", result.cluster_start_s, "from nothing to a slot that can run a trial"),
        ("good", "search: fitting", fitting, f"{seconds_text(result.fit_wall_s)} of fits on {result.num_slots} slots"),
        ("weak", "search: slots idle", max(0.0, result.search_s - fitting), "proposing, dispatching, waiting for the last trial"),
        ("s3", "the rest", rest, "data, final model, evaluation, MLflow, this report"),
    ]
    whole = sum(seconds for _, _, seconds, _ in parts) or 1.0
    bars = [Bar(name, seconds_text(seconds), seconds / whole, note, colour) for colour, name, seconds, note in parts]
    cpu = result.fit_cpu_s / result.fit_wall_s if result.fit_wall_s > 0 else 0.0
    caption = (
        f"{seconds_text(result.wall_s)} in all. Only fitting is work: a long idle part means trials too short or too few for the slots. "
        f"The fits used {cpu:.2f} cores each."
    )
    return Card("Where the time went", caption, kind="stack", is_wide=True, data={"bars": bars})


def _failures(result: SweepResult) -> dict[str, Any]:
    """Rows of the failures table; a traceback that was shown already is only referred to."""
    failed = [record for record in result.records if record.state is TrialState.FAILED]
    first_with: dict[str, int] = {}
    rows = []
    for record in failed[:MAX_FAILURES]:
        error = (record.error or "no reason was recorded").strip()
        same_as = first_with.setdefault(error, record.number)
        shown = error if len(error) <= MAX_TRACEBACK_CHARS else "\N{HORIZONTAL ELLIPSIS}" + error[-MAX_TRACEBACK_CHARS:]
        params = ", ".join(f"{name}={text_of(value, 60)}" for name, value in record.params.items())
        rows.append(
            {
                "number": record.number,
                "params": shortened(params, 600),
                "reason": shortened(error.splitlines()[-1] if error else "", 400),
                "traceback": shown if same_as == record.number else "",
                "same_as": same_as,
                "retries": record.num_retries,
            }
        )
    return {"rows": rows, "num_failed": len(failed)}


def _trials_table(result: SweepResult) -> dict[str, Any]:
    """Header and rows of text; numbers are written so that the page's few lines of script can sort them."""
    metrics = result.experiment.metrics
    names = list(dict.fromkeys(name for record in result.records for name in record.params))
    records = list(result.records)
    if len(records) > MAX_TABLE_ROWS:
        best_first = _top(records, metrics[0], MAX_TABLE_ROWS)
        records = sorted(best_first, key=lambda record: record.number)
    rows = []
    for record in records:
        values = [plots.value_of(record, metric, number) for number, metric in enumerate(metrics)]
        rows.append(
            [
                str(record.number),
                record.state.value,
                *("" if math.isnan(value) else figure_text(value) for value in values),
                f"{record.result.fit_wall_s:.2f}",
                *(text_of(record.params[name], 80) if name in record.params else "" for name in names),
            ]
        )
    best = {record.number for record in result.pareto} | ({result.best.number} if result.best else set())
    return {
        "header": ["trial", "state", *(metric.name for metric in metrics), "fit s", *names],
        "rows": rows,
        "best": {str(number) for number in best},
        "num_trials": len(result.records),
        "is_folded": len(result.records) > FOLD_TABLE_ABOVE,
    }


def _top(records: Sequence[TrialRecord], metric: Metric, count: int) -> list[TrialRecord]:
    """The best by the first metric, the earlier one on a tie; those that did not complete come last."""
    sign = -1.0 if metric.direction == "maximize" else 1.0

    def order(record: TrialRecord) -> tuple[float, int]:
        return (sign * record.values[0] if record.state is TrialState.COMPLETE else math.inf, record.number)

    return sorted(records, key=order)[:count]
