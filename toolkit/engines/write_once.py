"""Files that appear whole and once: of many who write one at the same time, one succeeds."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A file system that cannot do it (FUSE on object stores) answers with one of these.
_CANNOT = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def write_once(path: Path, content: Mapping[str, Any]) -> bool:
    """Write JSON unless the file is there already; whole or not at all, also after a power cut.

    Where there are no hard links the file is made first and then replaced by its content: a crash between the two leaves it empty.

    Returns:
        Whether this call wrote it. After a reply that got lost (NFS) False is possible for a file of ours: compare the content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                return False
            os.replace(scratch, path)
        sync(path.parent)
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def sync(path: Path) -> None:
    """Have a file or a folder on the disk before anything that builds on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)
