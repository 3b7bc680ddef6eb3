"""The only reader of environment variables."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.core.secrets import without_secrets

CREDENTIALS = ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET", "DATABRICKS_CONFIG_PROFILE")

# What a scheduled command needs of the environment it was made in. The secrets' values are never read, only whether they are set.
_PASSED_ON = (
    "TOOLKIT_HOME", "TOOLKIT_DATA_DIR", "TOOLKIT_STATE_URI", "TOOLKIT_USER", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "JAVA_HOME",
    "SPARK_HOME", "SPARK_CONF_DIR", "HADOOP_CONF_DIR", "PATH",
)  # fmt: skip
_SECRETS = (
    *CREDENTIALS, "TOOLKIT_JDBC_USER", "TOOLKIT_JDBC_PASSWORD", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID", "AZURE_STORAGE_CONNECTION_STRING",
)  # fmt: skip


def passed_on(environ: Mapping[str, str] = os.environ) -> tuple[dict[str, str], tuple[str, ...]]:
    """Of the variables that the toolkit and its libraries read: those without a secret with their values, and the names of the others."""
    shown = {name: environ[name] for name in _PASSED_ON if environ.get(name)}
    hidden = [name for name, value in shown.items() if without_secrets(value) != value]
    secret = [name for name in _SECRETS if environ.get(name)]
    return {name: value for name, value in shown.items() if name not in hidden}, (*hidden, *secret)


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes:
        home: `TOOLKIT_HOME`, default `.toolkit/` in the working directory: journals, caches, spool, reports.
        data_dir: `TOOLKIT_DATA_DIR`: a folder with the files that recipes ask for.
        state_uri: `TOOLKIT_STATE_URI`: a Volume or any fsspec path, to which journals are mirrored.
        tracking_uri: `MLFLOW_TRACKING_URI`; None: MLflow's own default in the working directory.
        registry_uri: `MLFLOW_REGISTRY_URI`; None: the tracking server's registry, on Databricks Unity Catalog.
        ray_address: `RAY_ADDRESS`: a running Ray to use, and to leave running.
        on_databricks: the process runs on a Databricks cluster (`DATABRICKS_RUNTIME_VERSION` is set).
        user: `TOOLKIT_USER` (a job on Databricks runs as root), else the operating system's; in the name of shared MLflow experiments.
        java_home: `JAVA_HOME`, for Spark.
        spark_remote: `SPARK_REMOTE`, which turns every new session into a Spark Connect one.
        credentials: names, never values, of the Databricks variables that are set.
        jdbc_user, jdbc_password: `TOOLKIT_JDBC_USER` and `TOOLKIT_JDBC_PASSWORD`, for tables that are read over JDBC.
    """

    home: Path
    data_dir: Path | None
    state_uri: str | None
    tracking_uri: str | None
    ray_address: str | None
    on_databricks: bool
    user: str = "unknown"
    java_home: Path | None = None
    spark_remote: str | None = None
    registry_uri: str | None = None
    credentials: tuple[str, ...] = ()
    jdbc_user: str | None = None
    jdbc_password: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        def path(name: str) -> Path | None:
            return Path(environ[name]).expanduser().resolve() if environ.get(name) else None

        return cls(
            home=path("TOOLKIT_HOME") or Path.cwd() / ".toolkit",
            data_dir=path("TOOLKIT_DATA_DIR"),
            state_uri=environ.get("TOOLKIT_STATE_URI") or None,
            tracking_uri=environ.get("MLFLOW_TRACKING_URI") or None,
            registry_uri=environ.get("MLFLOW_REGISTRY_URI") or None,
            ray_address=environ.get("RAY_ADDRESS") or None,
            on_databricks=bool(environ.get("DATABRICKS_RUNTIME_VERSION")),
            user=next((environ[name] for name in ("TOOLKIT_USER", "LOGNAME", "USER") if environ.get(name)), _login_name()),
            java_home=path("JAVA_HOME"),
            spark_remote=environ.get("SPARK_REMOTE") or None,
            credentials=tuple(name for name in CREDENTIALS if environ.get(name)),
            jdbc_user=environ.get("TOOLKIT_JDBC_USER") or None,
            jdbc_password=environ.get("TOOLKIT_JDBC_PASSWORD") or None,
        )


def _login_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number that nobody has
        return "unknown"
