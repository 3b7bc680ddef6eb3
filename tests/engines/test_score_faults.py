"""Kill a scoring wherever it can be killed: after the next run every row is in the output or in the quarantine, once."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.spark_standalone import SparkStandalone
from tests.commands import Workplace, wait_until, workplace
from tests.engines.conftest import MlflowServer
from tests.engines.promote_fixtures import Shop
from tests.engines.score_fixtures import Fault, Scenario, check_exact, is_bad, mixed, quarantined_keys
from tests.engines.score_scenes import CONF, Place
from tests.engines.spark_fixtures import SparkCommand, have_workers, kill_one, own_session, standalone
from toolkit.core.errors import ScoringError
from toolkit.engines import spark_delta
from toolkit.settings import Settings

pytestmark = [pytest.mark.engine, pytest.mark.fault]
__all__ = ["standalone", "workplace"]

SINK_WRITE = "toolkit.engines.spark_score:SparkBatches._write"
RECORD, FINISH = "toolkit.engines.score_audit:record", "toolkit.engines.score_state:ScoreState.finish"
SPARK_FAULTS = {
    "before the plan": Fault("toolkit.engines.score_state:ScoreState.write_plan"),
    "before the write": Fault(SINK_WRITE),
    "between scores and quarantine": Fault(SINK_WRITE, call=2),
    "after the commit": Fault(RECORD),
    "before the mark": Fault(FINISH),
    "before the checkpoint's commit": Fault(FINISH, "after"),
}
FILES_FAULTS = {
    "before the write": Fault("toolkit.engines.spark_files_scoring:_Files._run"),
    "files written, not committed": Fault("toolkit.engines.spark_files_scoring:_Files._commit"),
    "between quarantine and scores": Fault("toolkit.engines.spark_files_scoring:_Files._commit", call=1),
    "after the commit": Fault("toolkit.score_run:ScoreRun.on_batch"),
    "before the mark": Fault(RECORD, "after"),
}
COMMITS = {"delta": "toolkit.engines.delta_files:DeltaOutput.commit", "parquet": "toolkit.engines.parquet_batches:commit"}
REPEATS = 3


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    conf = {**CONF, "spark.driver.memory": "1g"}
    with own_session(tmp_path_factory.mktemp("warehouse"), spark_delta.settings_for_delta(conf, Settings.read({}))) as session:
        yield session


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    return Shop(mlflow_server, mlflow_server.uri)


_names = (f"faulty_{number}" for number in itertools.count())


@pytest.fixture
def scene(spark: Any, shop: Shop, workplace: Workplace, tmp_path: Path) -> Callable[..., Scenario]:
    def make(engine: str, target: str, source: str = "delta", *options: str) -> Scenario:
        name = next(_names)
        shop.registry.set_alias(name, "champion", shop.register(name, shop.model("good")))
        return Scenario(Place(spark, shop, tmp_path, engine, source, target, name), workplace, options)

    return make


def matrix() -> Iterator[Any]:
    """Each fault once, with outputs in turns; all of it again, and more than once, under the mark `repeat`."""
    for engine, faults in (("spark", SPARK_FAULTS), ("files", FILES_FAULTS)):
        for number, name in enumerate(faults):
            for target, attempt in itertools.product(("delta", "parquet"), range(REPEATS)):
                is_first = attempt == 0 and target == ("delta", "parquet")[(number + (engine == "files")) % 2]
                marks = [] if is_first else [pytest.mark.repeat]
                yield pytest.param(engine, target, name, marks=marks, id=f"{engine}-{target}-{name}-{attempt}")


def fault_of(engine: str, target: str, name: str) -> Fault:
    if name == "between quarantine and scores":
        return Fault(COMMITS[target], "after")
    return (SPARK_FAULTS if engine == "spark" else FILES_FAULTS)[name]


@pytest.mark.parametrize(("engine", "target", "name"), list(matrix()))
def test_a_driver_is_killed(scene: Callable[..., Scenario], engine: str, target: str, name: str) -> None:
    """In the second batch; what came after it waits for a batch of its own, or joins it where nothing was planned yet."""
    scenario = scene(engine, target)
    scenario.place.add(mixed(0, 40))
    scenario.restart()
    scenario.place.add(mixed(40, 70))
    scenario.killed(fault_of(engine, target, name))
    scenario.place.add(mixed(70, 90))
    scenario.restart()
    check_exact(scenario, range(90))


@pytest.mark.parametrize("engine", ["spark", pytest.param("files", marks=pytest.mark.repeat)])
@pytest.mark.parametrize("target", [pytest.param("delta", marks=pytest.mark.repeat), "parquet"])
def test_the_first_batch_is_killed(scene: Callable[..., Scenario], engine: str, target: str) -> None:
    """Of a folder of Parquet files, whose progress only the state has; neither table is there yet."""
    scenario = scene(engine, target, "parquet")
    scenario.place.add(mixed(0, 40))
    scenario.killed(fault_of(engine, target, "before the write"))
    scenario.place.add(mixed(40, 60))
    scenario.restart()
    check_exact(scenario, range(60))


# ---- files that are written, and no commit yet


@pytest.mark.parametrize("target", ["delta", pytest.param("parquet", marks=pytest.mark.repeat)])
def test_a_driver_is_killed_when_files_are_written(scene: Callable[..., Scenario], target: str) -> None:
    """Seen from outside, as Spark writes and commits a Delta table in one call; a kill that comes too late is none to learn from."""
    scenario = scene("spark", target)
    output, added = scenario.place.output, 40
    scenario.place.add(mixed(0, added))
    scenario.restart()
    for _ in range(5):
        scenario.place.add(mixed(added, added + 10))
        added += 10
        files, commits = set(output.rglob("*.parquet")), _commits(output)
        scenario.killed_when(lambda files=files: set(output.rglob("*.parquet")) > files)  # type: ignore[misc]
        is_between = _commits(output) == commits
        scenario.restart()
        if is_between:
            break
    assert is_between
    check_exact(scenario, range(added))


def _commits(output: Path) -> set[Path]:
    return {*output.glob("_delta_log/*.json"), *output.glob("_toolkit/manifests/*.json")}


@pytest.mark.parametrize("target", [pytest.param("delta", marks=pytest.mark.repeat), "parquet"])
def test_only_the_python_process_is_killed(scene: Callable[..., Scenario], target: str) -> None:
    """Its JVM goes on for as long as it takes it to notice. The lease is free at once: both write, and one of them commits."""
    scenario = scene("spark", target)
    output = scenario.place.output
    scenario.place.add(mixed(0, 40))
    process = scenario.start()
    wait_until(lambda: any(output.rglob("*.parquet")) or process.poll() is not None, 120)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ScoringError):  # the other was first, at the same moment
        scenario.restart()
    scenario.restart()
    process.communicate()
    scenario.workplace.all_gone()
    check_exact(scenario, range(40))


# ---- between the kill and the next run


@pytest.mark.parametrize(
    ("engine", "target"),
    [
        ("spark", "delta"),
        pytest.param("spark", "parquet", marks=pytest.mark.repeat),
        pytest.param("files", "delta", marks=pytest.mark.repeat),
    ],
)
def test_the_alias_moves_after_a_kill(scene: Callable[..., Scenario], engine: str, target: str) -> None:
    """The batch that was begun keeps its version; the next one has the new."""
    scenario = scene(engine, target)
    place = scenario.place
    place.add(mixed(0, 40))
    scenario.killed(fault_of(engine, target, "before the write"))
    second = place.shop.register(place.name, place.shop.model("alike"))
    place.shop.registry.set_alias(place.name, "champion", second)
    place.add(mixed(40, 60))
    found = scenario.restart()
    assert (found.version, list(found.replayed.values())) == (second, [f"{place.name}/1"])
    scores = place.scores()
    assert set(scores.model_version[scores.id < 40]) == {1} and set(scores.model_version[scores.id >= 40]) == {second}
    assert scores.id.tolist() == [key for key in range(60) if not is_bad(key)]
    assert place.audit().model_version.tolist() == [1, second]
    assert (scenario.restart().num_input_rows, quarantined_keys(place)) == (0, [key for key in range(60) if is_bad(key)])


def test_the_checkpoint_is_deleted(scene: Callable[..., Scenario]) -> None:
    scenario = scene("spark", "delta")
    place = scenario.place
    place.add(mixed(0, 40))
    scenario.restart()
    shutil.rmtree(place.output / "_toolkit" / "checkpoints")
    place.add(mixed(40, 50))
    _refused(scenario, "the checkpoint in", "--mode full")
    scenario.restart(mode="full")
    assert place.scores().id.tolist() == [key for key in range(50) if not is_bad(key)]


@pytest.mark.parametrize(
    ("engine", "target", "source"),
    [("spark", "delta", "delta"), ("spark", "parquet", "delta"), ("files", "parquet", "parquet"), ("files", "parquet", "delta")],
)
def test_the_state_is_deleted(scene: Callable[..., Scenario], engine: str, target: str, source: str) -> None:
    """And the engine is not named any more: a run that would score by the other must notice, too."""
    scenario = scene(engine, target, source)
    place = scenario.place
    place.add(mixed(0, 40))
    scenario.restart()
    shutil.rmtree(place.output / "_toolkit")
    place.add(mixed(40, 50))
    for chosen in (engine, "auto"):
        place.engine = chosen
        _refused(scenario, "restore it from a backup, or score all anew with --mode full")
    scenario.restart(mode="full")
    place.add(mixed(50, 60))
    scenario.restart()
    assert place.scores().id.tolist() == [key for key in range(60) if not is_bad(key)]
    # What was bad is in the quarantine since then; of the new reading it is there again, as of any --mode full.
    assert quarantined_keys(place) == sorted([3, 13, 23, 33] * 2 + [43, 53])


def test_progress_outlasts_the_state_of_a_delta_output_by_files(scene: Callable[..., Scenario]) -> None:
    """For it is in the table's own log."""
    scenario = scene("files", "delta")
    scenario.place.add(mixed(0, 40))
    scenario.restart()
    shutil.rmtree(scenario.place.output / "_toolkit")
    scenario.place.add(mixed(40, 50))
    scenario.restart()
    check_exact(scenario, range(50))


