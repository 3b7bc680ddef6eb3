"""A first experiment for the user's own table: looks at the rows, decides, and writes a file that `toolkit sweep` runs as it is.

`new(...)` is the Python API and what `toolkit new` calls.
"""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import sysconfig
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import DataError, UserError
from toolkit.core.secrets import without_secrets
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.core.experiment_text import Origin
    from toolkit.core.inference import Inference
    from toolkit.engines.table_samples import TableSample

MOST_SEEDS = 50
SHOWN_NAMES = 6
SHOWN_EXCLUDED = 12


@dataclass(frozen=True)
class NewExperiment:
    """What was found and written.

    Attributes:
        path: the new file, relative to the working directory.
        origin, inference: see `core.experiment_text` and `core.inference`.
        num_looked_at: rows from which types were inferred; label and key are read whole.
        seed: of the split. is_checked: the file was loaded, its data read, encoded and split; large tables are left to the first sweep.
    """

    name: str
    path: Path
    origin: Origin
    inference: Inference
    num_looked_at: int
    seed: int
    is_checked: bool

    @property
    def title(self) -> str:
        return f"{self.path} written"

    @property
    def next_commands(self) -> tuple[str, ...]:
        return f"toolkit explore ./{self.path}", f"toolkit train ./{self.path} --baseline", f"toolkit sweep ./{self.path}"

    def as_json(self) -> dict[str, Any]:
        found, label = self.inference, self.inference.label
        return {
            "name": self.name,
            "path": str(self.path),
            "data": without_secrets(self.origin.data),
            "described": self.origin.described,
            "num_rows": self.origin.num_rows,
            "num_looked_at": self.num_looked_at,
            "is_checked": self.is_checked,
            "label": label.name,
            "task": label.task,
            "reason": label.reason,
            "alternative": label.alternative,
            "objective": label.objective,
            "metric": label.metric,
            "direction": label.direction,
            "floor": label.floor,
            "classes": None if label.classes is None else {str(value): num for value, num in label.classes.items()},
            "positive": None if label.positive is None else str(label.positive),
            "num_missing_labels": label.num_missing,
            "key": found.key,
            "numbers": list(found.names("number")),
            "categories": list(found.names("category")),
            "excluded": {column.name: column.reason for column in found.columns if column.role == "excluded"},
            "leakage_suspects": [column.name for column in found.columns if column.is_suspect],
            "times": [column.name for column in found.columns if column.is_date],
            "renamed": dict(found.renamed),
            "text_numbers": [how.name for how in found.text_numbers],
            "infinite": list(found.infinite),
            "split_seed": self.seed,
            "next_commands": list(self.next_commands),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a person."""
        found, label = self.inference, self.inference.label
        excluded = [f"{_some([column.name])}: {column.reason}" for column in found.columns if column.role == "excluded"]
        rows = [
            ("data", self.origin.described.rstrip(".")),
            ("label", f"{label.name}: {label.task}, {label.reason}" + (f"; perhaps {label.alternative}" if label.alternative else "")),
            *self._positive_rows(),
            ("key", f"{found.key}: {found.key_reason}" if found.key else found.key_reason),
            ("numbers", _some(found.names("number"))),
            ("categories", _some(found.names("category"))),
            *(("left out", text) for text in excluded[:SHOWN_EXCLUDED]),
        ]
        if len(excluded) > SHOWN_EXCLUDED:
            rows.append(("left out", f"and {len(excluded) - SHOWN_EXCLUDED} more: see the file"))
        rows.append(("metric", f"{label.metric}, {label.direction}; {label.floor:g} without any feature"))
        return rows + [("next", command) for command in self.next_commands]

    def _positive_rows(self) -> list[tuple[str, str]]:
        label = self.inference.label
        if label.positive is None:
            return []
        other = "; change `positive` if you look for the other one" if label.is_positive_named else ""
        return [("positive", f"{_some([str(label.positive)])}: {label.positive_reason}, {label.positive_share:.1%} of the rows{other}")]

    def warnings(self) -> list[str]:
        """What was done to the table, or left out of it, that the user may not want."""
        found = self.inference
        suspects = [column.name for column in found.columns if column.is_suspect]
        warnings = []
        if suspects:
            kept = "left out" if suspects[0] in found.names("excluded") else "kept, for there is no other feature"
            predict = f"predict{'s' if len(suspects) == 1 else ''}"
            warnings.append(f"{_some(suspects)} {predict} the label alone, perhaps a leak: {kept}; see {self.path}")
        if found.label.num_missing:
            warnings.append(f"rows without a label: {found.label.num_missing:,}; the file's load function drops them")
        if found.text_numbers:
            names = _some([how.name for how in found.text_numbers])
            warnings.append(f"numbers that are text are converted by the file's load function: {names}")
        if found.padded:
            warnings.append(f"codes with leading zeros are text: the file's load function keeps the zeros of {_some(list(found.padded))}")
        if found.infinite:
            warnings.append(f"infinite values count as missing: {_some(found.infinite)}")
        if found.renamed:
            renamed = _some([f"{old} → {new}" for old, new in found.renamed.items()])
            warnings.append(f"XGBoost takes no [ ] < in names: the file's load function renames {renamed}")
        return warnings

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self.rows())
        return f"<p>{escape(self.title)}</p><table>{cells}</table>"


def new(name: str, *, data: str | Path, label: str, key: str | None = None, settings: Settings | None = None) -> NewExperiment:
    """Write `NAME.py` (`-` becomes `_`) into the working directory.

    Args:
        data: a CSV file, Parquet file or folder, Delta folder, or a table that the active Spark session knows.
        label: column to predict; key: column that identifies a row, found where it is not named.

    Raises:
        UserError: the name will not do, the file exists, the table cannot be read, or nothing can be predicted from it. Nothing is
            written then.
    """
    path = _target(name)
    sample = _look(str(data), label)
    inference = _infer(sample, _shown(data), label, key)
    origin = _origin(str(data), sample)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_text(name, path, origin, inference, 0))
    except FileExistsError:  # by another process, since it was looked for
        raise _exists(path) from None
    try:
        seed = _check(path, settings or Settings.read()) if sample.is_whole else 0
        if seed:
            path.write_text(_text(name, path, origin, inference, seed), encoding="utf-8")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return NewExperiment(name, path, origin, inference, len(sample.frame), seed, sample.is_whole)


def _target(name: str) -> Path:
    """The file for `name`, relative to the working directory; nothing has it yet."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise UserError("NAME: lower-case letters, digits, '-' and '_', at most 63", got=repr(name), next_step=_suggestion(name))
    module = name.replace("-", "_")
    path = Path(f"{module}.py")
    if os.path.lexists(path):
        raise _exists(path)
    if keyword.iskeyword(module):
        raise UserError("NAME: no word of Python's own, for no module can be called so", got=repr(name), next_step=f"for example my-{name}")
    if _is_installed(module):
        raise UserError(
            "NAME: the file must not hide a module that is installed", got=f"{path} and {module}", next_step=f"for example my-{name}"
        )
    return path


def _is_installed(module: str) -> bool:
    """Python's own, a package's, or ours; not a file of the user's in some other folder, nor a folder, before which a file goes."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return False
    homes = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")] + [Path(__file__).resolve().parent]
    origin = Path(spec.origin)
    return not origin.is_absolute() or any(origin.resolve().is_relative_to(home) for home in homes)


def _suggestion(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name.lower().removesuffix(".py")).encode("ascii", "ignore").decode()
    legal = re.sub(r"[^a-z0-9_-]+", "-", ascii_name).strip("-_")[:63]
    return f"for example {legal}" if legal else "for example churn"


def _exists(path: Path) -> UserError:
    return UserError(
        "NAME: the file must not exist, for nothing is overwritten", got=str(path), next_step="take another name, or move it away"
    )


def _shown(data: str | Path) -> str:
    return without_secrets(Path(data).name if "://" not in str(data) else str(data))


def _look(data: str, label: str) -> TableSample:
    from toolkit.engines.table_samples import sample_table

    if "://" in data:
        raise DataError(
            "--data: a file or folder that is mounted here, or a table's name",
            got=without_secrets(data),
            next_step="copy it here, or write an experiment whose load function reads it",
        )
    return sample_table(data, label)


def _infer(sample: TableSample, where: str, label: str, key: str | None) -> Inference:
    from toolkit.core.inference import check_key, check_name, find_identifiers, infer

    columns = list(sample.frame.columns)
    check_name("--label", label, columns, where)
    identifiers: list[str] = []
    if key is None:
        identifiers = find_identifiers(sample.frame, label, sample.index_name, None if sample.is_whole else sample.column)
    else:
        check_name("--key", key, columns, where)
        if key == label:
            raise UserError("--key: must not be the label", got=repr(key), next_step="name another column, or leave --key out")
        check_key(sample.column(key))
    frame = sample.frame
    if sample.index_name is not None and sample.index_name not in (label, key, *identifiers[:1]):
        frame = frame.drop(columns=sample.index_name)  # an index that an experiment does not name is no column
    decimal = sample.csv.decimal if sample.csv else "."
    return infer(
        frame,
        sample.column(label),
        key=key,
        identifiers=identifiers,
        is_whole=sample.is_whole,
        decimal=decimal,
        padded=sample.padded,
    )


def _origin(data: str, sample: TableSample) -> Origin:
    from toolkit.core.experiment_text import Origin, quoted
    from toolkit.engines.csv_files import DELIMITERS

    path = Path(data).expanduser()
    written = ""
    if sample.csv is not None:
        mark = "comma" if sample.csv.decimal == "," else "point"
        written = f" (delimiter {DELIMITERS[sample.csv.delimiter]}, decimal {mark}, {sample.csv.encoding})"
    looked_at = "all of them looked at" if sample.is_whole else f"{len(sample.frame):,} of them, from all over, looked at"
    described = f"{quoted(_shown(data))}: {sample.kind}{written}, {sample.num_rows:,} rows, {looked_at}."
    if sample.csv is not None and sample.csv.encoding == "cp1252":
        described += " It is not UTF-8: cp1252 (Western European) is a guess; where letters look wrong, convert the file."
    if sample.csv is not None and sample.csv.ambiguous:
        described += f" {quoted(sample.csv.ambiguous)} was taken for a number with a decimal comma: was it a thousand?"
    is_table = sample.kind == "table"
    return Origin(data if is_table else str(path), is_table, path.is_absolute(), sample.num_rows, described)


def _text(name: str, path: Path, origin: Origin, inference: Inference, seed: int) -> str:
    from toolkit.core.experiment_text import experiment_text

    return experiment_text(name, str(path), origin, inference, seed)


def _check(path: Path, settings: Settings) -> int:
    """Do with the file what a sweep does before its search.

    Returns:
        a split's seed with which every part has two classes: of few positives, all may fall into one part.
    """
    from toolkit.core.data import DataContext
    from toolkit.core.recipes import load_experiment
    from toolkit.engines.sklearn_splits import split
    from toolkit.engines.tables import load_data

    experiment = load_experiment(str(path.absolute()))
    loaded = load_data(experiment, DataContext(data=None, data_dir=settings.data_dir, cache_dir=settings.home / "cache"))
    refusal: DataError | None = None
    for seed in range(MOST_SEEDS):
        try:
            split(loaded, replace(experiment.split, seed=seed), "honest")
            return seed
        except DataError as error:
            refusal = error
    assert refusal is not None
    raise refusal


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(" ".join(name.split()) for name in names[:SHOWN_NAMES])
    return shown + (f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else "")
