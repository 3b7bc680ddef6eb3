"""Kill a part of a sweep on a Spark cluster on purpose: every trial is there once in the end, and nothing is left on driver or executors."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.spark_standalone import SparkStandalone, kill
from tests.commands import Answer, Workplace, runs_of, states, wait_until, workplace, write_experiment
from tests.engines.conftest import MlflowServer
from tests.engines.spark_fixtures import Gate, Network, SparkCommand, have_workers, kill_one, memory_limit, network, standalone
from tests.engines.test_faults import check_complete
from toolkit.core.study import TrialState

pytestmark = [pytest.mark.engine, pytest.mark.fault]
__all__ = ["network", "standalone", "workplace"]

NUM_TRIALS = 8


def check_answer(answer: Answer, num_trials: int = NUM_TRIALS) -> None:
    assert answer.code == 0 and answer.json["num_completed"] == num_trials and answer.json["num_failed"] == 0, answer.err


def check_one_line(answer: Answer, code: int, *words: str) -> None:
    last = answer.err.strip().splitlines()[-1]
    assert answer.code == code and answer.out == "" and all(word in last for word in words), answer.err
    assert "Traceback" not in answer.err and answer.err.count("error: ") <= 1, answer.err


def resume(workplace: Workplace, path: str, uri: str) -> None:
    """What is tested is the bookkeeping: any cluster will do."""
    check_answer(workplace.here("sweep", path, "--tracking-uri", uri, "--resume", "--json", "--cluster", "inprocess"))


def at_the_gate(
    workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, name: str, *options: str
) -> tuple[SparkCommand, subprocess.Popen[str], Gate, str]:
    """A sweep on one worker, of which two trials have ended and the next wait at the gate; the last is the experiment's path."""
    have_workers(standalone, 1)
    gate = Gate(workplace.folder, open_for=2)
    path = write_experiment(workplace.folder, name, num_trials=NUM_TRIALS, body=gate.body)
    command = SparkCommand(workplace, standalone)
    process = command.start(path, "--tracking-uri", mlflow_server.uri, *options)
    workplace.wait_for_trials(f"{name}-honest", 2, process)
    gate.wait()
    return command, process, gate, path


def check_goes_on(command: SparkCommand, process: subprocess.Popen[str], gate: Gate, raylets: set[int]) -> None:
    """On another node than that of `raylets`, to the end. The gate opens when one is there, and not before: for a moment the processes of a
    dead raylet could still do all that is left."""
    wait_until(lambda: bool(now := command.raylets()) and not raylets & now, 90)
    gate.open()
    check_answer(command.finish(process))
    assert len(gate.nodes()) == 2


@pytest.mark.parametrize("part", [pytest.param("raylet/raylet", marks=pytest.mark.repeat), "CoarseGrainedExecutorBackend"])
def test_a_ray_node_or_its_executor_is_killed(
    part: str, workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int
) -> None:
    """The only one there is: it is replaced."""
    name = f"spark-{'raylet' if 'raylet' in part else 'executor'}-{repetition}"
    command, process, gate, _ = at_the_gate(workplace, standalone, mlflow_server, name)
    raylets = command.raylets()
    kill_one(command.pids(part, on_executors=True))
    check_goes_on(command, process, gate, raylets)
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)
    command.all_gone()


def test_a_spark_worker_is_killed_and_another_takes_over(
    workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int
) -> None:
    name = f"spark-worker-{repetition}"
    command, process, gate, _ = at_the_gate(workplace, standalone, mlflow_server, name, "--spark-conf", "spark.cores.max=1")
    raylets = command.raylets()
    have_workers(standalone, 2)
    kill(standalone.workers.pop(0))
    check_goes_on(command, process, gate, raylets)
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)
    command.all_gone()


