"""From the best parameters to a model for use, and its figures on rows that nothing has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import UserError
from toolkit.core.experiment import Experiment, Protocol, XGBoost

if TYPE_CHECKING:
    from toolkit.core.data import SplitData
    from toolkit.core.evaluation import Evaluation
    from toolkit.core.trial import FinalModel


def fit_and_test(
    experiment: Experiment,
    protocol: Protocol,
    split: SplitData,
    classes: tuple[Any, ...] | None,
    params: Mapping[str, Any],
    best_iteration: int | None,
) -> tuple[FinalModel, Evaluation]:
    """Fit `params` for use and test once.

    Honest: refitted on train + validation with `best_iteration + 1` rounds; the threshold comes from validation predictions of the model
    before that. Published: the trial's own model, threshold and figures from the test part.

    Raises:
        UserError: the user's own functions raised.
        ExperimentError: their predictions have not the shape or the range that the task needs.
    """
    from toolkit.core.evaluation import Evaluation
    from toolkit.core.machine import cpu_count
    from toolkit.engines import build
    from toolkit.engines.sklearn_evaluation import choose_threshold, evaluate

    trainer = build.make_trainer(experiment, protocol)()
    try:
        final = trainer.fit_final(params, split, cpu_count(), best_iteration)
    except Exception as error:
        if isinstance(experiment.model, XGBoost):
            raise
        raise UserError(
            "the winner's fit and predict must not fail",
            got=f"{type(error).__name__}: {error}",
            next_step="correct the experiment's functions, and go on with --resume",
        ) from error
    task = split.trial.task
    threshold = None
    if task == "binary" and final.validation_label is not None and final.validation_prediction is not None:
        where = "the validation part" if protocol == "honest" else "the test part, as published"
        threshold = choose_threshold(final.validation_label, final.validation_prediction, experiment.costs, where)
    metrics = evaluate(
        task,
        split.test.label,
        final.test_prediction,
        _known(experiment),
        weight=split.test.weight,
        group=split.test.group,
        threshold=threshold.value if threshold else 0.5,
    )
    return final, Evaluation(
        task=task,
        classes=classes,
        label=split.test.label,
        prediction=final.test_prediction,
        metrics=metrics,
        threshold=threshold,
        importances=final.importances,
        num_rounds=final.num_rounds,
    )


def _known(experiment: Experiment) -> list[str]:
    """The experiment's metrics that can be computed from predictions; a figure that only the user's own `fit` reports cannot."""
    from toolkit.engines.sklearn_evaluation import KNOWN_METRICS

    names = [metric.name for metric in experiment.metrics]
    if isinstance(experiment.model, XGBoost):
        return names
    return [name for name in names if name.split("@")[0] in KNOWN_METRICS[experiment.model.task]]
