"""One scoring at a time on an output: a lease with a heartbeat.

    leases/00000000N.json     in the output's state folder; the highest number is the lease, those below are history

**Taken** by making the next number's file, which of many only one can (`write_once`): over a free lease, or a dead holder's. Nothing is
renamed or deleted to take it, so a taker may be killed wherever: it has either made its file, and is then dead itself, or has not. Only its
holder writes to a file: it renews it every RENEW_S, and at the end marks it as free. A new holder clears away what lies more than
KEPT below, so that whoever lists the folder meanwhile sees one that is at least as high as the lease was when the listing began.

**Dead** is a holder whose process is gone (same machine: no such process, or another one with its number), or that has not renewed its file
for STALE_S by the file system's own clock and does not while it is watched for WATCH_S. On its own machine a living process is never dead,
stopped as it may be.

**Back from the dead** (stopped, suspended, cut off), a holder sees at `check` that there is a higher number. Its first renewal is followed
by SETTLE_S without a commit, so that a taker that has just looked has either taken it by then, or sees the renewal.

No clock excludes a holder that is stopped between `check` and its commit, and a file system without hard links and exclusive creation (some
FUSE mounts of object stores) may let two make one number, of whom one notices at its next `check`. The real guard is the table's own
transaction, or the manifest's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from toolkit.core.errors import ScoringError
from toolkit.core.promotion import ProcessId, utc
from toolkit.engines.processes import is_alive, machine, this_process
from toolkit.engines.score_state import write_json
from toolkit.engines.write_once import write_once

FORMAT = 1
RENEW_S = 5.0
STALE_S = 60.0
WATCH_S = 15.0
SETTLE_S = 3.0
KEPT = 8

_logger = logging.getLogger("toolkit")

# Tokens of the leases that this process holds: in a notebook it outlives a scoring that was broken off twice.
_held: set[str] = set()


@dataclass(frozen=True)
class Holder:
    """What is in a lease's file. `token`: of one `Lease`; `is_free`: its holder is done."""

    user: str
    process: ProcessId
    token: str
    started_unix_s: float
    renewed_unix_s: float
    is_free: bool = False

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def __str__(self) -> str:
        return f"{self.user} on {self.process.host} (pid {self.process.pid}), since {utc(self.started_unix_s)}"


@dataclass(frozen=True)
class _Entry:
    """A lease's file as it was read. `holder` None: it is damaged, or its maker was killed before it had content."""

    number: int
    holder: Holder | None
    modified_ns: int


