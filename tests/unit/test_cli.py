"""The command line's contract: exit codes, one line an error, and standard output for the answer alone."""

import errno
import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import typer

import toolkit.sweep
from tests.unit.report_samples import sweep_result, two_metric_result
from toolkit.cli import app as application
from toolkit.cli.app import run
from toolkit.cli.output import answer_stream, write_json
from toolkit.cli.sweep import summary, warnings_of
from toolkit.core.data import DataSource
from toolkit.core.errors import DataError, Interrupted, StudyError

ROOT = Path(__file__).parents[2]
TOOLKIT = [sys.executable, "-m", "toolkit"]

EXPERIMENT = """
from toolkit import Dataset, Experiment, Int, Metric, XGBoost

def experiment():
    return Experiment(name="tiny", dataset=Dataset("table.csv", "label"), model=XGBoost(), space={"max_depth": Int(1, 9)},
                      metric=Metric("auc", "maximize"))
"""


@pytest.fixture
def called(monkeypatch, tmp_path):
    """A verb in the sweep's place: keeps what it was called with, and answers or raises what `called.answer` says."""

    class Called:
        answer = None

        def __call__(self, experiment, **arguments):
            self.experiment, self.arguments = experiment, arguments
            return self.answer() if self.answer else sweep_result()

    verb = Called()
    monkeypatch.setattr(toolkit.sweep, "sweep", verb)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    return verb


def raising(error):
    def answer():
        raise error

    return answer


def documents():
    spec = importlib.util.spec_from_file_location("cli_docs", ROOT / "scripts" / "cli_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- exit codes and the boundary


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--bogus"], 2, "No such option: --bogus; see toolkit --help"),
        (["swep"], 2, "No such command 'swep'"),
        (["sweep"], 2, "Missing argument 'EXP'; see toolkit sweep --help"),
        (["sweep", "tiny.py", "--bogus"], 2, "No such option: --bogus; see toolkit sweep --help"),
        (["sweep", "tiny.py", "--trials", "0"], 2, "'--trials': must be at least 1, got 0; see toolkit sweep --help"),
        (["sweep", "tiny.py", "--trials", "-3"], 2, "'--trials': must be at least 1, got -3"),
        (["sweep", "tiny.py", "--trials", "many"], 2, "'--trials'"),
        (["sweep", "tiny.py", "--concurrency", "0"], 2, "'--concurrency': must be at least 1, got 0"),
        (["sweep", "tiny.py", "--timeout-s", "0"], 2, "'--timeout-s': must be greater than 0, got 0"),
        (["sweep", "tiny.py", "--timeout-s", "nan"], 2, "'--timeout-s': must be greater than 0, got nan"),
        (["sweep", "tiny.py", "--seed", "-1"], 2, "'--seed': must be from 0 to 2**32 - 1, got -1"),
        (["sweep", "tiny.py", "--cluster", "yarn"], 2, "'--cluster': 'yarn' is not one of"),
        (["sweep", "tiny.py", "--protocol", "mine"], 2, "'--protocol': 'mine' is not one of"),
        (["sweep", "tiny.py", "--set", "sweep.seed"], 2, "'--set': must be PATH=VALUE, got 'sweep.seed'"),
        (["sweep", "tiny.py", "--spark-conf", "SECRET"], 2, "'--spark-conf': must be KEY=VALUE; see toolkit sweep --help"),
        (["sweep", "tiny.py", "--spark-conf", "=SECRET"], 2, "'--spark-conf': must be KEY=VALUE"),
        (["doctor", "--spark-conf", "SECRET"], 2, "'--spark-conf': must be KEY=VALUE; see toolkit doctor --help"),
        (["sweep", "no-such"], 1, "unknown experiment, got 'no-such'"),
        (["sweep", "no/such.py"], 1, "an experiment's file must exist, got no/such.py"),
        (
            ["sweep", "tiny.py", "--set", "sweep.num_trails=3"],
            1,
            "sweep.num_trails: unknown field, got 'num_trails'; did you mean 'num_trials'?",
        ),
        (["sweep", "tiny.py", "--set", "space.max_depth.high=0"], 1, "space.max_depth: low <= high must hold"),
    ],
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_bad_input_is_one_line_and_no_answer(called, capfd, arguments, code, words, as_json):
    assert run(arguments + (as_json if arguments[:1] == ["sweep"] else [])) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert "SECRET" not in err
    assert not hasattr(called, "experiment")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            DataError("label: must hold\ntwo values", got="one", next_step="mend it"),
            1,
            "error: label: must hold two values, got one; mend it\n",
        ),
        (StudyError("no study to resume"), 1, "error: no study to resume\n"),
        (
            Interrupted("interrupted; 3 trials are kept, go on with --resume"),
            130,
            "interrupted; 3 trials are kept, go on with --resume\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (typer.Exit(3), 3, ""),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/journal.log"),
            1,
            "error: the machine must let the toolkit write /data/journal.log, got No space left on device; free space, or set TOOLKIT_HOME\n",
        ),
    ],
)
def test_what_a_verb_raises(called, capfd, error, code, text):
    called.answer = raising(error)
    assert run(["sweep", "tiny.py", "--json"]) == code
    out, err = capfd.readouterr()
    assert (out, err) == ("", text)