def _refused(scenario: Scenario, *words: str) -> None:
    """By one line, and nothing is written."""
    before = scenario.place.everything()
    answer = scenario.here()
    lines = [line for line in answer.err.splitlines() if "error: " in line]
    assert answer.code == 1 and answer.out == "" and len(lines) == 1 and all(word in lines[0] for word in words), answer.err
    assert "Traceback" not in answer.err, answer.err
    assert scenario.place.everything() == before


# ---- windows, and all anew


@pytest.mark.parametrize(
    ("engine", "target", "name"),
    [
        ("spark", "delta", "between scores and quarantine"),
        pytest.param("spark", "parquet", "before the write", marks=pytest.mark.repeat),
        pytest.param("auto", "parquet", "between scores and quarantine", marks=pytest.mark.repeat),
        pytest.param("auto", "delta", "after the commit", marks=pytest.mark.repeat),
    ],
)
def test_a_window_is_killed(scene: Callable[..., Scenario], engine: str, target: str, name: str) -> None:
    """The next run finishes it, though it is about what is new: else no other would, for a new plan hides it."""
    scenario = scene(engine, target)
    place = scenario.place
    place.add(mixed(0, 40))
    scenario.restart()
    window = ("--mode", "window", "--from", "2026-01-01T10:00", "--to", "2026-01-01T20:00", "--time-column", "at")
    scenario.killed(SPARK_FAULTS[name], *window)
    place.add(mixed(40, 60))
    scenario.restart()
    scores, audit = place.scores(), place.audit()
    assert scores.id.tolist() == [key for key in range(60) if not is_bad(key)]
    assert audit.batch_id.tolist() == [0, 1, 2] and audit.num_input_rows.tolist() == [40, 10, 20]
    assert set(scores.batch_id[(scores.id >= 10) & (scores.id < 20)]) == {1}
    assert quarantined_keys(place) == sorted([key for key in range(60) if is_bad(key)] + [13])
    assert scenario.restart().num_input_rows == 0