class Lease:
    """`with Lease(state_folder, output, user) as lease:`, and `lease.check()` before every commit.

    SIGTERM is turned into KeyboardInterrupt inside, where nobody else handles it, so that it is given back.
    """

    def __init__(self, folder: Path, output: str, user: str) -> None:
        """`folder`: the output's state folder; `output` and `user`: for messages."""
        self.folder = folder / "leases"
        self._output = output
        self._number = 0
        now = time.time()
        self._me = Holder(user, this_process(), uuid.uuid4().hex, now, now)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._writing = threading.Lock()
        self._settled_s = 0.0  # of the monotonic clock
        self._terminate: Any = None

    def __enter__(self) -> Lease:
        """Raises ScoringError: somebody else has it, or the folder cannot be written to."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._terminate = signal.signal(signal.SIGTERM, _interrupt)
        try:
            self._take()
            self._heart.start()
        except BaseException as error:
            self._give_back()
            if isinstance(error, OSError):
                raise _unusable(self.folder, error) from error
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None) -> None:
        self._give_back()

    def check(self) -> None:
        """Raises ScoringError: it is no longer ours."""
        try:
            if self._was_silent():
                self._renew()
            time.sleep(max(0.0, self._settled_s - time.monotonic()))
            newest = self._newest()
        except OSError as error:
            raise _unusable(self.folder, error) from error
        if newest is None or newest.number < self._number:
            got = "deleted"
        elif newest.number > self._number:
            got = f"taken over by {newest.holder or 'an unknown process'}"
        elif newest.holder is None or newest.holder.token != self._me.token:
            got = f"made by {newest.holder or 'an unknown process'} at the same time"
        else:
            return
        raise ScoringError(
            "a scoring must keep its lease until it is done",
            got=f"that of {self._output} {got}",
            next_step="run it again: it goes on after the last committed batch",
        )

    # ---- taking

    def _take(self) -> None:
        while True:
            newest = self._newest()
            if newest is not None and not self._is_over(newest):
                raise self._refusal(newest)
            self._number = 1 if newest is None else newest.number + 1
            now = time.time()
            self._me = replace(self._me, started_unix_s=now, renewed_unix_s=now)
            write_once(self._path(self._number), self._me.as_json())
            after = self._newest()
            if after is not None and after.number == self._number and after.holder is not None and after.holder.token == self._me.token:
                _held.add(self._me.token)
                if newest is not None and newest.holder is not None and not newest.holder.is_free:
                    _logger.warning("the lease of %s is taken over from %s, which has ended", self._output, newest.holder)
                self._clear_away()
                return

    def _is_over(self, entry: _Entry) -> bool:
        holder = entry.holder
        if holder is not None and holder.is_free:
            return True
        if holder is not None and holder.process == this_process():
            return holder.token not in _held
        if holder is not None and holder.process.machine == machine():
            return not is_alive(holder.process)
        if abs(self._age_s(entry)) <= STALE_S:
            return False
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(min(RENEW_S, WATCH_S) / 5)
            if self._newest() != entry:
                return False
        return True

    def _refusal(self, entry: _Entry) -> ScoringError:
        next_step = f"wait for it: after {STALE_S:g} s without a sign it is taken over"
        if entry.holder is not None and entry.holder.process.machine == machine():
            next_step = f"wait for it, or end process {entry.holder.process.pid}"
        return ScoringError(
            f"one scoring of {self._output} at a time",
            got=f"another one, by {entry.holder or 'an unknown process'}, last sign {max(0.0, self._age_s(entry)):.0f} s ago",
            next_step=next_step,
        )

    def _age_s(self, entry: _Entry) -> float:
        """Since it was last written, by the clock of the file system: this machine's may be off."""
        probe = self.folder / f".{uuid.uuid4().hex}"
        probe.touch()
        now_ns = probe.stat().st_mtime_ns
        probe.unlink()
        return (now_ns - entry.modified_ns) / 1e9

    def _clear_away(self) -> None:
        for number in self._numbers():
            if number < self._number - KEPT:
                with contextlib.suppress(OSError):  # somebody else's
                    self._path(number).unlink()

    # ---- holding

    def _beat(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self._renew()
            except OSError as error:
                _logger.debug("the lease of %s is not renewed: %s", self._output, error)

    def _renew(self, *, is_free: bool = False) -> None:
        """Not one that was deleted."""
        with self._writing:
            if self._me.is_free or not self._path(self._number).exists():
                return
            was_silent, renewed = self._was_silent(), replace(self._me, renewed_unix_s=time.time(), is_free=is_free)
            write_json(self._path(self._number), renewed.as_json())
            self._me = renewed
            if was_silent:
                self._settled_s = time.monotonic() + SETTLE_S

    def _was_silent(self) -> bool:
        """For so long that others may think of a takeover; by the clock that goes on while a laptop sleeps."""
        return time.time() - self._me.renewed_unix_s > STALE_S / 2

    def _give_back(self) -> None:
        """A lease that has become somebody else's has a higher number, and is not touched."""
        self._ended.set()
        _held.discard(self._me.token)
        if self._heart.is_alive():
            self._heart.join()
        try:
            entry = self._read(self._number) if self._number else None
            if entry is not None and entry.holder is not None and entry.holder.token == self._me.token:
                self._renew(is_free=True)
        except OSError as error:
            _logger.debug("the lease of %s stays until this process has ended: %s", self._output, error)
        if self._terminate is not None:
            signal.signal(signal.SIGTERM, self._terminate)

    # ---- files

    def _newest(self) -> _Entry | None:
        while numbers := self._numbers():
            entry = self._read(numbers[-1])
            if entry is not None:
                return entry
        return None

    def _numbers(self) -> list[int]:
        try:
            return sorted(int(name[:-5]) for name in os.listdir(self.folder) if name.endswith(".json") and name[:-5].isdecimal())
        except FileNotFoundError:
            return []

    def _read(self, number: int) -> _Entry | None:
        try:
            with self._path(number).open(encoding="utf-8") as file:
                modified_ns, text = os.fstat(file.fileno()).st_mtime_ns, file.read()
        except FileNotFoundError:
            return None
        try:
            content = json.loads(text)
            content.pop("format")
            holder = Holder(**{**content, "process": ProcessId(**content["process"])})
        except (ValueError, KeyError, TypeError, AttributeError):
            holder = None
        return _Entry(number, holder, modified_ns)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:09d}.json"


def _unusable(folder: Path, error: OSError) -> ScoringError:
    return ScoringError(
        "a scoring's state folder must be readable and writable",
        got=f"{folder}: {error.strerror or error}",
        next_step="check its permissions and the space on it, or name another with --state",
    )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
