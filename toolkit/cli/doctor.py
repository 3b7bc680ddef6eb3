"""`toolkit doctor`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from toolkit.cli.output import answer_stream, write_json, write_rows
from toolkit.cli.spark import SparkConf, SparkMaster, conf_of


class ClusterName(StrEnum):
    LOCAL = "local"
    SPARK = "spark"


def doctor(
    cluster: Annotated[
        ClusterName, typer.Option(metavar="|".join(ClusterName), help="spark: also what a sweep on that cluster would check first.")
    ] = ClusterName.LOCAL,
    spark_master: SparkMaster = None,
    spark_conf: SparkConf = None,
    delta: Annotated[bool, typer.Option("--delta", help="Also write a small Delta table with Spark, and read it back.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")] = False,
) -> None:
    """Check that this machine is ready.

    Looks at versions, cores, memory, disk, MLflow, Ray, Java, Spark, credentials and git, and says how to mend what is not well.

    Exit code 1 when a check fails; a warning is about what only some verbs need.
    """
    with answer_stream() as answer:
        from toolkit.doctor import doctor as examine
        from toolkit.settings import Settings

        wanted = cluster is ClusterName.SPARK or spark_master is not None
        diagnosis = examine(Settings.read(), spark=wanted, delta=delta, spark_master=spark_master, spark_conf=conf_of(spark_conf))
        if as_json:
            write_json(answer, diagnosis.as_json())
        else:
            title = "ready" if diagnosis.is_healthy else "not ready: mend what failed"
            rows = [
                (f"{check.state:<4}  {check.name}", check.found + (f" → {check.advice}" if check.advice else ""))
                for check in diagnosis.checks
            ]
            write_rows(answer, title, rows)
    if not diagnosis.is_healthy:
        raise typer.Exit(1)
