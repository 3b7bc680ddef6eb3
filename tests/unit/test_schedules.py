"""Intervals, cron's fields and their translations, and the loop in the foreground."""

import os
import shutil
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core.errors import ScoringError
from toolkit.core.schedules import Cron, every, parse_every


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("15m", 900), ("1h", 3600), ("1d", 86400), (" 90m ", 5400)])
def test_intervals(text, seconds):
    assert parse_every(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "0m", "-5m", "1.5h", "15 m", "1h30m", "15min", "1w", "٣m"])
def test_what_is_no_interval(text):
    with pytest.raises(ScoringError, match="for example 15m"):
        parse_every(text)


@pytest.mark.parametrize(
    ("interval", "cron"),
    [
        ("1m", "* * * * *"), ("15m", "*/15 * * * *"), ("60m", "0 * * * *"), ("1h", "0 * * * *"), ("6h", "0 */6 * * *"), ("24h", "0 0 * * *"),
        ("1d", "0 0 * * *"), ("7d", "0 0 * * 1"),
    ],
)  # fmt: skip
def test_intervals_that_are_even(interval, cron):
    assert Cron.every(parse_every(interval)).text == cron


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ("7m", "got 7m; use 6m or 10m"), ("90m", "got 90m; use 1h or 2h"), ("5h", "use 4h or 6h"), ("90s", "got 90s; use 1m or 2m"),
        ("2d", "use 1d or 7d"), ("30d", "got 30d; use 7d, or --cron"), ("30s", "shortest interval is a minute, got 30s"),
    ],
)  # fmt: skip
def test_intervals_that_are_not(interval, says):
    with pytest.raises(ScoringError, match=says):
        Cron.every(parse_every(interval))


CRONS = [
    # cron, Quartz, systemd
    ("*/15 * * * *", "0 0,15,30,45 * * * ?", ["*-*-* *:00,15,30,45:00"]),
    ("15 6 * * MON-FRI", "0 15 6 ? * MON,TUE,WED,THU,FRI", ["Mon,Tue,Wed,Thu,Fri *-*-* 06:15:00"]),
    ("15 6 * * 1-5", "0 15 6 ? * MON,TUE,WED,THU,FRI", ["Mon,Tue,Wed,Thu,Fri *-*-* 06:15:00"]),
    ("0 0 * * 0", "0 0 0 ? * SUN", ["Sun *-*-* 00:00:00"]),
    ("0 0 * * 7", "0 0 0 ? * SUN", ["Sun *-*-* 00:00:00"]),
    ("0 0 * * 5-7", "0 0 0 ? * SUN,FRI,SAT", ["Sun,Fri,Sat *-*-* 00:00:00"]),
    ("0 0 * * */2", "0 0 0 ? * SUN,TUE,THU,SAT", ["Sun,Tue,Thu,Sat *-*-* 00:00:00"]),
    ("30 2 1,15 jan-mar *", "0 30 2 1,15 1,2,3 ?", ["*-01,02,03-01,15 02:30:00"]),
    ("0 8-18/2 * * *", "0 0 8,10,12,14,16,18 * * ?", ["*-*-* 08,10,12,14,16,18:00:00"]),
    ("* * * * *", "0 * * * * ?", ["*-*-* *:*:00"]),
]


@pytest.mark.parametrize(("cron", "quartz", "calendars"), CRONS)
def test_what_others_make_of_cron(cron, quartz, calendars):
    assert Cron.parse(cron).quartz() == quartz
    assert Cron.parse(cron).calendars() == calendars


def test_either_kind_of_day():
    cron = Cron.parse("0 6 1 * MON")
    assert cron.calendars("Europe/Berlin") == ["*-*-01 06:00:00 Europe/Berlin", "Mon *-*-* 06:00:00 Europe/Berlin"]
    with pytest.raises(ScoringError, match="make two schedules"):
        cron.quartz()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "five fields"), ("* * * *", "five fields"), ("0 0 6 ? * MON", "five fields"), ("@daily", "five fields"),
        ("60 * * * *", "the minute is .*0 to 59.*got '60'"), ("* 24 * * *", "the hour"), ("* * 0 * *", "day of the month"),
        ("* * * 13 *", "the month is .*JAN to DEC"), ("* * * * 8", "day of the week"), ("* * * * MOON", "day of the week"),
        ("5/15 * * * *", "a step follows"), ("*/0 * * * *", "a step follows"), ("*/x * * * *", "a step follows"),
        ("30-10 * * * *", "the smaller value first"), ("1,,2 * * * *", "the minute"), ("-1 * * * *", "the minute"),
        ("0 0 31 FEB *", "never run"), ("0 0 30 2 *", "never run"), ("0 0 31 4,6 *", "never run"), ("* * * * ?", "day of the week"),
    ],
)  # fmt: skip
def test_what_cron_would_not_take(text, says):
    with pytest.raises(ScoringError, match=says):
        Cron.parse(text)


