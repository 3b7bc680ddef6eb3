"""The runs of `benchmarks.scoring` that need a process of their own: `python -m benchmarks.scoring_fresh --arm NAME --options JSON`.

Nothing is imported before a session is up but what starts it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import scoring_arms, scoring_memory
from benchmarks.scoring_data import Model
from toolkit.core.progress import SearchProgress


def first_run(arm: str, model: Mapping[str, Any], table: str, output: str) -> dict[str, float]:
    """From the moment at which a session is up until the scores are written."""
    with scoring_arms.session() as spark:
        began = time.perf_counter()
        _run(spark, arm, Model(**model))(Path(table), Path(output))
        return {"first_s": time.perf_counter() - began}


def memory(arm: str, model: Mapping[str, Any], table: str, output: str) -> dict[str, float]:
    """In a JVM with a heap of 1 GiB: one that may grow to more does so before it collects."""
    with scoring_arms.session("1g") as spark:
        run = _run(spark, arm, Model(**model))
        return scoring_memory.watched(lambda: run(Path(table), Path(output)))


def libraries() -> dict[str, float]:
    return scoring_memory.libraries_mb()


class SessionIsUp(SearchProgress):
    """When `score` has its session: MLflow is imported while the JVM starts."""

    at_s = 0.0

    def phase(self, text: str) -> None:
        if text == "resolving the model":
            self.at_s = time.perf_counter()


def nothing_new(model: Mapping[str, Any], engine: Any, table: str, output: str) -> dict[str, float]:
    """From the moment at which the session of the run is up to its end."""
    from toolkit.score import score

    up = SessionIsUp()
    master = f"local[{scoring_arms.CORES}]"
    name = f"{Model(**model).registered}@champion"
    result = score(name, input=table, output=f"delta:{output}", engine=engine, spark_master=master, progress=up)
    assert result.num_input_rows == 0, result
    return {"idle_s": time.perf_counter() - up.at_s}


def _run(spark: Any, arm: str, model: Model) -> scoring_arms.Run:
    if arm == "spark_udf":
        return scoring_arms.mlflow_arm(spark, model)
    if arm == "function":
        return scoring_arms.udf_arm(spark, model)
    return scoring_arms.score_arm(model, "files" if arm == "files" else "spark")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arm", required=True)
    parser.add_argument("--options", default="{}")
    given = parser.parse_args()
    arms: dict[str, Callable[..., Mapping[str, float]]] = {
        "first": first_run,
        "memory": memory,
        "libraries": libraries,
        "nothing new": nothing_new,
    }
    print(json.dumps(arms[given.arm](**json.loads(given.options))))


if __name__ == "__main__":
    main()
