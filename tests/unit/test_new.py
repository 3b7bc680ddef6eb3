"""`toolkit new`: what it reads, writes and refuses."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import Workplace, workplace
from toolkit.core.data import DataContext, LoadedData
from toolkit.core.recipes import load_experiment
from toolkit.engines import csv_files, table_samples
from toolkit.engines.csv_files import csv_format
from toolkit.engines.table_samples import sample_table
from toolkit.engines.tables import load_data, read_table

__all__ = ["workplace"]

N = 300
RANDOM = np.random.default_rng(3)


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"x": RANDOM.normal(size=N).round(3), "z": RANDOM.normal(size=N).round(3), "y": RANDOM.permutation(N) % 2, **columns}
    )


def loaded(path: str) -> LoadedData:
    return load_data(load_experiment(path), DataContext(None, None, Path("cache")))


def is_formatted(path: Path) -> bool:
    """By ruff's own defaults, which are a user's."""
    checks = [["check", "--isolated"], ["format", "--isolated", "--check"]]
    done = [subprocess.run([sys.executable, "-m", "ruff", *check, str(path)], capture_output=True, text=True) for check in checks]
    assert [each.returncode for each in done] == [0, 0], [each.stdout for each in done]
    return True


# ---- the file


def test_the_file_says_what_was_found(workplace: Workplace) -> None:
    cities = ["Köln", None, "Ulm", "Bonn", "Bonn"] * (N // 5)
    table = frame(shop_id=range(N), city=cities, born=pd.date_range("1960", periods=N).strftime("%Y-%m-%d"), same=1)
    table["owed [EUR]"] = RANDOM.normal(size=N)
    table["price"] = [f"{value:,.2f}" for value in RANDOM.uniform(10, 9000, N)]
    table["told"] = table.y * 3
    table["y"] = table.y.map({0: "no", 1: "yes"}).where(table.index > 2)
    table.to_csv("shops.csv", index=False)
    answer = workplace.here("new", "web-shops", "--data", "shops.csv", "--label", "y", "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert answer.err.splitlines() == [
        "warning: told predicts the label alone, perhaps a leak: left out; see web_shops.py",
        "warning: rows without a label: 3; the file's load function drops them",
        "warning: numbers that are text are converted by the file's load function: price",
        "warning: XGBoost takes no [ ] < in names: the file's load function renames owed [EUR] → owed_EUR",
    ]
    assert (found["path"], found["task"], found["metric"], found["key"]) == ("web_shops.py", "binary", "auc", "shop_id")
    assert found["classes"] == {"no": int((table.y == "no").sum()), "yes": int((table.y == "yes").sum())}
    assert (found["numbers"], found["categories"]) == (["x", "z", "owed [EUR]", "price"], ["city"])
    assert (list(found["excluded"]), found["leakage_suspects"], found["times"]) == (["born", "same", "told"], ["told"], ["born"])
    assert (found["num_rows"], found["num_looked_at"], found["num_missing_labels"], found["is_checked"]) == (N, N, 3, True)
    assert found["positive"] == "yes"
    assert found["next_commands"] == [
        "toolkit explore ./web_shops.py",
        "toolkit train ./web_shops.py --baseline",
        "toolkit sweep ./web_shops.py",
    ]
    assert workplace.files() == {"shops.csv", "web_shops.py"}
    assert is_formatted(Path("web_shops.py"))
    experiment = load_experiment("./web_shops.py")
    assert (experiment.name, experiment.dataset.key, experiment.dataset.categorical) == ("web-shops", "shop_id", ("city",))
    assert [gate.name for gate in experiment.gates] == ["auc_at_least", "auc_no_worse_than_champion_by"]
    assert any(gate.demands_quality for gate in experiment.gates)
    data = loaded("./web_shops.py")
    assert data.feature_names == ("x", "z", "city", "owed_EUR", "price")
    assert (len(data.label), data.classes, data.categories["city"]) == (N - 3, ("no", "yes"), ("Bonn", "Köln", "Ulm"))
    assert (data.source.kind, data.source.location) == ("file", str(workplace.folder / "shops.csv"))


def test_the_file_runs_from_anywhere_and_takes_other_data(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    frame().to_csv("a.csv", index=False)
    frame().iloc[:200].to_csv("b.csv", index=False)
    for name, data in (("relative", "./a.csv"), ("absolute", str(Path("a.csv").absolute()))):
        assert workplace.here("new", name, "--data", data, "--label", "y").code == 0
    monkeypatch.chdir("/")
    for name in ("relative", "absolute"):
        assert len(loaded(str(workplace.folder / f"{name}.py")).label) == N
    other = DataContext(workplace.folder / "b.csv", None, Path("cache"))
    assert len(load_data(load_experiment(str(workplace.folder / "relative.py")), other).label) == 200


def test_an_answer_for_a_person_ends_with_the_next_commands(workplace: Workplace) -> None:
    frame(**{"two\nlines": 1.5}).to_csv("a.csv", index=False)
    answer = workplace.here("new", "shops", "--data", "a.csv", "--label", "y")
    lines = answer.out.splitlines()
    assert (answer.code, lines[0]) == (0, "shops.py written")
    commands = ["toolkit explore ./shops.py", "toolkit train ./shops.py --baseline", "toolkit sweep ./shops.py"]
    assert lines[-3:] == [f"next        {command}" for command in commands]
    assert "positive    1: the second of the two, 50.0% of the rows" in lines
    assert "left out    two lines: constant" in lines


WRITTEN: list[tuple[str, Callable[[pd.DataFrame, Path], Any]]] = [
    ("comma.csv", lambda table, path: table.to_csv(path, index=False)),
    ("quoted.csv", lambda table, path: table.to_csv(path, index=False, quoting=2)),
    ("german.csv", lambda table, path: table.to_csv(path, index=False, sep=";", decimal=",", encoding="cp1252")),
    ("tab.tsv", lambda table, path: table.to_csv(path, index=False, sep="\t", encoding="utf-16")),
    ("bom.csv", lambda table, path: table.to_csv(path, index=False, encoding="utf-8-sig")),
    ("one.parquet", lambda table, path: table.to_parquet(path, index=False)),
    ("parted", lambda table, path: table.to_parquet(path, partition_cols=["city"])),
    ("delta", lambda table, path: __import__("deltalake").write_deltalake(path, pa.Table.from_pandas(table))),
]


@pytest.mark.parametrize(("name", "write"), WRITTEN, ids=[name for name, _ in WRITTEN])
def test_every_form_of_a_table(name: str, write: Callable[[pd.DataFrame, Path], Any], workplace: Workplace) -> None:
    table = frame(note=['Größe "M"\nneu', "a,b;c", "d"] * (N // 3), city=["Köln", "Ulm"] * (N // 2), y=RANDOM.normal(size=N).round(4))
    write(table, Path(name))
    answer = workplace.here("new", "shops", "--data", name, "--label", "y", "--json")
    assert answer.code == 0, answer.err
    assert (answer.json["task"], sorted(answer.json["categories"])) == ("regression", ["city", "note"])
    assert answer.json["floor"] == float(f"{table.y.std(ddof=0):.3g}")
    data = loaded("./shops.py")
    assert sorted(data.label.tolist()) == pytest.approx(sorted(table.y))
    assert {key: set(values) for key, values in data.categories.items()} == {"note": set(table.note), "city": set(table.city)}
    assert is_formatted(Path("shops.py"))


CODES = pd.Series(["01067", "04109", "50667"] * (N // 3))
PADDED: list[tuple[str, Any, bool]] = [
    ("whole", CODES, True),
    ("with gaps", CODES.where(RANDOM.random(N) > 0.2), True),
    ("of several lengths", pd.Series(["01", "1", "107"] * (N // 3)), False),
]


@pytest.mark.parametrize(("codes", "is_feature"), [case[1:] for case in PADDED], ids=[case[0] for case in PADDED])
@pytest.mark.parametrize("is_small", [True, False])
def test_codes_with_leading_zeros_are_text(
    codes: Any, is_feature: bool, is_small: bool, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = frame(plz=codes.to_numpy(), mark=["007", "008"] * (N // 2), nr=[f"{place:06}" for place in range(N)])
    if not is_small:
        monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1 << 11)
        monkeypatch.setattr(table_samples, "WHOLE_CSV_BYTES", 1 << 12)
        monkeypatch.setattr(table_samples, "CSV_BLOCKS", 2)
    table.to_csv("a.csv", index=False)
    table.to_parquet("a.parquet", index=False)
    answer = workplace.here("new", "shops", "--data", "a.csv", "--label", "y", "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert (found["key"], found["is_checked"]) == ("nr", is_small)
    assert found["categories"] == (["plz", "mark"] if is_feature else ["mark"])
    assert "the file's load function keeps the zeros of" in answer.err
    if not is_feature:
        assert found["excluded"]["plz"].startswith("codes with leading zeros, not all as long")
    for data in (None, Path("a.parquet").absolute()):  # which has text, as a scorer's table may
        rows = load_data(load_experiment("./shops.py"), DataContext(data, None, Path("cache")))
        assert rows.categories.get("plz") == (("01067", "04109", "50667") if is_feature else None)
        assert rows.categories["mark"] == ("007", "008")
        assert rows.keys is not None and rows.keys.tolist() == table.nr.tolist()
    assert is_formatted(Path("shops.py"))


def test_a_label_with_leading_zeros_stays_a_number(workplace: Workplace) -> None:
    frame(y=[f"{place:04}" for place in range(N)]).to_csv("a.csv", index=False)
    answer = workplace.here("new", "shops", "--data", "a.csv", "--label", "y", "--json")
    assert (answer.code, answer.json["task"], "def load" in Path("shops.py").read_text()) == (0, "regression", False)


def test_an_encoding_that_is_guessed_is_told(workplace: Workplace) -> None:
    frame(city=["Köln", "Ulm"] * (N // 2)).to_csv("a.csv", index=False, encoding="latin-1")
    answer = workplace.here("new", "shops", "--data", "a.csv", "--label", "y")
    assert answer.code == 0
    assert answer.err == "warning: a.csv is not UTF-8: read as cp1252 (Western European); where letters look wrong, convert it to UTF-8\n"
    assert "It is not UTF-8: cp1252" in " ".join(Path("shops.py").read_text().split("\n# "))


def test_what_may_be_thousands_is_told(workplace: Workplace) -> None:
    frame(owed=[f"{value:,}" for value in RANDOM.integers(1000, 9999, N)])[["owed", "y"]].to_csv("a.csv", index=False, sep=";")
    answer = workplace.here("new", "shops", "--data", "a.csv", "--label", "y")
    assert answer.code == 0
    assert answer.err.startswith("warning: a.csv: ") and "is read with a decimal comma, as" in answer.err
    assert "was taken for a number with a decimal comma: was it a thousand?" in " ".join(Path("shops.py").read_text().split("\n# "))


def test_a_named_index_may_be_the_key_and_is_no_feature(workplace: Workplace) -> None:
    frame().set_index(pd.Index(RANDOM.permutation(N), name="row")).to_parquet("a.parquet")
    assert workplace.here("new", "found", "--data", "a.parquet", "--label", "y", "--json").json["key"] == "row"
    frame().set_index(pd.Index([1] * N, name="shard")).to_parquet("b.parquet")
    answer = workplace.here("new", "dropped", "--data", "b.parquet", "--label", "y", "--json").json
    assert (answer["key"], answer["numbers"]) == (None, ["x", "z"])
    assert workplace.here("new", "named", "--data", "a.parquet", "--label", "y", "--key", "x").code == 1
    assert loaded("./found.py").feature_names == loaded("./dropped.py").feature_names == ("x", "z")


def test_few_positives_get_a_seed_that_gives_each_part_some(workplace: Workplace) -> None:
    # Not drawn: which seeds will do depends on all values.
    table = frame(x=np.arange(N) / 2, z=np.arange(N) % 7, y=[int(place in (10, 100, 200)) for place in range(N)])
    table.to_csv("a.csv", index=False)
    answer = workplace.here("new", "rare", "--data", "a.csv", "--label", "y", "--json").json
    assert (answer["metric"], answer["split_seed"] > 0) == ("aucpr", True)
    assert f"seed={answer['split_seed']}" in Path("rare.py").read_text()


# ---- samples of large tables


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large for the tests: 64 KiB, 10,000 cells."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(table_samples, "WHOLE_CSV_BYTES", 1 << 16)
    monkeypatch.setattr(table_samples, "WHOLE_CELLS", 10_000)
    monkeypatch.setattr(table_samples, "SAMPLE_ROWS", 1000)


def large(num: int = 20_000) -> pd.DataFrame:
    """Sorted by its label; a number that is missing late, a text with line breaks."""
    return pd.DataFrame(
        {
            "row": range(num),
            "x": RANDOM.normal(size=num).round(3),
            "note": ["ä\nb", "c", "d;e"] * (num // 3) + ["c"] * (num % 3),
            "y": np.sort(np.arange(num) % 3),
        }
    )


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig", "cp1252"])
def test_a_large_csv_file_is_looked_at_all_over(encoding: str, tmp_path: Path) -> None:
    table = large()
    table.to_csv(tmp_path / "a.csv", index=False, encoding=encoding)
    sample = sample_table(tmp_path / "a.csv")
    assert (sample.num_rows, sample.is_whole) == (20_000, False)
    assert 1000 < len(sample.frame) < 15_000
    assert set(sample.frame.y) == {0, 1, 2} and set(sample.frame.note) == set(table.note)
    # Every row of the sample is a row of the table, none is torn.
    assert sample.frame.row.is_unique
    pd.testing.assert_frame_equal(sample.frame, table.loc[sample.frame.row].reset_index(drop=True), check_dtype=False)
    assert sample.column("row").tolist() == list(range(20_000))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("form", ["parquet", "folder", "delta"])
def test_a_large_parquet_or_delta_table_is_looked_at_all_over(form: str, tmp_path: Path) -> None:
    table, path = large(), tmp_path / "a"
    if form == "parquet":
        table.to_parquet(path, index=False, row_group_size=500)
    elif form == "folder":
        pq.write_to_dataset(pa.Table.from_pandas(table.assign(part=table.row % 2)), path, partition_cols=["part"])
    else:
        import deltalake

        deltalake.write_deltalake(path, pa.Table.from_pandas(table))
    sample = sample_table(path)
    assert (sample.num_rows, sample.is_whole) == (20_000, False)
    assert 300 < len(sample.frame) < 3000
    assert set(sample.frame.y) == {0, 1, 2}
    pd.testing.assert_frame_equal(
        sample.frame[table.columns].reset_index(drop=True), table.loc[sample.frame.row].reset_index(drop=True), check_dtype=False
    )
    assert sorted(sample.column("row")) == list(range(20_000))


@pytest.mark.usefixtures("small_limits")
def test_label_and_key_of_a_large_table_are_read_whole(workplace: Workplace) -> None:
    table = large()
    table["twice"] = table.row
    table.loc[19_999, "twice"] = 7
    table["y"] = table.y.astype(float)
    table.loc[[3, 12_345], "y"] = None
    for write, name in ((table.to_csv, "a.csv"), (table.to_parquet, "a.parquet")):
        write(name, index=False)
        answer = workplace.here("new", "big", "--data", name, "--label", "y", "--json")
        assert answer.code == 0, answer.err
        found = answer.json
        assert (found["key"], found["num_missing_labels"], found["is_checked"]) == ("row", 2, False)
        assert sum(found["classes"].values()) == 19_998
        assert "from all over, looked at" in found["described"]
        assert len(loaded("./big.py").label) == 19_998
        refused = workplace.here("new", "other", "--data", name, "--label", "y", "--key", "twice")
        assert "--key 'twice': must be unique, got 1 repeated values in 20,000 rows" in refused.err
        Path("big.py").unlink()


# ---- refusals, one line each, and nothing written


def write_bad(folder: Path) -> None:
    frame(k=1, day="2024-01-01", text=[f"t{place}" for place in range(N)]).to_csv(folder / "a.csv", index=False)
    frame(y=None).to_csv(folder / "unlabelled.csv", index=False)
    (folder / "empty.csv").touch()
    (folder / "header.csv").write_text("x,y\n")
    (folder / "one.csv").write_text("y\n1\n2\n")
    (folder / "three.csv").write_text("x,y\n1.5,0\n2.5,1\n3.5,0\n")
    (folder / "twice.csv").write_text("x,x,y\n1,2,0\n3,4,1\n")
    (folder / "binary.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "taken.py").write_text("mine")
    (folder / "loose.py").symlink_to(folder / "nowhere")
    (folder / "folder").mkdir()
    frame().iloc[:0].to_parquet(folder / "none.parquet")


BAD: list[tuple[list[str], int, str]] = [
    (["a", "--data", "a.csv", "--label", "yy"], 1, "--label: no such column in a.csv, got 'yy'; did you mean 'y'?"),
    (["a", "--data", "a.csv", "--label", "y", "--key", "kk"], 1, "--key: no such column in a.csv, got 'kk'; did you mean 'k'?"),
    (["a", "--data", "a.csv", "--label", "y", "--key", "y"], 1, "--key: must not be the label, got 'y'"),
    (["a", "--data", "a.csv", "--label", "y", "--key", "k"], 1, "--key 'k': must be unique, got 299 repeated values in 300 rows"),
    (["a", "--data", "a.csv", "--label", "k"], 1, "--label 'k': needs at least two values, got 1 in all 300 rows"),
    (["a", "--data", "a.csv", "--label", "day"], 1, "--label 'day': must be numbers or classes, got dates"),
    (["a", "--data", "a.csv", "--label", "text"], 1, "--label 'text': at most 100 classes, got 300 different texts in 300 rows"),
    (["a", "--data", "unlabelled.csv", "--label", "y"], 1, "--label 'y': needs values, got 300 rows, all missing"),
    (["a", "--data", "none.csv", "--label", "y"], 1, "data: no such file, folder or table, got 'none.csv'"),
    (["a", "--data", "empty.csv", "--label", "y"], 1, "data: the file is empty, got empty.csv"),
    (["a", "--data", "header.csv", "--label", "y"], 1, "data: needs rows, got 0 rows in header.csv"),
    (["a", "--data", "none.parquet", "--label", "y"], 1, "data: needs rows, got 0 rows in none.parquet"),
    (["a", "--data", "one.csv", "--label", "y"], 1, "data: columns must be divided by one of"),
    (["a", "--data", "three.csv", "--label", "y"], 1, "split: the"),
    (["a", "--data", "twice.csv", "--label", "y"], 1, "data: column names must differ (twice.csv, delimiter ','), got 'x'"),
    (["a", "--data", "binary.csv", "--label", "y"], 1, "data: must be Parquet, or CSV in UTF-8"),
    (["a", "--data", "folder", "--label", "y"], 1, "--data: one CSV file, or a folder of nothing but Parquet files or a Delta table, got folder, an empty folder"),
    (["a", "--data", ".", "--label", "y"], 1, "Parquet files or a Delta table, got the folder . with a.csv; name one file"),
    (["a", "--data", "https://me:SECRET@host/a.csv?sig=SECRET", "--label", "y"], 1, "got https://***@host/a.csv?***; copy it here"),
    (["Shops", "--data", "a.csv", "--label", "y"], 1, "NAME: lower-case letters, digits, '-' and '_', at most 63, got 'Shops'; for example shops"),
    (["größe.py", "--data", "a.csv", "--label", "y"], 1, "got 'größe.py'; for example groe"),
    (["../a", "--data", "a.csv", "--label", "y"], 1, "NAME: lower-case letters"),
    (["lambda", "--data", "a.csv", "--label", "y"], 1, "NAME: no word of Python's own, for no module can be called so, got 'lambda'"),
    (["xgboost", "--data", "a.csv", "--label", "y"], 1, "NAME: the file must not hide a module that is installed, got xgboost.py and xgboost"),
    (["taken", "--data", "a.csv", "--label", "y"], 1, "NAME: the file must not exist, for nothing is overwritten, got taken.py"),
    (["loose", "--data", "a.csv", "--label", "y"], 1, "NAME: the file must not exist"),
    (["a", "--data", "a.csv"], 2, "Missing option '--label'"),
    (["a", "--label", "y"], 2, "Missing option '--data'"),
    (["--data", "a.csv", "--label", "y"], 2, "Missing argument 'NAME'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], code: int, words: str, workplace: Workplace) -> None:
    write_bad(workplace.folder)
    before = {path: path.read_bytes() for path in workplace.folder.rglob("*") if path.is_file()}
    for _ in range(2):
        answer = workplace.here("new", *arguments, "--json")
        assert (answer.code, answer.out, answer.err.count("\n")) == (code, "", 1), answer.err
        assert words in answer.err and "SECRET" not in answer.err
    assert {path: path.read_bytes() for path in workplace.folder.rglob("*") if path.is_file()} == before


def test_a_second_call_does_not_overwrite(workplace: Workplace) -> None:
    frame().to_csv("a.csv", index=False)
    assert workplace.here("new", "shops", "--data", "a.csv", "--label", "y").code == 0
    Path("shops.py").write_text("edited")
    assert workplace.here("new", "shops", "--data", "a.csv", "--label", "y").code == 1
    assert Path("shops.py").read_text() == "edited"


def test_a_folder_of_the_same_name_is_no_obstacle(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(workplace.folder))
    Path("shops").mkdir()
    frame().to_csv("shops/a.csv", index=False)
    assert workplace.here("new", "shops", "--data", "shops/a.csv", "--label", "y").code == 0


def test_the_verb_is_also_python(workplace: Workplace) -> None:
    from toolkit.new import new

    frame().to_csv("a.csv", index=False)
    result = new("shops", data=Path("a.csv"), label="y")
    assert (result.path, result.inference.label.task, result.is_checked) == (Path("shops.py"), "binary", True)
    assert ast.parse(result.path.read_text()) and json.dumps(result.as_json())


# ---- CSV


@pytest.mark.parametrize(
    ("content", "delimiter", "decimal", "encoding", "ambiguous"),
    [
        (b"a,b\n1.5,2\n", ",", ".", "utf-8", None),
        (b"a;b\n1,5;2\n", ";", ",", "utf-8", None),
        (b"a;b\n1,500;2\n", ";", ",", "utf-8", "1,500"),
        (b"a;b\n0,500;1,500\n", ";", ",", "utf-8", None),
        (b"a;b\n1.234,5;12,5\n", ";", ",", "utf-8", None),
        (b"a;b\n1,234.5;12.5\n", ";", ".", "utf-8", None),
        (b"a;b\n1.5;1,5\n", ";", ".", "utf-8", None),
        (b'a,b\n"1,500",2\n', ",", ".", "utf-8", None),
        ("ä\tb\n1\t2\n".encode("utf-16"), "\t", ".", "utf-16", None),
        ("ä|b\n1|2\n".encode("cp1252"), "|", ".", "cp1252", None),
        ("É’a,É»b\né,è\n".encode("cp1252"), ",", ".", "cp1252", None),
        ("ä,b\n1,2\n".encode("utf-8-sig"), ",", ".", "utf-8", None),
    ],
)  # fmt: skip
def test_csv_formats(content: bytes, delimiter: str, decimal: str, encoding: str, ambiguous: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    how = csv_format(tmp_path / "a.csv")
    assert (how.delimiter, how.decimal, how.encoding, how.ambiguous) == (delimiter, decimal, encoding, ambiguous)
    assert tuple(read_table(tmp_path / "a.csv").columns) == how.header


def test_letters_late_in_a_long_file_decide_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + b"plain,1\n" * 400_000 + "Ä,2\n".encode("cp1252"))
    assert read_table(tmp_path / "a.csv").a.iloc[-1] == "Ä"
