"""What the checkpoint of a stream says of its input: how far it was read, and whether that is all there is."""

from __future__ import annotations

import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

from toolkit.core.errors import ScoringError
from toolkit.core.table_names import TableName
from toolkit.engines import delta_files
from toolkit.engines.score_state import RESTORE, ScoreState, Scoring


def check_checkpoint(state: ScoreState, scoring: Scoring, checkpoint: Path) -> None:
    """Whether Spark's checkpoint is the one that the plans were made with: else it would start anew, and Delta would leave out what it
    writes under numbers that are taken.

    Raises:
        ScoringError: it is gone, another one, or older than the plans.
    """
    last = state.last_plan()
    if last is None or last.generation != scoring.generation.id or scoring.query_id is None:
        return
    if "stream_batch" not in last.source:  # a window came last
        numbers = (number for number in reversed(state.plan_numbers()) if "stream_batch" in state.plan(number).source)
        last = next((plan for plan in map(state.plan, numbers) if plan.generation == scoring.generation.id), None)
        if last is None:
            return
    rule = f"the checkpoint in {checkpoint} must be the one that {last.batch_id + 1} batches of {scoring.output} were made with"
    try:
        found = json.loads((checkpoint / "metadata").read_text(encoding="utf-8"))["id"]
        newest = max(int(path.name) for path in (checkpoint / "offsets").iterdir() if path.name.isdecimal())
    except (OSError, ValueError, KeyError) as error:
        raise ScoringError(rule, got="none", next_step=RESTORE) from error
    wanted = int(last.source["stream_batch"])
    # One that was read, but not planned; it is not done.
    is_ahead = newest == wanted + 1 and not (checkpoint / "commits" / str(newest)).exists()
    if found != scoring.query_id or not (newest == wanted or is_ahead):
        got = "another one" if found != scoring.query_id else f"one of stream batch {newest}, after batch {wanted} was planned"
        raise ScoringError(rule, got=got, next_step=RESTORE)


def has_read_all(table: TableName, checkpoint: Path) -> bool:
    """Whether the input has nothing that the checkpoint's batches did not have. False where only the stream can tell.

    A stream of Delta takes 2 to 9 s to find that out, for it puts together again what its last batch was made of.
    """
    offset = newest_offset(checkpoint)
    if table.path is None or not table.path.is_dir() or offset is None or not _is_committed(checkpoint):
        return False
    if table.kind == "delta":
        try:
            there = delta_files.snapshot(table.path)
        except ScoringError:  # not one that delta-rs opens; and what is wrong with it, Spark says
            return False
        is_whole = int(offset["index"]) < 0  # else the batch ended within a version
        return is_whole and offset["reservoirId"] == there.id and there.version < int(offset["reservoirVersion"])
    seen = {urllib.parse.unquote(urllib.parse.urlsplit(name).path) for name in streamed_files(checkpoint)}
    return all(path in seen for path in _data_files(table.path))


def newest_offset(checkpoint: Path) -> dict[str, Any] | None:
    """Of the only source of a stream whose batches are all done."""
    folder = checkpoint / "offsets"
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    if not numbers:
        return None
    found: dict[str, Any] = json.loads((folder / str(max(numbers))).read_text(encoding="utf-8").splitlines()[2])
    return found


def streamed_files(checkpoint: Path) -> list[str]:
    """The files that the stream has read: Spark's own log of them, a file a batch, now and then all of before in one."""
    folder = checkpoint / "sources" / "0"
    logs = [path for path in folder.iterdir() if path.name.partition(".")[0].isdecimal()] if folder.is_dir() else []
    newest_compact = max((int(path.stem) for path in logs if path.suffix == ".compact"), default=-1)
    wanted = [path for path in logs if path.suffix == ".compact" or int(path.name) > newest_compact]
    wanted = [path for path in wanted if path.suffix != ".compact" or int(path.stem) == newest_compact]
    found = {json.loads(line)["path"] for path in wanted for line in path.read_text(encoding="utf-8").splitlines()[1:]}
    return sorted(found)


def _is_committed(checkpoint: Path) -> bool:
    newest = max((int(path.name) for path in (checkpoint / "offsets").iterdir() if path.name.isdecimal()), default=0)
    return (checkpoint / "commits" / str(newest)).exists()


def _data_files(folder: Path) -> list[str]:
    """Of a folder, whatever Spark may take for data: hidden names are not, unless they are those of partitions or Parquet's own."""
    found: list[str] = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [os.path.join(here, name) for name in files if not _is_hidden(name)]
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name and not name.startswith(("_metadata", "_common_metadata")))
