"""`toolkit train` from end to end on real data, and the portable model's parity with what MLflow and XGBoost predict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn import datasets

from tests.commands import Workplace, workplace
from toolkit import Custom, Dataset, Experiment, Float, Int, Metric, Sklearn, Split, Sweep, XGBoost
from toolkit.core.encoding import encode_features
from toolkit.core.errors import DataError, ExperimentError, StudyError, UserError
from toolkit.engines import portable_model
from toolkit.engines.portable_model import PortableModel, PortableModelError
from toolkit.settings import Settings
from toolkit.train import train

pytestmark = [pytest.mark.engine]
__all__ = ["workplace"]

FOREST = Sklearn("sklearn.ensemble.RandomForestClassifier", params={"n_estimators": 5})


def settings_in(folder: Path) -> Settings:
    return replace(Settings.read({}), home=folder / ".toolkit", tracking_uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return settings_in(tmp_path)


def wine() -> pd.DataFrame:
    frame = datasets.load_wine(as_frame=True).frame
    frame["target"] = frame["target"] == 1
    frame.columns = [name.replace("/", "_") for name in frame.columns]
    return frame


def digits() -> pd.DataFrame:
    frame: pd.DataFrame = datasets.load_digits(as_frame=True).frame
    return frame


def diabetes() -> pd.DataFrame:
    frame: pd.DataFrame = datasets.load_diabetes(as_frame=True).frame
    return frame


def clients(num: int = 1200) -> pd.DataFrame:
    """Categories as text, as whole numbers with holes and as booleans; missing values everywhere; a label that depends on them."""
    random = np.random.RandomState(7)
    region = random.choice(["north", "söuth", "east, far", "west"], num)
    plan = random.choice([10, 20, 30], num).astype(float)
    amount = random.normal(100, 30, num)
    score = (region == "north") * 1.5 + (plan == 20) * 1.2 + (amount - 100) / 30 + random.normal(0, 0.7, num)
    frame = pd.DataFrame({"client": np.arange(num), "region": region, "plan": plan, "is_new": random.rand(num) < 0.3, "amount": amount})
    frame["left"] = np.where(score > 1, "yes", "no")
    frame.loc[random.rand(num) < 0.1, "region"] = None
    frame.loc[random.rand(num) < 0.1, "plan"] = np.nan
    frame.loc[random.rand(num) < 0.1, "amount"] = np.nan
    return frame


def experiment(load: Any, label: str, model: Any, metric: Metric, **more: Any) -> Experiment:
    space = {"max_depth": Int(2, 6), "learning_rate": Float(0.05, 0.5)} if isinstance(model, XGBoost) else None
    dataset = more.pop("dataset", Dataset(load=load, label=label))
    return Experiment(
        name="case", dataset=dataset, model=model, space=space, metric=metric, sweep=Sweep(num_trials=2), split=Split(seed=3), **more
    )


CLIENTS = Dataset(load=clients, label="left", key="client", categorical=("region", "plan", "is_new"))
AUC, LOGLOSS, RMSE = Metric("auc", "maximize"), Metric("mlogloss", "minimize"), Metric("rmse", "minimize")
PARAMS = {"max_depth": 3, "learning_rate": 0.3}


def boosted(objective: str) -> XGBoost:
    return XGBoost(objective=objective, num_boost_round=25, early_stopping_rounds=5)


CASES = {
    "wine": lambda: experiment(wine, "target", boosted("binary:logistic"), AUC),
    "digits": lambda: experiment(digits, "target", boosted("multi:softprob"), LOGLOSS),
    "diabetes": lambda: experiment(diabetes, "target", boosted("reg:squarederror"), RMSE),
    "clients": lambda: experiment(clients, "left", boosted("binary:logistic"), AUC, dataset=CLIENTS),
    "clients-calibrated": lambda: experiment(clients, "left", boosted("binary:logistic"), AUC, dataset=CLIENTS, calibration="isotonic"),
    "wine-sigmoid": lambda: experiment(wine, "target", boosted("binary:logistic"), AUC, calibration="sigmoid"),
    "wine-forest": lambda: experiment(wine, "target", FOREST, AUC),
    "digits-forest": lambda: experiment(digits, "target", replace(FOREST, task="multiclass"), LOGLOSS),
    "diabetes-ridge": lambda: experiment(diabetes, "target", Sklearn("sklearn.linear_model.Ridge", task="regression"), RMSE),
    "clients-hist": lambda: experiment(
        clients, "left", Sklearn("sklearn.ensemble.HistGradientBoostingClassifier"), AUC, dataset=CLIENTS
    ),
}  # fmt: skip


def trained(case: Experiment, settings: Settings) -> tuple[Any, PortableModel, Any]:
    """The result, the portable model as it was logged, and MLflow's pyfunc of the same."""
    params = settings.home.parent / "params.json"
    params.write_text(json.dumps(PARAMS))
    result = train(case, params=str(params) if case.space else "best", settings=settings)
    mlflow.set_tracking_uri(settings.tracking_uri)
    folder = mlflow.artifacts.download_artifacts(result.best.model_uri, dst_path=str(settings.home / "downloaded"))
    return result, portable_model.load(folder), mlflow.pyfunc.load_model(folder)


