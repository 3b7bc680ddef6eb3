"""How much does the toolkit cost over the fits themselves, on one machine?

Every arm fits one fixed list of parameter sets on the same rows with the same code, one thread a trial: a search's own choices
depend on the order in which trials finish, and that alone moves the fitting time by half. An arm is a fresh process, so that imports
count where they fall.

    task bench:sweep:local        # about 12 minutes
    python -m benchmarks.sweep_local --repeats 1 --quick
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from toolkit.core.data import DataContext, SplitData, TrialData
from toolkit.core.experiment import Experiment, Metric, Sweep
from toolkit.core.model import XGBoost
from toolkit.core.recipes import load_experiment
from toolkit.core.study import Proposal, TrialResult
from toolkit.core.trial import FitResult, Trainer, run_trial
from toolkit.settings import Settings

ROOT = Path(__file__).parent.parent
NUM_SLOTS = 2
# Rounds, depth and no early stopping that make a fit on the wine rows last 4 to 5 s on one thread.
LONG_FIT = {"num_boost_round": 9500, "early_stopping_rounds": None}

_trainer: Trainer
_data: TrialData


def parameter_sets(num_trials: int) -> list[dict[str, Any]]:
    """The published space, drawn once and for all."""
    draws = np.random.Generator(np.random.PCG64(2026)).random((num_trials, 5))
    return [
        {
            "max_depth": int(4 + u[0] * 17),
            "learning_rate": float(exp(-3 + 2 * u[1])),
            "reg_alpha": float(exp(-5 + 3 * u[2])),
            "reg_lambda": float(exp(-6 + 4 * u[3])),
            "min_child_weight": float(exp(2 * u[4])),
        }
        for u in draws
    ]


def experiment(num_trials: int, long_fits: bool) -> Experiment:
    """The wine search with its trials fixed beforehand."""
    wine = load_experiment("wine-quality", [ROOT / "experiments"])
    points = parameter_sets(num_trials)
    model = wine.model
    if long_fits:
        points = [{**point, "max_depth": 8} for point in points]
        model = replace(model, **LONG_FIT)
    return replace(
        wine, model=model, points_to_evaluate=tuple(points), sweep=replace(wine.sweep, num_trials=num_trials, concurrency=NUM_SLOTS)
    )


def split_of(chosen: Experiment) -> SplitData:
    from toolkit.engines.sklearn_splits import split
    from toolkit.engines.tables import load_data

    settings = Settings.read()
    loaded = load_data(chosen, DataContext(data=None, data_dir=settings.data_dir, cache_dir=settings.home / "cache"))
    return split(loaded, chosen.split, "honest")


# --- arms, each in a process of its own -----------------------------------------------------------------------------------------------


def pool_arm(num_trials: int, long_fits: bool) -> dict[str, float]:
    """The least one can write: a spawned pool, the data sent to each process once, the matrix kept there."""
    began = time.perf_counter()
    chosen = experiment(num_trials, long_fits)
    data = split_of(chosen).trial
    proposals = [Proposal(number, params) for number, params in enumerate(chosen.points_to_evaluate)]
    search_began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(NUM_SLOTS, _pool_start, (chosen.model, chosen.metrics, chosen.sweep, data)) as pool:
        results = list(pool.imap_unordered(_pool_fit, proposals, chunksize=1))
        search_s = time.perf_counter() - search_began
    return {**_times(search_s, results), "whole_s": time.perf_counter() - began}


def _pool_start(model: XGBoost, metrics: tuple[Metric, ...], sweep: Sweep, data: TrialData) -> None:
    global _trainer, _data
    from toolkit.engines.xgboost_model import XGBoostTrainer

    _trainer = XGBoostTrainer(model, metrics, sweep.seed, sweep.report_every)
    _data = data


def _pool_fit(proposal: Proposal) -> TrialResult:
    return run_trial(_trainer, proposal, _data, 1, _never_stop)


def _never_stop(step: int, so_far: FitResult) -> bool:
    return False


def toolkit_arm(num_trials: int, long_fits: bool, tracked: bool) -> dict[str, float]:
    """The toolkit's own parts as `toolkit.sweep` puts them together, journal included, with and without MLflow."""
    from toolkit.core.search import Search
    from toolkit.engines import build, ray_trials  # noqa: F401
    from toolkit.engines.mlflow_tracking import MlflowTracker
    from toolkit.engines.optuna_study import Journal, OptunaStudy
    from toolkit.engines.ray_cluster import LocalRay, RayConnection

    began = time.perf_counter()
    chosen = experiment(num_trials, long_fits)
    folder = Path.cwd()
    connection = RayConnection(LocalRay(dashboard=False))
    try:
        data = split_of(chosen).trial
        study = OptunaStudy("bench", chosen, Journal(folder / "journal.jsonl"))
        tracker = None
        if tracked:
            tracker = MlflowTracker(
                tracking_uri=None,
                experiment_name="bench",
                study_name="bench",
                study_id="bench",
                spool=folder / "spool.jsonl",
                run_name="bench",
            )
            tracker.connect()
        calls_to_connect = tracker.num_calls if tracker else 0
        runner = build.ray_runner(chosen, "honest", data, NUM_SLOTS)
        cluster = connection.wait()
        search = Search(study, chosen.sweep, [tracker] if tracker else [])
        memory = _MemoryWatch()
        search_began = time.time()
        runner.run(search)
        search_s = search.last_ended_unix_s - search_began
        memory.stop()
        num_calls = 0
        if tracker:
            unsent = tracker.close(60)
            assert not unsent, f"{unsent} entries were not sent"
            num_calls = tracker.num_calls - calls_to_connect
    finally:
        connection.stop()
    results = [record.result for record in search.ended_records]
    assert len(results) == num_trials, f"{len(results)} of {num_trials} trials ended"
    return {
        **_times(search_s, results),
        "cluster_start_s": cluster.start_s,
        "whole_s": time.perf_counter() - began,
        "trial_process_mb": memory.peak_bytes / 1e6 - data.rows.features.nbytes / 1e6,
        "tracking_calls_a_trial": num_calls / num_trials,
    }


