"""Kill a part of a sweep on purpose: in the end every trial is there once, in the journal and in MLflow, and nothing is left running."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Workplace, runs_of, states, wait_until, workplace, write_experiment
from tests.engines.conftest import MlflowServer
from toolkit.core.study import TrialState

pytestmark = [pytest.mark.engine, pytest.mark.fault]
__all__ = ["workplace"]


def check_complete(workplace: Workplace, name: str, num_trials: int, uri: str) -> None:
    assert states(workplace.journal(f"{name}-honest")) == {TrialState.COMPLETE: num_trials}
    parent, children = runs_of(uri, name)
    assert parent.status == "FINISHED" and sorted(children) == list(range(num_trials))
    assert {run.status for run in children.values()} == {"FINISHED"} and all(run.has_params for run in children.values())
    workplace.all_gone()


def test_the_driver_is_killed_at_a_third_and_at_two_thirds(workplace: Workplace, mlflow_server: MlflowServer, repetition: int) -> None:
    name = f"killed-{repetition}"
    command = ["sweep", write_experiment(workplace.folder, name, num_trials=9, body="time.sleep(0.1)"), "--tracking-uri", mlflow_server.uri]
    for num_finished, resume in ((3, []), (6, ["--resume"])):
        process = workplace.start(*command, *resume)
        workplace.wait_for_trials(f"{name}-honest", num_finished, process)
        process.kill()
        process.wait()
        workplace.all_gone()
        assert states(workplace.journal(f"{name}-honest"))[TrialState.RUNNING] > 0
    answer = workplace.here(*command, "--resume", "--json", "--cluster", "inprocess")
    assert answer.code == 0 and answer.json["num_completed"] == 9, answer.err
    check_complete(workplace, name, 9, mlflow_server.uri)


def test_trials_processes_are_killed(workplace: Workplace, mlflow_server: MlflowServer, repetition: int) -> None:
    name = f"actors-{repetition}"
    marks = workplace.folder / "marks"
    marks.mkdir()
    body = f"""mark = Path({str(marks)!r}) / str(params["tree"]["x"])
        if step == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)"""
    answer = workplace.there(
        "sweep", write_experiment(workplace.folder, name, num_trials=3, body=body), "--tracking-uri", mlflow_server.uri, "--json"
    )
    assert answer.code == 0 and answer.json["num_completed"] == 3 and answer.json["num_failed"] == 0, answer.err
    assert len(list(marks.iterdir())) == 3, "each was killed"
    check_complete(workplace, name, 3, mlflow_server.uri)
    assert {run.tags["toolkit.num_retries"] for run in runs_of(mlflow_server.uri, name)[1].values()} == {"1"}


OFTEN_MIRRORED = """
from toolkit.engines import study_store
study_store.MIRROR_EVERY_S = 0.05
from toolkit.cli.app import main
main()
"""


def test_the_whole_disk_is_lost(
    workplace: Workplace, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, repetition: int
) -> None:
    """And what was copied last is older than what MLflow has."""
    name = f"lost-{repetition}"
    state = workplace.folder / "state"
    copy, old_copy = state / f"{name}-honest" / "journal.jsonl", workplace.folder / "old"
    path = write_experiment(workplace.folder, name, num_trials=7, body="time.sleep(0.1)")
    command = ["sweep", path, "--cluster", "inprocess", "--tracking-uri", mlflow_server.uri]
    (workplace.folder / "often.py").write_text(OFTEN_MIRRORED)
    monkeypatch.setenv("TOOLKIT_STATE_URI", str(state))
    process = workplace.start(*command, script=workplace.folder / "often.py")
    workplace.wait_for_trials(f"{name}-honest", 1, process)
    wait_until(lambda: copy.exists() and states(copy)[TrialState.COMPLETE] >= 1, 30)
    shutil.copy(copy, old_copy)
    wait_until(lambda: sum(run.status == "FINISHED" for run in runs_of(mlflow_server.uri, name)[1].values()) >= 4, 60)
    process.kill()
    process.wait()
    assert states(old_copy)[TrialState.COMPLETE] < 4
    shutil.copy(old_copy, copy)
    shutil.rmtree(workplace.folder / ".toolkit")
    refused = workplace.here(*command)
    assert refused.code == 1 and f"study '{name}-honest' is unfinished" in refused.err
    answer = workplace.here(*command, "--resume", "--json")
    assert answer.code == 0 and answer.json["num_completed"] == 7, answer.err
    check_complete(workplace, name, 7, mlflow_server.uri)


@pytest.fixture(scope="module")
def killable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("killable-server")).start()
    yield server
    server.kill()


def waiting_after_4(folder: Path) -> str:
    """The middle of a fit: the fifth trial and those after it wait for the file `go`."""
    (folder / "marks").mkdir()
    return """(Path("marks") / str(params["tree"]["x"])).touch()
        while len(list(Path("marks").iterdir())) > 4 and not Path("go").exists():
            time.sleep(0.02)"""


def test_the_tracking_server_is_stopped_and_started_again(workplace: Workplace, killable_server: MlflowServer, repetition: int) -> None:
    name = f"restarted-{repetition}"
    path = write_experiment(workplace.folder, name, num_trials=8, body=waiting_after_4(workplace.folder))
    process = workplace.start("sweep", path, "--cluster", "inprocess", "--tracking-uri", killable_server.uri, "--json")
    workplace.wait_for_trials(f"{name}-honest", 2, process)
    killable_server.kill()
    workplace.wait_for_trials(f"{name}-honest", 4, process)
    killable_server.start()
    Path("go").touch()
    answer = workplace.finish(process)
    assert answer.code == 0 and answer.json["num_completed"] == 8 and answer.json["num_unsent"] == 0, answer.err
    check_complete(workplace, name, 8, killable_server.uri)


def test_the_tracking_server_never_comes_back_before_the_end(workplace: Workplace, killable_server: MlflowServer, repetition: int) -> None:
    name = f"gone-{repetition}"
    path = write_experiment(workplace.folder, name, num_trials=6, body=waiting_after_4(workplace.folder))
    command = ["sweep", path, "--cluster", "inprocess", "--tracking-uri", killable_server.uri, "--json"]
    process = workplace.start(*command)
    workplace.wait_for_trials(f"{name}-honest", 4, process)
    killable_server.kill()
    Path("go").touch()
    answer = workplace.finish(process)
    assert answer.code == 0 and answer.json["num_completed"] == 6 and answer.json["num_unsent"] > 0, answer.err
    assert "send them later with --resume" in answer.err
    killable_server.start()
    resumed = workplace.here(*command, "--resume")
    assert resumed.code == 0 and resumed.json["num_unsent"] == 0 and resumed.json["parent_run_id"] == answer.json["parent_run_id"], (
        resumed.err
    )
    check_complete(workplace, name, 6, killable_server.uri)
