"""`toolkit promote`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows
from toolkit.cli.sweep import check_settings

if TYPE_CHECKING:
    from toolkit.core.promotion_result import PromotionResult

NO = 3
MARKS = {"passed": "passed", "failed": "FAILED", "not_applicable": "-", "overridden": "OVERRIDDEN"}


def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered name (its @challenger), NAME@ALIAS or NAME/VERSION.")],
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="EXP", help="Whose gates judge; default: what the version was registered from, a recipe or a file in this folder."
        ),
    ] = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="TABLE", help="File or table to judge on; default: the experiment's hold-out or test part.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder to read the experiment's data from.")] = None,
    override: Annotated[
        list[str] | None, typer.Option(metavar="GATE", help="Let a failed gate by; needs --reason. Repeatable. On record for good.")
    ] = None,
    reason: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Why: one for all overrides, or one for each, in their order.")
    ] = None,
    from_registry: Annotated[str | None, typer.Option(metavar="URI", help="Where the challenger is; default: MLFLOW_REGISTRY_URI.")] = None,
    to_registry: Annotated[str | None, typer.Option(metavar="URI", help="Where it becomes champion, by a copy; default: the same.")] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Keep legacy stages in step: Production, Archived.")] = False,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow's; default: MLFLOW_TRACKING_URI, else MLflow's own.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the HTML report goes; default: in TOOLKIT_HOME.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", callback=check_settings, help="Override a field of the experiment but its gates."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Judge the challenger by every gate of its experiment, and make it champion if all let it by.

    Both models predict the same rows, which neither has seen. Exit code 3: a gate said no, and nothing moved.
    """
    with answer_stream() as answer:
        from toolkit.cli.progress import Progress
        from toolkit.promote import promote as run_promote
        from toolkit.settings import Settings

        with Progress() as progress:
            result = run_promote(
                model,
                experiment=experiment,
                changes=set_ or [],
                holdout=holdout,
                data=data,
                overrides=_overrides(override or [], reason or []),
                from_registry=from_registry,
                to_registry=to_registry,
                stages=stages,
                tracking_uri=tracking_uri,
                report=report,
                settings=Settings.read(),
                progress=progress,
            )
        if as_json:
            write_json(answer, result.as_json())
        else:
            write_rows(answer, *summary(result))
        for notice in result.notices:
            sys.stderr.write(f"warning: {notice}\n")
        for gate, why in result.refusals:
            sys.stderr.write(f"not promoted: {gate}: {why}\n")
    if result.failed:
        raise typer.Exit(NO)


def _overrides(gates: list[str], reasons: list[str]) -> dict[str, str]:
    """Gate -> reason; an empty reason is refused by whoever knows the gates."""
    if reasons and not gates:
        raise typer.BadParameter("--reason is of an --override, and there is none")
    if len(reasons) not in (0, 1, len(gates)):
        raise typer.BadParameter(f"--reason: one for all overrides or one for each, got {len(reasons)} for {len(gates)}")
    if len(reasons) <= 1:
        reasons = [*reasons, ""][:1] * len(gates)
    return dict(zip(gates, reasons, strict=True))


def summary(result: PromotionResult) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows for a person."""
    rows = []
    if result.recovered:
        rows.append(("before this", result.recovered))
    rows += [(gate.name, f"{MARKS[gate.status]}   {gate.reason}") for gate in result.gates]
    for who, model in (("challenger", result.challenger), ("champion", result.champion)):
        if model and model.figures:
            rows.append((f"{who} {model.version}", ", ".join(f"{name} {value:.5g}" for name, value in model.figures.items())))
    if result.holdout:
        rows.append(("hold-out", f"{result.holdout.location} ({result.holdout.kind}), {result.holdout.num_rows:,} rows"))
    if result.report_path:
        rows.append(("report", result.report_path))
    return result.verdict, rows