@pytest.mark.parametrize("name", CASES)
def test_spec_pyfunc_and_native_predict_the_same(name: str, settings: Settings) -> None:
    case = CASES[name]()
    result, model, pyfunc = trained(case, settings)
    frame = case.dataset.load().drop(columns=[case.dataset.label])  # type: ignore[operator]
    by_spec = model.predict(frame)
    assert np.isfinite(by_spec).all() and by_spec.std() > 0.01
    columns = pyfunc.metadata.get_input_schema().input_names()
    np.testing.assert_allclose(np.asarray(pyfunc.predict(frame[columns])), by_spec, atol=1e-6)
    few = pd.read_csv(StringIO(frame[columns].head(3).to_csv(index=False)))  # where a column of fractions may happen to be whole
    np.testing.assert_allclose(np.asarray(pyfunc.predict(few)), by_spec[:3], atol=1e-6)

    if case.model.kind == "xgboost":
        gaps = frame[columns].head(3).assign(**{columns[0]: None, columns[1]: frame[columns[1]].head(3).where([True, False, True])})
        np.testing.assert_allclose(np.asarray(pyfunc.predict(gaps)), model.predict(gaps), atol=1e-6)
    if "xgboost" in pyfunc.metadata.flavors:
        by_flavor = mlflow.xgboost.load_model(result.best.model_uri).predict(xgboost.DMatrix(frame[columns]))
        np.testing.assert_allclose(by_flavor, by_spec, atol=1e-6)

    features = model.encode(frame)
    known = {feature["name"]: feature.get("categories") for feature in model.spec["features"]}
    np.testing.assert_array_equal(features, encode_features(frame, known))
    if case.model.kind == "xgboost":
        booster = xgboost.Booster(model_file=str(model.folder / "model.ubj"))
        types = ["q" if categories is None else "c" for categories in known.values()]
        matrix = xgboost.DMatrix(features, feature_names=list(known), feature_types=types, enable_categorical=True)
        native = portable_model.calibrate(booster.predict(matrix), model.spec["calibration"])
        np.testing.assert_allclose(native, by_spec, atol=1e-6)
    # The very rows that were held out give the figures that were logged.
    assert result.best.evaluation.metrics[case.metrics[0].name] == pytest.approx(model.spec["metrics"]["test"][case.metrics[0].name])


def test_the_spec_says_what_downstream_needs(settings: Settings) -> None:
    result, model, _ = trained(CASES["clients"](), settings)
    spec = model.spec
    assert spec["label"] == "left" and spec["classes"] == ["no", "yes"] and spec["key"] == "client"
    assert [feature["name"] for feature in spec["features"]] == ["region", "plan", "is_new", "amount"]
    assert spec["features"][1]["categories"] == [10, 20, 30] and spec["features"][2]["categories"] == [False, True]
    profile = spec["reference_profile"]
    fitted = len(clients()) - result.num_test_rows
    assert profile["num_rows"] == fitted == spec["training_rows"]["num_rows"]
    for name, column in profile["features"].items():
        assert sum(column["counts"]) + column["missing"] == fitted, name
    assert profile["features"]["region"]["missing"] > 0 and profile["score"]["kind"] == "number"
    assert sum(profile["score"]["counts"]) == result.num_validation_rows
    assert len(model.training_row_hashes) == fitted and model.training_keys is not None and len(model.training_keys) == fitted
    assert 0 < spec["threshold"] < 1 and spec["protocol"] == "honest" and spec["data"]["sha256"]


