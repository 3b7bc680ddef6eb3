"""Where studies live: `TOOLKIT_HOME/studies/NAME/journal.jsonl`, one process at a time, mirrored where the disk does not last.

A job cluster's disk vanishes and object stores do not append: with a state URI the journal stays on the local disk and is copied there
whole,
by write-then-rename, every 30 s and at the end; a journal that is missing here is taken from there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from toolkit.core.errors import StudyError

MIRROR_EVERY_S = 30.0

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class StudyFolder:
    """A study's place, held by this process. `exists`: there is a journal to go on with."""

    name: str
    path: Path
    exists: bool

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"


@dataclass(frozen=True)
class StudySummary:
    """What a journal says without the experiment that wrote it. The codes are Optuna's JournalOperation and TrialState."""

    num_finished: int
    num_trials: int
    is_finished: bool

    @classmethod
    def of(cls, journal: bytes) -> StudySummary:
        finished, attributes = 0, dict[str, Any]()
        for line in journal.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # A torn last line; `Journal` refuses any other.
            if entry.get("op_code") == 2:
                attributes.update(entry["user_attr"])
            elif entry.get("op_code") == 6 and entry["state"] in (1, 2, 3):
                finished += 1
        return cls(finished, int(attributes.get("num_trials", 0)), attributes.get("finished_unix_s") is not None)


