"""What `toolkit score` does with rows, tables and models of all kinds: bad rows, other inputs, changed schemas, refusals in one line."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.commands import Workplace, workplace
from tests.engines.conftest import MlflowServer
from tests.engines.promote_fixtures import Shop
from tests.engines.score_scenes import CONF, Place, hour, table
from tests.engines.spark_fixtures import own_session
from toolkit.core.errors import DataError, ScoringError, UserError
from toolkit.engines import spark_delta
from toolkit.settings import Settings

pytestmark = pytest.mark.engine
__all__ = ["workplace"]

ENGINES = ("spark", "files")


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_session(tmp_path_factory.mktemp("warehouse"), spark_delta.settings_for_delta(CONF, Settings.read({}))) as session:
        yield session


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    shop = Shop(mlflow_server, mlflow_server.uri)
    for name, model in (("inputs", "good"), ("inputs_of_three", "of three classes")):
        shop.registry.set_alias(name, "champion", shop.register(name, shop.model(model)))
    return shop


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, spark: Any, shop: Shop, tmp_path: Path) -> Place:
    return Place(spark, shop, tmp_path, request.param, source="parquet", target="parquet", name="inputs")


# ---- bad rows

TEXTS = ["1.5", "x", "", "inf", "1e300", " 2 ", "1_000", "NaN", None, "-Infinity", "0x10", "1e-3", "3d", "+.5", "one"]


def bad_table() -> pa.Table:
    """A row of each kind, after twenty good ones."""
    more = table(0, 20 + len(TEXTS) + 4)
    num = more.num_rows
    b = more["b"].to_pylist()
    b[-4:] = [math.inf, -math.inf, 1e39, math.nan]
    key = more["id"].to_pylist()
    key[1] = key[2] = None
    key[4] = key[3]
    region = ["north"] * num
    region[10:12] = ["nowhere", None]  # type: ignore[list-item]
    a = ["0.5"] * 20 + TEXTS + ["1"] * 4
    return table(0, num, id=pa.array(key, pa.int64()), a=pa.array(a, pa.string()), b=pa.array(b, pa.float64()), region=pa.array(region))


def test_bad_rows_are_the_same_for_both_engines(spark: Any, shop: Shop, tmp_path: Path) -> None:
    found = {}
    for engine in ENGINES:
        place = Place(spark, shop, tmp_path / engine, engine, source="parquet", target="parquet", name="inputs")
        place.folder.mkdir()
        place.add(bad_table())
        result = place.score(max_bad_share=0.9, duplicates="quarantine")
        assert result.unseen == {"region": 1}
        audit = place.audit()
        assert json.loads(audit.quarantine_reasons[0]) == result.reasons and json.loads(audit.unseen_categories[0]) == result.unseen
        assert audit.num_input_rows[0] == audit.num_scored_rows[0] + audit.num_quarantined_rows[0] == bad_table().num_rows
        bad = place.quarantined()
        assert len(bad) == result.num_quarantined_rows == sum(result.reasons.values())
        rows = [(why, json.loads(raw)) for why, raw in zip(bad.quarantine_reason, bad.raw_row, strict=True)]
        assert all(list(raw) == ["id", "a", "b", "c", "region", "at", "note"] for _, raw in rows)
        found[engine] = (dict(result.reasons), sorted(map(repr, rows)), place.scores().id.tolist())
    assert set(found["spark"][1]) ^ set(found["files"][1]) == set()
    assert found["spark"] == found["files"]
    reasons = found["spark"][0]
    assert reasons["key_missing"] == 2 and reasons["key_duplicated"] == 2 and reasons["infinite: b"] == 3
    assert reasons["uncastable: a"] == 5 and reasons["infinite: a"] == 3


@pytest.mark.parametrize("target", ["delta", "parquet"])
def test_above_the_share_nothing_is_written_and_a_raised_limit_goes_on(place: Place, target: str) -> None:
    place.target = target
    place.add(table(0, 20))
    place.score()
    more = table(20, 40)
    place.add(more.set_column(2, "b", pa.array([math.inf] * 5 + [1.0] * 15)))
    before = {name: what for name, what in place.everything().items() if "_toolkit" not in name}
    with pytest.raises(ScoringError, match=r"at most 0.05 of a batch's rows may be bad .*got 5 of 20: 5 infinite: b"):
        place.score()
    assert {name: what for name, what in place.everything().items() if "_toolkit" not in name} == before
    result = place.score(max_bad_share=0.25)
    assert (result.num_input_rows, result.num_scored_rows, result.num_quarantined_rows, result.bad_share) == (20, 15, 5, 0.25)
    place.assert_scored([*range(20), *range(25, 40)])
    assert sorted(place.quarantined().id) == list(range(20, 25))
    assert place.score().num_input_rows == 0


@pytest.mark.parametrize("target", ["delta", "parquet"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_full_run_that_is_refused_was_never_begun(place: Place, target: str, is_first: bool) -> None:
    """The next run goes on from where the one before it was; it does not replace the output on the quiet."""
    place.target = target
    place.add(table(0, 20))
    if not is_first:
        place.score()
    place.add(table(20, 40, b=[math.inf] * 5 + [1.0] * 15))

    def there() -> dict[str, int]:
        return {name: size for name, (size, _) in place.everything().items()}

    before = there()
    for _ in range(2):
        with pytest.raises(ScoringError, match="may be bad"):
            place.score(mode="full")
        assert there() == before
    result = place.score(max_bad_share=0.25)
    assert (result.num_input_rows, result.num_quarantined_rows) == (40 if is_first else 20, 5)
    place.assert_scored([*range(20), *range(25, 40)])
    assert place.score(mode="full", max_bad_share=0.25).num_input_rows == 40
    place.assert_scored([*range(20), *range(25, 40)])


def test_a_row_that_crashes_native_code_is_found(spark: Any, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python worker is killed where it predicts 666; as in `test_files_scoring`, by the engine spark."""
    from toolkit.engines import scorer, spark_scoring

    original, run = scorer.Scorer._predict, scorer.score_batches

    def poisoned(self: Any, features: Any) -> Any:
        if (features[:, 0] == 666).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, features)

    def poisoned_batches(*arguments: Any) -> Iterator[Any]:
        from toolkit.engines.scorer import Scorer

        Scorer._predict = poisoned  # type: ignore[method-assign]
        try:
            yield from run(*arguments)
        finally:
            Scorer._predict = original  # type: ignore[method-assign]

    # Travels to the workers by value.
    monkeypatch.setattr(spark_scoring, "score_batches", poisoned_batches)
    place = Place(spark, shop, tmp_path, "spark", name="inputs")
    place.add(table(0, 40, a=[666.0 if number == 7 else float(number) for number in range(40)]))
    result = place.score()
    assert result.reasons == {"native_crash": 1} and result.num_scored_rows == 39
    assert place.quarantined().id.tolist() == [7]
    assert place.scores().id.tolist() == [number for number in range(40) if number != 7]
    place.add(table(40, 50))
    assert place.score().num_scored_rows == 10


