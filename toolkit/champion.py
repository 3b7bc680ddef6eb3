"""Moving the champion: one process at a time, finished or undone however it ends, and on record.

The rules are in `core.promotion`; here they meet a registry. `promote` judges and calls `move_champion`; `rollback` is a verb of its own.
"""

from __future__ import annotations

import html
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from toolkit.champion_history import rollback_target
from toolkit.champion_lock import Hold, HoldLost, alone
from toolkit.core.errors import RegistryError
from toolkit.core.promotion import (
    INTENT_PREFIX,
    Action,
    AuditRecord,
    Intent,
    audit_records,
    intents,
    next_of,
    utc,
    without_secrets_within,
)
from toolkit.core.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, parse_model
from toolkit.core.secrets import without_secrets
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.engines.mlflow_registry import Registry

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class Recovery:
    """What became of an interrupted promotion or rollback.

    Attributes:
        outcome: finished: the champion had moved already; undone: it had not, and all is as before; abandoned: somebody has moved it by
            hand since, and nothing was touched.
    """

    outcome: Literal["finished", "undone", "abandoned"]
    intent: Intent

    def __str__(self) -> str:
        return f"an interrupted {self.intent} was {self.outcome}"


@dataclass(frozen=True)
class Move:
    """What a promotion or rollback came to.

    Attributes:
        champion, previous_champion: as they are now.
        record: who moved it, when and why; None: nothing was moved but by `recovered`, for what the user wanted is so.
        recovered: what was put in order first.
    """

    model: str
    champion: int | None
    previous_champion: int | None
    record: AuditRecord | None
    recovered: tuple[Recovery, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object that `toolkit rollback --json` prints."""
        return {
            "model": self.model,
            "champion": self.champion,
            "previous_champion": self.previous_champion,
            "moved": self.record is not None,
            "recovered": [str(each) for each in self.recovered],
            "audit": asdict(self.record) if self.record else None,
        }

    @property
    def title(self) -> str:
        """One line for a person."""
        return f"{self.model}: champion is {_named(self.champion)}, previous champion {_named(self.previous_champion)}"

    def rows(self) -> list[tuple[str, str]]:
        rows = [("recovered", str(each)) for each in self.recovered]
        if self.record:
            rows += [("by", f"{self.record.by}, {self.record.at}"), ("reason", self.record.reason or "none given")]
        else:
            rows.append(("moved", "no more was needed; run it again to go further back" if self.recovered else "nothing: it is champion"))
        return rows

    def _repr_html_(self) -> str:
        return "".join(f"<div>{html.escape(line)}</div>" for line in (self.title, *(f"{name}: {text}" for name, text in self.rows())))


def move_champion(
    registry: Registry,
    name: str,
    version: int,
    *,
    expected_champion: int | None,
    by: str,
    reason: str = "",
    decision: Mapping[str, Any] | None = None,
    is_challenger: bool = True,
    stages: bool = False,
) -> Move:
    """Make `version` the champion, what was champion the previous one, and take the alias `challenger` from it.

    Args:
        expected_champion: the one that the gates compared with; None: there was none.
        decision: for the audit record: JSON, with what was judged.
        is_challenger: it was judged as `@challenger`, and must still be that.
        stages: legacy stages follow: the champion is Production, what was, Archived.

    Raises:
        RegistryError: another promotion is under way; champion or challenger are not what was judged; no permission or no answer. Nothing
            has moved then, or the message says that running again will finish or undo it.
    """
    if stages:
        registry.check_stages()
    with alone(registry, name, by) as hold:
        recovered = _recover_all(registry, name, hold)
        challenger = registry.version(name, version)
        champion, previous = _number(registry, name, CHAMPION), _number(registry, name, PREVIOUS_CHAMPION)
        again = "run toolkit promote again, to judge it against this one"
        if champion == version:
            raise RegistryError(f"version {version} of {name}: not champion yet", got="champion already", next_step="nothing to do")
        if champion != expected_champion:
            raise RegistryError(
                f"champion of {name}: the one it was judged against, {_named(expected_champion)}", got=_named(champion), next_step=again
            )
        if is_challenger and (now := _number(registry, name, CHALLENGER)) != version:
            raise RegistryError(
                f"challenger of {name}: the one that was judged, version {version}",
                got=_named(now),
                next_step="run toolkit promote again, to judge that one",
            )
        if challenger.status != "READY":
            raise RegistryError(f"version {version} of {name}: READY", got=challenger.status, next_step="wait, or register it again")
        record = _record(registry, name, "promote", version, champion, by=by, reason=reason, decision=decision or {})
        return _carry_out(registry, name, Intent(uuid.uuid4().hex, record, previous, stages), hold, recovered)


def rollback(
    model: str,
    *,
    to: int | None = None,
    reason: str = "",
    stages: bool = False,
    registry_uri: str | None = None,
    tracking_uri: str | None = None,
    settings: Settings | None = None,
) -> Move:
    """Give the champion's place back to `previous_champion`, which takes the champion's: twice in a row returns to where one was.

    After an interrupted promotion that can only be undone, or an interrupted rollback that can only be finished, that is all it does.

    Args:
        model: a registered name.
        to: a version that was champion before, in place of `previous_champion`; also where the alias `champion` was lost. One that is
            champion already stays it.

    Raises:
        RegistryError: no such model, no champion, no previous one, a version that never was champion, artifacts that are gone, another
            promotion under way, no permission or no answer.
    """
    from toolkit.engines.mlflow_registry import Registry

    settings = settings or Settings.read()
    reference = parse_model(model)
    if to is not None and (isinstance(to, bool) or not isinstance(to, int)):
        raise RegistryError("rollback to: a version as a whole number", got=f"{type(to).__name__} {to!r}", next_step="for example to=3")
    if reference.version is not None or reference.alias not in (None, CHAMPION):
        raise RegistryError(
            "rollback: a model's name",
            got=repr(model),
            next_step=f"toolkit rollback {reference.name} [--to {reference.version or 'VERSION'}]",
        )
    registry = Registry.open(registry_uri or settings.registry_uri, tracking_uri or settings.tracking_uri)
    return roll_back(registry, registry.resolve_name(reference.name), to=to, by=settings.user, reason=reason, stages=stages)


def roll_back(registry: Registry, name: str, *, by: str, to: int | None = None, reason: str = "", stages: bool = False) -> Move:
    """`rollback` in a registry that is open. `name`: as it is registered."""
    if stages:
        registry.check_stages()
    with alone(registry, name, by) as hold:
        recovered = _recover_all(registry, name, hold)
        champion, previous = _number(registry, name, CHAMPION), _number(registry, name, PREVIOUS_CHAMPION)
        if to is None and any(_is_what_rollback_wants(each) for each in recovered):
            return Move(name, champion, previous, None, recovered)
        if to is not None and to == champion:
            return Move(name, champion, previous, None, recovered)
        target = rollback_target(registry, name, champion, previous, to)
        record = _record(registry, name, "rollback", target, champion, by=by, reason=reason, decision={})
        return _carry_out(registry, name, Intent(uuid.uuid4().hex, record, previous, stages), hold, recovered)


def recover(registry: Registry, name: str, *, by: str) -> tuple[Recovery, ...]:
    """Finish or undo what was interrupted at this model; a call or two where nothing was. To be called before champion and challenger are
    looked up.

    Raises:
        RegistryError: the promotion is not interrupted but under way; no permission or no answer.
    """
    if not intents(registry.model(name).tags):
        return ()
    with alone(registry, name, by) as hold:
        return _recover_all(registry, name, hold)


# --- a move ------------------------------------------------------------------------------------------------------------------------


def _carry_out(registry: Registry, name: str, intent: Intent, hold: Hold, recovered: tuple[Recovery, ...]) -> Move:
    hold.check()
    registry.set_tag(name, intent.tag, intent.as_json())
    try:
        _set_previous(registry, name, intent.previous_after)
        hold.check()
        registry.set_alias(name, CHAMPION, intent.record.version)
        _finish(registry, name, intent)
    except HoldLost:
        raise
    except RegistryError as error:
        # The registry is there again or it is not: by what it says now the move is finished, or undone, or left to the next run.
        if _settled(registry, name, intent, hold) != "finished":
            raise
        _logger.warning("version %d of %s is champion, at the second attempt: %s", intent.record.version, name, error)
    except BaseException:
        _settled(registry, name, intent, hold)
        raise
    return Move(name, intent.record.version, intent.previous_after, intent.record, recovered)


def _settled(registry: Registry, name: str, intent: Intent, hold: Hold) -> str:
    """What could be made of a move that failed half-way, now; empty: nothing."""
    try:
        hold.check()
        return _settle(registry, name, intent).outcome
    except RegistryError as error:
        _logger.warning("the %s is interrupted: run it again, and it is finished or undone first (%s)", intent, error)
        return ""


def _recover_all(registry: Registry, name: str, hold: Hold) -> tuple[Recovery, ...]:
    """Whoever holds the lock knows that nobody is at work on these."""
    found = intents(registry.model(name).tags)
    if found:
        hold.check()
    recovered = tuple(_settle(registry, name, intent) for intent in found)
    registry.drop_orphans(name, INTENT_PREFIX)
    for each in recovered:
        _logger.warning("%s: %s", name, each)
    return recovered


def _settle(registry: Registry, name: str, intent: Intent) -> Recovery:
    what = next_of(intent, _number(registry, name, CHAMPION))
    if what == "finish":
        _set_previous(registry, name, intent.previous_after)
        _finish(registry, name, intent)
        return Recovery("finished", intent)
    if what == "undo":
        _set_previous(registry, name, intent.previous_before)
    registry.delete_tag(name, intent.tag)
    return Recovery("undone" if what == "undo" else "abandoned", intent)


def _set_previous(registry: Registry, name: str, version: int | None) -> None:
    if version is None:
        registry.delete_alias(name, PREVIOUS_CHAMPION)
    else:
        registry.set_alias(name, PREVIOUS_CHAMPION, version)


def _finish(registry: Registry, name: str, intent: Intent) -> None:
    """All that follows when the champion has moved. A challenger registered between the look and the call loses the alias with it; to
    register it again gives it back."""
    record = intent.record
    if registry.model(name).aliases.get(CHALLENGER) == record.version:
        registry.delete_alias(name, CHALLENGER)
    if intent.stages:
        registry.set_stage(name, record.version, "Production", archive_others=True)
        if record.champion_before is not None:  # which Production may never have been
            registry.set_stage(name, record.champion_before, "Archived")
    registry.set_tag(name, record.tag, record.as_json(), version=record.version)
    registry.set_tag(name, record.tag, record.as_json())
    _keep_newest_records(registry, name)
    registry.delete_tag(name, intent.tag)


def _keep_newest_records(registry: Registry, name: str) -> None:
    most = registry.rules.max_audit_records
    if most is not None:
        for record in audit_records(registry.model(name).tags)[:-most]:
            registry.delete_tag(name, record.tag)


def _record(
    registry: Registry,
    name: str,
    action: Action,
    version: int,
    champion: int | None,
    *,
    by: str,
    reason: str,
    decision: Mapping[str, Any],
) -> AuditRecord:
    from toolkit.engines.processes import this_process

    earlier = audit_records(registry.model(name).tags)
    return AuditRecord(
        number=earlier[-1].number + 1 if earlier else 1,
        action=action,
        version=version,
        champion_before=champion,
        at=utc(time.time()),
        by=by,
        host=this_process().host,
        reason=without_secrets(reason),
        decision=without_secrets_within(decision),
    )


def _is_what_rollback_wants(recovery: Recovery) -> bool:
    action = recovery.intent.record.action
    return (action, recovery.outcome) in (("promote", "undone"), ("rollback", "finished"))


def _number(registry: Registry, name: str, alias: str) -> int | None:
    version = registry.by_alias(name, alias)
    return None if version is None else version.version


def _named(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
