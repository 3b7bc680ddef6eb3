"""The file that `toolkit new` writes: an experiment in Python, with the reason of every choice beside it.

Formatted as `ruff format` would (88 columns). Text of the user's stands in it only as Python literals: a column's name can neither end a
comment nor a string.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.core.column_kinds import TextNumbers
from toolkit.core.inference import Column, Inference
from toolkit.core.inferred_label import Label

WIDTH = 88
MANY_ROWS = 100_000


@dataclass(frozen=True)
class Origin:
    """Where the rows are.

    Attributes:
        data: as the user named it: a path, `catalog.schema.table`. is_table: the latter. is_absolute: a path that needs no folder.
        described: for a person, without secrets: kind, rows, and how a CSV file is written.
    """

    data: str
    is_table: bool
    is_absolute: bool
    num_rows: int
    described: str


def experiment_text(name: str, file_name: str, origin: Origin, found: Inference, seed: int) -> str:
    """The whole file. `seed`: of a split whose parts all have two classes."""
    repairs = _repairs(found)
    names = ["Dataset", "Experiment", "Float", "Gate", "Int", "Metric", "Split", "Sweep", "XGBoost"]
    names += ["Asha"] if origin.num_rows >= MANY_ROWS else []
    names += ["Costs"] if found.label.task == "binary" else []
    names += ["DataContext", "Loaded", "read_table"] if repairs else []
    lines = [
        f'"""Experiment {name}. Written by `toolkit new`; now it is yours: read it, change it.',
        "",
        f"Look at the data with `toolkit explore ./{file_name}`,",
        f"fit something to compare with by `toolkit train ./{file_name} --baseline`,",
        f"search for the best model with `toolkit sweep ./{file_name}`.",
        '"""',
        "",
        *([] if origin.is_table else ["from pathlib import Path", ""]),
        *_import(names),
        "",
        *_comment(0, origin.described),
        *_data(origin),
        "",
        "",
        "def experiment() -> Experiment:",
        "    return Experiment(",
        f"        name={quoted(name)},",
        *_dataset(origin, found, bool(repairs)),
        *_split(found, seed),
        *_model(found.label),
        *_space(origin.num_rows),
        *_judgement(found.label, origin.num_rows),
        "    )",
    ]
    return "\n".join([*lines, *(_load(repairs, origin) if repairs else [])]) + "\n"