def test_copies_of_a_key_are_kept_quarantined_or_refused(place: Place) -> None:
    place.add(table(0, 20, id=[1, 1, 1, *range(3, 20)]))
    before = place.everything()
    with pytest.raises(ScoringError, match="the key 'id' must be unique within a batch, got 3 rows"):
        place.score(duplicates="refuse")
    assert {name for name in place.everything() if "_toolkit" not in name} == set(before)
    kept = place.score(mode="full")
    assert kept.num_scored_rows == 20
    quarantined = place.score(mode="full", duplicates="quarantine", max_bad_share=0.5)
    assert (quarantined.num_scored_rows, dict(quarantined.reasons)) == (17, {"key_duplicated": 3})
    with pytest.raises(ScoringError, match="--duplicates refuse needs a key"):
        Place(place.session, place.shop, place.folder, place.engine, "parquet", "parquet", "inputs").score(
            input=write(place, table(0, 5, id=None)), mode="full", duplicates="refuse"
        )


def write(place: Place, more: pa.Table) -> str:
    import pyarrow.parquet as pq

    folder = place.folder / f"other{len(list(place.folder.iterdir()))}"
    folder.mkdir()
    pq.write_table(more, folder / "1.parquet")
    return f"parquet:{folder}"


numbers = st.one_of(st.none(), st.floats(width=64), st.sampled_from([1e39, -1e300, math.inf, math.nan]))
lines = st.tuples(st.one_of(st.none(), st.integers(0, 6)), st.one_of(st.none(), st.sampled_from(TEXTS[:8])), numbers, numbers,
                  st.sampled_from([None, "north", "elsewhere"]))  # fmt: skip


