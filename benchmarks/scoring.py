"""How near to the hardware's limit does scoring a table come, and what do its promises cost?

`toolkit score`, both engines, against `mlflow.pyfunc.spark_udf` and others, and against the least one can do without Spark: read Parquet,
predict, write Parquet. Every arm reads the same table and writes all of its columns and the prediction, which is compared with
`Booster.predict` in every run.

    task bench:score                           # about 25 minutes
    task bench:score -- --only warm,delta      # some of its sections, nothing written
    task bench:score -- --quick                # few rows, nothing written: to see that it works
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks import harness, scoring_arms, scoring_data
from benchmarks.scoring_data import Model, Workload, names

MAIN = Model("bench-main", names(12), rounds=200, depth=8)
MANY = Model("bench-many", names(100), rounds=200, depth=8)
SMALL = Model("bench-small", names(12), rounds=50, depth=4)
WIDE = Model("bench-wide", names(500)[::25], rounds=200, depth=8)

SPARK, FILES, FUNCTION, LIMIT = "toolkit spark", "toolkit files", "toolkit.spark_udf", "limit"
UDF, UDF_OWN, XGBOOST, PREDICT_BATCH = "spark_udf", "spark_udf of the toolkit's model", "xgboost.spark", "predict_batch_udf"
ONCE, ONCE_FILES, APPEND = "incremental, engine spark", "incremental, engine files", "plain append"

NOTES = [
    "All arms read the same Parquet files (a whole-number key, and doubles that single precision holds; snappy, row groups of 125,000 "
    "rows, files of 250,000), and write all columns and the prediction as Parquet with snappy; toolkit score adds its stamp columns, a "
    "manifest, a row of its audit table and an MLflow run. Spark is local[2], its driver's memory 4g.",
    "Each output is checked: every key once, and 20,000 predictions within 1e-5 of Booster.predict. Ratios are medians of the ratios "
    "within a round; warm means that the same arm has scored 4,000 rows immediately before.",
    "The limit: two processes of one thread each read row groups with pyarrow, predict with inplace_predict, and write Parquet without "
    "dictionaries; imports, processes and model are ready before.",
    "spark_udf is made once, outside the measured time, with env_manager local and a column for each feature, of the booster as "
    "mlflow.xgboost logs it with a signature of doubles; 'of the toolkit's model' is the same function of what toolkit train registered. "
    "toolkit.spark_udf is made once as well, and its query is the same. toolkit score resolves and fetches its model within the measured "
    "time, looks at all rows before it writes any, and writes eight columns more.",
    "xgboost.spark is its regressor's transform over the same booster, as its classifier computes two more columns; predict_batch_udf "
    "calls inplace_predict on an array column of floats.",
    "SynapseML is not among the arms: it has no transformer for a model of XGBoost (LightGBM is its own, others go through ONNX), and its "
    "build for Spark 4.1 (com.microsoft.azure:synapseml_2.13:1.1.3-spark4.1) was not found when Spark was asked to resolve it.",
]


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows. `partitions`: of the table for many short tasks."""

    rounds: int
    main: int
    big: int
    many: int
    wide: int
    partitions: int
    rows_per_partition: int

    @classmethod
    def chosen(cls, rounds: int, quick: bool) -> Sizes:
        if quick:
            return cls(1, main=40_000, big=80_000, many=10_000, wide=5_000, partitions=20, rows_per_partition=200)
        return cls(rounds, main=2_000_000, big=20_000_000, many=500_000, wide=200_000, partitions=2_000, rows_per_partition=200)


@dataclass
class Findings:
    arms: list[harness.Arm] = field(default_factory=list)
    figures: list[harness.Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=lambda: list(NOTES))

    def add_arms(self, where: str, measured: Mapping[str, Sequence[Mapping[str, float]]], *keys: str) -> None:
        units = {"mb": "MB", "s": "s", "ms": "ms"}
        for name, values in measured.items():
            for key in (key for key in keys if key in values[0]):
                repeats = [each[key] for each in values]
                self.arms.append(harness.Arm(f"{where}; {name}: {key}", units[key.rpartition("_")[2]], repeats))

    def add(self, name: str, value: float, target: float, direction: Literal["at_most", "at_least"], unit: str = "ratio") -> None:
        found = harness.Figure(name, value, unit, target, direction)
        self.figures.append(found)
        print(f"  {name}: {harness.number_text(value, unit)}, {harness.target_text(found.as_dict())}", file=sys.stderr, flush=True)


