"""The right to move a model's champion, held by one process at a time. Why that holds is argued in `core.promotion`."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toolkit.core.errors import RegistryError
from toolkit.core.promotion import HOLD_S, Contender, contenders, first_before, is_stale, next_number, verdict

if TYPE_CHECKING:
    from toolkit.engines.mlflow_registry import Registry

CHOOSING_TIMEOUT_S = 20.0
POLL_S = 0.05

_logger = logging.getLogger("toolkit")


class HoldLost(RegistryError):
    """Others may be at it already: nothing more is written, not even to tidy up."""


@dataclass(frozen=True)
class Hold:
    """The right to move the champion of one model, for HOLD_S."""

    registry: Registry
    name: str
    me: Contender

    def check(self) -> None:
        """Raises HoldLost: it is over, or was taken away."""
        held_s = time.time() - self.me.since_unix_s
        if held_s > HOLD_S or self.me.tag not in self.registry.model(self.name).tags:
            raise HoldLost(
                f"a promotion of {self.name}: done within {HOLD_S:g} s",
                got=f"{held_s:.0f} s" if held_s > HOLD_S else "cleared away by another process",
                next_step="run it again: what was begun is finished or undone first",
            )


@contextmanager
def alone(registry: Registry, name: str, by: str) -> Iterator[Hold]:
    """Raises RegistryError: somebody else moves this champion now."""
    from toolkit.engines.processes import this_process

    me = Contender(uuid.uuid4().hex, by, time.time(), this_process())
    try:
        registry.set_tag(name, me.tag, me.as_json())
        me = replace(me, number=next_number(_living(registry, name)), since_unix_s=time.time())
        registry.set_tag(name, me.tag, me.as_json())
        _wait_for_turn(registry, name, me)
        yield Hold(registry, name, me)
    except BaseException:
        _let_go(registry, name, me, logging.DEBUG)
        raise
    _let_go(registry, name, me, logging.WARNING)


def _let_go(registry: Registry, name: str, me: Contender, level: int) -> None:
    try:
        registry.delete_tag(name, me.tag)
    except RegistryError as error:
        _logger.log(level, "%s stays locked until this process has ended: %s", name, error)


def _wait_for_turn(registry: Registry, name: str, me: Contender) -> None:
    until = time.monotonic() + CHOOSING_TIMEOUT_S
    while True:
        others = _living(registry, name)
        outcome = verdict(me, others)
        if outcome == "won":
            return
        if outcome == "lost" or time.monotonic() > until:
            holder = first_before(me, others) or next((other for other in others if other.id != me.id), None)
            raise RegistryError(
                f"one promotion or rollback of {name} at a time",
                got=f"another one, by {holder}" if holder else "another one",
                next_step="run it again when that has ended",
            )
        time.sleep(POLL_S)


def _living(registry: Registry, name: str) -> list[Contender]:
    """All contenders; those of dead processes are cleared away."""
    from toolkit.engines.processes import is_alive, machine

    here, found = machine(), []
    for each in contenders(registry.model(name).tags):
        if is_stale(each, time.time(), here, each.process.machine == here and is_alive(each.process)):
            registry.delete_tag(name, each.tag)
        else:
            found.append(each)
    return found
