"""Scoring by files, on a real Spark and real Delta tables: exactly once whatever is killed whenever, bad rows, schemas."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import pkgutil
import shutil
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engines.spark_fixtures import own_session
from toolkit.core.errors import ScoringError
from toolkit.core.scoring import BatchCounts, Feature, RowRules, ScoringModel
from toolkit.core.table_names import TableName
from toolkit.engines import parquet_batches
from toolkit.engines.score_state import Generation, Plan, ScoreState, Scoring

pytestmark = pytest.mark.engine

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("warehouse")) as found:
        yield found


def model_of(
    version: int = 1,
    objective: str = "binary:logistic",
    categories: tuple[Any, ...] | None = None,
    classes: tuple[Any, ...] | None = (0, 1),
) -> ScoringModel:
    """Of three features; with `categories`, the last is one."""
    import xgboost

    random = np.random.default_rng(version)
    features = random.normal(size=(400, 3)).astype(np.float32)
    if categories:
        features[:, 2] = random.integers(0, len(categories), 400)
    label = features[:, 0] + features[:, 1] * features[:, 2] + random.normal(size=400) * 0.1
    task = "regression"
    extra: dict[str, Any] = {}
    if objective == "binary:logistic":
        label, task = label > 0, "binary"
    elif objective == "multi:softprob":
        label, task, extra = np.digitize(label, [-0.5, 0.5]), "multiclass", {"num_class": 3}
    kinds = ["q", "q", "c" if categories else "q"]
    data = xgboost.DMatrix(features, label, feature_names=list(NAMES), feature_types=kinds, enable_categorical=bool(categories))
    booster = xgboost.train({"objective": objective, "max_depth": 4, "nthread": 1, **extra}, data, 10)
    payload = bytes(booster.save_raw("ubj"))
    named = [{"name": name, "type": "number"} for name in NAMES]
    if categories:
        named[2] = {"name": "c", "type": "category", "categories": list(categories)}
    spec = {
        "model_kind": "xgboost", "task": task, "features": named, "classes": None if task == "regression" else list(classes or ()), "key": "id",
        "calibration": None, "threshold": 0.4 if task == "binary" else None,
    }  # fmt: skip
    found = tuple(Feature(each["name"], tuple(each["categories"]) if "categories" in each else None) for each in named)
    return ScoringModel("m", version, "portable", hashlib.sha256(payload).hexdigest(), found, Path(), 0.0, spec, payload)


def expected(model: ScoringModel, rows: pa.Table) -> Any:
    """As the training process predicts."""
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(model.payload))
    columns = [np.asarray(rows[name].to_pandas(), dtype=np.float32) for name in NAMES]
    return booster.predict(xgboost.DMatrix(np.column_stack(columns), feature_names=list(NAMES)))


def rows_of(begin: int, end: int, **changed: list[Any]) -> pa.Table:
    random = np.random.default_rng(begin)
    columns: dict[str, Any] = {"id": pa.array(range(begin, end), pa.int64())}
    columns |= {name: random.normal(size=end - begin) for name in NAMES}
    return pa.table({**columns, "note": [f"row {number}" for number in range(begin, end)], **changed})


class Place:
    """An input, an output and the state between them; `kind` of both."""

    def __init__(self, session: Any, folder: Path, source: str, output: str) -> None:
        self.session, self.source_kind, self.output_kind = session, source, output
        self.input, self.output, self.quarantine = folder / "in put", folder / "out", folder / "bad"
        self.state = ScoreState(folder / "state")
        self.generation = Generation("0123456789abcdef", "incremental")
        self.batches: list[tuple[Plan, BatchCounts]] = []
        self.num_writes = 0

    def add(self, rows: pa.Table, **options: Any) -> None:
        if self.source_kind == "delta":
            import deltalake

            deltalake.write_deltalake(self.input, rows, mode="append", **options)
        else:
            self.input.mkdir(exist_ok=True)
            self.num_writes += 1
            pq.write_table(rows, self.input / f"{self.num_writes}.parquet", **options)

    def score(self, model: ScoringModel | None = None, *, overwrite: bool = False, **rules: Any) -> list[tuple[Plan, BatchCounts]]:
        from toolkit.engines.spark_files_scoring import score_files

        model = model or model_of()
        skip = rules.pop("skip_change_commits", False)
        tables = [
            TableName(kind, f"file://{path}", path, str(path))
            for kind, path in ((self.source_kind, self.input), (self.output_kind, self.output), (self.output_kind, self.quarantine))
        ]
        scoring = Scoring(str(self.input), str(self.output), "files", self.generation)
        return score_files(
            self.session, *tables, lambda name, version: model_of(version), model, RowRules(**{"key": "id", "max_bad_share": 0.5, **rules}), self.state,
            scoring, run_id=f"run-{model.version}", overwrite=overwrite, check_lease=lambda: None, on_batch=lambda *each: self.batches.append(each),
            progress=lambda text: None, skip_change_commits=skip,
        )  # fmt: skip

    def read(self, folder: Path | None = None) -> pa.Table:
        folder = folder or self.output
        if self.output_kind == "delta":
            import deltalake

            return deltalake.DeltaTable(folder).to_pyarrow_table()
        found = [path for batch in parquet_batches.live_batches(folder) for path in batch.manifest.paths(folder)]
        return pa.concat_tables([pq.read_table(path, partitioning=None) for path in found])

    def ids(self, folder: Path | None = None) -> list[int]:
        return sorted(self.read(folder)["id"].to_pylist())

    def is_exact(self, num_rows: int) -> None:
        assert self.ids() == list(range(num_rows))
        on_disk = {path.name for path in self.output.rglob("*.parquet")}
        assert len(on_disk) == len({path.rpartition("/")[2] for path in self.files()}), "nothing is left over"

    def files(self) -> list[str]:
        if self.output_kind == "delta":
            import deltalake

            return deltalake.DeltaTable(self.output).file_uris()
        return [str(path) for batch in parquet_batches.live_batches(self.output) for path in batch.manifest.paths(self.output)]


@pytest.fixture(params=["delta-delta", "delta-parquet", "parquet-delta", "parquet-parquet"])
def place(request: pytest.FixtureRequest, session: Any, tmp_path: Path) -> Place:
    return Place(session, tmp_path, *request.param.split("-"))


@pytest.fixture
def delta(session: Any, tmp_path: Path) -> Place:
    return Place(session, tmp_path, "delta", "delta")


def test_three_increments_are_scored_once_each(place: Place) -> None:
    model, num_rows = model_of(), 0
    for batch_id in range(3):
        place.add(rows_of(num_rows, num_rows + 100))
        num_rows += 100
        ((plan, counts),) = place.score(model)
        assert (plan.batch_id, counts.num_input_rows, counts.num_scored_rows) == (batch_id, 100, 100)
        place.is_exact(num_rows)
        assert place.score(model) == []
    found = place.read().sort_by("id")
    np.testing.assert_allclose(found["prediction"], expected(model, found), atol=1e-6)
    assert found["predicted_label"].to_pylist() == [int(each > 0.4) for each in found["prediction"].to_pylist()]
    stamp = found.select(["model_name", "model_version", "model_sha256", "scoring_run_id"]).to_pylist()[0]
    assert stamp == {"model_name": "m", "model_version": 1, "model_sha256": model.sha256[:12], "scoring_run_id": "run-1"}
    added = ["prediction", "predicted_label", "model_name", "model_version", "model_sha256", "scoring_run_id", "batch_id", "scored_at_utc"]
    assert found.column_names == ["id", *NAMES, "note", *[name for name in added if name != "batch_id" or place.output_kind == "delta"]]
    assert str(found.schema.field("scored_at_utc").type) == "timestamp[us, tz=UTC]"


class Killed(Exception):
    """What stands for kill -9: nothing after it is done."""


POINTS = {
    "after the plan": ("toolkit.engines.spark_files_scoring._Files.execute", "before"),
    "after the files": ("toolkit.engines.spark_files_scoring._Files._commit", "before"),
    "before the scores": ("output commit", "before"),
    "after the scores": ("output commit", "after"),
    "before the record": ("toolkit.engines.spark_files_scoring.write_json", "before"),
}


def kill_at(point: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name, when = POINTS[point]
    if name == "output commit":
        kind = "toolkit.engines.delta_files.DeltaOutput" if place.output_kind == "delta" else "toolkit.engines.files_tables.ParquetOutput"
        name = f"{kind}.commit"
    owner_name, _, function = name.rpartition(".")
    owner: Any = pkgutil.resolve_name(owner_name)
    original = getattr(owner, function)

    def killed(*arguments: Any, **keywords: Any) -> Any:
        folder = getattr(arguments[0], "folder", None) or getattr(arguments[0], "_folder", None)
        if folder == place.quarantine:
            return original(*arguments, **keywords)
        if when == "after":
            original(*arguments, **keywords)
        raise Killed

    monkeypatch.setattr(owner, function, killed)
    # A kill removes nothing.
    monkeypatch.setattr("toolkit.engines.spark_files_scoring._remove", lambda *ignored: None)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_batch_is_executed_again_with_its_own_rows_and_model(point: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add(rows_of(0, 50))
    place.score()
    place.add(rows_of(50, 100, a=[float("inf"), *range(49)]))
    with monkeypatch.context() as patch:
        kill_at(point, place, patch)
        with pytest.raises(Killed):
            place.score()
    place.add(rows_of(100, 120))
    again, new = place.score(model_of(2))
    assert (again[0].batch_id, again[0].version, again[1].num_input_rows, again[1].num_quarantined_rows) == (1, 1, 50, 1)
    assert (new[0].batch_id, new[0].version, new[1].num_input_rows) == (2, 2, 20)
    found = place.read().sort_by("id")
    assert found["id"].to_pylist() == [number for number in range(120) if number != 50]
    assert found["model_version"].to_pylist() == [1] * 99 + [2] * 20
    assert found["scoring_run_id"].to_pylist() == ["run-1"] * 99 + ["run-2"] * 20
    assert place.ids(place.quarantine) == [50]
    assert [plan.batch_id for plan, _ in place.batches] == [0, 1, 2] if point != "before the record" else [0, 1, 1, 2]
    assert place.score() == []
    assert len({path.name for path in place.output.rglob("*.parquet")}) == len(place.files()) or point == "before the record"


def test_without_its_state_a_delta_scoring_goes_on(session: Any, tmp_path: Path) -> None:
    for output in ("delta", "parquet"):
        place = Place(session, tmp_path / output, "delta", output)
        (tmp_path / output).mkdir()
        place.add(rows_of(0, 30))
        place.score()
        shutil.rmtree(place.state.folder)
        place.generation = Generation("fedcba9876543210", "incremental")
        assert place.score() == []
        place.add(rows_of(30, 40))
        ((plan, counts),) = place.score()
        assert (plan.batch_id, counts.num_input_rows) == (1, 10)
        place.is_exact(40)


def test_without_its_state_a_kill_between_quarantine_and_scores_is_mended(delta: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    delta.add(rows_of(0, 10))
    delta.score()
    delta.add(rows_of(10, 20, b=[float("nan"), float("-inf"), *range(8)]))
    with monkeypatch.context() as patch:
        kill_at("before the scores", delta, patch)
        with pytest.raises(Killed):
            delta.score()
    shutil.rmtree(delta.state.folder)
    delta.generation = Generation("fedcba9876543210", "incremental")
    delta.add(rows_of(20, 30))
    assert [counts.num_input_rows for _, counts in delta.score()] == [10]
    assert [counts.num_input_rows for _, counts in delta.score()] == [10]
    assert delta.ids() == [number for number in range(30) if number != 11]
    assert delta.ids(delta.quarantine) == [11]


def test_a_parquet_input_needs_its_state(session: Any, tmp_path: Path) -> None:
    for output in ("delta", "parquet"):
        (tmp_path / output).mkdir()
        place = Place(session, tmp_path / output, "parquet", output)
        place.add(rows_of(0, 30))
        place.score()
        shutil.rmtree(place.state.folder)
        with pytest.raises(ScoringError, match=r"knows which files .* 1 batches in the output"):
            place.score()
        place.generation = Generation("fedcba9876543210", "full")
        place.score(overwrite=True)
        place_ids = place.ids()
        assert place_ids == list(range(30))


def test_of_two_runs_at_once_one_fails(delta: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.engines import spark_files_scoring

    delta.add(rows_of(0, 30))
    delta.score()
    delta.add(rows_of(30, 60, a=[float("inf"), *range(29)]))
    other = Place(delta.session, delta.input.parent, "delta", "delta")
    other.state = ScoreState(delta.state.folder.parent / "other state")
    original = spark_files_scoring._Files._commit

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(spark_files_scoring._Files, "_commit", original)
        other.score()
        original(*arguments)

    monkeypatch.setattr(spark_files_scoring._Files, "_commit", meanwhile)
    with pytest.raises(ScoringError, match="one run at a time"):
        delta.score()
    assert delta.ids() == [number for number in range(60) if number != 30]
    assert delta.ids(delta.quarantine) == [30]


def test_of_two_first_runs_at_once_one_fails(delta: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.engines import spark_files_scoring

    delta.add(rows_of(0, 30))
    other = Place(delta.session, delta.input.parent, "delta", "delta")
    other.state = ScoreState(delta.state.folder.parent / "other state")
    original = spark_files_scoring._Files._commit

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(spark_files_scoring._Files, "_commit", original)
        other.score()
        original(*arguments)

    monkeypatch.setattr(spark_files_scoring._Files, "_commit", meanwhile)
    with pytest.raises(ScoringError, match="one run at a time"):
        delta.score()
    delta.is_exact(30)


def test_full_replaces_the_output_and_goes_on_incrementally(place: Place) -> None:
    place.add(rows_of(0, 20))
    place.score()
    place.add(rows_of(20, 40))
    place.generation = Generation("fedcba9876543210", "full")
    ((plan, counts),) = place.score(model_of(2), overwrite=True)
    assert (plan.batch_id, plan.overwrite, counts.num_input_rows) == (1, True, 40)
    assert place.ids() == list(range(40)) and set(place.read()["model_version"].to_pylist()) == {2}
    place.add(rows_of(40, 50))
    ((plan, counts),) = place.score(model_of(2), overwrite=True)
    assert (plan.overwrite, counts.num_input_rows) == (False, 10)
    assert place.ids() == list(range(50))


def test_bad_rows_go_to_the_quarantine_with_their_reason(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(0, 8, a=["1", " 2.5e0 ", "x", "Infinity", None, "1e99", "", "3"])
    rows = rows.set_column(0, "id", pa.array([0, 1, 2, 3, 4, None, 6, 0], pa.int64()))
    place.add(rows)
    ((_, counts),) = place.score(duplicates="quarantine", max_bad_share=1.0)
    assert counts.reasons == {"uncastable: a": 2, "infinite: a": 1, "key_missing": 1, "key_duplicated": 2}
    assert (counts.num_input_rows, counts.num_scored_rows, counts.num_quarantined_rows) == (8, 2, 6)
    assert place.ids() == [1, 4]
    bad = {row["quarantine_reason"]: row for row in place.read(place.quarantine).to_pylist()}
    assert json.loads(bad["key_missing"]["raw_row"])["a"] == "1e99" and bad["key_missing"]["id"] is None
    assert json.loads(bad["infinite: a"]["raw_row"]).keys() == {"id", *NAMES, "note"}
    assert bad["infinite: a"]["quarantined_at_utc"] == place.read()["scored_at_utc"][0].as_py()


def test_copies_of_a_key_can_be_refused_or_kept(delta: Place) -> None:
    delta.add(rows_of(0, 5))
    delta.add(rows_of(4, 8))
    with pytest.raises(ScoringError, match=r"'id' must be unique within a batch, got 2 rows"):
        delta.score(duplicates="refuse")
    delta.score(duplicates="keep")
    assert delta.ids() == [0, 1, 2, 3, 4, 4, 5, 6, 7]


def test_too_many_bad_rows_commit_nothing(place: Place) -> None:
    place.add(rows_of(0, 4, a=[float("inf"), 1.0, 2.0, 3.0]))
    with pytest.raises(ScoringError, match=r"at most 0.1 of a batch's rows .* got 1 of 4: 1 infinite: a"):
        place.score(max_bad_share=0.1)
    assert not list(place.output.rglob("*.parquet")) and not list(place.quarantine.rglob("*.parquet"))
    place.score(max_bad_share=0.3)
    assert place.ids() == [1, 2, 3]


def test_a_batch_of_bad_rows_alone_is_done_once(place: Place) -> None:
    place.add(rows_of(0, 3, a=[float("inf")] * 3))
    ((_, counts),) = place.score(max_bad_share=1.0)
    assert counts.num_scored_rows == 0 and place.score() == []
    place.add(rows_of(3, 6))
    place.score()
    assert place.ids() == [3, 4, 5] and place.ids(place.quarantine) == [0, 1, 2]


def test_columns_may_change_their_order_and_grow_wider(place: Place) -> None:
    wide = rows_of(0, 20, a=pa.array(range(20), pa.int64()), b=pa.array(range(20), pa.int32()))
    place.add(wide)
    narrow = rows_of(20, 40, a=pa.array(range(20), pa.int32()), b=pa.array(range(20), pa.int16())).select(["note", "c", "b", "id", "a"])
    if place.source_kind == "parquet":
        place.add(narrow)
    else:
        place.add(narrow.select(wide.column_names).cast(wide.schema))
    place.score()
    found = place.read().sort_by("id")
    np.testing.assert_allclose(found["prediction"], expected(model_of(), found), atol=1e-6)


def test_large_files_are_divided_by_row_groups(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.engines.files_tables.MIN_TASK_BYTES", 1000)
    monkeypatch.setattr("toolkit.engines.files_tables.FILE_COST_BYTES", 0)
    place = Place(session, tmp_path, "parquet", "delta")
    place.add(rows_of(0, 5000), row_group_size=300)
    place.add(rows_of(5000, 5100), row_group_size=7)
    ((_, counts),) = place.score()
    assert counts.num_scored_rows == 5100
    place.is_exact(5100)
    assert len(place.files()) > 4


@pytest.mark.parametrize("multiclass", ["array", "argmax"])
def test_multiclass(delta: Place, multiclass: str) -> None:
    model = model_of(objective="multi:softprob", classes=("low", "mid", "high"))
    delta.add(rows_of(0, 50))
    delta.score(model, multiclass=multiclass)
    found = delta.read().sort_by("id")
    wanted = expected(model, found)
    prediction = np.array(found["prediction"].to_pylist())
    np.testing.assert_allclose(prediction, wanted if multiclass == "array" else wanted.max(axis=1), atol=1e-6)
    assert found["predicted_label"].to_pylist() == [("low", "mid", "high")[each] for each in wanted.argmax(axis=1)]


def test_regression_has_no_label_and_can_be_explained(delta: Place) -> None:
    delta.add(rows_of(0, 5))
    delta.score(model_of(objective="reg:squarederror"), explain=2, keep=("note",))
    found = delta.read()
    assert found.column_names[:4] == ["id", "note", "prediction", "explanation"]
    assert [len(each) for each in found["explanation"].to_pylist()] == [2] * 5


def test_unseen_categories_are_counted(place: Place) -> None:
    model = model_of(categories=("red", "white"))
    place.add(rows_of(0, 4, c=["red", "white", "pink", None]))
    ((_, counts),) = place.score(model)
    assert counts.unseen == {"c": 1} and counts.num_scored_rows == 4


def test_a_delta_input_may_be_optimized_but_not_changed(delta: Place) -> None:
    import deltalake

    delta.add(rows_of(0, 10))
    delta.add(rows_of(10, 20))
    delta.score()
    deltalake.DeltaTable(delta.input).optimize.compact()
    assert delta.score() == []
    delta.add(rows_of(20, 30))
    delta.score()
    delta.is_exact(30)
    deltalake.DeltaTable(delta.input).delete("id = 5")
    delta.add(rows_of(30, 40))
    with pytest.raises(ScoringError, match=r"got DELETE in version 4 of .*; --skip-change-commits"):
        delta.score()
    delta.score(skip_change_commits=True)
    delta.is_exact(40)


def test_a_partitioned_delta_input(delta: Place) -> None:
    import datetime

    days = pa.array([datetime.date(2026, 1, 1 + number % 2) for number in range(20)])
    delta.add(
        rows_of(0, 20).append_column("a%day", days).append_column("part", pa.array([None, "x y/ü"] * 10)), partition_by=["a%day", "part"]
    )
    delta.score()
    found = delta.read().sort_by("id")
    assert found["a%day"].to_pylist() == days.to_pylist() and found["part"].to_pylist() == [None, "x y/ü"] * 10


def test_what_is_refused(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.add(rows_of(0, 10))
    with pytest.raises(ScoringError, match=r"'idd' must be a column of .*did you mean 'id'"):
        place.score(key="idd")
    assert not place.state.folder.exists()
    place.score()
    model = dataclasses.replace(model_of(), features=(*model_of().features[:2], Feature("cc")))
    place.add(rows_of(10, 20))
    with pytest.raises(ScoringError, match=r"the feature 'cc' must be a column"):
        place.score(model)
    with pytest.raises(ScoringError, match=r"output: .* must have the columns that are written, got .*note beside"):
        place.score(keep=("a",))


def test_new_columns_are_ignored_with_a_notice(session: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = Place(session, tmp_path, "parquet", "delta")
    place.add(rows_of(0, 10))
    place.score()
    place.add(rows_of(10, 20).append_column("new", pa.array(range(10))))
    with caplog.at_level(logging.WARNING, "toolkit"):
        place.score()
    assert "are left out: new" in caplog.text
    place.is_exact(20)


def test_a_row_that_crashes_native_code_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python worker is killed where it predicts 666."""
    place.add(rows_of(0, 40, a=[666.0 if number == 7 else float(number) for number in range(40)]))
    from toolkit.engines import files_tasks, scorer, spark_files_scoring

    original, run = scorer.Scorer._predict, files_tasks.run

    def poisoned(self: Any, features: Any) -> Any:
        if (features[:, 0] == 666).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, features)

    def run_poisoned(*arguments: Any) -> Any:
        from toolkit.engines.scorer import Scorer

        Scorer._predict = poisoned  # type: ignore[method-assign]
        try:
            return run(*arguments)
        finally:
            Scorer._predict = original  # type: ignore[method-assign]

    # Travels to the workers by value.
    monkeypatch.setattr(spark_files_scoring, "files_tasks", types.SimpleNamespace(**{**vars(files_tasks), "run": run_poisoned}))
    ((_, counts),) = place.score()
    assert counts.reasons == {"native_crash": 1} and counts.num_scored_rows == 39
    assert place.ids(place.quarantine) == [7] and 7 not in place.ids()
    assert len(list(place.output.rglob("*.parquet"))) == len(place.files())
