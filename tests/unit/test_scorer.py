"""The scorer against the predictions of the model in the process that trained it, and rows that crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost

from tests.engines.promote_fixtures import MULTICLASS, experiment, rows, train
from toolkit import Metric, Sklearn, XGBoost
from toolkit.core.errors import ScoringError
from toolkit.core.model_spec import ModelPackage
from toolkit.engines import portable_model, scorer
from toolkit.engines.scorer import Scorer, explanation_array, fields_of, prediction_array, scorer_of, scorer_spec

NUMBERS = {"nthread": 1, "max_depth": 4}


def three_classes() -> pd.DataFrame:
    return rows().assign(y=np.where(rows().a > 0.5, 2, rows().y))


def regression() -> pd.DataFrame:
    return rows().assign(y=rows().a * 2 + rows().b)


def with_gaps() -> pd.DataFrame:
    frame = rows().copy()
    frame.loc[::7, "a"] = np.nan
    frame.loc[::5, "region"] = None
    return frame


def xgb(objective: str = "binary:logistic", **changes: Any) -> XGBoost:
    return XGBoost(objective=objective, **{"num_boost_round": 15, "early_stopping_rounds": None, "params": NUMBERS, **changes})


MODELS: dict[str, Any] = {
    "binary": lambda: train(experiment(rounds=15)),
    "gaps": lambda: train(experiment(rounds=15), with_gaps()),
    "whole numbers as categories": lambda: train(
        experiment(rounds=15, categorical=("region",)), rows().assign(region=rows().region.map({"north": 3, "south": 7, "west": 12}))
    ),
    "regression": lambda: train(experiment(model=xgb("reg:squarederror"), metric=Metric("rmse", "minimize")), regression()),
    "three classes": lambda: train(experiment(model=MULTICLASS, metric=Metric("mlogloss", "minimize")), three_classes()),
    "early stopping": lambda: train(experiment(model=xgb(num_boost_round=200, early_stopping_rounds=5))),
    "isotonic": lambda: train(experiment(rounds=15, calibration="isotonic")),
    "sigmoid": lambda: train(experiment(rounds=15, calibration="sigmoid")),
    "forest": lambda: train(
        experiment(
            categorical=(),
            exclude=("region",),
            model=Sklearn("sklearn.ensemble.RandomForestClassifier", params={"n_estimators": 8, "random_state": 1, "n_jobs": 2}),
        )
    ),
}


@cache
def model(name: str) -> ModelPackage:
    packed: ModelPackage = MODELS[name]()
    return packed


@pytest.fixture(params=MODELS)
def packed(request: pytest.FixtureRequest) -> ModelPackage:
    return model(request.param)


def opened(packed: ModelPackage) -> Scorer:
    return Scorer(packed.payload, scorer_spec(packed.spec))


def frame_of(packed: ModelPackage) -> pd.DataFrame:
    """Rows with gaps and with categories that training has not seen, of the types that the training had."""
    frame = with_gaps()
    known = next((each["categories"] for each in packed.spec["features"] if each["name"] == "region" and "categories" in each), None)
    if known and isinstance(known[0], int):
        frame["region"] = frame.region.map({"north": 3, "south": 7, "west": 12}).astype("Int64")
        frame.loc[3, "region"] = 99
    else:
        frame.loc[3, "region"] = "nowhere"
    return frame


def columns_of(packed: ModelPackage, frame: pd.DataFrame, how: str) -> list[Any]:
    names = [each["name"] for each in packed.spec["features"]]
    if how == "pandas":
        return [frame[name] for name in names]
    table = pa.Table.from_pandas(frame[names], preserve_index=False)
    if how == "float":  # as Spark gives them
        return [column.cast(pa.float32()) if pa.types.is_floating(column.type) else column for column in table.columns]
    return table.columns if how == "chunked" else [column.combine_chunks() for column in table.columns]


@pytest.mark.parametrize("how", ["pandas", "arrow", "float", "chunked"])
def test_predictions_are_those_of_the_training_process(packed: ModelPackage, how: str) -> None:
    frame = frame_of(packed)
    wanted = portable_model.from_payload(packed.payload, packed.spec).predict(frame)
    found = opened(packed).predict(columns_of(packed, frame, how))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert np.isfinite(found).all() and len(np.unique(found)) > 5


def test_the_booster_itself_predicts_the_same() -> None:
    """Of XGBoost without anything of ours in between: a matrix with its categories, and the rounds that were the best."""
    packed = model("early stopping")
    booster = xgboost.Booster()
    booster.load_model(bytearray(packed.payload))
    assert booster.num_boosted_rounds() == packed.spec["num_rounds"] < 200
    frame = frame_of(packed)
    known = next(each["categories"] for each in packed.spec["features"] if each["name"] == "region")
    codes = frame.assign(region=frame.region.map({value: code for code, value in enumerate(known)}))
    matrix = xgboost.DMatrix(codes[[*list("abc"), "region"]].to_numpy("f"), feature_types=["q", "q", "q", "c"], enable_categorical=True)
    wanted = booster.predict(matrix, validate_features=False)
    np.testing.assert_allclose(opened(packed).predict(columns_of(packed, frame, "arrow")), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 3]),
        pa.array([1.0, None, 3.0]),
        pa.array([Decimal("1.00"), None, Decimal("3.00")]),
        pa.array(["1", None, "3"]),
        pa.array(["1", None, "3"]).dictionary_encode(),
        pa.chunked_array([[1.0], [None, 3.0]]),
        pd.Series([1, None, 3], dtype="Int64"),
        pd.Series([1.0, None, 3.0]),
        pd.Series([1, None, 3], dtype=object),
        np.array([1.0, np.nan, 3.0]),
    ],
    ids=str,
)
def test_numbers_come_in_any_type(column: Any) -> None:
    packed = model("binary")
    features = opened(packed).encode([column, column, column, pa.array(["north", None, "nowhere"])])
    np.testing.assert_array_equal(features[:, 0], np.float32([1, np.nan, 3]))
    np.testing.assert_array_equal(features[:, 3], np.float32([0, np.nan, np.nan]))
    assert features.flags.c_contiguous


def test_what_is_no_number_is_refused_in_one_line() -> None:
    loaded = opened(model("binary"))
    good, region = pa.array([1.0]), pa.array(["north"])
    with pytest.raises(ScoringError, match=r"feature 'b': numeric, got .*much"):
        loaded.predict([good, pa.array(["much"]), good, region])
    with pytest.raises(ScoringError, match="4 columns, in the order a, b, c, region, got 2"):
        loaded.predict([good, good])
    struct = pa.StructArray.from_arrays([good, good, good, region], ["a", "b", "cc", "region"])
    with pytest.raises(ScoringError, match="got no 'c'; "):
        fields_of(struct, loaded.feature_names)


def test_no_rows_give_no_predictions() -> None:
    for name in ("binary", "three classes"):
        packed = model(name)
        scores = opened(packed).score(columns_of(packed, frame_of(packed)[:0], "arrow"), explain=2, guarded=True)
        assert len(prediction_array(scores)) == len(explanation_array(scores, "abcd")) == 0


def test_unseen_values_are_counted_and_missing_ones_are_not() -> None:
    packed = model("binary")
    frame = frame_of(packed)
    assert opened(packed).unseen(columns_of(packed, frame, "arrow")) == {"region": 1}
    assert opened(packed).unseen(columns_of(packed, rows(), "arrow")) == {}


@pytest.mark.parametrize("name", ["binary", "three classes"])
def test_contributions_add_up_to_the_margin(name: str) -> None:
    packed = model(name)
    frame, loaded = frame_of(packed)[:50], opened(packed)
    columns = columns_of(packed, frame, "arrow")
    prediction, (places, values) = loaded.predict(columns), loaded.explain(columns, 9)
    assert places.shape == (50, 4) and (np.diff(np.abs(values), axis=1) <= 0).all()
    portable = portable_model.from_payload(packed.payload, packed.spec)
    bias = portable.contributions(loaded.encode(columns))[..., -1]
    margin = portable.native.inplace_predict(loaded.encode(columns), predict_type="margin", validate_features=False)
    if name == "three classes":
        likeliest = prediction.argmax(axis=1)
        bias, margin = bias[np.arange(50), likeliest], margin[np.arange(50), likeliest]
    np.testing.assert_allclose(values.sum(axis=1) + bias, margin, atol=1e-4)
    top = explanation_array(loaded.score(columns, explain=1), loaded.feature_names).to_pylist()
    assert top[0] == [{"feature": loaded.feature_names[places[0, 0]], "contribution": pytest.approx(values[0, 0])}]


def test_a_forest_uses_one_thread() -> None:
    packed = model("forest")
    assert opened(packed)._model.native.n_jobs == 1


# ---- loaded once


def test_a_model_is_loaded_once_and_four_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "_loaded", {})
    packed, asked = model("binary"), []

    def payload(name: str) -> bytes:
        asked.append(name)
        return packed.payload

    def open_one(name: str, spec: Any = scorer_spec(packed.spec)) -> Scorer:  # noqa: B008
        return scorer_of(name, lambda: payload(name), spec)

    assert open_one("one") is open_one("one")
    for name in ("two", "three", "one", "four", "one", "two"):
        open_one(name)
    assert asked == ["one", "two", "three", "four", "two"]
    other = {**scorer_spec(packed.spec), "calibration": {"method": "sigmoid", "slope": 2.0, "intercept": 0.0}}
    assert open_one("one", other).spec == other
    assert asked.pop() == "one"


def test_loading_xgboost_leaves_sklearn_mlflow_ray_and_pyspark_alone(tmp_path: Any) -> None:
    packed = model("binary")
    (tmp_path / "model.ubj").write_bytes(packed.payload)
    code = f"""
