"""What a run of `toolkit score` is asked to do, checked before anything is opened."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.core.errors import RegistryError, ScoringError
from toolkit.core.scoring import RowRules, ScoringModel, with_key
from toolkit.score_asked import Asked, ask, choose_engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"id": [1], "at": [datetime.datetime(2026, 1, 1)]}), tmp_path / "rows" / "1.parquet")
    return tmp_path


def asked(folder: Path, **changes: Any) -> Asked:
    given: dict[str, Any] = {
        "model": "wine",
        "input": folder / "rows",
        "output": folder / "scores",
        "mode": "incremental",
        "window": None,
        "time_column": None,
        "engine": "auto",
        "where": None,
        "rules": RowRules(),
        "quarantine": None,
        "state": None,
        "skip_change_commits": False,
        "max_batch_gib": 10.0,
        **changes,
    }
    return ask(**given)


def test_names_beside_the_output(folder: Path) -> None:
    found = asked(folder)
    assert (found.output.kind, found.quarantine.path, found.audit.path) == (
        "delta", folder / "scores_quarantine", folder / "scores_audit",
    )  # fmt: skip
    assert found.state == folder / "scores" / "_toolkit"
    named = asked(folder, output="lake.scores", state=folder / "state")
    assert (named.quarantine.shown, named.audit.shown, named.state) == ("lake.scores_quarantine", "lake.scores_audit", folder / "state")
    uri = asked(folder, output="delta:s3://bucket/scores/", state=folder / "state")
    assert uri.quarantine.location == "s3://bucket/scores_quarantine" and uri.audit.kind == "delta"


def test_a_window_is_half_open_and_utc(folder: Path) -> None:
    found = asked(folder, mode="window", window=("2026-01-01", "2026-01-02T06:00:00+02:00"), time_column="at")
    assert found.window == ("at", "2026-01-01T00:00:00+00:00", "2026-01-02T04:00:00+00:00")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "window"}, "needs --from, --to and --time-column"),
        ({"mode": "window", "window": ("2026-01-02", "2026-01-02"), "time_column": "at"}, "must begin before it ends"),
        ({"mode": "window", "window": ("2026-01-02", "2026-01-01"), "time_column": "at"}, "must begin before it ends"),
        ({"mode": "window", "window": ("2999-01-01", "2999-01-02"), "time_column": "at"}, "must not lie in the future"),
        ({"mode": "window", "window": ("yesterday", "2026-01-01"), "time_column": "at"}, "--from must be a time, got 'yesterday'"),
        ({"window": ("2026-01-01", "2026-01-02")}, "are for --mode window"),
        ({"time_column": "at"}, "are for --mode window"),
        ({"mode": "newest"}, "the mode must be one of incremental, window, full"),
        ({"rules": RowRules(max_bad_share=1.1)}, "--max-bad-share must be between 0 and 1, got 1.1"),
        ({"rules": RowRules(explain=-1)}, "--explain must be a number of features"),
        ({"max_batch_gib": 0}, "--max-batch-gib must be above 0"),
        ({"input": "jdbc:derby:rows#ROWS"}, "does not tell what is new"),
        ({"output": "parquet:s3://bucket/scores", "state": "state"}, "must be on this machine or a Volume"),
        ({"input": "csv:s3://bucket/rows"}, "a CSV input must be on this machine"),
        ({"output": "lake.scores"}, "--state must name a folder"),
        ({"where": "a > 1", "engine": "files"}, "--where is for the engine spark"),
        ({"quarantine": "parquet:elsewhere"}, "must be of one kind"),
    ],
)
def test_what_does_not_go_together(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        asked(folder, **changes)


def test_places_lie_apart(folder: Path) -> None:
    with pytest.raises(ScoringError, match="output and input must lie apart"):
        asked(folder, output=folder / "rows" / "scores")
    with pytest.raises(ScoringError, match="quarantine and input must lie apart"):
        asked(folder, quarantine=folder / "rows" / "bad")
    with pytest.raises(ScoringError, match="quarantine and output must lie apart"):
        asked(folder, quarantine=folder / "scores" / "bad")
    with pytest.raises(RegistryError):
        asked(folder, model="wine/newest")


@pytest.mark.parametrize(
    ("changes", "engine"),
    [
        ({}, "files"),
        ({"engine": "spark"}, "spark"),
        ({"where": "a > 1"}, "spark"),
        ({"output": "lake.scores", "state": "state"}, "spark"),
        ({"mode": "window", "window": ("2026-01-01", "2026-01-02"), "time_column": "at"}, "spark"),
        ({"mode": "full"}, "files"),
    ],
)
def test_the_engine(folder: Path, changes: dict[str, Any], engine: str) -> None:
    assert choose_engine(asked(folder, **changes))[0] == engine


def test_an_engine_that_cannot(folder: Path) -> None:
    window = {"mode": "window", "window": ("2026-01-01", "2026-01-02"), "time_column": "at"}
    with pytest.raises(ScoringError, match="a window is scored by the engine spark"):
        choose_engine(asked(folder, engine="files", **window))
    with pytest.raises(ScoringError, match=r"got lake\.scores is no Delta or Parquet table"):
        choose_engine(asked(folder, engine="files", output="lake.scores", state="state"))


def test_the_key() -> None:
    model = ScoringModel("wine", 1, "portable", "0" * 64, (), Path(), 0.0, {"key": "id"})
    notices: list[str] = []
    assert with_key(RowRules(), model, ["id", "a"], "rows", notices).key == "id"
    assert with_key(RowRules(key="a"), model, ["id", "a"], "rows", notices).key == "a" and not notices
    assert with_key(RowRules(), model, ["a"], "rows", notices).key is None
    assert notices == ["rows has no column 'id', the model's key: rows are not checked for one"]
    with pytest.raises(ScoringError, match=r"--key: must be a column of rows, got 'idd'; did you mean 'id'\?"):
        with_key(RowRules(key="idd"), model, ["id", "a"], "rows", notices)
    with pytest.raises(ScoringError, match="--duplicates refuse needs a key"):
        with_key(RowRules(duplicates="refuse"), model, ["a"], "rows", notices)
