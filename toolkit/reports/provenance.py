"""Where a sweep's figures come from and how to get them again. Reports are forwarded, so no secret may pass through here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from toolkit.core.data import DataSource
from toolkit.core.result import SweepResult
from toolkit.core.secrets import without_secrets

Facts = tuple[str, list[tuple[str, str, bool]]]
"""A titled list of (name, value, is code)."""


def data_facts(source: DataSource, split: str, parts: str) -> Facts:
    return (
        "Data",
        [
            ("source", source.kind.replace("_", " "), False),
            ("location", without_secrets(source.location), True),
            ("rows and features", f"{source.num_rows:,} rows, {source.num_features} features", False),
            ("sha256", source.sha256, True),
            ("split", split, False),
            ("parts", parts, False),
        ],
    )


def code_facts(git_commit: str, versions: Mapping[str, str]) -> Facts:
    return "Code", [("git commit", git_commit, True), *((name, version, True) for name, version in sorted(versions.items()))]


def facts(result: SweepResult) -> list[Facts]:
    source = result.source
    rows = f"{result.num_train_rows:,} train, {result.num_validation_rows:,} validation, {result.num_test_rows:,} test"
    return [
        data_facts(source, result.split_description, rows),
        (
            "Search and record",
            [
                ("study", result.study, True),
                ("sampler, scheduler", f"{result.sampler}, {result.scheduler}", False),
                ("seed", str(result.seed), False),
                ("cluster", f"{result.cluster}, {result.num_slots} slots", False),
                ("MLflow", without_secrets(result.tracking_uri), True),
                ("MLflow experiment", result.mlflow_experiment, True),
                ("parent run", result.parent_run_id, True),
                ("model", without_secrets(result.model_uri), True),
            ],
        ),
        code_facts(result.git_commit, result.versions),
    ]


def commands(result: SweepResult) -> list[tuple[str, str]]:
    """(what for, command line)."""
    # The seed is part of a study's fingerprint: without it, resuming would be refused.
    base = ["toolkit", "sweep", result.experiment.name, "--protocol", result.protocol, "--seed", str(result.seed)]
    done = sum(record.state.is_finished for record in result.records)
    again = [*base, "--trials", str(result.num_trials)]
    left = result.num_trials - done
    onward = [*base, "--study", result.study, "--resume", "--trials", str(result.num_trials if left > 0 else 2 * result.num_trials)]
    purpose = f"Go on where it stopped ({left} to do)" if left > 0 else "Add as many trials to this study"
    once_more = "Search again from the start (several trials at once end in another order each time; --concurrency 1 repeats exactly)"
    return [(purpose, shlex.join(onward)), (once_more, shlex.join(again)), ("See every trial in MLflow", _mlflow_ui(result))]


def _mlflow_ui(result: SweepResult) -> str:
    """The command that shows the runs or, where a server does, its address."""
    uri = without_secrets(result.tracking_uri)
    if uri.startswith("databricks"):
        return f"{result.mlflow_experiment} in the workspace"
    return uri if uri.startswith("http") else shlex.join(["mlflow", "ui", "--backend-store-uri", uri])
