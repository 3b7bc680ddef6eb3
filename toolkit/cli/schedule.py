"""`toolkit schedule`."""

from __future__ import annotations

import contextlib
import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows


class KindName(StrEnum):
    SYSTEMD = "systemd"
    CRON = "cron"
    DATABRICKS = "databricks"
    KUBERNETES = "kubernetes"


def _check_command(command: list[str]) -> list[str]:
    """By the verb's own rules, without running it."""
    from toolkit.cli.app import app

    if command and command[0] == "toolkit":
        command = command[1:]
    if not command:
        raise typer.BadParameter("must be a verb and its arguments after --, for example -- score wine-quality --input … --output …")
    name, arguments = command[0], command[1:]
    group: Any = typer.main.get_command(app)
    verb = group.commands.get(name)
    if verb is None or name in ("schedule", "doctor", "new"):
        known = ", ".join(sorted(set(group.commands) - {"schedule", "doctor", "new"}))
        raise typer.BadParameter(f"{name!r} is no verb to schedule; these are: {known}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            context = verb.make_context(f"toolkit {name}", list(arguments))
    except typer.Exit:
        raise typer.BadParameter(f"the command after -- must run something, got {' '.join(command)!r}") from None
    with context:
        if context.params.get("every") is not None:
            raise typer.BadParameter("the command after -- must run once: its --every belongs before the --")
    return command


def schedule(
    kind: Annotated[KindName, typer.Argument(metavar="|".join(KindName), help="Whose schedule.")],
    command: Annotated[list[str], typer.Argument(metavar="-- VERB …", help="What to run, as toolkit takes it.", callback=_check_command)],
    every: Annotated[
        str | None, typer.Option(metavar="INTERVAL", help="15m, 1h, 1d: what divides an hour or a day evenly, at whole multiples.")
    ] = None,
    cron: Annotated[str | None, typer.Option(metavar="FIELDS", help='Or five fields of cron, for example "15 6 * * MON-FRI".')] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE|FOLDER", help="Where to write; default: standard output. systemd has two files.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the job; default: toolkit-VERB-MODEL.")] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Europe/Berlin and the like; default: UTC, for systemd and cron this machine's own.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help="Of a container with the toolkit, for kubernetes.")] = None,
    timeout: Annotated[str, typer.Option(metavar="INTERVAL", help="After which a run that hangs is stopped.")] = "6h",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Write what a scheduler needs to run a verb: a systemd timer, a cron line, a Databricks job or a Kubernetes CronJob.

    For example: toolkit schedule systemd --every 15m -- score wine-quality --input bronze --output scores

    Nothing is installed. Runs never overlap, what was missed is caught up by the next run, and one that hangs is stopped. Secrets that are
    set here are named, never written.
    """
    if (every is None) == (cron is None):
        raise typer.BadParameter("exactly one of --every and --cron must be given")
    if image is not None and kind is not KindName.KUBERNETES:
        raise typer.BadParameter("--image is for kubernetes")
    with answer_stream() as answer:
        from toolkit.core.schedules import Cron, parse_every
        from toolkit.schedule import IMAGE
        from toolkit.schedule import schedule as make

        when = Cron.every(parse_every(every)) if every is not None else Cron.parse(cron or "")
        made = make(kind.value, command, cron=when, name=name, timezone=timezone, image=image or IMAGE, timeout_s=parse_every(timeout))
        paths = [] if output is None else made.write(output)
        if as_json:
            write_json(answer, {**made.as_json(), "paths": [str(path) for path in paths]})
        elif output is None:
            answer.write(made.text())
        else:
            write_rows(answer, f"{made.name}: {made.cron}", [("written", str(path)) for path in paths])
        if not as_json:
            sys.stderr.write("".join(f"next: {step}\n" for step in made.next_steps))
