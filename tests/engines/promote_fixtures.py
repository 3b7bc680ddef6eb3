"""Real models in a real registry, for promotions: tiny XGBoost models of one table, logged once and registered under many names."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelStatus

from tests.commands import Answer, Workplace
from tests.engines.conftest import MlflowServer
from toolkit import Dataset, Experiment, Metric, Split, XGBoost
from toolkit.core.encoding import encode
from toolkit.core.model_spec import FittedRows, ModelPackage, package
from toolkit.core.registry import registration_tags
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_run import MlflowRun
from toolkit.engines.sklearn_splits import split
from toolkit.final_model import fit_and_test

NUM_ROWS = 1_600
FEATURES = ("a", "b", "c", "region")

# The user's file. `{load}` and `{gates}` are expressions; `rows.csv` and others lie beside it.
EXPERIMENT = """
import pandas as pd
from toolkit import Dataset, Experiment, Loaded, Metric, Split, XGBoost
from toolkit.core.gates import Gate

{body}

def experiment():
    return Experiment(
        name={name!r},
        dataset=Dataset(load={load}, label={label!r}, key="id", categorical=("region",)),
        model=XGBoost(num_boost_round=40, early_stopping_rounds=None, params={{"nthread": 1}}),
        space=None,
        metric=Metric("auc", "maximize"),
        split=Split(seed=1, test=0.4),
        gates=tuple([{gates}]),
    )
"""
GATES = 'Gate("auc", at_least=0.7), Gate("auc", no_worse_than_champion_by=0.0)'


@cache
def rows() -> pd.DataFrame:
    """Labelled rows with a key, and a region in which little is known of the label."""
    random = np.random.default_rng(3)
    frame = pd.DataFrame({name: random.normal(size=NUM_ROWS).round(4) for name in "abc"})
    frame["region"] = random.choice(["north", "south", "west"], NUM_ROWS, p=[0.6, 0.37, 0.03])
    signal = frame.a + 0.7 * frame.b - 0.4 * frame.c + np.where(frame.region == "south", 0.5, 0.0)
    frame["y"] = (random.random(NUM_ROWS) < 1 / (1 + np.exp(-2 * signal))).astype(int)
    frame["id"] = np.arange(NUM_ROWS)
    return frame


def experiment(
    *, rounds: int = 30, categorical: tuple[str, ...] = ("region",), exclude: tuple[str, ...] = (), **changes: Any
) -> Experiment:
    fields: dict[str, Any] = {
        "name": "churn",
        "dataset": Dataset(load="rows.csv", label="y", key="id", categorical=categorical, exclude=exclude),
        "model": XGBoost(num_boost_round=rounds, early_stopping_rounds=None, params={"nthread": 1, "max_depth": 3, "learning_rate": 0.2}),
        "space": None,
        "metric": Metric("auc", "maximize"),
        "split": Split(seed=1, test=0.4),
    }
    return Experiment(**{**fields, **changes})


def train(of: Experiment, frame: pd.DataFrame | None = None, protocol: str = "honest", kind: str = "file") -> ModelPackage:
    loaded = encode(rows() if frame is None else frame, kind, "rows.csv", of.dataset, of.model.task)
    parts = split(loaded, of.split, protocol)  # type: ignore[arg-type]
    final, evaluation = fit_and_test(of, protocol, parts, loaded.classes, {}, None)  # type: ignore[arg-type]
    return package(of, protocol, loaded, FittedRows.of(loaded, parts), final, evaluation, params={}, study=None, versions={}, git_commit="")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Logged:
    uri: str
    run_id: str
    experiment_id: str
    spec: Any
    folder: Path
    """Where the server keeps its artifacts."""


@dataclass
class Shop:
    """One tracking server with its registry, and the models that tests share."""

    server: MlflowServer
    uri: str

    def log(self, packed: ModelPackage) -> Logged:
        run = MlflowRun(tracking_uri=self.server.uri, experiment_name="churn", run_name="train", tags={})
        with run:
            uri = run.log_model(packed)
        model_id = uri.removeprefix("models:/")
        location = self.registry.call_tracking("get_logged_model", model_id).artifact_location
        return Logged(uri, run.run_id, run.experiment_id, packed.spec, self._folder_of(location))

    def _folder_of(self, location: str) -> Path:
        return self.server.folder / "artifacts" / urllib.parse.urlparse(location).path.lstrip("/")

    @property
    def registry(self) -> Registry:
        return Registry.open(None, self.server.uri)

    def register(self, name: str, logged: Logged, **tags: str) -> int:
        """The version's number; it is challenger."""
        version = self.registry.create_version(name, logged.uri, run_id=logged.run_id, tags={**registration_tags(logged.spec), **tags})
        return version.version

    def aliases(self, name: str) -> dict[str, int]:
        return dict(self.registry.model(name).aliases)

    @cache  # noqa: B019  one shop a session
    def model(self, name: str) -> Logged:
        """By what is special about it; see MODELS."""
        return self.log(MODELS[name]())

    def tampered(self, edit: Callable[[Path], None], model: str = "good") -> Logged:
        """A model like another one, of which `edit` changes files behind MLflow's back."""
        genuine, call = self.model(model), self.registry.call_tracking
        logged = call("create_logged_model", genuine.experiment_id, name="model", source_run_id=genuine.run_id, tags=[], params=[])
        folder = self._folder_of(logged.artifact_location)
        shutil.copytree(genuine.folder, folder)
        edit(folder)
        call("finalize_logged_model", logged.model_id, LoggedModelStatus.READY)
        return replace(genuine, uri=f"models:/{logged.model_id}", folder=folder)

    def __hash__(self) -> int:
        return id(self)


