"""`toolkit sweep` from end to end, on real Ray and a real MLflow server."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.commands import Workplace, runs_of, states, wait_until, workplace, write_experiment
from tests.engines.conftest import MlflowServer
from toolkit.core.study import TrialState
from toolkit.engines.mlflow_store import MlflowStore

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]

FIELDS = """experiment study protocol cluster sampler scheduler seed num_trials num_completed num_pruned num_failed metric direction best_trial
pareto test_metrics wall_s cluster_start_s search_s fit_wall_s fit_cpu_s efficiency num_slots tracking_uri parent_run_id report_path data"""


@pytest.fixture
def inprocess(workplace: Workplace, mlflow_server: MlflowServer) -> list[str]:
    return ["--cluster", "inprocess", "--tracking-uri", mlflow_server.uri]


def test_the_first_command(workplace: Workplace, wine_folder: Path) -> None:
    """As README has it, with fewer trials: Ray of its own, MLflow's embedded database."""
    answer = workplace.there(
        "sweep", "wine-quality", "--trials", "4", "--data", str(wine_folder), "--set", "model.num_boost_round=60", "--json"
    )
    assert answer.code == 0, answer.err
    assert answer.out.count("\n") == 1
    result = answer.json
    assert set(FIELDS.split()) <= set(result)
    assert result["study"] == "wine-quality-honest" and result["cluster"] == "local" and result["num_slots"] >= 1
    assert result["num_completed"] == result["num_trials"] == 4 and result["seed"] == 123
    assert result["data"]["num_rows"] == 6497 and result["data"]["num_features"] == 12 and result["data"]["kind"] == "file"
    assert 0.5 < result["test_metrics"]["auc"] < result["best_trial"]["value"] < 1
    assert 0 < result["fit_wall_s"] <= result["search_s"] * result["num_slots"] and 0 < result["efficiency"] <= 1
    workplace.all_gone()

    report = Path(result["report_path"]).read_text()
    assert "<svg" in report and not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", report)
    parent, children = runs_of(result["tracking_uri"], result["mlflow_experiment"])
    assert parent.run_id == result["parent_run_id"] and parent.status == "FINISHED"
    assert {number: run.status for number, run in children.items()} == dict.fromkeys(range(4), "FINISHED")
    mlflow.set_tracking_uri(result["tracking_uri"])
    model = mlflow.pyfunc.load_model(f"runs:/{parent.run_id}/model")
    features = (
        pd.read_csv(wine_folder / "winequality-red.csv", sep=";").rename(columns=lambda name: name.replace(" ", "_")).assign(is_red=1.0)
    )
    probability = model.predict(features[model.metadata.get_input_schema().input_names()].astype("float64"))
    assert probability.shape == (1599,) and 0 < probability.min() < probability.max() < 1


def test_published_then_another_study(workplace: Workplace, wine_folder: Path, inprocess: list[str]) -> None:
    command = ["sweep", "wine-quality", *inprocess, "--data", str(wine_folder), "--trials", "2", "--set", "model.num_boost_round=30"]
    first = workplace.here(*command, "--protocol", "published", "--json", "--report", "mine.html")
    assert first.code == 0, first.err
    assert first.json["protocol"] == "published" and first.json["study"] == "wine-quality-published"
    assert first.json["best_trial"]["value"] == pytest.approx(first.json["test_metrics"]["auc"], abs=1e-6), "selected on the test part"
    assert Path("mine.html").is_file() and first.json["report_path"] == str(Path("mine.html").resolve())
    second = workplace.here(*command, "--protocol", "published", "--json").json
    assert second["study"] == "wine-quality-published-2" and second["parent_run_id"] != first.json["parent_run_id"]
    assert second["best_trial"] == first.json["best_trial"]


