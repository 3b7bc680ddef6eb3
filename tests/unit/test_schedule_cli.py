"""`toolkit schedule`: what each scheduler gets, and that it runs the command that was asked for."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from toolkit import schedule as scheduling
from toolkit.cli.app import run
from toolkit.core.errors import ScoringError
from toolkit.core.schedules import Cron
from toolkit.settings import Settings, passed_on

SECRETS = {"DATABRICKS_TOKEN": "dapi-hunter2", "TOOLKIT_JDBC_PASSWORD": "hunter2", "MLFLOW_TRACKING_URI": "http://anna:hunter2@mlflow:5000"}
NASTY = ("promote", "wine-quality", "--reason", """50% of $HOME, $(id) `id` "quoted" 'and' \\n; a b""")
EXECUTABLE = str(Path(sys.executable).with_name("toolkit"))


def make(kind, command=NASTY, *, cron="15 6 * * MON-FRI", home=Path("/var/lib/toolkit"), **more):
    environment = passed_on({"PATH": os.environ["PATH"], "MLFLOW_REGISTRY_URI": "http://mlflow:5000", **SECRETS})
    settings = Settings.read({"TOOLKIT_HOME": str(home)})
    return scheduling.schedule(kind, command, cron=Cron.parse(cron), settings=settings, environment=environment, **more)


@pytest.mark.parametrize("kind", scheduling.KINDS)
def test_no_secret_is_written(kind):
    made = make(kind)
    everything = json.dumps(made.as_json())
    assert "hunter2" not in everything
    assert "TOOLKIT_JDBC_PASSWORD" in everything
    assert made.name == "toolkit-promote-wine-quality"
    assert made.next_steps


def test_secrets_by_name_only():
    variables, secrets = passed_on({**SECRETS, "MLFLOW_REGISTRY_URI": "http://mlflow:5000", "PASSWORD_OF_OTHERS": "x"})
    assert variables == {"MLFLOW_REGISTRY_URI": "http://mlflow:5000"}
    assert set(secrets) == set(SECRETS)


@pytest.mark.parametrize("kind", scheduling.KINDS)
def test_a_line_break_is_refused(kind):
    with pytest.raises(ScoringError, match="one line"):
        make(kind, ("promote", "a\nb"))


# ---- cron


def test_the_shell_of_cron_runs_the_command(tmp_path):
    """As cron does it: an escaped percent sign is one, and /bin/sh gets the rest. The toolkit's place is taken by what shows its words."""
    shown = tmp_path / "shown"
    script = tmp_path / "toolkit"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$TOOLKIT_JDBC_PASSWORD" "$PWD" "$@" > {shown}\n')
    script.chmod(0o755)
    home = tmp_path / "my home"
    made = make("cron", home=home)
    (line,) = [line for line in made.text().splitlines() if not line.startswith("#")]
    assert line.startswith("15 6 * * MON-FRI cd ")
    assert re.search(r"(?<!\\)%", line) is None
    home.mkdir()
    (home / f"{made.name}.env").write_text("TOOLKIT_JDBC_PASSWORD=hunter2\n")
    command = line.split(" ", 5)[5].replace("\\%", "%").replace(shlex.quote(EXECUTABLE), shlex.quote(str(script)))
    command = command.replace(f"| logger -t {made.name}", "")
    subprocess.run(["/bin/sh", "-c", command], check=True, timeout=20, env={"PATH": os.environ["PATH"]})
    assert shown.read_text().splitlines() == ["hunter2", str(Path.cwd()), *NASTY]


def test_a_run_of_cron_is_skipped_while_one_is_there(tmp_path):
    made = make("cron", home=tmp_path)
    assert f"flock -n -E 0 {tmp_path}/{made.name}.lock timeout 21600 " in made.text()
    with pytest.raises(ScoringError, match="times are those of the machine"):
        make("cron", timezone="Europe/Berlin")


# ---- systemd


