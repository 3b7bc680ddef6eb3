"""Names of tables: what they stand for, and which are refused."""

import pandas as pd
import pytest

from toolkit.core.errors import ScoringError
from toolkit.core.table_names import TableName, is_inside
from toolkit.engines import tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Tables of each kind, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    (tmp_path / "delta" / "part-0.parquet").write_bytes(b"PAR1")
    (tmp_path / "parts" / "day=1").mkdir(parents=True)
    pd.DataFrame({"x": [1.0]}).to_parquet(tmp_path / "parts" / "day=1" / "part-0.parquet")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text("x\n1\n")
    (tmp_path / "wine.tsv").write_text("x\n1\n")
    (tmp_path / "wine.csv.gz").write_bytes(b"\x1f\x8b\x08\x00")
    (tmp_path / "one.bin").write_bytes((tmp_path / "parts" / "day=1" / "part-0.parquet").read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "begun" / "_toolkit").mkdir(parents=True)
    (tmp_path / "begun" / "_toolkit" / "batch.parquet").write_bytes(b"PAR1")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.md").write_text("x")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.csv").write_text("x\n1\n")
    (tmp_path / "both" / "b.parquet").write_bytes(b"PAR1")
    (tmp_path / "many" / "wine" / "_delta_log").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("delta", "delta"), ("parts", "parquet"), ("csv", "csv"), ("wine.tsv", "csv"), ("wine.csv.gz", "csv"), ("one.bin", "parquet"),
        ("delta:delta", "delta"), ("parquet:parts", "parquet"), ("csv:csv", "csv"), ("csv:notes/readme.md", "csv"),
    ],
)  # fmt: skip
def test_an_input_is_what_is_there(folder, text, kind):
    path = folder / text.rpartition(":")[2]
    for name in (text, f"{text.rpartition(':')[0]}:{path}".lstrip(":")):
        table = TableName.parse(name, role="input")
        assert (table.kind, table.path, table.shown, table.exists) == (kind, path, str(path), True)
        assert table.location == f"file://{path}"


@pytest.mark.parametrize(
    ("text", "kind", "exists"),
    [
        ("delta", "delta", True), ("parts", "parquet", True), ("empty", "delta", False), ("begun", "delta", False), ("new", "delta", False),
        ("parquet:new", "parquet", False), ("parquet:begun", "parquet", False), ("new/deeper", "delta", False),
    ],
)  # fmt: skip
def test_an_output_is_what_is_there_or_becomes_delta(folder, text, kind, exists):
    table = TableName.parse(text, role="output")
    assert (table.kind, table.exists) == (kind, exists)


@pytest.mark.parametrize("text", ["main.bronze.wine", "bronze.wine", "my-catalog.bronze.wine"])
def test_a_table_of_a_catalog(folder, text):
    table = TableName.parse(text, role="output")
    assert (table.kind, table.path, table.shown, table.exists) == ("catalog", None, text, None)
    assert table.location == ".".join(f"`{part}`" for part in text.split("."))


def test_what_exists_is_a_path_and_so_is_what_ends_like_a_file(folder):
    (folder / "bronze.wine").mkdir()
    assert TableName.parse("bronze.wine", role="output").kind == "delta"
    assert TableName.parse("scores.delta", role="output").path == folder / "scores.delta"
    assert TableName.parse("delta:main.bronze.old", role="output").path == folder / "main.bronze.old"


def test_the_readers_of_experiments_know_the_same_names(folder):
    assert tables.is_table_name("main.bronze.wine")
    assert not tables.is_table_name("bronze.wine")  # no session, which alone could know it
    assert not tables.is_table_name("main.bronze.csv")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:{}/parts", "{}/parts"), ("file://{}/parts", "{}/parts"), ("file://localhost{}/parts", "{}/parts"),
        ("parquet:file://{}/with%20space", "{}/with space"),
    ],
)  # fmt: skip
def test_a_file_uri_is_a_path(folder, uri, path):
    (folder / "parts").rename(folder / "with space") if "space" in uri else None
    table = TableName.parse(uri.format(folder), role="input")
    assert (str(table.path), table.kind) == (path.format(folder), "parquet")
    assert table.location == f"file://{table.path}"


def test_a_volume_is_a_path_that_spark_takes_as_it_is():
    for text in ("/Volumes/main/bronze/files/wine", "dbfs:/Volumes/main/bronze/files/wine"):
        table = TableName.parse(text, role="output")
        assert (table.location, str(table.path)) == ("/Volumes/main/bronze/files/wine",) * 2


