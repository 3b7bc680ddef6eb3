"""A Parquet output: what is committed is read, whole, and nothing else."""

from __future__ import annotations

import datetime
import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.core.errors import ScoringError
from toolkit.engines import parquet_batches as batches
from toolkit.engines import write_once as files
from toolkit.engines.parquet_batches import Manifest, Replaces

DAY = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
Row = tuple[int, int | None]  # id, hour
KINDS = {
    "zoned": pa.timestamp("us", tz="UTC"),
    "elsewhere": pa.timestamp("ms", tz="Asia/Tokyo"),
    "naive": pa.timestamp("us"),
    "int96": pa.timestamp("us", tz="UTC"),
}


def hour(number: int) -> str:
    return (DAY + datetime.timedelta(hours=number)).isoformat()


def between(start: int, end: int) -> tuple[str, str, str]:
    return ("at", hour(start), hour(end))


def write(output: Path, batch_id: int, rows: Sequence[Row], *, kind: str = "zoned", num_files: int = 1) -> None:
    """As Spark leaves it."""
    folder = batches.batch_folder(output, batch_id)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        part = rows[number::num_files]
        moments = [None if at is None else DAY + datetime.timedelta(hours=at) for _, at in part]
        if kind == "naive":
            moments = [each and each.replace(tzinfo=None) for each in moments]
        table = pa.table({"wine_id": pa.array([each for each, _ in part], pa.int64()), "at": pa.array(moments, KINDS[kind])})
        pq.write_table(table, folder / f"part-{number:05d}.snappy.parquet", use_deprecated_int96_timestamps=kind == "int96")
        (folder / f".part-{number:05d}.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()


def add(output: Path, batch_id: int, rows: Sequence[Row], *, replaces: Replaces = None, **how: Any) -> Manifest:
    write(output, batch_id, rows, **how)
    manifest = batches.manifest_of(output, batch_id, replaces=replaces, metadata={"model": "wine_quality", "version": 3})
    batches.commit(output, manifest)
    return manifest


def ids(output: Path, **how: Any) -> list[int]:
    found: list[int] = batches.read(output, **how).column("wine_id").to_pylist()
    return found


# ---- commit


def test_a_batch_is_there_when_its_manifest_is(tmp_path: Path) -> None:
    assert batches.manifests(tmp_path) == [] and batches.live_batches(tmp_path) == []
    write(tmp_path, 0, [(1, 0), (2, 0), (3, None)], num_files=2)
    assert not batches.is_committed(tmp_path, 0) and batches.manifests(tmp_path) == []
    assert batches.read(tmp_path).num_rows == 0
    manifest = batches.manifest_of(tmp_path, 0, metadata={"version": 3})
    batches.commit(tmp_path, manifest)
    assert batches.is_committed(tmp_path, 0) and not batches.is_committed(tmp_path, 1)
    assert batches.manifests(tmp_path) == [manifest] and manifest.num_rows == 3
    assert [file.name for file in manifest.files] == ["part-00000.snappy.parquet", "part-00001.snappy.parquet"]
    assert sorted(ids(tmp_path)) == [1, 2, 3]
    assert os.listdir(tmp_path / "_toolkit" / "manifests") == ["000000000.json"]


def test_the_same_again_is_nothing(tmp_path: Path) -> None:
    manifest = add(tmp_path, 0, [(1, 0)], replaces=between(0, 3))
    path = tmp_path / "_toolkit" / "manifests" / "000000000.json"
    before = path.stat()
    batches.commit(tmp_path, manifest)
    assert path.stat() == before and batches.manifests(tmp_path) == [manifest]


def test_other_content_is_refused(tmp_path: Path) -> None:
    add(tmp_path, 0, [(1, 0)])
    for other in (batches.manifest_of(tmp_path, 0), batches.manifest_of(tmp_path, 0, replaces="all"), Manifest(0, ())):
        with pytest.raises(ScoringError, match=r"a batch must be committed once, got batch 0 of .* with other content"):
            batches.commit(tmp_path, other)
    assert ids(tmp_path) == [1]


def test_two_at_once_one_is_it(tmp_path: Path) -> None:
    """Without any lease: creation is exclusive."""
    write(tmp_path, 0, [(1, 0)])
    contents = [batches.manifest_of(tmp_path, 0, metadata={"run": number}) for number in range(8)]
    start, errors = threading.Barrier(8), []

    def commit(manifest: Manifest) -> None:
        start.wait()
        try:
            batches.commit(tmp_path, manifest)
        except ScoringError as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=[manifest]) for manifest in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 7 and len(batches.manifests(tmp_path)) == 1
    assert len(os.listdir(tmp_path / "_toolkit" / "manifests")) == 1, "no scratch is left"


