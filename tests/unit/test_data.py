"""Where files come from, how tables are read, and every bad input in one line."""

from __future__ import annotations

import datetime
import hashlib
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from toolkit.core.data import DataContext, Loaded
from toolkit.core.errors import DataError
from toolkit.core.experiment import Dataset, Experiment, Metric
from toolkit.core.exploration_frame import explore_frame
from toolkit.core.exploration_labels import Division
from toolkit.core.model import Custom, XGBoost
from toolkit.core.overrides import override
from toolkit.core.space import Float
from toolkit.engines import data_files
from toolkit.engines.data_files import RemoteFiles, files_for
from toolkit.engines.parquet_parts import columns_of
from toolkit.engines.tables import load_data, read_table

CONTENT = {"a.csv": b"x,y\n1,0\n2,1\n", "b.csv": b"x,y\n3,0\n4,1\n"}


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{{file}}"
        server.shutdown()


@pytest.fixture
def context(tmp_path: Path) -> DataContext:
    return DataContext(data=None, data_dir=None, cache_dir=tmp_path / "home" / "cache")


def remote(url: str, *, databricks_folder: str | None = None) -> RemoteFiles:
    return RemoteFiles("toy", {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}, url, databricks_folder)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/{{file}}"


def read(paths: Mapping[str, Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in paths.items()}


def find(context: DataContext, files: RemoteFiles) -> Loaded:
    return files_for(context, files, read=read, fallback=lambda: "generated")


def with_(context: DataContext, **changes: Path | None) -> DataContext:
    return DataContext(**{**context.__dict__, **changes})


# ---- the chain of sources


def test_download_then_cache(server: str, context: DataContext) -> None:
    first = find(context, remote(server))
    assert (first.kind, first.table) == ("download", CONTENT)
    assert sorted(path.name for path in (context.cache_dir / "toy").iterdir()) == ["a.csv", "b.csv"]
    assert find(context, remote(closed_port())) == Loaded(CONTENT, "cache", str(context.cache_dir / "toy"))


def test_corrupt_cache_is_downloaded_again(server: str, context: DataContext, caplog: pytest.LogCaptureFixture) -> None:
    find(context, remote(server))
    (context.cache_dir / "toy" / "a.csv").write_bytes(b"x,y\n1,")
    again = find(context, remote(server))
    assert (again.kind, again.table) == ("download", CONTENT)
    assert "not the genuine file" in caplog.text


def test_wrong_sha_from_the_server_is_an_error(server: str, folder: Path, context: DataContext) -> None:
    (folder / "b.csv").write_bytes(b"<html>log in first</html>")
    with pytest.raises(DataError, match=r"b\.csv: sha256 must begin with \w{12}, got \w{12}; use --data"):
        find(context, remote(server))
    assert not context.cache_dir.exists()


def test_server_down_falls_back_loudly(context: DataContext, caplog: pytest.LogCaptureFixture) -> None:
    found = find(context, remote(closed_port()))
    assert (found.table, found.kind) == ("generated", "fallback_sample")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.name == "toolkit"
    assert "NOT THE GENUINE DATA" in record.message
    assert "refused" in record.message


def test_missing_on_the_server_falls_back(server: str, folder: Path, context: DataContext) -> None:
    (folder / "b.csv").unlink()
    assert find(context, remote(server)).kind == "fallback_sample"


def test_hanging_server_is_given_up(context: DataContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "REACH_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = find(context, remote(f"http://127.0.0.1:{silent.getsockname()[1]}/{{file}}"))
    assert found.kind == "fallback_sample"


def test_hanging_name_lookup_is_given_up(context: DataContext, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(data_files, "REACH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(60) and [])
    found = find(context, remote("http://files.invalid/{file}"))
    release.set()
    assert "no answer within 0.2 s from http://files.invalid/" in found.location


def test_trickling_server_is_given_up(context: DataContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "DOWNLOAD_TIMEOUT_S", 0.3)
    stop = threading.Event()

    class Trickle(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            while not stop.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()

    with ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = find(context, remote(f"http://127.0.0.1:{server.server_port}/{{file}}"))
        stop.set()
        server.shutdown()
    assert "not finished within 0.3 s" in found.location


def test_data_dir_comes_before_cache_and_download(folder: Path, context: DataContext) -> None:
    assert find(with_(context, data_dir=folder), remote(closed_port())).kind == "environment"


def test_data_dir_with_other_content_is_refused(folder: Path, context: DataContext) -> None:
    (folder / "a.csv").write_bytes(b"x,y\n9,9\n")
    wanted, found = hashlib.sha256(CONTENT["a.csv"]).hexdigest()[:12], hashlib.sha256(b"x,y\n9,9\n").hexdigest()[:12]
    with pytest.raises(DataError, match=rf"a\.csv: sha256 must begin with {wanted}, got {found}; use --data to train on other data"):
        find(with_(context, data_dir=folder), remote(closed_port()))


def test_data_dir_problems(folder: Path, tmp_path: Path, context: DataContext, server: str) -> None:
    with pytest.raises(DataError, match="TOOLKIT_DATA_DIR: must be a folder"):
        find(with_(context, data_dir=tmp_path / "nowhere"), remote(server))
    (tmp_path / "other").mkdir()
    assert find(with_(context, data_dir=tmp_path / "other"), remote(server)).kind == "download"
    (tmp_path / "other" / "a.csv").write_bytes(CONTENT["a.csv"])
    with pytest.raises(DataError, match=r"TOOLKIT_DATA_DIR: .* without b\.csv"):
        find(with_(context, data_dir=tmp_path / "other"), remote(server))


def test_databricks_folder_comes_before_download(folder: Path, context: DataContext) -> None:
    files = remote(closed_port(), databricks_folder=str(folder))
    assert find(context, files).kind == "databricks_datasets"
    (folder / "a.csv").write_bytes(b"changed")
    assert find(context, files).kind == "fallback_sample"


def test_users_own_data_wins_without_sha(folder: Path, tmp_path: Path, context: DataContext) -> None:
    (folder / "a.csv").write_bytes(b"own")
    found = find(with_(context, data=folder, data_dir=folder), remote(closed_port()))
    assert (found.kind, found.table["a.csv"]) == ("file", b"own")
    assert find(with_(context, data=folder / "b.csv"), remote(closed_port())).table == {"b.csv": CONTENT["b.csv"]}
    ready = tmp_path / "ready.csv"
    ready.write_bytes(b"x,y\n1,0\n")
    assert find(with_(context, data=ready), remote(closed_port())) == Loaded(ready, "file", str(ready))
    (folder / "b.csv").unlink()
    with pytest.raises(DataError, match=r"--data: toy needs a\.csv, b\.csv in the folder, got .* without b\.csv"):
        find(with_(context, data=folder), remote(closed_port()))
    with pytest.raises(DataError, match="--data: no such file or folder"):
        find(with_(context, data=tmp_path / "nothing"), remote(closed_port()))


def test_unwritable_cache_is_one_line(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"the cache must be writable, got .*; free space, or set TOOLKIT_HOME"):
        find(DataContext(None, None, tmp_path / "file" / "cache"), remote(server))


# ---- tables


def frame(**changes: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "id": range(6),
        "x": [1.5, 2.5, np.nan, 4.5, -0.0, 6.5],
        "flag": [True, False, True, False, True, False],
        "y": [0, 1, 0, 1, 0, 1],
    }
    return pd.DataFrame({**columns, **changes})


def experiment(load: Any, *, objective: str = "binary:logistic", metric: str = "", **dataset: Any) -> Experiment:
    task = XGBoost(objective=objective).task
    name = metric or {"binary": "auc", "multiclass": "mlogloss", "regression": "rmse", "ranking": "ndcg"}[task]
    return Experiment(
        name="toy",
        dataset=Dataset(load=load, **{"label": "y", "key": "id", **dataset}),
        model=XGBoost(objective=objective),
        space={"eta": Float(0.1, 0.2)},
        metric=Metric(name, "maximize"),
    )


def refused(load: Any, match: str, context: DataContext, **options: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load_data(experiment(load, **options), context)
    assert "\n" not in str(caught.value)


def test_arrays_and_their_source(context: DataContext) -> None:
    data = load_data(experiment(lambda: frame(w=[1, 0, 2, 1, 1, 1], g=list("bbaacc")), weight="w", group="g"), context)
    assert data.feature_names == ("x", "flag")
    assert data.features.dtype == np.float32
    assert data.features.flags.c_contiguous
    np.testing.assert_array_equal(data.features[:3], [[1.5, 1], [2.5, 0], [np.nan, 1]])
    assert not np.signbit(data.features[4, 0])
    assert data.label.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.classes == (0, 1)
    assert data.weight is not None and data.weight.tolist() == [1, 0, 2, 1, 1, 1]
    assert data.group is not None and data.group.tolist() == [1, 1, 0, 0, 2, 2]
    assert (data.source.kind, data.source.num_rows, data.source.num_features) == ("function", 6, 2)
    assert data.source.location.startswith("test_data:") or "test_data" in data.source.location


def test_same_content_same_sha_whatever_the_format(tmp_path: Path, context: DataContext) -> None:
    import deltalake
    import pyarrow as pa

    table = frame(when=pd.date_range("2024-01-01", periods=6, tz="UTC"))
    table.to_csv(tmp_path / "comma.csv", index=False)
    table.to_csv(tmp_path / "german.csv", index=False, sep=";", decimal=",")
    table.to_parquet(tmp_path / "one.parquet", index=False)
    table.set_index("id").to_parquet(tmp_path / "indexed.parquet")
    (tmp_path / "many").mkdir()
    table[:2].to_parquet(tmp_path / "many" / "0.parquet", index=False)
    table[2:].to_parquet(tmp_path / "many" / "1.parquet", index=False)
    deltalake.write_deltalake(tmp_path / "delta", pa.Table.from_pandas(table, preserve_index=False))

    def from_arrow() -> Any:
        return pa.Table.from_pandas(table)

    loads: list[Any] = [str(tmp_path / name) for name in ("comma.csv", "german.csv", "one.parquet", "indexed.parquet", "many", "delta")]
    loads += [lambda: table, from_arrow, lambda: tmp_path / "one.parquet"]
    sources = [load_data(experiment(load, time="when"), context).source for load in loads]
    assert len({source.sha256 for source in sources}) == 1
    assert [source.kind for source in sources] == ["file"] * 6 + ["function"] * 3
    changed = load_data(experiment(lambda: frame(x=range(6))), context).source
    assert changed.sha256 != load_data(experiment(lambda: frame()), context).source.sha256 != sources[0].sha256


def test_a_delta_table_has_no_order_and_is_given_one(tmp_path: Path, context: DataContext) -> None:
    import deltalake
    import pyarrow as pa

    table = frame(x=[1.5, 2.5, None, 0.0, -0.0, 2.5], flag=[1, 0, 1, 1, 1, 0], y=[0, 1, 0, 1, 1, 1], tags=[[1]] * 6)
    for name, rows in {"one": table, "two": table[::-1].assign(tags=[[2]] * 6)}.items():
        deltalake.write_deltalake(tmp_path / name, pa.Table.from_pandas(rows, preserve_index=False))
    for exclude, key in ((("tags",), "id"), (("tags", "id"), None)):
        loads = [load_data(experiment(str(tmp_path / name), key=key, exclude=exclude), context) for name in ("one", "two")]
        assert loads[0].source.sha256 == loads[1].source.sha256
        assert loads[0].features.shape == (6, 2)
    assert load_data(experiment(str(tmp_path / "two"), exclude=("tags",)), context).label.tolist() == [0, 1, 0, 1, 1, 1]


def test_data_option_replaces_a_path_and_reaches_a_function(tmp_path: Path, context: DataContext) -> None:
    frame().to_csv(tmp_path / "own.csv", index=False)
    own = with_(context, data=tmp_path / "own.csv")
    assert load_data(experiment("elsewhere.csv"), own).source.location == str(tmp_path / "own.csv")
    loaded = load_data(experiment(lambda context: Loaded(context.data, "file", "here")), own)
    assert (loaded.source.kind, loaded.source.location) == ("file", "here")
    refused(lambda: frame(), "takes no argument, so --data cannot reach it", own)
    refused(lambda a, b: frame(), r"takes no argument, or one, the DataContext, got <lambda>\(a, b\)", context)


def test_objects_decimals_and_nullable_columns(context: DataContext) -> None:
    table = frame(
        x=[Decimal("1.5"), None, Decimal("2.5"), Decimal(1), Decimal(1), Decimal(1)],
        nullable=pd.array([1, None, 3, 4, 5, 6], dtype="Int64"),
        empty=[None] * 6,
    )
    data = load_data(experiment(lambda: table), context)
    np.testing.assert_array_equal(data.features[:2], [[1.5, 1, 1, np.nan], [np.nan, 0, np.nan, np.nan]])


@pytest.mark.parametrize(
    ("values", "classes", "codes"),
    [
        (["b", "a", "c", "a", "b", "c"], ("a", "b", "c"), [1, 0, 2, 0, 1, 2]),
        ([7.0, 3.0, 5.0, 3.0, 7.0, 5.0], (3, 5, 7), [2, 0, 1, 0, 2, 1]),
        ([True, False, True, False, True, False], (False, True), [1, 0, 1, 0, 1, 0]),
    ],
)
def test_classes_are_sorted(values: list[Any], classes: tuple[Any, ...], codes: list[int], context: DataContext) -> None:
    data = load_data(experiment(lambda: frame(y=values), objective="multi:softprob"), context)
    assert data.classes == classes
    assert list(map(type, data.classes or ())) == list(map(type, classes))
    assert data.label.tolist() == codes


POSITIVE: list[tuple[list[Any], Any, tuple[Any, ...]]] = [
    (["ja", "nein"], None, ("ja", "nein")),
    (["ja", "nein"], "nein", ("ja", "nein")),
    (["ja", "nein"], "ja", ("nein", "ja")),
    ([1, 2], 1, (2, 1)),
    ([1, 2], "1", (2, 1)),
    ([1.0, 2.0], "1.0", (2, 1)),
    (["1", "2"], 1, ("2", "1")),
    (["True", "maybe"], True, ("maybe", "True")),
    ([False, True], False, (True, False)),
    ([False, True], "false", (True, False)),
    ([0, 1], False, (1, 0)),
    ([0.5, 1.5], "0.5", (1.5, 0.5)),
]


@pytest.mark.parametrize(("values", "positive", "classes"), POSITIVE)
def test_the_positive_class_is_the_last(
    values: list[Any], positive: Any, classes: tuple[Any, ...], context: DataContext, tmp_path: Path
) -> None:
    table = frame(y=values * 3)
    made = experiment(lambda: table, positive=positive)
    data = load_data(made, context)
    assert (data.classes, list(map(type, data.classes or ()))) == (classes, list(map(type, classes)))
    assert data.label.tolist() == [classes.index(value) for value in values * 3]
    # So it is in parts that no process gathers, in an exploration, and in a hold-out table that is read like the first.
    table.to_parquet(tmp_path / "table.parquet", index=False)
    assert columns_of([str(tmp_path / "table.parquet")], made).classes == classes
    explored = explore_frame(table, made.dataset, "binary", lambda groups: Division())
    assert (explored.groups, explored.positive) == (tuple(map(str, classes)), str(classes[1]))
    holdout = load_data(experiment(lambda: table, positive=positive, holdout=lambda: table[::-1]), context).test
    assert holdout is not None and (holdout.classes, holdout.label.tolist()) == (classes, data.label.tolist()[::-1])


@pytest.mark.parametrize(
    ("values", "positive", "names"),
    [
        (["ja", "nein"], "Ja", "'ja' or 'nein'"),
        (["ja", "nein"], True, "'ja' or 'nein'"),
        ([1, 2], "ja", "1 or 2"),
        ([1, 2], True, "1 or 2"),
        ([1, 2], "true", "1 or 2"),
        ([1, 2], "nan", "1 or 2"),
    ],
)
def test_a_positive_class_that_is_none_is_refused(values: list[Any], positive: Any, names: str, context: DataContext) -> None:
    match = f"dataset.positive: must be a class of label 'y', got {positive!r}; name {names}"
    refused(lambda: frame(y=values * 3), match, context, positive=positive)


def test_a_positive_class_from_the_command_line(context: DataContext) -> None:
    made = experiment(lambda: frame())
    assert [load_data(override(made, [f"dataset.positive={text}"]), context).classes for text in ("0", "false", "none")] == [
        (1, 0),
        (1, 0),
        (0, 1),
    ]


def test_regression_and_ranking_labels(context: DataContext) -> None:
    data = load_data(experiment(lambda: frame(y=[0.5, 1, 2, 3, 4, 5]), objective="reg:squarederror"), context)
    assert (data.classes, data.label[0]) == (None, 0.5)
    ranking = load_data(experiment(lambda: frame(y=[0, 1, 2, 0, 1, 2], g=list("aaabbb")), objective="rank:ndcg", group="g"), context)
    assert ranking.task == "ranking"


@pytest.mark.parametrize(
    "when",
    [
        ["2024-01-02", "2024-01-01", "2024-01-03", "2024-01-04", "2024-01-05", "2024-01-06"],
        [datetime.date(2024, 1, day) for day in (2, 1, 3, 4, 5, 6)],
        pd.to_datetime([f"2024-01-{day:02}" for day in (2, 1, 3, 4, 5, 6)]),
    ],
)
def test_times_are_nanoseconds(when: Any, context: DataContext) -> None:
    data = load_data(experiment(lambda: frame(when=when), time="when"), context)
    assert data.time is not None
    assert data.time.dtype == np.int64
    assert data.time[0] == pd.Timestamp("2024-01-02").value
    assert data.time.argsort()[:2].tolist() == [1, 0]


def test_holdout_has_the_training_tables_columns_and_classes(tmp_path: Path, context: DataContext) -> None:
    hold = frame(y=[1, 1, 1, 1, 1, 1])[["flag", "x", "y", "id"]].assign(more=1)
    hold.to_parquet(tmp_path / "hold.parquet", index=False)
    frame().to_csv(tmp_path / "own.csv", index=False)
    data = load_data(experiment("gone.csv", holdout=str(tmp_path / "hold.parquet")), with_(context, data=tmp_path / "own.csv"))
    assert data.test is not None
    assert data.test.feature_names == ("x", "flag")
    assert data.test.label.tolist() == [1] * 6
    refused(
        lambda: frame(), "hold-out table .* lacks features of the training table, got 'x'", context, holdout=lambda: hold.drop(columns="x")
    )
    refused(lambda: frame(), "must hold known classes, got 2; known: 0, 1", context, holdout=lambda: frame(y=[0, 1, 2, 0, 1, 2]))


# ---- bad input, one line each

BAD_FRAMES: list[tuple[Callable[[], pd.DataFrame], dict[str, Any], str]] = [
    (lambda: frame(), {"label": "yy"}, "dataset.label: no such column in .*, got 'yy'; did you mean 'y'"),
    (lambda: frame(), {"exclude": ("flg",)}, "dataset.exclude: no such column in .*, got 'flg'; did you mean 'flag'"),
    (lambda: frame(), {"key": "idd"}, "dataset.key: no such column"),
    (lambda: frame(), {"time": "t"}, "dataset.time: no such column"),
    (lambda: frame(), {"group": "t"}, "dataset.group: no such column"),
    (lambda: frame(), {"weight": "t"}, "dataset.weight: no such column"),
    (lambda: frame(y=1), {}, "label 'y': needs at least two values, got 1 in all 6 rows"),
    (lambda: frame(y=[0, 1, None, 1, 0, None]), {}, "label 'y': must not be missing, got 2 missing, first in row 3"),
    (lambda: frame(y=range(6)), {}, r"a binary objective needs exactly two values, got 6 \(0, 1, 2, 3, …\)"),
    (lambda: frame(y=[0.5, 1.5, 2.5, 0.5, 1, 1]), {"objective": "multi:softprob"}, "classes must be text, whole numbers or booleans"),
    (lambda: frame(y=["a", 1, "a", 1, "a", 1]), {}, "classes must be text, or whole numbers or booleans, got int, str"),
    (lambda: frame(y=list("abcabc")), {"objective": "reg:squarederror"}, "label 'y': must be numeric, got 'a' in row 1"),
    (lambda: frame(y=[1, 2, 3, np.inf, 1, 2]), {"objective": "reg:squarederror"}, "label 'y': must be finite, got inf in row 4"),
    (lambda: frame(y=[-1, 2, 3, 1, 1, 2]), {"objective": "rank:ndcg", "group": "flag"}, "a relevance is 0 or more, got -1"),
    (lambda: frame(x=["1", "2", "?", "4", "5", "6"]), {}, r"feature 'x': must be numeric, got '\?' in row 3; turn it into numbers"),
    (lambda: frame(x=pd.date_range("2024", periods=6)), {}, "feature 'x': must be numeric, got Timestamp"),
    (lambda: frame(x=[1, np.inf, 2, -np.inf, 3, 4]), {}, "feature 'x': must be finite .* got 2 infinite values, first in row 2"),
    (lambda: frame(x=[1, 2, 1e39, 3, 4, 5]), {}, "feature 'x': must be finite and below 3.4e38, got 1 infinite values, first in row 3"),
    (lambda: frame()[:0], {}, "data: needs rows, got 0 rows"),
    (lambda: frame(), {"exclude": ("x", "flag")}, "data: needs a column beside label"),
    (lambda: frame().set_axis(["id", "x", "x", "y"], axis=1), {}, "column names must differ .*, got 'x'"),
    (lambda: frame().rename(columns={"x": "a[1]"}), {}, r"XGBoost takes none of .*, got 'a\[1\]'"),
    (lambda: frame(w=[1, -1, 1, 1, 1, 1]), {"weight": "w"}, "dataset.weight 'w': must be 0 or more, and finite, got -1 in row 2"),
    (lambda: frame(w=[1, None, 1, 1, 1, 1]), {"weight": "w"}, "dataset.weight 'w': must not be missing"),
    (lambda: frame(id=[1, 2, 3, 3, 4, 4]), {}, "dataset.key 'id': must be unique, got 2 repeated values, first 3"),
    (lambda: frame(id=[1, 2, None, 3, 4, 5]), {}, "dataset.key 'id': must not be missing"),
    (lambda: frame(g=["a", None, "b", "b", "a", "a"]), {"group": "g"}, "dataset.group 'g': must not be missing"),
    (lambda: frame(t=["2024-01-01", "soon", "2024-01-02"] * 2), {"time": "t"}, "'t': must be times or numbers, got 'soon' in row 2"),
    (lambda: frame(t=pd.to_datetime(["2024-01-01", "9999-12-31"] * 3).astype("datetime64[us]")), {"time": "t"}, "'t': must lie between the years 1678 and 2262, .* got .*9999-12-31.* in row 2"),
]  # fmt: skip


@pytest.mark.parametrize(("load", "options", "match"), BAD_FRAMES, ids=[match[:50] for *_, match in BAD_FRAMES])
def test_bad_frames(load: Callable[[], pd.DataFrame], options: dict[str, Any], match: str, context: DataContext) -> None:
    refused(load, match, context, **options)


BAD_FILES = [
    (b"", "data: the file is empty"),
    (b"\n\n", "data: the file is empty"),
    (b"id,x,y\n", "data: needs rows, got 0 rows"),
    (b"id:x:y\n1:2:0\n2:3:1\n", "columns must be divided by one of .* got one column in .*'id:x:y' .delimiter found: ':'"),
    (b"abc\n1\n2\n", "columns must be divided by one of .* got one column"),
    (b"id;x;y\n1;2;0\n2;3\n", r"has 3 columns .delimiter found: ';'., got 2 in row 2"),
    (b"id;x;x\n1;2;0\n2;3;1\n", "column names must differ .*delimiter ';'.*got 'x'"),
    (b"id,x,y\n1,2,0\n2,3 %,1\n", "feature 'x': must be numeric, got '3 %' in row 2"),
    ("id,x,y\n1,ü,0\n".encode("cp850"), "must be Parquet, or CSV in UTF-8 .* with the byte 0x81"),
    ("id,x,y\n1,äöü,0\n".encode() + b"2,\xfc,1\n", "must have one encoding, got UTF-8, but for 1 bytes, first in line 3"),
    ("id,x,y\n1,2,0\n".encode("utf-16-le"), "must be Parquet, or CSV in UTF-8 .* with binary content"),
    (b"\xff\xfei\0d\0,", "must be Parquet, or CSV in UTF-8 .* with damaged utf-16"),
    (b"PK\x03\x04\0\0", "must be Parquet, or CSV in UTF-8"),
    (b"PAR1 no more", "not a readable Parquet table"),
]


@pytest.mark.parametrize(("content", "match"), BAD_FILES, ids=[match[:40] for _, match in BAD_FILES])
def test_bad_files(content: bytes, match: str, tmp_path: Path, context: DataContext) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    refused(str(tmp_path / "table.csv"), match, context)


def test_long_file_with_a_broken_row_after_the_sniffed_part(tmp_path: Path, context: DataContext) -> None:
    (tmp_path / "long.csv").write_text("id,x,y\n" + "".join(f"{i},{i}.5,{i % 2}\n" for i in range(20000)) + "1,2,3,4\n")
    refused(str(tmp_path / "long.csv"), "not a table with delimiter ',', got .*line 20002, saw 4", context)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1.5,2\n", [1.5, 2]),
        ("a;b\n1,5;2\n", [1.5, 2]),
        ("a\tb\n1.5\t2\n", [1.5, 2]),
        ("a|b\n1.5|2\n", [1.5, 2]),
        ("\ufeffa, b\n1.5, 2\n", [1.5, 2]),
        ('"a;1";b\n1.5;2\n', [1.5, 2]),
        ("a;b\n12,5;0,125\n3,5;1.234\n", [12.5, "0,125"]),
        ("a;b\n1.5;1,234\n", [1.5, "1,234"]),
    ],
)
def test_delimiter_and_decimal_sign_are_found_out(text: str, expected: list[float], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    table = read_table(tmp_path / "t.csv")
    assert table.iloc[0].tolist() == expected
    assert table.columns[1] == "b"


def test_what_is_not_there(tmp_path: Path, context: DataContext) -> None:
    refused(str(tmp_path / "none.csv"), "no such file, folder or table", context)
    refused("sales.churn", "no such file, folder or table, got 'sales.churn'; check the path, or name catalog.schema.table", context)
    refused("main.sales.churn", "a table name needs an active Spark session, got 'main.sales.churn' and none", context)
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), "a folder must hold Parquet files or a Delta table", context)
    (tmp_path / "broken" / "_delta_log").mkdir(parents=True)
    refused(str(tmp_path / "broken"), "not a readable Delta table", context)
    refused(lambda: 42, "dataset.load: must give a pandas frame, .* got int", context)


def test_a_load_function_that_raises_names_its_line(context: DataContext) -> None:
    def load() -> pd.DataFrame:
        return frame()["absent"].to_frame()

    refused(load, r"dataset.load must return a table, got KeyError: 'absent' \(test_data.py, line \d+\)", context)


def test_custom_models_take_any_feature_name(context: DataContext) -> None:
    custom = Experiment(
        name="toy",
        dataset=Dataset(load=lambda: frame().rename(columns={"x": "a[1]"}), label="y"),
        model=Custom(fit=lambda *_: None),
        space={"a": Float(0, 1)},
        metric=Metric("auc", "maximize"),
    )
    assert load_data(custom, context).feature_names == ("id", "a[1]", "flag")


def test_public_names_are_lazy() -> None:
    code = (
        "import sys, toolkit\n"
        "assert not {'numpy', 'pandas', 'pydantic', 'sklearn', 'ray', 'mlflow'} & set(sys.modules)\n"
        "assert set(toolkit.__all__) <= set(dir(toolkit))\n"
        "for name in toolkit.__all__: getattr(toolkit, name)\n"
        "assert not {'sklearn', 'ray', 'mlflow', 'xgboost', 'pyspark'} & set(sys.modules)\n"
        "try: toolkit.absent\n"
        "except AttributeError as error: assert 'absent' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
