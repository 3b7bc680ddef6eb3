"""Ways in which a challenger must not become champion, each of them one change to a promotion that otherwise goes through; and the good ways.

A real MLflow server on SQLite; aliases are read back from it.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.commands import Answer, Workplace, workplace
from tests.engines.conftest import MlflowServer, Proxy, Request
from tests.engines.promote_fixtures import EXPERIMENT, GATES, Logged, Shop, edit_spec, experiment, rows
from toolkit import Experiment
from toolkit.core.errors import RegistryError
from toolkit.core.gates import IMPLICIT, Gate
from toolkit.core.promotion import audit_records
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_store import MlflowStore
from toolkit.promote import promote

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]

Model = str | Callable[[Shop], Logged]


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    return Shop(mlflow_server, mlflow_server.uri)


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


# ---- hold-outs


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


def seen(change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame) -> Callable[[Scene], None]:
    """`holdout.csv`, of rows that the models were fitted on."""
    return lambda scene: scene.write("holdout.csv", change(rows()))  # type: ignore[return-value]


HOLDOUT = ("--holdout", "holdout.csv")


# ---- models that are not what they seem


def tampered(edit: Callable[[Path], Any], model: str = "good") -> Callable[[Shop], Logged]:
    return lambda shop: shop.tampered(edit, model)


def flip_a_byte(folder: Path) -> None:
    path = next(folder.rglob("toolkit_model/model.ubj"), None) or next(folder.rglob("model.ubj"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = [folder] if name == "." else list(folder.rglob(name))
        assert found, name
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def broken_archive(folder: Path) -> None:
    path = next(folder.rglob("training_rows.npz"))
    path.write_bytes(path.read_bytes()[:-20])


NOT_A_NUMBER = {"method": "sigmoid", "slope": float("nan"), "intercept": 0.0}
FALLBACK = {"load": "load", "body": 'def load():\n    return Loaded(pd.read_csv("rows.csv"), "fallback_sample", "generated")'}
GOOD_GATE = 'Gate("auc", at_least=0.7)'

CASES: dict[str, Case] = {
    # The experiment's own gates.
    "below an absolute gate": Case(3, "auc_at_least: auc 0.", gates='Gate("auc", at_least=0.999)'),
    "loss above its limit": Case(3, "logloss_at_most: logloss 0.", gates='Gate("logloss", at_most=0.01)'),
    "too good to be true": Case(3, "is above 0.6", gates=f'{GOOD_GATE}, Gate("auc", at_most=0.6)'),
    "worse than the champion": Case(3, "auc_no_worse_than_champion_by: auc", challenger="weak", champion="good"),
    "within the margin, its bound beyond": Case(
        3, "auc_no_worse_than_champion_by: auc", challenger="alike", champion="good", gates='Gate("auc", no_worse_than_champion_by=0.0001)'
    ),
    "a loss that is worse": Case(
        3, "logloss_no_worse_than_champion_by: logloss", challenger="weak", champion="good", gates='Gate("logloss", no_worse_than_champion_by=0)'
    ),
    "one slice loses": Case(
        3,
        "the worst is 'south'",
        challenger="bad in the south",
        gates='Gate("auc", at_least=0.5), Gate("auc", no_worse_than_champion_by=0.05, by="region")',
    ),
    "a slice below an absolute gate": Case(3, "of 'region' are below", gates='Gate("auc", at_least=0.99, by="region")'),
    "no slice with enough rows": Case(3, "no value of 'region' has 5,000 rows", gates='Gate("auc", at_least=0.5, by="region", min_rows=5000)'),
    "slices of an unknown column": Case(
        3, "by must be a column of the hold-out, got 'regoin'; did you mean 'region'?", gates='Gate("auc", at_least=0.5, by="regoin")'
    ),
    "slices by nearly every row": Case(
        3, "auc_at_least_by_id: ", gates='Gate("auc", at_least=0.5, by="id", min_rows=1)'
    ),
    "slices of one class each": Case(3, "auc_at_least_by_y: 2 of 2 slices", gates='Gate("auc", at_least=0.0, by="y")'),
    "too large": Case(3, "model_mib_at_most: model_mib", gates=f'{GOOD_GATE}, Gate("model_mib", at_most=0.0001)'),
    "too slow": Case(
        3, "predict_s_per_million_rows_at_most", gates=f'{GOOD_GATE}, Gate("predict_s_per_million_rows", at_most=0.000001)'
    ),
    "no gates": Case(1, "an experiment without any promotes nothing, got none in 'churn'; add gates=", gates=""),
    "only gates against a champion that is not there": Case(
        3, "quality_demanded", champion=None, gates='Gate("auc", no_worse_than_champion_by=0.1), Gate("model_mib", at_most=9)'
    ),
    "only a ceiling, and no champion": Case(3, "quality_demanded", champion=None, gates='Gate("auc", at_most=0.99)'),
    "a gate of another task": Case(1, "metric: unknown for a binary task, got 'ndcg'", gates='Gate("ndcg", at_least=0.1)'),
    "one gate twice": Case(1, "gates: each once", gates=f"{GOOD_GATE}, {GOOD_GATE}"),
    # The challenger.
    "made under the published protocol": Case(3, "honest_protocol: made under the published protocol", challenger="published"),
    "trained on the fallback sample": Case(3, "real_data: the challenger was trained on the generated sample", challenger="fallback"),
    "predicts no numbers": Case(
        3, "finite_metrics: model: predictions must be finite", challenger=tampered(edit_spec(calibration=NOT_A_NUMBER))
    ),
    "its bytes were changed": Case(3, "model_loads: could not be judged: PortableModelError: model.ubj", challenger=tampered(flip_a_byte)),
    "its bytes are gone": Case(3, "model_loads", challenger=tampered(remove("toolkit_model/model.ubj"))),
    "registered from a model of somebody else": Case(
        3, "the model must hold toolkit_model/spec.json, which the toolkit writes", challenger=tampered(remove("toolkit_model"))
    ),
    "spec of a format to come": Case(3, "must have the format 1, got 99", challenger=tampered(edit_spec(format=99))),
    "spec without an entry": Case(
        3, "model_loads: could not be judged: KeyError", challenger=tampered(lambda folder: drop_from_spec(folder, "task"))
    ),
    "claims figures that it has not": Case(
        3,
        "auc_at_least: auc 0.",
        challenger=tampered(edit_spec(metrics={"train": {}, "validation": {"auc": 0.999}, "test": {"auc": 0.999}}), "weak"),
        gates='Gate("auc", at_least=0.95)',
    ),
    "no logged example": Case(3, "model_loads", challenger=tampered(remove("input_example.json"))),
    "of another task than the experiment": Case(
        3, "model_loads: its task is 'multiclass'", challenger=tampered(edit_spec(task="multiclass", classes=[0, 1, 2]))
    ),
    "its training rows are gone": Case(3, "holdout_unseen_by_challenger", challenger=tampered(remove("training_rows.npz"))),
    "its training rows were cut short": Case(3, "training_rows.npz must be as training wrote it", challenger=tampered(broken_archive)),
    "of another experiment, though its tag says otherwise": Case(
        3, "its experiment is 'other', the experiment's is 'churn'", challenger=tampered(edit_spec(experiment="other"))
    ),
    # Its place beside the champion.
    "needs a feature more": Case(3, "signature: it needs 'c', which the champion does not", champion="with one feature less"),
    "a feature of another type": Case(3, "signature: 'a' is a number, for the champion a category", champion="with a text feature"),
    "other classes": Case(3, "signature: task 'binary', the champion's is 'multiclass'", champion="of three classes"),
    "champion that predicts no numbers": Case(
        3, "auc_no_worse_than_champion_by: model: predictions must be finite", champion=tampered(edit_spec(calibration=NOT_A_NUMBER), "weak")
    ),
    "champion whose rows are gone": Case(3, "holdout_unseen_by_champion", champion=tampered(remove("training_rows.npz"), "weak")),
    "champion whose bytes were changed": Case(
        1, "a model to compare with, got model.ubj must be as training wrote it", champion=tampered(flip_a_byte, "weak")
    ),
    "champion whose artifacts are gone": Case(1, "(champion): there, and readable", champion=tampered(remove("."), "weak")),
    "challenger whose artifacts are gone": Case(1, "(challenger): there, and readable", challenger=tampered(remove("."))),
    # The hold-out.
    "the hold-out is the fallback sample": Case(3, "real_data: the hold-out is the generated sample", experiment=FALLBACK),
    "the champion was fitted on it": Case(3, "holdout_unseen_by_champion: the champion was fitted on", champion="of another split"),
    "both were fitted on it, by key": Case(3, "of the hold-out, by their key", HOLDOUT, before=seen()),
    "both were fitted on it, by their rows": Case(3, "was fitted on rows equal to", HOLDOUT, before=seen(lambda frame: frame.drop(columns="id"))),
    "both were fitted on equal rows, with other keys": Case(
        3, "was fitted on rows equal to", HOLDOUT, before=seen(lambda frame: frame.assign(id=frame.id + 99_999))
    ),
    "no hold-out": Case(3, "holdout_present: data: no such file", HOLDOUT),
    "hold-out without rows": Case(3, "holdout_present: data: needs rows", HOLDOUT, before=holdout(lambda frame: frame.head(0))),
    "hold-out without the label": Case(
        3, "holdout_present: dataset.label: no such column", HOLDOUT, before=holdout(lambda frame: frame.drop(columns="y"))
    ),
    "hold-out of one class": Case(3, "finite_metrics: no value: auc", HOLDOUT, before=holdout(lambda frame: frame[frame.y == 1])),
    "hold-out of unknown classes": Case(3, "holdout_present: label", HOLDOUT, before=holdout(lambda frame: frame.assign(y=frame.y + 1))),
    "hold-out with labels missing": Case(
        3, "holdout_present: label", HOLDOUT, before=holdout(lambda frame: frame.assign(y=frame.y.where(frame.index > 3)))
    ),
    "hold-out without a feature": Case(3, "lacks features of the training table", HOLDOUT, before=holdout(lambda frame: frame.drop(columns="b"))),
    "hold-out with text for a number": Case(3, "holdout_present: feature 'a'", HOLDOUT, before=holdout(lambda frame: frame.assign(a="high"))),
    "hold-out with an infinite value": Case(3, "holdout_present: feature 'a'", HOLDOUT, before=holdout(lambda frame: frame.assign(a=np.inf))),
    "hold-out with a key twice": Case(3, "holdout_present: dataset.key", HOLDOUT, before=holdout(lambda frame: frame.assign(id=5))),
    # What was asked.
    "override without a reason": Case(1, "--override needs --reason, got none for auc_at_least", ("--override", "auc_at_least")),
    "reason without an override": Case(2, "--reason is of an --override", ("--reason", "because")),
    "override of an unknown gate": Case(1, "unknown gate, got 'auc'", ("--override", "auc", "--reason", "because")),
    "override of the fallback gate": Case(
        1, "this gate is never overridden, got real_data", ("--override", "real_data", "--reason", "because"), challenger="fallback"
    ),
    "override of the missing hold-out": Case(
        1, "this gate is never overridden, got holdout_present", (*HOLDOUT, "--override", "holdout_present", "--reason", "because")
    ),
    "override of another gate than failed": Case(
        3, "auc_at_least: auc", ("--override", "signature", "--reason", "because"), gates='Gate("auc", at_least=0.999)'
    ),
    "gates changed by a flag": Case(
        1, "--set: the gates are the experiment's own", ("--set", "gates[0].at_least=0.1"), gates='Gate("auc", at_least=0.999)'
    ),
    "another experiment than it was trained for": Case(1, "is of the experiment 'churn', got 'other'", experiment={"name": "other"}),
    "an experiment with another label": Case(3, "its label is 'y', the experiment's is 'a'", experiment={"label": "a"}),
    "no experiment to be found": Case(1, "give --experiment", chosen=None, tags={"toolkit.experiment": "churn"}),
    "a tag that names other code": Case(1, "give --experiment", chosen=None, tags={"toolkit.experiment": "os:abort"}),
    "a tag that names a file elsewhere": Case(
        1, "give --experiment /etc/churn.py", chosen=None, tags={"toolkit.experiment_source": "/etc/churn.py"}
    ),
}  # fmt: skip


def drop_from_spec(folder: Path, name: str) -> None:
    path = next(folder.rglob("spec.json"))
    spec = json.loads(path.read_text())
    del spec[name]
    path.write_text(json.dumps(spec))


def text_of(answer: Answer) -> str:
    return " ".join(f"{answer.out} {answer.err}".split())


@pytest.mark.parametrize("name", CASES)
def test_does_not_become_champion(name: str, shop: Shop, workplace: Workplace) -> None:
    case = CASES[name]
    scene = set_up(shop, workplace, case, list(CASES).index(name))
    before = shop.aliases(scene.model)
    answer = scene.run(*case.arguments, experiment=case.chosen)
    assert answer.code == case.code, answer.err
    assert case.message in text_of(answer)
    assert "Traceback" not in answer.err
    assert shop.aliases(scene.model) == before
    assert set(before) == ({"champion", "challenger"} if case.champion else {"challenger"})
    if case.code == 3:
        (line, *_) = [line for line in answer.err.splitlines() if line.startswith("not promoted: ")]
        assert line
        gates = json.loads(shop.registry.version(scene.model, before["challenger"]).tags["toolkit.gates"])
        assert any(gate["status"] == "failed" for gate in gates), "the version says why"
    else:
        assert answer.err.count("error: ") == (1 if case.code == 1 else answer.err.count("error: "))


def test_there_are_enough_ways() -> None:
    assert len(CASES) >= 30


# ---- a registry that answers half, or no


@dataclass
class Fault:
    """Calls of one kind go wrong; all others go through."""

    call: str
    method: str = ""
    alias: str = ""
    status: int = 500
    body: bytes = b"upstream went away"
    num_hits: int = 0

    def __call__(self, request: Request, forward: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes] | None:
        is_meant = (request.call or request.path).startswith(self.call) and self.method in ("", request.method)
        if not is_meant or self.alias not in f"{request.path}{request.body!r}":
            return None
        self.num_hits += 1
        return self.status, self.body


REFUSAL = json.dumps({"error_code": "PERMISSION_DENIED", "message": "not yours"}).encode()
ABSENT = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}).encode()

FAULTS: dict[str, Fault] = {
    "no model": Fault("registered-models/get"),
    "no version": Fault("model-versions/get"),
    "an empty version": Fault("model-versions/get", status=200, body=b"{}"),
    "champion denied though listed": Fault("registered-models/alias", "GET", "champion", 404, ABSENT),
    "an empty champion": Fault("registered-models/alias", "GET", status=200, body=b"{}"),
    "half of JSON": Fault("registered-models/alias", "GET", status=200, body=b'{"model_version": {"name":'),
    "no run": Fault("runs/create"),
    "no metrics": Fault("runs/log-batch"),
    "no artifact": Fault("/api/2.0/mlflow-artifacts", "PUT"),
    "no download": Fault("/api/2.0/mlflow-artifacts", "GET"),
    "no tag of the version": Fault("model-versions/set-tag"),
    "no tag of the model": Fault("registered-models/set-tag"),
    "no alias": Fault("registered-models/alias", "POST"),
    "no champion": Fault("registered-models/alias", "POST", '"champion"'),
    "no permission for the champion": Fault("registered-models/alias", "POST", '"champion"', 403, REFUSAL),
    "no permission for tags": Fault("model-versions/set-tag", status=403, body=REFUSAL),
}


@pytest.mark.fault
@pytest.mark.parametrize("name", FAULTS)
def test_a_registry_that_answers_half(
    name: str,
    shop: Shop,
    workplace: Workplace,
    make_proxy: Callable[[MlflowServer], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # MLflow's own client of artifacts tries for minutes, and has no other switch.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    scene = set_up(shop, workplace, Case(1, ""), f"half_{list(FAULTS).index(name)}")
    before = shop.aliases(scene.model)
    proxy = make_proxy(shop.server)
    proxy.rule = FAULTS[name]
    scene.uri = proxy.uri
    answer = scene.run()
    assert FAULTS[name].num_hits
    assert answer.code == 1, answer.err
    assert answer.err.count("error: ") == 1 and "Traceback" not in answer.err and not answer.out
    assert shop.aliases(scene.model) == before
    if "permission" in name:
        assert "not yours" in answer.err and "ask the model's owner" in answer.err
    if FAULTS[name].method == "POST" or "tag" in name:
        scene.uri = shop.uri
        assert scene.run().code == 0, "nothing is left behind that keeps the next one out"
        assert shop.aliases(scene.model) == {"champion": 2, "previous_champion": 1}


# ---- two at once


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Results or exceptions."""
    results: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


