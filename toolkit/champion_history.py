"""Who was champion, by the audit records, and so where a rollback may go. What somebody does to the aliases by hand leaves no record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.core.errors import RegistryError
from toolkit.core.promotion import AUDIT_PREFIX, audit_records, former_champions

if TYPE_CHECKING:
    from toolkit.engines.mlflow_registry import Registry


def rollback_target(registry: Registry, name: str, champion: int | None, previous: int | None, to: int | None) -> int:
    """The version that a rollback makes champion: `to`, else `previous`.

    Raises:
        RegistryError: there is none, it never was champion, or its model is gone.
    """
    if to is None:
        if champion is None:
            former = _former(registry, name, None)
            step = f"put one back: toolkit rollback {name} {former}" if former else f"make one: toolkit promote {name}"
            raise RegistryError(f"rollback of {name}: a champion", got="none", next_step=step)
        if previous is None or previous == champion:
            raise RegistryError(
                f"rollback of {name}: a previous champion",
                got="none",
                next_step=f"name a version that was champion before: {_former(registry, name, champion) or 'there is none'}",
            )
        target = registry.version(name, previous)
    else:
        target = registry.version(name, to)
        own = {key: value for key, value in target.tags.items() if key.startswith(AUDIT_PREFIX)}
        if to != previous and to not in former_champions(audit_records(registry.model(name).tags, own)):
            raise RegistryError(
                f"rollback --to: a version of {name} that was champion before",
                got=to,
                next_step=f"{_former(registry, name, champion) or 'there is none'}; a new one goes through toolkit promote",
            )
    registry.check_artifacts(target)
    return target.version


def lost_champion(registry: Registry, name: str) -> int | None:
    """For a model without the alias `champion`: the version that has lost it, deleted with every other that was champion. None: it never
    had a champion.

    Raises:
        RegistryError: there is one to put back. A challenger that is judged alone would get by what compares it.
    """
    versions = registry.versions(name)
    records = audit_records(registry.model(name).tags, *(version.tags for version in versions))
    if not records:
        return None
    last, there = records[-1].version, {version.version for version in versions}
    newest_first = (version for record in reversed(records) for version in (record.version, record.champion_before))
    back = next((version for version in newest_first if version in there), None)
    if back is None:
        return last
    raise RegistryError(
        f"champion of {name}: version {last}, as the last promotion or rollback left it",
        got="no champion: its alias was removed by hand" if back == last else "no champion: the version was deleted by hand",
        next_step=f"toolkit rollback {name} --to {back}, then promote again",
    )


def _former(registry: Registry, name: str, champion: int | None) -> str:
    there = {version.version for version in registry.versions(name)}
    former = sorted((former_champions(audit_records(registry.model(name).tags)) & there) - {champion})
    return f"--to {' or '.join(map(str, former))}" if former else ""