def test_unknown_categories_are_missing_and_missing_columns_are_named(settings: Settings) -> None:
    _, model, _ = trained(CASES["clients"](), settings)
    frame = clients().head(3)
    foreign, empty = frame.assign(region="mars"), frame.assign(region=None)
    np.testing.assert_array_equal(model.predict(foreign), model.predict(empty))
    with pytest.raises(PortableModelError, match="'amount'"):
        model.encode(frame.drop(columns="amount"))
    with pytest.raises(PortableModelError, match="'amount' must be numeric"):
        model.encode(frame.assign(amount="many"))


def test_a_model_that_was_changed_is_refused(settings: Settings) -> None:
    _, model, _ = trained(CASES["wine"](), settings)
    path = model.folder / "model.ubj"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(PortableModelError, match="as training wrote it"):
        portable_model.load(model.folder)


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_done(settings: Settings) -> None:
    before = set(settings.home.parent.rglob("*"))
    with pytest.raises(UserError, match=r"--report must name a file, got .*; for example --report report.html"):
        train(CASES["wine"](), report=settings.home.parent, settings=settings)
    assert set(settings.home.parent.rglob("*")) == before


def test_everything_is_logged(settings: Settings) -> None:
    case = replace(CASES["wine"](), split=Split(seed=3, folds=3))
    result, _, pyfunc = trained(case, settings)
    run = mlflow.get_run(result.best.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["max_depth"] == "3" and run.data.params["split.folds"] == "3"
    metrics = run.data.metrics
    for part in ("train", "validation", "test"):
        assert 0.5 < metrics[f"{part}_auc"] <= 1
    mean, std = result.best.cross_validation["auc"]
    assert metrics["cv_auc_mean"] == pytest.approx(mean) and metrics["cv_auc_std"] == pytest.approx(std) and std > 0
    assert {name for name in metrics if name.startswith("gain.")} and {name for name in metrics if name.startswith("permutation.")}
    curve = mlflow.MlflowClient(settings.tracking_uri).get_metric_history(result.best.run_id, "curve_auc")
    assert [point.step for point in curve] == sorted({point.step for point in curve}) and len(curve) > 1
    assert run.data.tags["data.sha256"] == result.source.sha256 and run.data.tags["version.xgboost"] == xgboost.__version__
    assert pyfunc.metadata.saved_input_example_info is not None and pyfunc.metadata.signature.outputs is not None
    requirements = Path(mlflow.pyfunc.get_model_dependencies(result.best.model_uri)).read_text()
    assert f"xgboost=={xgboost.__version__}" in requirements and "toolkit" not in requirements
    names = [each.path for each in mlflow.MlflowClient(settings.tracking_uri).list_artifacts(result.best.run_id)]
    assert "case-train.html" in names
    report = Path(result.report_path).read_text()
    assert "Permutation importances" in report and "folds" in report


def test_the_published_baseline(workplace: Workplace, wine_folder: Path) -> None:
    """Source A: a forest of 10 trees, AUC 0.8889 on the test part."""
    answer = workplace.here("train", "wine-quality", "--baseline", "--protocol", "published", "--data", str(wine_folder), "--json")
    assert answer.code == 0, answer.err
    assert round(answer.json["test_metrics"]["auc"], 4) == 0.8889
    assert answer.json["protocol"] == "published" and answer.json["model"] == "RandomForestClassifier"


def test_without_a_named_baseline_the_mean_and_the_defaults(settings: Settings) -> None:
    for name, metric in (("wine", "auc"), ("digits", "mlogloss"), ("diabetes", "rmse")):
        result = train(CASES[name](), baseline=True, settings=settings)
        dummy, defaults = result.models
        assert dummy.name == "baseline-dummy" and result.best is defaults
        assert dummy.evaluation.metrics[metric] != defaults.evaluation.metrics[metric]
    ridge = train(CASES["diabetes-ridge"](), baseline=True, settings=settings)
    assert [model.model_text for model in ridge.models] == ["DummyRegressor", "XGBoost, reg:squarederror"]


def test_the_best_of_the_last_finished_study(workplace: Workplace, wine_folder: Path) -> None:
    common = ["wine-quality", "--data", str(wine_folder), "--set", "model.num_boost_round=40"]
    none = workplace.here("train", *common)
    assert none.code == 1 and "needs a finished study" in none.err and none.err.count("\n") <= 2
    swept = workplace.here("sweep", *common, "--trials", "3", "--cluster", "inprocess", "--json")
    assert swept.code == 0, swept.err
    answer = workplace.here("train", *common, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["params"] == swept.json["best_trial"]["params"]
    assert answer.json["test_metrics"] == swept.json["test_metrics"] and answer.json["threshold"] == swept.json["threshold"]
    by_name = workplace.here("train", *common, "--params", "best:wine-quality-honest", "--json")
    assert by_name.json["test_metrics"] == answer.json["test_metrics"]
    other = workplace.here("train", *common, "--set", "space.max_depth=Int(2, 3)")
    assert other.code == 1, other.err


REFUSED: Mapping[str, tuple[Any, str]] = {
    "unknown name": ({"max_dept": 3}, "did you mean 'max_depth'"),
    "outside its range": ({"max_depth": 99}, "must be a whole number from"),
    "no mapping": ([1, 2], "names and values"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_file_of_wrong_parameters(name: str, ending: str, settings: Settings, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    path = tmp_path / f"params.{ending}"
    path.write_text(json.dumps(content))  # JSON is YAML
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        train(CASES["wine"](), params=str(path), settings=settings)
    assert set(tmp_path.rglob("*")) == before


def test_what_cannot_be_trained(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        train(CASES["wine"](), params="nowhere.json", settings=settings)
    with pytest.raises(StudyError, match="no study 'other'"):
        train(CASES["wine"](), params="best:other", settings=settings)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(UserError, match="must be JSON"):
        train(CASES["wine"](), params=str(broken), settings=settings)
    unknown = experiment(wine, "target", Sklearn("sklearn.ensemble.NoForest"), AUC)
    with pytest.raises(ExperimentError, match="a class by its full name"):
        train(unknown, settings=settings)
    wrong = experiment(wine, "target", replace(FOREST, params={"trees": 3}), AUC)
    with pytest.raises(ExperimentError, match="unknown to RandomForestClassifier"):
        train(wrong, settings=settings)
    labels_only = experiment(wine, "target", Sklearn("sklearn.svm.LinearSVC"), AUC)
    with pytest.raises(ExperimentError, match="predict_proba"):
        train(labels_only, settings=settings)
    few = replace(CASES["wine"](), calibration="isotonic", dataset=Dataset(load=lambda: wine().iloc[40:100], label="target"))
    with pytest.raises(DataError, match="calibration: needs 10 validation rows of each class"):
        train(few, baseline=True, settings=settings)


def test_a_model_without_portable_form_is_not_registered(settings: Settings) -> None:
    own = Custom(fit=lambda params, train, validation, report: None, predict=lambda model, features: features[:, 0])
    with pytest.raises(UserError, match="--register: a model of XGBoost or scikit-learn"):
        train(experiment(wine, "target", own, AUC), register=True, settings=settings)


def test_baseline_and_params_exclude_each_other(workplace: Workplace) -> None:
    answer = workplace.here("train", "wine-quality", "--baseline", "--params", "best")
    assert answer.code == 2 and "exclude each other" in answer.err


def test_a_ranking_with_weights(settings: Settings) -> None:
    """XGBoost takes one weight a query there, not one a row."""

    def load() -> pd.DataFrame:
        random = np.random.RandomState(0)
        query = np.repeat(np.arange(60), 10)
        relevance = random.randint(0, 3, 600)
        return pd.DataFrame({"q": query, "x": relevance + random.normal(size=600), "w": random.rand(60)[query], "y": relevance})

    dataset = Dataset(load=load, label="y", group="q", weight="w")
    model = XGBoost(objective="rank:ndcg", num_boost_round=10, early_stopping_rounds=None)
    case = Experiment(name="case", dataset=dataset, model=model, space=None, metric=Metric("ndcg", "maximize"))
    assert train(case, settings=settings).best.evaluation.metrics["ndcg"] > 0.8


def test_a_parameter_that_is_given_twice(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"max_depth": 3, "max_depth": 4}')
    with pytest.raises(UserError, match="'max_depth' twice"):
        train(CASES["wine"](), params=str(tmp_path / "params.json"), settings=settings)
