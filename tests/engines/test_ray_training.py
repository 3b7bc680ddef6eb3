"""Distributed training on one local Ray: the same model as in one process, and the same after a worker, or the driver, was lost."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import ray.train
import xgboost
from sklearn.metrics import roc_auc_score

from tests.commands import Workplace, wait_until, workplace
from toolkit.core.data import DataContext, Part
from toolkit.core.encoding import encode_features
from toolkit.core.errors import ClusterError, DataError, ExperimentError, UserError
from toolkit.core.experiment import Metric, Training
from toolkit.core.machine import cpu_count
from toolkit.core.recipes import load_experiment
from toolkit.engines import tables
from toolkit.engines.parquet_shards import Columns, files_of, write
from toolkit.engines.ray_cluster import LocalRay, RayConnection
from toolkit.engines.ray_training import _ENVIRONMENT, DistributedFit, DistributedResult, _Trainer, train_distributed
from toolkit.engines.ray_training_cluster import storage_folder
from toolkit.settings import Settings

pytestmark = pytest.mark.engine
__all__ = ["workplace"]

RECIPES = Path(__file__).parents[2] / "experiments"

Floats = npt.NDArray[np.float32]
AUC = Metric("auc", "maximize")
PARAMS: dict[str, Any] = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.3, "eval_metric": ["auc", "logloss"], "seed": 1}
NAMES = tuple(f"x{number}" for number in range(8))


def table(num_rows: int, seed: int) -> Part:
    """Eight features, some values missing; the label is a function of three of them, and of chance."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(num_rows, 8)).astype(np.float32)
    margin = features[:, 0] + features[:, 1] * features[:, 2]
    features[random.random((num_rows, 8)) < 0.05] = np.nan
    return Part(features, (random.random(num_rows) < 1 / (1 + np.exp(-margin))).astype(np.float32))


TRAIN, VALIDATION, TEST = table(20_000, 0), table(5_001, 1), table(5_000, 2)


def predict(model: bytes, features: Floats) -> Floats:
    prediction: Floats = booster_of(model).inplace_predict(features)
    return prediction


# In the environment of our Ray's processes: other tests may run trainings beside these.
MARK = uuid.uuid4().hex


@pytest.fixture(scope="module")
def connection() -> Iterator[RayConnection]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_TEST_MARK", MARK)
        connection = RayConnection(LocalRay(dashboard=False))
        connection.wait()
        yield connection
        connection.stop()


class Lab:
    """A folder with the rows, where trainings run."""

    def __init__(self, folder: Path, connection: RayConnection) -> None:
        self.folder = folder
        self.connection = connection
        self.told: list[str] = []
        columns = Columns(dict.fromkeys(NAMES), "y", are_codes=True)
        self.a_fit = DistributedFit(
            train=write(TRAIN, columns, folder / "train"),
            validation=write(VALIDATION, columns, folder / "validation"),
            columns=columns,
            data_id="a test",
            params=PARAMS,
            metric=AUC,
            num_boost_round=60,
            early_stopping_rounds=10,
        )

    def run(self, fit: DistributedFit, then: Callable[[str], None] = lambda line: None, **training: Any) -> DistributedResult:
        def progress(line: str) -> None:
            self.told.append(line)
            then(line)

        options = Training(**{"num_workers": 2, "checkpoint_every": 5, **training})
        return train_distributed(fit, options, self.folder / "storage", self.folder / "home", self.connection, progress)

    def refusal(self, fit: DistributedFit, of: type[UserError], then: Callable[[str], None] = lambda line: None, **training: Any) -> str:
        with pytest.raises(of) as caught:
            self.run(fit, then, **training)
        assert "\n" not in str(caught.value) and not workers()
        return str(caught.value)

    @property
    def left(self) -> list[str]:
        storage = self.folder / "storage"
        return sorted(path.name for path in storage.iterdir()) if storage.exists() else []


@pytest.fixture
def lab(tmp_path: Path, connection: RayConnection) -> Lab:
    return Lab(tmp_path, connection)


def workers() -> list[int]:
    """Process ids, by age."""
    return processes("ray::TrainingWorker")