def edit_spec(**changes: Any) -> Callable[[Path], None]:
    """Change `spec.json`: NaN and infinity may be among the values."""

    def edit(folder: Path) -> None:
        path = next(folder.rglob("spec.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def _shuffled_south() -> pd.DataFrame:
    """Rows in which the label of the south says the contrary."""
    frame = rows().copy()
    south = frame.region == "south"
    frame.loc[south, "y"] = 1 - frame.loc[south, "y"]
    return frame


def _three_classes() -> pd.DataFrame:
    frame = rows().copy()
    frame.loc[frame.a > 1, "y"] = 2
    return frame


def _with_text() -> pd.DataFrame:
    return rows().assign(a=np.where(rows().a > 0, "high", "low"))


MULTICLASS = XGBoost(objective="multi:softprob", num_boost_round=3, early_stopping_rounds=None, params={"nthread": 1})

MODELS: dict[str, Callable[[], ModelPackage]] = {
    "good": lambda: train(experiment()),
    "weak": lambda: train(experiment(rounds=2)),
    "alike": lambda: train(experiment(rounds=27)),
    "bad in the south": lambda: train(experiment(rounds=60), _shuffled_south()),
    "published": lambda: train(experiment(), protocol="published"),
    "fallback": lambda: train(experiment(), kind="fallback_sample"),
    "synthetic": lambda: train(experiment(), kind="synthetic"),
    "of a split that promises nothing": lambda: train(experiment(split=Split(seed=1, test=0.4, keep_duplicates_together=False))),
    "of another split": lambda: train(experiment(rounds=2, split=Split(seed=2, test=0.4))),
    "with one feature less": lambda: train(experiment(rounds=2, exclude=("c",))),
    "with a text feature": lambda: train(experiment(rounds=2, categorical=("a", "region")), _with_text()),
    "of three classes": lambda: train(experiment(model=MULTICLASS, metric=Metric("mlogloss", "minimize")), _three_classes()),
}


# ---- scenes

Model = str | Callable[[Shop], Logged]


@dataclass
class Scene:
    """A folder with an experiment, and a registered model with a champion and a challenger."""

    shop: Shop
    workplace: Workplace
    model: str
    uri: str

    def run(self, *arguments: str, experiment: str | None = "./churn.py") -> Answer:
        chosen = ("--experiment", experiment) if experiment else ()
        return self.workplace.here("promote", self.model, "--tracking-uri", self.uri, *chosen, *arguments)

    def write(self, name: str, frame: pd.DataFrame) -> str:
        frame.to_csv(self.workplace.folder / name, index=False)
        return name


@dataclass(frozen=True)
class Case:
    """What differs from the promotion that goes through, the exit code, and a part of what is said."""

    code: int
    message: str
    arguments: tuple[str, ...] = ()
    challenger: Model = "good"
    champion: Model | None = "weak"
    gates: str = GATES
    experiment: dict[str, str] = field(default_factory=dict)
    chosen: str | None = "./churn.py"
    tags: dict[str, str] = field(default_factory=dict)
    before: Callable[[Scene], Any] | None = None


def set_up(shop: Shop, workplace: Workplace, case: Case, number: object) -> Scene:
    scene = Scene(shop, workplace, f"churn_{number}", shop.uri)
    scene.write("rows.csv", rows())
    fields = {"name": "churn", "load": '"rows.csv"', "label": "y", "body": "", **case.experiment}
    (workplace.folder / "churn.py").write_text(EXPERIMENT.format(gates=case.gates, **fields))

    def logged(model: Model) -> Logged:
        return shop.model(model) if isinstance(model, str) else model(shop)

    if case.champion is not None:
        champion = shop.register(scene.model, logged(case.champion))
        shop.registry.set_alias(scene.model, "champion", champion)
    shop.register(scene.model, logged(case.challenger), **case.tags)
    if case.before:
        case.before(scene)
    return scene


def holdout(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Scene], None]:
    """`holdout.csv`, of rows that nobody has seen."""

    def write(scene: Scene) -> None:
        random = np.random.default_rng(7)
        fresh = rows().copy()
        for name in "abc":
            fresh[name] = (fresh[name] + random.normal(0, 0.01, len(fresh))).round(6)
        fresh["id"] += 1_000_000
        scene.write("holdout.csv", change(fresh))

    return write


def text_of(answer: Answer) -> str:
    return " ".join(f"{answer.out} {answer.err}".split())


HOLDOUT = ("--holdout", "holdout.csv")