# --- sections ---------------------------------------------------------------------------------------------------------------------------


def first(sizes: Sizes, findings: Findings) -> None:
    """Fresh Python, fresh JVM: the session's start is not measured, all imports after it are."""
    work = scoring_data.workload(f"{sizes.main:,} x 12", MAIN, sizes.main, 12)
    measured = harness.interleave({arm: partial(_fresh, "first", arm, work) for arm in (SPARK, FILES, FUNCTION, UDF)}, sizes.rounds)
    findings.add_arms(f"fresh session, {work.title}", measured, "first_s")
    for arm in (SPARK, FILES, FUNCTION):
        value = harness.ratio(measured, UDF, arm, "first_s")
        findings.add(f"first run in a fresh session: speed of {arm} over {UDF}, {work.title}", value, 3, "at_least")
    findings.notes.append(
        "A first run is timed in a new Python with a new JVM, from the session's being up until the scores are written, with the imports, "
        "the model's download and, for spark_udf, the making of the function."
    )


def memory(sizes: Sizes, findings: Findings) -> None:
    main, big = (scoring_data.workload(f"{size:,} x 12", MAIN, size, 12) for size in (sizes.main, sizes.big))
    model_mb = len(scoring_data.downloaded(MAIN)[1]) / 1e6
    idle = harness.in_process("benchmarks.scoring_fresh", "libraries", {}, cwd=Path.cwd())
    # Spark hands over 50,000 rows at a time, as floats, of which a matrix is made; the engine files reads 32,768, as doubles.
    batch_mb = {SPARK: 50_000 * 12 * 4 * 2 / 1e6, FILES: 32_768 * 13 * 8 / 1e6}
    for arm in (SPARK, FILES):
        less, more = (_fresh("memory", arm, work) for work in (main, big))
        for work, values in ((main, less), (big, more)):
            findings.add_arms(f"memory, {work.title}", {arm: [values]}, "worker_uss_mb", "worker_rss_mb", "jvm_rss_mb", "total_rss_mb")
        own = max(less["worker_uss_mb"], more["worker_uss_mb"]) - model_mb - batch_mb[arm]
        findings.add(f"{arm}: memory of a Python worker beyond model and batch", own, 200, "at_most", "MB")
        growth = more["total_rss_mb"] / less["total_rss_mb"]
        findings.add(f"{arm}: memory of all processes, {big.title} over {main.title}", growth, 1.1, "at_most")
    findings.notes.append(
        "Memory is sampled every 0.1 s from /proc/PID/smaps_rollup while toolkit score runs in a fresh process, with a heap of 1 GiB for "
        "the JVM. A worker's own are the pages that no other process shares (USS), at the highest, less the model's "
        f"{model_mb:.1f} MB and a batch ({batch_mb[SPARK]:.1f} MB of the engine spark, {batch_mb[FILES]:.1f} MB of files). A Python that "
        f"has only imported numpy, pandas, pyarrow and xgboost has {idle['worker_uss_mb']:.0f} MB (RSS {idle['worker_rss_mb']:.0f} MB). "
        "All processes: the RSS of the JVM, Python's daemon and both workers together, at the highest."
    )


def warm(sizes: Sizes, findings: Findings) -> None:
    work = scoring_data.workload(f"{sizes.main:,} x 12", MAIN, sizes.main, 12)
    with scoring_arms.session() as spark, scoring_arms.Limit(MAIN) as limit:
        arms: dict[str, scoring_arms.Run] = {
            LIMIT: limit.run,
            SPARK: scoring_arms.score_arm(MAIN, "spark"),
            FILES: scoring_arms.score_arm(MAIN, "files"),
            FUNCTION: scoring_arms.udf_arm(spark, MAIN),
            UDF: scoring_arms.mlflow_arm(spark, MAIN),
            UDF_OWN: scoring_arms.mlflow_arm(spark, MAIN, native=False),
            XGBOOST: scoring_arms.xgboost_arm(spark, MAIN),
            PREDICT_BATCH: scoring_arms.predict_batch_arm(spark, MAIN),
        }
        _compare(work, arms, sizes.rounds, findings)


