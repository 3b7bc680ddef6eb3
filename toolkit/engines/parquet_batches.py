"""A Parquet output, made of committed batches: what is in it is what its manifests say.

    OUTPUT/batch_id=N/*.parquet                    written by an engine, in any number of files
    OUTPUT/_toolkit/manifests/00000000N.json       batch N is there when, and only when, this file is

A manifest appears whole, once and for all; it lists the files that belong to its batch, so that what a killed run has left in the folder,
or beside it, is never read. Nothing is deleted: a batch that replaces others hides their rows from readers.

Who writes a batch asks `is_committed` first: of a committed batch no file may change, a replay has nothing to do.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import ScoringError, nearest
from toolkit.core.scoring import BATCH_ID, STATE_FOLDER
from toolkit.engines.score_state import write_json
from toolkit.engines.write_once import sync, write_once

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

FORMAT = 1
RESTORE = "restore it from a backup, or score all anew with --mode full"

# Rows of earlier batches that are hidden: none, all, or those of a half-open time span (column, from, to), ISO 8601 with a time zone.
Window = tuple[str, str, str]
Replaces = Literal["all"] | Window | None


@dataclass(frozen=True)
class BatchFile:
    """`name`: relative to the batch's folder, with `/`."""

    name: str
    num_rows: int
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """One committed batch.

    Attributes:
        replaces: which rows of all batches with a lower `batch_id` it stands for.
        metadata: the engine's own (model, version, counts, generation): JSON.
    """

    batch_id: int
    files: tuple[BatchFile, ...]
    replaces: Replaces = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    def paths(self, output: Path) -> list[Path]:
        return [batch_folder(output, self.batch_id) / file.name for file in self.files]

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "batch_id": self.batch_id,
            "num_rows": self.num_rows,
            "files": [asdict(file) for file in self.files],
            "replaces": list(self.replaces) if isinstance(self.replaces, tuple) else self.replaces,
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True)
class LiveBatch:
    """A batch that has readable rows: all but those in the `hidden` time spans, which later batches replace. Rows without a time stay."""

    manifest: Manifest
    hidden: tuple[Window, ...]


def batch_folder(output: Path, batch_id: int) -> Path:
    return output / f"{BATCH_ID}={batch_id}"


# ---- writing


def manifest_of(output: Path, batch_id: int, *, replaces: Replaces = None, metadata: Mapping[str, Any] | None = None) -> Manifest:
    """Of what was written to the batch's folder: all Parquet files in it, without Spark's and Hadoop's own (`_SUCCESS`, `.crc`).

    Raises:
        ScoringError: a file is not Parquet.
    """
    folder = batch_folder(output, batch_id)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.parquet"))
    files = tuple(_file(folder, name) for name in names if not any(part.startswith(("_", ".")) for part in name.parts))
    return Manifest(batch_id, files, replaces, metadata or {})


def _file(folder: Path, name: Path) -> BatchFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / name
    try:
        num_rows = pq.read_metadata(path).num_rows
    except pa.ArrowInvalid as error:
        raise ScoringError("a batch must be of Parquet files", got=f"{path}: {error}", next_step="run it again") from error
    return BatchFile(name.as_posix(), num_rows, path.stat().st_size)


def commit(output: Path, manifest: Manifest) -> None:
    """Make a batch exist: its files are on the disk before. Once more with the same manifest: nothing happens.

    Raises:
        ScoringError: the files are not there as listed, or the batch was committed with other content.
    """
    if isinstance(manifest.replaces, tuple):
        bounds(manifest.replaces)
    found = read_manifest(output, manifest.batch_id)
    if found is None:
        check_files(output, manifest)
        for path in manifest.paths(output):
            sync(path)
        folder = batch_folder(output, manifest.batch_id)
        if folder.exists():
            sync(folder)
            sync(output)
        path, content = _manifest_path(output, manifest.batch_id), manifest.as_json()
        if not write_once(path, content) and path.stat().st_size == 0:  # begun by a killed run where there are no hard links
            write_json(path, content)
        found = read_manifest(output, manifest.batch_id)
    if found is None or found.as_json() != json.loads(json.dumps(manifest.as_json())):
        raise ScoringError(
            "a batch must be committed once",
            got=f"batch {manifest.batch_id} of {output} with other content than another run gave it",
            next_step="run it again: it goes on after that batch",
        )


