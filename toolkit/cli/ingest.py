"""`toolkit ingest`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows
from toolkit.cli.spark import SparkConf, conf_of
from toolkit.cli.sweep import check_settings

SPAN = re.compile(r"(\d*):(\d*)", re.ASCII)


def _check_span(text: str | None) -> str | None:
    if text is not None and (SPAN.fullmatch(text) is None or text == ":"):
        raise typer.BadParameter("must be FROM:TO, row numbers from 0, for example :4000 or 4000:5000")
    return text


def ingest(
    experiment: Annotated[str, typer.Argument(metavar="EXP", help="wine-quality, path/to/file.py[:function] or package.module:function.")],
    output: Annotated[
        str, typer.Option(metavar="TABLE", help="Delta folder, parquet:FOLDER, delta:URI or catalog.schema.table; made where missing.")
    ],
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder to read the data from.")] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO", callback=_check_span, help="Only these rows, by number from 0, without TO: :4000, 4000:5000."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The table becomes this data, whatever it was.")] = False,
    spark_master: Annotated[
        str | None, typer.Option(metavar="URL", help="For a table that only Spark can reach; default: the active session, or local[*].")
    ] = None,
    spark_conf: SparkConf = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", callback=check_settings, help="Override any field; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Write the experiment's data as a table, or add to it what is new.

    Run again it changes nothing: rows are known by the experiment's key, and only those are added whose key is not there yet.

    A row that has changed is refused, for a table that is scored as it grows must only grow; --replace writes all anew.
    """
    with answer_stream() as answer:
        from toolkit.cli.progress import Progress
        from toolkit.core.recipes import load_experiment, override
        from toolkit.ingest import ingest as run_ingest
        from toolkit.settings import Settings

        chosen = override(load_experiment(experiment), set_ or [])
        span = None if rows is None else tuple(int(end) if end else None for end in rows.split(":"))
        with Progress() as progress:
            result = run_ingest(
                chosen,
                output=output,
                data=data,
                rows=None if span is None else (span[0], span[1]),
                replace=replace,
                spark_master=spark_master,
                spark_conf=conf_of(spark_conf),
                settings=Settings.read(),
                progress=progress,
            )
        if as_json:
            write_json(answer, result.as_json())
        else:
            write_rows(answer, f"{result.experiment}: {'ingested' if result.changed else 'unchanged'}", result.rows())
        if result.kind == "fallback_sample":
            sys.stderr.write("warning: the real data could not be reached: these rows are a generated sample\n")
