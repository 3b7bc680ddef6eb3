"""What does a promotion cost on a hold-out of a million rows, beyond the prediction itself?

Two XGBoost models of 300 rounds judge 28 columns by an absolute gate, three gates against the champion and one by region. The whole
`toolkit promote` process, imports, reading, overlap check, bootstrap, report, MLflow and the aliases' move among it, against the bare
calls of XGBoost's `inplace_predict` on a float32 matrix that lies in memory, one of each model.

    python -m benchmarks.promote              # about 5 minutes
    python -m benchmarks.promote --repeats 1 --quick
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import harness

ROOT = Path(__file__).parent.parent
NUM_FEATURES = 27  # and the region
ALLOWED_S = 5.0

EXPERIMENT = """
from toolkit import Dataset, Experiment, Gate, Metric, XGBoost

def experiment():
    return Experiment(
        name="bench-promote",
        dataset=Dataset(load="train.parquet", holdout="holdout.parquet", label="y", key="id", categorical=("region",)),
        model=XGBoost(num_boost_round={rounds}, early_stopping_rounds=None, params={{"max_depth": 6, "learning_rate": 0.1}}),
        space=None,
        metric=Metric("auc", "maximize"),
        gates=(
            Gate("auc", at_least=0.6),
            Gate("auc", no_worse_than_champion_by=0.01),
            Gate("logloss", no_worse_than_champion_by=0.01),
            Gate("f1", no_worse_than_champion_by=0.02),
            Gate("auc", no_worse_than_champion_by=0.02, by="region"),
        ),
    )
"""


def table(num_rows: int, seed: int) -> pd.DataFrame:
    random = np.random.Generator(np.random.PCG64(seed))
    features = random.normal(size=(num_rows, NUM_FEATURES)).astype(np.float32)
    signal = features[:, 0] + features[:, 1] * features[:, 2] - 0.5 * features[:, 3]
    frame = pd.DataFrame(features, columns=[f"x{number}" for number in range(NUM_FEATURES)])
    frame["region"] = random.choice(["north", "south", "east", "west"], num_rows)
    frame["y"] = (random.random(num_rows) < 1 / (1 + np.exp(-signal))).astype(np.int8)
    frame["id"] = np.arange(num_rows) + seed * 10_000_000
    return frame


# --- arms, each in a process of its own -----------------------------------------------------------------------------------------------


def set_up_arm(num_rows: int, rounds: int) -> dict[str, float]:
    """Tables, and both models registered, in the working directory."""
    from toolkit.core.recipes import load_experiment
    from toolkit.engines.mlflow_registry import Registry
    from toolkit.settings import Settings
    from toolkit.train import train

    table(max(num_rows // 10, 5_000), 1).to_parquet("train.parquet")
    table(num_rows, 2).to_parquet("holdout.parquet")
    settings = Settings.read()
    # The champion has two rounds less: as large, and not the same.
    for number, each in enumerate((rounds - 2, rounds), start=1):
        Path("experiment.py").write_text(EXPERIMENT.format(rounds=each))
        train(load_experiment("./experiment.py"), register=True, settings=settings)
        if number == 1:
            Registry.open(None, settings.tracking_uri).set_alias("bench_promote", "champion", 1)
    return {}


def prediction_arm() -> dict[str, float]:
    """Both models on a matrix in memory."""
    from toolkit.core.encoding import encode_features
    from toolkit.engines import portable_model
    from toolkit.engines.mlflow_registry import Registry

    registry = Registry.open(None, os.environ["MLFLOW_TRACKING_URI"])
    frame = pd.read_parquet("holdout.parquet")
    predict_s = encode_s = 0.0
    for version in registry.versions("bench_promote"):
        with tempfile.TemporaryDirectory() as folder:
            model = portable_model.load(registry.download(version, Path(folder)))
        features = encode_features(frame, {feature["name"]: feature.get("categories") for feature in model.spec["features"]})
        model.predict_encoded(features[:1000])
        began = time.perf_counter()
        model.predict_encoded(features)
        predict_s += time.perf_counter() - began
        began = time.perf_counter()
        model.encode(frame)
        encode_s += time.perf_counter() - began
    return {"predict_s": predict_s, "encode_s": encode_s}


def promote_arm() -> dict[str, float]:
    """As `toolkit promote` does it; the aliases are put back for the next round."""
    from toolkit.engines.mlflow_registry import Registry
    from toolkit.promote import promote

    result = promote("bench_promote", experiment="./experiment.py", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    assert result.is_promoted, result.verdict
    wall_s = result.wall_s
    registry = Registry.open(None, os.environ["MLFLOW_TRACKING_URI"])
    registry.set_alias("bench_promote", "champion", 1)
    registry.set_alias("bench_promote", "challenger", 2)
    return {"wall_s": wall_s}


# --- the run --------------------------------------------------------------------------------------------------------------------------


def in_process(folder: Path, arm: str, **options: Any) -> dict[str, float]:
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "TOOLKIT_HOME": str(folder / ".toolkit")}
    return harness.in_process("benchmarks.promote", arm, options, cwd=folder, env=env)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rows, nothing written: to see that it works")
    parser.add_argument("--arm")
    parser.add_argument("--options")
    given = parser.parse_args()
    if given.arm:
        arms: dict[str, Callable[..., Mapping[str, float]]] = {
            "set up": set_up_arm,
            "prediction": prediction_arm,
            "promote": promote_arm,
        }
        print(json.dumps(arms[given.arm](**json.loads(given.options))))
        return
    num_rows, rounds = (20_000, 20) if given.quick else (1_000_000, 300)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        in_process(folder, "set up", num_rows=num_rows, rounds=rounds)
        measured = harness.interleave({arm: partial(in_process, folder, arm) for arm in ("prediction", "promote")}, given.repeats)
    for prediction, promotion in zip(measured["prediction"], measured["promote"], strict=True):
        promotion["allowed_s"] = 2 * prediction["predict_s"] + ALLOWED_S
    figures = [
        harness.Figure(
            f"whole process over 2 x prediction + {ALLOWED_S:g} s, {num_rows:,} rows",
            harness.ratio(measured, "promote", "promote", "process_s", "allowed_s"),
            "ratio",
            1.0,
            "at_most",
        )
    ]
    arms_shown = [("prediction", "predict_s"), ("prediction", "encode_s"), ("promote", "process_s"), ("promote", "wall_s")]
    notes = [
        "predict_s is the bare prediction of both models, one after the other, on all cores; encode_s, the way from the table to both "
        "models' matrices, is not in it. process_s is the whole Python process seen from outside, wall_s what promote() says of itself.",
        "The ratio is the median over rounds, each against the prediction of the same round.",
    ]
    arms_measured = [harness.arm(measured, run, key) for run, key in arms_shown]
    if given.quick:
        print(json.dumps([figure.as_dict() for figure in figures], indent=1))
    else:
        print(harness.write("promote", (__doc__ or "").splitlines()[0], arms_measured, figures, notes))


if __name__ == "__main__":
    main()