def is_begun(output: Path) -> bool:
    """Whether a batch was ever written, whatever has become of its manifest."""
    return next(output.glob(f"{BATCH_ID}=*"), None) is not None


def is_committed(output: Path, batch_id: int) -> bool:
    """Raises ScoringError: its manifest is damaged."""
    return read_manifest(output, batch_id) is not None


# ---- reading


def manifests(output: Path) -> list[Manifest]:
    """Of all committed batches, by number.

    Raises:
        ScoringError: one is damaged, or of a newer toolkit.
    """
    numbers = sorted(int(path.stem) for path in manifests_folder(output).glob("*.json") if path.stem.isdecimal())
    return [found for number in numbers if (found := read_manifest(output, number)) is not None]


def live_batches(output: Path) -> list[LiveBatch]:
    """The batches that have readable rows, by number; see `manifests`."""
    return live(manifests(output))


def live(committed: Sequence[Manifest]) -> list[LiveBatch]:
    """Of all the manifests of an output."""
    found: list[LiveBatch] = []
    hidden: tuple[Window, ...] = ()
    for manifest in sorted(committed, key=lambda each: each.batch_id, reverse=True):
        found.append(LiveBatch(manifest, hidden))
        if manifest.replaces == "all":
            break
        if manifest.replaces is not None and manifest.replaces not in hidden:
            hidden = (*hidden, manifest.replaces)
    return found[::-1]


def windows(batches: Sequence[LiveBatch]) -> dict[Window, int]:
    """The time spans that are replaced, each with the number below which batches lose their rows in it."""
    return {each.manifest.replaces: each.manifest.batch_id for each in batches if isinstance(each.manifest.replaces, tuple)}


def read(output: Path, columns: Sequence[str] | None = None, where: ds.Expression | None = None) -> pa.Table:
    """All that is committed, as it is now: the rows in the order of their batches, `batch_id` int64. What Spark calls a timestamp is one in
    UTC.

    Args:
        columns: None for all. Only these are read.
        where: which rows; row groups that can have none are not read.

    Raises:
        ScoringError: a manifest or a file is damaged, gone or changed; there is no such column; `where` does not fit the columns.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.fs as fs

    batches = live_batches(output)
    for each in batches:
        check_files(output, each.manifest)
    try:
        schema = pa.unify_schemas([pa.schema([]), *schemas(output, batches)], promote_options="permissive")
        if schema.get_field_index(BATCH_ID) < 0:
            schema = schema.append(pa.field(BATCH_ID, pa.int64()))
        schema = schema.set(schema.get_field_index(BATCH_ID), pa.field(BATCH_ID, pa.int64()))
        unknown = [name for name in columns or () if name not in schema.names]
        if unknown:
            raise ScoringError(f"columns: no such column in {output}", got=repr(unknown[0]), next_step=nearest(unknown[0], schema.names))
        for window, batch_id in windows(batches).items():
            shown = _is_shown(schema, window, batch_id)
            where = shown if where is None else where & shown
        parquet = ds.ParquetFileFormat(coerce_int96_timestamp_unit="us")
        fragments = [
            parquet.make_fragment(str(path), fs.LocalFileSystem(), ds.field(BATCH_ID) == each.manifest.batch_id)
            for each in batches
            for path in each.manifest.paths(output)
        ]
        return ds.FileSystemDataset(fragments, schema, parquet).to_table(columns=None if columns is None else list(columns), filter=where)
    except (pa.ArrowException, OSError) as error:
        raise ScoringError("scores must be readable", got=f"{output}: {error}", next_step="check the filters and the files") from error


def schemas(output: Path, batches: Sequence[LiveBatch]) -> list[pa.Schema]:
    """Of the first file of each batch that has one, without metadata. Spark's timestamps, which its files do not say are in UTC, are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for each in batches:
        for path in each.manifest.paths(output)[:1]:
            with pq.ParquetFile(path) as opened:
                physical = [opened.schema.column(number) for number in range(len(opened.schema))]
                old = {column.path for column in physical if column.physical_type == "INT96"}
                utc = pa.timestamp("us", tz="UTC")
                found.append(pa.schema([field.with_type(utc) if field.name in old else field for field in opened.schema_arrow]))
    return found


