"""A promotion as records, and the rules for many who want one at once. Nothing here calls a registry.

A promotion or rollback leaves three kinds of tags at the registered model, each written by one process only:

- `toolkit.promotion.ID`: a `Contender`, while it wants or holds the right to move the champion;
- `toolkit.intent.ID`: an `Intent`, from before the first alias moves until all is done;
- `toolkit.audit.N`: an `AuditRecord`, for good; at the version that became champion, too.

**The lock.** MLflow has no compare-and-swap, but a tag that one process writes and all read is a register, and one call reads all tags of a
model. That is what Lamport's bakery needs. A contender (1) writes its tag without a number, "choosing"; (2) reads all tags and writes
the highest number + 1; (3) reads all until nobody is choosing, and has the lock if no (number, id) is lower than its own. Where the bakery
waits for a lower one, ours goes away: whoever loses has nothing left to promote that was judged against the new champion.
`choosing` alone is waited for, being one read and one write long.

Never two: let A and B hold it, (number, id) of A the lower one. B saw no lower number and nobody choosing in its last read, so A's first
write came after that read, hence after B's number was written. Then A read B's number, B's tag staying until it is done, and took a higher
one: a contradiction. Not none: the lowest of those with a number has nobody to go away for. Both need reads that see
every finished write, which SQL stores and MLflow's server over one give; Unity Catalog does not promise it.

**The dead.** A contender whose process is gone (same machine: no such process, or another one with its number) or whose tag is older than
STALE_S is cleared away by the others. A live holder looks before it moves the champion, and stops after HOLD_S: the difference is for a
call of a minute, retries included, and for clocks that differ. What no client can exclude: a call that a server carries out long after
its sender died.

**The interrupted.** `previous_champion` is set before `champion`, and `champion` is one call, so `champion` alone says how far an intent
came: `next_of`. Every step may be done twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from toolkit.core.errors import RegistryError
from toolkit.core.secrets import without_secrets

LOCK_PREFIX = "toolkit.promotion."
INTENT_PREFIX = "toolkit.intent."
AUDIT_PREFIX = "toolkit.audit."

STALE_S = 300.0
HOLD_S = 200.0

Action = Literal["promote", "rollback"]


@dataclass(frozen=True)
class ProcessId:
    """A process, the world over.

    Attributes:
        host: its name, for people.
        machine: the same for processes that can see each other.
        started: tells a process from a later one with the same pid; empty where the system does not say.
    """

    host: str
    machine: str
    pid: int
    started: str


@dataclass(frozen=True)
class Contender:
    """Somebody who wants to move the champion. `number` None: choosing one."""

    id: str
    by: str
    since_unix_s: float
    process: ProcessId
    number: int | None = None

    @property
    def tag(self) -> str:
        return LOCK_PREFIX + self.id

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"{self.by} on {self.process.host} (pid {self.process.pid}), since {utc(self.since_unix_s)}"


def contenders(tags: Mapping[str, str]) -> list[Contender]:
    """All of a model's.

    Raises:
        RegistryError: a tag of this kind that cannot be read.
    """
    return [_contender(key, value) for key, value in tags.items() if key.startswith(LOCK_PREFIX)]


def next_number(others: Iterable[Contender]) -> int:
    return 1 + max((other.number or 0 for other in others), default=0)


def verdict(me: Contender, all_of_them: Iterable[Contender]) -> Literal["won", "wait", "lost"]:
    """What a contender with a number does after a read. Lost, too: its own tag is not there, so somebody took it for dead."""
    assert me.number is not None
    others = {each.id: each for each in all_of_them}
    if others.pop(me.id, None) is None or first_before(me, others.values()):
        return "lost"
    return "wait" if any(other.number is None for other in others.values()) else "won"


def first_before(me: Contender, others: Iterable[Contender]) -> Contender | None:
    """The one that has the lock, or will, if it is not `me`."""
    assert me.number is not None
    mine = (me.number, me.id)
    lower = [(other.number, other.id, other) for other in others if other.number is not None and (other.number, other.id) < mine]
    return min(lower, key=lambda each: each[:2])[2] if lower else None


def is_stale(contender: Contender, now_unix_s: float, machine: str, is_alive: bool) -> bool:
    """`is_alive`: of its process, as this machine sees it; counts only where the contender is on `machine`."""
    return now_unix_s - contender.since_unix_s > STALE_S or (contender.process.machine == machine and not is_alive)


@dataclass(frozen=True)
class AuditRecord:
    """One move of the champion: who, when and why. `number` counts a model's moves from 1."""

    number: int
    action: Action
    version: int
    champion_before: int | None
    at: str
    by: str
    host: str
    reason: str = ""
    decision: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return f"{AUDIT_PREFIX}{self.number}"

    def as_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Intent:
    """What is about to be done, complete enough for another process to finish or undo it.

    Attributes:
        record: the audit record that it will leave.
        previous_before: what `previous_champion` was.
        stages: legacy stages move along.
    """

    id: str
    record: AuditRecord
    previous_before: int | None
    stages: bool = False

    @property
    def tag(self) -> str:
        return INTENT_PREFIX + self.id

    @property
    def previous_after(self) -> int | None:
        """What `previous_champion` becomes. A champion that was lost by hand and is put back keeps its own."""
        if self.record.action == "rollback" and self.record.champion_before is None and self.previous_before != self.record.version:
            return self.previous_before
        return self.record.champion_before

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        what = "promotion of" if self.record.action == "promote" else "rollback to"
        return f"{what} version {self.record.version}, begun {self.record.at} by {self.record.by} on {self.record.host}"


