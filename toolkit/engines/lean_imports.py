"""Imports that cost little: XGBoost without scikit-learn, in processes that fit or predict with it and do nothing else with either, and
no archive read twice.

xgboost looks for scikit-learn when it is imported and does without where it is missing: 0.5 s and 80 MB instead of 3.4 s and 210 MB.
"""

from __future__ import annotations

import sys
import zipimport
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_ours: dict[str, ModuleType] = {}


@contextmanager
def without_sklearn() -> Iterator[None]:
    """While it lasts, scikit-learn is not there: for the import of xgboost in a process that is ours. Afterwards anyone may import it."""
    if "sklearn" in sys.modules or "xgboost" in sys.modules:
        yield
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["sklearn"]


@contextmanager
def own_xgboost() -> Iterator[None]:
    """While it lasts, `xgboost` is one without scikit-learn: for a process that serves others, too, whose XGBClassifier needs it.

    Spark's Python workers run every function of the application, one at a time. Not for several threads.
    """
    if not _ours and "sklearn" in sys.modules:
        yield  # there is nothing to be spared
        return
    others = _take()
    sys.modules.update(_ours)
    try:
        with without_sklearn():
            yield
    finally:
        _ours.update(_take())
        sys.modules.update(others)


def forget_archives() -> None:
    """Those on `sys.path` are not read again before an import needs one, which then has their contents from zipimport's own cache.

    pyspark begins every task with `importlib.invalidate_caches`, at which Python 3.11 reads all of pyspark.zip anew: 0.13 s of CPU.
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            del sys.path_importer_cache[path]


def _take() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == "xgboost" or name.startswith("xgboost.")]
    return {name: sys.modules.pop(name) for name in names}
