"""Where studies live: names, the lock, the mirror; and nothing left behind by a refusal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts import an_experiment, in_steps
from toolkit.core.errors import StudyError
from toolkit.core.search import Search
from toolkit.core.study import TrialResult
from toolkit.engines import study_store
from toolkit.engines.optuna_study import Journal, OptunaStudy
from toolkit.engines.study_store import StudyFolder, study_folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def begin(folder: StudyFolder, num_finished: int = 1, *, finish: bool = False) -> None:
    experiment = an_experiment(in_steps, num_trials=3)
    study = OptunaStudy(folder.name, experiment, Journal(folder.journal))
    study.remember(num_trials=3)
    search = Search(study, experiment.sweep)
    for _ in range(num_finished):
        proposal = search.next_proposal()
        assert proposal is not None
        search.ended(TrialResult(proposal.number, (1.0,)))
    if finish:
        study.remember(finished_unix_s=1.0)


def put(home: Path, name: str = "wine", **how: object) -> None:
    with study_folder(home, name, resume=False, state_uri=None) as folder:
        begin(folder, **how)  # type: ignore[arg-type]


def enter(home: Path, *, resume: bool = False, name: str = "wine", state_uri: str | None = None) -> StudyFolder:
    with study_folder(home, name, resume, state_uri) as folder:
        return folder


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_names_follow_finished_studies(home: Path) -> None:
    put(home, num_finished=3, finish=True)
    put(home, num_finished=3, finish=True)
    assert enter(home).name == "wine-3"
    again = enter(home, resume=True)
    assert again.name == "wine-2" and again.exists and again.journal.is_file()


def test_an_unfinished_study_is_reported_and_untouched(home: Path) -> None:
    put(home)
    before = (home / "studies/wine/journal.jsonl").read_bytes()
    with pytest.raises(
        StudyError, match=r"study 'wine' is unfinished \(1 of 3 trials\); go on with --resume, or begin another with --study"
    ):
        enter(home)
    assert (home / "studies/wine/journal.jsonl").read_bytes() == before
    assert enter(home, resume=True).name == "wine"


def test_resume_of_nothing_leaves_nothing(home: Path) -> None:
    with pytest.raises(StudyError, match="--resume needs a study that was begun, got no 'wine'"):
        enter(home, resume=True)
    assert not home.exists()


def test_a_study_that_was_never_begun_leaves_nothing(home: Path) -> None:
    with pytest.raises(RuntimeError), study_folder(home, "wine", False, None):
        raise RuntimeError("refused by something else")
    assert not home.exists()


def test_what_was_there_before_stays(home: Path) -> None:
    (home / "cache").mkdir(parents=True)
    enter(home)
    assert files(home) == ["cache"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 129])
def test_names_that_are_no_folder(home: Path, name: str) -> None:
    with pytest.raises(StudyError, match="--study: letters"):
        enter(home, name=name)
    assert not home.exists()


@pytest.fixture
def holder(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the study."""
    script = f"""
from pathlib import Path
from toolkit.engines.study_store import study_folder
with study_folder(Path({str(home)!r}), "wine", False, None) as folder:
    folder.journal.write_text("")
    print("held", flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("resume", [False, True])
def test_another_process_holds_the_study_until_it_is_killed(home: Path, holder: subprocess.Popen[str], resume: bool) -> None:
    with pytest.raises(StudyError, match=rf"study 'wine' is run by another process, got pid {holder.pid} on "):
        enter(home, resume=resume)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert enter(home, resume=True).name == "wine"


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"TOOLKIT_HOME must be writable, got .*Not a directory; set TOOLKIT_HOME"):
        enter(tmp_path / "file" / "home")
    assert files(tmp_path) == ["file"]


def test_the_journal_survives_the_loss_of_the_disk(home: Path, tmp_path: Path) -> None:
    state = f"file://{tmp_path}/state"
    with study_folder(home, "wine", False, state) as folder:
        begin(folder, 2)
    lost = tmp_path / "another-machine"
    with pytest.raises(StudyError, match=r"unfinished \(2 of 3 trials\)"):
        enter(lost, state_uri=state)
    assert not lost.exists()
    restored = enter(lost, resume=True, state_uri=state)
    assert restored.journal.read_bytes() == (home / "studies/wine/journal.jsonl").read_bytes()


def test_a_study_that_went_on_elsewhere(home: Path, tmp_path: Path) -> None:
    """Its older copy here must neither be run on, nor overwrite the newer one."""
    state, elsewhere = str(tmp_path / "state"), tmp_path / "another-machine"
    with study_folder(home, "wine", False, state) as folder:
        begin(folder)
    with study_folder(elsewhere, "wine", True, state) as folder:
        begin(folder)
    newer = folder.journal.read_bytes()
    with study_folder(home, "wine", True, state) as folder:
        assert folder.journal.read_bytes() == newer
        begin(folder)
    with study_folder(elsewhere, "wine", True, None) as folder:
        begin(folder)
    with pytest.raises(StudyError, match="must have gone on in one place, got different trials"):
        enter(elsewhere, resume=True, state_uri=state)


def test_the_mirror_follows_while_the_study_runs_and_copies_whole_lines(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_store, "MIRROR_EVERY_S", 0.02)
    copy = tmp_path / "state/wine/journal.jsonl"
    with study_folder(home, "wine", False, str(tmp_path / "state")) as folder:
        begin(folder, 2)
        whole = folder.journal.read_bytes()
        with folder.journal.open("ab") as file:
            file.write(b'{"op_code": 4, "torn')
        while not copy.exists() or copy.read_bytes() != whole:
            time.sleep(0.01)
    assert copy.read_bytes() == whole and [path.name for path in copy.parent.iterdir()] == ["journal.jsonl"]


def test_a_mirror_that_fails_does_not_fail_the_study(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with study_folder(home, "wine", False, str(tmp_path / "state")) as folder:
        begin(folder)
        (tmp_path / "state").rmdir()
        (tmp_path / "state").write_text("in the way")
    assert "could not be copied to the state URI" in caplog.text and folder.journal.is_file()


def test_a_state_uri_that_cannot_be_used(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri in (f"{tmp_path}/file/state", "nonsense://somewhere"):
        with pytest.raises(StudyError, match="the state URI must be a folder that can be written, got"):
            enter(home, state_uri=uri)
    assert not home.exists()
