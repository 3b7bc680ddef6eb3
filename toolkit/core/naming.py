"""Names that are made, not given."""

from __future__ import annotations

import re


def default_experiment_name(experiment: str, *, branch: str | None, on_databricks: bool, user: str) -> str:
    """MLflow's experiment for one of ours: `{branch}_{experiment}`, without a branch `{experiment}`.

    On Databricks, where experiments live in the workspace's folders: `/Shared/{user}/{branch}_{experiment}`. The branch part has no slash,
    colon or dot; the user part, often a mail address, no slash or colon.
    """
    short = re.sub(r"[^\w-]+", "-", branch or "").strip("-")
    name = f"{short}_{experiment}" if short else experiment
    if not on_databricks:
        return name
    folder = re.sub(r"[^\w.@+-]+", "-", user)
    return f"/Shared/{folder}/{name}"