def big(sizes: Sizes, findings: Findings) -> None:
    work = scoring_data.workload(f"{sizes.big:,} x 12", MAIN, sizes.big, 12)
    with scoring_arms.session() as spark, scoring_arms.Limit(MAIN) as limit:
        _compare(work, _usual_arms(spark, limit, MAIN), 1, findings)


def shapes(sizes: Sizes, findings: Findings) -> None:
    for model, num_rows, num_columns, text in (
        (MANY, sizes.many, 100, ""),
        (SMALL, sizes.main, 12, ", 50 small trees"),
        (WIDE, sizes.wide, 500, ", 20 of them used"),
    ):
        work = scoring_data.workload(f"{num_rows:,} x {num_columns}{text}", model, num_rows, num_columns)
        with scoring_arms.session() as spark, scoring_arms.Limit(model) as limit:
            _compare(work, _usual_arms(spark, limit, model), max(sizes.rounds - 1, 1), findings)
    findings.notes.append("Models have 200 trees of depth 8, the small one 50 of depth 4.")


def tasks(sizes: Sizes, findings: Findings) -> None:
    """A file a task."""
    num_rows = sizes.partitions * sizes.rows_per_partition
    work = scoring_data.workload(f"{sizes.partitions:,} partitions", MAIN, num_rows, 12, sizes.rows_per_partition)
    with scoring_arms.session() as spark:
        spark.conf.set("spark.sql.files.maxPartitionBytes", "4m")  # what opening a file is taken to cost: no two share a task
        assert spark.read.parquet(str(work.table)).rdd.getNumPartitions() == sizes.partitions
        arms = {SPARK: scoring_arms.score_arm(MAIN, "spark"), UDF: scoring_arms.mlflow_arm(spark, MAIN)}
        measured = harness.interleave({name: partial(scoring_arms.timed, run, work) for name, run in arms.items()}, 1)
    findings.add_arms(work.title, measured, "wall_s")
    findings.add(f"speed of {SPARK} over {UDF}, {work.title}", harness.ratio(measured, UDF, SPARK, "wall_s"), 3, "at_least")
    findings.notes.append(
        f"Many short tasks: {num_rows:,} rows in as many files as partitions. Where executors see the driver's disk (local mode, "
        "Databricks), spark_udf loads the model in every task."
    )


def delta(sizes: Sizes, findings: Findings) -> None:
    work = scoring_data.workload(f"{sizes.main:,} x 12", MAIN, sizes.main, 12)
    table, small = Path.cwd() / "delta-main", Path.cwd() / "delta-small"
    with scoring_arms.session() as spark:
        for source, target in ((work.table, table), (work.small, small)):
            spark.read.parquet(str(source)).write.format("delta").save(str(target))
        of_delta = replace(work, table=table, small=small)
        arms: dict[str, scoring_arms.Run] = {
            ONCE: scoring_arms.score_arm(MAIN, "spark", "delta", "incremental"),
            ONCE_FILES: scoring_arms.score_arm(MAIN, "files", "delta", "incremental"),
            APPEND: scoring_arms.prediction_arm(spark, MAIN, "delta"),
        }
        runs = {name: partial(scoring_arms.timed, run, of_delta) for name, run in arms.items()}
        measured = harness.interleave(runs, sizes.rounds)
        outputs = {arm: Path.cwd() / f"nothing-new-{number}" / "scores" for number, arm in enumerate((ONCE, ONCE_FILES))}
        for arm, output in outputs.items():
            arms[arm](table, output)
    findings.add_arms(f"Delta to Delta, {work.title}", measured, "wall_s")
    for arm in (ONCE, ONCE_FILES):
        cost = harness.ratio(measured, arm, APPEND, "wall_s")
        findings.add(f"exactly once: {arm}, over a plain append of the same prediction, {work.title}", cost, 1.15, "at_most")
    options = {"model": asdict(MAIN), "table": str(table)}
    fresh = partial(harness.in_process, "benchmarks.scoring_fresh", "nothing new", cwd=Path.cwd())
    engines = {ONCE: "spark", ONCE_FILES: "files"}
    idle = harness.interleave(
        {arm: partial(fresh, {**options, "engine": engines[arm], "output": str(output)}) for arm, output in outputs.items()}, sizes.rounds
    )
    findings.add_arms("nothing new, Delta to Delta", idle, "idle_s")
    for arm in outputs:
        idle_s = harness.arm(idle, arm, "idle_s").median
        findings.add(f"nothing new, {arm}: from its session's being up to its end", idle_s, 1.5, "at_most", "s")
    findings.notes.append(
        "The plain append reads the Delta table, predicts with the function of the engine spark, and appends: no checkpoint, quarantine, "
        "stamp, audit or MLflow, and the model is there before. With nothing new, the run is one of a fresh process with a session of "
        "its own: MLflow is imported while the JVM starts, and what is left of that counts."
    )


