"""What tracking has still to send, and the file that keeps it while MLflow does not answer. Imports no MLflow."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit.core.study import TrialRecord

logger = logging.getLogger(__name__)

Kind = Literal["started", "ended", "requeued", "reconcile", "parent", "artifact", "finish"]

# What the study's journal does not know, so that only the spool can tell the next process.
ONLY_HERE = ("parent", "artifact")


@dataclass(eq=False)
class Entry:
    """Something to send. `data` is JSON; a record becomes JSON only if it must be spooled."""

    kind: Kind
    data: dict[str, Any] = field(default_factory=dict)
    record: TrialRecord | None = None
    records: Sequence[TrialRecord] = ()
    is_spooled: bool = False

    @property
    def title(self) -> str:
        number = self.record.number if self.record else self.data.get("number")
        return self.kind if number is None else f"trial {number} {self.kind}"

    def as_json(self) -> str:
        row: dict[str, Any] = {"kind": self.kind, **self.data}
        if self.record is not None:
            record = self.record
            row |= {"number": record.number, "state": record.state, "num_retries": record.num_retries, "params": dict(record.params)}
            row["result"] = record.result.as_dict()
        return json.dumps(row, default=str)


class Spool:
    """A JSON-lines file that exists only while it holds something. It has no URI in it, so no credentials."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._is_leftover = path.exists()

    def append(self, entries: Iterable[Entry]) -> None:
        """Write those that are not in the file yet, durably. A disk that takes none is logged: they are in memory still."""
        with self._lock:
            new = [entry for entry in entries if not entry.is_spooled and entry.kind != "reconcile"]
            if not new:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(f"{entry.as_json()}\n" for entry in new))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                logger.warning("cannot write %s (%s): %d tracking entries are in memory only", self.path, error, len(new))
                return
            for entry in new:
                entry.is_spooled = True

    def take_leftovers(self) -> list[Entry]:
        """What an earlier process left that only this file knows. The file stays until `remove`."""
        with self._lock:
            if not self._is_leftover:
                return []
            self._is_leftover = False
            found, num_torn = [], 0
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the process died while it wrote
                    num_torn += 1
                    continue
                if row["kind"] in ONLY_HERE:
                    found.append(Entry(row.pop("kind"), row, is_spooled=True))
            if num_torn:
                logger.warning("%d unreadable lines in %s left out", num_torn, self.path)
            return found

    def remove(self) -> None:
        """All is sent. What an earlier process left, and nobody has taken, stays."""
        with self._lock:
            if not self._is_leftover:
                self.path.unlink(missing_ok=True)