@pytest.mark.parametrize(
    ("engine", "target"),
    [
        ("spark", "parquet"),
        pytest.param("spark", "delta", marks=pytest.mark.repeat),
        pytest.param("files", "delta", marks=pytest.mark.repeat),
    ],
)
@pytest.mark.parametrize("name", ["before the write", pytest.param("after the commit", marks=pytest.mark.repeat)])
def test_a_full_run_is_killed(scene: Callable[..., Scenario], engine: str, target: str, name: str) -> None:
    """And an ordinary one comes next: it finishes what the full one has begun."""
    scenario = scene(engine, target)
    place = scenario.place
    place.add(mixed(0, 40))
    scenario.restart()
    scenario.killed(fault_of(engine, target, name), "--mode", "full")
    place.add(mixed(40, 60))
    scenario.restart()
    scores = place.scores()
    assert scores.id.tolist() == [key for key in range(60) if not is_bad(key)]
    assert scores.batch_id.min() == 1
    assert place.audit().num_input_rows.tolist() == [40, 40, 20]
    assert scenario.restart().num_input_rows == 0


def test_a_window_that_is_refused_is_given_up(scene: Callable[..., Scenario]) -> None:
    """It is no reason to refuse what is new."""
    scenario = scene("spark", "delta")
    scenario.place.add(mixed(0, 40))
    scenario.restart()
    with pytest.raises(ScoringError, match="may be bad"):
        scenario.restart(mode="window", window=("2026-01-01T13:00", "2026-01-01T14:00"), time_column="at")
    scenario.place.add(mixed(40, 60))
    scenario.restart()
    check_exact(scenario, range(60))


