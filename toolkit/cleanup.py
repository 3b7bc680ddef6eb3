"""What is left over, and away with it: unfinished studies and trainings, spool files, caches, dead runs, orphan artifacts, old versions.

`cleanup()` is the Python API and what `toolkit cleanup` calls. It only looks, unless it is told to remove.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import UserError
from toolkit.core.leftovers import Kind, Leftover
from toolkit.models import age
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.champion_lock import Hold
    from toolkit.engines.mlflow_registry import Registry

KINDS: tuple[Kind, ...] = ("studies", "trainings", "spool", "caches", "runs", "artifacts", "versions")
IN_MLFLOW: tuple[Kind, ...] = ("runs", "artifacts", "versions")
KEPT_VERSIONS = 10

State = Literal["left over", "kept", "removed", "failed"]


@dataclass(frozen=True)
class Found:
    """A leftover and what became of it. `reason`: why it is kept, or could not be removed."""

    item: Leftover
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Cleanup:
    """What was found. `was_removal`: removing was asked for. The URIs are without credentials; empty where MLflow has nothing yet."""

    home: str
    tracking_uri: str
    registry_uri: str
    was_removal: bool
    found: tuple[Found, ...] = field(default=())

    def num_bytes(self, state: State) -> int:
        return sum(each.item.size_bytes or 0 for each in self.found if each.state == state)

    def count(self, state: State) -> int:
        return sum(each.state == state for each in self.found)

    @property
    def title(self) -> str:
        if self.was_removal:
            failed = f", {self.count('failed')} could not be removed" if self.count("failed") else ""
            return f"{self.count('removed')} removed, {size_text(self.num_bytes('removed'))}{failed}"
        if not self.count("left over"):
            return "nothing is left over"
        return f"{self.count('left over')} left over, {size_text(self.num_bytes('left over'))}; --yes removes them"

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Heads and rows for a person."""
        rows = [
            (
                each.item.kind,
                each.item.name,
                "" if each.item.size_bytes is None else size_text(each.item.size_bytes),
                age(each.item.age_s),
                each.state,
                f"{each.item.what}; {each.reason}" if each.reason else each.item.what,
            )
            for each in self.found
        ]
        return ("kind", "name", "size", "age", "state", "what"), list(rows)

    def _repr_html_(self) -> str:
        heads, rows = self.table()
        lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
        lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        return f"<p>{escape(self.title)}</p><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    def as_json(self) -> dict[str, Any]:
        return {
            "home": self.home,
            "tracking_uri": self.tracking_uri,
            "registry_uri": self.registry_uri,
            "removing": self.was_removal,
            "num_left_over": self.count("left over"),
            "left_over_bytes": self.num_bytes("left over"),
            "num_removed": self.count("removed"),
            "removed_bytes": self.num_bytes("removed"),
            "num_failed": self.count("failed"),
            "items": [
                {
                    "kind": each.item.kind,
                    "name": each.item.name,
                    "what": each.item.what,
                    "size_bytes": each.item.size_bytes,
                    "age_s": each.item.age_s,
                    "state": each.state.replace(" ", "_"),
                    "reason": each.reason,
                }
                for each in self.found
            ],
        }


def cleanup(
    *,
    remove: bool = False,
    keep: int = KEPT_VERSIONS,
    only: Sequence[Kind] = (),
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    settings: Settings | None = None,
) -> Cleanup:
    """List what is left over; with `remove` also remove what may go.

    Studies, trainings and spool files that changed within the last day are kept, and so is what a process is at, what has an alias, and
    runs and artifacts of registered versions. All is looked at before anything is removed.

    Args:
        keep: of each model's versions without an alias the newest `keep` stay.
        only: these kinds; none: all.

    Raises:
        UserError: MLflow or the registry does not answer. Nothing is removed then.
    """
    settings = settings or Settings.read()
    kinds = tuple(only) or KINDS
    from toolkit.engines import home_leftovers

    items: list[Leftover] = []
    if "studies" in kinds:
        items += home_leftovers.unfinished_studies(settings.home, is_mirrored=settings.state_uri is not None)
    if "trainings" in kinds:
        items += home_leftovers.broken_trainings(settings.home)
    if "spool" in kinds:
        items += home_leftovers.orphan_spools(settings.home)
    if "caches" in kinds:
        items += home_leftovers.caches(settings.home)
    uris = ("", "")
    if set(kinds) & set(IN_MLFLOW):
        in_mlflow, uris = _in_mlflow(kinds, keep, tracking_uri or settings.tracking_uri, registry_uri or settings.registry_uri, settings)
        items += in_mlflow
    found = tuple(_dealt_with(item, remove) for item in items)
    return Cleanup(str(settings.home), *uris, remove, found)


def _in_mlflow(
    kinds: Sequence[Kind], keep: int, tracking_uri: str | None, registry_uri: str | None, settings: Settings
) -> tuple[list[Leftover], tuple[str, str]]:
    from toolkit.core.naming import default_experiment_name
    from toolkit.engines.home_leftovers import is_running
    from toolkit.engines.mlflow_leftovers import MlflowLeftovers

    if not MlflowLeftovers.exists(tracking_uri):
        return [], ("", "")
    folder = None
    if settings.on_databricks:
        folder = default_experiment_name("x", branch=None, on_databricks=True, user=settings.user).rpartition("/")[0]
    mlflow = MlflowLeftovers(tracking_uri, registry_uri, folder)
    items: list[Leftover] = []
    if "runs" in kinds:
        items += mlflow.runs(lambda study: is_running(settings.home, study))
    if "artifacts" in kinds:
        items += mlflow.artifacts()
    if "versions" in kinds:

        def alone(registry: Registry, name: str) -> AbstractContextManager[Hold]:
            from toolkit.champion_lock import alone as hold

            return hold(registry, name, settings.user)

        items += mlflow.versions(keep, alone)
    return items, (mlflow.display_uri, mlflow.registry_uri)


def _dealt_with(item: Leftover, remove: bool) -> Found:
    if item.kept_because:
        return Found(item, "kept", item.kept_because)
    if not remove:
        return Found(item, "left over")
    try:
        item.remove()
    except UserError as error:
        return Found(item, "failed", str(error))
    except OSError as error:
        return Found(item, "failed", f"{error.strerror or error}")
    return Found(item, "removed")


def size_text(num_bytes: int) -> str:
    """For people: `512 B`, `1.5 KiB`, `2.0 GiB`."""
    size, units = float(num_bytes), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"
