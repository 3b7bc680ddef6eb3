"""`toolkit score`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows
from toolkit.cli.spark import SparkConf, SparkMaster, conf_of

if TYPE_CHECKING:
    from toolkit.core.errors import UserError
    from toolkit.core.scoring_result import ScoreResult


class ModeName(StrEnum):
    INCREMENTAL = "incremental"
    WINDOW = "window"
    FULL = "full"


class EngineName(StrEnum):
    AUTO = "auto"
    SPARK = "spark"
    FILES = "files"


class DuplicatesName(StrEnum):
    KEEP = "keep"
    QUARANTINE = "quarantine"
    REFUSE = "refuse"


class MulticlassName(StrEnum):
    ARRAY = "array"
    ARGMAX = "argmax"


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered name (its @champion), NAME@ALIAS or NAME/VERSION.")],
    input: Annotated[str, typer.Option(metavar="TABLE", help="Delta, Parquet or CSV path, catalog.schema.table, or jdbc:URL#TABLE.")],
    output: Annotated[str, typer.Option(metavar="TABLE", help="Delta path (a new one is Delta), parquet:PATH or catalog.schema.table.")],
    mode: Annotated[
        ModeName,
        typer.Option(metavar="incremental|window|full", help="What is new; a span of time again; or all anew, replacing the output."),
    ] = ModeName.INCREMENTAL,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="T", help="Begin of the window: 2026-11-01 or 2026-11-01T06:00, UTC.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="T", help="Its end, not in it.")] = None,
    time_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that --from and --to are about.")] = None,
    engine: Annotated[
        EngineName,
        typer.Option(metavar="auto|spark|files", help="spark: any table. files: path tables, faster. auto: files where it can."),
    ] = EngineName.AUTO,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Score only rows that fulfil it; engine spark.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Input column in the output, beside the key; repeatable. Default: all.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="COLUMN", help="Must not be null; default: the model's, if it is there.")] = None,
    duplicates: Annotated[
        DuplicatesName,
        typer.Option(metavar="keep|quarantine|refuse", help="Rows whose key occurs more than once in a batch."),
    ] = DuplicatesName.KEEP,
    max_bad_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Stop before a batch with more bad rows than this (0 to 1) is written.")
    ] = 0.05,
    quarantine: Annotated[str | None, typer.Option(metavar="TABLE", help="For bad rows; default: OUTPUT_quarantine.")] = None,
    multiclass: Annotated[
        MulticlassName, typer.Option(metavar="array|argmax", help="All classes' probabilities, or that of the likeliest.")
    ] = MulticlassName.ARRAY,
    explain: Annotated[int, typer.Option(metavar="K", help="Add the K largest contributions (SHAP) to each prediction; XGBoost.")] = 0,
    state: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Plans, checkpoints and lease; default: _toolkit in the output's folder.")
    ] = None,
    skip_change_commits: Annotated[
        bool,
        typer.Option("--skip-change-commits", help="Leave out commits of a Delta input that change or delete rows, instead of refusing."),
    ] = False,
    max_batch_gib: Annotated[float, typer.Option(metavar="GIB", help="More new input than this is scored in several batches.")] = 10.0,
    every: Annotated[
        str | None,
        typer.Option(metavar="INTERVAL", help="Run now and every 30s, 15m, 1h or 1d, until stopped; with --json an object a run."),
    ] = None,
    metrics_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Figures of the last run as Prometheus text, for node_exporter.")
    ] = None,
    spark_master: SparkMaster = None,
    spark_conf: SparkConf = None,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow's; default: MLFLOW_TRACKING_URI, else MLflow's own.")
    ] = None,
    registry_uri: Annotated[str | None, typer.Option(metavar="URI", help="The model registry's; default: MLFLOW_REGISTRY_URI.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Score a table with a registered model, on Spark: each row once, whatever is killed whenever.

    Rows that cannot be scored go to the quarantine, with the reason. Run it again after whatever happened: it goes on where it was.
    """
    if (from_ is None) != (to is None):
        raise typer.BadParameter("--from and --to go together")
    with answer_stream() as answer:
        from toolkit.cli.progress import Progress
        from toolkit.core.scoring import RowRules
        from toolkit.score import score as run_score
        from toolkit.settings import Settings

        rules = RowRules(
            key=key,
            duplicates=duplicates.value,
            max_bad_share=max_bad_share,
            keep=tuple(keep) if keep else None,
            multiclass=multiclass.value,
            explain=explain,
        )

        def once(sessions: ExitStack | None = None) -> None:
            with Progress() as progress:
                result = run_score(
                    model,
                    input=input,
                    output=output,
                    mode=mode.value,
                    window=None if from_ is None or to is None else (from_, to),
                    time_column=time_column,
                    engine=engine.value,
                    where=where,
                    rules=rules,
                    quarantine=quarantine,
                    state=state,
                    skip_change_commits=skip_change_commits,
                    max_batch_gib=max_batch_gib,
                    metrics_file=metrics_file,
                    spark_master=spark_master,
                    spark_conf=conf_of(spark_conf),
                    registry_uri=registry_uri,
                    tracking_uri=tracking_uri,
                    settings=Settings.read(),
                    progress=progress,
                    sessions=sessions,
                )
            if as_json:
                write_json(answer, result.as_json())
            else:
                write_rows(answer, *summary(result))
            for notice in result.notices:
                sys.stderr.write(f"notice: {notice}\n")

        once() if every is None else _again_and_again(once, every)


def _again_and_again(once: Callable[[ExitStack], None], interval: str) -> None:
    """In one Spark session, as long as runs end well."""
    from toolkit.core import schedules

    interval_s, sessions = schedules.parse_every(interval), ExitStack()

    def failed(error: UserError, num_failures: int) -> None:
        sessions.close()
        again = "" if num_failures == 1 else f" ({num_failures} runs in a row)"
        sys.stderr.write(f"error{again}: {error}\n")

    with sessions:
        num_runs = schedules.every(lambda: once(sessions), interval_s, failed=failed)
    sys.stderr.write(f"stopped after {num_runs} runs\n")


def summary(result: ScoreResult) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows for a person."""
    rows = [
        ("scored", f"{result.num_scored_rows:,} rows in {len(result.batches)} batches, engine {result.engine}, mode {result.mode}"),
        ("quarantined", _bad(result)),
        ("read to", result.high_watermark or "nothing yet"),
        ("output", result.output),
    ]
    if result.num_quarantined_rows:
        rows.append(("quarantine", result.quarantine))
    if result.unseen:
        rows.append(("unseen categories", ", ".join(f"{name} {number:,}" for name, number in result.unseen.items())))
    rows.append(("time", f"{result.wall_s:.1f} s, {result.rows_per_s:,.0f} rows/s with Spark's start"))
    rows.append(("MLflow run", result.mlflow_run_id))
    return f"{result.model} version {result.version}", rows


def _bad(result: ScoreResult) -> str:
    if not result.num_quarantined_rows:
        return "none"
    reasons = ", ".join(f"{why} {number:,}" for why, number in sorted(result.reasons.items(), key=lambda each: -each[1])[:5])
    return f"{result.num_quarantined_rows:,} rows ({result.bad_share:.2%}): {reasons}"