@pytest.mark.parametrize(
    "error", [RuntimeError("oops"), ValueError("not a user's"), AssertionError("invariant"), BrokenPipeError(errno.EPIPE, "x")]
)
def test_a_bug_shows_its_traceback_and_where_to_report_it(called, capfd, error):
    called.answer = raising(error)
    assert run(["sweep", "tiny.py"]) == 70
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback (most recent call last)" in err
    assert type(error).__name__ in err
    assert err.splitlines()[-1].startswith("error: this is a bug of the toolkit")
    assert "CONTRIBUTING.md" in err.splitlines()[-1]


def test_exit_codes_are_the_documented_ones():
    assert set(application.EXIT_CODES) == {0, 1, 2, 3, 70, 130}


# --- arguments


def test_what_the_verb_gets(called, capfd):
    spark = ["--spark-master", "spark://host:7077", "--spark-conf", "spark.executor.cores=1", "--spark-conf", " k =a=b"]
    arguments = [*spark, "--protocol", "published", "--cluster", "spark", "--resume", "--study", "mine", "--data", "d.csv"]
    assert run(["sweep", "tiny.py", *arguments, "--tracking-uri", "sqlite:///x.db", "--report", "r.html", "--register"]) == 0
    given = called.arguments
    assert given.pop("settings").home.name == ".toolkit"
    assert given.pop("progress").line() == ""
    assert given == {
        "protocol": "published",
        "cluster": "spark",
        "spark_master": "spark://host:7077",
        "spark_conf": {"spark.executor.cores": "1", "k": "a=b"},
        "resume": True,
        "study": "mine",
        "data": Path("d.csv"),
        "tracking_uri": "sqlite:///x.db",
        "report": Path("r.html"),
        "register": True,
        "source": str(Path("tiny.py").resolve()),
    }


def test_defaults(called):
    assert run(["sweep", "tiny.py"]) == 0
    given = {name: value for name, value in called.arguments.items() if name not in ("settings", "progress", "source")}
    expected = {"protocol": "honest", "cluster": "auto", "resume": False, "study": None, "data": None, "tracking_uri": None, "report": None}
    expected |= {"spark_master": None, "spark_conf": {}, "register": False}
    assert given == expected
    assert called.experiment.sweep.num_trials == 50


def test_flags_are_fields_and_win_over_set(called):
    flags = ["--trials", "7", "--concurrency", "2", "--timeout-s", "1.5", "--seed", "9"]
    assert run(["sweep", "tiny.py", *flags, "--set", "sweep.num_trials=3", "--set", "sweep.report_every=5", "--set", "sweep.seed=1"]) == 0
    search = called.experiment.sweep
    assert (search.num_trials, search.concurrency, search.timeout_s, search.seed, search.report_every) == (7, 2, 1.5, 9, 5)


# --- the answer


def test_json_is_one_object_and_the_documented_one(called, capfd):
    assert run(["sweep", "tiny.py", "--json"]) == 0
    out, _ = capfd.readouterr()
    assert out.count("\n") == 1
    assert list(json.loads(out)) == list(documents().SWEEP_FIELDS)


