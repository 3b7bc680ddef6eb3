"""Imports that cost little."""

from __future__ import annotations

import importlib
import sys
import zipfile
import zipimport

from toolkit.engines.lean_imports import forget_archives


def test_an_archive_is_forgotten_until_an_import_needs_it(tmp_path, monkeypatch):
    archive = tmp_path / "library.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("first_of_archive.py", "value = 1")
        opened.writestr("second_of_archive/__init__.py", "")
        opened.writestr("second_of_archive/inner.py", "value = 2")
    monkeypatch.syspath_prepend(archive)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert importlib.import_module("first_of_archive").value == 1
    importlib.import_module("second_of_archive")

    def archives():
        return [
            path
            for path, finder in sys.path_importer_cache.items()
            if isinstance(finder, zipimport.zipimporter) and path.startswith(str(archive))
        ]

    assert archives()
    forget_archives()
    assert archives() == []
    assert importlib.import_module("second_of_archive.inner").value == 2
    assert archives()
