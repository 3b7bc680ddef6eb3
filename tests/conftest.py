"""Fixtures for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import skip_or_fail


@pytest.fixture(scope="session")
def wine_folder() -> Path:
    """The folder with the genuine wine files: TOOLKIT_DATA_DIR, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TOOLKIT_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data").resolve()
    if not (folder / "winequality-red.csv").is_file():
        skip_or_fail(f"no genuine wine files in {folder}; set TOOLKIT_DATA_DIR")
    return folder


@pytest.fixture(autouse=True)
def mlflow_forgets() -> Iterator[None]:
    """What a test tells MLflow's fluent interface, the process and its environment keep: the next test in it would use that server."""
    yield
    if "mlflow" in sys.modules:
        import mlflow

        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A fault with the argument `repetition` runs once, and again under the mark `repeat`, to catch the rare failure (`task test:faults`)."""
    if "repetition" in metafunc.fixturenames:
        times = range(int(os.environ.get("TOOLKIT_FAULT_REPEATS", "20")))
        metafunc.parametrize("repetition", [pytest.param(number, marks=[pytest.mark.repeat] if number else []) for number in times])


# The files that take minutes, the longest first.
LONG = (
    "test_spark_faults", "test_spark_cluster", "test_ray_training", "test_train_distributed", "test_promote_moves", "test_champion_faults",
    "test_score_faults", "test_score", "test_score_inputs", "test_spark_udf", "test_scoring_guide", "test_ingest",
    "test_spark_delta", "test_files_scoring",
    "test_ray_training_spark", "test_explore", "test_faults", "test_promote", "test_train", "test_lifecycle", "test_ray_trials",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes (`-n 2`) none is left with a long file when the other has nothing more to do."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
