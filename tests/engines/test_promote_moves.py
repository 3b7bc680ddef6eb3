"""Promotions that go through, that a registry does not let through, and that get in each other's way. A real MLflow server on SQLite."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.commands import Workplace, workplace
from tests.engines.conftest import MlflowServer, Proxy, Request
from tests.engines.promote_fixtures import HOLDOUT, Case, Scene, Shop, experiment, holdout, rows, set_up, train
from toolkit import Dataset, Experiment, Gate, Metric, Split, XGBoost
from toolkit.core import comparison
from toolkit.core.errors import RegistryError
from toolkit.core.gates import IMPLICIT, Status
from toolkit.core.promotion import audit_records
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_store import MlflowStore
from toolkit.promote import promote

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    return Shop(mlflow_server, mlflow_server.uri)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """How good the bound is, is tested elsewhere."""
    monkeypatch.setattr(comparison, "NUM_DRAWS", 400)


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
def home(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    monkeypatch.setenv("TOOLKIT_HOME", str(workplace.folder / ".toolkit"))
    yield workplace


@pytest.mark.parametrize("versions", [(2, 2), (2, 3)])
def test_of_two_at_once_one_wins(versions: tuple[int, int], shop: Shop, home: Workplace) -> None:
    """Both have judged against the same champion before either moves."""
    scene = set_up(shop, home, Case(0, ""), f"at_once_{versions[1]}")
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


def test_a_champion_that_changes_while_it_is_judged(shop: Shop, home: Workplace) -> None:
    scene = set_up(shop, home, Case(0, ""), "changes")
    third = shop.register(scene.model, shop.model("alike"))
    shop.registry.set_alias(scene.model, "challenger", 2)

    def load() -> pd.DataFrame:
        shop.registry.set_alias(scene.model, "champion", third)
        return rows()

    with pytest.raises(RegistryError, match=r"the one it was judged against, version 1, got version 3; run toolkit promote again"):
        promote(scene.model, experiment=churn(load), tracking_uri=shop.uri)
    assert shop.aliases(scene.model) == {"champion": third, "challenger": 2}


def test_a_challenger_that_changes_while_it_is_judged(shop: Shop, home: Workplace) -> None:
    scene = set_up(shop, home, Case(0, ""), "replaced")

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


# ---- every task


def table() -> pd.DataFrame:
    """Labels of every kind from one signal; weights, and groups of eight rows."""
    random = np.random.default_rng(11)
    frame = pd.DataFrame({name: random.normal(size=1_600).round(4) for name in "abc"})
    signal = frame.a + 0.7 * frame.b + random.normal(0, 0.5, len(frame))
    frame["amount"] = signal.round(3)
    frame["grade"] = np.where(signal > 0.7, "high", np.where(signal < -0.7, "low", "middle"))
    frame["won"] = (signal > 0).astype(int)
    frame["customer"] = np.arange(len(frame)) // 8
    frame["weight"] = random.uniform(0.5, 2, len(frame)).round(3)
    frame["id"] = np.arange(len(frame))
    return frame


TASKS: dict[str, tuple[str, str, str, tuple[Gate, ...]]] = {
    # Objective, label, metric, gates.
    "regression": ("reg:squarederror", "amount", "rmse", (Gate("rmse", at_most=0.8), Gate("r2", no_worse_than_champion_by=0.0))),
    "multiclass": ("multi:softprob", "grade", "mlogloss", (Gate("auc", at_least=0.7), Gate("mlogloss", no_worse_than_champion_by=0.0))),
    "ranking": ("rank:ndcg", "won", "ndcg", (Gate("ndcg@3", at_least=0.6), Gate("ndcg", no_worse_than_champion_by=0.02))),
    "groups": ("binary:logistic", "won", "auc", (Gate("auc", at_least=0.7), Gate("auc", no_worse_than_champion_by=0.0))),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str, shop: Shop, home: Workplace) -> None:
    objective, label, metric, gates = TASKS[task]
    others = (*(name for name in ("amount", "grade", "won") if name != label), *(["weight"] if task == "ranking" else []))
    is_grouped = task in ("ranking", "groups")
    dataset = Dataset(load=table, label=label, key="id", weight=None if task == "ranking" else "weight", group="customer", exclude=others)
    chosen = Experiment(
        name="tasks",
        dataset=dataset,
        model=XGBoost(objective=objective, num_boost_round=30, early_stopping_rounds=None, params={"nthread": 1, "max_depth": 3}),
        space=None,
        metric=Metric(metric, "maximize" if metric in ("auc", "ndcg") else "minimize"),
        split=Split(by="group" if is_grouped else "random", seed=1, test=0.4),
        gates=gates,
    )
    name = f"task_{task}"
    weak = replace(chosen, model=replace(chosen.model, num_boost_round=1))
    for number, each in enumerate((weak, chosen), start=1):
        shop.register(name, shop.log(train(each, table())))
        result = promote(
            name, experiment=chosen, tracking_uri=shop.uri, overrides={gates[0].name: "the first may be weak"} if number == 1 else {}
        )
        assert result.is_promoted, result.failed
    relative = result.gates[-1]
    assert relative.status is Status.PASSED and relative.bound is not None and relative.champion is not None
    assert ("groups" if task == "groups" else "queries" if task == "ranking" else "rows") in relative.reason
    assert result.champion is not None and result.challenger is not None
    better = result.challenger.figures[metric] - result.champion.figures[metric]
    assert better > 0 if metric in ("auc", "ndcg") else better < 0
