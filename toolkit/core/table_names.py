"""What the user calls a table, as the engines want it: a path, `catalog.schema.table`, a URI with its format, or a JDBC address.

wine/  wine.parquet  wine.csv.gz       found out from what is there; an output that is not there yet becomes Delta
delta:PATH  parquet:PATH  csv:PATH     the format said, which a URI needs: delta:abfss://container@account/wine
main.bronze.wine  bronze.wine          a table that a Spark session knows
jdbc:postgresql://host/db#schema.wine  input only; user and password come from the environment
"""

from __future__ import annotations

import difflib
import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.core.errors import ScoringError
from toolkit.core.scoring import BATCH_ID, STATE_FOLDER
from toolkit.core.secrets import without_secrets

TableKind = Literal["delta", "parquet", "csv", "jdbc", "catalog"]
Role = Literal["input", "output"]

TABLE_NAME = re.compile(r"([\w-]+\.){1,2}[\w-]+")
FILE_ENDINGS = (".csv", ".delta", ".gz", ".json", ".parquet", ".tsv", ".txt", ".zip")

PARQUET_ENDINGS = (".parquet", ".parq")
CSV_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_PREFIXES: dict[str, TableKind] = {"delta:": "delta", "parquet:": "parquet", "csv:": "csv"}
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/")  # two letters at least
JDBC_LOGIN = re.compile(r"^jdbc:.*(?:[^:/]@|[?&;](user|username|uid|password|passwd|pwd|pass|accesstoken|token|secret)=)", re.IGNORECASE)
"""A user or a password in a JDBC address; drivers have many ways to write one."""
_JDBC_TABLE = re.compile(r"""[^\s();'\\]([^();'\\]*[^\s();'\\])?""")
_FORMATS = "a Delta table, Parquet or CSV"


@dataclass(frozen=True)
class TableName:
    """A table that is read or written; whoever opens it finds out whether it is what it seems.

    Attributes:
        location: as Spark wants it: a URI, a path of a Databricks Volume, a JDBC address without its table, or a quoted name of a catalog.
        path: on this machine (absolute, without links), also a Volume's; None for what only Spark can reach.
        shown: for messages, without secrets.
        jdbc_table: of a JDBC address, what followed the `#`.
        exists: whether there is something already; None for what only Spark can tell.
    """

    kind: TableKind
    location: str
    path: Path | None
    shown: str
    jdbc_table: str = ""
    exists: bool | None = None

    @classmethod
    def parse(cls, text: str | Path, *, role: Role) -> TableName:
        """Looks at this machine's disk, and at nothing else.

        Raises:
            ScoringError: an input that is missing, empty, not readable or of an unknown format; an output of a form that is not written,
                or a folder with something else in it; a secret in the name; a URI without its format.
        """
        text = str(text).strip()
        if text.startswith("jdbc:"):
            return _jdbc(text, role)
        prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), "")
        kind, name = _PREFIXES.get(prefix), text.removeprefix(prefix)
        if not name:
            raise ScoringError(f"{role}: a table must be named", got=repr(text), next_step="name a path or catalog.schema.table")
        if kind == "csv" and role == "output":
            raise _not_written(text)
        if _SCHEME.match(name):
            path = _local_path(name)
            return _uri(name, kind, role) if path is None else _on_disk(path, kind, role)
        if kind is None and has_form_of_table_name(name):
            location = ".".join(f"`{part}`" for part in name.split("."))  # a hyphen needs the quotes
            return cls("catalog", location, None, name)
        return _on_disk(Path(name).expanduser(), kind, role)

    def __str__(self) -> str:
        return self.shown


def has_form_of_table_name(name: str | Path) -> bool:
    """Whether a name has the form of a Spark table's, `catalog.schema.table` or `schema.table`, and is no path that exists."""
    text = str(name)
    return bool(TABLE_NAME.fullmatch(text)) and not text.endswith(FILE_ENDINGS) and not os.path.exists(Path(name).expanduser())


def spark_path(path: Path) -> str:
    """An absolute path for Spark. A Volume is Databricks' own; any other one is on this machine's disk, whatever Spark's own default is.

    Hadoop takes what stands after file:// as it is, blanks and percent signs included, so that it is no proper URI.
    """
    return str(path) if path.is_relative_to("/Volumes") else f"file://{path}"


def is_inside(inner: TableName, outer: TableName) -> bool:
    """Whether the files of `inner` lie in the folder of `outer`, or the two are the same table."""
    if inner.path is not None and outer.path is not None:
        return inner.path.is_relative_to(outer.path)
    if "catalog" in (inner.kind, outer.kind):
        return inner.kind == outer.kind and inner.location.casefold() == outer.location.casefold()
    if inner.path is not None or outer.path is not None or inner.kind == "jdbc" or outer.kind == "jdbc":
        return False
    return f"{inner.location.rstrip('/')}/".startswith(f"{outer.location.rstrip('/')}/")


# ---- addresses


def _jdbc(text: str, role: Role) -> TableName:
    url, _, table = text.partition("#")
    if JDBC_LOGIN.search(url):  # nothing of it is shown: drivers have many ways to write a password
        raise ScoringError(
            "jdbc: no user or password may be in the address, for process lists and logs show it",
            got=f"{':'.join(url.split(':')[:2])}:… with one",
            next_step="set TOOLKIT_JDBC_USER and TOOLKIT_JDBC_PASSWORD",
        )
    if role == "output":
        raise _not_written(url)
    if not _JDBC_TABLE.fullmatch(table):
        raise ScoringError(
            "jdbc: the address must end with # and a table's name", got=url, next_step="for example jdbc:postgresql://host/db#schema.table"
        )
    return TableName("jdbc", url, None, text, jdbc_table=table)