SECTIONS: Mapping[str, Callable[[Sizes, Findings], None]] = {
    "first": first,
    "memory": memory,
    "warm": warm,
    "big": big,
    "shapes": shapes,
    "tasks": tasks,
    "delta": delta,
}


def _usual_arms(spark: Any, limit: scoring_arms.Limit, model: Model) -> dict[str, scoring_arms.Run]:
    return {
        LIMIT: limit.run,
        SPARK: scoring_arms.score_arm(model, "spark"),
        FILES: scoring_arms.score_arm(model, "files"),
        UDF: scoring_arms.mlflow_arm(spark, model),
    }


def _compare(work: Workload, arms: Mapping[str, scoring_arms.Run], rounds: int, findings: Findings) -> None:
    measured = harness.interleave({name: partial(scoring_arms.timed, run, work) for name, run in arms.items()}, rounds)
    findings.add_arms(work.title, measured, "wall_s")
    # Of its two forms, spark_udf is given the faster.
    rival = min((name for name in (UDF, UDF_OWN) if name in measured), key=lambda name: harness.arm(measured, name, "wall_s").median)
    compared = [(rival, FUNCTION, 1.4)] if FUNCTION in measured else []
    for above, below, target in (*compared, (rival, SPARK, 1.4), (rival, FILES, 1.4), (LIMIT, FILES, 0.9), (LIMIT, SPARK, 0.75)):
        name = f"speed of {below} over {above}, {work.title}"
        findings.add(name, harness.ratio(measured, above, below, "wall_s"), target, "at_least")


def _fresh(what: str, arm: str, work: Workload) -> dict[str, float]:
    with scoring_arms.scratch() as output:
        options = {"arm": {SPARK: "spark", FILES: "files", FUNCTION: "function", UDF: "spark_udf"}[arm], "model": asdict(work.model)}
        places = {"table": str(work.table), "output": str(output)}
        found = harness.in_process("benchmarks.scoring_fresh", what, {**options, **places}, cwd=Path.cwd())
        return {**found, **scoring_data.check(output, work)}


# --- the run ----------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workplace() -> Iterator[None]:
    """An empty working directory with MLflow in it; this process and its children are in it."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="bench-score-") as name:
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db", "TOOLKIT_HOME": f"{name}/.toolkit"}
        os.environ.pop("MLFLOW_REGISTRY_URI", None)
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rows, nothing written: to see that it works")
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}; nothing written without --write")
    parser.add_argument("--write", action="store_true", help="write the results of some sections, too")
    given = parser.parse_args()
    chosen = given.only.split(",") if given.only else list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--only: of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    sizes, findings, began = Sizes.chosen(given.rounds, given.quick), Findings(), time.perf_counter()
    with _workplace():
        for model in (MAIN, MANY, SMALL, WIDE) if "shapes" in chosen else (MAIN,):
            scoring_data.register(model, 5_000 if given.quick else 100_000)
        for name in chosen:
            print(f"--- {name}, after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            SECTIONS[name](sizes, findings)
    findings.notes.append(f"The whole run took {(time.perf_counter() - began) / 60:.0f} minutes.")
    if missing := [name for name in SECTIONS if name not in chosen]:
        findings.notes.append(f"Not run: the sections {', '.join(missing)}.")
    if given.quick or (given.only and not given.write):
        print(json.dumps([figure.as_dict() for figure in findings.figures], indent=1))
    else:
        print(harness.write("scoring", (__doc__ or "").splitlines()[0], findings.arms, findings.figures, findings.notes))


if __name__ == "__main__":
    main()