def test_a_timeout_keeps_what_is_done_and_resume_completes(workplace: Workplace, inprocess: list[str], mlflow_server: MlflowServer) -> None:
    slow = write_experiment(workplace.folder, "timed", num_trials=5, body='time.sleep(0 if Path("quick").exists() else 0.3)')
    first = workplace.here("sweep", slow, *inprocess, "--timeout-s", "2", "--json")
    assert first.code == 0, first.err
    assert first.json["stopped_by"] == "timeout" and 1 <= first.json["num_completed"] < 5
    assert "go on with --resume" in first.err
    parent, _ = runs_of(mlflow_server.uri, "timed")
    assert parent.status == "KILLED"
    refused = workplace.here("sweep", slow, *inprocess)
    assert refused.code == 1 and "study 'timed-honest' is unfinished" in refused.err and "--resume" in refused.err
    Path("quick").touch()
    second = workplace.here("sweep", slow, *inprocess, "--resume", "--json")
    assert second.code == 0 and second.json["num_completed"] == 5 and second.json["stopped_by"] is None, second.err
    parent, children = runs_of(mlflow_server.uri, "timed")
    assert parent.run_id == first.json["parent_run_id"] and parent.status == "FINISHED"
    assert sorted(children) == list(range(5)) and {run.status for run in children.values()} == {"FINISHED"}
    finished = workplace.here("sweep", slow, *inprocess, "--resume")
    assert finished.code == 1 and "is finished, got 5 of 5 trials; raise --trials to extend it" in finished.err
    answer = workplace.here("sweep", slow, *inprocess, "--resume", "--trials", "12", "--json")
    extended = answer.json
    assert extended["num_completed"] == 12 and extended["parent_run_id"] == parent.run_id and "refuses" not in answer.err
    assert len(runs_of(mlflow_server.uri, "timed")[1]) == 12
    # The parent run tells of the winner of all twelve.
    run = MlflowStore(mlflow_server.uri).call("get_run", parent.run_id).data
    assert extended["best_trial"]["number"] >= 5, "another winner: or this shows nothing"
    assert run.tags["toolkit.best_trial"] == str(extended["best_trial"]["number"])
    assert json.loads(run.tags["toolkit.best_params"]) == extended["best_trial"]["params"]
    assert run.metrics[extended["metric"]] == pytest.approx(extended["best_trial"]["value"]) and run.metrics["num_trials"] == 12


def test_ctrl_c_once(workplace: Workplace, mlflow_server: MlflowServer) -> None:
    path = write_experiment(
        workplace.folder,
        "interrupted",
        body=f'time.sleep(0 if Path({str(workplace.folder / "quick")!r}).exists() or params["tree"]["x"] < 0.4 else 300)',
    )
    process = workplace.start("sweep", path, "--tracking-uri", mlflow_server.uri)
    workplace.wait_for_trials("interrupted-honest", 1, process)
    os.killpg(process.pid, signal.SIGINT)
    answer = workplace.finish(process, timeout_s=60)
    assert answer.code == 130 and answer.out == ""
    assert "of 6 trials are kept in study 'interrupted-honest'; go on with --resume" in answer.err.splitlines()[-1]
    workplace.all_gone()
    assert not states(workplace.journal("interrupted-honest"))[TrialState.RUNNING]
    Path("quick").touch()
    resumed = workplace.here("sweep", path, "--cluster", "inprocess", "--tracking-uri", mlflow_server.uri, "--resume", "--json")
    assert resumed.json["num_completed"] == 6
    parent, children = runs_of(mlflow_server.uri, "interrupted")
    assert parent.status == "FINISHED" and sorted(children) == list(range(6))


def test_ctrl_c_twice(workplace: Workplace, inprocess: list[str]) -> None:
    path = write_experiment(workplace.folder, "impatient", body='Path("begun").touch(); time.sleep(300)')
    process = workplace.start("sweep", path, *inprocess)
    wait_until(Path("begun").exists, 60)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "once more to stop at once" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    answer = workplace.finish(process, timeout_s=60)
    assert answer.code == 130 and "0 of 6 trials are kept" in answer.err
    assert states(workplace.journal("impatient-honest")) == {TrialState.WAITING: 1}


TABLE = """
from toolkit import Dataset, Experiment, Float, Int, Metric, Split, Sweep, XGBoost

def load():
    import sklearn.datasets
    frame = sklearn.datasets.load_{which}(as_frame=True).frame
    return frame.rename(columns=str)

def experiment():
    return Experiment(
        name="{which}",
        dataset=Dataset(load=load, label="target"),
        model=XGBoost(objective="{objective}", num_boost_round=15),
        space={{"max_depth": Int(2, 4)}},
        metric={metric},
        split=Split(folds={folds}),
        sweep=Sweep(num_trials=2),
    )
"""


@pytest.mark.parametrize(
    ("which", "objective", "metric", "folds", "test_metric", "at_least", "at_most"),
    [
        ("digits", "multi:softprob", 'Metric("mlogloss", "minimize")', None, "accuracy", 0.85, 1.0),
        ("diabetes", "reg:squarederror", 'Metric("rmse", "minimize")', 3, "rmse", 1.0, 75.0),
        ("diabetes", "reg:squarederror", '(Metric("rmse", "minimize"), Metric("mae", "minimize"))', None, "mae", 1.0, 65.0),
    ],
    ids=["multiclass", "regression, cross-validated", "two metrics"],
)  # fmt: skip
def test_other_tasks(
    workplace: Workplace, inprocess: list[str], which: str, objective: str, metric: str, folds: int | None, test_metric: str, at_least: float,
    at_most: float,
) -> None:  # fmt: skip
    Path("table.py").write_text(TABLE.format(which=which, objective=objective, metric=metric, folds=folds))
    answer = workplace.here("sweep", "table.py", *inprocess, "--json")
    assert answer.code == 0, answer.err
    assert at_least <= answer.json["test_metrics"][test_metric] <= at_most
    assert bool(answer.json["pareto"]) == metric.startswith("(")
    assert "<svg" in Path(answer.json["report_path"]).read_text()