@pytest.fixture
def quiet_signals(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    monkeypatch.setenv("TOOLKIT_HOME", str(workplace.folder / ".toolkit"))
    yield workplace


@pytest.mark.parametrize("versions", [(2, 2), (2, 3)])
def test_of_two_at_once_one_wins(versions: tuple[int, int], shop: Shop, quiet_signals: Workplace) -> None:
    """Both have judged against the same champion before either moves."""
    scene = set_up(shop, quiet_signals, Case(0, ""), f"at_once_{versions[1]}")
    shop.register(scene.model, shop.model("alike"))
    both_have_looked = threading.Barrier(2)

    def load() -> pd.DataFrame:
        both_have_looked.wait(60)
        return rows()

    chosen = churn(load)
    outcomes = in_threads(*(partial(promote, f"{scene.model}/{version}", experiment=chosen, tracking_uri=shop.uri) for version in versions))
    (won,) = [each for each in outcomes if not isinstance(each, Exception)]
    (lost,) = [each for each in outcomes if isinstance(each, Exception)]
    assert won.is_promoted and isinstance(lost, RegistryError), outcomes
    aliases = shop.aliases(scene.model)
    assert (aliases["champion"], aliases["previous_champion"]) == (won.version, 1)
    assert len([tag for tag in shop.registry.model(scene.model).tags if tag.startswith("toolkit.audit.")]) == 1


def test_a_champion_that_changes_while_it_is_judged(shop: Shop, quiet_signals: Workplace) -> None:
    scene = set_up(shop, quiet_signals, Case(0, ""), "changes")
    third = shop.register(scene.model, shop.model("alike"))
    shop.registry.set_alias(scene.model, "challenger", 2)

    def load() -> pd.DataFrame:
        shop.registry.set_alias(scene.model, "champion", third)
        return rows()

    with pytest.raises(RegistryError, match=r"the one it was judged against, version 1, got version 3; run toolkit promote again"):
        promote(scene.model, experiment=churn(load), tracking_uri=shop.uri)
    assert shop.aliases(scene.model) == {"champion": third, "challenger": 2}


def test_a_challenger_that_changes_while_it_is_judged(shop: Shop, quiet_signals: Workplace) -> None:
    scene = set_up(shop, quiet_signals, Case(0, ""), "replaced")

    def load() -> pd.DataFrame:
        shop.register(scene.model, shop.model("alike"))
        return rows()

    with pytest.raises(RegistryError, match="the one that was judged, version 2, got version 3"):
        promote(scene.model, experiment=churn(load), tracking_uri=shop.uri)
    assert shop.aliases(scene.model) == {"champion": 1, "challenger": 3}


def churn(load: Callable[[], pd.DataFrame]) -> Experiment:
    gates = (Gate("auc", at_least=0.6), Gate("auc", no_worse_than_champion_by=0.0))
    plain = experiment()
    return replace(plain, dataset=replace(plain.dataset, load=load), gates=gates)


# ---- names


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("chrun_names", "registered model: one of"),
        ("churn_names/77", "version of churn_names: one that exists, got 77; there are 1, 2"),
        ("churn_names@canary", "alias of churn_names: one that is set, got 'canary'"),
        ("churn_names@", "MODEL: a registered name, NAME@ALIAS or NAME/VERSION"),
    ],
)
def test_unknown_names(model: str, message: str, shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(1, ""), "names")
    before = shop.aliases(scene.model)
    answer = replace(scene, model=model).run()
    assert (answer.code, shop.aliases(scene.model)) == (1, before)
    assert message in text_of(answer)


