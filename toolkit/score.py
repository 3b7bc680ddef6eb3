"""Score a table with a registered model, on Spark: every row once, whatever is killed whenever.

A run resolves its model once, takes the output's lease, finishes what an earlier run has left, and scores what is new. Two engines do the
work: `spark`, whose rows go through the model as a function of Spark, and `files`, whose tasks read, predict and write Parquet themselves.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.core.errors import ScoringError
from toolkit.core.progress import SearchProgress
from toolkit.core.registry import ModelReference, ModelVersion, parse_model
from toolkit.core.scoring import STATE_FOLDER, Mode, RowRules, ScoringModel
from toolkit.core.scoring_result import ScoreResult
from toolkit.core.table_names import TableName, is_inside
from toolkit.score_metrics import Metrics
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.engines.mlflow_registry import Registry

MODES: tuple[Mode, ...] = ("incremental", "window", "full")
ENGINES = ("auto", "spark", "files")
MAX_BATCH_GIB = 10.0


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


def score(
    model: str,
    *,
    input: str | Path,
    output: str | Path,
    mode: Mode = "incremental",
    window: tuple[str, str] | None = None,
    time_column: str | None = None,
    engine: Literal["auto", "spark", "files"] = "auto",
    where: str | None = None,
    rules: RowRules | None = None,
    quarantine: str | Path | None = None,
    state: str | Path | None = None,
    skip_change_commits: bool = False,
    max_batch_gib: float = MAX_BATCH_GIB,
    metrics_file: Path | None = None,
    spark_master: str | None = None,
    spark_conf: Mapping[str, str] | None = None,
    registry_uri: str | None = None,
    tracking_uri: str | None = None,
    settings: Settings | None = None,
    progress: SearchProgress | None = None,
) -> ScoreResult:
    """Score what is new in a table (`incremental`), a span of time again (`window`), or all anew (`full`).

    Args:
        model: a registered name (its champion), NAME@ALIAS or NAME/VERSION; resolved once.
        input, output, quarantine: tables, see `core.table_names`; the quarantine is `OUTPUT_quarantine` where not named.
        window: from and to, ISO 8601, UTC where no offset is given, half-open.
        time_column: of the window.
        where: SQL; input rows that do not fulfil it are not there.
        rules: `key` None: the model's own, where the input has it.
        state: folder for lease, plans and checkpoints; default: `_toolkit` in the output's folder.
        skip_change_commits: commits of a Delta input that change or delete rows are left out, instead of refused.
        max_batch_gib: more input than this is scored in several batches.
        metrics_file: gets figures of this run as Prometheus text, of a failed one, too.

    Raises:
        ScoringError, DataError: one line each for what stands in the way; nothing of the batch at hand is written then.
        RegistryError: no such model, version or alias. ClusterError: Spark or Java. TrackingError: MLflow.
    """
    settings = settings or Settings.read()
    progress = progress or SearchProgress()
    began = time.monotonic()
    rules = rules or RowRules()
    asked = ask(
        model, input, output, mode, window, time_column, engine, where, rules, quarantine, state, skip_change_commits, max_batch_gib
    )
    with ExitStack() as stack:
        told = stack.enter_context(Metrics(metrics_file, asked, began))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toolkit-score-")))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        models = Models(registry_uri or settings.registry_uri, tracking_uri or settings.tracking_uri, folder)
        fetched = pool.submit(models.resolve, asked.model)  # MLflow's import beside the JVM's start
        executing, why_not_files = choose_engine(asked)
        progress.phase("starting Spark")
        from toolkit.score_session import open_session

        session_stack = stack.enter_context(ExitStack())
        session = open_session(session_stack, asked, executing, spark_master, spark_conf or {}, settings)
        progress.phase("resolving the model")
        chosen = fetched.result()
        told.model = chosen.name
        if executing == "files" and chosen.kind != "portable":
            why_not_files = f"{chosen} has no portable model"
            if asked.engine == "files":
                raise ScoringError("--engine files must fit the model", got=why_not_files, next_step="use --engine spark")
            executing = "spark"
            session_stack.close()  # for Delta, which the other engine needs of Spark, is asked for at its start
            session = open_session(session_stack, asked, executing, spark_master, spark_conf or {}, settings)
        from toolkit.score_run import ScoreRun

        notices = [f"engine spark, not files: {why_not_files}"] if why_not_files and asked.engine == "auto" else []
        run = ScoreRun(asked, session, executing, models, chosen, settings, tracking_uri, progress, notices)
        told.result = run.execute(began)
        return told.result


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
    if asked.mode == "window" and asked.engine != "files":
        return "spark", ""  # whatever scores what is new: a window is a condition in SQL
    if wanted == "spark":
        return "spark", ""
    reason = "--mode window is SQL" if asked.mode == "window" else "--where is SQL" if asked.where is not None else ""
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
