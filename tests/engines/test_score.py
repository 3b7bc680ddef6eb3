"""`toolkit score` by both engines: what is new, all anew, a window again; each row once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.engines.conftest import MlflowServer
from tests.engines.promote_fixtures import Shop
from tests.engines.score_scenes import CONF, Place, hour, table
from tests.engines.spark_fixtures import own_session
from toolkit.core.errors import ScoringError
from toolkit.engines import spark_delta
from toolkit.engines.spark_score_tables import Reader
from toolkit.settings import Settings

pytestmark = pytest.mark.engine

ENGINES = ("spark", "files")
PAIRS = [(source, target) for source in ("delta", "parquet") for target in ("delta", "parquet")]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("warehouse"), spark_delta.settings_for_delta(CONF, Settings.read({}))) as session:
        yield session


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    shop = Shop(mlflow_server, mlflow_server.uri)
    shop.registry.set_alias("scored", "champion", shop.register("scored", shop.model("good")))
    return shop


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, spark: Any, shop: Shop, tmp_path: Path) -> Place:
    return Place(spark, shop, tmp_path, request.param)


# ---- incremental


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_is_new_is_scored_once(place: Place, source: str, target: str) -> None:
    place.source, place.target = source, target
    place.add(table(0, 40))
    first = place.score()
    assert (first.num_input_rows, first.num_scored_rows, first.num_quarantined_rows, len(first.batches)) == (40, 40, 0, 1)
    assert (first.model, first.version, first.mode, first.engine) == ("scored", place.version, "incremental", place.engine)
    before = place.everything()
    nothing = place.score()
    assert (nothing.num_input_rows, dict(nothing.batches), nothing.high_watermark) == (0, {}, first.high_watermark)
    assert set(place.everything()) == set(before)
    place.add(table(40, 60))
    place.add(table(60, 61))
    second = place.score()
    assert second.num_scored_rows == 21
    place.add(table(61, 80))
    third = place.score()
    found = place.assert_scored(range(80))
    inputs = ["id", "a", "b", "c", "region", "at", "note"]
    stamps = ["model_name", "model_version", "model_sha256", "scoring_run_id", "batch_id", "scored_at_utc"]
    assert list(found)[:9] == [*inputs, "prediction", "predicted_label"] and set(found.columns[9:]) == set(stamps)
    pd.testing.assert_frame_equal(found[inputs], table(0, 80).to_pandas(), check_dtype=False)
    threshold = place.portable.spec["threshold"]
    assert (found.predicted_label == (found.prediction > threshold)).all()
    assert set(found.model_name) == {"scored"} and set(found.model_version) == {place.version}
    assert set(found.model_sha256) == {place.portable.spec["model_sha256"][:12]}
    assert found.groupby("batch_id").scored_at_utc.nunique().eq(1).all()
    assert [set(found.scoring_run_id[part]) for part in (slice(0, 39), slice(40, 60), slice(61, 80))] == [
        {each.mlflow_run_id} for each in (first, second, third)
    ]
    audit = place.audit()
    assert audit.num_input_rows.tolist() == audit.num_scored_rows.tolist() == found.groupby("batch_id").size().tolist()
    assert audit.batch_id.tolist() == sorted({*first.batches, *second.batches, *third.batches})
    assert audit.scoring_run_id.iloc[-1] == third.mlflow_run_id
    run = mlflow.MlflowClient(place.shop.uri).get_run(second.mlflow_run_id)
    assert run.data.metrics["num_scored_rows"] == 21 and run.info.status == "FINISHED"
    assert run.data.params["engine"] == place.engine


def test_keep_narrows_the_columns(place: Place) -> None:
    place.add(table(0, 20))
    place.score(keep=("note",))
    assert list(place.scores())[:3] == ["id", "note", "prediction"]
    place.add(table(20, 30))
    place.score()  # what is new in the input is not in the output
    assert place.scores().id.tolist() == list(range(30)) and "region" not in place.scores()
    place.add(table(30, 40))
    before = place.everything()
    with pytest.raises(ScoringError, match=r"keep the options of the first run|must have the columns that are written"):
        place.score(keep=("c",))
    assert place.everything() == before
    place.score(keep=("note",))
    assert place.scores().id.tolist() == list(range(40))


# ---- full


@pytest.mark.parametrize("target", ["delta", "parquet"])
def test_all_anew_replaces_the_output(place: Place, target: str) -> None:
    place.target = target
    place.add(table(0, 30))
    place.score()
    place.add(table(30, 40))
    anew = place.score(mode="full")
    assert anew.num_scored_rows == 40
    found = place.assert_scored(range(40))
    assert set(found.scoring_run_id) == {anew.mlflow_run_id}
    assert place.score().num_scored_rows == 0
    place.add(table(40, 50))
    assert place.score().num_scored_rows == 10
    place.assert_scored(range(50))
    place.score(mode="full")
    place.assert_scored(range(50))


# ---- windows


@pytest.mark.parametrize(("source", "target"), [("delta", "delta"), ("parquet", "parquet"), ("parquet", "delta")])
def test_a_window_replaces_its_span(place: Place, source: str, target: str) -> None:
    place.source, place.target = source, target
    engine = "spark" if place.engine == "spark" else "auto"
    place.add(table(0, 30))
    first = place.score()
    place.add(table(30, 50))
    again = place.score(mode="window", window=(hour(10), hour(20)), time_column="at", engine=engine)
    assert again.num_scored_rows >= 10
    found = place.scores()
    assert found.id.is_unique
    inside = (found["at"] >= hour(10)) & (found["at"] < hour(20))
    assert inside.sum() == 10 and set(found.scoring_run_id[inside]) == {again.mlflow_run_id}
    assert set(found.scoring_run_id[found.id < 10]) == {first.mlflow_run_id}
    place.assert_scored(found.id)
    # Overlapping, over the end of what is there, from another time zone: 5 hours before UTC.
    place.score(mode="window", window=("2026-01-01T10:00:00-05:00", "2026-01-03T12:00"), time_column="at", engine=engine)
    place.score(mode="window", window=(hour(16), hour(18)), time_column="at", engine=engine)
    place.assert_scored(place.scores().id)
    assert place.scores().id.is_unique
    place.score(engine=engine)
    place.assert_scored(range(50))
    place.add(table(50, 60))
    place.score(engine=engine)
    place.assert_scored(range(60))


@pytest.mark.parametrize("target", ["delta", "parquet"])
def test_an_output_made_of_windows(spark: Any, shop: Shop, tmp_path: Path, target: str) -> None:
    place = Place(spark, shop, tmp_path, "auto", target=target)
    place.add(table(0, 50))
    place.score(mode="window", window=(hour(10), hour(20)), time_column="at")
    place.assert_scored(range(10, 20))
    place.score(mode="window", window=(hour(15), hour(25)), time_column="at")
    place.assert_scored(range(10, 25))
    place.add(table(50, 60))
    place.score(mode="window", window=("2026-01-03", "2026-01-03T06:00"), time_column="at")
    place.assert_scored([*range(10, 25), *range(48, 54)])
    before = place.everything()
    with pytest.raises(ScoringError, match="made of windows"):
        place.score()
    assert place.everything() == before
    place.score(mode="full")
    place.assert_scored(range(60))


@pytest.mark.parametrize("target", ["delta", "parquet"])
def test_a_window_of_a_partitioned_folder(spark: Any, shop: Shop, tmp_path: Path, target: str) -> None:
    """Of files whose folders are a column."""
    place = Place(spark, shop, tmp_path, "spark", source="parquet", target=target)
    for number, part in enumerate("xy"):
        folder = place.input / f"part={part}"
        folder.mkdir(parents=True)
        pq.write_table(table(number * 20, number * 20 + 20), folder / "1.parquet")
    place.score()
    assert place.score(mode="window", window=(hour(10), hour(30)), time_column="at").num_scored_rows == 20
    found = place.assert_scored(range(40))
    assert found.part.tolist() == ["x"] * 20 + ["y"] * 20


# ---- nothing new


@pytest.mark.parametrize(("source", "target"), [("delta", "delta"), ("parquet", "parquet"), ("csv", "delta")])
def test_nothing_new_starts_no_stream(
    spark: Any, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str
) -> None:
    place = Place(spark, shop, tmp_path, "spark", source=source, target=target)
    for begin in (0, 20):
        place.add(table(begin, begin + 20))
        place.score()
    with monkeypatch.context() as patched:
        patched.setattr(Reader, "new_rows", lambda *_: pytest.fail("a stream"))
        assert place.score().num_input_rows == 0
    place.add(table(40, 50))
    assert place.score().num_input_rows == 10
    assert sorted(place.scores().id.astype(int)) == list(range(50))