def intents(tags: Mapping[str, str]) -> list[Intent]:
    """Of promotions under way or interrupted.

    Raises:
        RegistryError: a tag of this kind that cannot be read.
    """
    return [_intent(key, value) for key, value in tags.items() if key.startswith(INTENT_PREFIX)]


def next_of(intent: Intent, champion: int | None) -> Literal["finish", "undo", "abandon"]:
    """What becomes of an interrupted one. Abandon: somebody else has moved the champion since, by hand, and what they did stays."""
    if champion == intent.record.version:
        return "finish"
    return "undo" if champion == intent.record.champion_before else "abandon"


def audit_records(*tags: Mapping[str, str]) -> list[AuditRecord]:
    """Of a model and its versions, each record once, the earliest first.

    Raises:
        RegistryError: a tag of this kind that cannot be read.
    """
    found = {}
    for each in tags:
        for key, value in each.items():
            if key.startswith(AUDIT_PREFIX):
                record = _record(key, value)
                found[record.number] = record
    return [found[number] for number in sorted(found)]


def former_champions(records: Iterable[AuditRecord]) -> set[int]:
    """Every version that was champion once, as far as the records know: what they led to, and what they left."""
    return {version for record in records for version in (record.version, record.champion_before) if version is not None}


def utc(unix_s: float) -> str:
    """`2026-03-01T12:00:00Z`."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def without_secrets_within(value: Any) -> Any:
    """`value`, made of JSON's types, with every text in it as it may be shown."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {str(key): without_secrets_within(item) for key, item in value.items()}
    return [without_secrets_within(item) for item in value] if isinstance(value, list | tuple) else value


def _contender(key: str, value: str) -> Contender:
    try:
        data = json.loads(value)
        return Contender(**{**data, "process": ProcessId(**data["process"])})
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(key, error) from error


def _intent(key: str, value: str) -> Intent:
    try:
        data = json.loads(value)
        return Intent(**{**data, "record": AuditRecord(**data["record"])})
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(key, error) from error


def _record(key: str, value: str) -> AuditRecord:
    try:
        return AuditRecord(**json.loads(value))
    except (ValueError, TypeError) as error:
        raise _unreadable(key, error) from error


def _unreadable(key: str, error: Exception) -> RegistryError:
    return RegistryError(
        f"tag {key}: as the toolkit wrote it", got=f"{type(error).__name__}: {error}", next_step="look at it, and remove it by hand"
    )
