"""The exploratory report: one HTML file that needs nothing but itself, to be read before anything is trained.

This module decides what is said; the numbers come from `core.exploration`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.core.experiment import Experiment
from toolkit.core.exploration import Column, Exploration, Finding
from toolkit.core.exploration_batches import NUM_SMALLEST
from toolkit.reports import explore_plots, page
from toolkit.reports.cards import Bar, Card, Legend, Tile, quoted, without_holes
from toolkit.reports.parameters import shortened
from toolkit.reports.provenance import code_facts
from toolkit.reports.svg import chart_style

MAX_DRAWN = 48
MAX_BARS = 20
MAX_FINDINGS = 40
MAX_PAIRS = 12
LISTED_CORRELATION = 0.3
FOLD_TABLE_ABOVE = 80
MAX_TABLE_COLUMNS = 2000
NUMERIC = ("missing", "distinct", "mean", "std", "min", "25 %", "median", "75 %", "max")
# Of a column whose most frequent value is rarer, a picture of the values says nothing.
RARE_SHARE = 0.05
LONG_NAME = 12


def render_exploration(
    found: Exploration,
    experiment: Experiment,
    *,
    kind: str,
    location: str,
    source: str,
    started_unix_s: float,
    git_commit: str,
    versions: Mapping[str, str],
) -> str:
    """The whole page. `kind` and `location` as in `core.data.DataSource`, without secrets; `source`: how the experiment is named."""
    groups = explore_plots.drawn_groups(found.group_counts)
    with chart_style():
        sections = [
            ("The label", _label_cards(found, groups)),
            ("Features alone", _predictor_cards(found)),
            ("Features against the label", _relation_cards(found, groups)),
            ("Correlations", _correlation_cards(found)),
        ]
    return page.render(
        "explore.html.j2",
        title=experiment.name,
        meta=f"{location} · {page.utc(started_unix_s)}",
        is_exact=not found.approximate,
        how=_how(found),
        alarms=_alarms(kind),
        tiles=_tiles(found),
        suspects=_findings(found.suspects),
        remarks=_findings(found.remarks),
        looked_for=_looked_for(found),
        sections=[(name, without_holes(cards)) for name, cards in sections if cards],
        columns=_columns_table(found),
        provenance=_provenance(found, kind, location, git_commit, versions),
        commands=_commands(source),
    )


def _how(found: Exploration) -> str:
    if found.engine == "pandas":
        return "The whole table was read by pandas; every figure is of all rows."
    return "Spark counted, where the table is: two passes over all rows. The last section says which figures are approximate."


def _looked_for(found: Exploration) -> str:
    split = "rows that are in two parts of the split; " if found.split else ""
    return (
        f"Looked for: features that tell the label alone, or by being missing; identifiers; {split}columns that do not vary; values that "
        "training refuses."
    )


def _alarms(kind: str) -> list[tuple[str, str, str]]:
    if kind != "fallback_sample":
        return []
    text = "The real data could not be reached, so a generated sample was used. These figures say nothing about the real problem."
    return [("bad", "Generated fallback sample, not real data", text)]


def _findings(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"rows": findings[:MAX_FINDINGS], "num_more": max(0, len(findings) - MAX_FINDINGS)}


def _tiles(found: Exploration) -> list[Tile]:
    features = found.features
    num_missing = sum(column.num_missing for column in features)
    with_gaps = sum(column.num_missing > 0 for column in features)
    others = found.num_columns - len(features)
    tiles = [
        Tile("rows", _short(found.num_rows), f"{found.num_rows:,} rows, {_bytes(found.memory_bytes)} in memory", is_main=True),
        Tile("features", f"{len(features):,}", f"and {_counted(others, 'other column')}"),
        Tile(
            "missing values",
            _percent(num_missing / (found.num_rows * len(features))),
            f"of all, in {with_gaps} feature{'s' if with_gaps != 1 else ''}",
        ),
        Tile("duplicate rows", _percent(found.duplicates.share), f"{found.duplicates.num_rows:,} equal an earlier one"),
    ]
    if found.predictors:
        best = found.predictors[0]
        tiles.append(Tile("strongest feature", f"{best.strength:.3f}", f"{shortened(best.name, 28)}: {best.measure}"))
    note = f"of leakage, and {_counted(len(found.remarks), 'remark')}"
    tiles.append(Tile("suspects", str(len(found.suspects)), note, is_bad=bool(found.suspects)))
    return tiles


# ---- the label


def _label_cards(found: Exploration, groups: Sequence[int]) -> list[Card]:
    label = found.column(found.label)
    labelled = sum(found.group_counts)
    cards = []
    unlabelled = f" {found.num_unlabelled:,} rows have none." if found.num_unlabelled else ""
    if found.task in ("binary", "multiclass"):
        largest = max(found.group_counts)
        bars = [
            Bar(shortened(name, 30), f"{count:,} ({_percent(count / labelled)})", count / largest)
            for name, count in zip(found.groups, found.group_counts, strict=True)
        ]
        caption = f"Rows of each class of {found.label}.{unlabelled} A rare class must have rows in every part of the split."
        if found.task == "binary":
            caption += f" The positive class is {_positive(found)}."
        cards.append(Card("Classes", caption, kind="bars", data={"bars": bars}))
    elif label.histogram:
        caption = f"Mean {label.mean:.4g}, standard deviation {label.std:.4g} (the population's: divided by n).{unlabelled}{_tails(label)}"
        cards.append(Card(f"Label: {shortened(found.label, 40)}", caption, explore_plots.histogram(label, [], "label")))
    for number, column in enumerate(column for column in found.columns if column.role == "exclude" and column.histogram):
        if _has_rare_values(column):
            text = (
                f"Excluded: explored, never a feature. {column.num_distinct:,} different values in {found.num_rows - column.num_missing:,} "
                f"rows, none in more than {100 * RARE_SHARE:.0f} % of them."
            )
            cards.append(Card(shortened(column.name, 40), text, kind="text"))
            continue
        legend = _legend(found, groups) if column.histogram and column.histogram.by_group else []
        svg = explore_plots.histogram(column, groups, f"excluded{number}")
        caption = f"Excluded: explored, never a feature. Coloured by the label, {found.label}.{_tails(column)}"
        cards.append(Card(shortened(column.name, 40), caption, svg, legend=legend))
    cards.append(_split_card(found))
    return cards


def _has_rare_values(column: Column) -> bool:
    histogram = column.histogram
    if histogram is None or histogram.edges is not None or len(histogram.values) >= column.num_distinct:
        return False
    return max(histogram.counts[:-1], default=0) <= RARE_SHARE * sum(histogram.counts)  # the last are all others


def _positive(found: Exploration) -> str:
    """The positive class of a binary label, by its value."""
    return quoted(shortened(found.positive or "", 30))


def _split_card(found: Exploration) -> Card:
    split = found.split
    if split is None:
        return Card("The split", found.split_note, kind="text")
    is_number = split.parts[0].label_mean is not None
    header = ["part", "rows", *(["label mean", "std"] if is_number else [shortened(name, 20) for name in found.groups])]
    rows = []
    for part in split.parts:
        if is_number:
            cells = [f"{part.label_mean:.4g}", f"{part.label_std:.4g}"]
        else:
            cells = [_percent(count / part.num_rows) for count in part.by_group]
        rows.append([part.name, f"{part.num_rows:,}", *cells])
    overlaps = [overlap for overlap in split.overlaps if overlap.num_rows]
    shared = "; ".join(f"{each.num_rows:,} {each.what} of {each.part} are in {each.other}" for each in overlaps)
    caption = f"{split.description[0].upper()}{split.description[1:]}. {shared or 'No part has a row of another'}."
    caption += " std is the population's: divided by n." if is_number else ""
    return Card("The split", caption, kind="table", is_wide=len(header) > 6, data={"header": header, "rows": rows})


# ---- features


def _predictor_cards(found: Exploration) -> list[Card]:
    cards = []
    if found.predictors:
        floor = 0.0 if found.task in ("regression", "ranking") else 0.5
        shown = found.predictors[:MAX_BARS]
        bars = [
            Bar(shortened(c.name, 40), f"{c.strength:.3f}", max(0.0, ((c.strength or 0.0) - floor) / (1 - floor)), colour="good")
            for c in shown
        ]
        caption = f"{_measure(shown[0])} of each feature alone, whichever way it points; {floor:g} is chance, 1 is suspicious."
        if any(column.kind == "category" for column in shown):
            shares = {"binary": f"their share of {_positive(found)}", "multiclass": "their share of the class"}
            by = shares.get(found.task, "their label's mean")
            caption += f" Categories are ordered by {by}, learnt on one half of the rows and scored on the other."
        if len(found.predictors) > len(shown):
            caption += f" The first {len(shown)} of {len(found.predictors)}."
        cards.append(Card("Strongest single predictors", caption, kind="bars", data={"bars": bars}))
    gaps = sorted((c for c in found.columns if c.num_missing), key=lambda c: -c.num_missing)
    if gaps:
        bars = [Bar(shortened(c.name, 40), f"{c.num_missing:,} ({_percent(c.missing_share)})", c.missing_share) for c in gaps[:MAX_BARS]]
        caption = "Rows without a value. A gap that depends on the label is among the suspects above."
        if len(gaps) > len(bars):
            caption += f" The first {len(bars)} of {len(gaps)} columns."
        cards.append(Card("Missing values", caption, kind="bars", data={"bars": bars}))
    else:
        cards.append(Card("Missing values", "Every row has a value in every column.", kind="text"))
    return cards


def _measure(column: Column) -> str:
    return {"auc": "Area under the ROC curve", "mean one-vs-rest auc": "Mean one-vs-rest area under the ROC curve"}.get(
        column.measure or "", "Absolute Spearman correlation"
    )


def _relation_cards(found: Exploration, groups: Sequence[int]) -> list[Card]:
    """The strongest features first; those without a strength last."""
    ranked = [*found.predictors, *(column for column in found.features if column.strength is None)]
    boxed = [column for column in ranked if any(box.median is not None for box in column.boxes)]
    listed = [column for column in ranked if column.histogram and column.histogram.edges is None and column.histogram.by_group]
    by = f"class of {found.label}" if found.task in ("binary", "multiclass") else f"share of the rows by {found.label}"
    cards = []
    if boxed:
        charts = [(_titled(c), explore_plots.box_plot(c, f"box{number}")) for number, c in enumerate(boxed[:MAX_DRAWN])]
        caption = f"A box a {by}: quartiles and median; whiskers from 5 to 95 % of its rows. Boxes that stand apart tell the label."
        if len(found.groups) > explore_plots.MAX_DRAWN_BOXES:
            caption += f" The first {explore_plots.MAX_DRAWN_BOXES} of {len(found.groups)} classes."
        # Below a box there is no room for a long name.
        is_named = len(found.groups) <= len(groups) and max(map(len, found.groups)) > LONG_NAME
        legend = _legend(found, groups, rest=False) if is_named else []
        caption += _of(charts, boxed)
        cards.append(Card("Numbers", caption, kind="multiples", is_wide=True, legend=legend, data={"charts": charts}))
    if listed:
        charts = [(_listed(c), explore_plots.shares_by_group(c, groups, f"shares{number}")) for number, c in enumerate(listed[:MAX_DRAWN])]
        caption = f"How often each value occurs, by {by}. Bars of one value that differ in length tell the label."
        if len(groups) < len(found.groups):
            caption += f" The {len(groups)} most frequent of {len(found.groups)} classes."
        legend = _legend(found, groups, rest=False)
        caption += _of(charts, listed)
        data = {"charts": charts}
        cards.append(Card("Few values, and categories", caption, kind="multiples", is_wide=True, legend=legend, data=data))
    return cards


def _of(charts: Sequence[Any], of: Sequence[Any]) -> str:
    return f" The {len(charts)} strongest of {len(of)}." if len(charts) < len(of) else ""


def _titled(column: Column) -> str:
    return column.name if column.strength is None else f"{column.name} · {column.strength:.3f}"


def _listed(column: Column) -> str:
    num = explore_plots.num_drawn(column)
    return _titled(column) + (f" · {num} of {column.num_distinct:,} values" if num < column.num_distinct else "")


def _legend(found: Exploration, groups: Sequence[int], rest: bool = True) -> list[Legend]:
    names = [
        Legend(colour, shortened(found.groups[code], 40), "square")
        for colour, code in zip(explore_plots.GROUP_COLOURS, groups, strict=False)
    ]
    has_rest = rest and (len(groups) < len(found.groups) or found.num_unlabelled)
    return [*names, Legend("weak", "others" if len(groups) < len(found.groups) else "no label", "square")] if has_rest else names


def _correlation_cards(found: Exploration) -> list[Card]:
    correlations = found.correlations
    if len(correlations.names) < 2 or not correlations.strongest:
        return []
    caption = "Pearson's. Blue rises together, orange falls; two features near 1 tell the same."
    numeric = sum(column.kind in ("number", "boolean") for column in found.features)
    if numeric > len(correlations.names):
        caption += f" The {len(correlations.names)} strongest predictors of {numeric} numeric columns."
    if found.task == "binary":
        caption += f" {found.label} counts as 1 where it is {_positive(found)}, else as 0."
    svg = explore_plots.correlation_map(correlations, "correlations")
    cards = [Card("Correlations", caption, svg, is_wide=True)]
    strong = [pair for pair in correlations.strongest if abs(pair.correlation) >= LISTED_CORRELATION][:MAX_PAIRS]
    if strong:
        rows = [[shortened(pair.first, 40), shortened(pair.second, 40), f"{pair.correlation:+.3f}"] for pair in strong]
        caption = f"Of all numeric features{_numeric_label(found)}. Of a pair near 1 in size, one can usually be left out."
        cards.append(Card("Strongest pairs", caption, kind="table", data={"header": ["column", "column", "correlation"], "rows": rows}))
    return cards


def _numeric_label(found: Exploration) -> str:
    if found.task == "binary":
        return f" and of {found.label} as 1 where it is {_positive(found)}, else 0"
    return "" if found.task == "multiclass" else f" and the label, {found.label}"


# ---- tables and facts


def _columns_table(found: Exploration) -> dict[str, Any]:
    header = ["column", "role", "type", *NUMERIC, "most frequent"]
    rows = []
    for column in found.columns[:MAX_TABLE_COLUMNS]:
        numbers = (column.mean, column.std, column.min, column.q25, column.median, column.q75, column.max)
        is_estimated = found.engine == "spark" and column.num_distinct > NUM_SMALLEST
        top = "(missing)" if column.top_value is None else shortened(column.top_value, 24)
        rows.append(
            [
                shortened(column.name, 40), column.role, column.type, _percent(column.missing_share) if column.num_missing else "",
                f"{'≈ ' if is_estimated else ''}{column.num_distinct:,}", *(_number(value, column) for value in numbers),
                f"{top} {_percent(column.top_share)}" if column.top_share > 0.01 else "",
            ]
        )  # fmt: skip
    caption = "Figures of numbers leave out what is missing; of times they are days, UTC. std is the population's: divided by n, not n - 1."
    if len(found.columns) > len(rows):
        caption += f" The first {len(rows)} of {len(found.columns)} columns."
    used = [place for place in range(len(header)) if any(row[place] for row in rows)]
    return {
        "header": [header[place] for place in used],
        "numeric": [header[place] in NUMERIC for place in used],
        "rows": [[row[place] for place in used] for row in rows],
        "caption": caption,
        "is_folded": len(rows) > FOLD_TABLE_ABOVE,
    }


def _number(value: float | None, column: Column) -> str:
    if value is None:
        return ""
    if column.kind == "time":
        return explore_plots.day(value) if value != column.std else f"{value / 86400:.3g} d"
    text = f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:,.5g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _provenance(found: Exploration, kind: str, location: str, git_commit: str, versions: Mapping[str, str]) -> list[Any]:
    engine = "pandas, all rows in memory" if found.engine == "pandas" else "Spark, two passes over all rows"
    data = [
        ("source", kind.replace("_", " "), False),
        ("location", location, True),
        ("rows and columns", f"{found.num_rows:,} rows, {found.num_columns} columns, {found.num_features} features", False),
        ("label", found.label, True),
        ("task", found.task, False),
    ]
    counted = [("counted by", engine, False), *(("approximate", text, False) for text in found.approximate)]
    return [("Data", data), ("How it was counted", counted), code_facts(git_commit, versions)]


def _commands(name: str) -> list[tuple[str, str]]:
    return [
        ("Search for a model", shlex.join(["toolkit", "sweep", name])),
        ("A baseline to compare it with", shlex.join(["toolkit", "train", name, "--baseline"])),
        ("These numbers as JSON", shlex.join(["toolkit", "explore", name, "--json"])),
    ]


def _tails(column: Column) -> str:
    histogram = column.histogram
    if histogram is None or histogram.edges is None or column.min is None or column.max is None:
        return ""
    is_cut = column.min < histogram.edges[0] or column.max > histogram.edges[-1]
    return " Values far out are counted in the outermost bars." if is_cut else ""


def _percent(share: float) -> str:
    """Small shares keep a digit; none but zero is `0 %`."""
    if share == 0:
        return "0 %"
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2g} %"


def _counted(num: int, what: str) -> str:
    return f"{num} {what}{'s' if num != 1 else ''}"


def _short(num_rows: int) -> str:
    return f"{num_rows / 1e6:.3g} M" if num_rows >= 1_000_000 else f"{num_rows:,}"


def _bytes(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"
