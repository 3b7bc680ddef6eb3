"""Which process this is, and whether another one still lives: for locks that outlast their holder."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

from toolkit.core.promotion import ProcessId

DEAD_STATES = ("Z", "X")


def this_process() -> ProcessId:
    return ProcessId(socket.gethostname(), machine(), os.getpid(), _state_and_start(os.getpid())[1])


def machine() -> str:
    """The same for processes that see each other's numbers: one boot of one kernel, and one container of it."""
    try:
        parts = (Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid"))
    except OSError:  # no Linux
        parts = (socket.gethostname(), "")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def is_alive(process: ProcessId) -> bool:
    """Whether it runs on this machine. Where the system does not tell when a process started: whether any has its number."""
    state, started = _state_and_start(process.pid)
    if state:
        return state not in DEAD_STATES and started == process.started
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _state_and_start(pid: int) -> tuple[str, str]:
    """The kernel's letter for its state, and clock ticks from boot to its start; empty where there is no such process, or no /proc."""
    try:
        # The command's name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
