"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def wine_folder() -> Path:
    """The folder with the genuine wine files: TOOLKIT_DATA_DIR, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TOOLKIT_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data").resolve()
    if not (folder / "winequality-red.csv").is_file():
        reason = f"no genuine wine files in {folder}; set TOOLKIT_DATA_DIR"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