def test_what_is_beside_it_is_not_read(tmp_path: Path) -> None:
    """A killed run's half-written batch, and what one left in a folder before another run wrote it."""
    add(tmp_path, 0, [(1, 0)])
    write(tmp_path, 1, [(2, 0)])
    (tmp_path / "batch_id=1" / "part-00009.snappy.parquet").write_bytes(b"PAR1 and no more")
    write(tmp_path, 2, [(3, 0), (4, 0)], num_files=2)
    folder = tmp_path / "batch_id=0"
    shutil.copy(folder / "part-00000.snappy.parquet", folder / "part-late.snappy.parquet")
    assert ids(tmp_path) == [1]


def test_a_half_written_file_is_not_committed(tmp_path: Path) -> None:
    write(tmp_path, 0, [(1, 0)])
    (tmp_path / "batch_id=0" / "part-00009.snappy.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ScoringError, match=r"a batch must be of Parquet files, got .*part-00009.*; run it again"):
        batches.manifest_of(tmp_path, 0)


@pytest.mark.parametrize("change", ["gone", "longer", "other"])
def test_files_that_are_not_as_listed(tmp_path: Path, change: str) -> None:
    """Before the commit it is refused; after it an error, not other rows."""
    write(tmp_path, 0, [(1, 0)])
    manifest = batches.manifest_of(tmp_path, 0)
    path = tmp_path / "batch_id=0" / "part-00000.snappy.parquet"
    content = path.read_bytes()

    def damage() -> str:
        if change == "gone":
            path.unlink()
            return "missing"
        if change == "longer":
            path.write_bytes(content + b"!")
        else:
            write(tmp_path, 0, [(number, number) for number in range(1000)])
        return rf"with {path.stat().st_size:,} instead of {len(content):,} bytes"

    message = rf"the files of batch 0 must be as they were when it was written, got .*parquet {damage()}; restore"
    with pytest.raises(ScoringError, match=message):
        batches.commit(tmp_path, manifest)
    assert not batches.is_committed(tmp_path, 0)
    path.write_bytes(content)
    batches.commit(tmp_path, manifest)
    damage()
    with pytest.raises(ScoringError, match=message):
        batches.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a manifest must be readable, got .*000000000.json"),
        ("{}", "a manifest must be readable, got .*KeyError"),
        ("[]", "a manifest must be readable"),
        ('{"format": 2}', "a manifest must have the format 1, got 2 in .*; use a toolkit that knows it"),
    ],
)
def test_a_damaged_manifest(tmp_path: Path, text: str, message: str) -> None:
    add(tmp_path, 0, [(1, 0)])
    (tmp_path / "_toolkit" / "manifests" / "000000000.json").write_text(text)
    with pytest.raises(ScoringError, match=message):
        batches.read(tmp_path)


def test_a_window_has_a_time_zone(tmp_path: Path) -> None:
    write(tmp_path, 0, [(1, 0)])
    with pytest.raises(AssertionError, match="time zone"):
        batches.commit(tmp_path, batches.manifest_of(tmp_path, 0, replaces=("at", "2026-03-01T00:00:00", hour(1))))


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", refuse)
    assert files.write_once(tmp_path / "one.json", {"by": "the first"})
    assert not files.write_once(tmp_path / "one.json", {"by": "the second"})
    assert json.loads((tmp_path / "one.json").read_text()) == {"by": "the first"} and os.listdir(tmp_path) == ["one.json"]


