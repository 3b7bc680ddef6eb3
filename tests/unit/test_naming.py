from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from toolkit.core.naming import default_experiment_name
from toolkit.engines.git import GitState, git_state


@pytest.mark.parametrize(
    ("branch", "on_databricks", "expected"),
    [
        ("main", False, "main_wine-quality"),
        ("feature/a.b:c", False, "feature-a-b-c_wine-quality"),
        (None, False, "wine-quality"),
        ("///", False, "wine-quality"),
        ("main", True, "/Shared/ann@example.com/main_wine-quality"),
        (None, True, "/Shared/ann@example.com/wine-quality"),
    ],
)
def test_default_experiment_name(branch: str | None, on_databricks: bool, expected: str) -> None:
    assert default_experiment_name("wine-quality", branch=branch, on_databricks=on_databricks, user="ann@example.com") == expected


def test_a_users_name_adds_no_folder() -> None:
    assert default_experiment_name("e", branch=None, on_databricks=True, user="a/b:c") == "/Shared/a-b-c/e"


def test_git_state_of_a_repository_and_of_none(tmp_path: Path) -> None:
    assert git_state(tmp_path) == GitState(None, None)
    subprocess.run(["git", "init", "-q", "-b", "feature/x", str(tmp_path)], check=True)
    assert git_state(tmp_path) == GitState("feature/x", None)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", *identity, "-C", str(tmp_path), "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    commit = git_state(tmp_path).commit
    assert commit and len(commit) == 40
    subprocess.run(["git", "-C", str(tmp_path), "checkout", "-q", "--detach"], check=True)
    assert git_state(tmp_path) == GitState(None, commit)


def test_no_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == GitState(None, None)
