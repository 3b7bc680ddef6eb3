"""The wine recipe: genuine rows, the published baseline, and the generated sample."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from experiments.wine_quality import WINE, experiment, load_wine, wine_like_sample
from toolkit.core.data import DataContext, LoadedData
from toolkit.core.errors import DataError
from toolkit.core.space import Float
from toolkit.engines.sklearn_evaluation import evaluate
from toolkit.engines.sklearn_splits import split
from toolkit.engines.tables import load_data

MEASUREMENTS = (
    "fixed_acidity", "volatile_acidity", "citric_acid", "residual_sugar", "chlorides", "free_sulfur_dioxide", "total_sulfur_dioxide",
    "density", "pH", "sulphates", "alcohol",
)  # fmt: skip


@pytest.fixture(scope="module")
def wine(wine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(experiment(), DataContext(None, wine_folder, tmp_path_factory.mktemp("cache")))


def forest_auc(data: LoadedData, protocol: str) -> float:
    parts = split(data, experiment().split, protocol)  # type: ignore[arg-type]
    rows = parts.trial.rows if protocol == "honest" else parts.trial.fold(0)[0]
    forest = RandomForestClassifier(n_estimators=10, random_state=np.random.RandomState(123)).fit(rows.features, rows.label)
    return evaluate("binary", parts.test.label, forest.predict_proba(parts.test.features)[:, 1])["auc"]


def test_published_space() -> None:
    space = experiment().space
    assert space["learning_rate"] == Float(math.exp(-3), math.exp(-1), log=True)
    assert (space["max_depth"].low, space["max_depth"].high) == (4, 20)
    assert set(space) == {"max_depth", "learning_rate", "reg_alpha", "reg_lambda", "min_child_weight"}


def test_genuine_rows(wine: LoadedData, wine_folder: Path) -> None:
    assert wine.features.shape == (6497, 12)
    assert wine.feature_names == (*MEASUREMENTS, "is_red")
    assert wine.classes == (False, True)
    assert wine.label.sum() == 1277
    assert wine.features[:, -1].tolist() == [1.0] * 1599 + [0.0] * 4898
    assert wine.features[0, 0] == np.float32(7.4)
    assert wine.source.kind == "environment"
    table = load_wine(DataContext(None, wine_folder, wine_folder)).table
    assert table["wine_id"].tolist() == list(range(6497))
    assert table["wine_id"].dtype == np.int64


def test_published_baseline_is_reproduced(wine: LoadedData) -> None:
    assert forest_auc(wine, "published") == pytest.approx(0.8889, abs=0.0005)


def test_honest_baseline_is_lower(wine: LoadedData) -> None:
    assert 0.80 < forest_auc(wine, "honest") < 0.87


def test_users_own_files(wine_folder: Path, tmp_path: Path) -> None:
    red = load_data(experiment(), DataContext(wine_folder / "winequality-red.csv", None, tmp_path))
    assert (red.source.num_rows, red.source.kind) == (1599, "file")
    both = load_data(experiment(), DataContext(wine_folder, None, tmp_path))
    assert both.source.num_rows == 6497
    for name in WINE.files:
        text = (wine_folder / name).read_text().replace('"quality"', '"grade"')
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="wine files: need the column 'quality', got fixed_acidity"):
        load_data(experiment(), DataContext(tmp_path, None, tmp_path))


def test_generated_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    data = load_data(experiment(), DataContext(None, None, tmp_path / "cache"))
    assert data.source.is_fallback
    assert data.features.shape == (6497, 12)
    assert data.feature_names == (*MEASUREMENTS, "is_red")
    assert data.label.sum() == 1277
    assert np.isfinite(data.features).all()
    assert forest_auc(data, "honest") > 0.75
    assert wine_like_sample().equals(wine_like_sample())