def processes(name: str, mark: str | None = None) -> list[int]:
    """Those of our Ray whose command line has `name`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = f"TOOLKIT_TEST_MARK={mark or MARK}".encode() in (folder / "environ").read_bytes()
            if is_ours and name.encode() in (folder / "cmdline").read_bytes().split(b"\0")[0]:
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, connection: RayConnection) -> DistributedResult:
    """Of a training that nothing happened to."""
    lab = Lab(tmp_path_factory.mktemp("expected"), connection)
    return lab.run(lab.a_fit)


def booster_of(model: bytes) -> xgboost.Booster:
    booster = xgboost.Booster()
    booster.load_model(bytearray(model))
    return booster


def single_process(
    train: Part, validation: Part, names: Sequence[str], params: dict[str, Any], rounds: int, stop_after: int | None
) -> bytes:
    matrix = xgboost.QuantileDMatrix(train.features, label=train.label, feature_names=names)
    other = xgboost.QuantileDMatrix(validation.features, label=validation.label, ref=matrix, feature_names=names)
    stops = (
        [xgboost.callback.EarlyStopping(rounds=stop_after, metric_name="auc", data_name="validation", save_best=True)] if stop_after else []
    )
    booster = xgboost.train(params, matrix, rounds, evals=[(other, "validation")], callbacks=stops, verbose_eval=False)
    return bytes(booster.save_raw("ubj"))


def test_as_good_as_one_process(expected: DistributedResult) -> None:
    single = single_process(TRAIN, VALIDATION, NAMES, PARAMS, 60, stop_after=10)
    found, wanted = (roc_auc_score(TEST.label, predict(model, TEST.features)) for model in (expected.model, single))
    assert wanted > 0.7 and abs(found - wanted) <= 0.002
    assert expected.num_rows == (10_000, 10_000) and expected.num_restarts == 0 and expected.began_at_round == 0
    assert set(expected.history) == {"auc", "logloss"} and {len(curve) for curve in expected.history.values()} == {expected.num_rounds}
    best = int(np.argmax(expected.history["auc"]))
    assert expected.best_iteration == best and expected.num_rounds == min(best + 11, 60)
    assert booster_of(expected.model).num_boosted_rounds() == best + 1 and booster_of(expected.model).feature_names == [*NAMES]
    # The mean of the workers' AUC is nearly that of all rows.
    assert abs(expected.history["auc"][best] - roc_auc_score(VALIDATION.label, predict(expected.model, VALIDATION.features))) < 0.01


def test_as_good_on_wine_named_as_it_is(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's own columns, text and whole numbers among them, become numbers while they are read."""
    settings = Settings.read()
    context = DataContext(data=None, data_dir=settings.data_dir, cache_dir=lab.folder / "cache")
    frame = tables.fetch(load_experiment("wine-quality", [RECIPES]), context).frame
    frame["colour"] = np.where(frame["is_red"] == 1, "red", "white")
    frame["good"] = np.where(frame["high_quality"] == 1, "yes", "no")
    names = [name for name in frame.columns if name not in ("quality", "high_quality", "wine_id", "good", "colour", "is_red")]
    columns = Columns({**dict.fromkeys(names), "colour": ("red", "white")}, "good", classes=("no", "yes"))
    part_of_row = np.random.default_rng(0).integers(4, size=len(frame))
    parts = []
    for name, rows in (("train", frame[part_of_row > 0]), ("test", frame[part_of_row == 0])):
        rows.to_parquet(lab.folder / f"{name}.parquet", row_group_size=500)
        parts.append(encode_rows(rows, columns))
    train, test = parts
    params = {**PARAMS, "max_depth": 6, "eta": 0.1}
    fit = replace(lab.a_fit, train=files_of(lab.folder / "train.parquet"), validation=None, columns=columns, params=params)
    found = lab.run(fit, checkpoint_every=50)
    assert sum(found.num_rows) == train.num_rows
    features = list(columns.features)
    matrix = categorical_matrix(train, features)
    single = xgboost.train(params, matrix, 60, verbose_eval=False)
    auc = [roc_auc_score(test.label, booster.predict(categorical_matrix(test, features))) for booster in (booster_of(found.model), single)]
    assert auc[1] > 0.8 and abs(auc[0] - auc[1]) <= 0.002
    assert booster_of(found.model).feature_types == single.feature_types