@pytest.mark.parametrize("target", ["delta", "parquet"])
def test_a_full_run_without_rows_replaces_the_output(scene: Callable[..., Scenario], target: str) -> None:
    scenario = scene("spark", target)
    place = scenario.place
    place.add(mixed(0, 40))
    scenario.restart()
    assert scenario.restart(mode="full", where="id >= 40").num_scored_rows == 0
    assert place.scores().empty
    place.add(mixed(40, 50))
    scenario.restart(where="id >= 40")
    assert place.scores().id.tolist() == [key for key in range(40, 50) if not is_bad(key)]


# ---- two at once


def test_two_runs_at_once(scene: Callable[..., Scenario]) -> None:
    """The second says who is at work. The first is killed; who comes next takes over without waiting."""
    scenario = scene("spark", "delta")
    scenario.place.add(mixed(0, 40))
    with scenario.held(Fault(SINK_WRITE, call=2)) as process:
        _refused(scenario, "one scoring of", "at a time", f"(pid {process.pid})")
    scenario.restart()
    check_exact(scenario, range(40))


@pytest.mark.parametrize("engine", ["spark", pytest.param("files", marks=pytest.mark.repeat)])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.repeat)])
def test_a_run_is_interrupted(scene: Callable[..., Scenario], engine: str, number: signal.Signals) -> None:
    scenario = scene(engine, "delta")
    scenario.place.add(mixed(0, 40))
    fault = Fault(SINK_WRITE, call=2) if engine == "spark" else Fault(COMMITS["delta"], call=2)
    with scenario.held(fault) as process:
        os.kill(process.pid, number)
        scenario.release()
        answer = scenario.workplace.finish(process, 60)
        assert answer.code == 130 and answer.out == "" and "Traceback" not in answer.err, answer.err
    scenario.restart()
    check_exact(scenario, range(40))


