"""Score a table with a registered model, on Spark: every row once, whatever is killed whenever.

A run resolves its model once, takes the output's lease, finishes what an earlier run has left, and scores what is new. Two engines do the
work: `spark`, whose rows go through the model as a function of Spark, and `files`, whose tasks read, predict and write Parquet themselves.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from toolkit.core.errors import Interrupted, ScoringError
from toolkit.core.progress import SearchProgress
from toolkit.core.scoring import Mode, RowRules
from toolkit.core.scoring_result import ScoreResult
from toolkit.score_asked import Models, ask, choose_engine
from toolkit.score_metrics import Metrics
from toolkit.settings import Settings

MAX_BATCH_GIB = 10.0


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
    sessions: ExitStack | None = None,
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
        sessions: ends the Spark session that is started here, which the next run finds; default: it ends with the run.

    Raises:
        ScoringError, DataError: one line each for what stands in the way; nothing of the batch at hand is written then.
        RegistryError: no such model, version or alias. ClusterError: Spark or Java. TrackingError: MLflow.
        Interrupted: Ctrl-C or SIGTERM.
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
        from toolkit.engines.spark_session import active_session
        from toolkit.score_session import open_session

        if sessions is not None and active_session() is not None:
            spark_master, spark_conf = None, {}  # the session has them from its start
        session_stack = sessions or stack.enter_context(ExitStack())
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
        try:
            told.result = run.execute(began)
        except KeyboardInterrupt:
            done = f"{len(run.batches)} batches of this run are written" if run.batches else "no batch of this run is written whole"
            raise Interrupted(f"interrupted: {done}; run the same command again: it goes on where it was") from None
        return told.result
