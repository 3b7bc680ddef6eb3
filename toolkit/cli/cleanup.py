"""`toolkit cleanup`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from toolkit.cli.models import RegistryUri, TrackingUri, write_table
from toolkit.cli.output import answer_stream, write_json


class KindName(StrEnum):
    STUDIES = "studies"
    TRAININGS = "trainings"
    SPOOL = "spool"
    CACHES = "caches"
    RUNS = "runs"
    ARTIFACTS = "artifacts"
    VERSIONS = "versions"


def cleanup(
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed as left over; without it nothing is.")] = False,
    keep: Annotated[int, typer.Option(min=0, metavar="N", help="Of each model's versions without an alias the newest N stay.")] = 10,
    only: Annotated[list[KindName] | None, typer.Option(metavar="|".join(KindName), help="These kinds alone; repeatable.")] = None,
    tracking_uri: TrackingUri = None,
    registry_uri: RegistryUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """List what is left over, with sizes; remove it with --yes.

    Unfinished studies, checkpoints and rows of distributed trainings that were broken off, spool files without a study, caches, runs that
    say RUNNING though no process is at them (they are set KILLED), artifacts of deleted runs where MLflow's store is on this machine, and
    old versions without an alias.

    Never a version with an alias, nor a run of a registered version, nor what changed within the last day (caches do not count).
    """
    with answer_stream() as answer:
        from toolkit.cleanup import cleanup as clean_up

        kinds = [kind.value for kind in only or []]
        result = clean_up(remove=yes, keep=keep, only=kinds, tracking_uri=tracking_uri, registry_uri=registry_uri)  # type: ignore[arg-type]
        if as_json:
            write_json(answer, result.as_json())
        else:
            write_table(answer, result.title, *result.table())
    if result.count("failed"):
        raise typer.Exit(1)
