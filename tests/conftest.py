"""Fixtures for all tests."""

from __future__ import annotations

import os
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A fault with the argument `repetition` runs once, and again under the mark `repeat`, to catch the rare failure (`task test:faults`)."""
    if "repetition" in metafunc.fixturenames:
        times = range(int(os.environ.get("TOOLKIT_FAULT_REPEATS", "20")))
        metafunc.parametrize("repetition", [pytest.param(number, marks=[pytest.mark.repeat] if number else []) for number in times])


# The files that take minutes, the longest first.
LONG = ("test_spark_faults", "test_champion", "test_ray_training", "test_promote", "test_lifecycle", "test_spark_cluster", "test_train")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes (`-n 2`) none is left with a long file when the other has nothing more to do."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
