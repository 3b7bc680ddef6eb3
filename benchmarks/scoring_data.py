"""Tables and models for `benchmarks.scoring`: made once, all arms read the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KEY, PREDICTION = "id", "prediction"
ROWS_PER_FILE = 250_000
ROWS_PER_GROUP = 125_000
NUM_SMALL = 4_000
NUM_CHECKED = 20_000
MAX_DIFFERENCE = 1e-5

EXPERIMENT = """
from toolkit import Dataset, Experiment, Metric, XGBoost

def experiment():
    return Experiment(
        name={name!r},
        dataset=Dataset(load="train.parquet", label="y", key="id"),
        model=XGBoost(num_boost_round={rounds}, early_stopping_rounds=None, params={{"max_depth": {depth}, "learning_rate": 0.1}}),
        space=None,
        metric=Metric("auc", "maximize"),
    )
"""


@dataclass(frozen=True)
class Model:
    """One registered model. `features`: names in the model's order."""

    name: str
    features: tuple[str, ...]
    rounds: int
    depth: int

    @property
    def registered(self) -> str:
        return self.name.replace("-", "_")

    @property
    def uri(self) -> str:
        return f"models:/{self.registered}@champion"


@dataclass(frozen=True)
class Workload:
    """A table and the model for it.

    Attributes:
        table: folder of Parquet files; the keys are 0 to `num_rows` - 1.
        small: another one of the same columns, to warm up with.
        checked: (NUM_CHECKED,) keys whose predictions are compared. expected: of those, by `Booster.predict`.
    """

    title: str
    table: Path
    small: Path
    num_rows: int
    model: Model
    checked: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float32]


def names(num_columns: int) -> tuple[str, ...]:
    return tuple(f"f{number:03d}" for number in range(num_columns))


def values(start: int, size: int, num_columns: int) -> npt.NDArray[np.float64]:
    """(size, num_columns) of the rows with the keys from `start`: what single precision can hold, as doubles."""
    random = np.random.default_rng([start, num_columns])
    return random.standard_normal((size, num_columns), dtype=np.float32).astype(np.float64)


def write_table(folder: Path, num_rows: int, num_columns: int, rows_per_file: int = ROWS_PER_FILE) -> None:
    """A key and `num_columns` doubles, in Spark's own compression."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, num_rows, rows_per_file)):
        rows = values(start, min(rows_per_file, num_rows - start), num_columns)
        columns = {KEY: np.arange(start, start + len(rows)), **dict(zip(names(num_columns), rows.T, strict=True))}
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=ROWS_PER_GROUP, compression="snappy", use_dictionary=False)


def register(model: Model, num_rows: int) -> None:
    """Train as `toolkit train --register` does, in the working directory, and make it champion. The same booster is saved beside it as a
    plain model of MLflow's XGBoost flavour: `native_folder`."""
    import mlflow.xgboost
    import pandas as pd
    from mlflow.models import infer_signature

    from toolkit.core.recipes import load_experiment
    from toolkit.engines.mlflow_registry import Registry
    from toolkit.settings import Settings
    from toolkit.train import train

    random = np.random.default_rng(7)
    frame = pd.DataFrame(values(10**9, num_rows, len(model.features)), columns=list(model.features))
    first = frame.to_numpy()[:, :8]
    signal = first[:, 0] + first[:, 1] * first[:, 2] - 0.5 * first[:, 3] + np.sin(2 * first[:, 4]) * first[:, 5]
    frame["y"] = (random.random(num_rows) < 1 / (1 + np.exp(-signal))).astype(np.int8)
    frame["id"] = np.arange(num_rows)
    frame.to_parquet("train.parquet")
    Path("experiment.py").write_text(EXPERIMENT.format(name=model.name, rounds=model.rounds, depth=model.depth))
    train(load_experiment("./experiment.py"), register=True, settings=Settings.read())
    Registry.open(None, os.environ["MLFLOW_TRACKING_URI"]).set_alias(model.registered, "champion", 1)
    example = frame[list(model.features)].head(5)
    booster, _ = downloaded(model)
    mlflow.xgboost.save_model(booster, native_folder(model), signature=infer_signature(example, np.zeros(5)), model_format="ubj")


def native_folder(model: Model) -> Path:
    return Path.cwd() / "native" / model.name


def downloaded(model: Model) -> tuple[Any, bytes]:
    """The champion's booster, and its bytes."""
    import xgboost

    from toolkit.engines import portable_model
    from toolkit.engines.mlflow_registry import Registry

    registry = Registry.open(None, os.environ["MLFLOW_TRACKING_URI"])
    with tempfile.TemporaryDirectory() as folder:
        portable = portable_model.load(registry.download(registry.versions(model.registered)[0], Path(folder)))
        payload = (portable.folder / portable.spec["model_file"]).read_bytes()
    booster = xgboost.Booster()
    booster.load_model(bytearray(payload))
    return booster, payload


def workload(title: str, model: Model, num_rows: int, num_columns: int, rows_per_file: int = ROWS_PER_FILE) -> Workload:
    """Its tables are written to the working directory, where they are not there yet."""
    import xgboost

    table, small = Path.cwd() / f"table-{num_rows}-{num_columns}", Path.cwd() / f"small-{num_columns}"
    for folder, size, per_file in ((table, num_rows, rows_per_file), (small, NUM_SMALL, NUM_SMALL // 2)):
        if not folder.exists():
            write_table(folder, size, num_columns, per_file)
    booster = downloaded(model)[0]
    random = np.random.default_rng(3)
    places = [names(num_columns).index(name) for name in model.features]
    keys, found = [], []
    starts = range(0, num_rows, rows_per_file)
    for start in map(int, random.choice(starts, min(len(starts), 4), replace=False)):
        rows = values(start, min(rows_per_file, num_rows - start), num_columns)
        chosen = random.choice(len(rows), min(len(rows), NUM_CHECKED // 4), replace=False)
        keys.append(chosen + start)
        found.append(rows[chosen][:, places])
    expected = booster.predict(xgboost.DMatrix(np.concatenate(found), feature_names=list(model.features)))
    return Workload(title, table, small, num_rows, model, np.concatenate(keys), expected)


def check(output: Path, of: Workload) -> Mapping[str, float]:
    """Every key once, and the predictions of `checked`; how far they are from `Booster.predict`, and how large the output is.

    Raises:
        AssertionError: they are not.
    """
    import pyarrow.dataset as ds

    files = [path for path in output.rglob("*.parquet") if not any(part.startswith(("_", ".")) for part in path.relative_to(output).parts)]
    found = ds.dataset([str(path) for path in files]).to_table([KEY, PREDICTION])
    keys = found.column(KEY).to_numpy()
    assert len(keys) == of.num_rows, f"{output.name}: {of.num_rows} rows in, {len(keys)} out"
    counts = np.bincount(keys, minlength=of.num_rows)
    assert len(counts) == of.num_rows and (counts == 1).all(), f"{output.name}: keys missing or twice"
    predictions = np.empty(of.num_rows)
    predictions[keys] = found.column(PREDICTION).to_numpy()
    difference = float(np.abs(predictions[of.checked] - of.expected).max())
    assert difference <= MAX_DIFFERENCE, f"{output.name}: {difference} from Booster.predict"
    return {"difference": difference, "output_mb": sum(path.stat().st_size for path in files) / 1e6}
