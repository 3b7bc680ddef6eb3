"""`toolkit explore`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows
from toolkit.cli.spark import SparkConf, conf_of
from toolkit.cli.sweep import check_settings


def explore(
    experiment: Annotated[str, typer.Argument(metavar="EXP", help="wine-quality, path/to/file.py[:function] or package.module:function.")],
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder to read the data from.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the HTML report goes; default: in TOOLKIT_HOME.")] = None,
    spark_master: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Count on this Spark master, whatever the size; a large table does so anyway, on local[*]."),
    ] = None,
    spark_conf: SparkConf = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", callback=check_settings, help="Override any field; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Look at the table before training: columns, strongest predictors, duplicates, and what could leak the label.

    Small tables are read, and all numbers are exact. Large ones stay where they are: Spark counts, and the report says what is approximate.
    """
    with answer_stream() as answer:
        from toolkit.cli.progress import Progress
        from toolkit.core.recipes import load_experiment, override
        from toolkit.explore import explore as run_explore
        from toolkit.settings import Settings

        chosen = override(load_experiment(experiment), set_ or [])
        with Progress() as progress:
            result = run_explore(
                chosen,
                data=data,
                report=report,
                spark_master=spark_master,
                spark_conf=conf_of(spark_conf),
                source=experiment,
                settings=Settings.read(),
                progress=progress,
            )
        if as_json:
            write_json(answer, result.as_json())
        else:
            write_rows(answer, f"{result.experiment.name}: exploration", result.rows())
        if result.kind == "fallback_sample":
            sys.stderr.write("warning: the real data could not be reached: these figures are of a generated sample\n")
