"""`toolkit models` and `toolkit rollback`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows

RegistryUri = Annotated[
    str | None, typer.Option(metavar="URI", help="The model registry's; default: MLFLOW_REGISTRY_URI, else the tracking server's own.")
]
TrackingUri = Annotated[str | None, typer.Option(metavar="URI", help="MLflow's; default: MLFLOW_TRACKING_URI, else MLflow's own.")]


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A registered name, NAME@ALIAS or NAME/VERSION; - and _ are the same.")
    ] = None,
    registry_uri: RegistryUri = None,
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """List the registered models, or one model's versions.

    With MODEL: aliases, age, metrics, the gates' results, and who moved the champion when and why.
    """
    with answer_stream() as answer:
        from toolkit.models import ModelDetails
        from toolkit.models import models as look_up

        found = look_up(model, registry_uri=registry_uri, tracking_uri=tracking_uri)
        if as_json:
            write_json(answer, found.as_json())
        elif isinstance(found, ModelDetails):
            write_table(answer, f"{found.model.name} in {found.registry_uri}", *found.table())
            if found.history:
                write_table(answer, "history", *found.history_table())
        else:
            title = f"models in {found.registry_uri}" if found.models else f"no registered models in {found.registry_uri}"
            write_table(answer, title, *found.table())
        if isinstance(found, ModelDetails):
            for intent in found.interrupted:
                sys.stderr.write(f"warning: under way or interrupted: {intent}; the next promote or rollback finishes or undoes it\n")


def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered name; - and _ are the same.")],
    to: Annotated[
        int | None, typer.Option(min=1, metavar="VERSION", help="A version that was champion before; default: the previous champion.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept in the history.")] = "",
    stages: Annotated[bool, typer.Option("--stages", help="Legacy stages follow: the champion is Production, what was, Archived.")] = False,
    registry_uri: RegistryUri = None,
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Give the champion's place back to the previous champion.

    The two change places, so a second rollback returns to where one was. An interrupted promotion is finished or undone first; where
    undoing it brings the champion back, that is all that happens. Who, when and why is kept: see `toolkit models MODEL`.
    """
    with answer_stream() as answer:
        from toolkit.champion import rollback as roll_back

        move = roll_back(model, to=to, reason=reason, stages=stages, registry_uri=registry_uri, tracking_uri=tracking_uri)
        if as_json:
            write_json(answer, move.as_json())
        else:
            write_rows(answer, move.title, move.rows())


def write_table(answer: TextIO, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, aligned lines in a pipe; the title alone where there are no rows."""
    with contextlib.suppress(BrokenPipeError):
        if answer.isatty():
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            table = Table(title=Text(title, style="bold"), title_justify="left", show_header=bool(rows), box=None, padding=(0, 2, 0, 0))
            for head in heads:
                table.add_column(Text(head, style="cyan"), overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            Console(file=answer).print(table)
        else:
            lines = [title]
            if rows:
                widths = [max(len(cell) for cell in column) + 2 for column in zip(heads, *rows, strict=True)]
                lines += ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)]
            answer.write("\n".join(lines) + "\n")
        answer.flush()
