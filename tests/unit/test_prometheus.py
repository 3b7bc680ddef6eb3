"""Prometheus text: what a parser reads back, the last success after a failure, and files that are whole or not there."""

import math
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from toolkit.core.prometheus import LAST_SUCCESS, Gauge, exposition, read_text, score_gauges, write_text

SUCCESS = {"model": "wine_quality", "output": "/data/scores", "wall_s": 12.5, "num_scored_rows": 96, "num_quarantined_rows": 4}


def parsed(text):
    """Sample name and labels -> value."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1),
    st.floats(allow_nan=False),
)
def test_a_parser_reads_what_was_written(text, value):
    assert parsed(exposition([Gauge("toolkit_x", text.strip() or "x", value, {"b": text, "a": "1"})])) == {
        ("toolkit_x", ("a", "1"), ("b", text)): value
    }


def test_what_is_no_number_is_told_as_prometheus_does():
    assert exposition([Gauge("x", "h", math.nan)]).endswith("x NaN\n")
    assert exposition([Gauge("x", "h", -math.inf)]).endswith("x -Inf\n")
    assert exposition([Gauge("x", "h", 1700000000.0)]).endswith("x 1700000000\n")


def test_a_name_that_prometheus_would_not_take_is_a_bug():
    with pytest.raises(AssertionError):
        exposition([Gauge("a-b", "h", 1)])


def test_a_run_that_ended_well():
    found = parsed(exposition(score_gauges(**SUCCESS, succeeded=True, ended_unix_s=1000.25, model_version=3, model_age_s=60)))
    labels = (("model", "wine_quality"), ("output", "/data/scores"))
    assert found[("toolkit_score_rows", *labels, ("state", "scored"))] == 96
    assert found[("toolkit_score_rows", *labels, ("state", "quarantined"))] == 4
    del found[("toolkit_score_rows", *labels, ("state", "scored"))], found[("toolkit_score_rows", *labels, ("state", "quarantined"))]
    assert {key[0].removeprefix("toolkit_score_"): value for key, value in found.items()} == {
        "success": 1, "last_success_timestamp_seconds": 1000.25, "last_run_timestamp_seconds": 1000.25, "seconds": 12.5, "bad_share": 0.04,
        "model_version": 3, "model_age_seconds": 60,
    }  # fmt: skip
    assert {key[1:] for key in found} == {labels}


def test_the_last_success_outlives_failures_and_a_new_version():
    text = exposition(score_gauges(**SUCCESS, succeeded=True, ended_unix_s=1000.25, model_version=3))
    for ended in (2000.0, 3000.0):
        text = exposition(
            score_gauges(model="wine_quality", output="/data/scores", succeeded=False, ended_unix_s=ended, wall_s=1, former=text)
        )
        values = {key[0]: value for key, value in parsed(text).items()}
        assert values[LAST_SUCCESS] == 1000.25
        assert values["toolkit_score_success"] == 0
        assert values["toolkit_score_last_run_timestamp_seconds"] == ended
        assert "toolkit_score_rows" not in values
        assert "toolkit_score_bad_share" not in values


@pytest.mark.parametrize("former", ["", "no metrics at all", f'{LAST_SUCCESS}{{model="other",output="/data/scores"}} 5\n', "x" * 10])
def test_a_first_failure_has_no_last_success(former):
    gauges = score_gauges(model="m", output="/data/scores", succeeded=False, ended_unix_s=1, wall_s=1, former=former)
    assert LAST_SUCCESS not in {gauge.name for gauge in gauges}


def test_a_run_without_rows_has_a_share():
    gauges = score_gauges(model="m", output="o", succeeded=True, ended_unix_s=1, wall_s=1, num_scored_rows=0, num_quarantined_rows=0)
    assert [gauge.value for gauge in gauges if gauge.name.endswith("bad_share")] == [0]


def test_a_file_is_replaced_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "toolkit.prom"
    assert read_text(path) == ""
    for text in ("a 1\n", "a 2\n"):
        write_text(path, text)
        assert read_text(path) == text
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder.prom").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "folder.prom", "a 1\n")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.prom"]