def _not_written(shown: str) -> ScoringError:
    return ScoringError(
        "output: a Delta table, a Parquet folder or catalog.schema.table", got=shown, next_step="CSV and JDBC are read, never written"
    )


def _local_path(uri: str) -> Path | None:
    """Of `file:` URIs, and of Volumes, which Databricks mounts."""
    if uri.startswith("dbfs:/Volumes/"):
        return Path(uri.removeprefix("dbfs:"))
    parsed = urllib.parse.urlsplit(uri)
    return Path(urllib.parse.unquote(parsed.path)) if parsed.scheme == "file" and parsed.netloc in ("", "localhost") else None


def _uri(uri: str, kind: TableKind | None, role: Role) -> TableName:
    shown = without_secrets(uri)
    if shown != uri:
        raise ScoringError(
            f"{role}: no secret may be in a table's name, for process lists and logs show it",
            got=shown,
            next_step="let Spark's own configuration files name the key",
        )
    if kind is None:
        raise ScoringError(f"{role}: a URI needs its format", got=uri, next_step=f"write delta:{uri} or parquet:{uri}")
    return TableName(kind, uri, None, uri)


# ---- this machine's disk


def _on_disk(path: Path, wanted: TableKind | None, role: Role) -> TableName:
    path = Path(os.path.realpath(path))
    try:
        if role == "output":
            kind, exists = _kind_of_output(path, wanted)
        else:
            kind, exists = _kind_of_input(path, wanted), True
    except OSError as error:
        raise ScoringError(f"{role}: cannot be read", got=f"{path}: {error.strerror}", next_step="check its permissions") from error
    location = spark_path(path)
    return TableName(kind, location, path, str(path), exists=exists)


def _kind_of_input(path: Path, wanted: TableKind | None) -> TableKind:
    if not path.exists():
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        raise ScoringError(
            "input: no such file, folder or table",
            got=str(path),
            next_step=f"did you mean {close[0]!r}?" if close else "check the path, or name catalog.schema.table",
        )
    found = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path, wanted)
    if found is None:
        if path.is_dir() and not any(path.iterdir()):
            raise ScoringError("input: the folder is empty", got=str(path), next_step="name one with a table")
        raise ScoringError(f"input: must be {_FORMATS}", got=f"{path} ({_contents(path)})", next_step="write it as one of these")
    if wanted in (None, found):
        return found
    raise ScoringError(f"input: said to be {wanted}", got=f"{found} in {path}", next_step=f"write {found}:{path}")


def _kind_of_output(path: Path, wanted: TableKind | None) -> tuple[TableKind, bool]:
    if path.exists() and not path.is_dir():
        raise ScoringError("output: must be a folder or catalog.schema.table", got=f"the file {path}", next_step="name another path")
    found = _kind_of_folder(path) if path.exists() else None
    if found in (None, "parquet") and _is_ours(path):  # maybe with files of a first batch that was broken off, and no table yet
        ours: TableKind = "parquet" if next(path.glob(f"{BATCH_ID}=*"), None) else "delta"
        if wanted in (None, ours):
            return ours, ours == found
    if found is None and path.exists() and any(_visible(each.name) for each in path.iterdir()):
        raise ScoringError(
            "output: must be a Delta table, a Parquet folder or an empty one",
            got=f"{path} ({_contents(path)})",
            next_step="name another folder",
        )
    if found == "csv":
        raise _not_written(f"CSV files in {path}")
    if found is not None and wanted not in (None, found):
        raise ScoringError(f"output: said to be {wanted}", got=f"{found} in {path}", next_step=f"write {found}:{path}, or name another")
    if found is None:
        return ("parquet" if wanted == "parquet" else "delta"), False
    return found, True


def _is_ours(path: Path) -> bool:
    """A quarantine has no state of its own."""
    return path.is_dir() and ((path / STATE_FOLDER).is_dir() or path.name.endswith("_quarantine"))


def _kind_of_file(path: Path, wanted: TableKind | None) -> TableKind | None:
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic:
        raise ScoringError("input: the file is empty", got=str(path), next_step="name one with a table")
    if magic == b"PAR1":
        return "parquet"
    return "csv" if wanted == "csv" or path.name.lower().endswith(CSV_ENDINGS) else None


def _kind_of_folder(path: Path) -> TableKind | None:
    """By the first folder in it that has data files."""
    if (path / "_delta_log").is_dir():
        return "delta"
    for folder, files in _walk(path):
        if (folder / "_delta_log").is_dir():
            raise ScoringError(
                "a folder of tables is no table", got=f"{path} with the Delta table {folder.name}", next_step="name one of them"
            )
        kinds: set[TableKind] = set()
        for file in files:
            if file.lower().endswith(PARQUET_ENDINGS):
                kinds.add("parquet")
            elif file.lower().endswith(CSV_ENDINGS):
                kinds.add("csv")
        if len(kinds) > 1:
            raise ScoringError("a folder must hold files of one format", got=f"Parquet and CSV in {folder}", next_step="take them apart")
        if kinds:
            return kinds.pop()
    return None


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(path, onerror=refuse):
        folders[:] = sorted(name for name in folders if _visible(name))
        yield Path(folder), [name for name in files if _visible(name)]


def _visible(name: str) -> bool:
    """Spark and Delta do not read what begins with a dot or, but for a partition, with an underscore."""
    return not name.startswith(".") and (not name.startswith("_") or "=" in name)


def _contents(path: Path) -> str:
    if path.is_file():
        return "".join(path.suffixes[-2:]) or "a file without an ending"
    names = sorted(each.name for each in path.iterdir())
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])
