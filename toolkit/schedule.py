"""A verb at fixed times, by somebody else's scheduler: what is written here is text, and nothing is installed.

All of them run one at a time, stop a run that hangs, and need no catching up beyond one run: an incremental scoring takes all that is new.
Secrets are named, never written: each scheduler has its own place for them.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from toolkit.core.errors import ScoringError, nearest
from toolkit.core.schedules import Cron
from toolkit.core.secrets import without_secrets
from toolkit.core.table_names import JDBC_LOGIN
from toolkit.settings import Settings, passed_on

Kind = Literal["systemd", "cron", "databricks", "kubernetes"]
KINDS: tuple[Kind, ...] = ("systemd", "cron", "databricks", "kubernetes")

IMAGE = "ray-spark-toolkit:latest"
TIMEOUT_S = 6 * 3600
"""A run that hangs would hold up all later ones, for they never overlap."""
NUM_RETRIES, RETRY_AFTER_S = 2, 60
STARTING_DEADLINE_S = 600
"""Kubernetes gives a schedule up that has missed a hundred starts, unless only the last few minutes count."""

PACKAGE, ENTRY_POINT = "ray_spark_toolkit", "toolkit"
CLUSTER = {
    "spark_version": "18.x-cpu-ml-scala2.13",
    "node_type_id": "Standard_D4ds_v5",
    "num_workers": 2,
    "data_security_mode": "SINGLE_USER",
}
_LONGEST_NAME = 52  # of a Kubernetes CronJob


@dataclass(frozen=True)
class Schedule:
    """`files`: name -> content. `next_steps`: commands and words for the user, in order."""

    kind: Kind
    name: str
    cron: str
    command: tuple[str, ...]
    files: Mapping[str, str]
    next_steps: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints. Names are a contract: see docs/cli.md."""
        return {
            "kind": self.kind,
            "name": self.name,
            "cron": self.cron,
            "command": list(self.command),
            "files": dict(self.files),
            "next_steps": list(self.next_steps),
        }

    def text(self) -> str:
        """All files; where there are several, each below its name as a comment, which these formats all have."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        return "\n".join(f"# ---- {name}\n{content}" for name, content in self.files.items())

    def write(self, output: Path) -> list[Path]:
        """Into a folder; a single file also under a name of its own.

        Raises:
            ScoringError: several files, and no folder for them.
        """
        if output.is_dir() or len(self.files) > 1:
            if output.exists() and not output.is_dir():
                raise ScoringError(f"schedule: {len(self.files)} files need a folder", got=str(output), next_step="name a folder")
            output.mkdir(parents=True, exist_ok=True)
            paths = {output / name: content for name, content in self.files.items()}
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            paths = {output: next(iter(self.files.values()))}
        for path, content in paths.items():
            path.write_text(content, encoding="utf-8")
        return list(paths)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"


def schedule(
    kind: Kind,
    command: Sequence[str],
    *,
    cron: Cron,
    name: str | None = None,
    timezone: str | None = None,
    image: str = IMAGE,
    timeout_s: int = TIMEOUT_S,
    settings: Settings | None = None,
    environment: tuple[Mapping[str, str], Sequence[str]] | None = None,
) -> Schedule:
    """What a scheduler needs to run `toolkit COMMAND`.

    Args:
        command: a verb and its arguments, as the command line takes them.
        name: default: `toolkit-VERB-MODEL`.
        timezone: for example Europe/Berlin; default: UTC, and for systemd and cron this machine's own.
        image: a container's with the toolkit, for Kubernetes.
        timeout_s: after which a run is stopped.
        environment: variables with their values, and the names of secret ones; default: what is set here.

    Raises:
        ScoringError: what this scheduler cannot do.
    """
    settings = settings or Settings.read()
    command = tuple(command)
    broken = next((word for word in command if "\n" in word or "\r" in word or "\0" in word), None)
    if broken is not None:
        raise ScoringError("schedule: arguments must be of one line", got=repr(broken), next_step="take the line break out")
    secret = next((word for word in command if without_secrets(word) != word or JDBC_LOGIN.search(word)), None)
    if secret is not None:
        raise ScoringError(
            "schedule: no secret may be in the command, for process lists and the scheduler show it",
            got=f"an argument that begins {secret[:8]!r}",
            next_step="set it in the environment: TOOLKIT_JDBC_USER and TOOLKIT_JDBC_PASSWORD, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD",
        )
    _check_timezone(kind, timezone)
    variables, secrets = environment or passed_on()
    job = _Job(_name(name, command), cron, command, timezone, dict(variables), tuple(secrets), settings.home, timeout_s)
    if kind == "systemd":
        files, steps = _systemd(job)
    elif kind == "cron":
        files, steps = _cron(job)
    elif kind == "databricks":
        files, steps = _databricks(job)
    else:
        files, steps = _kubernetes(job, image)
    return Schedule(kind, job.name, cron.text, command, files, tuple(steps))


@dataclass(frozen=True)
class _Job:
    name: str
    cron: Cron
    command: tuple[str, ...]
    timezone: str | None
    variables: dict[str, str]
    secrets: tuple[str, ...]
    home: Path
    timeout_s: int

    @property
    def shown(self) -> str:
        return shlex.join(("toolkit", *self.command))

    @property
    def secrets_file(self) -> Path:
        return self.home / f"{self.name}.env"

    @property
    def elsewhere(self) -> dict[str, str]:
        """Variables that mean the same on another machine."""
        return {name: value for name, value in self.variables.items() if value.startswith(("http://", "https://", "databricks"))}

    def secrets_step(self) -> list[str]:
        if not self.secrets:
            return []
        lines = ", ".join(f"{name}=…" for name in self.secrets)
        return [f"write {lines} to {self.secrets_file}, a line each, and chmod 600 it"]


# ---- one function a scheduler


def _systemd(job: _Job) -> tuple[dict[str, str], list[str]]:
    environment = [f"Environment={_systemd_quoted(f'{name}={value}')}" for name, value in job.variables.items()]
    service = [
        "[Unit]",
        f"Description={_systemd_plain(job.shown)}",
        "",
        "[Service]",
        "# A oneshot that still runs is not started again: runs never overlap.",
        "Type=oneshot",
        f"WorkingDirectory={_systemd_plain(str(Path.cwd()))}",
        *environment,
        *([f"EnvironmentFile={_systemd_plain(str(job.secrets_file))}"] if job.secrets else []),
        f"ExecStart={' '.join(_systemd_quoted(word, dollars=True) for word in (*_executable(), *job.command))}",
        f"TimeoutStartSec={job.timeout_s}",
    ]
    timer = [
        "[Unit]",
        f"Description={_systemd_plain(job.shown)}",
        "",
        "[Timer]",
        *(f"OnCalendar={each}" for each in job.cron.calendars(job.timezone)),
        "# What was missed while the machine was off is caught up by one run.",
        "Persistent=true",
        "AccuracySec=1s",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    folder = "~/.config/systemd/user"
    steps = [
        *job.secrets_step(),
        f"copy both files to {folder}, then: systemctl --user daemon-reload && systemctl --user enable --now {job.name}.timer",
        "loginctl enable-linger lets it run while you are logged out; journalctl --user -u " + job.name + " shows what it said",
    ]
    return {f"{job.name}.service": _lines(service), f"{job.name}.timer": _lines(timer)}, steps


def _cron(job: _Job) -> tuple[dict[str, str], list[str]]:
    home, lock = shlex.quote(str(job.home)), shlex.quote(str(job.home / f"{job.name}.lock"))
    secrets = f"set -a && . {shlex.quote(str(job.secrets_file))} && set +a && " if job.secrets else ""
    variables = " ".join(shlex.quote(f"{name}={value}") for name, value in job.variables.items())
    run = f"timeout {job.timeout_s} {shlex.join((*_executable(), *job.command))}"
    line = (
        f"cd {shlex.quote(str(Path.cwd()))} && mkdir -p {home} && {secrets}{f'env {variables} ' if variables else ''}"
        f"flock -n -E 0 {lock} {run} 2>&1 | logger -t {job.name}"
    )
    content = [
        f"# {job.name}: runs never overlap (flock); what it says is in the system's log. Times are this machine's.",
        f"{job.cron.text} {line.replace('%', chr(92) + '%')}",  # cron makes a line break of a percent sign
    ]
    return {f"{job.name}.crontab": _lines(content)}, [*job.secrets_step(), "add the line by crontab -e"]


def _databricks(job: _Job) -> tuple[dict[str, str], list[str]]:
    secrets = [name for name in job.secrets if not name.startswith("DATABRICKS_")]  # a cluster knows its own workspace
    variables = {**job.elsewhere, **{name: f"{{{{secrets/toolkit/{name}}}}}" for name in secrets}}
    content = {
        "name": job.name,
        "max_concurrent_runs": 1,
        "queue": {"enabled": False},
        "timeout_seconds": job.timeout_s,
        "schedule": {"quartz_cron_expression": job.cron.quartz(), "timezone_id": job.timezone or "UTC", "pause_status": "UNPAUSED"},
        "job_clusters": [{"job_cluster_key": "toolkit", "new_cluster": {**CLUSTER, "spark_env_vars": variables}}],
        "tasks": [
            {
                "task_key": job.command[0],
                "job_cluster_key": "toolkit",
                "python_wheel_task": {"package_name": PACKAGE, "entry_point": ENTRY_POINT, "parameters": list(job.command)},
                "libraries": [{"whl": f"/Volumes/main/default/wheels/{PACKAGE}-{_version()}-py3-none-any.whl"}],
                "timeout_seconds": job.timeout_s,
                "max_retries": NUM_RETRIES,
                "min_retry_interval_millis": RETRY_AFTER_S * 1000,
                "retry_on_timeout": False,
            }
        ],
        "tags": {"made_by": "toolkit"},
    }
    steps = [
        "correct the wheel's path and the cluster, which are only examples",
        *([f"databricks secrets create-scope toolkit, and put {', '.join(secrets)} there"] if secrets else []),
        f"databricks jobs create --json @{job.name}.json",
    ]
    return {f"{job.name}.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n"}, steps


def _kubernetes(job: _Job, image: str) -> tuple[dict[str, str], list[str]]:
    import yaml

    variables: list[dict[str, Any]] = [{"name": name, "value": value.replace("$(", "$$(")} for name, value in job.elsewhere.items()]
    secret = [{"name": name, "valueFrom": {"secretKeyRef": {"name": job.name, "key": name}}} for name in job.secrets]
    container: dict[str, Any] = {
        "name": "toolkit",
        "image": image,
        "command": [ENTRY_POINT],
        "args": [word.replace("$(", "$$(") for word in job.command],
    }
    if variables or secret:
        container["env"] = [*variables, *secret]
    content = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": job.name},
        "spec": {
            "schedule": job.cron.text,
            "timeZone": job.timezone or "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": STARTING_DEADLINE_S,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": NUM_RETRIES,
                    "activeDeadlineSeconds": job.timeout_s,
                    "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
                }
            },
        },
    }
    literals = " ".join(f"--from-literal={name}=…" for name in job.secrets)
    steps = [
        *([f"kubectl create secret generic {job.name} {literals}"] if job.secrets else []),
        "mount the volumes that the command's paths are on; without MLFLOW_TRACKING_URI of a server the container's own store is empty",
        f"kubectl apply -f {job.name}.yaml",
    ]
    return {f"{job.name}.yaml": yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)}, steps


# ---- words


def _executable() -> tuple[str, ...]:
    """The command of this installation; a scheduler's PATH is another one."""
    script = Path(sys.executable).with_name(ENTRY_POINT)
    return (str(script),) if script.is_file() else (sys.executable, "-m", "toolkit")