def test_a_manifest_that_a_killed_run_has_begun(tmp_path: Path) -> None:
    """Without hard links it is empty for a moment: the batch is not there, and can be committed."""
    write(tmp_path, 0, [(1, 0)])
    path = tmp_path / "_toolkit" / "manifests" / "000000000.json"
    path.parent.mkdir(parents=True)
    path.touch()
    assert not batches.is_committed(tmp_path, 0) and batches.read(tmp_path).num_rows == 0
    batches.commit(tmp_path, batches.manifest_of(tmp_path, 0))
    assert batches.is_committed(tmp_path, 0) and ids(tmp_path) == [1]


def test_another_fault_of_the_disk_is_not_taken_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="Input/output"):
        files.write_once(tmp_path / "one.json", {})
    assert os.listdir(tmp_path) == []


# ---- replaced rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_hides_earlier_rows_in_it(tmp_path: Path, kind: str) -> None:
    add(tmp_path, 0, [(1, 0), (2, 1), (3, 2), (4, 3), (5, None)], kind=kind)
    add(tmp_path, 1, [(6, 2)], kind=kind)
    add(tmp_path, 2, [(7, 1), (8, None)], replaces=between(1, 3), kind=kind)
    add(tmp_path, 3, [(9, 2)], kind=kind)
    assert ids(tmp_path) == [1, 4, 5, 7, 8, 9], "half-open; later batches may lie in it; rows without a time stay"
    assert ids(tmp_path, columns=["wine_id"]) == [1, 4, 5, 7, 8, 9], "the time needs not to be asked for"


def test_windows_within_and_across(tmp_path: Path) -> None:
    add(tmp_path, 0, [(number, number) for number in range(10)])
    add(tmp_path, 1, [(11, 4), (12, 5)], replaces=between(4, 6))
    add(tmp_path, 2, [(13, 3)], replaces=between(3, 5))
    add(tmp_path, 3, [], replaces=between(7, 8))
    add(tmp_path, 4, [(14, 5)], replaces=between(4, 6))
    assert sorted(ids(tmp_path)) == [0, 1, 2, 6, 8, 9, 13, 14]
    hidden = {each.manifest.batch_id: len(each.hidden) for each in batches.live_batches(tmp_path)}
    assert hidden == {0: 3, 1: 3, 2: 2, 3: 1, 4: 0}, "the one that was replaced twice counts once"


def test_all_is_replaced(tmp_path: Path) -> None:
    add(tmp_path, 0, [(1, 0)])
    add(tmp_path, 1, [(2, 0)], replaces=between(0, 1))
    add(tmp_path, 2, [(3, None)], replaces="all")
    add(tmp_path, 3, [(4, 0)])
    shutil.rmtree(tmp_path / "batch_id=0")  # may go
    assert ids(tmp_path) == [3, 4]
    assert [each.manifest.batch_id for each in batches.live_batches(tmp_path)] == [2, 3]


def test_dates(tmp_path: Path) -> None:
    """A date is its midnight, UTC."""
    for number in range(2):
        folder = batches.batch_folder(tmp_path, number)
        folder.mkdir()
        days = [datetime.date(2026, 3, day) for day in (1, 2, 3)] if number == 0 else []
        pq.write_table(pa.table({"at": pa.array(days, pa.date32())}), folder / "0.parquet")
    batches.commit(tmp_path, batches.manifest_of(tmp_path, 0))
    batches.commit(tmp_path, batches.manifest_of(tmp_path, 1, replaces=between(1, 48)))
    assert [each.day for each in batches.read(tmp_path).column("at").to_pylist()] == [1, 3]


@pytest.mark.parametrize(("name", "got"), [("wine_id", "'wine_id', which is int64"), ("when", "no 'when'")])
def test_a_window_needs_a_time(tmp_path: Path, name: str, got: str) -> None:
    add(tmp_path, 0, [(1, 0)])
    add(tmp_path, 1, [(2, 0)], replaces=(name, hour(0), hour(1)))
    with pytest.raises(ScoringError, match=f"replaced window must be a timestamp or a date, got {got}; score all anew"):
        batches.read(tmp_path)