@pytest.mark.parametrize(
    ("engine", "pause_s"),
    [
        ("spark", 0),
        ("spark", 2.5),
        ("files", 4),
        *(pytest.param(engine, 0.5 * half, marks=pytest.mark.repeat) for engine in ("spark", "files") for half in range(1, 24)),
    ],
)
def test_ctrl_c_while_the_jvm_is_asked_something(scene: Callable[..., Scenario], engine: str, pause_s: float) -> None:
    """At whatever moment after the JVM's start: one line, and nothing is left running. A shell's background job starts with it ignored, so
    the driver is told not to."""
    scenario = scene(engine, "parquet", "parquet")
    scenario.place.add(mixed(0, 40))
    process = scenario.start(None)
    wait_until(lambda: any("SparkSubmit" in each for each in scenario.workplace.processes()) or process.poll() is not None, 60)
    time.sleep(pause_s)
    os.kill(process.pid, signal.SIGINT)
    answer = scenario.workplace.finish(process, 60)
    assert answer.code in (130, 0), answer.err  # 0: it came too late
    assert answer.code == 0 or (answer.out == "" and "Traceback" not in answer.err and "error:" not in answer.err), answer.err
    scenario.workplace.all_gone()
    scenario.restart()
    check_exact(scenario, range(40))


# ---- executors and disks


@pytest.mark.parametrize(
    ("engine", "target"),
    [
        ("spark", "delta"),
        pytest.param("spark", "parquet", marks=pytest.mark.repeat),
        pytest.param("files", "delta", marks=pytest.mark.repeat),
    ],
)
def test_an_executor_is_killed(scene: Callable[..., Scenario], standalone: SparkStandalone, engine: str, target: str) -> None:
    """While its tasks run: Spark gives them to another one, and what the dead one has written is in no commit."""
    scenario = scene(engine, target)
    place = scenario.place
    for begin in range(0, 240, 4):
        place.add(mixed(begin, begin + 4))
    have_workers(standalone, 2)
    command = SparkCommand(scenario.workplace, standalone)
    scenario.conf = {
        "spark.executorEnv.TOOLKIT_TEST_MARK": command.executor_mark,
        "spark.executor.memory": "512m",
        "spark.sql.files.openCostInBytes": str(2**27),  # a task a file
    }
    process = scenario.start(None, "--spark-master", standalone.url)
    written = "*.parquet" if target == "delta" else "attempt-*/_temporary/**/*.parquet"
    wait_until(lambda: len(list(place.output.rglob(written))) > (2 if engine == "spark" else 0) or process.poll() is not None, 120)
    assert process.poll() is None, process.communicate()
    kill_one(command.pids("CoarseGrainedExecutorBackend", on_executors=True))
    answer = command.finish(process)
    assert answer.code == 0 and answer.json["num_input_rows"] == 240, answer.err
    command.all_gone()
    check_exact(scenario, range(240))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; skips where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a full disk needs a file system of its own: {getattr(error, 'stderr', error)!r}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True, timeout=20)


@pytest.mark.parametrize("target", ["delta", "parquet"])
@pytest.mark.parametrize("engine", ["spark", "files"])
def test_the_disk_is_full(scene: Callable[..., Scenario], small_disk: Path, engine: str, target: str) -> None:
    """For a while; what was written by halves then is in no commit."""
    scenario = scene(engine, target)
    place = scenario.place
    place.add(mixed(0, 40))
    inside = dataclasses.replace(place, folder=small_disk, num_writes=0)
    shutil.copytree(place.input, inside.input)
    scenario.place = inside
    scenario.restart()
    inside.add(mixed(40, 1_400))
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(free - 48 * 1024))
    answer = scenario.here()
    assert answer.code == 1 and answer.out == "" and "Traceback" not in answer.err, (answer.code, answer.err)
    assert inside.scores().id.tolist() == [key for key in range(40) if not is_bad(key)]
    filler.unlink()
    scenario.restart()
    check_exact(scenario, range(1_400))