@contextmanager
def study_folder(home: Path, base_name: str, resume: bool, state_uri: str | None, is_exact: bool = False) -> Iterator[StudyFolder]:
    """The folder for a new study, or with `resume` the newest existing one, of `base_name`, `base_name-2`, …; locked until the block ends.

    With `is_exact`, `resume` means the one of just this name.

    Raises:
        StudyError: an unfinished study has the name and `resume` is off; nothing to resume; another process holds it; not writable.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", base_name):
        raise StudyError("--study: letters, digits, '.', '_' and '-', at most 128", got=repr(base_name))
    root = home / "studies"
    mirror = _Mirror(state_uri) if state_uri else None
    names = [base_name]
    while _has_journal(root / names[-1], mirror) and not (resume and is_exact and len(names) > 1):
        names.append(f"{base_name}-{len(names) + 1}")
    if resume and len(names) == 1:
        raise StudyError(
            "--resume needs a study that was begun",
            got=f"no {base_name!r} in {root}",
            next_step="leave --resume out, or name it with --study",
        )
    name = names[-2] if resume else names[-1]
    if not resume and len(names) > 1:
        previous = root / names[-2]
        with _locked(previous):
            summary = StudySummary.of(_newest(previous / "journal.jsonl", mirror))
        if not summary.is_finished:
            raise StudyError(
                f"study {previous.name!r} is unfinished ({summary.num_finished} of {summary.num_trials} trials)",
                next_step="go on with --resume, or begin another with --study NAME",
            )
    with _locked(root / name):
        folder = StudyFolder(name, root / name, exists=resume)
        if mirror and resume:
            newest = _newest(folder.journal, mirror)
            if not folder.journal.exists() or len(newest) > folder.journal.stat().st_size:
                partial = folder.journal.with_suffix(".part")
                partial.write_bytes(newest)
                partial.replace(folder.journal)
                _logger.warning("study %s: journal restored from %s", name, state_uri)
        stop = mirror.follow(folder.journal) if mirror else None
        try:
            yield folder
        finally:
            if stop is not None:
                stop()


def finished_study(home: Path, base_name: str, state_uri: str | None, is_exact: bool = False) -> StudyFolder:
    """The newest finished study of `base_name`, `base_name-2`, …, to be read only. A journal that is not here is taken from the state URI.

    Raises:
        StudyError: there is none, or none is finished.
    """
    root = home / "studies"
    mirror = _Mirror(state_uri) if state_uri else None
    names: list[str] = []
    while _has_journal(root / (name := base_name if not names else f"{base_name}-{len(names) + 1}"), mirror):
        names.append(name)
        if is_exact:
            break
    unfinished = ""
    for name in reversed(names):
        folder = StudyFolder(name, root / name, exists=True)
        content = _newest(folder.journal, mirror)
        summary = StudySummary.of(content)
        if not summary.is_finished:
            unfinished = unfinished or f"{name!r} with {summary.num_finished} of {summary.num_trials} trials"
            continue
        if not folder.journal.exists():
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.journal.write_bytes(content)
        return folder
    raise StudyError(
        "needs a finished study",
        got=unfinished or f"no study {base_name!r} in {root}",
        next_step="go on with toolkit sweep --resume" if unfinished else "run toolkit sweep first, or give --params FILE",
    )


def _newest(journal: Path, mirror: _Mirror | None) -> bytes:
    """The study's journal as far as it is known: here, or, where another machine has gone on with it, at the state URI.

    Raises:
        StudyError: it went on in two places.
    """
    here = _whole_lines(journal.read_bytes()) if journal.exists() else b""
    there = mirror.read(journal.parent.name) if mirror and mirror.has(journal.parent.name) else b""
    if not here.startswith(there) and not there.startswith(here):
        raise StudyError(
            f"study {journal.parent.name!r} must have gone on in one place",
            got=f"different trials in {journal} and at the state URI",
            next_step="move away the one that is not wanted, or use another --study",
        )
    return max(here, there, key=len)


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _has_journal(folder: Path, mirror: _Mirror | None) -> bool:
    return (folder / "journal.jsonl").exists() or (mirror is not None and mirror.has(folder.name))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the study. The kernel lets go when the process ends, however it ends."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StudyError(
            "TOOLKIT_HOME must be writable", got=f"{folder}: {error.strerror}", next_step="set TOOLKIT_HOME to a folder of yours"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StudyError(
                f"study {folder.name!r} is run by another process", got=_holder(file), next_step="wait for it, or use --study NAME"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if not (folder / "journal.jsonl").exists():
                # Nothing was begun: leave nothing behind.
                path.unlink(missing_ok=True)
                for made in created:
                    if made.exists() and not any(made.iterdir()):
                        made.rmdir()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "unknown"


class _Mirror:
    """Copies of journals under a URI that fsspec understands: `URI/NAME/journal.jsonl`."""

    def __init__(self, uri: str) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(uri)
            self._files.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise StudyError("the state URI must be a folder that can be written", got=f"{uri}: {error}") from error

    def _path(self, study: str) -> str:
        return f"{self._root}/{study}/journal.jsonl"

    def has(self, study: str) -> bool:
        return bool(self._files.exists(self._path(study)))

    def read(self, study: str) -> bytes:
        return bytes(self._files.cat_file(self._path(study)))

    def copy(self, journal: Path) -> None:
        """Whole lines only, and never a half-written file under the final name."""
        content = _whole_lines(journal.read_bytes())
        target = self._path(journal.parent.name)
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        partial = f"{target}.{uuid.uuid4().hex[:8]}"
        self._files.pipe_file(partial, content)
        self._files.mv(partial, target)

    def follow(self, journal: Path) -> Any:
        """Copy every `MIRROR_EVERY_S` in the background; returns what ends it, with a last copy."""
        ended = threading.Event()
        copied = [-1]

        def copy() -> None:
            try:
                size = journal.stat().st_size if journal.exists() else -1
                if size != copied[0]:
                    self.copy(journal)
                    copied[0] = size
            except Exception as error:  # each store of fsspec has a tree of its own
                # The search goes on without: its journal is on the local disk. The next copy is whole again.
                _logger.warning("the journal could not be copied to the state URI: %s", error)

        def work() -> None:
            # The first copy as soon as there is something: a disk may be lost within 30 s too.
            while not ended.wait(MIRROR_EVERY_S if copied[0] >= 0 else 1.0):
                copy()

        thread = threading.Thread(target=work, name="journal-mirror", daemon=True)
        thread.start()

        def stop() -> None:
            ended.set()
            thread.join()
            copy()

        return stop