def unquoted(line):
    """The words of ExecStart, as systemd reads them."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    return [re.sub(r"\\(.)", r"\1", word).replace("%%", "%").replace("$$", "$") for word in words]


def test_a_timer_of_systemd():
    made = make("systemd", timezone="Europe/Berlin")
    service, timer = made.files["toolkit-promote-wine-quality.service"], made.files["toolkit-promote-wine-quality.timer"]
    (command,) = re.findall("^ExecStart=(.*)$", service, re.MULTILINE)
    assert unquoted(command) == [EXECUTABLE, *NASTY]
    assert f"WorkingDirectory={Path.cwd()}\n" in service
    assert "Type=oneshot\n" in service
    assert 'Environment="MLFLOW_REGISTRY_URI=http://mlflow:5000"\n' in service
    assert "EnvironmentFile=/var/lib/toolkit/toolkit-promote-wine-quality.env\n" in service
    assert "Persistent=true\n" in timer
    assert "OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 06:15:00 Europe/Berlin\n" in timer


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("cron", ["*/15 * * * *", "0 6 1 * MON"])
def test_systemd_takes_the_units(tmp_path, cron):
    made = make("systemd", cron=cron, timezone="UTC")
    (tmp_path / f"{made.name}.env").touch()
    paths = made.write(tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *map(str, paths)], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if made.name in line and "ignored" not in line.lower()]
    assert not [line for line in ours if "Failed to" not in line], done.stderr


# ---- Databricks and Kubernetes


def test_a_job_of_databricks():
    made = make("databricks", timezone="Europe/Berlin", timeout_s=3600)
    job = json.loads(made.text())
    assert job["schedule"] == {
        "quartz_cron_expression": "0 15 6 ? * MON,TUE,WED,THU,FRI",
        "timezone_id": "Europe/Berlin",
        "pause_status": "UNPAUSED",
    }
    assert (job["max_concurrent_runs"], job["queue"], job["timeout_seconds"]) == (1, {"enabled": False}, 3600)
    (task,) = job["tasks"]
    assert task["python_wheel_task"] == {"package_name": "ray_spark_toolkit", "entry_point": "toolkit", "parameters": list(NASTY)}
    assert task["job_cluster_key"] == job["job_clusters"][0]["job_cluster_key"]
    variables = job["job_clusters"][0]["new_cluster"]["spark_env_vars"]
    assert variables["TOOLKIT_JDBC_PASSWORD"] == "{{secrets/toolkit/TOOLKIT_JDBC_PASSWORD}}"
    assert variables["MLFLOW_REGISTRY_URI"] == "http://mlflow:5000"
    assert not {"PATH", "DATABRICKS_TOKEN"} & set(variables)


def test_a_cron_job_of_kubernetes():
    made = make("kubernetes", image="registry/toolkit:1", timezone="Europe/Berlin")
    job = yaml.safe_load(made.text())
    assert (job["kind"], job["metadata"]["name"]) == ("CronJob", "toolkit-promote-wine-quality")
    spec = job["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("15 6 * * MON-FRI", "Europe/Berlin", "Forbid")
    assert spec["startingDeadlineSeconds"] == 600
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["image"] == "registry/toolkit:1"
    assert [word.replace("$$(", "$(") for word in container["args"]] == list(NASTY)
    assert not [word for word in container["args"] if re.search(r"(?<!\$)\$\(", word)]
    variables = {each["name"]: each for each in container["env"]}
    assert variables["DATABRICKS_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": made.name, "key": "DATABRICKS_TOKEN"}
    assert variables["MLFLOW_REGISTRY_URI"]["value"] == "http://mlflow:5000"
    assert "PATH" not in variables


# ---- names, zones, files


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("score", "main.wine_quality@champion"), "toolkit-score-main-wine-quality-champion"),
        (("cleanup", "--yes"), "toolkit-cleanup"),
        (("score", "x" * 80), f"toolkit-score-{'x' * 38}"),
    ],
)
def test_names(command, name):
    assert make("systemd", command).name == name


@pytest.mark.parametrize("name", ["Wine Quality", "wine_quality", "x" * 60, "-"])
def test_names_that_are_refused(name):
    with pytest.raises(ScoringError, match="small letters"):
        make("kubernetes", name=name)


def test_a_time_zone_that_is_none():
    with pytest.raises(ScoringError, match="did you mean 'Europe/Berlin'"):
        make("systemd", timezone="Europe/Berln")


def test_where_it_is_written(tmp_path):
    assert [path.name for path in make("systemd", name="score").write(tmp_path / "units")] == ["score.service", "score.timer"]
    assert make("databricks", name="score").write(tmp_path / "jobs" / "job.json") == [tmp_path / "jobs" / "job.json"]
    assert make("databricks", name="score").write(tmp_path) == [tmp_path / "score.json"]
    with pytest.raises(ScoringError, match="2 files need a folder"):
        make("systemd").write(tmp_path / "score.json")


# ---- the command line


def answer(capfd, *arguments):
    code = run(["schedule", *arguments])
    return code, *capfd.readouterr()


def test_the_answer(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-hunter2")
    command = ["promote", "wine-quality", "--reason", "a b"]
    code, out, err = answer(capfd, "systemd", "--every", "15m", "--output", str(tmp_path), "--json", "--", *command)
    made = json.loads(out)
    assert (code, err, made["command"], made["cron"], made["kind"]) == (0, "", command, "*/15 * * * *", "systemd")
    assert sorted(made["paths"]) == sorted(str(tmp_path / name) for name in made["files"])
    code, out, err = answer(capfd, "databricks", "--cron", "15 6 * * *", "--", "toolkit", *command)
    assert json.loads(out)["tasks"][0]["python_wheel_task"]["parameters"] == command
    assert "next: databricks jobs create" in err
    assert "hunter2" not in out + err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["cron", "--every", "5m", "--", "promote", "wine", "--nonsense"], 2, "No such option: --nonsense; see toolkit promote"),
        (["cron", "--every", "5m", "--", "promote"], 2, "Missing argument 'MODEL'"),
        (["cron", "--every", "5m", "--", "promot", "wine"], 2, "'promot' is no verb to schedule"),
        (["cron", "--every", "5m", "--", "schedule", "cron"], 2, "'schedule' is no verb to schedule"),
        (["cron", "--every", "5m", "--", "promote", "--help"], 2, "must run something"),
        (["cron", "--every", "5m"], 2, "Missing argument"),
        (["cron", "--", "promote", "wine"], 2, "exactly one of --every and --cron"),
        (["cron", "--every", "5m", "--cron", "* * * * *", "--", "promote", "wine"], 2, "exactly one of"),
        (["nonsense", "--every", "5m", "--", "promote", "wine"], 2, "nonsense"),
        (["cron", "--every", "7m", "--", "promote", "wine"], 1, "use 6m or 10m"),
        (["cron", "--every", "soon", "--", "promote", "wine"], 1, "an interval is"),
        (["cron", "--cron", "61 * * * *", "--", "promote", "wine"], 1, "the minute is"),
        (["databricks", "--cron", "0 0 1 * MON", "--", "promote", "wine"], 1, "make two schedules"),
        (["cron", "--every", "5m", "--image", "x", "--", "promote", "wine"], 2, "--image is for kubernetes"),
    ],
)  # fmt: skip
def test_what_is_refused(capfd, arguments, code, says):
    found, out, err = answer(capfd, *arguments)
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("table", ["jdbc:postgresql://u:pw1@h/db#t", "jdbc:postgresql://h/db?user=u&password=pw1#t"])
def test_a_secret_in_the_command_is_refused_and_not_shown(table):
    with pytest.raises(ScoringError, match="no secret may be in the command") as caught:
        scheduling.schedule("cron", ["score", "wine", "--input", table, "--output", "scores"], cron=Cron.parse("0 * * * *"))
    assert "pw1" not in str(caught.value)