HOURS = st.none() | st.integers(0, 9)
SPANS = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda each: (min(each), max(each) + 1))
STEPS = st.lists(
    st.tuples(
        st.none() | st.just("all") | SPANS,
        st.lists(HOURS, max_size=5),
        st.sampled_from(["zoned", "int96"]),
        st.sampled_from(["committed", "committed", "killed"]),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_any_history_reads_as_if_it_were_one_table(steps: list[Any]) -> None:
    rows: list[tuple[int, int, int | None]] = []
    with tempfile.TemporaryDirectory() as name:
        output, row_id = Path(name), 0
        for batch_id, (replaces, hours, kind, end) in enumerate(steps):
            new = [(row_id + number, at) for number, at in enumerate(hours)]
            row_id += len(new)
            if end == "killed":
                write(output, batch_id, new, kind=kind)
                continue
            if replaces == "all":
                rows = []
            elif replaces is not None:
                start, end = replaces
                rows = [row for row in rows if row[2] is None or not start <= row[2] < end]
            rows += [(batch_id, *row) for row in new]
            add(output, batch_id, new, replaces=between(*replaces) if isinstance(replaces, tuple) else replaces, kind=kind)
            found = batches.read(output)
            moments = [None if at is None else (at - DAY) // datetime.timedelta(hours=1) for at in found.column("at").to_pylist()]
            read = list(zip(found.column("batch_id").to_pylist(), found.column("wine_id").to_pylist(), moments, strict=True))
            assert read == rows


# ---- reading


def test_columns_and_types(tmp_path: Path) -> None:
    """Old batches may have fewer columns and narrower types; a batch's number is in its rows, or in its folder's name alone."""
    tables = [
        pa.table({"wine_id": pa.array([1], pa.int32()), "batch_id": pa.array([0], pa.int32())}),
        pa.table({"wine_id": pa.array([2**40]), "prediction": pa.array([0.5], pa.float32())}),
    ]
    for number, table in enumerate(tables):
        batches.batch_folder(tmp_path, number).mkdir()
        pq.write_table(table, batches.batch_folder(tmp_path, number) / "0.parquet")
        batches.commit(tmp_path, batches.manifest_of(tmp_path, number))
    found = batches.read(tmp_path)
    assert found.schema == pa.schema([("wine_id", pa.int64()), ("batch_id", pa.int64()), ("prediction", pa.float32())])
    assert found.to_pylist() == [
        {"wine_id": 1, "batch_id": 0, "prediction": None},
        {"wine_id": 2**40, "batch_id": 1, "prediction": 0.5},
    ]
    assert batches.read(tmp_path, columns=["batch_id"]).to_pydict() == {"batch_id": [0, 1]}
    with pytest.raises(ScoringError, match=r"columns: no such column in .*, got 'predicton'; did you mean 'prediction'\?"):
        batches.read(tmp_path, columns=["wine_id", "predicton"])


def test_types_that_have_nothing_in_common(tmp_path: Path) -> None:
    for number, values in enumerate(([1], ["one"])):
        batches.batch_folder(tmp_path, number).mkdir()
        pq.write_table(pa.table({"wine_id": values}), batches.batch_folder(tmp_path, number) / "0.parquet")
        batches.commit(tmp_path, batches.manifest_of(tmp_path, number))
    with pytest.raises(ScoringError, match=r"scores must be readable, got .*wine_id"):
        batches.read(tmp_path)


def test_the_largest_numbers(tmp_path: Path) -> None:
    for batch_id in (2**31, 5, 10**9):
        add(tmp_path, batch_id, [(batch_id, 0)])
    assert batches.read(tmp_path).column("batch_id").to_pylist() == [5, 10**9, 2**31]


def test_far_away_times(tmp_path: Path) -> None:
    """Beyond what nanoseconds hold, which is how Spark's timestamps are read by default."""
    folder = batches.batch_folder(tmp_path, 0)
    folder.mkdir()
    at = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
    pq.write_table(
        pa.table({"at": pa.array([at], pa.timestamp("us", tz="UTC"))}), folder / "0.parquet", use_deprecated_int96_timestamps=True
    )
    batches.commit(tmp_path, batches.manifest_of(tmp_path, 0))
    assert batches.read(tmp_path).column("at").to_pylist() == [at]
