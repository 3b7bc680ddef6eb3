"""What does `train --distributed` cost over one process, when both have the same two cores and the same rows?

Two Ray Train workers of one core each against one process with two threads: 5 million rows of 28 features (as many as HIGGS has), Parquet
read, binned, 100 rounds of depth 6 with the AUC of 500,000 validation rows after each. An arm is a fresh process.

    python -m benchmarks.train_distributed                 # about 10 minutes
    python -m benchmarks.train_distributed --repeats 1 --quick
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import harness

ROOT = Path(__file__).parent.parent
NUM_WORKERS = 2
NUM_FEATURES = 28
NAMES = [f"f{number:02d}" for number in range(NUM_FEATURES)]
PARAMS: dict[str, Any] = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.1, "eval_metric": ["auc"], "seed": 1}
ROWS_PER_FILE = 625_000


def write_table(folder: Path, num_rows: int, seed: int) -> None:
    """Normal and exponential measurements, and in the last seven columns functions of them, on which the label depends."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    weights = np.random.default_rng(0).normal(size=(21, 7)).astype(np.float32) / 4
    random = np.random.default_rng(seed)
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        size = min(ROWS_PER_FILE, num_rows - start)
        low = random.normal(size=(size, 21)).astype(np.float32)
        low[:, ::3] = np.exp(low[:, ::3] / 2)
        high = np.abs(low @ weights)
        margin = high[:, 0] * high[:, 1] - high[:, 2] + np.sin(2 * high[:, 3]) - low[:, 1] * low[:, 4] / 2
        label = random.random(size) < 1 / (1 + np.exp(-(margin - margin.mean())))
        columns = dict(zip(NAMES, np.hstack([low, high]).T, strict=True))
        table = pa.table({**columns, "label": label.astype(np.float32)})
        pq.write_table(table, folder / f"part-{number:03d}.parquet", row_group_size=131_072, compression="zstd", use_dictionary=False)