def not_a_time(name: str, kind: object) -> ScoringError:
    return ScoringError(
        "the time column of a replaced window must be a timestamp or a date",
        got=f"{name!r}, which is {kind}" if kind else f"no {name!r}",
        next_step="score all anew with --mode full",
    )


def _is_shown(schema: pa.Schema, window: Window, batch_id: int) -> ds.Expression:
    """Rows without a time are outside of every time span."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    name = window[0]
    kind = schema.field(name).type if name in schema.names else None
    if kind is None or not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise not_a_time(name, kind)
    time = ds.field(name)
    start, end = bounds(window)
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    if pa.types.is_date(kind):
        time = time.cast(pa.timestamp("us"))
    as_scalar = pa.timestamp("us", tz=kind.tz if zoned else None)
    first, last = (pa.scalar(each if zoned else each.replace(tzinfo=None), as_scalar) for each in (start, end))
    return (ds.field(BATCH_ID) >= batch_id) | time.is_null() | (time < first) | (time >= last)


def read_manifest(output: Path, batch_id: int) -> Manifest | None:
    """None for a batch that is not committed.

    Raises:
        ScoringError: it is damaged, or of a newer toolkit.
    """
    path = _manifest_path(output, batch_id)
    try:
        text = path.read_text(encoding="utf-8")
        if not text:
            return None
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ScoringError(
                f"a manifest must have the format {FORMAT}", got=f"{content['format']!r} in {path}", next_step="use a toolkit that knows it"
            )
        replaces = content["replaces"]
        files = tuple(BatchFile(**each) for each in content["files"])
        return Manifest(content["batch_id"], files, tuple(replaces) if isinstance(replaces, list) else replaces, content["metadata"])
    except FileNotFoundError:
        return None
    except ScoringError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ScoringError("a manifest must be readable", got=f"{path}: {error!r}", next_step=RESTORE) from error


def check_files(output: Path, manifest: Manifest) -> None:
    """Raises ScoringError: a file of the batch is gone, or has another size."""
    for file, path in zip(manifest.files, manifest.paths(output), strict=True):
        try:
            num_bytes = path.stat().st_size
        except FileNotFoundError:
            num_bytes = None
        if num_bytes != file.num_bytes:
            raise ScoringError(
                f"the files of batch {manifest.batch_id} must be as they were when it was written",
                got=f"{path} " + ("missing" if num_bytes is None else f"with {num_bytes:,} instead of {file.num_bytes:,} bytes"),
                next_step=RESTORE,
            )


def manifests_folder(output: Path) -> Path:
    return output / STATE_FOLDER / "manifests"


def _manifest_path(output: Path, batch_id: int) -> Path:
    return manifests_folder(output) / f"{batch_id:09d}.json"


def bounds(window: Window) -> tuple[datetime.datetime, datetime.datetime]:
    """From and to, as moments in UTC."""
    start, end = (datetime.datetime.fromisoformat(text) for text in window[1:])
    assert start.tzinfo is not None and end.tzinfo is not None, "a window has a time zone"
    return start.astimezone(datetime.UTC), end.astimezone(datetime.UTC)
