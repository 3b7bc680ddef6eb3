"""The walk-through of `docs/guides/scoring.md`, command by command, as it is written there."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import toolkit
from tests.commands import Workplace, workplace
from tests.needs import need_java
from toolkit.settings import Settings

pytestmark = [pytest.mark.engine, pytest.mark.e2e, pytest.mark.timeout(600)]
__all__ = ["workplace"]

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "scoring.md"


@pytest.fixture(scope="module")
def _session() -> Iterator[None]:
    """One for all commands: each would start its own."""
    need_java()
    from toolkit.engines import spark_delta

    quick = {"spark.sql.shuffle.partitions": "2", "spark.databricks.delta.snapshotPartitions": "2", "spark.sql.session.timeZone": "UTC"}
    with ExitStack() as stack:
        spark_delta.open_session(stack, "local[2]", quick, Settings.read(), "tests")
        yield


@pytest.mark.usefixtures("_session")
def test_the_walk_through(workplace: Workplace, wine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_DATA_DIR", str(wine_folder))
    monkeypatch.chdir(workplace.folder)
    answers = []
    for block in re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.S | re.M):
        for line in block.splitlines():
            name, *arguments = shlex.split(line)
            assert name == "toolkit"
            in_process = {"sweep": ("--cluster", "inprocess"), "score": ("--json",)}  # Ray and its start are tested elsewhere
            answer = workplace.here(*arguments, *in_process.get(arguments[0], ()))
            assert answer.code == 0, f"{line}\n{answer.out}\n{answer.err}"
            if arguments[0] == "score":
                answers.append(answer.json)

    incremental, full = answers[:4], answers[4:]
    assert [each["num_scored_rows"] for each in incremental] == [4000, 1500, 997, 0]
    assert [each["high_watermark"] for each in incremental] == ["version 0", "version 1", "version 2", "version 2"]
    assert [each["num_scored_rows"] for each in full] == [6497, 0]

    scores = toolkit.read_scores(workplace.folder / "scores")
    assert sorted(scores.wine_id) == list(range(6497))
    assert set(scores.model_version) == {1} and set(scores.batch_id) == {3}

    fields = runpy.run_path(str(ROOT / "scripts" / "cli_docs.py"))["JSON_FIELDS"]
    assert list(answers[0]) == list(fields["score"])
    answer = workplace.here("ingest", "wine-quality", "--output", "bronze", "--json")
    assert list(answer.json) == list(fields["ingest"]) and not answer.json["changed"]