def read_table(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    import pyarrow.dataset as ds

    table = ds.dataset(folder).to_table()
    features = np.empty((table.num_rows, NUM_FEATURES), dtype=np.float32)
    for number, name in enumerate(NAMES):
        features[:, number] = table.column(name).to_numpy()
    return features, table.column("label").to_numpy()


def auc_of(booster: Any, folder: Path) -> float:
    from sklearn.metrics import roc_auc_score

    features, label = read_table(folder)
    return float(roc_auc_score(label, booster.inplace_predict(features)))


# --- arms, each in a process of its own -----------------------------------------------------------------------------------------------


def single_arm(data: str, num_rounds: int) -> dict[str, float]:
    """The least one can write: the table as an array, bins, rounds."""
    import xgboost

    began = time.perf_counter()
    features, label = read_table(Path(data) / "train")
    matrix = xgboost.QuantileDMatrix(features, label=label, feature_names=NAMES, nthread=NUM_WORKERS)
    del features
    other, other_label = read_table(Path(data) / "validation")
    validation = xgboost.QuantileDMatrix(other, label=other_label, feature_names=NAMES, ref=matrix, nthread=NUM_WORKERS)
    params = {**PARAMS, "nthread": NUM_WORKERS}
    history: dict[str, Any] = {}
    booster = xgboost.train(params, matrix, num_rounds, evals=[(validation, "validation")], evals_result=history, verbose_eval=False)
    booster = booster[: int(np.argmax(history["validation"]["auc"])) + 1]
    wall_s = time.perf_counter() - began
    return {
        "wall_s": wall_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "auc": auc_of(booster, Path(data) / "test"),
    }


def distributed_arm(data: str, num_rounds: int) -> dict[str, float]:
    """The toolkit's engine as the verb calls it: what it needs is imported while Ray starts."""
    from toolkit.engines.ray_cluster import LocalRay, RayConnection

    began = time.perf_counter()
    connection = RayConnection(LocalRay(dashboard=False))
    try:
        from toolkit.core.experiment import Metric, Training
        from toolkit.engines.parquet_shards import Columns, files_of
        from toolkit.engines.ray_training import DistributedFit, train_distributed
        from toolkit.engines.xgboost_model import booster_from

        connection.wait()
        ray_s = time.perf_counter() - began
        fit = DistributedFit(
            train=files_of(Path(data) / "train"),
            validation=files_of(Path(data) / "validation"),
            columns=Columns(dict.fromkeys(NAMES), "label", are_codes=True),
            data_id="benchmark",
            params=PARAMS,
            metric=Metric("auc", "maximize"),
            num_boost_round=num_rounds,
        )
        result = train_distributed(fit, Training(num_workers=NUM_WORKERS), Path.cwd(), Path.cwd(), connection)
    finally:
        connection.stop()
    assert result.num_restarts == 0 and result.num_rounds == num_rounds
    return {
        "wall_s": result.wall_s,
        "ray_s": ray_s,
        "read_s": result.read_s,
        "matrix_s": result.matrix_s,
        "boost_s": result.boost_s,
        "peak_mb": max(result.peak_memory_bytes) / 1e6,
        "auc": auc_of(booster_from(result.model), Path(data) / "test"),
    }


# --- the run --------------------------------------------------------------------------------------------------------------------------


def in_process(arm: str, **options: Any) -> dict[str, float]:
    """In an empty folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return harness.in_process("benchmarks.train_distributed", arm, options, cwd=Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rows and rounds, nothing written: to see that it works")
    parser.add_argument("--arm")
    parser.add_argument("--options")
    given = parser.parse_args()
    if given.arm:
        arms: dict[str, Callable[..., Mapping[str, float]]] = {"single": single_arm, "distributed": distributed_arm}
        print(json.dumps(arms[given.arm](**json.loads(given.options))))
        return
    num_rows, num_rounds = (400_000, 20) if given.quick else (5_000_000, 100)
    with tempfile.TemporaryDirectory(prefix="bench-table-") as folder:
        for seed, (part, size) in enumerate({"train": num_rows, "validation": num_rows // 10, "test": num_rows // 10}.items()):
            write_table(Path(folder) / part, size, seed)
        arms_ = {name: partial(in_process, name, data=folder, num_rounds=num_rounds) for name in ("single", "distributed")}
        measured = harness.interleave(arms_, given.repeats)
    shard_mb = num_rows / NUM_WORKERS * NUM_FEATURES * 4 / 1e6
    # Predicting the test rows is in both processes, and is neither's cost.
    figures = [
        harness.Figure(
            "wall, 2 workers of one core over 1 process of two threads, Ray running",
            harness.ratio(measured, "distributed", "single", "wall_s"),
            "ratio",
            1.25,
            "at_most",
        ),
        harness.Figure(
            "whole process, Ray's start and end included",
            harness.ratio(measured, "distributed", "single", "process_s"),
            "ratio",
            1.25,
            "at_most",
        ),
        harness.Figure(
            "peak memory of a worker: at most 1.5 times its rows as float32, and 500 MB",
            max(values["peak_mb"] for values in measured["distributed"]),
            "MB",
            1.5 * shard_mb + 500,
            "at_most",
        ),
        harness.Figure(
            "AUC on test rows, difference from one process",
            max(abs(a["auc"] - b["auc"]) for a, b in zip(measured["distributed"], measured["single"], strict=True)),
            "",
            0.002,
            "at_most",
        ),
    ]
    notes = [
        "Ratios are medians of the ratios within a round.",
        f"{num_rows:,} rows of {NUM_FEATURES} features, {num_rounds} rounds of depth 6, AUC of {num_rows // 10:,} validation rows after "
        f"each; a worker's rows as float32 are {shard_mb:.0f} MB.",
        "wall_s of the toolkit begins when Ray is up (ray_s stands beside it) and holds the start of Ray Train's processes; that of one "
        "process begins with reading. process_s is the whole Python process, with imports and the prediction of the test rows.",
        "peak_mb is the most that one process had resident: a worker, or the one process with its array.",
    ]
    arms_measured = [
        harness.arm(measured, name, key, "MB" if key == "peak_mb" else "AUC" if key == "auc" else "s")
        for name, values in measured.items()
        for key in values[0]
    ]
    if given.quick:
        print(json.dumps([figure.as_dict() for figure in figures], indent=1))
    else:
        print(harness.write("train-distributed", (__doc__ or "").splitlines()[0], arms_measured, figures, notes))


if __name__ == "__main__":
    main()
