"""The report of a promotion: what was decided, by which gates, and on what figures. One HTML file that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.core.gates import IMPLICIT, GateResult, SliceResult, Status
from toolkit.core.metrics import larger_is_better
from toolkit.core.promotion_result import JudgedModel, PromotionResult
from toolkit.core.secrets import without_secrets
from toolkit.reports import page
from toolkit.reports.cards import Tile, figure_text, seconds_text

MAX_SLICES = 200
WORDS = {Status.PASSED: "passed", Status.FAILED: "failed", Status.NOT_APPLICABLE: "not applicable", Status.OVERRIDDEN: "overridden"}
TONES = {Status.PASSED: "good", Status.FAILED: "bad", Status.NOT_APPLICABLE: "plain", Status.OVERRIDDEN: "warn"}


def render_promotion(result: PromotionResult) -> str:
    """The whole page, written before the champion moves: it says what was decided."""
    own = [gate for gate in result.gates if gate.name not in IMPLICIT]
    return page.render(
        "promotion.html.j2",
        result=result,
        started=page.utc(result.started_unix_s),
        verdict=_verdict(result),
        alarms=_alarms(result),
        tiles=_tiles(result, own),
        own=[_row(gate) for gate in own],
        implicit=[_row(gate) for gate in result.gates if gate.name in IMPLICIT],
        figures=_figures(result),
        slices=[_slices(gate) for gate in own if gate.slices],
        models=_models(result),
        record=_record(result),
    )


def _verdict(result: PromotionResult) -> dict[str, str]:
    if result.failed:
        count = len(result.failed)
        what = "One gate says no" if count == 1 else f"{count} of {len(result.gates)} gates say no"
        stays = f"Version {result.champion.version} stays champion." if result.champion else "There is no champion yet."
        return {"tone": "bad", "title": f"Do not promote version {result.version}", "text": f"{what}. {stays}"}
    replaced = f"in place of version {result.champion.version}" if result.champion else "as the first one"
    if result.overridden:
        names = ", ".join(gate.name for gate in result.overridden)
        text = f"It becomes champion {replaced}, though {names} failed: {result.by} answers for that."
        return {"tone": "warn", "title": f"Promote version {result.version}, by override", "text": text}
    return {"tone": "good", "title": f"Promote version {result.version}", "text": f"Every gate lets it by; it becomes champion {replaced}."}


def _alarms(result: PromotionResult) -> list[tuple[str, str, str]]:
    alarms = [("bad", name, why) for name, why in result.refusals]
    alarms += [
        ("warn", f"{gate.name}, overridden", f"{gate.reason}. Why it was let by: {gate.override_reason}") for gate in result.overridden
    ]
    alarms += [("warn", "Note", notice) for notice in result.notices]
    return alarms + ([("warn", "Before this", result.recovered)] if result.recovered else [])


def _tiles(result: PromotionResult, own: Sequence[GateResult]) -> list[Tile]:
    tiles = []
    passed = sum(gate.status is Status.PASSED for gate in result.gates)
    judged = sum(gate.status is not Status.NOT_APPLICABLE for gate in result.gates)
    note = "all of those that apply" if passed == judged else f"{len(result.failed)} failed, {len(result.overridden)} overridden"
    tiles.append(Tile("gates passed", f"{passed} of {judged}", note, is_bad=bool(result.failed)))
    shown = dict.fromkeys(metric for gate in own for metric in _metric_of(gate, result))
    for number, metric in enumerate(list(shown)[:3]):
        challenger, champion = _figure(result.challenger, metric), _figure(result.champion, metric)
        if challenger is not None:
            note = "no champion yet" if champion is None else f"champion {figure_text(champion)}"
            tiles.append(Tile(metric, figure_text(challenger), note, is_main=number == 0))
    if result.holdout:
        unseen = "rows that neither has seen" if result.champion else "rows that the challenger has not seen"
        tiles.append(Tile("hold-out", f"{result.holdout.num_rows:,}", unseen if _is_unseen(result) else "rows"))
    model = result.challenger
    if model and model.predict_s_per_million_rows is not None and model.model_mib is not None:
        tiles.append(Tile("predicts a million rows in", seconds_text(model.predict_s_per_million_rows), f"{model.model_mib:.3g} MiB"))
    return tiles


def _metric_of(gate: GateResult, result: PromotionResult) -> list[str]:
    known = result.challenger.figures if result.challenger else {}
    return [metric for metric in known if gate.name.startswith(f"{metric}_")]


def _is_unseen(result: PromotionResult) -> bool:
    return all(gate.status in (Status.PASSED, Status.NOT_APPLICABLE) for gate in result.gates if gate.name.startswith("holdout_unseen"))


def _row(gate: GateResult) -> dict[str, Any]:
    return {
        "name": gate.name,
        "about": IMPLICIT.get(gate.name, ""),
        "status": WORDS[gate.status],
        "tone": TONES[gate.status],
        "reason": gate.reason,
        "override": gate.override_reason,
        "figures": {
            "asks for": gate.asks,
            "challenger": "" if gate.observed is None else _number(gate.observed),
            "champion": "" if gate.champion is None else _number(gate.champion),
            "95 % bound": "" if gate.bound is None else _signed(gate.bound),
        },
    }


def _figures(result: PromotionResult) -> list[list[str]]:
    """Metric, challenger, champion, difference in words."""
    if result.challenger is None:
        return []
    rows = []
    for metric, value in result.challenger.figures.items():
        champion = _figure(result.champion, metric)
        change = ""
        if champion is not None and math.isfinite(value - champion):
            gain = (value - champion) * (1 if larger_is_better(metric) else -1)
            change = "the same" if gain == 0 else f"{abs(gain):.3g} {'better' if gain > 0 else 'worse'}"
        rows.append([metric, _number(value), "" if champion is None else _number(champion), change])
    return rows


def _slices(gate: GateResult) -> dict[str, Any]:
    def row(each: SliceResult) -> dict[str, Any]:
        tone = {True: "good", False: "bad", None: "plain"}[each.passed]
        word = {True: "passed", False: "failed", None: "too few rows"}[each.passed]
        cells = [f"{each.num_rows:,}", *("" if value is None else _number(value) for value in (each.observed, each.champion))]
        return {"value": each.value, "tone": tone, "status": word, "cells": cells}

    # The ones that failed first, then the largest.
    ordered = sorted(gate.slices, key=lambda each: (each.passed is not False, each.passed is None, -each.num_rows))
    more = len(ordered) - MAX_SLICES
    return {"name": gate.name, "asks": gate.asks, "rows": [row(each) for each in ordered[:MAX_SLICES]], "more": max(0, more)}


def _models(result: PromotionResult) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    return [
        (title, _model_facts(model))
        for title, model in (("The challenger", result.challenger), ("The champion", result.champion))
        if model is not None
    ]


def _model_facts(model: JudgedModel) -> list[tuple[str, str, bool]]:
    spec: Mapping[str, Any] = model.spec
    facts = [("version", str(model.version), False)]
    if spec:
        facts += [
            ("model", str(spec.get("objective") or spec.get("estimator") or spec["model_kind"]), False),
            ("trained", page.utc(spec["trained_unix_s"]), False),
            ("protocol", spec["protocol"], False),
            ("study", spec["study"] or "", True),
            ("data", f"{without_secrets(spec['data']['location'])} ({spec['data']['kind'].replace('_', ' ')})", False),
            ("rows", f"{spec['training_rows']['num_rows']:,} fitted on, {len(spec['features'])} features", False),
            ("threshold", "" if model.threshold is None else f"{model.threshold:.4g}", False),
            ("data sha256", spec["data"]["sha256"][:16], True),
            ("git commit", (spec["git_commit"] or "")[:12], True),
        ]
    if model.model_mib is not None:
        facts.append(("size", f"{model.model_mib:.3g} MiB", False))
    if model.predict_s_per_million_rows is not None:
        facts.append(("a million rows", seconds_text(model.predict_s_per_million_rows), False))
    return facts


def _record(result: PromotionResult) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    holdout = result.holdout
    rows = [] if holdout is None else [
        ("source", holdout.kind.replace("_", " "), False),
        ("location", without_secrets(holdout.location), True),
        ("rows", f"{holdout.num_rows:,}", False),
        ("which", holdout.description, False),
        ("sha256", holdout.sha256[:16], True),
    ]  # fmt: skip
    return [
        *([("The hold-out", rows)] if rows else []),
        (
            "The record",
            [
                ("decided by", result.by, False),
                ("registry", without_secrets(result.registry_uri), True),
                ("MLflow", without_secrets(result.tracking_uri), True),
                ("MLflow experiment", result.mlflow_experiment, True),
                ("run", result.run_id, True),
            ],
        ),
    ]


def _figure(model: JudgedModel | None, metric: str) -> float | None:
    return model.figures.get(metric) if model else None


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return figure_text(value) if math.isfinite(value) else "none"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if math.isfinite(value) else "none"
