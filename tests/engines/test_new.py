"""What `toolkit new` writes runs as it is: from a file of the user's own to a tested winner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.commands import Workplace, workplace
from tests.engines.conftest import MlflowServer
from toolkit.core.data import DataContext
from toolkit.core.recipes import load_experiment
from toolkit.engines import portable_model
from toolkit.engines.sklearn_splits import split
from toolkit.engines.tables import load_data

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]

N = 600
SEED = 11


def churn(folder: Path) -> str:
    """Two classes as text, categories, gaps, a name that XGBoost does not take, rows without a label, text with line breaks."""
    random = np.random.default_rng(SEED)
    age, city = random.integers(18, 80, N).astype(float), random.choice(["Köln", "Ulm", "Bonn"], N)
    score = (age - 50) / 8 + 2 * (city == "Ulm") + random.normal(size=N)
    table = pd.DataFrame(
        {
            "customer id": np.arange(N) + 1000,
            "age": np.where(np.arange(N) % 9, age, np.nan),
            "city": np.where(np.arange(N) % 13, city, None),
            "income [EUR]": [f"{value:,}" for value in random.integers(900, 9000, N)],
            "note": [f'said "{place}",\nthen left' for place in range(N)],
            "since": pd.date_range("2020-01-01", periods=N).strftime("%Y-%m-%d"),
            "churned": np.where(np.arange(N) < 4, None, np.where(score > 0, "yes", "no")),
        }
    )
    table.to_csv(folder / "churn.csv", index=False)
    return "churn.csv"


def rents(folder: Path) -> str:
    """An amount, decimal commas, cp1252."""
    random = np.random.default_rng(SEED)
    size, place = random.uniform(20, 120, N).round(1), random.choice(["Düsseldorf", "Köln"], N)
    table = pd.DataFrame({"Größe": size, "Ort": place, "Miete": (size * 12 + 90 * (place == "Köln") + random.normal(0, 40, N)).round(2)})
    table.to_csv(folder / "mieten.csv", index=False, sep=";", decimal=",", encoding="cp1252")
    return "mieten.csv"


def kinds(folder: Path) -> str:
    """Three classes as text, Parquet with a named index."""
    random = np.random.default_rng(SEED)
    a, b = random.normal(size=N), random.normal(size=N)
    table = pd.DataFrame({"a": a, "b": b, "kind": np.select([a > 0.5, b > 0.3], ["ash", "birch"], "oak")})
    table.set_index(pd.Index(random.permutation(N), name="tree")).to_parquet(folder / "kinds.parquet")
    return "kinds.parquet"


def clicks(folder: Path) -> str:
    """Rare positives, codes as categories, Delta."""
    random = np.random.default_rng(SEED)
    import deltalake

    shop, price = random.integers(1, 9, N), random.uniform(1, 50, N)
    clicked = random.random(N) < np.where(shop == 3, 0.15, 0.01)
    table = pd.DataFrame({"shop_id": shop, "price": price, "when": pd.date_range("2024", periods=N, tz="UTC"), "clicked": clicked})
    deltalake.write_deltalake(folder / "clicks", pa.Table.from_pandas(table, preserve_index=False))
    return "clicks"


def bought(folder: Path) -> str:
    """A class that is looked for, the rarer and the first in order; postal codes."""
    random = np.random.default_rng(SEED)
    plz, x = random.choice(["01067", "04109", "50667"], N), random.normal(size=N).round(3)
    score = x + 0.8 * (plz == "01067") + random.normal(size=N) / 2
    table = pd.DataFrame({"plz": plz, "x": x, "z": random.normal(size=N).round(3), "kauf": np.where(score > 1.4, "ja", "nein")})
    table.to_csv(folder / "kauf.csv", index=False)
    return "kauf.csv"


TABLES: list[tuple[Callable[[Path], str], str, dict[str, object]]] = [
    (churn, "churned", {"task": "binary", "metric": "auc", "key": "customer id", "categories": ["city"], "num_missing_labels": 4}),
    (rents, "Miete", {"task": "regression", "metric": "rmse", "key": None, "categories": ["Ort"]}),
    (bought, "kauf", {"task": "binary", "metric": "auc", "positive": "ja", "categories": ["plz"]}),
    (kinds, "kind", {"task": "multiclass", "metric": "mlogloss", "key": "tree", "categories": []}),
    (clicks, "clicked", {"task": "binary", "metric": "aucpr", "categories": ["shop_id"], "times": ["when"]}),
]


@pytest.mark.parametrize(("make", "label", "expected"), TABLES, ids=[make.__name__ for make, *_ in TABLES])
def test_a_sweep_runs_what_new_has_written(
    make: Callable[[Path], str], label: str, expected: dict[str, object], workplace: Workplace, mlflow_server: MlflowServer
) -> None:
    name = make.__name__
    written = workplace.here("new", name, "--data", make(workplace.folder), "--label", label, "--json")
    assert written.code == 0, written.err
    found = written.json
    assert {key: found[key] for key in expected} == expected
    flags = ["--trials", "3", "--cluster", "inprocess", "--tracking-uri", mlflow_server.uri]
    swept = workplace.here("sweep", f"./{name}.py", *flags, "--json")
    assert swept.code == 0, swept.err
    result = swept.json
    assert (result["num_completed"], result["num_failed"], result["metric"]) == (3, 0, found["metric"])
    assert result["positive"] == found["positive"]
    assert result["data"]["num_rows"] == N - found["num_missing_labels"]
    assert result["data"]["num_features"] == len(found["numbers"]) + len(found["categories"])
    # The features tell the label, so the winner beats the floor that is written beside the gate: a gate that is none would pass anything.
    figure = result["test_metrics"][found["metric"]]
    assert figure > found["floor"] if found["direction"] == "maximize" else figure < found["floor"]


def test_probability_threshold_and_figures_are_of_the_positive_class(workplace: Workplace, mlflow_server: MlflowServer) -> None:
    table = pd.read_csv(workplace.folder / bought(workplace.folder), dtype={"plz": str})
    assert workplace.here("new", "kauf", "--data", "kauf.csv", "--label", "kauf").code == 0
    trained = workplace.here("train", "./kauf.py", "--baseline", "--tracking-uri", mlflow_server.uri, "--json")
    assert trained.code == 0, trained.err
    dummy, boosted = trained.json["models"]
    assert (dummy["positive"], boosted["positive"]) == ("ja", "ja")
    # What guesses has the share of ja for its average precision, and nobody buys where most do not.
    assert dummy["test_metrics"]["aucpr"] == pytest.approx((table.kauf == "ja").mean(), abs=0.06)
    mlflow.set_tracking_uri(mlflow_server.uri)
    model = portable_model.load(mlflow.artifacts.download_artifacts(boosted["model_uri"], dst_path=str(workplace.folder / "model")))
    assert model.spec["classes"] == ["nein", "ja"]
    probability = model.predict(table)
    is_ja = (table.kauf == "ja").to_numpy()
    assert probability[is_ja].mean() > 2 * probability[~is_ja].mean() and (probability > boosted["threshold"]).mean() < 0.5
    experiment = load_experiment("./kauf.py")
    rows = split(load_data(experiment, DataContext(None, None, Path("cache"))), experiment.split, "honest").test_rows
    assert rows is not None
    found = probability[rows] > boosted["threshold"]
    assert found[is_ja[rows]].mean() == pytest.approx(boosted["test_metrics"]["recall"])
    assert is_ja[rows][found].mean() == pytest.approx(boosted["test_metrics"]["precision"])
    explored = workplace.here("explore", "./kauf.py", "--json").json
    names = explored["correlations"]["names"]
    assert (explored["positive"], explored["groups"]) == ("ja", ["nein", "ja"])
    assert explored["correlations"]["values"][names.index("kauf")][names.index("x")] > 0.3
    wrong = workplace.here("explore", "./kauf.py", "--set", "dataset.positive=Ja")
    line = "error: dataset.positive: must be a class of label 'kauf', got 'Ja'; name 'ja' or 'nein'"
    assert (wrong.code, wrong.err.splitlines()[-1]) == (1, line)
