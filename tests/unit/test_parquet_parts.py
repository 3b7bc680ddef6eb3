"""A table that is divided while it is read: each row once, equal rows together, the same whatever the order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from toolkit import Dataset, Experiment, Int, Metric, Split, XGBoost
from toolkit.core.errors import DataError, ExperimentError
from toolkit.core.row_hashes import row_hashes
from toolkit.engines.parquet_parts import TEST, TRAIN, VALIDATION, Parts, columns_of, divide_table, read_part
from toolkit.engines.parquet_shards import files_of


def table(num: int = 3000) -> pd.DataFrame:
    random = np.random.RandomState(5)
    frame = pd.DataFrame({"id": np.arange(num), "region": random.choice(["a", "b", "ü"], num), "x": random.normal(size=num).round(1)})
    frame["label"] = np.where(frame.x + random.normal(size=num) > 0, "yes", "no")
    frame.loc[random.rand(num) < 0.1, "x"] = np.nan
    frame["w"] = random.rand(num)
    return frame


def experiment(**dataset: Any) -> Experiment:
    columns = {"label": "label", "key": "id", "categorical": ("region",), "weight": "w", **dataset}
    return Experiment(
        name="parts",
        dataset=Dataset(load="unused", **columns),
        model=XGBoost(),
        space={"max_depth": Int(2, 4)},
        metric=Metric("auc", "maximize"),
    )


def write(frame: pd.DataFrame, folder: Path, num_files: int = 3) -> tuple[str, ...]:
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(frame), -(-len(frame) // num_files))):
        rows = frame.iloc[start : start + -(-len(frame) // num_files)]
        rows.to_parquet(folder / f"part-{number}.parquet", index=False, row_group_size=400)
    return files_of(folder)


def divide(
    frame: pd.DataFrame, folder: Path, *, split: Split | None = None, with_test: bool = True
) -> tuple[Parts, dict[str, pd.DataFrame]]:
    """The parts, and each as a frame of codes with its rows' hashes."""
    split = split or Split(test=0.25, validation=0.2, seed=1)
    files = write(frame, folder / "table")
    columns = columns_of(files, experiment())
    parts = divide_table(files, columns, split, folder / "parts", with_test=with_test)
    codes = type(columns)(columns.features, columns.label, columns.classes, columns.weight, are_codes=True)
    found = {}
    for name, written in parts.files.items():
        blocks = list(read_part(written, codes)) if written else []
        frames = [pd.DataFrame({"hash": row_hashes(block.features), "label": block.label, "w": block.weight}) for block in blocks]
        found[name] = pd.concat(frames) if frames else pd.DataFrame({"hash": [], "label": [], "w": []})
    return parts, found


def test_each_row_is_in_one_part(tmp_path: Path) -> None:
    frame = table()
    parts, found = divide(frame, tmp_path)
    assert sum(parts.num_rows.values()) == sum(map(len, found.values())) == len(frame)
    assert sum(found[part].w.sum() for part in found) == pytest.approx(frame.w.sum(), rel=1e-5)
    shares = {part: len(rows) / len(frame) for part, rows in found.items()}
    assert shares[TEST] == pytest.approx(0.25, abs=0.05) and shares[VALIDATION] == pytest.approx(0.15, abs=0.05)


def test_equal_rows_stay_together(tmp_path: Path) -> None:
    _, found = divide(table(), tmp_path)
    of = {part: set(rows["hash"]) for part, rows in found.items()}
    assert not of[TRAIN] & of[VALIDATION] and not of[TEST] & (of[TRAIN] | of[VALIDATION])
    assert len(of[TRAIN]) < len(found[TRAIN]), "the table has equal rows, or this shows nothing"


def test_the_fitted_rows_are_remembered(tmp_path: Path) -> None:
    parts, found = divide(table(), tmp_path)
    fitted = np.sort(pd.concat([found[TRAIN], found[VALIDATION]])["hash"].to_numpy(np.uint64))
    np.testing.assert_array_equal(parts.fitted_hashes, fitted)
    assert set(row_hashes(parts.sample.features)) <= set(fitted) and parts.sample.num_rows == len(fitted)


def test_the_division_depends_on_the_rows_alone(tmp_path: Path) -> None:
    _, found = divide(table(), tmp_path / "one")
    _, shuffled = divide(table().sample(frac=1, random_state=2), tmp_path / "other")
    for part in found:
        assert sorted(found[part]["hash"]) == sorted(shuffled[part]["hash"])
    _, other_seed = divide(table(), tmp_path / "seed", split=Split(test=0.25, validation=0.2, seed=2))
    assert set(found[TEST]["hash"]) != set(other_seed[TEST]["hash"])


def test_with_a_holdout_table_no_row_is_kept_for_the_test(tmp_path: Path) -> None:
    parts, found = divide(table(), tmp_path, with_test=False)
    assert parts.num_rows[TEST] == 0 and len(found[TRAIN]) + len(found[VALIDATION]) == 3000


REFUSED: dict[str, tuple[Any, str]] = {
    "a label that is missing": (lambda frame: frame.assign(label=frame.label.where(frame.index != 7)), "must not be missing"),
    "one class": (lambda frame: frame.assign(label="yes"), "needs at least two values"),
    "text": (lambda frame: frame.assign(x="many"), "must be numeric"),
    "no label": (lambda frame: frame.drop(columns="label"), "dataset.label: no such column"),
    "no category": (lambda frame: frame.drop(columns="region"), "dataset.categorical: no such feature"),
    "a negative weight": (lambda frame: frame.assign(w=-1.0), "must be 0 or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_does_not_fit(name: str, tmp_path: Path) -> None:
    spoil, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        divide(spoil(table()), tmp_path)


@pytest.mark.parametrize("split", [Split(by="group"), Split(folds=3)])
def test_a_split_that_needs_the_whole_table(split: Split, tmp_path: Path) -> None:
    files = write(table(), tmp_path / "table")
    with pytest.raises(ExperimentError, match=r"raise training\.gather_gib"):
        columns_of(files, Experiment(**{**vars(experiment(group="region", categorical=())), "split": split}))