def test_a_uri_needs_its_format():
    table = TableName.parse("delta:abfss://data@account.dfs.core.windows.net/wine", role="input")
    assert (table.kind, table.path, table.exists) == ("delta", None, None)
    assert table.location == table.shown == "abfss://data@account.dfs.core.windows.net/wine"
    for text in ("s3://bucket/wine", "dbfs:/data/wine"):
        with pytest.raises(ScoringError, match=f"a URI needs its format.*delta:{text}"):
            TableName.parse(text, role="input")


def test_jdbc():
    table = TableName.parse("jdbc:postgresql://host:5432/db?ssl=true#sales.wine", role="input")
    assert (table.kind, table.location, table.jdbc_table) == ("jdbc", "jdbc:postgresql://host:5432/db?ssl=true", "sales.wine")
    assert TableName.parse("jdbc:oracle:thin:@//host:1521/svc#WINE", role="input").jdbc_table == "WINE"


@pytest.mark.parametrize(
    "url",
    [
        "jdbc:postgresql://anna:hunter2@host/db", "jdbc:postgresql://host/db?user=anna&password=hunter2", "jdbc:oracle:thin:anna/hunter2@h:1",
        "jdbc:sqlserver://host;databaseName=db;Password=hunter2", "jdbc:mysql://anna@host/hunter2",
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["input", "output"])
def test_a_login_in_a_jdbc_address_is_refused_and_not_repeated(url, role):
    with pytest.raises(ScoringError, match="TOOLKIT_JDBC_USER and TOOLKIT_JDBC_PASSWORD") as caught:
        TableName.parse(f"{url}#wine", role=role)
    assert "hunter2" not in str(caught.value)
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize("text", ["delta:s3://key:hunter2@bucket/wine", "delta:https://account/wine?sig=hunter2"])
def test_a_secret_in_a_uri_is_refused_and_not_repeated(text):
    with pytest.raises(ScoringError, match="no secret") as caught:
        TableName.parse(text, role="input")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be named"), ("delta:", "must be named"), ("part", "no such file.*did you mean 'parts'"), ("zzz", "no such file.*check"),
        ("empty", "folder is empty"), ("empty.csv", "file is empty"), ("begun", "Delta table, Parquet or CSV, got .*begun"),
        ("notes", r"got .*notes \(readme.md\)"), ("notes/readme.md", r"got .*\(.md\)"), ("both", "one format"), ("many", "name one of them"),
        ("parquet:delta", "said to be parquet, got delta"), ("delta:parts", "said to be delta, got parquet.*write parquet:"),
        ("csv:one.bin", "said to be csv, got parquet"), ("jdbc:postgresql://host/db", "must end with #"),
        ("jdbc:h2:mem#(select 1) t", "must end with #"),
    ],
)  # fmt: skip
def test_inputs_that_are_refused(folder, text, says):
    with pytest.raises(ScoringError, match=says) as caught:
        TableName.parse(text, role="input")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("csv", "CSV and JDBC are read, never written"), ("csv:new", "never written"), ("jdbc:postgresql://host/db#t", "never written"),
        ("wine.tsv", "got the file"), ("notes", "an empty one.*readme.md"), ("parquet:delta", "said to be parquet"), ("many", "no table"),
    ],
)  # fmt: skip
def test_outputs_that_are_refused(folder, text, says):
    with pytest.raises(ScoringError, match=says):
        TableName.parse(text, role="output")


def test_what_cannot_be_read(folder):
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(ScoringError, match="no such file"):
        TableName.parse("loop", role="input")
    with pytest.raises(ScoringError, match=r"cannot be read, got .*name too long"):
        TableName.parse("x" * 300 + "/y", role="input")


@pytest.mark.parametrize(
    ("inner", "outer", "inside"),
    [
        ("delta", "delta", True), ("delta/scores", "delta", True), ("delta2", "delta", False), ("new", "delta", False),
        ("main.a.wine", "main.A.wine", True), ("main.a.wine", "main.a.wine2", False), ("main.a.wine", "delta", False),
        ("delta:s3://b/wine/scores", "delta:s3://b/wine/", True), ("delta:s3://b/wine2", "delta:s3://b/wine", False),
        ("delta", "delta:s3://b/wine", False), ("new", "jdbc:h2:mem#t", False),
    ],
)  # fmt: skip
def test_what_lies_inside(folder, inner, outer, inside):
    assert is_inside(TableName.parse(inner, role="output"), TableName.parse(outer, role="input")) == inside


def test_a_link_to_a_table_is_the_table(folder):
    (folder / "link").symlink_to(folder / "delta")
    assert is_inside(TableName.parse("link/scores", role="output"), TableName.parse("delta", role="input"))