@pytest.mark.parametrize("part", ["gcs_server", pytest.param("raylet", marks=pytest.mark.repeat)])
def test_rays_head_is_killed(
    part: str, workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int
) -> None:
    name = f"spark-head-{part.partition('_')[0]}-{repetition}"
    command, process, gate, path = at_the_gate(workplace, standalone, mlflow_server, name)
    kill_one(command.pids(f"{part}/{part} ".replace("gcs_server/", "gcs/"), on_executors=False))
    answer = command.finish(process, timeout_s=60)
    check_one_line(answer, 1, "error: Ray must last as long as the search, got the Ray head's", part, "2 of 8 trials are kept", "--resume")
    command.all_gone()
    gate.open()
    resume(workplace, path, mlflow_server.uri)
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)


def test_the_driver_is_killed(workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int) -> None:
    name = f"spark-driver-{repetition}"
    command, process, gate, path = at_the_gate(workplace, standalone, mlflow_server, name)
    process.kill()
    process.communicate(timeout=60)
    command.all_gone()
    gate.open()
    resume(workplace, path, mlflow_server.uri)
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)


def test_the_network_is_cut(workplace: Workplace, network: Network, mlflow_server: MlflowServer, tmp_path: Path, repetition: int) -> None:
    """Between the driver and one of two workers, and healed when all is over."""
    name = f"spark-cut-{repetition}"
    gate = Gate(workplace.folder, open_for=4)
    path = write_experiment(workplace.folder, name, num_trials=NUM_TRIALS, body=gate.body)
    with SparkStandalone(tmp_path / "networked", host=network.host) as cluster:
        cluster.start_worker(cores=1, host=network.host)
        cluster.start_worker(cores=1, host=network.other_host, prefix=network.prefix)
        command = SparkCommand(workplace, cluster)
        process = command.start(path, "--tracking-uri", mlflow_server.uri, "--spark-conf", f"spark.driver.host={network.host}")
        workplace.wait_for_trials(f"{name}-honest", 3, process)
        # The one that is there first waits at the gate with its one slot: what remains goes to the other, whenever it comes.
        wait_until(lambda: len(gate.nodes()) == 2, 90)
        network.cut()
        gate.open()
        check_answer(command.finish(process))
        network.heal()
        check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)
        command.all_gone()


HUNGRY = """mine = Path({folder!r}) / "hungry"
        try:
            mine.mkdir()
            (mine / str(params["tree"]["x"])).touch()
        except FileExistsError:
            pass
        if (mine / str(params["tree"]["x"])).exists():
            (mine / f"death-{{os.getpid()}}").touch()
            hoard = np.ones({num_bytes} // 8)"""


def test_a_trial_takes_more_memory_than_an_executor_has(
    workplace: Workplace, mlflow_server: MlflowServer, tmp_path: Path, repetition: int
) -> None:
    name = f"spark-memory-{repetition}"
    body = HUNGRY.format(folder=str(workplace.folder), num_bytes=4 * 2**30)
    path = write_experiment(workplace.folder, name, num_trials=NUM_TRIALS, body=body)
    with SparkStandalone(tmp_path / "limited") as cluster, memory_limit(cluster.start_worker(cores=1), 3 * 2**30):
        command = SparkCommand(workplace, cluster)
        answer = command.finish(command.start(path, "--tracking-uri", mlflow_server.uri, "--set", "sweep.max_retries=1"))
        assert answer.code == 0 and (answer.json["num_completed"], answer.json["num_failed"]) == (NUM_TRIALS - 1, 1), answer.err
        assert "the trial's process died 2 times" in answer.err and len(list((workplace.folder / "hungry").glob("death-*"))) == 2
        assert states(workplace.journal(f"{name}-honest")) == {TrialState.COMPLETE: NUM_TRIALS - 1, TrialState.FAILED: 1}
        _, children = runs_of(mlflow_server.uri, name)
        assert Counter(run.status for run in children.values()) == {"FINISHED": NUM_TRIALS - 1, "FAILED": 1}
        command.all_gone()