def _version() -> str:
    from importlib.metadata import version

    return version("ray-spark-toolkit")


def _name(name: str | None, command: tuple[str, ...]) -> str:
    words = [word for word in command[:2] if not word.startswith("-")]
    text = name or "-".join(("toolkit", *words))
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name is not None and (plain != name or len(name) > _LONGEST_NAME):
        raise ScoringError(
            f"schedule: a name has small letters, digits and hyphens, {_LONGEST_NAME} at most",
            got=repr(name),
            next_step=f"for example {plain[:_LONGEST_NAME].strip('-') or 'toolkit-score'}",
        )
    return plain[:_LONGEST_NAME].strip("-")


def _check_timezone(kind: Kind, timezone: str | None) -> None:
    if timezone is None:
        return
    if kind == "cron":
        raise ScoringError(
            "schedule cron: times are those of the machine, for not every cron knows another zone",
            got=f"--timezone {timezone}",
            next_step="leave it out, or use systemd",
        )
    if timezone not in (known := zoneinfo.available_timezones()):
        close = nearest(timezone, known)
        raise ScoringError(
            "schedule: a time zone's name", got=repr(timezone), next_step=close if "did you" in close else "for example Europe/Berlin"
        )


def _systemd_quoted(word: str, *, dollars: bool = False) -> str:
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text.replace("$", "$$") if dollars else text}"'


def _systemd_plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "%%")


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
