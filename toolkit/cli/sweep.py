"""`toolkit sweep`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows
from toolkit.cli.spark import SparkConf, SparkMaster, conf_of

if TYPE_CHECKING:
    from toolkit.core.result import SweepResult


class ClusterName(StrEnum):
    AUTO = "auto"
    INPROCESS = "inprocess"
    LOCAL = "local"
    SPARK = "spark"


class ProtocolName(StrEnum):
    HONEST = "honest"
    PUBLISHED = "published"


def _names(of: type[StrEnum]) -> str:
    return "|".join(of)


def at_least_one(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise typer.BadParameter(f"must be at least 1, got {value}")
    return value


def _positive(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise typer.BadParameter(f"must be greater than 0, got {value:g}")
    return value


def _seed(value: int | None) -> int | None:
    if value is not None and not 0 <= value < 2**32:
        raise typer.BadParameter(f"must be from 0 to 2**32 - 1, got {value}")
    return value


def check_settings(values: list[str] | None) -> list[str]:
    for value in values or []:
        if not value.partition("=")[1]:
            raise typer.BadParameter(f"must be PATH=VALUE, got {value!r}")
    return values or []


def sweep(
    experiment: Annotated[str, typer.Argument(metavar="EXP", help="wine-quality, path/to/file.py[:function] or package.module:function.")],
    trials: Annotated[int | None, typer.Option(callback=at_least_one, metavar="N", help="Trials in all [sweep.num_trials].")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(callback=at_least_one, metavar="N", help="Trials at once [sweep.concurrency]; default: as many as there are slots."),
    ] = None,
    cluster: Annotated[
        ClusterName, typer.Option(metavar=_names(ClusterName), help="In this process, on local Ray, or on Spark.")
    ] = ClusterName.AUTO,
    spark_master: SparkMaster = None,
    spark_conf: SparkConf = None,
    timeout_s: Annotated[
        float | None, typer.Option(callback=_positive, metavar="SECONDS", help="End the search then; what is finished counts.")
    ] = None,
    seed: Annotated[int | None, typer.Option(callback=_seed, metavar="N", help="Seed of the sampler [sweep.seed].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished study.")] = False,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the study; default: EXPERIMENT-PROTOCOL.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder to read the data from.")] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(metavar=_names(ProtocolName), help="honest: the test part is touched once, at the end. published: as the source did."),
    ] = ProtocolName.HONEST,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow's; default: MLFLOW_TRACKING_URI, else MLflow's own.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the HTML report goes; default: in TOOLKIT_HOME.")] = None,
    register: Annotated[
        bool, typer.Option("--register", help="Make the winner a version of the registered model, with the alias challenger.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", callback=check_settings, help="Override any field; repeatable. The flags above win."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Search for the best parameters, in parallel.

    Every trial becomes a run in MLflow, the winner is refitted and tested once, and a report is written. Interrupted or killed, the
    study goes on with --resume.
    """
    with answer_stream() as answer:
        from toolkit.cli.progress import Progress
        from toolkit.core.recipes import load_experiment, override, source_of
        from toolkit.settings import Settings
        from toolkit.sweep import sweep as run_sweep

        flags = {"num_trials": trials, "concurrency": concurrency, "timeout_s": timeout_s, "seed": seed}
        changes = [*(set_ or []), *(f"sweep.{field}={value}" for field, value in flags.items() if value is not None)]
        chosen = override(load_experiment(experiment), changes)
        settings = Settings.read()
        with Progress() as progress:
            result = run_sweep(
                chosen,
                protocol=protocol.value,
                cluster=cluster.value,
                spark_master=spark_master,
                spark_conf=conf_of(spark_conf),
                resume=resume,
                study=study,
                data=data,
                tracking_uri=tracking_uri,
                report=report,
                register=register,
                source=source_of(experiment),
                settings=settings,
                progress=progress,
            )
        if as_json:
            write_json(answer, result.as_json())
        else:
            title, rows = summary(result, names_tracking=bool(tracking_uri or settings.tracking_uri))
            write_rows(answer, title, rows)
        for warning in warnings_of(result):
            sys.stderr.write(f"warning: {warning}\n")


def summary(result: SweepResult, *, names_tracking: bool) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows for a person. `names_tracking`: the user named an MLflow server or store, so that `mlflow ui` needs its name too."""
    answer = result.as_json()
    metrics = result.experiment.metrics
    rows: list[tuple[str, str]] = []
    if result.best is None:
        rows.append(("best", "no trial completed"))
    elif len(metrics) > 1:
        for record in result.pareto:
            values = ", ".join(f"{metric.name} {value:.5g}" for metric, value in zip(metrics, record.values, strict=True))
            rows.append((f"trial {record.number}", f"{values}   {_params(record.params)}"))
    else:
        rows.append((f"best {metrics[0].name}", f"{result.best.values[0]:.5g}   on validation, trial {result.best.number}"))
        rows.append(("parameters", _params(result.best.params)))
    if result.evaluation:
        first = [metric.name for metric in metrics]
        ordered = sorted(result.evaluation.metrics.items(), key=lambda item: (item[0] not in first, item[0]))
        rows.append(("test", ", ".join(f"{name} {value:.5g}" for name, value in ordered)))
    counts = f"{answer['num_completed']} completed, {answer['num_pruned']} stopped early, {answer['num_failed']} failed"
    rows.append(("trials", f"{counts}, of {result.num_trials}" + (f"; ended by {result.stopped_by}" if result.stopped_by else "")))
    rows.append(
        (
            "time",
            f"{result.wall_s:.1f} s: {result.cluster_start_s:.1f} s start, {result.search_s:.1f} s search, "
            f"{result.efficiency:.0%} of it fitting on {result.num_slots} {'slot' if result.num_slots == 1 else 'slots'}",
        )
    )
    where = "a generated sample, not the real data" if result.source.is_fallback else f"{result.source.location} ({result.source.kind})"
    rows.append(("data", f"{where}, {result.source.num_rows} rows"))
    if result.report_path:
        rows.append(("report", result.report_path))
    if result.model_uri:
        rows.append(("model", result.model_uri))
    if result.registered:
        rows.append(("registered", f"{result.registered}, the challenger: toolkit promote {result.registered.name} judges it"))
    rows.append(("runs", _how_to_see(result, names_tracking)))
    return f"{result.experiment.name}: {result.protocol} protocol, study {result.study}", rows


def warnings_of(result: SweepResult) -> list[str]:
    found = []
    if result.source.is_fallback:
        found.append("the real data could not be reached: these figures are of a generated sample; give --data PATH or TOOLKIT_DATA_DIR")
    if result.num_unsent:
        found.append(f"{result.num_unsent} entries wait for MLflow, which did not answer; send them later with --resume")
    return found


def _params(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items())


def _how_to_see(result: SweepResult, names_tracking: bool) -> str:
    uri = result.tracking_uri
    if uri.startswith(("http://", "https://")):
        return f"{uri}, experiment {result.mlflow_experiment}"
    if uri.startswith("databricks"):
        return f"experiment {result.mlflow_experiment} of the workspace"
    return f"mlflow ui --backend-store-uri {uri}" if names_tracking else "mlflow ui"
