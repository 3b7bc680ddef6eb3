"""The arms of `sweep_cluster`, each run in a fresh process: the rivals as their documentation has it, ours, and the limit.

An arm is `arm(workload, master_url) -> dict` with

    search_s          the call that searches, from its start until it returns (fmin, optimize, Tuner.fit, our runner)
    began_unix_s      when that call began
    start_s           what had to be started on the cluster before (Ray); the Spark session, with its executor up, is not in it
    fits              [[number, validation value, fit_wall_s, started_unix_s, ended_unix_s], …] as told by the trials themselves

and, where an arm has more to tell, more. Rivals' libraries are imported where they are used: an arm pays for its own only.
"""

from __future__ import annotations

import cProfile
import multiprocessing
import os
import pstats
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.workloads import Objective, Workload

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from toolkit.core.data import TrialData

Outcome = dict[str, Any]
SERVER_TIMEOUT_S = 120.0

_objective: Objective
_data: TrialData | None


def spark_session(master_url: str, **conf: str) -> SparkSession:
    """A session whose executor is up, as it is on a cluster that a notebook is attached to."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(master_url).appName("benchmark")
    builder = builder.config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1")
    for name, value in conf.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    spark.range(1).count()  # Waits for an executor; in the JVM alone, so that no Python worker is warm.
    return spark


def _data_of(workload: Workload) -> TrialData | None:
    return None if workload.kind == "sleep" else workload.split().trial


# --- hyperopt -------------------------------------------------------------------------------------------------------------------------


def sparktrials(workload: Workload, master_url: str, tuned: bool = False) -> Outcome:
    """SparkTrials as its documentation has it: a closure over the data, one suggestion queued.

    Tuned: as many queued as there are slots, and the data a broadcast of the user's own.
    """
    import numpy as np
    from hyperopt import STATUS_OK, SparkTrials, fmin, tpe

    spark = spark_session(master_url)
    objective, data = workload.objective(), _data_of(workload)
    broadcast = spark.sparkContext.broadcast(data) if tuned and data is not None else None

    def loss(drawn: Mapping[str, Any]) -> dict[str, Any]:
        rows = broadcast.value if broadcast is not None else data
        fit = objective.fit(int(drawn.get("number", 0)), rows, None if "number" in drawn else drawn)
        return {"loss": -fit[1], "status": STATUS_OK, "fit": fit}

    if broadcast is not None:
        data = None  # Not in the closure.
    trials = SparkTrials(parallelism=workload.num_slots, spark_session=spark)
    began_unix_s, began = time.time(), time.perf_counter()
    fmin(
        loss,
        space=_hyperopt_space(workload),
        algo=_replay if workload.replay else tpe.suggest,
        max_evals=workload.num_trials,
        max_queue_len=workload.num_slots if tuned else 1,
        trials=trials,
        rstate=np.random.default_rng(123),
        show_progressbar=False,
        verbose=False,
    )
    search_s = time.perf_counter() - began
    fits = [trial["result"]["fit"] for trial in trials.trials if trial["result"].get("status") == STATUS_OK]
    spark.stop()
    return {"search_s": search_s, "began_unix_s": began_unix_s, "start_s": 0.0, "fits": fits}


def _hyperopt_space(workload: Workload) -> dict[str, Any]:
    from hyperopt import hp
    from hyperopt.pyll import scope

    if workload.replay:
        return {"number": hp.randint("number", workload.num_trials)}
    space: dict[str, Any] = {"max_depth": scope.int(hp.quniform("max_depth", 4, 20, 1))}
    for name, (low, high) in WINE_LOG_BOUNDS.items():
        space[name] = hp.loguniform(name, log(low), log(high))
    return space


def _replay(new_ids: list[int], domain: Any, trials: Any, seed: int) -> list[Any]:
    """An `algo` of hyperopt that hands out the list in order; documents as `hyperopt.rand.suggest` makes them."""
    from hyperopt.base import miscs_update_idxs_vals

    documents = []
    for new_id in new_ids:
        misc = {"tid": new_id, "cmd": domain.cmd, "workdir": domain.workdir}
        miscs_update_idxs_vals([misc], {"number": [new_id]}, {"number": [new_id]})
        documents.extend(trials.new_trial_docs([new_id], [None], [domain.new_result()], [misc]))
    return documents


# The published space of the wine search beside max_depth (4 … 20), logarithmic: see experiments/wine_quality.py.
WINE_LOG_BOUNDS = {
    "learning_rate": (exp(-3), exp(-1)),
    "reg_alpha": (exp(-5), exp(-2)),
    "reg_lambda": (exp(-6), exp(-2)),
    "min_child_weight": (exp(0), exp(2)),
}


# --- MLflow's own Optuna study --------------------------------------------------------------------------------------------------------


def mlflow_spark_study(workload: Workload, master_url: str) -> Outcome:
    """MlflowSparkStudy with a server of MLflow's own on SQLite and loopback, one partition a slot.

    The replay keeps what its default sampler costs: TPE reads the study and draws, and its answer is then replaced. The server's start
    is not counted.
    """
    with _mlflow_server() as uri:
        import mlflow
        from mlflow.optuna.storage import MlflowStorage
        from mlflow.pyspark.optuna.study import MlflowSparkStudy

        from benchmarks.mlflow_objective import MlflowObjective, replay_sampler

        spark = spark_session(master_url)
        mlflow.set_tracking_uri(uri)
        experiment_id = mlflow.create_experiment("benchmark")
        fits_folder = Path.cwd() / "fits"
        fits_folder.mkdir()
        objective = MlflowObjective(workload, workload.objective(), _data_of(workload), str(fits_folder))
        study = MlflowSparkStudy(
            "benchmark", MlflowStorage(experiment_id), sampler=replay_sampler() if workload.replay else None, direction="maximize"
        )
        began_unix_s, began = time.time(), time.perf_counter()
        study.optimize(objective, n_trials=workload.num_trials, n_jobs=workload.num_slots)
        search_s = time.perf_counter() - began
        spark.stop()
    return {"search_s": search_s, "began_unix_s": began_unix_s, "start_s": 0.0, "fits": objective.told()}


@contextmanager
def _mlflow_server() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", str(Path.cwd() / "artifacts")]
    with Path("server.log").open("wb") as log_file:
        server = subprocess.Popen(command, stdout=log_file, stderr=log_file, start_new_session=True)
    try:
        until = time.monotonic() + SERVER_TIMEOUT_S
        while not _answers(f"{uri}/health"):
            assert server.poll() is None and time.monotonic() < until, Path("server.log").read_text()[-2000:]
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False  # Not yet.


# --- Ray Tune as tutorials write it ---------------------------------------------------------------------------------------------------


def tune_tutorial(workload: Workload, master_url: str) -> Outcome:
    """Stock Ray on Spark and stock Tune: a new actor process a trial, Optuna asked one trial at a time."""
    # Tokens, which a local Ray of the same user leaves behind, would keep the workers out (ray-on-spark.md, "Token-auth trap").
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    spark = spark_session(master_url, **{"spark.executorEnv.RAY_AUTH_MODE": "disabled"})
    objective, data = workload.objective(), _data_of(workload)
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch
    from ray.util.spark import setup_ray_cluster, shutdown_ray_cluster

    began = time.perf_counter()
    # Without num_gpus_worker_node it refuses num_cpus_worker_node.
    setup_ray_cluster(max_worker_nodes=1, num_cpus_worker_node=workload.num_slots, num_gpus_worker_node=0)
    try:
        ray.init()
        start_s = time.perf_counter() - began
        space, points = _tune_space(workload)
        tuner = tune.Tuner(
            tune.with_parameters(_tune_trainable, objective=objective, data=data),
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(space=space, metric="value", mode="max", points_to_evaluate=points),
                metric="value",
                mode="max",
                num_samples=workload.num_trials,
            ),
            run_config=tune.RunConfig(storage_path=str(Path.cwd() / "ray_results"), verbose=0),
        )
        began_unix_s, began = time.time(), time.perf_counter()
        results = tuner.fit()
        search_s = time.perf_counter() - began
        assert not results.errors, results.errors[0]
        fits = [result.metrics["fit"] for result in results]
    finally:
        shutdown_ray_cluster()
        spark.stop()
    return {"search_s": search_s, "began_unix_s": began_unix_s, "start_s": start_s, "fits": fits}


def _tune_trainable(config: dict[str, Any], objective: Objective, data: TrialData | None) -> None:
    from ray import tune

    drawn = {name: value for name, value in config.items() if name != "number"}
    fit = objective.fit(int(config["number"]), data, None if "x" in config else drawn)
    tune.report({"value": fit[1], "fit": fit})


def _tune_space(workload: Workload) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    from ray import tune

    space: dict[str, Any] = {"number": tune.randint(0, workload.num_trials)}
    points = [{"number": number, **point} for number, point in enumerate(workload.points())] if workload.replay else None
    if workload.kind == "sleep":
        return {**space, "x": tune.uniform(0.0, 1.0)}, points
    space["max_depth"] = tune.randint(4, 21)
    for name, (low, high) in WINE_LOG_BOUNDS.items():
        space[name] = tune.loguniform(low, high)
    return space, points


# --- ours -----------------------------------------------------------------------------------------------------------------------------


def ours(workload: Workload, master_url: str, cluster: Literal["spark", "local"], profile: bool = False) -> Outcome:
    """`toolkit.sweep` with its defaults: MLflow on, in its embedded default in the working folder.

    `search_s` is the wall of the runner, as that of `fmin` is; the result's own `search_s`, which ends with the last trial, is
    `until_last_trial_s`. `start_s` has the checks of the executors in it (`preflight_s`) beside Ray's start. The session is made, and its
    executor up, before: as for all arms.
    """
    from toolkit.engines.mlflow_tracking import MlflowTracker
    from toolkit.engines.ray_trials import RayRunner
    from toolkit.sweep import sweep
    from toolkit.sweep_cluster import TrialCluster

    noted: dict[str, float] = {}
    profiler = cProfile.Profile() if profile else None
    run, close, connect = RayRunner.run, MlflowTracker.close, TrialCluster.connect_spark

    def timed_run(self: RayRunner, search: Any) -> None:
        began = time.perf_counter()
        run(self, search)
        noted["search_s"] = time.perf_counter() - began

    def noting_close(self: MlflowTracker, *arguments: Any, **options: Any) -> Any:
        unsent = close(self, *arguments, **options)
        noted["tracking_calls"] = self.num_calls
        return unsent

    def timed_connect(self: TrialCluster, *arguments: Any) -> None:
        began = time.perf_counter()
        connect(self, *arguments)
        noted["preflight_s"] = time.perf_counter() - began

    if profiler:
        from ray.tune import Tuner

        # The controller's thread, whichever that is.
        fit = Tuner.fit
        Tuner.fit = lambda tuner: profiler.runcall(fit, tuner)
    RayRunner.run, MlflowTracker.close, TrialCluster.connect_spark = timed_run, noting_close, timed_connect  # type: ignore[method-assign]
    spark = spark_session(master_url) if cluster == "spark" else None
    began = time.perf_counter()
    options = {"spark_master": master_url} if cluster == "spark" else {}
    result = sweep(workload.experiment(), cluster=cluster, **options)  # type: ignore[arg-type]
    whole_s = time.perf_counter() - began
    if spark is not None:
        spark.stop()
    assert result.num_unsent == 0, f"{result.num_unsent} tracking entries were not sent"
    assert result.num_slots == workload.num_slots, f"{result.num_slots} slots"
    outcome: Outcome = {
        **noted,
        "began_unix_s": result.search_started_unix_s,
        "start_s": result.cluster_start_s + noted.get("preflight_s", 0.0),
        "until_last_trial_s": result.search_s,
        "whole_s": whole_s,
        "num_pruned": sum(record.result.stopped for record in result.records),
        "num_retries": sum(record.num_retries for record in result.records),
        "fits": [],
    }
    points = workload.points()
    for record in result.records:
        if workload.replay:
            differing = {name for name, value in points[record.number].items() if record.params[name] != value}
            assert not differing, f"trial {record.number}: {differing} are not those of the list"
        value = record.values[0] if record.values else record.result.metrics[result.experiment.metrics[0].name]
        told = record.result
        outcome["fits"].append([record.number, value, told.fit_wall_s, told.started_unix_s, told.ended_unix_s])
    if profiler:
        outcome["profile"] = _top_functions(profiler, noted["search_s"])
    return outcome


def _top_functions(profiler: cProfile.Profile, wall_s: float, num: int = 40) -> list[dict[str, Any]]:
    """The functions of the controller's thread with the most time of their own, and with what they call; shares of `wall_s`."""
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = [
        {"function": f"{Path(file).name}:{line} {name}", "calls": calls, "own": own / wall_s, "with_callees": whole / wall_s}
        for (file, line, name), (_, calls, own, whole, _) in stats.items()
    ]
    by_own = sorted(rows, key=lambda row: -row["own"])[:num]
    by_whole = sorted(rows, key=lambda row: -row["with_callees"])[:num]
    return [*by_own, *(row for row in by_whole if row not in by_own)]