@pytest.mark.parametrize(
    "signal_number", [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.repeat)]
)
def test_stopped_from_outside_during_the_search(
    signal_number: int, workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int
) -> None:
    name = f"spark-{signal_number.name.lower()}-{repetition}"
    command, process, gate, path = at_the_gate(workplace, standalone, mlflow_server, name)
    # A terminal's Ctrl-C goes to the whole group, the driver's JVM and Ray's head among it.
    (os.killpg if signal_number == signal.SIGINT else os.kill)(process.pid, signal_number)
    answer = command.finish(process, timeout_s=60)
    check_one_line(answer, 130, "2 of 8 trials are kept", "--resume")
    command.all_gone()
    gate.open()
    resume(workplace, path, mlflow_server.uri)
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)


def test_ctrl_c_while_ray_starts(workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int) -> None:
    have_workers(standalone, 1)
    name = f"spark-early-{repetition}"
    path = write_experiment(workplace.folder, name, num_trials=NUM_TRIALS)
    command = SparkCommand(workplace, standalone)
    process = command.start(path, "--tracking-uri", mlflow_server.uri)
    wait_until(lambda: bool(command.pids("toolkit.engines.ray_spark_node", on_executors=True)), 90)
    os.killpg(process.pid, signal.SIGINT)
    check_one_line(command.finish(process, timeout_s=60), 130, "nothing was begun")
    command.all_gone()
    check_answer(workplace.here("sweep", path, "--tracking-uri", mlflow_server.uri, "--json", "--cluster", "inprocess"))
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)


BUGGY = """
from toolkit.core import search

def ended(self, result, num_retries=0, told=search.Search.ended):
    told(self, result, num_retries)
    if len(self.ended_records) == 2:
        raise RuntimeError("a bug")

search.Search.ended = ended
from toolkit.cli.app import main
main()
"""


def test_an_exception_in_the_driver(
    workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int
) -> None:
    have_workers(standalone, 1)
    name = f"spark-bug-{repetition}"
    path = write_experiment(workplace.folder, name, num_trials=NUM_TRIALS, body="time.sleep(0.03)")
    (workplace.folder / "buggy.py").write_text(BUGGY)
    command = SparkCommand(workplace, standalone)
    answer = command.finish(command.start(path, "--tracking-uri", mlflow_server.uri, script=workplace.folder / "buggy.py"))
    assert answer.code == 70 and "RuntimeError: a bug" in answer.err and answer.out == "", answer.err
    command.all_gone()
    assert states(workplace.journal(f"{name}-honest"))[TrialState.RUNNING] == 0
    resume(workplace, path, mlflow_server.uri)
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)


def test_trials_spread_onto_a_worker_that_comes_later(
    workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int
) -> None:
    name = f"spark-grows-{repetition}"
    command, process, gate, _ = at_the_gate(
        workplace, standalone, mlflow_server, name, "--set", "cluster.min_workers=1", "--set", "cluster.max_workers=2"
    )
    assert len(gate.nodes()) == 1
    have_workers(standalone, 2)
    wait_until(lambda: len(gate.nodes()) == 2, 60)
    gate.open()
    check_answer(command.finish(process))
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)
    command.all_gone()


def test_fewer_workers_than_asked_for(
    workplace: Workplace, standalone: SparkStandalone, mlflow_server: MlflowServer, repetition: int
) -> None:
    have_workers(standalone, 1)
    name = f"spark-fewer-{repetition}"
    path = write_experiment(workplace.folder, name, num_trials=NUM_TRIALS)
    command = SparkCommand(workplace, standalone)
    asked = ["--tracking-uri", mlflow_server.uri, "--set", "cluster.max_workers=2"]
    refused = command.finish(command.start(path, *asked, "--set", "cluster.min_workers=2", "--set", "cluster.start_timeout_s=1"))
    check_one_line(refused, 1, "error: at least 2 Ray workers must come up", " of 2", "cluster.min_workers")
    command.all_gone()
    answer = command.finish(command.start(path, *asked, "--set", "cluster.start_timeout_s=15"))
    check_answer(answer)
    assert "1 of 2 Ray workers came up" in answer.err
    check_complete(workplace, name, NUM_TRIALS, mlflow_server.uri)
    command.all_gone()
