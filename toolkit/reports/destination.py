"""Where a report goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolkit.core.errors import UserError


def destination(asked: Path | None, default: Path) -> Path:
    """Absolute, and found to be writable; called before hours of work. Its folder may not be there yet.

    Args:
        default: in `TOOLKIT_HOME`.

    Raises:
        UserError: a folder, or a file that cannot be written.
    """
    path = Path(asked or default).absolute()
    try:
        existing = next(each for each in path.parents if each.exists())
        is_file = existing.is_dir() and not path.is_dir()
        if is_file:
            tempfile.TemporaryFile(dir=existing).close()
        reason = "" if is_file else "is a folder" if path.is_dir() else f"{existing} is no folder"
    except OSError as error:
        is_file, reason = True, error.strerror or str(error)
    if not reason:
        return path
    if asked is None:
        raise UserError("TOOLKIT_HOME must be writable", got=f"{path}: {reason}", next_step="set TOOLKIT_HOME to a folder of yours")
    if not is_file:
        raise UserError("--report must name a file", got=str(asked), next_step="for example --report report.html")
    raise UserError(
        "--report must name a file that can be written", got=f"{path}: {reason}", next_step="for example --report ./report.html"
    )
