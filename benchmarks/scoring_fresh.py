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

UDF = "spark_udf"


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


def nothing_new(model: Mapping[str, Any], table: str, output: str) -> dict[str, float]:
    """The first call of a process whose session is up, and the second."""
    run = scoring_arms.score_arm(Model(**model), "spark", "delta", "incremental")
    found = {}
    with scoring_arms.session():
        for name in ("first_s", "again_s"):
            began = time.perf_counter()
            result: Any = run(Path(table), Path(output))
            found[name] = time.perf_counter() - began
            assert result.num_input_rows == 0, result
    return found


def _run(spark: Any, arm: str, model: Model) -> scoring_arms.Run:
    return scoring_arms.mlflow_arm(spark, model) if arm == UDF else scoring_arms.score_arm(model, "files" if arm == "files" else "spark")


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
