"""What a test cannot do without: a laptop may lack it, CI may not."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from toolkit.engines.java import find_java


def skip_or_fail(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_java() -> None:
    if problem := find_java(None).problem:
        skip_or_fail(f"Spark needs Java: {problem}")
