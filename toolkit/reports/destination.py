"""Where a report goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolkit.core.errors import UserError


def destination(asked: Path | None, default: Path) -> Path:
    """Absolute, and found to be writable; called before hours of work. Its folder may not be there yet.

    Raises:
        UserError: a folder, or a file that cannot be written.
    """
    path = (asked or default).absolute()
    existing = next(each for each in path.parents if each.exists())
    if path.is_dir() or not existing.is_dir():
        raise UserError("--report must name a file", got=str(asked or path), next_step="for example --report report.html")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError("--report must name a file that can be written", got=f"{path}: {error.strerror}") from error
    return path