def numbers(low, high):
    one = st.integers(low, high).map(str)
    spans = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: f"{min(pair)}-{max(pair)}")
    return st.one_of(st.just("*"), st.lists(one | spans, min_size=1, max_size=3).map(",".join), st.integers(1, 30).map("*/{}".format))


@given(st.tuples(numbers(0, 59), numbers(0, 23), numbers(1, 28), numbers(1, 12), numbers(0, 7)).map(" ".join))
def test_every_translation_is_well_formed(text):
    cron = Cron.parse(text)
    assert len(cron.calendars()) == (2 if cron.days and cron.weekdays else 1)
    if not (cron.days and cron.weekdays):
        fields = cron.quartz().split()
        assert len(fields) == 6
        assert [fields[3], fields[5]].count("?") == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("calendars", [calendars for _, _, calendars in CRONS])
def test_systemd_takes_the_calendars(calendars):
    subprocess.run(["systemd-analyze", "calendar", *calendars], check=True, capture_output=True)


class Time:
    """A clock that only sleeping and running move. `durations_s`: of the runs; the loop is interrupted when they are used up."""

    def __init__(self, *durations_s):
        self.now = 1000.0
        self.durations_s = list(durations_s)
        self.starts = []
        self.failures = []

    def run(self):
        self.starts.append(self.now - 1000)
        duration_s = self.durations_s.pop(0)
        self.now += abs(duration_s)
        if duration_s < 0:
            raise ScoringError("no", got=duration_s)

    def sleep(self, seconds):
        assert seconds > 0
        if not self.durations_s:
            raise KeyboardInterrupt
        self.now += seconds

    def loop(self, interval_s):
        return every(
            self.run,
            interval_s,
            failed=lambda error, num: self.failures.append((str(error), num)),
            clock=lambda: self.now,
            sleep=self.sleep,
        )


@pytest.mark.parametrize(
    ("durations_s", "starts"),
    [
        ((1, 1, 1), [0, 10, 20]),
        ((9.5, 9.5, 1), [0, 10, 20]),
        ((25, 1, 1), [0, 25, 30]),  # two missed, caught up in one at once; then the multiples again
        ((25, 12, 1, 1), [0, 25, 37, 40]),
        ((10, 1, 1), [0, 10, 20]),
        ((19, 1, 1), [0, 19, 20]),
    ],
)
def test_runs_are_at_the_multiples_and_never_overlap(durations_s, starts):
    time = Time(*durations_s)
    assert time.loop(10) == len(starts)
    assert time.starts == starts


def test_a_failure_is_told_and_the_loop_goes_on():
    time = Time(-1, -1, 1, -1)
    assert time.loop(10) == 4
    assert time.failures == [("no, got -1", 1), ("no, got -1", 2), ("no, got -1", 1)]


def test_a_bug_ends_the_loop():
    time = Time(1)
    with pytest.raises(IndexError):
        every(lambda: [][0], 10, failed=time.failures.append, sleep=time.sleep)
    assert time.failures == []


def test_sigterm_between_runs_is_an_end():
    before = signal.getsignal(signal.SIGTERM)
    assert every(lambda: None, 10, failed=print, sleep=lambda _: os.kill(os.getpid(), signal.SIGTERM)) == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def heeded_ctrl_c():
    """A background job of a shell starts with Ctrl-C ignored, and so do the tests there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_run_interrupts_it(which, heeded_ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        every(lambda: os.kill(os.getpid(), which), 10, failed=print, sleep=lambda _: pytest.fail("the run went on"))
