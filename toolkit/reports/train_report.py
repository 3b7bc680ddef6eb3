"""The report of a training: one HTML file that needs nothing but itself, to be read by somebody who did not run it."""

from __future__ import annotations

import shlex

from toolkit.core.secrets import without_secrets
from toolkit.core.training import TrainedModel, TrainResult
from toolkit.reports import page, plots, winner
from toolkit.reports.cards import Card, Legend, Tile, figure_text, ranked_bars, seconds_text, without_holes
from toolkit.reports.parameters import params_json, searched_ranges, text_of
from toolkit.reports.provenance import code_facts, data_facts
from toolkit.reports.svg import chart_style

MAX_FEATURES = 20


def render_training(result: TrainResult) -> str:
    """The whole page."""
    with chart_style():
        sections = [("The model" if len(result.models) == 1 else "The models", _model_cards(result))]
        sections.append(("On the test part", winner.evaluation_cards(result.best.evaluation)))
        sections.append(("What it learnt from", _learning_cards(result.best)))
    parts = f"{result.num_train_rows:,} train, {result.num_validation_rows:,} validation, {result.num_test_rows:,} test"
    return page.render(
        "report.html.j2",
        eyebrow="Baseline report" if result.kind == "baseline" else "Training report",
        title=result.experiment.name,
        meta=f"{result.best.model_text} · {page.utc(result.started_unix_s)} · {seconds_text(result.wall_s)}",
        badge={"kind": result.protocol, "name": f"{result.protocol} protocol", "text": _protocol_sentence(result)},
        alarms=_alarms(result),
        tiles=_tiles(result),
        sections=[(name, without_holes(cards)) for name, cards in sections if cards],
        provenance=[
            data_facts(result.source, result.split_description, parts),
            (
                "Record",
                [
                    ("MLflow", without_secrets(result.tracking_uri), True),
                    ("MLflow experiment", result.mlflow_experiment, True),
                    ("run", result.best.run_id, True),
                    ("model", without_secrets(result.best.model_uri), True),
                    ("registered", _registered(result.best), False),
                ],
            ),
            code_facts(result.git_commit, result.versions),
        ],
        commands=_commands(result),
    )


def _protocol_sentence(result: TrainResult) -> str:
    if result.protocol == "published":
        return "Does what the source notebooks did, to reproduce their figures: the test part is validation part as well."
    return "Early stopping, calibration and the threshold saw validation rows only; the test part was scored once, at the end."


def _alarms(result: TrainResult) -> list[tuple[str, str, str]]:
    alarms = []
    if result.source.is_fallback:
        text = "The real data could not be reached, so a generated sample was used. These figures say nothing about the real problem."
        alarms.append(("bad", "Generated fallback sample, not real data", text))
    if result.protocol == "published":
        text = "Its figures are flattered, and it can be registered but never promoted; the honest protocol says what to expect."
        alarms.append(("warn", "Published protocol", text))
    return alarms


def _tiles(result: TrainResult) -> list[Tile]:
    tiles = []
    evaluation = result.best.evaluation
    for number, metric in enumerate(result.experiment.metrics):
        if metric.name in evaluation.metrics:
            on_validation = evaluation.validation_metrics.get(metric.name)
            note = "on the test part" + ("" if on_validation is None else f"; {figure_text(on_validation)} on validation")
            tiles.append(Tile(metric.name, figure_text(evaluation.metrics[metric.name]), note, is_main=number == 0))
    if evaluation.threshold is not None:
        costs = evaluation.threshold.costs
        tiles.append(Tile("threshold", f"{evaluation.threshold.value:.3g}", f"costs {costs.fp:g} : {costs.fn:g}, false alarm : miss"))
    if evaluation.num_rounds is not None:
        tiles.append(Tile("rounds", f"{evaluation.num_rounds}", "of boosting"))
    if result.best.num_workers > 1:
        restarts = result.best.num_restarts
        tiles.append(Tile("workers", f"{result.best.num_workers}", f"{restarts} restart{'s' if restarts != 1 else ''}"))
    tiles.append(Tile("fit", seconds_text(result.best.fit_wall_s), "refit and test included"))
    return tiles


def _model_cards(result: TrainResult) -> list[Card]:
    cards = []
    ranges = searched_ranges(result.experiment.space)
    for model in result.models:
        if model.params:
            rows = [(name, text_of(value, 2000), ranges.get(name, ""), False) for name, value in model.params.items()]
            caption = f"From {model.params_source}."
            cards.append(Card("Parameters", caption, kind="params", data={"rows": rows, "json": params_json(model.params)}))
        cards.append(_figures_card(result, model))
    return cards


def _figures_card(result: TrainResult, model: TrainedModel) -> Card:
    evaluation = model.evaluation
    first = [metric.name for metric in result.experiment.metrics]
    names = sorted(evaluation.metrics, key=lambda name: (name not in first, name))
    header = ["metric", "train", "validation", "test"]
    if model.cross_validation:
        header.append("folds")
    rows = []
    for name in names:
        row = [name, *(figure_text(part[name]) if name in part else "" for part in _parts(model))]
        if model.cross_validation:
            mean, std = model.cross_validation.get(name, (float("nan"), float("nan")))
            row.append(f"{figure_text(mean)} ± {std:.2g}" if mean == mean else "")
        rows.append(row)
    caption = "Train: rows it has learnt from, so the best figure. Validation: rows unseen by the model before its last fit. Test: unseen."
    title = f"Figures of {model.model_text}" if len(result.models) > 1 else "Figures"
    return Card(title, caption, kind="table", data={"header": header, "rows": rows})


def _parts(model: TrainedModel) -> tuple[dict[str, float], ...]:
    evaluation = model.evaluation
    return dict(evaluation.fitted_metrics), dict(evaluation.validation_metrics), dict(evaluation.metrics)


def _learning_cards(model: TrainedModel) -> list[Card]:
    cards = []
    for name, points in model.curves.items():
        if len(points) > 2:
            svg = plots.learning_curve(points, name, f"curve-{name}")
            legend = [Legend("good", "validation part", "line")]
            cards.append(Card(f"{name} by boosting round", "Flat at the end: more rounds would add nothing.", svg, legend=legend))
    if any(model.permutation_importances.values()):
        caption = (
            "How much the first metric loses on test rows when a feature's values are shuffled; near zero: the model can do without it."
        )
        positive = {name: max(0.0, value) for name, value in model.permutation_importances.items()}
        bars = ranked_bars(positive, MAX_FEATURES)
        cards.append(Card("Permutation importances", caption, kind="bars", data={"bars": bars}))
    return cards


def _registered(model: TrainedModel) -> str:
    return f"{model.registered}, as challenger" if model.registered else ""


def _commands(result: TrainResult) -> list[tuple[str, str]]:
    if result.best.registered is None:
        return [("Register this model", shlex.join(["toolkit", "train", result.experiment.name, "--register"]))]
    return [("Let it be judged against the champion", shlex.join(["toolkit", "promote", result.best.registered.name]))]