@settings(max_examples=3, deadline=None, phases=(Phase.generate,), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(lines, min_size=1, max_size=12), min_size=1, max_size=2), duplicates=st.sampled_from(["keep", "quarantine"])
)
def test_every_row_is_in_one_of_the_two_places(
    spark: Any, shop: Shop, tmp_path_factory: pytest.TempPathFactory, batches: list[list[Any]], duplicates: str
) -> None:
    found = []
    for engine in ENGINES:
        place = Place(spark, shop, tmp_path_factory.mktemp("property"), engine, source="parquet", target="parquet", name="inputs")
        for batch in batches:
            key, a, b, c, region = (list(column) for column in zip(*batch, strict=True))
            place.add(
                pa.table({"id": pa.array(key, pa.int64()), "a": pa.array(a, pa.string()), "b": pa.array(b, pa.float64()),
                          "c": pa.array(c, pa.float64()), "region": pa.array(region, pa.string())})
            )  # fmt: skip
            result = place.score(max_bad_share=1, duplicates=duplicates)
            assert result.num_input_rows == len(batch) == result.num_scored_rows + result.num_quarantined_rows
            assert sum(result.reasons.values()) == result.num_quarantined_rows
            found.append((engine, dict(result.reasons), dict(result.unseen)))
    half = len(found) // 2
    assert [each[1:] for each in found[:half]] == [each[1:] for each in found[half:]]


# ---- inputs that only the engine spark reads


def test_a_folder_of_csv_files(spark: Any, shop: Shop, tmp_path: Path) -> None:
    place = Place(spark, shop, tmp_path, "auto", source="csv", name="inputs")
    place.add(table(0, 30))
    result = place.score()
    assert result.engine == "spark" and any("files" in notice for notice in result.notices)
    broken = table(30, 40).to_pandas().to_csv(index=False).splitlines()
    broken[3] += ",one,two"
    broken[5] = broken[5].replace(",", ",x", 1)
    (place.input / "2.csv").write_text("\n".join(broken) + "\n")
    second = place.score(max_bad_share=0.5)
    assert second.num_input_rows == 10 and set(second.reasons) == {"malformed", "uncastable: a"}
    assert len(place.scores()) == 38 and "_corrupt_record" not in place.scores()
    raw = [json.loads(each) for each in place.quarantined().raw_row]
    assert any(each["id"] == "32" for each in raw)
    again = place.score(mode="full", max_bad_share=0.5)
    assert again.num_scored_rows == 38
    (place.input / "3.csv").write_text("id,b,c\n1,2,3\n")
    with pytest.raises(UserError, match="Spark cannot read it"):
        place.score()


def test_a_jdbc_table(spark: Any, shop: Shop, tmp_path: Path) -> None:
    place = Place(spark, shop, tmp_path, "spark", name="inputs")
    address = f"jdbc:derby:{tmp_path / 'derby'}"
    frame = spark.createDataFrame(table(0, 30, note=None, a=[0.5] * 30).to_pandas())
    frame.write.format("jdbc").options(url=f"{address};create=true", dbtable="WINES", driver="org.apache.derby.jdbc.EmbeddedDriver").save()
    with pytest.raises(ScoringError, match="does not tell what is new"):
        place.score(input=f"{address}#WINES")
    result = place.score(input=f"{address}#WINES", mode="full")
    assert result.num_scored_rows == 30
    place.score(input=f"{address}#WINES", mode="full")
    again = place.score(input=f"{address}#WINES", mode="window", window=(hour(5), hour(10)), time_column="at")
    assert again.num_scored_rows == 5
    found = place.scores()
    assert found.id.tolist() == list(range(30))
    assert found.id[found.scoring_run_id == again.mlflow_run_id].tolist() == list(range(5, 10))


