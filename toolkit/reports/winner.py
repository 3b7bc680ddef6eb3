"""The cards on the final model: its curves, decisions, residuals and features, for every task."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toolkit.core.curves import confusion_at, precision_recall_points, roc_points
from toolkit.core.evaluation import Evaluation, Threshold
from toolkit.reports import plots
from toolkit.reports.cards import Card, Legend, figure_text, quoted, ranked_bars
from toolkit.reports.parameters import text_of

MAX_CLASSES = 25
MAX_FEATURES = 20


def evaluation_cards(evaluation: Evaluation) -> list[Card]:
    """Draw inside `svg.chart_style()`. A card that the rows do not allow (one class only, predictions that are no numbers) says so."""
    cards: list[Card] = []
    label, prediction = evaluation.label.astype(np.float64), evaluation.prediction.astype(np.float64)
    if not len(label) or not np.isfinite(prediction).all():
        text = "The test part is empty." if not len(label) else "Some predictions are not finite numbers: the model is broken."
        cards.append(Card("No curves", text, kind="text"))
    elif evaluation.task == "binary":
        cards += _binary_cards(evaluation, label, prediction)
    elif evaluation.task == "multiclass":
        cards.append(_confusion_card(evaluation, _confusion(label, prediction), "The class with the highest probability counts."))
    elif evaluation.task == "regression":
        cards += _residual_cards(label, prediction)
    if any(evaluation.importances.values()):
        used = sum(value > 0 for value in evaluation.importances.values())
        caption = f"Gain of the splits on each feature; {used} of {len(evaluation.importances)} features are used."
        caption += " One that leads by far may leak the label."
        if len(evaluation.importances) > MAX_FEATURES:
            caption += f" The first {MAX_FEATURES}."
        bars = ranked_bars(evaluation.importances, MAX_FEATURES)
        cards.append(Card("Feature importances", caption, kind="bars", data={"bars": bars}))
    return cards


def _binary_cards(evaluation: Evaluation, label: npt.NDArray[np.float64], score: npt.NDArray[np.float64]) -> list[Card]:
    threshold = evaluation.threshold
    cut = 0.5 if threshold is None else threshold.value
    confusion = confusion_at(label, score, cut)
    cards = []
    positive = "positive" if evaluation.positive is None else quoted(text_of(evaluation.positive, 30))
    if 0 < label.sum() < len(label):
        mark = Legend("best", f"threshold {cut:.3g}", "ring")
        point = (confusion.false_positive_rate, confusion.recall)
        svg = plots.rate_curve(*roc_points(label, score), point, None, "roc")
        auc = f" (area {figure_text(evaluation.metrics['auc'])})" if "auc" in evaluation.metrics else ""
        caption = f"How many rows of {positive} are found for how many false alarms{auc}; the dashed diagonal is chance."
        cards.append(Card("ROC curve", caption, svg, legend=[Legend("good", "final model", "line"), mark]))
        point, base = (confusion.recall, confusion.precision), float(label.mean())
        svg = plots.rate_curve(*precision_recall_points(label, score), point, base, "pr")
        caption = f"How far what is called {positive} can be trusted; the dashed line is the share of {positive}, {base:.1%}."
        cards.append(Card("Precision and recall", caption, svg, legend=[Legend("good", "final model", "line"), mark]))
    else:
        cards.append(Card("No curves", "The test part holds one class only, so that there is nothing to tell apart.", kind="text"))
    caption = f"A row counts as {positive} above {cut:.3g}."
    if threshold is not None:
        caption = _cost_sentence(threshold, positive, confusion.false_positive, confusion.false_negative, len(label))
    cards.append(_confusion_card(evaluation, confusion.table(), caption))
    return cards


def _cost_sentence(threshold: Threshold, positive: str, num_fp: int, num_fn: int, num_rows: int) -> str:
    costs = threshold.costs
    on_test = (num_fp * costs.fp + num_fn * costs.fn) / num_rows
    return (
        f"With a false positive at {costs.fp:g} and a false negative at {costs.fn:g}, calling a row {positive} above "
        f"{threshold.value:.3g} costs least on {threshold.chosen_on}: {threshold.cost_per_row:.3g} a row there, {on_test:.3g} on the test "
        "part."
    )


def _confusion(label: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(k, k): row = truth, column = decision."""
    num_classes = probability.shape[1]
    pairs = label.astype(np.int64) * num_classes + probability.argmax(axis=1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _confusion_card(evaluation: Evaluation, table: npt.NDArray[np.int64], caption: str) -> Card:
    names = [text_of(value, 24) for value in evaluation.classes or range(len(table))]
    shown = np.arange(len(table))
    caption += " A row of the table is a true class, shaded by its share; off the diagonal stand the errors."
    if len(table) > MAX_CLASSES:
        shown = np.sort(np.argsort(-table.sum(axis=1), kind="stable")[:MAX_CLASSES])
        caption += f" The {MAX_CLASSES} most frequent of {len(table)} classes."
    rows = []
    for i in shown:
        total = int(table[i].sum())
        cells = [(int(table[i, j]), table[i, j] / total if total else 0.0, bool(i == j)) for j in shown]
        rows.append((names[i], cells, f"{table[i, i] / total:.1%}" if total else "\N{EM DASH}"))
    data = {"names": [names[j] for j in shown], "rows": rows}
    return Card("Confusion matrix", caption, kind="confusion", is_wide=len(shown) > 6, data=data)


def _residual_cards(label: npt.NDArray[np.float64], prediction: npt.NDArray[np.float64]) -> list[Card]:
    residual = prediction - label
    bias = float(residual.mean())
    spread = f"half of the rows are within {np.median(np.abs(residual)):.3g}"
    return [
        Card(
            "Predicted against true",
            "On the dashed line a prediction is exact; a cloud that bends away from it has a systematic error there.",
            plots.predicted_against_true(label, prediction, "fit"),
        ),
        Card(
            "Residuals",
            f"Mean {bias:.3g}; {spread}. Look for a peak beside zero or a long tail.",
            plots.residual_histogram(residual, "residuals"),
        ),
    ]
