"""What a run of `score` is to do, checked as far as that goes before anything is opened, and the model that it names. Part of `score`."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.core.errors import ScoringError
from toolkit.core.registry import ModelReference, ModelVersion, parse_model
from toolkit.core.scoring import STATE_FOLDER, Mode, RowRules, ScoringModel
from toolkit.core.table_names import TableName, is_inside

if TYPE_CHECKING:
    from toolkit.engines.mlflow_registry import Registry

MODES: tuple[Mode, ...] = ("incremental", "window", "full")
ENGINES = ("auto", "spark", "files")


@dataclass(frozen=True)
class Asked:
    """What a run is to do, checked as far as that goes without opening anything.

    Attributes:
        window: column, from and to (ISO 8601 in UTC); the column empty where the model's own is meant.
        state: the folder of the scoring's state.
    """

    model: ModelReference
    input: TableName
    output: TableName
    quarantine: TableName
    audit: TableName
    mode: Mode
    window: tuple[str, str, str] | None
    engine: Literal["auto", "spark", "files"]
    where: str | None
    rules: RowRules
    state: Path
    skip_change_commits: bool
    max_batch_gib: float


def ask(
    model: str,
    input: str | Path,
    output: str | Path,
    mode: Mode,
    window: tuple[str, str] | None,
    time_column: str | None,
    engine: Literal["auto", "spark", "files"],
    where: str | None,
    rules: RowRules,
    quarantine: str | Path | None,
    state: str | Path | None,
    skip_change_commits: bool,
    max_batch_gib: float,
) -> Asked:
    """Check what was asked for.

    Raises:
        ScoringError, RegistryError: one line for the first thing that does not go together.
    """
    reference = parse_model(model)
    if mode not in MODES or engine not in ENGINES:
        raise ScoringError(f"the mode must be one of {', '.join(MODES)}, the engine of {', '.join(ENGINES)}", got=f"{mode!r}, {engine!r}")
    if not 0 <= rules.max_bad_share <= 1:
        raise ScoringError("--max-bad-share must be between 0 and 1", got=f"{rules.max_bad_share:g}")
    if not max_batch_gib > 0:
        raise ScoringError("--max-batch-gib must be above 0", got=f"{max_batch_gib:g}")
    if rules.explain < 0:
        raise ScoringError("--explain must be a number of features", got=rules.explain)
    source = TableName.parse(input, role="input")
    target = TableName.parse(output, role="output")
    bad = TableName.parse(quarantine, role="output") if quarantine else _beside(target, "quarantine")
    for inner, name in ((target, "output"), (bad, "quarantine")):
        if is_inside(inner, source) or is_inside(source, inner):
            raise ScoringError(f"{name} and input must lie apart", got=f"{inner.shown} and {source.shown}", next_step="name another folder")
    if is_inside(bad, target) or is_inside(target, bad):
        raise ScoringError("quarantine and output must lie apart", got=f"{bad.shown} and {target.shown}", next_step="name another folder")
    if bad.kind != target.kind:
        raise ScoringError("quarantine and output must be of one kind", got=f"{bad.kind} and {target.kind}", next_step="name another one")
    if source.kind == "jdbc" and mode == "incremental":
        raise ScoringError(
            "a JDBC table does not tell what is new in it", got="--mode incremental", next_step="choose --mode window or --mode full"
        )
    if source.kind == "csv" and source.path is None:
        raise ScoringError("a CSV input must be on this machine or a Volume", got=source.shown, next_step="write it as Parquet or Delta")
    if target.kind == "parquet" and target.path is None:
        raise ScoringError(
            "a Parquet output must be on this machine or a Volume", got=target.shown, next_step="write Delta there: delta:URI"
        )
    if state is None and target.path is None:
        raise ScoringError(
            "--state must name a folder on a disk that lasts, for an output that is no folder here", got=target.shown,
            next_step="for example --state /Volumes/CATALOG/SCHEMA/VOLUME/scores",
        )  # fmt: skip
    home = Path(state).expanduser().absolute() if state is not None else (target.path or Path()) / STATE_FOLDER
    if where is not None and engine == "files":
        raise ScoringError("--where is for the engine spark", got="--engine files", next_step="leave one of them out")
    audit = _beside(target, "audit")
    span = _span(window, time_column, mode)
    return Asked(
        reference, source, target, bad, audit, mode, span, engine, where, rules, home, skip_change_commits, max_batch_gib
    )  # fmt: skip


def _beside(table: TableName, ending: str) -> TableName:
    if table.kind == "catalog":
        return TableName.parse(f"{table.shown}_{ending}", role="output")
    kind = table.kind if ending != "audit" else "delta" if table.path is None else "parquet"  # see `score_audit`
    place = str(table.path) if table.path is not None else table.location.rstrip("/")
    return TableName.parse(f"{kind}:{place}_{ending}", role="output")


def _span(window: tuple[str, str] | None, time_column: str | None, mode: Mode) -> tuple[str, str, str] | None:
    if mode != "window":
        if window is not None or time_column is not None:
            raise ScoringError("--from, --to and --time-column are for --mode window", got=f"--mode {mode}", next_step="leave them out")
        return None
    if window is None or not time_column:
        raise ScoringError("--mode window needs --from, --to and --time-column", got="not all of them", next_step="name them")
    begin, end = _moment(window[0], "--from"), _moment(window[1], "--to")
    if begin >= end:
        raise ScoringError("a window must begin before it ends", got=f"{window[0]} to {window[1]}", next_step="exchange them")
    if begin > datetime.datetime.now(datetime.UTC):
        raise ScoringError("a window must not lie in the future", got=f"{window[0]} (UTC)", next_step="correct --from")
    return time_column, begin.isoformat(), end.isoformat()


def _moment(text: str, flag: str) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ScoringError(f"{flag} must be a time", got=repr(text), next_step="for example 2026-11-01 or 2026-11-01T06:00") from error
    return found.replace(tzinfo=datetime.UTC) if found.tzinfo is None else found.astimezone(datetime.UTC)


def choose_engine(asked: Asked) -> tuple[Literal["spark", "files"], str]:
    """The one that the output has, else `files` where that can; and why it cannot.

    Raises:
        ScoringError: another one was asked for.
    """
    from toolkit.engines import files_tables
    from toolkit.engines.score_state import ScoreState

    found = ScoreState(asked.state).read() if asked.mode != "full" else None
    if found is not None and asked.engine not in ("auto", found.engine):
        raise ScoringError(
            "an output keeps its engine, for each knows its own progress",
            got=f"--engine {asked.engine}, after {found.engine}",
            next_step=f"leave it at {found.engine}, or change it with --mode full",
        )
    wanted = asked.engine if found is None else found.engine
    is_broken_off = found is not None and ScoreState(asked.state).unfinished_window(found) is not None
    if is_broken_off or (asked.mode == "window" and asked.engine != "files"):
        return "spark", ""  # whatever scores what is new: a window is a condition in SQL
    if wanted == "spark":
        return "spark", ""
    if asked.mode == "window":
        raise ScoringError("a window is scored by the engine spark", got="--engine files", next_step="leave --engine out")
    reason = "--where is SQL" if asked.where is not None else ""
    reason = reason or files_tables.eligible(asked.input, asked.output)
    if reason and wanted == "files":
        raise ScoringError("engine files must fit the tables", got=reason, next_step="score all anew with --engine spark --mode full")
    return ("spark" if reason else "files"), reason


class Models:
    """Versions of a registered model, each fetched once."""

    def __init__(self, registry_uri: str | None, tracking_uri: str | None, folder: Path) -> None:
        self._uris = (registry_uri, tracking_uri)
        self._folder = folder
        self._registry: Registry | None = None
        self._fetched: dict[tuple[str, int], ScoringModel] = {}

    def resolve(self, reference: ModelReference) -> ScoringModel:
        """Raises RegistryError: no such model, version or alias."""
        return self._fetch(self._open().find(reference))

    def version(self, name: str, number: int) -> ScoringModel:
        """A pinned one."""
        found = self._fetched.get((name, number))
        return found or self._fetch(self._open().version(name, number))

    def _open(self) -> Registry:
        from toolkit.engines.mlflow_registry import Registry

        self._registry = self._registry or Registry.open(*self._uris)
        return self._registry

    def _fetch(self, version: ModelVersion) -> ScoringModel:
        from toolkit.engines import mlflow_scoring_model

        model = mlflow_scoring_model.fetch(self._open(), version, self._folder / f"{version.name}-{version.version}")
        self._fetched[version.name, version.version] = model
        return model