def quoted(text: str) -> str:
    """A Python literal on one line, in double quotes where that needs no escape more."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in text else literal


def _comment(indent: int, text: str) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=f"{space}# ", subsequent_indent=f"{space}# ", break_on_hyphens=False)


def _import(names: Iterable[str]) -> list[str]:
    ordered = sorted(names, key=lambda name: (name.islower(), name))
    line = f"from toolkit import {', '.join(ordered)}"
    return [line] if len(line) <= WIDTH else ["from toolkit import (", *(f"    {name}," for name in ordered), ")"]


def _data(origin: Origin) -> list[str]:
    if origin.is_table:
        return [f"DATA = {quoted(origin.data)}"]
    return [f"DATA = Path({quoted(origin.data)})" if origin.is_absolute else f"DATA = Path(__file__).parent / {quoted(origin.data)}"]


def _tuple(indent: int, field: str, names: Sequence[str]) -> list[str]:
    """`field=(…),` on one line where it fits."""
    space = " " * indent
    items = ", ".join(map(quoted, names))
    line = f"{space}{field}=({items}{',' if len(names) == 1 else ''}),"
    return [line] if len(line) <= WIDTH else [f"{space}{field}=(", *(f"{space}    {quoted(name)}," for name in names), f"{space}),"]


# ---- the parts of the experiment


def _dataset(origin: Origin, found: Inference, has_load: bool) -> list[str]:
    load = "load" if has_load else "DATA" if origin.is_table else "str(DATA)"
    renamed = {name: found.renamed.get(name, name) for name in found.names("category")}
    lines = ["        dataset=Dataset(", f"            load={load},"]
    lines += [*_comment(12, _about_label(found.label)), f"            label={quoted(found.label.name)},"]
    lines += _positive(found.label)
    if found.key is not None:
        lines += [*_comment(12, f"Identifies a row ({found.key_reason}); never a feature."), f"            key={quoted(found.key)},"]
    if renamed:
        lines += _comment(12, "Values without an order. Whole numbers that are only codes belong here, too.")
        lines += _tuple(12, "categorical", list(renamed.values()))
    elif any(column.role == "number" for column in found.columns):
        lines += _comment(12, 'All features are numbers. Of codes without an order make categories: categorical=("…",).')
    suspects = [column.name for column in found.columns if column.is_suspect and column.role != "excluded"]
    if suspects:
        names = ", ".join(map(quoted, suspects))
        lines += _comment(12, f"LEAK? Each of {names} alone predicts the label, and there is no other feature: were they known before it?")
    lines += _exclude([column for column in found.columns if column.role == "excluded"])
    return [*lines, "        ),"]


def _about_label(label: Label) -> str:
    text = f"A {label.task} task: {label.reason}."
    if label.classes is not None and label.task == "binary" and not label.is_positive_named:
        share = f"{label.positive_share:.2g} of the rows"
        text += f" The positive class is {_value(label.positive)} ({share}); positive={_negative(label)!r} makes it the other one."
    rare = [value for value, num in (label.classes or {}).items() if num < 10]
    if rare:
        some = ", ".join(map(_value, rare[:5])) + (", …" if len(rare) > 5 else "")
        text += f" Fewer than 10 rows: {some}."
    if label.alternative == "regression":
        text += ' If they are amounts: objective="reg:squarederror", Metric("rmse", "minimize") and gates for rmse.'
    elif label.alternative == "multiclass":
        text += ' If they are classes: objective="multi:softprob", Metric("mlogloss", "minimize") and gates for mlogloss.'
    return text


def _positive(label: Label) -> list[str]:
    if not label.is_positive_named:
        return []
    about = f"The class that is looked for: {_value(label.positive)}, {label.positive_share:.2g} of the rows ({label.positive_reason})."
    about += f" Probability, recall and costs are of it; change it if you look for {_value(_negative(label))}."
    literal = quoted(label.positive) if isinstance(label.positive, str) else repr(label.positive)
    return [*_comment(12, about), f"            positive={literal},"]


def _negative(label: Label) -> object:
    return next(iter(label.classes or ()))


def _exclude(columns: Sequence[Column]) -> list[str]:
    if not columns:
        return []
    lines = ["            # In the report of `toolkit explore`, never features:", "            exclude=("]
    for reason in dict.fromkeys(column.reason for column in columns):
        same = [column for column in columns if column.reason == reason]
        lines += _comment(16, f"LEAK? {reason}" if same[0].is_suspect else reason)
        lines += [f"                {quoted(column.name)}," for column in same]
    return [*lines, "            ),"]


def _split(found: Inference, seed: int) -> list[str]:
    dates = [column.name for column in found.columns if column.is_date]
    about = "A fifth of the rows to test the winner, once; of the rest a fifth to choose it. Equal rows stay in one part."
    if dates:
        about += f" The rows are taken at random; where they have a time (perhaps {quoted(dates[0])}), split by it."
    return [
        *_comment(8, about),
        f"        split=Split(test=0.2, validation=0.2, seed={seed}, keep_duplicates_together=True),",
    ]


def _model(label: Label) -> list[str]:
    return [
        "        model=XGBoost(",
        f"            objective={quoted(label.objective)},",
        "            num_boost_round=500,",
        "            early_stopping_rounds=20,",
        "        ),",
    ]


def _space(num_rows: int) -> list[str]:
    depth = "Int(2, 6)" if num_rows < 2_000 else "Int(3, 10)" if num_rows < MANY_ROWS else "Int(4, 12)"
    return [
        *_comment(8, f"What the search may choose; the trees' depth suits {num_rows:,} rows."),
        "        space={",
        f'            "max_depth": {depth},',
        '            "learning_rate": Float(0.03, 0.3, log=True),',
        '            "min_child_weight": Float(1.0, 20.0, log=True),',
        '            "subsample": Float(0.6, 1.0),',
        '            "colsample_bytree": Float(0.5, 1.0),',
        '            "reg_lambda": Float(0.01, 10.0, log=True),',
        "        },",
    ]


def _judgement(label: Label, num_rows: int) -> list[str]:
    scheduler = ", scheduler=Asha()" if num_rows >= MANY_ROWS else ""
    rule = "at_least" if label.direction == "maximize" else "at_most"
    floor = {
        "auc": "is what guessing reaches",
        "aucpr": "is the share of positives, which is what guessing reaches",
        "mlogloss": "is what the classes' shares alone reach",
        "rmse": "is what the mean alone reaches",
    }[label.metric]
    lines = []
    if label.metric == "aucpr":
        about = f"Positives ({_value(label.positive)}) are rare ({label.floor:.2g}): auc would look good on the negatives alone."
        lines += _comment(8, about)
    lines += [
        f"        metric=Metric({quoted(label.metric)}, {quoted(label.direction)}),",
        f"        sweep=Sweep(num_trials=50, seed=0{scheduler}),",
    ]
    if label.task == "binary":
        high, low = _value(label.positive), _value(_negative(label))
        about = f"What a false alarm (fp: {low} taken for {high}) and a miss (fn: {high} taken for {low}) cost: they choose the threshold."
        lines += _comment(8, about)
        lines += ["        costs=Costs(fp=1, fn=1),"]
    about = f"What a model must reach on the test part to be promoted. {label.floor:g} {floor}: put in what the model's use needs."
    return [
        *lines,
        *_comment(8, about),
        "        gates=(",
        f"            Gate({quoted(label.metric)}, {rule}={label.floor:g}),",
        f"            Gate({quoted(label.metric)}, no_worse_than_champion_by={label.margin:g}),",
        "        ),",
    ]


# ---- the load function, where the table needs one


def _repairs(found: Inference) -> list[str]:
    lines: list[str] = []
    for how in found.text_numbers:
        lines += _number_lines(how)
    for name, width in found.padded.items():
        lines += _comment(4, f"Codes of {width} digits, zeros first: read from CSV they are numbers without these.")
        column = f"table[{quoted(name)}]"
        lines += [f'    text = {column}.astype("string").str.removesuffix(".0")', f"    {column} = text.str.zfill({width})"]
    if found.infinite:
        names = ", ".join(map(quoted, found.infinite))
        lines += _comment(4, f"Infinite values (in {names}) count as missing.")
        lines += ['    table = table.replace([float("inf"), float("-inf")], float("nan"))']
    if found.label.num_missing:
        lines += _comment(4, f"Rows without a label cannot be trained on: {found.label.num_missing:,}.")
        lines += [f"    table = table.dropna(subset=[{quoted(found.label.name)}])"]
    if found.renamed:
        lines += _comment(4, "XGBoost takes no [ ] < in names.")
        lines += ["    table = table.rename(", "        columns={"]
        lines += [f"            {quoted(old)}: {quoted(new)}," for old, new in found.renamed.items()]
        lines += ["        }", "    )"]
    return lines


def _number_lines(how: TextNumbers) -> list[str]:
    marks = " with thousands separators" if how.thousands else ""
    about = f"Numbers that are text{marks}, such as {quoted(how.example)}"
    if how.placeholders:
        about += f"; {', '.join(map(quoted, how.placeholders))} stand{'s' if len(how.placeholders) == 1 else ''} for missing"
    column = f"table[{quoted(how.name)}]"
    lines = [*_comment(4, about + "."), f"    text = {column}.str.strip()"]
    if how.placeholders:
        lines += [f"    text = text.mask(text.isin([{', '.join(map(quoted, how.placeholders))}]))"]
    if how.thousands:
        lines += [f'    text = text.str.replace({quoted(how.thousands)}, "", regex=False)']
    if how.decimal != ".":
        lines += [f'    text = text.str.replace({quoted(how.decimal)}, ".", regex=False)']
    return [*lines, f"    {column} = pd.to_numeric(text)"]


def _load(repairs: Sequence[str], origin: Origin) -> list[str]:
    needs_pandas = any("pd." in line for line in repairs)
    return [
        "",
        "",
        "def load(context: DataContext) -> Loaded:",
        '    """The table as the model needs it; `--data FILE` replaces its file."""',
        *(["    import pandas as pd", ""] if needs_pandas else []),
        "    source = context.data or DATA",
        "    table = read_table(source)",
        *repairs,
        f'    return Loaded(table, "{"table" if origin.is_table else "file"}", str(source))',
    ]


def _value(value: object) -> str:
    """A class, on one short line."""
    text = quoted(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