# ---- the good ways


def test_the_first_champion_then_a_better_one(shop: Shop, workplace: Workplace) -> None:
    """The experiment is found again by what the version was registered from."""
    source = {"toolkit.experiment_source": str(workplace.folder / "churn.py")}
    scene = set_up(shop, workplace, Case(0, "", challenger="weak", champion=None, tags=source), "good_ways")
    first = scene.run("--json", experiment=None)
    assert first.code == 0, first.err
    answer = first.json
    assert (answer["version"], answer["champion_before"], answer["is_promoted"]) == (1, None, True)
    statuses = {gate["gate"]: gate["status"] for gate in answer["gates"]}
    assert list(statuses) == [*IMPLICIT, "auc_at_least", "auc_no_worse_than_champion_by"]
    assert {name for name, status in statuses.items() if status == "not_applicable"} == {
        "signature", "holdout_unseen_by_champion", "auc_no_worse_than_champion_by"
    }  # fmt: skip
    assert shop.aliases(scene.model) == {"champion": 1}

    again = scene.run(experiment=None)
    assert again.code == 0 and "version 1 of churn_good_ways is champion already" in again.out

    shop.register(scene.model, shop.model("good"), **source)
    second = scene.run("--json", experiment=None)
    assert second.code == 0, second.err
    answer = second.json
    assert shop.aliases(scene.model) == {"champion": 2, "previous_champion": 1}
    (relative,) = [gate for gate in answer["gates"] if gate["gate"] == "auc_no_worse_than_champion_by"]
    assert relative["observed"] == answer["metrics"]["challenger"]["auc"] > relative["champion"] == answer["metrics"]["champion"]["auc"]
    assert 0 < relative["bound"] < relative["observed"] - relative["champion"]
    check_record(scene, answer)


