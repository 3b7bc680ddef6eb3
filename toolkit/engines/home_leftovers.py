"""What is left over in TOOLKIT_HOME: studies and trainings that nobody goes on with, spool files without a study, caches."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit.core.errors import StudyError
from toolkit.core.leftovers import Leftover, too_young
from toolkit.engines import claims
from toolkit.engines.study_store import StudySummary


def unfinished_studies(home: Path, *, is_mirrored: bool = False) -> list[Leftover]:
    """Each with its spool file: what MLflow lacks of it, only `--resume` would send. `is_mirrored`: to the state URI, where they stay."""
    found = []
    for folder in _entries(home / "studies"):
        journal = folder / "journal.jsonl"
        if not journal.is_file():
            continue
        summary = StudySummary.of(journal.read_bytes())
        if summary.is_finished:
            continue
        parts = [path for path in (folder, _spool(home, folder.name)) if path.exists()]
        size_bytes, age_s = _size_and_age(*parts)
        if is_running(home, folder.name):
            kept = "a process is at it"
        elif _next(folder).exists():
            kept = f"{_next(folder).name} follows it, and would not be found without it"
        else:
            kept = too_young(age_s)
        found.append(
            Leftover(
                "studies",
                folder.name,
                f"unfinished, {summary.num_finished} of {summary.num_trials} trials; the same toolkit sweep with --resume would go on"
                + ("; its copy at the state URI stays" if is_mirrored else ""),
                size_bytes,
                age_s,
                kept,
                lambda folder=folder: _remove_study(home, folder),  # type: ignore[misc]
            )
        )
    return found


def broken_trainings(home: Path) -> list[Leftover]:
    """Checkpoints and rows of distributed trainings that did not come to their end, wherever they lie."""
    found = []
    for claim in _entries(home / "training"):
        if claim.suffix != claims.ENDING:
            continue
        folder = claims.folder_of(claim)
        size_bytes, age_s = _size_and_age(claim, folder)
        what = "rows" if folder.name.startswith("rows-") else "checkpoints; the same toolkit train --distributed would go on"
        kept = "a process is at it" if claims.is_held(claim) else too_young(age_s)
        found.append(
            Leftover(
                "trainings",
                str(folder),
                f"a distributed training that was broken off: {what}",
                size_bytes,
                age_s,
                kept,
                lambda claim=claim, folder=folder: _remove_training(claim, folder),  # type: ignore[misc]
            )
        )
    return found


def orphan_spools(home: Path) -> list[Leftover]:
    """Files whose study is not here, or is finished."""
    found = []
    for path in _entries(home / "spool"):
        journal = home / "studies" / path.stem / "journal.jsonl"
        if path.suffix != ".jsonl" or (journal.is_file() and not StudySummary.of(journal.read_bytes()).is_finished):
            continue
        size_bytes, age_s = _size_and_age(path)
        kept = "a process is at its study" if is_running(home, path.stem) else too_young(age_s)
        what = "tracking entries of a study that is finished" if journal.is_file() else "tracking entries of a study that is not here"
        found.append(Leftover("spool", path.name, what, size_bytes, age_s, kept, lambda path=path: path.unlink(missing_ok=True)))  # type: ignore[misc]
    return found


def caches(home: Path) -> list[Leftover]:
    """What recipes have downloaded; they would do so again."""
    found = []
    for path in _entries(home / "cache"):
        size_bytes, age_s = _size_and_age(path)
        found.append(Leftover("caches", path.name, "downloaded files", size_bytes, age_s, "", lambda path=path: remove_tree(path)))  # type: ignore[misc]
    return found


def is_running(home: Path, study: str) -> bool:
    """Whether a process holds the study's lock."""
    return claims.is_held(home / "studies" / study / "lock")


def remove_tree(path: Path) -> None:
    """A folder with all in it, or a file; no error where it is gone already. What a link points to stays."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def disk_use(path: Path) -> tuple[int, float]:
    """Bytes of the files below, and the Unix time at which anything there changed last."""
    num_bytes, changed = 0, 0.0
    for each in (path, *_below(path)):
        with contextlib.suppress(FileNotFoundError):
            state = os.lstat(each)
            num_bytes += 0 if stat.S_ISDIR(state.st_mode) else state.st_size
            changed = max(changed, state.st_mtime)
    return num_bytes, changed


def _below(path: Path) -> Iterator[Path]:
    if path.is_symlink():  # os.walk would follow it
        return
    for folder, folders, files in os.walk(path):
        yield from (Path(folder, name) for name in (*folders, *files))


def _size_and_age(*paths: Path) -> tuple[int, float]:
    uses = [disk_use(path) for path in paths]
    return sum(size for size, _ in uses), max(0.0, time.time() - max(changed for _, changed in uses))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _spool(home: Path, study: str) -> Path:
    return home / "spool" / f"{study}.jsonl"


def _next(folder: Path) -> Path:
    """The later study of the same name: `NAME-2` after `NAME`, `NAME-3` after that."""
    match = re.fullmatch(r"(.+)-(\d+)", folder.name)
    later = {f"{folder.name}-2"} | ({f"{match[1]}-{int(match[2]) + 1}"} if match else set())
    there = sorted(name for name in later if (folder.parent / name / "journal.jsonl").exists())
    return folder.parent / (there[0] if there else f"{folder.name}-2")


def _remove_training(claim: Path, folder: Path) -> None:
    with claims.claimed(claim.parent, folder, "training"):
        remove_tree(folder)


def _remove_study(home: Path, folder: Path) -> None:
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyError(f"study {folder.name!r} is run by another process", next_step="wait for it") from error
        remove_tree(_spool(home, folder.name))
        remove_tree(folder)