import sys
from pathlib import Path
from toolkit.engines.scorer import Scorer
Scorer(Path({str(tmp_path / "model.ubj")!r}).read_bytes(), {scorer_spec(packed.spec)!r})
found = {{"sklearn", "mlflow", "ray", "pyspark"}} & set(sys.modules)
import sklearn
sys.exit(repr(found) if found else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- rows that crash


def crashing_on(loaded: Scorer, monkeypatch: pytest.MonkeyPatch, is_poison: Any) -> None:
    """Each process that predicts such a row dies."""
    predict = loaded._model.predict_encoded

    def predict_or_die(features: Any) -> Any:
        if is_poison(features).any():
            os.kill(os.getpid(), signal.SIGSEGV)
        return predict(features)

    monkeypatch.setattr(loaded._model, "predict_encoded", predict_or_die)


def test_rows_that_crash_are_found_and_the_others_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = model("three classes")
    loaded, frame = opened(packed), rows()[:1000].copy()
    columns = columns_of(packed, frame, "arrow")
    wanted = loaded.predict(columns)
    poison = [0, 17, 18, 999]
    columns[0] = frame.a.where(~frame.index.isin(poison), 1e6)
    crashing_on(loaded, monkeypatch, lambda features: features[:, 0] == 1e6)
    scores = loaded.score(columns, explain=2, guarded=True)
    assert scores.crashed is not None and np.flatnonzero(scores.crashed).tolist() == poison
    np.testing.assert_array_equal(np.delete(scores.prediction, poison, axis=0), np.delete(wanted, poison, axis=0))
    assert np.isnan(scores.prediction[poison]).all()
    for array in (prediction_array(scores), explanation_array(scores, loaded.feature_names)):
        assert np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist() == poison


def test_without_a_crash_a_batch_takes_one_child(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = model("binary")
    loaded, forks, fork = opened(packed), [], os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or fork())
    columns = columns_of(packed, rows(), "arrow")
    prediction, crashed = loaded.predict_guarded(columns)
    np.testing.assert_array_equal(prediction, loaded.predict(columns))
    assert not crashed.any() and len(forks) == 1


def test_a_model_that_always_crashes_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = model("binary")
    loaded = opened(packed)
    crashing_on(loaded, monkeypatch, lambda features: features[:, 0] == features[:, 0])
    with pytest.raises(ScoringError, match="more than 50 rows of a batch that crash it"):
        loaded.predict_guarded(columns_of(packed, rows(), "arrow"))


def test_an_exception_in_a_child_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = opened(model("binary"))

    def fail(features: Any) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(loaded._model, "predict_encoded", fail)
    with pytest.raises(RuntimeError, match="no such thing"):
        loaded.predict_guarded(columns_of(model("binary"), rows(), "arrow"))


def test_others_in_the_process_have_an_xgboost_of_their_own(tmp_path):
    """Spark's Python workers serve every function of the application, and XGBClassifier needs scikit-learn."""
    features = np.random.default_rng(1).random((50, 3))
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(features, np.arange(50) % 2), 3)
    (tmp_path / "model.ubj").write_bytes(bytes(booster.save_raw("ubj")))
    code = f"""
import sys
import numpy as np, pyarrow as pa
from toolkit.engines.scorer import scorer_of

payload = open({str(tmp_path / "model.ubj")!r}, "rb").read()
features = [{{"name": name, "categories": None}} for name in "abc"]
spec = {{"features": features, "model_kind": "xgboost", "task": "binary", "classes": [0, 1], "calibration": None}}
columns = [pa.array(np.random.default_rng(1).random(10, dtype=np.float32)) for _ in range(3)]
scorer = scorer_of("a", lambda: payload, spec)
before = scorer.predict(columns)
assert not {{"xgboost", "sklearn"}} & set(sys.modules)
import xgboost
xgboost.XGBClassifier(n_estimators=2).fit(np.random.random((10, 3)), [0, 1] * 5)
assert (scorer.predict(columns) == before).all() and (scorer.predict_guarded(columns)[0] == before).all()
assert (scorer_of("b", lambda: payload, spec).predict(columns) == before).all()
scorer.explain(columns, 2)
assert sys.modules["xgboost"] is xgboost
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