def check_record(scene: Scene, answer: Any) -> None:
    """What a promotion leaves: report, run, tags of the version, audit record."""
    version = scene.shop.registry.version(scene.model, answer["version"])
    gates = json.loads(version.tags["toolkit.gates"])
    assert [(gate["gate"], gate["status"]) for gate in gates] == [(gate["gate"], gate["status"]) for gate in answer["gates"]]
    assert version.metrics["holdout"] == answer["metrics"]["challenger"]
    assert version.tags["toolkit.judged_by"] == answer["run_id"]
    store = MlflowStore(scene.shop.uri)
    run = store.call("get_run", answer["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["toolkit.role"] == "promotion" and run.data.tags["toolkit.decision"] == "promote"
    assert run.data.metrics["challenger_auc"] == pytest.approx(answer["metrics"]["challenger"]["auc"])
    report = Path(answer["report_path"]).read_text()
    assert "Promote version 2" in report and "in place of version 1" in report and "auc_no_worse_than_champion_by" in report
    assert "http://" not in report.replace(scene.shop.uri, "").replace("http://www.w3.org", ""), "it needs nothing but itself"
    (audit,) = audit_records(version.tags)
    assert (audit.action, audit.version, audit.champion_before) == ("promote", 2, 1)
    assert audit.decision["run_id"] == answer["run_id"]


def test_an_override_is_on_record(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(0, "", challenger="weak", champion="good"), "overridden")
    asked = ("--override", "auc_no_worse_than_champion_by", "--override", "signature", "--reason", "risk agreed", "--reason", "to be safe")
    answer = scene.run("--json", *asked)
    assert answer.code == 0, answer.err
    assert "nothing to override: signature did not fail" in answer.err
    statuses = {gate["gate"]: (gate["status"], gate["override_reason"]) for gate in answer.json["gates"]}
    assert statuses["auc_no_worse_than_champion_by"] == ("overridden", "risk agreed")
    assert statuses["signature"] == ("passed", "")
    version = shop.registry.version(scene.model, 2)
    assert "risk agreed" in version.tags["toolkit.gates"]
    (audit,) = audit_records(version.tags)
    assert audit.reason == "auc_no_worse_than_champion_by overridden: risk agreed"
    assert "risk agreed" in Path(answer.json["report_path"]).read_text()
    assert shop.aliases(scene.model) == {"champion": 2, "previous_champion": 1}


def test_synthetic_data_gets_a_notice(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(0, "", challenger="synthetic"), "synthetic")
    answer = scene.run()
    assert answer.code == 0, answer.err
    assert "warning: the challenger was trained on synthetic data" in answer.err


def test_a_holdout_of_its_own_without_the_key(shop: Shop, workplace: Workplace) -> None:
    case = Case(0, "", before=holdout(lambda frame: frame.drop(columns="id")), champion="of another split")
    scene = set_up(shop, workplace, case, "own_holdout")
    answer = scene.run("--json", *HOLDOUT)
    assert answer.code == 0, answer.err
    assert answer.json["holdout"]["num_rows"] == len(rows())


def test_from_one_registry_to_another(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(0, "", champion=None), "copied")
    target_uri = f"sqlite:///{workplace.folder}/target.db"
    target = Registry.open(target_uri, target_uri, create=True)
    asked = ("--from-registry", shop.uri, "--to-registry", target_uri)
    first = scene.run("--json", *asked)
    assert first.code == 0, first.err
    assert target.model(scene.model).aliases == {"champion": 1}
    copied = target.version(scene.model, 1)
    assert copied.tags["toolkit.copied_from.version"] == "1" and "toolkit.gates" in copied.tags
    again = scene.run(*asked)
    assert again.code == 0 and "is champion already" in again.out

    shop.register(scene.model, shop.model("weak"))
    refused = scene.run(*asked)
    assert refused.code == 3, refused.err
    assert target.model(scene.model).aliases == {"champion": 1} and len(target.versions(scene.model)) == 1