def test_tables_of_the_catalog(spark: Any, shop: Shop, tmp_path: Path) -> None:
    from toolkit.score import score

    spark.sql("CREATE SCHEMA IF NOT EXISTS score_inputs")
    spark.sql("DROP TABLE IF EXISTS score_inputs.rows")
    for ending in ("", "_quarantine", "_audit"):
        spark.sql(f"DROP TABLE IF EXISTS score_inputs.scored{ending}")
    where = {"input": "score_inputs.rows", "output": "score_inputs.scored", "tracking_uri": shop.uri}
    frame = spark.createDataFrame(table(0, 60).to_pandas())
    frame.where("id < 30").write.format("delta").saveAsTable("score_inputs.rows")
    with pytest.raises(ScoringError, match="--state must name a folder"):
        score("inputs", **where)
    where["state"] = tmp_path / "state"
    assert score("inputs", **where, where="region <> 'west'").num_scored_rows == frame.where("id < 30 AND region <> 'west'").count()
    frame.where("id >= 30").write.format("delta").mode("append").saveAsTable("score_inputs.rows")
    score("inputs", **where, where="region <> 'west'")
    score("inputs", **where, where="region <> 'west'", mode="window", window=(hour(10), hour(20)), time_column="at")
    found = spark.table("score_inputs.scored").toPandas()
    assert found.id.is_unique and len(found) == frame.where("region <> 'west'").count()
    assert spark.table("score_inputs.scored_audit").count() == 3
    with pytest.raises(ScoringError, match="--where must be a condition in SQL"):
        score("inputs", **where, where="regio = 'west'")
    with pytest.raises(DataError, match="no_such"):
        score("inputs", **{**where, "input": "score_inputs.no_such", "output": "score_inputs.other", "state": tmp_path / "other"})


# ---- schemas


def test_a_missing_feature_is_refused_before_anything_is_written(place: Place) -> None:
    place.source = place.target = "delta"
    place.add(table(0, 20))
    place.score()
    before = place.everything()
    other = place.folder / "renamed"
    import deltalake

    deltalake.write_deltalake(other, table(0, 20).rename_columns(["id", "a", "b", "c", "regio", "at", "note"]))
    before |= {name: what for name, what in place.everything().items() if name.startswith("renamed")}
    with pytest.raises(ScoringError, match=r"'region'.*did you mean 'regio'"):
        place.score(input=other, mode="full")
    assert place.everything() == before


@pytest.mark.parametrize("target", ["delta", "parquet"])
def test_new_columns_are_ignored_and_types_may_widen(place: Place, target: str) -> None:
    place.source, place.target = "delta", target
    place.add(table(0, 20, c=pa.array(range(20), pa.int32()), b=pa.array([0.5] * 20, pa.float32())))
    place.score()
    wider = table(20, 40, c=pa.array(range(20), pa.int64()), b=pa.array([0.25] * 20, pa.float64())).append_column("more", [["x"] * 20])
    import deltalake

    before = deltalake.DeltaTable(place.input).to_pyarrow_table()
    wide = pa.concat_tables(
        [before.cast(pa.schema([wider.schema.field(name) for name in before.column_names])), wider], promote_options="default"
    )
    deltalake.write_deltalake(place.input, wide, mode="overwrite", schema_mode="overwrite")
    with pytest.raises(UserError):
        place.score()  # rows were replaced
    other = f"delta:{place.folder / 'wider'}"
    deltalake.write_deltalake(place.folder / "wider", wide)
    if (place.engine, target) == ("files", "delta"):
        with pytest.raises(ScoringError, match="must have the columns that are written"):
            place.score(mode="full", input=other)  # delta-rs cannot give a table another schema
        place.engine = "spark"
    result = place.score(mode="full", input=other)
    assert result.num_scored_rows == 40 and "more" in place.scores()