def _times(search_s: float, results: list[TrialResult]) -> dict[str, float]:
    failed = [result.error for result in results if result.error]
    assert not failed, failed[0]
    fit_s = sum(result.fit_wall_s for result in results)
    return {"search_s": search_s, "fit_s": fit_s, "overhead_s": search_s - fit_s / NUM_SLOTS}


class _MemoryWatch:
    """Peak of the private memory (USS) of any one trial process, in bytes; pages shared with others, the data among them, do not count."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if b"TrialActor" in (process / "cmdline").read_bytes():
                        lines = (process / "smaps_rollup").read_text().splitlines()
                        private = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
                        self.peak_bytes = max(self.peak_bytes, private)
                except OSError:
                    continue  # It ended meanwhile.


# --- the run --------------------------------------------------------------------------------------------------------------------------


def in_process(arm: str, **options: Any) -> dict[str, float]:
    """In an empty folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return harness.in_process("benchmarks.sweep_local", arm, options, cwd=Path(folder))


def first_command() -> dict[str, float]:
    """README's first command in an empty folder, environment warm."""
    uv = shutil.which("uv")
    command = [uv, "run", "--project", str(ROOT), "toolkit"] if uv else [str(Path(sys.executable).parent / "toolkit")]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        began = time.perf_counter()
        done = subprocess.run([*command, "sweep", "wine-quality", "--json"], cwd=folder, capture_output=True, text=True, check=False)
        process_s = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        answer = json.loads(done.stdout)
        return {"process_s": process_s, "search_s": answer["search_s"], "fit_s": answer["fit_wall_s"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few trials, nothing written: to see that it works")
    parser.add_argument("--only", choices=["wine", "long"])
    parser.add_argument("--arm")
    parser.add_argument("--options")
    given = parser.parse_args()
    if given.arm:
        arms: dict[str, Callable[..., Mapping[str, float]]] = {"pool": pool_arm, "toolkit": toolkit_arm}
        print(json.dumps(arms[given.arm](**json.loads(given.options))))
        return
    questions: dict[str, Callable[[int, bool], None]] = {"wine": wine_fits, "long": long_fits}
    for name in questions if given.only is None else [given.only]:
        questions[name](given.repeats, given.quick)


SHARED_NOTES = (
    "Ratios are medians of the ratios within a round. overhead_s = search_s - fit_s / 2 slots.",
    "search_s of the toolkit begins when Ray is up (cluster_start_s stands beside it), that of the pool when the pool is made; both "
    "end with the last trial. process_s is the whole Python process seen from outside; the first command includes Ray, MLflow, refit, "
    "model and report.",
)


def wine_fits(repeats: int, quick: bool) -> None:
    """50 and 150 fits of a tenth of a second: what start-up and dispatch cost."""
    few, many = (6, 8) if quick else (50, 150)
    runs: dict[str, Callable[[], Mapping[str, float]]] = {"first command": first_command}
    for label, num_trials in (("50", few), ("150", many)):
        runs[f"pool {label}"] = partial(in_process, "pool", num_trials=num_trials, long_fits=False)
        runs[f"toolkit {label}"] = partial(in_process, "toolkit", num_trials=num_trials, long_fits=False, tracked=True)
        runs[f"toolkit {label}, no MLflow"] = partial(in_process, "toolkit", num_trials=num_trials, long_fits=False, tracked=False)
    measured = harness.interleave(runs, repeats)

    def over(name: str, above: str, below: str, key: str, target: float) -> harness.Figure:
        return harness.Figure(name, harness.ratio(measured, above, below, key), "ratio", target, "at_most")

    figures = [
        over("search wall over a process pool, 50 trials", "toolkit 50", "pool 50", "search_s", 1.35),
        over("search wall over a process pool, 150 trials", "toolkit 150", "pool 150", "search_s", 1.12),
        over("README's first command over the pool's whole run", "first command", "pool 50", "process_s", 2.5),
        over("search wall, MLflow on over off, 50 trials", "toolkit 50", "toolkit 50, no MLflow", "search_s", 1.05),
        over("search wall, MLflow on over off, 150 trials", "toolkit 150", "toolkit 150, no MLflow", "search_s", 1.05),
        harness.Figure(
            "memory of a trial process beyond the data",
            max(values["trial_process_mb"] for name in ("toolkit 50", "toolkit 150") for values in measured[name]),
            "MB",
            350,
            "at_most",
        ),
        harness.Figure(
            "tracking calls a trial", max(values["tracking_calls_a_trial"] for values in measured["toolkit 150"]), "calls", 3, "at_most"
        ),
    ]
    notes = [
        *SHARED_NOTES,
        "In the arm without MLflow the search begins as soon as Ray is up, when its worker processes are still importing; with MLflow it "
        "begins some seconds later. That favours MLflow by about a second, and is why on over off can be under 1.",
        _fit_note(measured["pool 50"], few),
    ]
    _finish("sweep-local", measured, figures, notes, quick)


def long_fits(repeats: int, quick: bool) -> None:
    """Fits of some seconds: what remains of the cost when fits are long."""
    num_trials = 2 if quick else 10
    measured = harness.interleave(
        {
            "pool": partial(in_process, "pool", num_trials=num_trials, long_fits=True),
            "toolkit": partial(in_process, "toolkit", num_trials=num_trials, long_fits=True, tracked=True),
        },
        repeats,
    )
    seconds = np.median([values["fit_s"] / num_trials for values in measured["pool"]])
    figure = harness.Figure(
        f"search wall over a process pool, fits of {seconds:.1f} s",
        harness.ratio(measured, "toolkit", "pool", "search_s"),
        "ratio",
        1.03,
        "at_most",
    )
    _finish("sweep-local-long-fits", measured, [figure], [*SHARED_NOTES, _fit_note(measured["pool"], num_trials)], quick)


def _fit_note(pool: list[dict[str, float]], num_trials: int) -> str:
    return f"Fits on one thread: {np.median([values['fit_s'] / num_trials for values in pool]):.2f} s each, {num_trials} a search."


def _finish(name: str, measured: dict[str, list[dict[str, float]]], figures: list[harness.Figure], notes: list[str], quick: bool) -> None:
    keys = ("search_s", "overhead_s", "process_s", "cluster_start_s")
    arms = [harness.arm(measured, run, key) for run, values in measured.items() for key in keys if key in values[0]]
    if quick:
        print(json.dumps([figure.as_dict() for figure in figures], indent=1))
    else:
        print(harness.write(name, (__doc__ or "").splitlines()[0], arms, figures, notes))


if __name__ == "__main__":
    main()