def test_a_custom_model_with_groups_and_a_failure(workplace: Workplace, inprocess: list[str], mlflow_server: MlflowServer) -> None:
    path = write_experiment(workplace.folder, "own", num_trials=5, body='assert params["tree"]["x"] < 0.8, "too large"')
    answer = workplace.here("sweep", path, *inprocess, "--set", "sweep.max_failed_trials=4", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["num_failed"] >= 1 and answer.json["num_failed"] + answer.json["num_completed"] == 5
    assert answer.json["best_trial"]["params"]["tree/x"] == answer.json["best_trial"]["value"] < 0.8
    assert "AssertionError: too large" in answer.err
    _, children = runs_of(mlflow_server.uri, "own")
    failed = [run for run in children.values() if run.status == "FAILED"]
    assert len(failed) == answer.json["num_failed"] and all("AssertionError: too large" in run.tags["toolkit.error"] for run in failed)


def test_too_many_failures_are_exit_1(workplace: Workplace, inprocess: list[str], mlflow_server: MlflowServer) -> None:
    path = write_experiment(workplace.folder, "broken", body='raise OSError("no such thing")')
    answer = workplace.here("sweep", path, *inprocess, "--json")
    assert answer.code == 1 and answer.out == ""
    error = answer.err.splitlines()[-1]
    assert error.startswith(
        "error: more than 1 trials failed (sweep.max_failed_trials), got 2 failed, the last with OSError: no such thing;"
    )
    parent, children = runs_of(mlflow_server.uri, "broken")
    assert parent.status == "FAILED" and {run.status for run in children.values()} == {"FAILED"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--set", "space.tree.x.high=2.0"], "space.tree.x.high was 1.0, is 2.0"),
        (["--seed", "5"], "seed was 1, is 5"),
        (["--data", "other.csv"], "data.sha256 was "),
        (["--set", "sweep.scheduler=asha"], "scheduler was None, is "),
    ],
)
def test_resuming_another_experiment_is_refused(workplace: Workplace, inprocess: list[str], changes: list[str], words: str) -> None:
    path = write_experiment(workplace.folder, "same", num_trials=2)
    text = Path(path).read_text().replace("load=load", 'load="first.csv"')
    Path(path).write_text(text)
    frame = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60.0) % 7, "y": np.arange(60) % 2})
    frame.to_csv("first.csv", index=False)
    frame.assign(a=frame.a + 1).to_csv("other.csv", index=False)
    journal = begun(workplace, "same-honest", path)
    answer = workplace.here("sweep", path, *inprocess, "--resume", *changes)
    assert answer.code == 1 and "study 'same-honest' was begun with another experiment" in answer.err and words in answer.err
    assert journal.read_bytes() == journal.with_name("before").read_bytes()


def begun(workplace: Workplace, study: str, path: str) -> Path:
    """A journal as a sweep leaves it that was killed before its first trial."""
    from toolkit.core.data import DataContext
    from toolkit.core.recipes import load_experiment
    from toolkit.engines.optuna_study import Journal, OptunaStudy
    from toolkit.engines.tables import load_data

    experiment = load_experiment(path)
    sha256 = load_data(experiment, DataContext(None, None, workplace.folder / "cache")).source.sha256
    journal = workplace.journal(study)
    journal.parent.mkdir(parents=True)
    fingerprint: dict[str, Any] = {**experiment.fingerprint("honest"), "data.sha256": sha256}
    OptunaStudy(study, experiment, Journal(journal)).remember(study_id="x", fingerprint=fingerprint, num_trials=2)
    journal.with_name("before").write_bytes(journal.read_bytes())
    return journal


