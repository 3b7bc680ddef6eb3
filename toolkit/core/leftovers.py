"""What the toolkit has left behind and nobody needs any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["studies", "trainings", "spool", "caches", "runs", "artifacts", "versions"]

OLD_S = 86_400.0
"""What changed within the last day may still be wanted, or be at work where nobody can see it from here."""

PROCESS_TAG = "toolkit.process"
"""Of a run: the process that writes it, as JSON of `core.promotion.ProcessId`."""


@dataclass(frozen=True)
class Leftover:
    """One thing that could go.

    Attributes:
        name: of the study, folder, file, run or version. what: why it is here, for a person.
        size_bytes: on this machine's disk; None: it is not there, or the registry does not say.
        age_s: since it changed last.
        kept_because: empty: it may go.
        remove: does it.
    """

    kind: Kind
    name: str
    what: str
    size_bytes: int | None
    age_s: float
    kept_because: str = ""
    remove: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)


def too_young(age_s: float) -> str:
    """Why something that changed so long ago is kept; empty: it need not be."""
    return "" if age_s > OLD_S else "changed within the last day"
