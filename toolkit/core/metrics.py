"""Names of metrics: which a task has, which way each improves, and which XGBoost itself reports.

A name may have an argument behind an `@` (`error@0.3`, `ndcg@10`).
"""

from __future__ import annotations

import re

from toolkit.core.errors import ExperimentError, nearest
from toolkit.core.model import Task

KNOWN_METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("auc", "aucpr", "logloss", "error", "rmse", "mae", "brier", "accuracy", "precision", "recall", "f1"),
    "multiclass": ("auc", "mlogloss", "merror", "accuracy", "f1_macro"),
    "regression": ("rmse", "mae", "r2", "rmsle", "mape", "mphe", "poisson-nloglik", "gamma-nloglik", "gamma-deviance", "tweedie-nloglik"),
    "ranking": ("ndcg", "map", "pre", "auc"),
}
"""What `engines.sklearn_evaluation.metric_of` computes, with XGBoost's names where it has one."""

XGBOOST_METRICS: dict[Task, frozenset[str]] = {
    "binary": frozenset({"auc", "aucpr", "logloss", "error", "rmse", "mae"}),
    "multiclass": frozenset({"auc", "mlogloss", "merror"}),
    "regression": frozenset({"rmse", "rmsle", "mae", "mape", "mphe", "poisson-nloglik", "gamma-nloglik", "gamma-deviance",
                             "tweedie-nloglik"}),
    "ranking": frozenset({"ndcg", "map", "pre"}),
}  # fmt: skip
"""What XGBoost 3 reports under `eval_metric`. Source: its parameter reference, "Learning Task Parameters"."""

LARGER_IS_BETTER = frozenset({"auc", "aucpr", "accuracy", "precision", "recall", "f1", "f1_macro", "r2", "ndcg", "map", "pre"})
SMALLER_IS_BETTER = frozenset(
    {"logloss", "error", "rmse", "mae", "brier", "mlogloss", "merror", "rmsle", "mape", "mphe", "poisson-nloglik", "gamma-nloglik",
     "gamma-deviance", "tweedie-nloglik"}
)  # fmt: skip


def larger_is_better(metric: str) -> bool:
    """Which way `metric` improves. What is no metric, a cost for example, improves downwards."""
    return metric.partition("@")[0] in LARGER_IS_BETTER


def check_metric(task: Task, name: str) -> None:
    """Refuse a metric that cannot be computed.

    Raises:
        ExperimentError: an unknown name, or an argument that is missing, wrong or not taken.
    """
    base, mark, argument = name.partition("@")
    if base not in KNOWN_METRICS[task]:
        raise ExperimentError(f"metric: unknown for a {task} task", got=repr(name), next_step=nearest(base, KNOWN_METRICS[task]))
    pattern, example = {
        "error": (r"0?\.\d+|[01](\.\d*)?", "error@0.3"),
        "tweedie-nloglik": (r"1\.\d+", "tweedie-nloglik@1.5"),
        "ndcg": (r"[1-9]\d*-?", "ndcg@10"),
        "map": (r"[1-9]\d*-?", "map@10"),
        "pre": (r"[1-9]\d*", "pre@10"),
    }.get(base, (None, base))
    if base == "tweedie-nloglik" and not mark:
        raise ExperimentError("metric: tweedie-nloglik needs its power", got=repr(name), next_step=f"for example {example}")
    if mark and (pattern is None or not re.fullmatch(pattern, argument)):
        rule = f"metric: {base} takes no argument" if pattern is None else f"metric: wrong argument of {base}"
        raise ExperimentError(rule, got=repr(name), next_step=f"for example {example}")