def test_json_for_two_metrics(called, capfd):
    called.answer = two_metric_result
    assert run(["sweep", "tiny.py", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["metric"] == ["auc", "logloss"]
    assert len(answer["pareto"][0]["value"]) == 2


def noisy():
    """Writes to standard output in every way a library can, before and after the answer."""
    print("python")
    sys.stdout.write("sys\n")
    sys.__stdout__.write("original\n")
    sys.__stdout__.flush()
    os.write(1, b"descriptor\n")
    subprocess.run(["echo", "child"], check=True)
    subprocess.run([sys.executable, "-c", "import ctypes; ctypes.CDLL(None).puts(b'c code')"], check=True)
    warnings.warn("warned", stacklevel=1)
    logging.getLogger("elsewhere").warning("logged")


@pytest.mark.filterwarnings("ignore:warned")
def test_nothing_else_reaches_standard_output(called, capfd):
    def answer():
        noisy()
        return sweep_result()

    called.answer = answer
    assert run(["sweep", "tiny.py", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["experiment"] == "wine-quality"
    assert out.count("\n") == 1
    for word in ("python", "sys", "original", "descriptor", "child", "c code"):
        assert word in err
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_nor_does_what_exit_hooks_print(tmp_path):
    """The whole program, with a library that prints when the interpreter ends."""
    (tmp_path / "tiny.py").write_text(
        EXPERIMENT + "\nimport atexit, os\natexit.register(lambda: os.write(1, b'hook\\n'))\natexit.register(print, 'bye')\n"
        "import ctypes; ctypes.CDLL(None).printf(b'buffered in c\\n')\n"
    )
    done = subprocess.run([*TOOLKIT, "sweep", "tiny.py", "--json", "--data", "no-such.csv"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert {"bye", "hook", "buffered in c"} <= set(done.stderr.splitlines())


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m toolkit doctor | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        cwd=ROOT,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1)


def test_json_has_null_for_what_is_no_number(capfd):
    import numpy as np

    with answer_stream() as answer:
        write_json(answer, {"a": math.nan, "b": [math.inf, 1.0], "c": np.float32(0.5), "d": np.int64(3), "e": Path("x"), "f": (True, None)})
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [None, 1.0], "c": 0.5, "d": 3, "e": "x", "f": [True, None]}


def test_a_pipe_gets_plain_lines(called, capfd):
    assert run(["sweep", "tiny.py"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0] == "wine-quality: honest protocol, study wine-quality-honest"
    assert {line.split()[0] for line in lines[1:]} == {"best", "parameters", "test", "trials", "time", "data", "report", "model", "runs"}
    assert "\x1b" not in out
    assert err == ""


def test_summary_of_two_metrics_lists_the_front():
    result = two_metric_result()
    rows = summary(result, names_tracking=False)[1]
    assert sum(name.startswith("trial ") for name, _ in rows) == len(result.pareto)


def test_summary_without_a_completed_trial():
    rows = dict(summary(sweep_result(best=None, evaluation=None, stopped_by="timeout"), names_tracking=False)[1])
    assert rows["best"] == "no trial completed"
    assert rows["trials"].endswith("ended by timeout")


@pytest.mark.parametrize(
    ("uri", "named", "words"),
    [
        ("sqlite:///mlflow.db", False, "mlflow ui"),
        ("sqlite:////data/x.db", True, "mlflow ui --backend-store-uri sqlite:////data/x.db"),
        ("http://localhost:5000", True, "http://localhost:5000, experiment main_wine-quality"),
        ("databricks", True, "experiment main_wine-quality of the workspace"),
    ],
)
def test_how_to_see_the_runs(uri, named, words):
    assert dict(summary(sweep_result(tracking_uri=uri), names_tracking=named)[1])["runs"] == words


def test_generated_data_and_unsent_entries_are_announced(called, capfd):
    called.answer = lambda: sweep_result(source=DataSource("fallback_sample", "generated", "0" * 64, 6497, 12), num_unsent=4)
    assert run(["sweep", "tiny.py", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["data"]["kind"] == "fallback_sample"
    assert "warning: the real data could not be reached" in err
    assert "warning: 4 entries wait for MLflow" in err
    assert warnings_of(sweep_result()) == []


def test_warnings_of_the_toolkit_are_one_line_each(called, capfd):
    def answer():
        logging.getLogger("toolkit").warning("concurrency %d is more than %d slots", 9, 2)
        return sweep_result()

    called.answer = answer
    for _ in range(2):
        run(["sweep", "tiny.py", "--json"])
    assert capfd.readouterr().err == "warning: concurrency 9 is more than 2 slots\n" * 2


def test_no_thread_of_the_progress_stays(called):
    run(["sweep", "tiny.py"])
    assert "progress" not in {thread.name for thread in threading.enumerate()}


# --- help and documents


def test_bare_toolkit_is_its_help(capfd):
    assert run([]) == 0
    bare = capfd.readouterr().out
    assert run(["--help"]) == 0
    assert bare == capfd.readouterr().out
    assert "sweep" in bare


def test_version(capfd):
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("toolkit 0.")


def commands():
    return typer.main.get_command(application.app).commands


def test_the_flags_of_sweep_are_those_of_the_design():
    """A new knob is a field of the experiment, not a flag."""
    flags = {option for param in commands()["sweep"].params if param.param_type_name == "option" for option in param.opts}
    known = (
        "trials concurrency cluster spark-master spark-conf timeout-s seed resume study data protocol tracking-uri report register set json"
    )
    assert flags == {f"--{name}" for name in known.split()}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_flag_has_help_and_is_documented(name, capfd):
    command = commands()[name]
    assert command.help
    assert run([name, "--help"]) == 0
    shown, document = capfd.readouterr().out, (ROOT / "docs" / "cli.md").read_text()
    for param in command.params:
        assert param.help
        if param.param_type_name == "option":
            assert param.opts[-1] in shown
            assert f"`{param.opts[-1]}" in document
    assert f"\n## {name}\n" in document


def test_docs_are_what_the_program_says():
    module = documents()
    assert module.DOCUMENT.read_text() == module.document(), "run: task docs"
    assert set(commands()) == set(module.JSON_FIELDS)


def test_doctor_json(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = run(["doctor", "--json"])
    answer = json.loads(capfd.readouterr().out)
    assert list(answer) == list(documents().DOCTOR_FIELDS)
    assert code == (0 if answer["ok"] else 1)


def test_doctor_exits_1_when_a_needed_check_fails(capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert run(["doctor"]) == 1
    out, _ = capfd.readouterr()
    assert out.startswith("not ready")
    assert "fail  ray address" in out
