"""Delta in a session: the settings of one that is started, and what is said where a session has none."""

import json
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

from tests.engines.spark_fixtures import own_session
from tests.needs import need_java
from toolkit.core.errors import ScoringError
from toolkit.engines import spark_delta
from toolkit.engines.spark_delta import CATALOG, EXTENSION, check_delta, delta_package, settings_for_delta
from toolkit.settings import Settings

PACKAGE = delta_package(pyspark.__version__)
HERE = Settings.read({})


def fetched(ivy):
    """What Ivy leaves there."""
    (ivy / "jars").mkdir(parents=True)
    spark = ".".join(pyspark.__version__.split(".")[:2])
    names = [name.format(spark=spark, scala="2.13") for name in spark_delta._NEEDED_JARS]
    paths = [ivy / "jars" / f"io.delta_{name}-{spark_delta.DELTA_VERSION}.jar" for name in names]
    for path in paths:
        path.touch()
    return paths


def test_versions_of_spark():
    assert delta_package("4.1.4") == "io.delta:delta-spark_4.1_2.13:4.4.0"
    with pytest.raises(ScoringError, match=r"for Spark 4\.0 to 4\.2, got 3\.5\.2"):
        delta_package("3.5.2")


def test_a_first_session_has_the_jar_fetched(tmp_path):
    conf = settings_for_delta({"spark.jars.ivy": str(tmp_path), "spark.jars.packages": "a:b:1", "spark.sql.extensions": "c.D"}, HERE)
    assert conf["spark.jars.packages"] == f"a:b:1,{PACKAGE}"
    assert conf["spark.sql.extensions"] == f"c.D,{EXTENSION}"
    assert conf["spark.sql.catalog.spark_catalog"] == CATALOG
    assert "spark.jars" not in conf


def test_later_ones_name_the_files(tmp_path):
    jars = fetched(tmp_path)
    conf = settings_for_delta({"spark.jars.ivy": str(tmp_path), "spark.jars": "/a.jar"}, HERE)
    assert conf["spark.jars"].split(",") == ["/a.jar", *map(str, jars)]
    assert "spark.jars.packages" not in conf
    jars[1].unlink()
    assert settings_for_delta({"spark.jars.ivy": str(tmp_path)}, HERE)["spark.jars.packages"] == PACKAGE


@pytest.mark.parametrize("name", ["spark.jars", "spark.jars.packages"])
def test_the_users_own_jar_is_left_alone(name):
    conf = settings_for_delta({name: "io.delta:delta-spark_4.1_2.13:9.9.9", "spark.sql.catalog.spark_catalog": "my.Catalog"}, HERE)
    assert conf[name] == "io.delta:delta-spark_4.1_2.13:9.9.9"
    assert conf["spark.sql.catalog.spark_catalog"] == "my.Catalog"
    assert conf["spark.sql.extensions"] == EXTENSION


def test_databricks_has_its_own():
    assert settings_for_delta({"a": "b"}, Settings.read({"DATABRICKS_RUNTIME_VERSION": "18.0"})) == {"a": "b"}


def test_a_session_without_delta(tmp_path):
    with own_session(tmp_path) as session, pytest.raises(ScoringError, match=f"must have Delta, got no Delta in it; .*{PACKAGE}") as caught:
        check_delta(session, HERE)
    assert "\n" not in str(caught.value)


def test_a_session_with_the_jar_alone(tmp_path):
    conf = {name: value for name, value in settings_for_delta({}, HERE).items() if name.startswith("spark.jars")}
    with own_session(tmp_path, conf) as session, pytest.raises(ScoringError, match="got Delta's jar without its settings"):
        check_delta(session, HERE)


def test_a_session_with_delta(tmp_path):
    with own_session(tmp_path, settings_for_delta({}, HERE)) as session:
        check_delta(session, HERE)
        assert spark_delta.round_trip(session, tmp_path / "a b%20c") == 3
        assert (tmp_path / "a b%20c" / "table" / "_delta_log").is_dir()


def test_the_doctor_makes_a_round_trip(tmp_path):
    need_java()
    command = [str(Path(sys.executable).with_name("toolkit")), "doctor", "--delta", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["delta"]["state"] == "ok", checks["delta"]
    assert checks["delta"]["found"].startswith("3 rows written and read back")
    assert checks["delta-rs"]["state"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_jar_that_cannot_be_fetched(tmp_path):
    """Maven's servers cannot be reached, and no session has fetched it before."""
    need_java()
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && "$@"', "sh"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network of its own needs root, `unshare` and `ip`")
    script = f"""
from contextlib import ExitStack
from toolkit.engines import spark_delta
from toolkit.settings import Settings
with ExitStack() as stack:
    spark_delta.open_session(stack, None, {{"spark.jars.ivy": {str(tmp_path)!r}}}, Settings.read(), "test")
"""
    done = subprocess.run([*alone, sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert f"Delta's jar must be fetched, got no {PACKAGE} from Maven's servers; run toolkit doctor --delta once" in last
