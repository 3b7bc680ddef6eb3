"""`toolkit new`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the experiment: churn writes churn.py here.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="CSV, Parquet (file or folder), Delta folder, or catalog.schema.table.")],
    label: Annotated[str, typer.Option(metavar="COLUMN", help="Column to predict.")],
    key: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column that identifies a row; found where it is not named.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Write an experiment file for a table of your own.

    Looks at the rows, infers the task, the columns' types, the key, a metric and a search space, and writes NAME.py into the working
    directory, with the reason of each choice. `toolkit sweep ./NAME.py` runs it as it is. Never overwrites.
    """
    with answer_stream() as answer:
        from toolkit.new import new as write_new

        result = write_new(name, data=data, label=label, key=key)
        if as_json:
            write_json(answer, result.as_json())
        else:
            write_rows(answer, result.title, result.rows())
        for warning in result.warnings():
            sys.stderr.write(f"warning: {warning}\n")
