"""The report of `sweep_cluster`: JSON as all benchmarks write it, Markdown, and one HTML file that a team lead would forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import toolkit.reports
from benchmarks import harness
from benchmarks import sweep_cluster_figures as figures
from benchmarks.sweep_cluster_figures import ARM_NAMES, Measured
from benchmarks.sweep_cluster_plots import RIVAL_COLOURS, SEGMENTS, best_so_far, gain_curve, wall_bars
from toolkit.reports.cards import Card, Legend, Tile, seconds_text, without_holes
from toolkit.reports.svg import chart_style

QUESTION = (
    "How much faster is a search with the toolkit on a Spark cluster than with what teams have, and from which trial length on is it not?"
)
SECTION_TITLES = {
    "wine50": "short fits of the wine data",
    "wine150": "short fits of the wine data",
    "long": "fits of about 5 s",
    "mlflow100": "short fits of the wine data, once",
}

_PAGE = """
{% extends "page.html.j2" %}
{% import "cards.html.j2" as cards %}
{% block title %}{{ title }}{% endblock %}
{% block content %}
<header>
<p class="eyebrow">Benchmark</p>
<h1>{{ title }}</h1>
<p class="meta">{{ meta }}</p>
{{ cards.tiles(tiles) }}
</header>
{% for title, items in sections %}
<section>
<h2>{{ title }}</h2>
<div class="cards">
{% for card in items %}
{{ cards.card_of(card) }}
{% endfor %}
</div>
</section>
{% endfor %}
<section>
<h2>How it was measured</h2>
<article class="card wide"><ul>{% for note in notes %}<li class="caption">{{ note }}</li>{% endfor %}</ul></article>
</section>
<footer>{{ versions }} · commit {{ commit }}</footer>
{% endblock %}
"""


def write_report(measurements: Iterable[figures.Measurement], folder: Path | None) -> list[Path]:
    """Write JSON, Markdown and HTML into `folder` (default: `benchmarks/results`); their paths, none without measurements."""
    measured = Measured(measurements)
    if not measured.all:
        return []
    points = figures.curve(measured)
    extra = {
        "comparisons": {name: figures.comparison(measured, name) for name in SECTION_TITLES if measured.of(name, "ours_spark")},
        "curve": [_curve_row(point) for point in points],
        "sentence": figures.sentence(points) if points else "",
        "faults": _faults(measured),
        "quality": [
            {"arm": arm, "best": measured.median("quality", arm, "best"), "search_s": measured.median("quality", arm, "search_s")}
            for arm in measured.arms("quality")
        ],
        "profile": next((each["profile"] for each in measured.of("launches", "ours_spark_profiled")), None),
    }
    path = harness.write(
        "sweep-cluster",
        QUESTION,
        figures.harness_arms(measured),
        figures.figures(measured),
        figures.notes(measured),
        extra=extra,
        render={".md": _markdown, ".html": partial(_html, measured=measured)},
        folder=folder,
    )
    return [path, path.with_suffix(".md"), path.with_suffix(".html")]


def _curve_row(point: figures.CurvePoint) -> dict[str, Any]:
    return {
        "num_slots": point.num_slots,
        "trial_s": point.sleep_s,
        "num_trials": point.num_trials,
        "num_measured": dict(point.num_measured),
        "extrapolated": point.extrapolated,
        "walls_s": {arm: round(wall_s, 2) for arm, wall_s in point.walls_s.items()},
        "start_s": round(point.start_s, 2),
        **{f"gain_over_{rival}": round(point.gain(rival, False), 3) for rival in RIVAL_COLOURS},
        **{f"gain_over_{rival}_with_start": round(point.gain(rival, True), 3) for rival in RIVAL_COLOURS},
    }


def _faults(measured: Measured) -> list[dict[str, Any]]:
    rows = []
    for arm in measured.arms("faults"):
        if measured.of("faults", arm, "a worker dies") and measured.of("faults", arm, "undisturbed"):
            lost = [measured.median("faults", arm, "lost_slot_s", label) for label in ("undisturbed", "a worker dies")]
            dying = measured.of("faults", arm, "a worker dies")[0]
            num_trials, trial_s = dying["workload"]["num_trials"], dying["workload"]["sleep_s"]
            again = measured.median("faults", arm, "num_starts", "a worker dies") - num_trials
            rows.append(
                {"arm": arm, "num_trials": num_trials, "trial_s": trial_s, "num_started_again": again, "undisturbed_lost_slot_s": lost[0],
                 "lost_slot_s": lost[1], "by_the_death_slot_s": lost[1] - lost[0]}
            )  # fmt: skip
    return rows


# --- tables, for both forms -----------------------------------------------------------------------------------------------------------

Table = tuple[Sequence[str], list[list[str]]]


def _comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    header = ("arm", "search", "over ours", "start of Ray", "over ours, start counted", "overhead", "sum of fits", "best AUC", "rounds")
    body = [
        [
            ARM_NAMES[row["arm"]],
            _seconds(row["search_s"]),
            _ratio(row.get("ratio")),
            _seconds(row["start_s"]) if row["start_s"] else "–",
            _ratio(row.get("ratio_with_start")),
            _seconds(row["overhead_s"]),
            _seconds(row["fit_s"]),
            f"{row['best']:.4f}",
            str(row["rounds"]),
        ]
        for row in rows
    ]
    return header, body


def _curve_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    header = (
        "slots",
        "trial",
        "SparkTrials",
        "tuned",
        "ours",
        "start of Ray",
        "over default",
        "over tuned",
        "… start counted",
        "measured on",
    )
    body = []
    for row in rows:
        walls, counts = row["walls_s"], row["num_measured"]
        measured_on = "/".join(str(counts[arm]) for arm in ("sparktrials", "sparktrials_tuned", "ours_spark"))
        body.append(
            [
                str(row["num_slots"]),
                f"{row['trial_s']:g} s",
                *(_seconds(walls[arm]) for arm in ("sparktrials", "sparktrials_tuned", "ours_spark")),
                _seconds(row["start_s"]),
                _ratio(row["gain_over_sparktrials"]),
                _ratio(row["gain_over_sparktrials_tuned"]),
                f"{_ratio(row['gain_over_sparktrials_with_start'])}, {_ratio(row['gain_over_sparktrials_tuned_with_start'])}",
                f"{measured_on} of {row['num_trials']}" + (" (extrapolated)" if row["extrapolated"] else ""),
            ]
        )
    return header, body


def _fault_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    header = ("arm", "trials", "started again", "lost undisturbed", "lost, a worker dies at half", "by the death")
    body = [
        [
            ARM_NAMES[row["arm"]],
            f"{row['num_trials']} of {row['trial_s']:g} s",
            f"{row['num_started_again']:.0f}",
            *(f"{row[key]:.0f} slot-s" for key in ("undisturbed_lost_slot_s", "lost_slot_s", "by_the_death_slot_s")),
        ]
        for row in rows
    ]
    return header, body


def _quality_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return ("arm", "best validation AUC", "search"), [
        [ARM_NAMES[row["arm"]], f"{row['best']:.4f}", _seconds(row["search_s"])] for row in rows
    ]


def _profile_table(rows: Sequence[Mapping[str, Any]], num: int = 14) -> Table:
    header = ("function", "calls", "share of the search's wall, own", "with what it calls")
    chosen = sorted(rows, key=lambda row: -row["own"])[:num]
    return header, [[row["function"], f"{row['calls']:,}", f"{row['own']:.1%}", f"{row['with_callees']:.1%}"] for row in chosen]


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if abs(value) < 100 else f"{value:.0f} s"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}×" if value < 3 else f"{value:.1f}×"


# --- Markdown -------------------------------------------------------------------------------------------------------------------------


def _markdown(result: Mapping[str, Any]) -> str:
    parts = [harness.markdown({**result, "notes": []})]
    if result["sentence"]:
        parts.append(f"## From which trial length on\n\n{result['sentence']}\n\n{_markdown_table(_curve_table(result['curve']))}")
    for name, rows in result["comparisons"].items():
        parts.append(f"## {name}: {SECTION_TITLES[name]}\n\n{_markdown_table(_comparison_table(rows))}")
    for title, rows, table in (
        ("A worker dies at half", result["faults"], _fault_table),
        ("Quality, each arm with its own sampler", result["quality"], _quality_table),
        ("Where the controller's time goes", result["profile"], _profile_table),
    ):
        if rows:
            parts.append(f"## {title}\n\n{_markdown_table(table(rows))}")
    parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in result["notes"]))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _markdown_table(table: Table) -> str:
    header, rows = table
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


# --- HTML -----------------------------------------------------------------------------------------------------------------------------


def _html(result: Mapping[str, Any], measured: Measured) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(toolkit.reports.__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with chart_style():
        sections = [
            ("Which trials it helps, and which it does not", _curve_cards(result, measured)),
            ("Search wall by arm", _wall_cards(result)),
            ("Figures against targets", [_figures_card(result)]),
            ("More", _more_cards(result, measured)),
        ]
    machine = result["machine"]
    return environment.from_string(_PAGE).render(
        title="Hyperparameter search on Spark: the toolkit against what teams have",
        meta=f"{result['date']} · one host, {machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB · "
        "a real Spark standalone cluster · one fixed list of parameter sets for all",
        tiles=_tiles(result),
        sections=[(title, without_holes(cards)) for title, cards in sections if cards],
        notes=result["notes"],
        versions=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        commit=result["git_commit"][:12],
    )


def _tiles(result: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    for name, rows in result["comparisons"].items():
        by_arm = {row["arm"]: row for row in rows}
        ours = by_arm.get("ours_spark")
        for arm in ("sparktrials", "sparktrials_tuned"):
            if ours and arm in by_arm and name in ("wine50", "wine150"):
                row = by_arm[arm]
                walls = f"{seconds_text(ours['search_s'])} instead of {seconds_text(row['search_s'])}"
                note = f"{walls}; {_ratio(row['ratio_with_start'])} with Ray's start"
                tiles.append(
                    Tile(f"{row['num_trials']} short fits, against {ARM_NAMES[arm]}", _ratio(row["ratio"]), note, is_main=not tiles)
                )
    missed = [each for each in result["figures"] if not each["met"]]
    tiles.append(
        Tile(
            "figures that met their target",
            f"{len(result['figures']) - len(missed)} of {len(result['figures'])}",
            "table below",
            is_bad=bool(missed),
        )
    )
    return tiles


def _curve_cards(result: Mapping[str, Any], measured: Measured) -> list[Card]:
    points = figures.curve(measured)
    cards = []
    for num_slots in sorted({point.num_slots for point in points}):
        chosen = [point for point in points if point.num_slots == num_slots]
        if len(chosen) < 2:
            continue
        cards.append(
            Card(
                f"{num_slots} slots, {chosen[0].num_trials} trials",
                figures.sentence(chosen),
                svg=gain_curve(chosen, f"curve{num_slots}"),
                legend=(
                    Legend(RIVAL_COLOURS["sparktrials"], "over SparkTrials, defaults, Ray's start counted", "line"),
                    Legend(RIVAL_COLOURS["sparktrials_tuned"], "over SparkTrials, tuned, Ray's start counted", "line"),
                    Legend("muted", "dashed: search wall alone", "line1"),
                    Legend("muted", "hollow: extrapolated from fewer trials", "ring"),
                ),
            )
        )
    if points:
        header, rows = _curve_table(result["curve"])
        cards.append(
            Card(
                "The same as a table",
                "Search walls of the whole search; trials sleep, so that any number of slots fits on two cores.",
                kind="table",
                is_wide=True,
                data={"header": header, "rows": rows},
            )
        )
    return cards


def _wall_cards(result: Mapping[str, Any]) -> list[Card]:
    cards = []
    for name, rows in result["comparisons"].items():
        title = f"{SECTION_TITLES[name].capitalize()} ({name})"
        legend = [Legend(colour, text, "square") for _, colour, text in SEGMENTS]
        cards.append(
            Card(
                title,
                "The Spark session was there before. Beside each bar: the search, and what Ray took to start.",
                svg=wall_bars(rows, 2, f"bars-{name}"),
                is_wide=True,
                legend=legend,
            )
        )
        header, body = _comparison_table(rows)
        cards.append(
            Card(
                f"Ratios and overheads ({name})",
                "Overhead is what the search takes beyond its fits; an arm's own start-up counts on both sides of “start counted”.",
                kind="table",
                is_wide=True,
                data={"header": header, "rows": body},
            )
        )
    return cards


def _figures_card(result: Mapping[str, Any]) -> Card:
    rows = [
        [each["name"], harness.number_text(each["value"], each["unit"]), harness.target_text(each), "met" if each["met"] else "✗ missed"]
        for each in result["figures"]
    ]
    data = {"header": ("figure", "value", "target", ""), "rows": rows}
    return Card("Figures", "Targets were set before the runs; what falls short stays in.", kind="table", is_wide=True, data=data)


def _more_cards(result: Mapping[str, Any], measured: Measured) -> list[Card]:
    cards = []
    searches = {label: found[0] for label in ("none", "ASHA") if (found := measured.of("asha", "ours_spark", label))}
    if len(searches) == 2:
        workload = searches["ASHA"]["workload"]
        pruned = searches["ASHA"]["values"].get("num_pruned", 0)
        cards.append(
            Card(
                "Early stopping on a large table",
                f"{workload['num_rows']:,} rows × 28, {workload['num_trials']} trials, the same list; ASHA stopped {pruned} of them early.",
                svg=best_so_far(searches, figures.ASHA_TARGET_AUC, "asha"),
                legend=(Legend("best", "ASHA", "line"), Legend("s2", "no scheduler", "line"), Legend("text", "target", "line1")),
            )
        )
    if result["quality"]:
        header, body = _quality_table(result["quality"])
        caption = "Each arm with its own sampler; one run each, so that small differences are noise."
        cards.append(Card("Quality", caption, kind="table", data={"header": header, "rows": body}))
    for title, caption, rows, table in (
        ("A worker dies at half", "Slot-seconds that went into no trial that counts.", result["faults"], _fault_table),
        (
            "Where the controller's time goes",
            "No-op trials on many slots, Tune's thread profiled: shares of the search's wall, by own time. The profiler itself slows it.",
            result["profile"],
            _profile_table,
        ),
    ):
        if rows:
            header, body = table(rows)
            cards.append(Card(title, caption, kind="table", is_wide=True, data={"header": header, "rows": body}))
    return cards