# --- the limit, and the yardstick -----------------------------------------------------------------------------------------------------


def pool(workload: Workload, master_url: str) -> Outcome:
    """The least one can write: a spawned pool, the data sent to each process once, the matrix kept there."""
    objective, data = workload.objective(), _data_of(workload)
    began_unix_s, began = time.time(), time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(workload.num_slots, _pool_start, (objective, data)) as processes:
        fits = list(processes.imap_unordered(_pool_fit, range(workload.num_trials), chunksize=1))
        search_s = time.perf_counter() - began
    return {"search_s": search_s, "began_unix_s": began_unix_s, "start_s": 0.0, "fits": fits}


def _pool_start(objective: Objective, data: TrialData | None) -> None:
    global _objective, _data
    _objective, _data = objective, data


def _pool_fit(number: int) -> list[float]:
    return _objective.fit(number, _data)


def ray_init(workload: Workload, master_url: str) -> Outcome:
    """A plain local `ray.init` without dashboard: what a start on Spark is measured against."""
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    began = time.perf_counter()
    ray.init(address="local", num_cpus=workload.num_slots, include_dashboard=False, log_to_driver=False)
    start_s = time.perf_counter() - began
    ray.shutdown()
    return {"search_s": 0.0, "began_unix_s": time.time(), "start_s": start_s, "fits": []}


ARMS: dict[str, Callable[[Workload, str], Outcome]] = {
    "sparktrials": sparktrials,
    "sparktrials_tuned": partial(sparktrials, tuned=True),
    "mlflow_spark_study": mlflow_spark_study,
    "tune_tutorial": tune_tutorial,
    "ours_spark": partial(ours, cluster="spark"),
    "ours_spark_profiled": partial(ours, cluster="spark", profile=True),
    "ours_local": partial(ours, cluster="local"),
    "pool": pool,
    "ray_init": ray_init,
}
