"""What a scoring knows of its past: which batches it has planned, with which model, and from which part of the input.

In a folder beside the output, or the one that `--state` names:

    scoring.json                 of which input, by which engine, the present generation
    plans/00000000N.json         batch N: written before anything of it is; its replay reads the same rows with the same model
    finished/00000000N.json      all of batch N is written
    checkpoints/GENERATION/      Spark's own (engine `spark`)
    manifests/                   of a Parquet output (`parquet_batches`)
    leases/                      (`lease`)

A generation is one reading of the input from its beginning: `--mode full` starts another. Every file appears whole, by a rename.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import BatchCounts
from toolkit.engines.write_once import sync

FORMAT = 1
Engine = Literal["spark", "files"]


@dataclass(frozen=True)
class Generation:
    """`kind`: `incremental` goes on for ever; `full` is one, whose first batch replaces the whole output; `windows` has no progress: an
    output that only windows were written to."""

    id: str
    kind: Literal["incremental", "full", "windows"]


@dataclass(frozen=True)
class Scoring:
    """What all runs on one output have in common. `query_id`: of Spark's checkpoint, once it has one."""

    input: str
    output: str
    engine: Engine
    generation: Generation
    query_id: str | None = None


@dataclass(frozen=True)
class Plan:
    """One batch, before it is executed.

    Attributes:
        batch_id: consecutive over all generations and modes, from 0.
        source: what the batch reads, in the engine's own terms.
        model, version: pinned: a replay uses them wherever the alias points by then.
        overwrite: the batch replaces all that is in the output.
        window: it replaces the rows of a half-open time span: column, from, to (ISO 8601, UTC).
        extra: the engine's own.
    """

    batch_id: int
    generation: str
    source: Mapping[str, Any]
    model: str
    version: int
    scored_at_utc: datetime.datetime
    overwrite: bool = False
    window: tuple[str, str, str] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class ScoreState:
    """The folder. Nothing is made before something is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> Scoring | None:
        """None where there was never a scoring.

        Raises:
            ScoringError: it is damaged, or of a newer toolkit.
        """
        content = self._read(self.folder / "scoring.json")
        if content is None:
            return None
        return Scoring(**{**content, "generation": Generation(**content["generation"])})

    def write(self, scoring: Scoring) -> None:
        write_json(self.folder / "scoring.json", {"format": FORMAT, **dataclasses.asdict(scoring)})

    def last_plan(self) -> Plan | None:
        """The newest; earlier ones are done with."""
        numbers = self.plan_numbers()
        return self.plan(numbers[-1]) if numbers else None

    def plan_numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in (self.folder / "plans").glob("*.json") if path.stem.isdecimal())

    def plan(self, batch_id: int) -> Plan:
        content = self._read(self._plan_path(batch_id))
        if content is None:
            raise ScoringError("the plan of every batch must be there", got=f"no {self._plan_path(batch_id)}", next_step=RESTORE)
        window = None if content["window"] is None else tuple(content["window"])
        at = datetime.datetime.fromisoformat(content["scored_at_utc"])
        return Plan(**{**content, "window": window, "scored_at_utc": at})

    def write_plan(self, plan: Plan) -> None:
        path = self._plan_path(plan.batch_id)
        assert not path.exists(), "a plan stands"
        write_json(path, {"format": FORMAT, **dataclasses.asdict(plan), "scored_at_utc": plan.scored_at_utc.isoformat()})

    def finish(self, plan: Plan, counts: BatchCounts) -> None:
        """All of the batch is written."""
        write_json(self.folder / "finished" / f"{plan.batch_id:09d}.json", {"format": FORMAT, **dataclasses.asdict(counts)})

    def is_finished(self, plan: Plan) -> bool:
        return (self.folder / "finished" / f"{plan.batch_id:09d}.json").exists()

    def unfinished_window(self, scoring: Scoring) -> Plan | None:
        """The last plan, where its window may be written in part."""
        last = self.last_plan()
        if last is None or last.window is None or last.generation != scoring.generation.id or self.is_finished(last):
            return None
        return last

    def wrote_rows(self, batch_id: int) -> bool:
        """Whether that batch is finished and had rows that were scored."""
        content = self._read(self.folder / "finished" / f"{batch_id:09d}.json")
        return content is not None and content["num_scored_rows"] > 0

    def plans_of(self, generation: Generation) -> list[Plan]:
        """By number."""
        plans = (self.plan(number) for number in self.plan_numbers())
        return [plan for plan in plans if plan.generation == generation.id]

    def take_back(self, scoring: Scoring, before: Scoring | None) -> None:
        """A generation of which nothing was written was never begun: the one `before` it goes on."""
        for plan in self.plans_of(scoring.generation):
            for path in (self.folder / "plans").glob(f"{plan.batch_id:09d}.*"):
                path.unlink()
        shutil.rmtree(self.checkpoint(scoring.generation), ignore_errors=True)
        if before is not None:
            self.write(before)
        else:
            (self.folder / "scoring.json").unlink(missing_ok=True)

    def checkpoint(self, generation: Generation) -> Path:
        return self.folder / "checkpoints" / generation.id

    def _plan_path(self, batch_id: int) -> Path:
        return self.folder / "plans" / f"{batch_id:09d}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.pop("format")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError) as error:
            raise ScoringError("a scoring's state must be readable", got=f"{path}: {error}", next_step=RESTORE) from error
        if found != FORMAT:
            raise ScoringError(
                f"a scoring's state must have the format {FORMAT}", got=f"{found!r} in {path}", next_step="use a toolkit that knows it"
            )
        assert isinstance(content, dict)
        return content


RESTORE = "restore it from a backup, or score all anew with --mode full"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    sync(path.parent)
