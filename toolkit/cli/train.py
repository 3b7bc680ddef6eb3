"""`toolkit train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows
from toolkit.cli.spark import SparkConf, SparkMaster, conf_of
from toolkit.cli.sweep import ClusterName, ProtocolName, at_least_one, check_settings

if TYPE_CHECKING:
    from toolkit.core.training import TrainedModel, TrainResult


def train(
    experiment: Annotated[str, typer.Argument(metavar="EXP", help="wine-quality, path/to/file.py[:function] or package.module:function.")],
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Fit the experiment's baseline; without one: the mean, and XGBoost's defaults.")
    ] = False,
    params: Annotated[
        str | None,
        typer.Option(metavar="best|best:STUDY|FILE", help="Of the newest finished study (default), of one by name, or JSON or YAML."),
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="XGBoost by Ray Train, over rows that no single process holds [training.*].")
    ] = False,
    num_workers: Annotated[
        int | None, typer.Option(callback=at_least_one, metavar="N", help="Processes that share the rows [training.num_workers].")
    ] = None,
    cluster: Annotated[
        ClusterName, typer.Option(metavar="auto|local|spark", help="Where the Ray of --distributed runs.")
    ] = ClusterName.AUTO,
    spark_master: SparkMaster = None,
    spark_conf: SparkConf = None,
    register: Annotated[
        bool, typer.Option("--register", help="Make it a version of the registered model, with the alias challenger.")
    ] = False,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder to read the data from.")] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(metavar="honest|published", help="honest: the test part is touched once, at the end. published: as the source did."),
    ] = ProtocolName.HONEST,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow's; default: MLFLOW_TRACKING_URI, else MLflow's own.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the HTML report goes; default: in TOOLKIT_HOME.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", callback=check_settings, help="Override any field; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Fit one model for use: the best parameters of a sweep, or the baseline.

    It is refitted on train and validation rows, tested once, and logged with all that scoring and monitoring need.
    """
    if baseline and params is not None:
        raise typer.BadParameter("--baseline and --params exclude each other: a baseline has its own parameters")
    if not distributed and (num_workers or spark_master or spark_conf or cluster is not ClusterName.AUTO):
        raise typer.BadParameter("--num-workers, --cluster, --spark-master and --spark-conf are for --distributed")
    with answer_stream() as answer:
        from toolkit.cli.progress import Progress
        from toolkit.core.recipes import load_experiment, override, source_of
        from toolkit.settings import Settings
        from toolkit.train import train as run_train

        flags = [f"training.num_workers={num_workers}"] if num_workers else []
        chosen = override(load_experiment(experiment), [*(set_ or []), *flags])
        with Progress() as progress:
            result = run_train(
                chosen,
                baseline=baseline,
                params=params or "best",
                distributed=distributed,
                cluster=cluster.value,
                spark_master=spark_master,
                spark_conf=conf_of(spark_conf),
                protocol=protocol.value,
                register=register,
                source=source_of(experiment),
                data=data,
                tracking_uri=tracking_uri,
                report=report,
                settings=Settings.read(),
                progress=progress,
            )
        if as_json:
            write_json(answer, result.as_json())
        else:
            write_rows(answer, *summary(result))
        if result.source.is_fallback:
            sys.stderr.write("warning: the real data could not be reached: these figures are of a generated sample\n")


def summary(result: TrainResult) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows for a person."""
    rows: list[tuple[str, str]] = []
    for model in result.models:
        rows.append((model.name, model.model_text))
        if model.params:
            rows.append(("  parameters", _params(model)))
        for part, metrics in (("validation", model.evaluation.validation_metrics), ("test", model.evaluation.metrics)):
            rows.append((f"  {part}", _figures(result, metrics)))
        if model.cross_validation:
            folds = ", ".join(f"{name} {mean:.5g} ± {std:.2g}" for name, (mean, std) in model.cross_validation.items())
            rows.append(("  folds", folds))
        rows.append(("  model", model.model_uri))
        if model.registered:
            rows.append(("  registered", f"{model.registered}, the challenger: toolkit promote {model.registered.name} judges it"))
    where = "a generated sample, not the real data" if result.source.is_fallback else f"{result.source.location} ({result.source.kind})"
    rows.append(("data", f"{where}, {result.source.num_rows} rows"))
    rows.append(("time", f"{result.wall_s:.1f} s"))
    rows.append(("report", result.report_path))
    return f"{result.experiment.name}: {result.protocol} protocol, {result.kind}", rows


def _params(model: TrainedModel) -> str:
    text = ", ".join(f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}" for name, value in model.params.items())
    return f"{text}   ({model.params_source})"


def _figures(result: TrainResult, metrics: object) -> str:
    assert isinstance(metrics, dict)
    first = [metric.name for metric in result.experiment.metrics]
    ordered = sorted(metrics.items(), key=lambda item: (item[0] not in first, item[0]))
    return ", ".join(f"{name} {value:.5g}" for name, value in ordered)
