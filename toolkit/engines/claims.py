"""Folders of work that one process at a time may do, and that is found again when it was broken off.

A claim is a file on this host: locked while its process lives, and naming the folder, which may lie elsewhere.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.core.errors import ClusterError

ENDING = ".lock"


@contextmanager
def claimed(claims: Path, folder: Path, what: str) -> Iterator[None]:
    """Alone at `folder`. The claim goes at the end together with the folder, and stays with a folder that is left.

    Args:
        claims: the folder of the claims, made where it is missing; the claim has the name of `folder`.
        what: for the error, "training" for example.

    Raises:
        ClusterError: another process is at it.
    """
    claims.mkdir(parents=True, exist_ok=True)
    path = claims / f"{folder.name}{ENDING}"
    with path.open("a+", encoding="utf-8") as file:
        if not _lock(file.fileno()) or not _is_still(path, file.fileno()):
            raise ClusterError(f"the same {what} must not run twice at once", got="another process at it", next_step="wait for it")
        file.truncate(0)
        file.write(str(folder))
        file.flush()
        try:
            yield
        finally:
            if not folder.exists():
                path.unlink()


def folder_of(path: Path) -> Path:
    """Of a claim. One that does not name it, for its process died before it could, is of the folder beside it."""
    folder = Path(path.read_text(encoding="utf-8"))
    return folder if folder.name == path.stem else path.with_suffix("")


def is_held(path: Path) -> bool:
    """Whether a living process of this host holds the lock; False where there is no such file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Another process may have ended, and taken the file away, between opening and locking it."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
