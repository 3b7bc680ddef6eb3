"""Ways in which a challenger must not become champion, each of them one change to a promotion that otherwise goes through.

A real MLflow server on SQLite; aliases are read back from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.commands import Workplace, workplace
from tests.engines.conftest import MlflowServer
from tests.engines.promote_fixtures import HOLDOUT, Case, Logged, Scene, Shop, edit_spec, experiment, holdout, rows, set_up, text_of
from toolkit import Gate
from toolkit.core import comparison
from toolkit.core.data import DataContext
from toolkit.engines.mlflow_store import MlflowStore
from toolkit.promote_evidence import Candidate, Evidence, Once
from toolkit.promote_holdout import read_holdout

pytestmark = [pytest.mark.engine, pytest.mark.e2e]
__all__ = ["workplace"]


@pytest.fixture(scope="module")
def shop(mlflow_server: MlflowServer) -> Shop:
    return Shop(mlflow_server, mlflow_server.uri)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """How good the bound is, is tested elsewhere."""
    monkeypatch.setattr(comparison, "NUM_DRAWS", 400)


# ---- hold-outs


def seen(change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame) -> Callable[[Scene], None]:
    """`holdout.csv`, of rows that the models were fitted on."""
    return lambda scene: scene.write("holdout.csv", change(rows()))  # type: ignore[return-value]


def shifted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(a=frame.a + 0.00001)


def copied(frame: pd.DataFrame, num: int) -> pd.DataFrame:
    """Every row so many times, each with a key that nobody has seen."""
    copies = pd.concat([frame] * num, ignore_index=True)
    return copies.assign(id=copies.index + 5_000_000)


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
        3,
        "model_loads: could not be judged: PortableModelError: spec.json must have the entry task",
        challenger=tampered(lambda folder: drop_from_spec(folder, "task")),
    ),
    "spec without what only the summary asks": Case(
        3, "spec.json must have the entry threshold of the type int or float, got none", challenger=tampered(lambda folder: drop_from_spec(folder, "threshold"))
    ),
    "spec of data from nowhere": Case(3, "spec.json must have the entry data.kind", challenger=tampered(edit_spec(data={"location": "", "sha256": ""}))),
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
    "champion with a spec that is not whole": Case(
        1, "spec.json must have the entry study", champion=tampered(lambda folder: drop_from_spec(folder, "study"), "weak")
    ),
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
    "both were fitted on it, by keys written another way": Case(
        3, "of the hold-out, by their key", HOLDOUT, before=seen(lambda frame: shifted(frame).assign(id=[f" {key:07}.0" for key in frame.id], c=0.5))
    ),
    "fitted on equal rows, though its split promised nothing": Case(
        3,
        "holdout_unseen_by_challenger: the challenger was fitted on rows equal to 960 of 1,600 rows (60.0%) of the hold-out, though with other keys",
        HOLDOUT,
        challenger="of a split that promises nothing",
        before=seen(lambda frame: frame.assign(id=frame.id + 99_999)),
    ),
    "copies of such rows do not excuse each other": Case(
        3,
        "holdout_unseen_by_challenger: the challenger was fitted on rows equal to 1,920 of 3,200 rows (60.0%)",
        HOLDOUT,
        challenger="of a split that promises nothing",
        before=seen(lambda frame: copied(frame.assign(id=0), 2)),
    ),
    "too few rows to tell": Case(3, "auc_no_worse_than_champion_by: too few rows to tell: 90, at least 100", HOLDOUT, before=holdout(lambda frame: frame.head(90))),
    "many copies of few rows": Case(
        3,
        "auc_no_worse_than_champion_by: too few different rows to tell: 90, at least 100",
        HOLDOUT,
        before=holdout(lambda frame: copied(frame.head(90), 20)),
    ),
    "copies that would narrow the bound": Case(
        3, "draws of 150 different rows", HOLDOUT, challenger="alike", champion="good", before=holdout(lambda frame: copied(frame.head(150), 99))
    ),
    "hold-out of unknown categories": Case(
        3,
        "holdout_present: feature 'region': all of the hold-out's values are unknown to the challenger, for example 'R-",
        HOLDOUT,
        before=holdout(lambda frame: frame.assign(region="R-" + frame.region)),
    ),
    "slices of a column without values": Case(
        3,
        "column 'segment' is missing in every row of the hold-out",
        HOLDOUT,
        gates=f'{GOOD_GATE}, Gate("auc", at_least=0.0, by="segment")',
        before=holdout(lambda frame: frame.assign(segment=None)),
    ),
    "no hold-out": Case(1, "--holdout: data: no such file", HOLDOUT),
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


def test_a_refusal_as_json(shop: Shop, workplace: Workplace) -> None:
    scene = set_up(shop, workplace, Case(3, "", gates='Gate("auc", at_least=0.999), Gate("auc", no_worse_than_champion_by=0)'), "as_json")
    answer = scene.run("--json")
    assert answer.code == 3
    assert answer.out.count("\n") == 1 and answer.json["is_promoted"] is False and answer.json["champion_before"] == 1
    assert [gate["gate"] for gate in answer.json["gates"] if gate["status"] == "failed"] == ["auc_at_least"]
    assert "Do not promote version 2" in Path(answer.json["report_path"]).read_text()
    assert MlflowStore(shop.uri).call("get_run", answer.json["run_id"]).data.tags["toolkit.decision"] == "do not promote"


def test_what_a_judgement_says_and_does_not_refuse(shop: Shop, tmp_path: Path) -> None:
    fresh = rows().drop(columns="id").assign(a=rows().a + 0.00001, region=np.where(rows().index < 40, "east", rows().region), c=np.nan)
    fresh.to_csv(tmp_path / "holdout.csv", index=False)
    chosen = experiment(gates=(Gate("model_mib", at_most=9),))
    context = DataContext(None, None, tmp_path)
    chosen = replace(chosen, dataset=replace(chosen.dataset, holdout=str(tmp_path / "holdout.csv")))
    once = Once(lambda: read_holdout(chosen, shop.model("good").spec, context))
    challenger, champion = (Candidate(version, shop.model(name).folder, once) for version, name in ((2, "good"), (1, "weak")))
    told = [
        f"feature 'region': 2.5% of the hold-out's values are unknown to {who}, for example 'east'"
        for who in ("the challenger", "the champion")
    ]
    missing = "feature 'c' is missing in every row of the hold-out"
    keyless = "the hold-out has no column 'id': its rows are compared by their features alone, not by key"
    compared = "no gate compared the challenger with the champion or asked for quality; add one with no_worse_than_champion_by"
    assert sorted(Evidence(chosen, once, challenger, champion).notices()) == sorted([*told, missing, keyless, compared])
    broken: Once[Any] = Once(lambda: json.loads("{"))
    nothing = Candidate(2, tmp_path, broken)
    assert Evidence(replace(chosen, gates=(Gate("auc", at_least=0.5),)), broken, nothing, None).notices() == ()
    assert nothing.summary().figures == {}


def test_there_are_enough_ways() -> None:
    assert len(CASES) >= 30


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
