"""`toolkit train --distributed`, whole: gathered and divided here, and from Parquet to Parquet; and a pipeline of Spark ML.

What Ray Train itself does, kills included, is in test_ray_training.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.commands import Workplace, wait_until, workplace
from tests.needs import need_java
from toolkit.core.leftovers import OLD_S
from toolkit.engines import portable_model
from toolkit.engines.claims import claimed

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]

PARAMS = {"max_depth": 4, "learning_rate": 0.2}

LARGE = """
from toolkit import Dataset, Experiment, Gate, Int, Metric, XGBoost

def experiment():
    return Experiment(
        name="large",
        dataset=Dataset(load="rows", label="left", key="id", categorical=("region",), holdout="holdout.parquet"),
        model=XGBoost(num_boost_round=30, early_stopping_rounds=5),
        space={"max_depth": Int(2, 6)},
        metric=Metric("auc", "maximize"),
        gates=(Gate("auc", at_least=0.7),),
    )
"""


def rows(num: int, seed: int) -> pd.DataFrame:
    random = np.random.RandomState(seed)
    frame = pd.DataFrame({"id": np.arange(num) + seed * 10**6, "region": random.choice(list("abcd"), num), "x": random.normal(size=num)})
    frame["left"] = np.where((frame.region == "a") + frame.x + random.normal(size=num) > 0.3, "yes", "no")
    return frame


def test_the_same_figures_as_one_process(workplace: Workplace, wine_folder: Path) -> None:
    (workplace.folder / "params.json").write_text(json.dumps(PARAMS))
    common = ["train", "wine-quality", "--params", "params.json", "--data", str(wine_folder), "--set", "model.num_boost_round=60", "--json"]
    alone, together = workplace.there(*common).json, workplace.there(*common, "--distributed", "--num-workers", "2").json
    assert together["kind"] == "distributed" and together["num_workers"] == 2
    assert together["test_metrics"]["auc"] == pytest.approx(alone["test_metrics"]["auc"], abs=0.01)
    assert together["data"] == alone["data"]
    assert not list((workplace.folder / ".toolkit" / "training").rglob("*.parquet"))
    workplace.all_gone()


def test_a_table_that_is_not_gathered_becomes_champion(workplace: Workplace) -> None:
    """Divided from Parquet to Parquet, fitted, registered, and judged on a hold-out table."""
    (workplace.folder / "large.py").write_text(LARGE)
    (workplace.folder / "rows").mkdir()
    for number in range(3):
        rows(4000, number).to_parquet(workplace.folder / "rows" / f"{number}.parquet", index=False)
    rows(2000, 9).to_parquet(workplace.folder / "holdout.parquet", index=False)
    (workplace.folder / "params.yaml").write_text("max_depth: 4\n")
    answer = workplace.there(
        "train", "large.py", "--params", "params.yaml", "--distributed", "--set", "training.gather_gib=0", "--register", "--json"
    )
    assert answer.code == 0, answer.err
    result = answer.json
    assert result["data"]["num_rows"] == 12000 and result["test_metrics"]["auc"] > 0.75
    mlflow.set_tracking_uri(result["tracking_uri"])
    model = portable_model.load(mlflow.artifacts.download_artifacts(result["model_uri"], dst_path=str(workplace.folder / "model")))
    assert len(model.training_row_hashes) == 12000 and model.spec["features"][0]["categories"] == list("abcd")
    promoted = workplace.here("promote", "large", "--json")
    assert promoted.code == 0 and promoted.json["is_promoted"], promoted.err
    assert promoted.json["metrics"]["challenger"]["auc"] == pytest.approx(result["test_metrics"]["auc"], abs=1e-6)
    workplace.all_gone()


@pytest.mark.fault
def test_interrupted_and_what_is_left(workplace: Workplace) -> None:
    (workplace.folder / "large.py").write_text(LARGE)
    rows(4000, 0).to_parquet(workplace.folder / "rows", index=False)
    rows(500, 9).to_parquet(workplace.folder / "holdout.parquet", index=False)
    (workplace.folder / "params.yaml").write_text("max_depth: 2\n")
    endless = [
        "--set",
        "model.num_boost_round=1000000",
        "--set",
        "model.early_stopping_rounds=1000000",
        "--set",
        "training.checkpoint_every=5",
    ]
    command = ["train", "large.py", "--params", "params.yaml", "--distributed", *endless]
    process = workplace.start(*command)
    home = workplace.folder / ".toolkit" / "training"

    def told() -> list[int]:
        return [json.loads(path.read_text())["num_rounds"] for path in sorted(home.glob("training-*/events/*.json"))]

    # The newest checkpoint may not be in Ray Train's books yet; those before it are.
    wait_until(lambda: len(told()) > 3, 90)
    second = workplace.here(*command)
    assert second.code == 1 and second.err.endswith("; wait for it\n"), second.err
    assert "error: the same distributed training of large must not run twice at once" in second.err
    os.killpg(process.pid, signal.SIGINT)
    answer = workplace.finish(process)
    assert answer.code == 130 and answer.out == ""
    assert answer.err.endswith("interrupted; the same command goes on from its last checkpoint (one every 5 rounds)\n"), answer.err
    workplace.all_gone()

    before = told()
    shutil.rmtree(next(home.glob("training-*/events")))
    process = workplace.start(*command)
    wait_until(lambda: bool(told()), 90)
    os.killpg(process.pid, signal.SIGINT)
    assert workplace.finish(process).code == 130
    assert before[0] == 5 and told()[0] > 5, (before, told())
    workplace.all_gone()

    (left,) = home.glob("training-*/")
    only = ["cleanup", "--only", "trainings", "--json"]
    (item,) = workplace.here(*only).json["items"]
    assert (item["name"], item["state"], item["reason"]) == (str(left), "kept", "changed within the last day")
    then = time.time() - 2 * OLD_S
    for path in (home, *home.rglob("*")):
        os.utime(path, (then, then))
    with claimed(home, left, "training"):
        assert workplace.here(*only, "--yes").json["items"][0]["reason"] == "a process is at it"
        assert left.exists()
    for path in home.glob("*.lock"):
        os.utime(path, (then, then))
    assert workplace.here(*only, "--yes").json["num_removed"] == 1
    assert list(home.iterdir()) == [] and workplace.here(*only).json["items"] == []


def test_what_cannot_be_distributed(workplace: Workplace, wine_folder: Path) -> None:
    common = ["train", "wine-quality", "--distributed", "--data", str(wine_folder)]
    (workplace.folder / "params.json").write_text(json.dumps(PARAMS))
    for more, message in (
        (["--baseline"], "exclude each other"),
        (["--cluster", "inprocess"], "on a Ray"),
        (["--set", "split.folds=3"], "neither folds nor rankings"),
        (["--set", "training.storage_path=s3://bucket/x", "--params", "params.json"], "a folder that every node has mounted"),
    ):
        answer = workplace.here(*common, *more)
        assert answer.code == 1 and message in answer.err, (more, answer.err)
    answer = workplace.here("train", "wine-quality", "--num-workers", "3")
    assert answer.code == 2 and "are for --distributed" in answer.err


def test_the_pipeline_of_source_c(workplace: Workplace, wine_folder: Path) -> None:
    need_java()
    small = ["--set", 'model.params={"numTrees": 8, "seed": 42}']
    answer = workplace.there("train", "red-wine-spark", "--data", str(wine_folder / "winequality-red.csv"), *small, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["data"]["num_rows"] == 1599 and 0.7 < answer.json["test_metrics"]["auc"] < 1
    mlflow.set_tracking_uri(answer.json["tracking_uri"])
    flavours = mlflow.models.get_model_info(answer.json["model_uri"]).flavors
    assert set(flavours) == {"spark", "python_function"}
    workplace.all_gone()