def test_an_output_widens_with_its_input(spark: Any, shop: Shop, tmp_path: Path) -> None:
    """Delta only, by the engine spark: Delta widens the input's column, then the output's."""
    place = Place(spark, shop, tmp_path, "spark", name="inputs")
    place.add(table(0, 20, c=pa.array(range(20), pa.int32()), b=pa.array([0.5] * 20, pa.float32())))
    place.score()
    reference = f"delta.`{place.input}`"
    spark.sql(f"ALTER TABLE {reference} SET TBLPROPERTIES ('delta.enableTypeWidening' = 'true')")
    spark.sql(f"ALTER TABLE {reference} ALTER COLUMN b TYPE double")
    spark.sql(f"ALTER TABLE {reference} ALTER COLUMN c TYPE long")
    spark.sql(f"ALTER TABLE {reference} ADD COLUMN more string")
    spark.sql(f"INSERT INTO {reference} SELECT id + 100, a, 1.1, 5000000000, region, at, note, 'x' FROM {reference}")
    result = place.score()
    assert result.num_scored_rows == 20 and any("more" in notice for notice in result.notices)
    found = spark.read.format("delta").load(str(place.output))
    assert dict(found.dtypes)["b"] == "double" and dict(found.dtypes)["c"] == "bigint" and "more" not in found.columns
    assert found.where("c = 5000000000").count() == 20 and found.count() == 40


@pytest.mark.parametrize("change", [{"explain": 2}, {"name": "inputs_of_three"}])
def test_other_columns_than_before_are_refused(place: Place, change: dict[str, Any]) -> None:
    place.add(table(0, 20))
    place.score()
    place.add(table(20, 40))
    before = place.everything()
    change = dict(change)
    place.name = change.pop("name", place.name)
    with pytest.raises(ScoringError, match=r"must stay|must have the columns"):
        place.score(**change)
    assert {name: what for name, what in place.everything().items() if "_toolkit" not in name} == {
        name: what for name, what in before.items() if "_toolkit" not in name
    }


def test_an_output_is_no_input(place: Place) -> None:
    place.add(table(0, 20))
    place.score()
    other = Place(place.session, place.shop, place.folder / "next", place.engine, "parquet", "parquet", "inputs")
    with pytest.raises(ScoringError, match=r"'prediction'|is partitioned"):
        other.score(input=place.output)


# ---- models


@pytest.mark.parametrize("multiclass", ["array", "argmax"])
def test_several_classes(place: Place, multiclass: str) -> None:
    place.name, place.model = "inputs_of_three", "of three classes"
    place.add(table(0, 30))
    place.score(multiclass=multiclass, explain=2)
    found = place.scores()
    expected = place.predict(found)
    assert found.predicted_label.tolist() == expected.argmax(axis=1).tolist()
    wanted = expected if multiclass == "array" else expected.max(axis=1)
    np.testing.assert_allclose(np.stack(found.prediction) if multiclass == "array" else found.prediction, wanted, rtol=0, atol=1e-6)
    assert all(len(each) == 2 for each in found.explanation)