def encode_rows(frame: pd.DataFrame, columns: Columns) -> Part:
    matrix = encode_features(frame, {**columns.features, columns.label: columns.classes})
    return Part(np.ascontiguousarray(matrix[:, :-1]), matrix[:, -1])


def categorical_matrix(part: Part, names: list[str]) -> xgboost.DMatrix:
    types = ["c" if name == "colour" else "q" for name in names]
    return xgboost.DMatrix(part.features, label=part.label, feature_names=names, feature_types=types, enable_categorical=True)


def test_a_process_holds_little_more_than_its_rows(lab: Lab) -> None:
    part = Part(np.tile(TRAIN.features, (40, 4)), np.tile(TRAIN.label, 40))
    columns = Columns({f"x{number}": None for number in range(32)}, "y", are_codes=True)
    files = write(part, columns, lab.folder / "wide")
    result = lab.run(replace(lab.a_fit, train=files, validation=None, columns=columns, num_boost_round=5))
    assert result.num_rows == (400_000, 400_000) and result.best_iteration is None and result.history == {}
    shard_bytes = 400_000 * 32 * 4
    assert 100e6 < min(result.peak_memory_bytes) <= max(result.peak_memory_bytes) <= 1.5 * shard_bytes + 500e6


# --- what is lost


@pytest.mark.fault
def test_a_killed_worker_does_not_change_the_result(expected: DistributedResult, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    killed: list[int] = []

    def kill(line: str) -> None:
        if not killed and line.startswith("round 10/"):
            killed.append(workers()[-1])
            os.kill(killed[0], signal.SIGKILL)

    result = lab.run(lab.a_fit, kill)
    assert killed and result.num_restarts == 1 and result.began_at_round >= 10
    assert result.model == expected.model and result.history == expected.history and result.best_iteration == expected.best_iteration
    assert result.num_rows == expected.num_rows and lab.left == []
    (warning,) = [record.message for record in caplog.records if "lost" in record.message]
    assert warning.startswith("lost worker ") and warning.endswith("; the training goes on from its checkpoint (restart 1 of 3)")


@pytest.mark.fault
def test_workers_that_are_lost_too_often(lab: Lab) -> None:
    def kill(line: str) -> None:
        for pid in workers():
            with contextlib.suppress(ProcessLookupError):  # it went with the one before it
                os.kill(pid, signal.SIGKILL)

    got = lab.refusal(lab.a_fit, ClusterError, kill, max_failures=0)
    assert got.startswith("training.max_failures=0: workers were lost more often, got last worker 0: SYSTEM_ERROR Worker exit detail: ")
    assert got.endswith("; run it again: it goes on from its checkpoint; give the workers more memory, or use more of them")


@pytest.mark.fault
def test_ctrl_c_ends_the_workers_and_the_next_call_goes_on(
    expected: DistributedResult, lab: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("round 5/"):
            with pytest.raises(ClusterError, match="the same training must not run twice at once, got another process at it; wait for it"):
                lab.run(lab.a_fit)
        if line.startswith("round 10/"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        lab.run(lab.a_fit, interrupt)
    wait_until(lambda: not workers() and not processes("ray::TrainingController"), 20)
    assert len(lab.left) == 1
    result = lab.run(lab.a_fit)
    assert result.num_restarts == 0 and result.began_at_round >= 10
    assert result.model == expected.model and result.history == expected.history
    assert lab.left == [] and list((lab.folder / "home").iterdir()) == []
    assert capfd.readouterr() == ("", "")


HEAD_DIES = """
import os, signal, sys
from pathlib import Path
from tests.engines import test_ray_training as tests
connection = tests.RayConnection(tests.LocalRay(dashboard=False))
connection.wait()
(head,) = alive = tests.processes("gcs_server", sys.argv[2])
try:
    lab = tests.Lab(Path(sys.argv[1]), connection)
    lab.run(lab.a_fit, lambda line: alive and os.kill(alive.pop(), signal.SIGKILL))
except tests.ClusterError as error:
    print(error)
finally:
    connection.stop()
"""


@pytest.mark.fault
def test_a_head_that_dies_ends_the_training_in_a_line(workplace: Workplace, tmp_path: Path) -> None:
    script = tmp_path / "head_dies.py"
    script.write_text(HEAD_DIES)
    workplace.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    answer = workplace.finish(workplace.start(str(tmp_path), workplace.mark, script=script), timeout_s=200)
    assert answer.out == (
        "Ray must live as long as the training, got Ray's gcs_server died; run it again: it goes on from its checkpoint\n"
    ), answer
    workplace.all_gone()


def test_what_is_used_of_ray_s_private_parts_is_there() -> None:
    """A `controller` that is started by hand, callbacks that are chosen, classes of processes that are replaced."""
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.xgboost import XGBoostTrainer

    assert issubclass(_Trainer, XGBoostTrainer)
    assert TrainController.worker_group_cls is WorkerGroup and WorkerGroup._worker_cls is RayTrainWorker
    body = inspect.getsource(DataParallelTrainer._initialize_and_run_controller)
    assert "ray.get(controller.run.remote())" in body and "return ray.get(controller.get_result.remote())" in body
    assert "self._initialize_and_run_controller(" in inspect.getsource(DataParallelTrainer.fit)
    assert "callbacks=self._create_default_callbacks()" in inspect.getsource(DataParallelTrainer.fit)
    propagated = ray.train.v2._internal.constants.ENV_VARS_TO_PROPAGATE
    assert set(_ENVIRONMENT) <= propagated


# --- what does not fit


@pytest.mark.parametrize(("num", "cpus", "room"), [(1000, 1, cpu_count()), (1, 1000, 0)])
def test_workers_that_do_not_fit(lab: Lab, num: int, cpus: int, room: int) -> None:
    assert lab.refusal(lab.a_fit, ClusterError, num_workers=num, cpus_per_worker=cpus) == (
        f"the workers of a distributed training must fit on the cluster's CPUs, got training.num_workers={num} with "
        f"training.cpus_per_worker={cpus}, and room for {room}; lower one of them, or use a larger cluster"
    )
    assert lab.left == []


def test_fewer_validation_rows_than_workers(lab: Lab) -> None:
    columns = lab.a_fit.columns
    one = Part(VALIDATION.features[:1], VALIDATION.label[:1])
    got = lab.refusal(replace(lab.a_fit, validation=write(one, columns, lab.folder / "one")), DataError)
    assert got.startswith("distributed training needs at least as many rows as workers, got 1 rows and 2 workers in ")


def test_a_row_of_the_last_worker_that_does_not_fit(lab: Lab) -> None:
    """It is nobody's death: no restart, and one line."""
    frame = pd.DataFrame(TRAIN.features, columns=list(NAMES)).assign(y=np.where(TRAIN.label > 0, "yes", "no"))
    frame.loc[19_990, "y"] = None
    frame.to_parquet(lab.folder / "raw.parquet")
    fit = replace(
        lab.a_fit, train=files_of(lab.folder / "raw.parquet"), validation=None, columns=Columns(dict.fromkeys(NAMES), "y", ("no", "yes"))
    )
    got = lab.refusal(fit, DataError)
    assert got == "label 'y': must not be missing, or unknown, got nan in row 19,991; correct or drop these rows"
    assert lab.left == [] and lab.told == []


def test_parameters_that_xgboost_refuses(lab: Lab) -> None:
    got = lab.refusal(replace(lab.a_fit, params={**PARAMS, "max_depth": -1}), ExperimentError)
    assert got.startswith("model.params: XGBoost refuses them, got value -1 for Parameter max_depth")


def test_storage(tmp_path: Path, lab: Lab) -> None:
    assert storage_folder(Training(), tmp_path, 1) == tmp_path
    assert storage_folder(Training(storage_path="/mnt/shared"), tmp_path, 5) == Path("/mnt/shared")
    with pytest.raises(ExperimentError, match="required on several hosts, a folder that all of them see, got none, and 3 hosts"):
        storage_folder(Training(), tmp_path, 3)
    with pytest.raises(ExperimentError, match=r"a folder that every node has mounted, got s3://key:\*\*\*@bucket/x; name it by its path"):
        storage_folder(Training(storage_path="s3://key:secret@bucket/x"), tmp_path, 1)
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"training\.storage_path must be writable, got .*/file/x: Not a directory"):
        train_distributed(lab.a_fit, Training(), tmp_path / "file" / "x", tmp_path, lab.connection)
