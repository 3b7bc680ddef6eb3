"""Where a recipe's files come from: the first source that has them.

Order: `--data`, TOOLKIT_DATA_DIR, the cache in TOOLKIT_HOME, a Databricks folder, download, and last a generated sample, so that a first
command works without internet. Everything but `--data` is held to the recipe's sha256: figures from other rows are not comparable.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.data import DataContext, Loaded
from toolkit.core.errors import DataError

REACH_TIMEOUT_S = 10.0
"""From the call to the first answer of the server, name look-up included; also the longest pause while bytes arrive."""
DOWNLOAD_TIMEOUT_S = 120.0
"""For all files, once the server has answered: a trickle must not hold up the first command for ever."""

log = logging.getLogger("toolkit")


@dataclass(frozen=True)
class RemoteFiles:
    """Files that a recipe needs, by content.

    Attributes:
        name: folder in the cache.
        files: file name -> sha256, in the order in which the recipe reads them.
        url: address with `{file}` where the name goes.
        databricks_folder: folder where Databricks keeps the same files, if it does.
    """

    name: str
    files: Mapping[str, str]
    url: str
    databricks_folder: str | None = None


def files_for(
    context: DataContext,
    remote: RemoteFiles,
    *,
    read: Callable[[Mapping[str, Path]], Any],
    fallback: Callable[[], Any] | None = None,
) -> Loaded:
    """Find the files and make a table of them.

    Args:
        read: file name -> path, all of `remote.files`; returns the table. With `--data` naming one of the files, only that one.
        fallback: returns a generated table of the same form, for when nothing can be reached; without it that is an error.

    Returns:
        The table with its kind and location. A `--data` file under another name is handed on as it is, unread: a ready table.

    Raises:
        DataError: `--data` or TOOLKIT_DATA_DIR names what is not there, a file has the wrong sha256, the cache cannot be written, or
            nothing can be reached and there is no fallback.
    """
    if context.data is not None:
        return _from_user(context.data, remote, read)
    if context.data_dir is not None:
        paths = _in_data_dir(context.data_dir, remote)
        if paths:
            return Loaded(read(paths), "environment", str(context.data_dir))
    for kind, folder in (("cache", context.cache_dir / remote.name), ("databricks_datasets", remote.databricks_folder)):
        if folder is not None and (paths := _genuine(Path(folder), remote)):
            return Loaded(read(paths), kind, str(folder))
    fetched, obstacle = _download(remote)
    if obstacle is None:
        paths = _store(fetched, context.cache_dir / remote.name)
        return Loaded(read(paths), "download", remote.url.format(file=""))
    if fallback is None:
        raise DataError(f"{remote.name}: the files must be reached", got=obstacle, next_step="give --data PATH or TOOLKIT_DATA_DIR")
    log.warning(
        "%s: NOT THE GENUINE DATA: a generated sample stands in, and no figure from it means anything (%s); "
        "name the files' folder with --data or TOOLKIT_DATA_DIR",
        remote.name,
        obstacle,
    )
    return Loaded(fallback(), "fallback_sample", f"generated, for {obstacle}")


def _from_user(data: Path, remote: RemoteFiles, read: Callable[[Mapping[str, Path]], Any]) -> Loaded:
    if data.is_dir():
        paths = {name: data / name for name in remote.files}
        missing = [name for name, path in paths.items() if not path.is_file()]
        if missing:
            raise DataError(
                f"--data: {remote.name} needs {', '.join(remote.files)} in the folder",
                got=f"{data} without {', '.join(missing)}",
                next_step="name the folder that has them, or one file with a ready table",
            )
        return Loaded(read(paths), "file", str(data))
    if not data.is_file():
        raise DataError("--data: no such file or folder", got=str(data), next_step="check the path")
    return Loaded(read({data.name: data}) if data.name in remote.files else data, "file", str(data))


def _in_data_dir(folder: Path, remote: RemoteFiles) -> dict[str, Path]:
    """The verified files; nothing where the folder, which may serve other recipes, has none of them."""
    if not folder.is_dir():
        raise DataError("TOOLKIT_DATA_DIR: must be a folder", got=str(folder), next_step="correct or unset the variable")
    paths = {name: folder / name for name in remote.files}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if len(missing) == len(paths):
        log.warning("TOOLKIT_DATA_DIR=%s has no %s; looking elsewhere", folder, " and no ".join(missing))
        return {}
    if missing:
        raise DataError(
            f"TOOLKIT_DATA_DIR: {remote.name} needs {', '.join(remote.files)}",
            got=f"{folder} without {', '.join(missing)}",
            next_step="add the file, or unset the variable",
        )
    for name, path in paths.items():
        _check_sha256(path, hashlib.sha256(path.read_bytes()).hexdigest(), remote.files[name])
    return paths


def _check_sha256(where: Path | str, found: str, wanted: str) -> None:
    if found != wanted:
        raise DataError(f"{where}: sha256 must begin with {wanted[:12]}", got=found[:12], next_step="use --data to train on other data")


def _genuine(folder: Path, remote: RemoteFiles) -> dict[str, Path]:
    """The verified files; nothing where one is missing or differs, for both callers have another source after them."""
    paths = {name: folder / name for name in remote.files}
    if not all(path.is_file() for path in paths.values()):
        return {}
    for name, path in paths.items():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != remote.files[name]:
            log.warning("%s is not the genuine file (sha256 %s, not %s); looking elsewhere", path, found[:12], remote.files[name][:12])
            return {}
    return paths


def _download(remote: RemoteFiles) -> tuple[dict[str, bytes], str | None]:
    """All files as bytes and None, or what stood in the way.

    A thread of its own, because a name look-up can hang for minutes and knows no timeout; left behind, it holds nothing but memory.
    """
    fetched: dict[str, bytes] = {}
    obstacles: list[str] = []
    answered, done = threading.Event(), threading.Event()

    def fetch() -> None:
        try:
            for name in remote.files:
                with urllib.request.urlopen(remote.url.format(file=name), timeout=REACH_TIMEOUT_S) as response:
                    answered.set()
                    fetched[name] = response.read()
        except (OSError, http.client.HTTPException) as error:
            obstacles.append(f"{remote.url.format(file=name)}: {getattr(error, 'reason', None) or error or type(error).__name__}")
        finally:
            answered.set()
            done.set()

    log.info("downloading %s from %s", remote.name, remote.url.format(file=""))
    threading.Thread(target=fetch, name="toolkit-download", daemon=True).start()
    if not answered.wait(REACH_TIMEOUT_S):
        return {}, f"no answer within {REACH_TIMEOUT_S:g} s from {remote.url.format(file='')}"
    if not done.wait(DOWNLOAD_TIMEOUT_S):
        return {}, f"not finished within {DOWNLOAD_TIMEOUT_S:g} s: {remote.url.format(file='')}"
    if obstacles:
        return {}, obstacles[0]
    for name, content in fetched.items():
        _check_sha256(remote.url.format(file=name), hashlib.sha256(content).hexdigest(), remote.files[name])
    return fetched, None


def _store(fetched: Mapping[str, bytes], folder: Path) -> dict[str, Path]:
    """Write each file whole or not at all, whoever else does the same."""
    paths = {name: folder / name for name in fetched}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as partial:
                try:
                    partial.write(fetched[name])
                    partial.flush()
                    os.replace(partial.name, path)
                except OSError:
                    os.unlink(partial.name)
                    raise
    except OSError as error:
        raise DataError(
            "the cache must be writable", got=f"{folder}: {error.strerror or error}", next_step="free space, or set TOOLKIT_HOME"
        ) from error
    return paths