class Sum(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["b"] + 2 * model_input["c"]


def test_a_model_without_a_spec(spark: Any, shop: Shop, tmp_path: Path) -> None:
    place = Place(spark, shop, tmp_path, "auto", name="inputs_foreign")
    place.add(table(0, 20))
    mlflow.set_tracking_uri(shop.uri)
    mlflow.set_experiment("foreign")
    sample = table(0, 5).to_pandas()[["b", "c"]]
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(
            name="model", python_model=Sum(), registered_model_name="inputs_foreign", pip_requirements=[],
            signature=mlflow.models.infer_signature(sample, sample.b),
        )  # fmt: skip
    version = logged.registered_model_version
    result = place.score(model=f"inputs_foreign/{version}")
    assert result.engine == "spark" and sum("slower" in notice for notice in result.notices) == 1
    found = place.scores()
    np.testing.assert_allclose(found.prediction, found.b + 2 * found.c, atol=1e-6)
    assert "predicted_label" not in found
    with pytest.raises(ScoringError, match="engine files must fit the model"):
        place.score(model=f"inputs_foreign/{version}", mode="full", engine="files")


# ---- refusals, through the command line


def refused(workplace: Workplace, *arguments: str) -> str:
    before = workplace.files()
    answer = workplace.here("score", *arguments)
    assert answer.code == 1 and not answer.out, answer
    (line,) = [each for each in answer.err.splitlines() if each.startswith("error: ")]
    assert workplace.files() - {"mlruns"} == before
    return line


BAD = [
    (("--input", "nowhere"), "no such file, folder or table"),
    (("--input", "empty"), "the folder is empty"),
    (("--input", "text"), "must be Delta|must be a Delta table, Parquet or CSV"),
    (("--output", "rows/out"), "output and input must lie apart"),
    (("--output", "file.txt"), "output: must be a folder"),
    (("--output", "text"), "output: must be"),
    (("--key", "idd"), "'idd'; did you mean 'id'"),
    (("--keep", "notes"), "did you mean 'note'"),
    (("--mode", "window", "--time-column", "at", "--from", "2026-02-01", "--to", "2026-01-01"), "must begin before it ends"),
    (("--mode", "window", "--time-column", "at", "--from", "2999-01-01", "--to", "2999-01-02"), "must not lie in the future"),
    (("--mode", "window", "--from", "2026-01-01", "--to", "2026-02-01"), "needs --from, --to and --time-column"),
    (("--mode", "window", "--time-column", "when", "--from", "2026-01-01", "--to", "2026-02-01"), "'when'"),
    (("--mode", "window", "--time-column", "note", "--from", "2026-01-01", "--to", "2026-02-01"), "must hold times"),
    (("--from", "2026-01-01", "--to", "2026-02-01"), "are for --mode window"),
    (("--max-bad-share", "2"), "between 0 and 1"),
    (("--where", "1 ="), "--where must be a condition"),
    (("--where", "a > 0", "--engine", "files"), "--where is for the engine spark"),
]


@pytest.fixture
def tables(workplace: Workplace) -> Workplace:
    import pyarrow.parquet as pq

    for name in ("rows", "empty", "text"):
        (workplace.folder / name).mkdir()
    pq.write_table(table(0, 20), "rows/1.parquet")
    Path("text/notes.txt").write_text("hello")
    Path("file.txt").write_text("hello")
    return workplace


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(each[0])[:40] for each in BAD])
def test_refused_in_one_line_with_nothing_written(
    spark: Any, shop: Shop, tables: Workplace, arguments: tuple[str, ...], message: str
) -> None:
    import re

    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    words = {"--input": "rows", "--output": "scores", "--tracking-uri": shop.uri, **given}
    line = refused(tables, "inputs", *(word for pair in words.items() for word in pair))
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("model", "message"), [("inputz", "did you mean 'inputs'"), ("inputs@nobody", "alias of inputs"), ("inputs/999", "999")]
)
def test_models_that_are_not_there(spark: Any, shop: Shop, tables: Workplace, model: str, message: str) -> None:
    assert message in refused(tables, model, "--input", "rows", "--output", "scores", "--tracking-uri", shop.uri)


def test_json_is_one_object(spark: Any, shop: Shop, tables: Workplace) -> None:
    answer = tables.here("score", "inputs", "--input", "rows", "--output", "scores", "--tracking-uri", shop.uri, "--json")
    assert answer.code == 0, answer
    wanted = ("model version mode engine num_input_rows num_scored_rows num_quarantined_rows num_batches wall_s rows_per_s high_watermark output "
              "quarantine mlflow_run_id")  # fmt: skip
    assert set(wanted.split()) <= set(answer.json)
    assert answer.json["num_scored_rows"] == 20 and "rows scored" in answer.err
