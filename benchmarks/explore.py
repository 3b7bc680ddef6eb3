"""What does `toolkit explore` cost on 10 million rows, against a pandas profile of a sample of 1 million?

Both look at 20 columns: 15 numbers, two of whole numbers, one flag, one category, the label. The profile does what ydata-profiling does by
default on numbers and categories (describe, histograms, value counts, Pearson and Spearman correlations, duplicates, missing values); the
exploration also compares every column with the label. Memory is the peak of what a process and all its children hold together (PSS, so
that shared pages count once), Python and Java apart.

    python -m benchmarks.explore              # about 10 minutes
    python -m benchmarks.explore --quick
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import harness
from toolkit.core.experiment import Dataset, Experiment, Metric
from toolkit.core.model import XGBoost
from toolkit.core.space import Float

ROOT = Path(__file__).parent.parent
MASTER = "local[2]"
CHUNK_ROWS = 500_000
SAMPLE_SHARE = 10


def write_table(path: Path, num_rows: int) -> None:
    """Twenty columns; four numbers and the category are related to the label, one has gaps."""
    random = np.random.Generator(np.random.PCG64(2026))
    writer = None
    for start in range(0, num_rows, CHUNK_ROWS):
        num = min(CHUNK_ROWS, num_rows - start)
        hidden, region = random.normal(size=num), random.choice(["north", "south", "east", "west"], num)
        columns: dict[str, Any] = {f"x{i}": random.normal(size=num) + (0.3 * hidden if i < 4 else 0.0) for i in range(13)}
        columns["gaps"] = pa.array(random.normal(size=num), mask=random.random(num) < 0.1)
        columns["amount"] = np.exp(random.normal(3, 1, num)).round(2)
        columns["cents"] = random.integers(0, 1_000_000, num)
        columns["visits"] = random.poisson(3, num)
        columns["flag"] = random.random(num) < 0.2
        columns["region"] = region
        probability = 1 / (1 + np.exp(-(-1.5 + hidden + 0.5 * (region == "west"))))
        columns["label"] = (random.random(num) < probability).astype(np.int64)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


# --- arms, each in a process of its own -----------------------------------------------------------------------------------------------


def explore_arm(path: str) -> dict[str, float]:
    """On two cores, as many as the targets are for, whatever the machine has."""
    from toolkit.explore import explore

    experiment = Experiment(
        name="bench-explore",
        dataset=Dataset(load=path, label="label", categorical=("region",)),
        model=XGBoost(),
        space={"eta": Float(0.1, 0.2)},
        metric=Metric("auc", "maximize"),
    )
    began = time.perf_counter()
    result = explore(experiment, report=Path("explore.html"), spark_master=MASTER)
    assert result.exploration.engine == "spark" and result.exploration.predictors
    return {"wall_s": time.perf_counter() - began}


def profile_arm(path: str, num_rows: int) -> dict[str, float]:
    """The reading of the sample counts, as it does for the other arm."""
    began = time.perf_counter()
    parts = pq.ParquetFile(path).iter_batches(batch_size=num_rows)
    frame = next(parts).to_pandas()
    profile(frame)
    return {"wall_s": time.perf_counter() - began}


def profile(frame: pd.DataFrame) -> dict[str, Any]:
    """What ydata-profiling computes by default, without its page."""
    numbers = frame.select_dtypes("number")
    found: dict[str, Any] = {
        "shape": frame.shape,
        "memory_bytes": int(frame.memory_usage(deep=True).sum()),
        "duplicates": int(frame.duplicated().sum()),
        "missing": frame.isna().sum().to_dict(),
        "missing_matrix": np.packbits(frame.isna().to_numpy(), axis=1),
        "missing_correlation": frame.isna().astype("int8").corr(),
        "pearson": numbers.corr("pearson"),
        "spearman": numbers.corr("spearman"),
        "head": frame.head(10),
        "tail": frame.tail(10),
        "columns": {},
    }
    for name in frame.columns:
        column = frame[name]
        counts = column.value_counts(dropna=True)
        about: dict[str, Any] = {"distinct": len(counts), "top": counts.head(10).to_dict(), "unique": int((counts == 1).sum())}
        if pd.api.types.is_numeric_dtype(column.dtype) and column.dtype != bool:
            present = column.dropna().to_numpy(dtype=np.float64)
            about |= column.describe(percentiles=[0.05, 0.25, 0.5, 0.75, 0.95]).to_dict()
            about["histogram"] = np.histogram(present, bins=50)
            about["skewness"], about["kurtosis"] = column.skew(), column.kurt()
            about["mad"] = float(np.median(np.abs(present - np.median(present))))
            about["monotonic"] = (column.is_monotonic_increasing, column.is_monotonic_decreasing)
            about["zeros"], about["negative"] = int((present == 0).sum()), int((present < 0).sum())
            about["extremes"] = (counts.sort_index().head(10).to_dict(), counts.sort_index().tail(10).to_dict())
        found["columns"][name] = about
    return found


class _MemoryWatch:
    """Peaks over a process and its descendants, in bytes."""

    def __init__(self, pid: int) -> None:
        self.python_bytes = self.java_bytes = self.whole_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            held = {"java": 0, "python": 0}
            for process in self._family():
                try:
                    kind = "java" if os.readlink(process / "exe").endswith("/java") else "python"
                    lines = (process / "smaps_rollup").read_text().splitlines()
                    held[kind] += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
                except OSError:
                    continue  # It ended meanwhile.
            self.python_bytes = max(self.python_bytes, held["python"])
            self.java_bytes = max(self.java_bytes, held["java"])
            self.whole_bytes = max(self.whole_bytes, sum(held.values()))

    def _family(self) -> list[Path]:
        parent_of: dict[int, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent_of[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        family, grown = {self._pid}, True
        while grown:
            more = {pid for pid, parent in parent_of.items() if parent in family} - family
            family, grown = family | more, bool(more)
        return [Path("/proc") / str(pid) for pid in family]


def in_process(arm: str, **options: Any) -> dict[str, float]:
    """One arm in a fresh Python, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        began = time.perf_counter()
        with (Path(folder) / "out").open("w+") as out, (Path(folder) / "err").open("w+") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.explore", "--arm", arm, "--options", json.dumps(options)],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=err,
            )  # fmt: skip
            memory = _MemoryWatch(process.pid)
            code = process.wait()
            memory.stop()
            process_s = time.perf_counter() - began
            out.seek(0)
            err.seek(0)
            if code:
                raise RuntimeError(f"{arm}: {err.read()[-2000:]}")
            figures = json.loads(out.read().splitlines()[-1])
        held = {"python_gb": memory.python_bytes, "java_gb": memory.java_bytes, "whole_gb": memory.whole_bytes}
        return {**figures, "process_s": process_s, **{name: value / 1e9 for name, value in held.items()}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="few rows, nothing written: to see that it works")
    parser.add_argument("--only", choices=["explore", "profile"], help="one arm, once; nothing written")
    parser.add_argument("--arm")
    parser.add_argument("--options")
    given = parser.parse_args()
    if given.arm:
        arms: dict[str, Callable[..., Mapping[str, float]]] = {"explore": explore_arm, "profile": profile_arm}
        print(json.dumps(arms[given.arm](**json.loads(given.options))))
        return
    num_rows = 200_000 if given.quick else given.rows
    repeats = 1 if given.quick or given.only else given.repeats
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, num_rows)
        runs = {
            "explore": partial(in_process, "explore", path=str(path)),
            "profile": partial(in_process, "profile", path=str(path), num_rows=num_rows // SAMPLE_SHARE),
        }
        measured = harness.interleave({given.only: runs[given.only]} if given.only else runs, repeats)
    if given.only:
        print(json.dumps(measured, indent=1))
        return
    _finish(measured, num_rows, given.quick)


def _finish(measured: dict[str, list[dict[str, float]]], num_rows: int, quick: bool) -> None:
    millions = f"{num_rows / 1e6:g} M"
    figures = [
        harness.Figure(
            f"wall of explore on {millions} rows over the profile of a tenth",
            harness.ratio(measured, "explore", "profile", "process_s"), "ratio", 5, "at_most",
        ),
        harness.Figure(
            "Python memory of explore over the profile's", harness.ratio(measured, "explore", "profile", "python_gb"), "ratio", 1, "at_most"
        ),
        harness.Figure("Python memory of explore, all processes", max(v["python_gb"] for v in measured["explore"]), "GB", 4, "at_most"),
    ]  # fmt: skip
    java = max(values["java_gb"] for values in measured["explore"])
    notes = [
        f"explore: {millions} × 20 Parquet, Spark {MASTER}, two passes over all rows, and its page. profile: the first tenth of the rows, "
        "read by pyarrow, no page.",
        f"Spark's JVM takes {java:.2f} GB beside Python's memory, with its default heap of 1 GB.",
        "process_s is the whole process seen from outside, imports and Spark's start included. Ratios are medians of those within a round.",
    ]
    arms = [
        harness.arm(measured, run, key, "s" if key.endswith("_s") else "GB")
        for run in measured
        for key in ("process_s", "wall_s", "python_gb", "java_gb", "whole_gb")
    ]
    if quick:
        print(json.dumps([figure.as_dict() for figure in figures], indent=1))
    else:
        print(harness.write("explore", (__doc__ or "").splitlines()[0], arms, figures, notes))


if __name__ == "__main__":
    main()