WRONG = {
    "raises.py": "value = 1 / 0\n",
    "returns.py": "def experiment():\n    return 3\n",
    "nothing.py": "x = 1\n",
}
TABLES = {
    "empty.csv": "",
    "colons.csv": "a:b:y\n1:2:0\n3:4:1\n",
    "constant.csv": "a,b,y\n" + "1,2,0\n" * 40,
    "few.csv": "a,b,y\n" + "1,2,0\n1,3,1\n" * 20,
    "holes.csv": "a,b,y\n" + "1,2,0\n1,2,\n" * 20,
    "words.csv": "a,b,y\n" + "1,red,0\n1,blue,1\n" * 20,
    "infinite.csv": "a,b,y\n" + "1,inf,0\n1,2,1\n" * 20,
    "unlabelled.csv": "a,b\n" + "1,2\n" * 40,
}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["wine-qualty"], 1, "unknown experiment, got 'wine-qualty'; did you mean 'wine-quality'?"),
        (["raises.py"], 1, "ZeroDivisionError: division by zero (raises.py, line 1)"),
        (["returns.py"], 1, "experiment() must return an Experiment, got int"),
        (["nothing.py"], 1, "nothing.py needs a function experiment()"),
        (["gone.py"], 1, "an experiment's file must exist, got gone.py"),
        (["good.py", "--set", "sweep.num_trial=3"], 1, "sweep.num_trial: unknown field, got 'num_trial'; did you mean 'num_trials'?"),
        (["good.py", "--set", "split.test=1.5"], 1, "split.test"),
        (["good.py", "--set", "space.tree.x.low=2"], 1, "low <= high must hold, got low=2.0, high=1.0"),
        (["good.py", "--set", "space.tree.x.log=true"], 1, "log needs low > 0, got low=0.0"),
        (["good.py", "--set", "space={}"], 1, "space: "),
        (["wine-quality", "--set", "metric.name=auc2"], 1, "metric: binary:logistic does not report it, got 'auc2'; did you mean 'auc'?"),
        (["good.py", "--cluster", "local", "--set", "sweep.cpus_per_trial=1000"], 1, "a trial must fit on the cluster, got 1000 CPUs"),
        (["good.py", "--data", "few.csv"], 1, "split: needs at least 3 different rows"),
        (["good.py", "--set", "sweep.sampler=tpee"], 1, "sweep.sampler.name: unknown, got 'tpee'; did you mean 'tpe'?"),
        (["good.py", "--trials", "0"], 2, "--trials"),
        (["good.py", "--concurrency", "-1"], 2, "--concurrency"),
        (["good.py", "--timeout-s", "0"], 2, "--timeout-s"),
        (["good.py", "--cluster", "moon"], 2, "--cluster"),
        (["good.py", "--data", "gone.csv"], 1, "gone.csv"),
        (["good.py", "--data", "empty.csv"], 1, "the file is empty"),
        (["good.py", "--data", "colons.csv"], 1, "delimiter found: ':'"),
        (["good.py", "--data", "constant.csv"], 1, "label 'y': needs at least two values"),
        (["good.py", "--data", "holes.csv"], 1, "'y'"),
        (["good.py", "--data", "words.csv"], 1, "'b'"),
        (["good.py", "--data", "infinite.csv"], 1, "infinite"),
        (["good.py", "--data", "unlabelled.csv"], 1, "'y'"),
        (["good.py", "--resume"], 1, "--resume needs a study that was begun, got no 'good-honest'"),
        (["good.py", "--study", "../x"], 1, "--study: letters"),
        (["good.py", "--report", "."], 1, "--report must name a file, got ."),
        (["good.py", "--tracking-uri", "http://127.0.0.1:1"], 1, "MLflow's tracking server must answer, got http://127.0.0.1:1"),
        (["good.py", "--tracking-uri", "nonsense://x"], 1, "nonsense"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(workplace: Workplace, arguments: list[str], code: int, words: str) -> None:
    for name, text in {**WRONG, **TABLES, "table.csv": "a,b,y\n" + "".join(f"{i},{i},{i % 2}\n" for i in range(60))}.items():
        Path(name).write_text(text)
    path = write_experiment(workplace.folder, "good")
    Path(path).write_text(Path(path).read_text().replace("load=load", 'load="table.csv"'))
    before = workplace.files()
    answer = (
        workplace.here("sweep", *arguments, "--cluster", "inprocess")
        if "--cluster" not in arguments
        else workplace.here("sweep", *arguments)
    )
    assert answer.code == code, answer.err
    errors = [line for line in answer.err.splitlines() if line not in ("reading data", "starting")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and words in errors[0], answer.err
    assert answer.out == ""
    assert workplace.files() == before


def test_an_unwritable_home(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_experiment(workplace.folder, "good")
    Path("file").touch()
    monkeypatch.setenv("TOOLKIT_HOME", str(workplace.folder / "file" / "home"))
    answer = workplace.here("sweep", path, "--cluster", "inprocess")
    assert answer.code == 1 and "error: TOOLKIT_HOME must be writable, got " in answer.err


def test_more_concurrency_than_slots_is_cut_with_a_warning(workplace: Workplace, inprocess: list[str]) -> None:
    path = write_experiment(workplace.folder, "wide", num_trials=1)
    answer = workplace.here("sweep", path, *inprocess, "--concurrency", "64", "--json")
    assert answer.code == 0 and "warning: concurrency 64 is more than the 1 slots there are" in answer.err
    assert json.loads(answer.out)["num_slots"] == 1
