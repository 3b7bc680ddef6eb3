"""From parameters to a model for use, and its figures on rows that nothing has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import UserError
from toolkit.core.experiment import Experiment, Protocol
from toolkit.core.metrics import KNOWN_METRICS
from toolkit.core.model import Custom, XGBoost

if TYPE_CHECKING:
    from toolkit.core.data import Part, SplitData
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
    """Fit `params` for use and test once; the predictions of both results are calibrated where the experiment says so.

    Honest: refitted on train + validation with `best_iteration + 1` rounds; calibration and threshold come from validation predictions of
    the model before that. Published: the trial's own model, threshold and figures from the test part.

    Args:
        best_iteration: None: that of early stopping in this very fit, where the model has one.

    Raises:
        UserError: the user's own functions raised.
        ExperimentError: their predictions have not the shape or the range that the task needs.
        DataError: too few validation rows to calibrate on.
    """
    from toolkit.core.machine import cpu_count
    from toolkit.engines import build

    trainer = build.make_trainer(experiment, protocol)()
    try:
        final = trainer.fit_final(params, split, cpu_count(), best_iteration)
    except Exception as error:
        if not isinstance(experiment.model, Custom):
            raise
        raise UserError(
            "the winner's fit and predict must not fail",
            got=f"{type(error).__name__}: {error}",
            next_step="correct the experiment's functions, and go on with --resume",
        ) from error
    return judged_on(split, experiment, protocol, classes, final)


def judged_on(
    split: SplitData, experiment: Experiment, protocol: Protocol, classes: tuple[Any, ...] | None, final: FinalModel
) -> tuple[FinalModel, Evaluation]:
    """`judged` with the parts of a split."""
    from toolkit.core.data import concatenate, take

    validation = concatenate([split.trial.fold(number)[1] for number in range(len(split.trial.folds))])
    fitted_rows = slice(None) if final.refitted else split.trial.folds[-1][0]
    final = replace(final, fitted_prediction=final.fitted_prediction[fitted_rows])
    return judged(experiment, protocol, classes, final, validation, split.test, take(split.trial.rows, fitted_rows))


def judged(
    experiment: Experiment,
    protocol: Protocol,
    classes: tuple[Any, ...] | None,
    final: FinalModel,
    validation: Part,
    test: Part,
    fitted: Part,
) -> tuple[FinalModel, Evaluation]:
    """Calibrate, choose the threshold, and take the figures of all parts, whose rows are those of the predictions in `final`.

    Only labels, weights and groups of the parts are looked at, not features.
    """
    from toolkit.core.evaluation import Evaluation
    from toolkit.engines.portable_model import calibrate
    from toolkit.engines.sklearn_evaluation import choose_threshold, evaluate

    task, calibration, threshold = experiment.model.task, None, None
    label, prediction = final.validation_label, final.validation_prediction
    if label is not None and prediction is not None:
        if experiment.calibration is not None:
            from toolkit.engines import sklearn_calibration

            calibration = sklearn_calibration.fit(experiment.calibration, label, prediction)
            prediction = calibrate(prediction, calibration)
            final = replace(
                final,
                validation_prediction=prediction,
                test_prediction=calibrate(final.test_prediction, calibration),
                fitted_prediction=calibrate(final.fitted_prediction, calibration),
            )
        if task == "binary":
            where = "the validation part" if protocol == "honest" else "the test part, as published"
            threshold = choose_threshold(label, prediction, experiment.costs, where)
    known = _known(experiment)

    def figures(part: Part, predicted: Any) -> dict[str, float]:
        cut = threshold.value if threshold else 0.5
        return evaluate(task, part.label, predicted, known, weight=part.weight, group=part.group, threshold=cut)

    return final, Evaluation(
        task=task,
        classes=classes,
        label=test.label,
        prediction=final.test_prediction,
        metrics=figures(test, final.test_prediction),
        threshold=threshold,
        importances=final.importances,
        num_rounds=final.num_rounds,
        validation_metrics={} if prediction is None else figures(validation, prediction),
        fitted_metrics=figures(fitted, final.fitted_prediction),
        calibration=calibration,
    )


def _known(experiment: Experiment) -> list[str]:
    """The experiment's metrics that can be computed from predictions; a figure that only the user's own `fit` reports cannot."""
    names = [metric.name for metric in experiment.metrics]
    if isinstance(experiment.model, XGBoost):
        return names
    return [name for name in names if name.split("@")[0] in KNOWN_METRICS[experiment.model.task]]
