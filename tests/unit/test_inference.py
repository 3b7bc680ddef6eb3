"""What is inferred from a table, rule by rule."""

from __future__ import annotations

import ast
import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from toolkit.core.column_kinds import as_numbers, kind_of, names_identifiers, text_numbers
from toolkit.core.errors import DataError
from toolkit.core.experiment_text import Origin, experiment_text, quoted
from toolkit.core.inference import Inference, check_key, find_identifiers, infer

N = 400
RANDOM = np.random.default_rng(7)
NOISE = RANDOM.normal(size=N)


def table(y: Any, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"x": NOISE, **columns, "y": y})


def look(frame: pd.DataFrame, *, key: str | None = None, decimal: str = ".") -> Inference:
    identifiers = [] if key else find_identifiers(frame, "y", None)
    return infer(frame, frame["y"], key=key, identifiers=identifiers, decimal=decimal)


def repeated(*values: Any) -> list[Any]:
    return [values[place % len(values)] for place in range(N)]


BALANCED, RARE = repeated(0, 1), [int(place % 50 == 0) for place in range(N)]

LABELS: list[tuple[str, Any, tuple[str, str, str], str]] = [
    ("two numbers", BALANCED, ("binary", "binary:logistic", "auc"), "two values"),
    ("two fractions", repeated(0.5, 1.5), ("binary", "binary:logistic", "auc"), "two values"),
    ("two texts", repeated("yes", "no"), ("binary", "binary:logistic", "auc"), "two values"),
    ("booleans", repeated(True, False), ("binary", "binary:logistic", "auc"), "two values"),
    ("nullable booleans", pd.array(repeated(True, False, None), dtype="boolean"), ("binary", "binary:logistic", "auc"), "two values"),
    ("rare positives", RARE, ("binary", "binary:logistic", "aucpr"), "two values"),
    ("three texts", repeated("a", "b", "c"), ("multiclass", "multi:softprob", "mlogloss"), "3 different texts ('a', 'b', 'c')"),
    ("categories", pd.Categorical(repeated("a", "b", "c"), list("abcd")), ("multiclass", "multi:softprob", "mlogloss"), "3 different texts"),
    ("texts like numbers", repeated("0", "1", "z"), ("multiclass", "multi:softprob", "mlogloss"), "3 different texts ('0', '1', 'z')"),
    ("codes from 0", repeated(0, 1, 2), ("multiclass", "multi:softprob", "mlogloss"), "the whole numbers 0 to 2, none rare: read as codes"),
    ("codes from 1, as floats", repeated(1.0, 2.0, 3.0, 4.0), ("multiclass", "multi:softprob", "mlogloss"), "read as codes of 4 classes"),
    ("codes with gaps", pd.array(repeated(0, 1, 2, None), dtype="Int64"), ("multiclass", "multi:softprob", "mlogloss"), "read as codes"),
    ("grades", repeated(3, 4, 5, 6, 7, 8, 9), ("regression", "reg:squarederror", "rmse"), "not even codes from 0 or 1: read as amounts"),
    ("counts", [0] * 200 + [1] * 150 + [2] * 47 + [3] * 3, ("regression", "reg:squarederror", "rmse"), "read as amounts"),
    ("codes with a hole", repeated(0, 1, 3), ("regression", "reg:squarederror", "rmse"), "read as amounts"),
    ("fractions", repeated(0.5, 1.0, 1.5), ("regression", "reg:squarederror", "rmse"), "numbers with fractions"),
    ("many whole numbers", range(N), ("regression", "reg:squarederror", "rmse"), "400 different whole numbers"),
    ("decimals", [Decimal(place) / 8 for place in range(N)], ("regression", "reg:squarederror", "rmse"), "numbers with fractions"),
    ("text amounts", [f"{place:,}.5" for place in range(900, 900 + N)], ("regression", "reg:squarederror", "rmse"), "numbers with fractions"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected", "reason"), [label[1:] for label in LABELS], ids=[label[0] for label in LABELS])
def test_the_task_follows_from_the_label(values: Any, expected: tuple[str, str, str], reason: str) -> None:
    label = look(table(values)).label
    assert (label.task, label.objective, label.metric) == expected
    assert reason in label.reason
    assert label.direction == ("maximize" if label.metric.startswith("auc") else "minimize")


def test_what_could_be_either_names_the_other() -> None:
    assert look(table(repeated(0, 1, 2))).label.alternative == "regression"
    assert look(table(repeated(3, 4, 5))).label.alternative == "multiclass"
    assert look(table(repeated("a", "b", "c"))).label.alternative is None
    assert look(table(NOISE * 7)).label.alternative is None


def test_the_floor_is_what_no_feature_reaches() -> None:
    assert look(table(BALANCED)).label.floor == 0.5
    assert look(table(RARE)).label.floor == 0.02
    assert look(table(repeated("a", "b", "c", "a"))).label.floor == float(f"{-(0.5 * np.log(0.5) + 0.5 * np.log(0.25)):.3g}")
    values = NOISE * 30
    assert look(table(values)).label.floor == float(f"{values.std():.3g}")


MOSTLY = [place % 5 == 0 for place in range(N)]  # a fifth

POSITIVE: list[tuple[Any, Any, Any, str, bool]] = [
    ("nein", "ja", "ja", "it says yes", True),
    ("ja", "nein", "ja", "it says yes", True),
    ("N", "Y", "Y", "it says yes", True),
    ("stayed", "churned", "churned", "it says yes", True),
    ("0", "1", "1", "it says yes", True),
    (-1, 1, 1, "it says yes", True),
    (1, -1, 1, "it says yes", True),
    (2, 1, 1, "the rarer of the two", True),
    (1, 2, 2, "the rarer of the two", True),
    ("good", "bad", "bad", "the rarer of the two", True),
    ("yes", "true", "true", "the rarer of the two", True),
    (Decimal(2), Decimal(1), 1, "the rarer of the two", True),
    (1, 0, 1, "the second of the two", False),
    (True, False, True, "the second of the two", False),
]


@pytest.mark.parametrize(("often", "seldom", "positive", "reason", "is_named"), POSITIVE)
def test_the_positive_class(often: Any, seldom: Any, positive: Any, reason: str, is_named: bool) -> None:
    found = look(table([seldom if is_seldom else often for is_seldom in MOSTLY]))
    label = found.label
    assert (label.positive, label.positive_reason, label.is_positive_named) == (positive, reason, is_named)
    assert label.positive_share == (0.2 if positive == seldom else 0.8)
    text = experiment_text("a", "a.py", Origin("a.csv", False, False, N, "CSV."), found, 0)
    (made,) = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Dataset"]
    written = [ast.literal_eval(keyword.value) for keyword in made.keywords if keyword.arg == "positive"]
    assert written == ([positive] if is_named else [])
    negative = "1" if positive == 2 else None
    assert negative is None or f"(fp: {negative} taken for 2) and a miss (fn: 2 taken for {negative})" in " ".join(
        text.split("\n        # ")
    )


def test_of_two_that_are_equally_frequent_the_second_in_order_is_positive() -> None:
    label = look(table(repeated("b", "a"))).label
    assert (label.positive, label.positive_reason) == ("b", "the second in order, of two that are equally frequent")


def test_rare_is_what_is_looked_for() -> None:
    label = look(table(["a" if rare else "b" for rare in RARE])).label
    assert (label.positive, label.metric, label.floor) == ("a", "aucpr", 0.02)
    label = look(table(["nein" if rare else "ja" for rare in RARE])).label
    assert (label.positive, label.metric, label.floor) == ("ja", "auc", 0.5)


def test_codes_of_several_lengths_are_left_out_and_those_of_one_are_as_their_text_says() -> None:
    frame = table(BALANCED, plz=repeated("01067", "04109", "50667"), nr=repeated(1, 12, 107))
    found = infer(frame, frame["y"], key=None, padded={"plz": 5, "nr": None})
    assert {column.name: column.role for column in found.columns} == {"x": "number", "plz": "category", "nr": "excluded"}
    assert dict(found.padded) == {"plz": 5}


def test_missing_and_infinite_labels_are_counted_and_do_not_count() -> None:
    values = np.array(BALANCED, dtype=float)
    values[:7], values[7:10] = np.nan, np.inf
    found = look(table(values))
    assert (found.label.num_missing, found.label.task, found.infinite) == (10, "binary", ("y",))
    assert dict(found.label.classes or {}) == {0: 195, 1: 195}


LETTERS = [chr(97 + place % 4) for place in range(N)]

COLUMNS: list[tuple[str, Any, str, str]] = [
    ("amount", NOISE, "number", ""),
    ("flag", repeated(True, False, True), "number", ""),
    ("gaps", pd.array(repeated(True, None, False), dtype="boolean"), "number", ""),
    ("object flags", pd.Series(repeated(True, None, False), dtype=object), "number", ""),
    ("decimal", [Decimal(place) / 8 for place in range(N)], "number", ""),
    ("grade", repeated(1, 2, 3, 4), "number", ""),
    ("city", LETTERS, "category", ""),
    ("one city or none", repeated("Ulm", None), "category", ""),
    ("arrow", pd.Categorical(LETTERS), "category", ""),
    ("region_id", repeated(3, 5, 8), "category", ""),
    ("customer_id", [place // 4 + 100 for place in range(N)], "excluded", 'an identifier, 4.0 rows each: to keep those in one part, name it as group'),
    ("customerID", [place // 4 for place in range(N)], "excluded", "an identifier, 4.0 rows each"),
    ("mail", [f"{place}@example.org" for place in range(N)], "excluded", "text: 400 different values in 400 rows"),
    ("half", [f"t{place % 300}" for place in range(N)], "excluded", "text: 300 different values"),
    ("nothing", [None] * N, "excluded", "empty"),
    ("always", [3] * N, "excluded", "constant"),
    ("born", pd.date_range("1960-01-01", periods=N), "excluded", 'dates: where they say when a row became known, give time="born"'),
    ("day", [datetime.date(2024, 1, 1 + place % 28) for place in range(N)], "excluded", "dates"),
    ("iso", [f"2024-01-{1 + place % 28:02}T10:00:00Z" for place in range(N)], "excluded", 'Split(by="time")'),
    ("german", [f"{1 + place % 28}.1.2024" for place in range(N)], "excluded", "written as 2024-12-31"),
    ("version", repeated("1.2.3", "1.2.4"), "category", ""),
    ("lists", [[1, 2]] * N, "excluded", "neither numbers, text nor dates: list"),
    ("bytes", [b"a"] * N, "excluded", "neither numbers, text nor dates: bytes"),
    ("mixed", repeated("a", 1), "excluded", "neither numbers, text nor dates"),
    ("duration", pd.to_timedelta(range(N), unit="s"), "excluded", "neither numbers, text nor dates"),
    ("zip", [f"0{place % 40:04}" for place in range(N)], "category", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "role", "reason"), COLUMNS, ids=[column[0] for column in COLUMNS])
def test_the_role_of_a_column(name: str, values: Any, role: str, reason: str) -> None:
    found = look(table(RANDOM.permutation(BALANCED), **{name: values}), key=None)
    (column,) = [column for column in found.columns if column.name == name]
    assert (column.role, reason in column.reason) == (role, True), column


def test_a_key_is_found_by_its_name_then_by_its_count() -> None:
    ids = RANDOM.permutation(N) * 7 + 13
    assert look(table(BALANCED, serial=range(N), order_nr=ids)).key == "order_nr"
    assert look(table(BALANCED, serial=range(5, N + 5))).key == "serial"
    assert look(table(BALANCED, uuid=[f"u{place}" for place in range(N)])).key == "uuid"
    assert look(table(BALANCED, cents=ids)).key is None
    assert look(table(BALANCED, order_nr=pd.array([*ids[1:], None], dtype="Int64"))).key is None
    assert look(table(BALANCED, order_nr=ids, z=NOISE), key="x").key == "x"
    # The second one is no feature either: in a table that is sorted, a row's number tells the label.
    found = look(table(BALANCED, serial=range(N), order_nr=ids))
    assert {column.name: column.reason for column in found.columns}["serial"].startswith("an identifier")


def test_whole_numbers_without_gaps_are_no_key_in_a_short_table() -> None:
    frame = pd.DataFrame({"age": range(20, 40), "id": range(20), "y": [0, 1] * 10})
    assert find_identifiers(frame[["age", "y"]], "y", None) == []
    assert find_identifiers(frame, "y", None) == ["id"]


def test_of_a_sample_the_whole_column_decides() -> None:
    whole = {"id": pd.Series([1, 2, 2], name="id"), "serial": pd.Series(range(1000), name="serial")}
    sample = pd.DataFrame({"id": range(N), "serial": range(0, 2 * N, 2), "y": BALANCED})
    assert find_identifiers(sample, "y", None, whole.__getitem__) == ["serial"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [([1, 2, 2], "must be unique, got 1 repeated values in 3 rows"), ([1, None, 2], "must not be missing, got 1 missing of 3")],
)
def test_a_named_key_must_identify(values: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"--key 'id': {problem}; name another column, or leave --key out"):
        check_key(pd.Series(values, name="id"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("id", True), ("customerId", True), ("order_nr", True), ("Unnamed: 0", True), ("paid", False), ("idle", False), ("monkey", False)],
)
def test_names_of_identifiers(name: str, expected: bool) -> None:
    assert names_identifiers(name) is expected


# ---- leaks

LEAKS: list[tuple[str, Any, Any]] = [
    ("the label again", BALANCED, [f"L{value}" for value in BALANCED]),
    ("a number that orders it", BALANCED, np.array(BALANCED) * 5 + RANDOM.random(N)),
    ("missing where it is 0", BALANCED, [float(place % 7) if value else None for place, value in enumerate(BALANCED)]),
    ("classes", repeated("a", "b", "c"), repeated(10, 20, 30)),
    ("classes by category", repeated("a", "b", "c"), repeated("u", "v", "w")),
    ("an amount in another unit", NOISE * 3, NOISE * -5.4 + 32),
]


@pytest.mark.parametrize(("label", "leak"), [case[1:] for case in LEAKS], ids=[case[0] for case in LEAKS])
def test_what_knows_the_label_is_left_out(label: Any, leak: Any) -> None:
    frame = pd.DataFrame({"x": RANDOM.normal(size=N), "leak": leak, "y": label})
    by_name = {column.name: column for column in look(frame).columns}
    assert (by_name["leak"].role, by_name["leak"].is_suspect) == ("excluded", True)
    assert "alone it predicts the label" in by_name["leak"].reason
    assert (by_name["x"].role, by_name["x"].is_suspect) == ("number", False)


def test_a_good_feature_is_no_leak() -> None:
    score = np.array(BALANCED) + RANDOM.normal(0, 0.4, N)  # AUC about 0.96
    assert not any(column.is_suspect for column in look(table(BALANCED, score=score)).columns)
    many = [f"c{place % 150}" for place in range(N)]  # three rows a value: learnt by heart, not known
    assert not any(column.is_suspect for column in look(table(BALANCED, many=many)).columns)


def test_the_only_feature_stays_though_it_knows_the_label() -> None:
    frame = pd.DataFrame({"x": NOISE, "y": NOISE > 0})
    (column,) = look(frame).columns
    assert (column.role, column.is_suspect) == ("number", True)


def test_too_few_rows_tell_nothing_of_leaks() -> None:
    frame = pd.DataFrame({"x": RANDOM.normal(size=60), "z": np.arange(60) * 1.5, "y": [0] * 30 + [1] * 30})
    assert not any(column.is_suspect for column in look(frame).columns)


# ---- numbers that are text


@pytest.mark.parametrize(
    ("texts", "decimal", "values"),
    [
        (["1,234.50", "999", "12,000"], ".", [1234.5, 999, 12000]),
        (["1.234,50", "999", "12.000"], ",", [1234.5, 999, 12000]),
        (["1.234", "999"], ",", [1234, 999]),
        (["1,234,567", "8"], ".", [1234567, 8]),
        (["1.5", "2", "?"] * 5 + ["3"] * 50, ".", [1.5, 2, None] * 5 + [3] * 50),
        (["-1,5", "2,25"], ".", [-1.5, 2.25]),
    ],
)
def test_numbers_that_are_text(texts: list[str], decimal: str, values: list[float]) -> None:
    column = pd.Series(texts, name="price")
    how = text_numbers(column, decimal)
    assert how is not None
    np.testing.assert_array_equal(as_numbers(column, how).to_numpy(), np.array(values, dtype=float))


@pytest.mark.parametrize(
    "texts", [["01234", "00099"], ["a", "b", "1"], ["1.2.3", "4.5.6"], ["12 kg", "3 kg"], ["1", "a"] * 9, ["1,23,4", "5"]]
)
def test_other_text_stays_text(texts: list[str]) -> None:
    assert text_numbers(pd.Series(texts)) is None


def test_kinds() -> None:
    assert kind_of(pd.Series([1 + 2j])) == "other"
    assert kind_of(pd.Series([None, None])) == "empty"
    assert kind_of(pd.Series(pd.Categorical([1, 2]))) == "number"


# ---- refusals


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (lambda: table(1), "--label 'y': needs at least two values, got 1 in all 400 rows; name another column"),
        (lambda: table([1.0, None] * 200), "--label 'y': needs at least two values, got 1 in all 200 rows"),
        (lambda: table([None] * N), "--label 'y': needs values, got 400 rows, all missing"),
        (lambda: table([f"t{i}" for i in range(N)]), "--label 'y': at most 100 classes, got 400 different texts in 400 rows; group the rare"),
        (lambda: table(pd.date_range("2024", periods=N)), "--label 'y': must be numbers or classes, got dates"),
        (lambda: table([[1]] * N), "--label 'y': must be numbers or classes, got list"),
        (lambda: table(repeated("a", 1)), "--label 'y': must be numbers or classes, got int and str"),
        (lambda: pd.DataFrame({"y": BALANCED}), "needs a column that can be a feature, got beside label and key none"),
        (lambda: pd.DataFrame({"id": range(N), "c": 1, "y": BALANCED}), r"can be a feature, got beside label and key 'c' \(constant\)"),
    ],
)  # fmt: skip
def test_refusals(frame: Callable[[], pd.DataFrame], message: str) -> None:
    with pytest.raises(DataError, match=message):
        look(frame())


# ---- the text


@pytest.mark.parametrize("name", ['"""', "a\nb", "it's", 'say "hi"', "#\\", "\u202e", "größe", "\\N{DASH}", "{x}"])
def test_no_name_escapes_its_literal(name: str) -> None:
    frame = table(BALANCED, **{name: LETTERS, "z": NOISE, f"{name}[1]": NOISE, f"{name} day": ["2024-01-01"] * N})
    frame = frame.rename(columns={"y": f"{name} y"})
    found = infer(frame, frame[f"{name} y"], key=None)
    text = experiment_text("odd", "odd.py", Origin(f"{name}.csv", False, False, N, f"{quoted(name)}: CSV."), found, 3)
    tree = ast.parse(text)
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {name, f"{name}[1]", f"{name} day", f"{name} y", f"{name}.csv"} <= strings
    assert ast.literal_eval(quoted(name)) == name
    # Comments are the user's text too, and end where their line does.
    assert "Split(test=0.2, validation=0.2, seed=3, keep_duplicates_together=True)" in text
