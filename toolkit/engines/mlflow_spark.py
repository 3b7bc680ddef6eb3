"""MLflow's flavour of Spark ML, in a process whose JVMs come and go."""

from __future__ import annotations

from types import ModuleType

import mlflow.spark


def spark_flavor() -> ModuleType:
    """`mlflow.spark`, for one use at once: it keeps the file system of the first JVM for ever, and of one that has ended it is no use."""
    mlflow.spark._HadoopFileSystem._filesystem = None
    return mlflow.spark
