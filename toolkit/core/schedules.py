"""When a job runs: intervals (`15m`), cron's five fields and what others make of them, and the loop that runs it in the foreground."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from toolkit.core.errors import ScoringError, UserError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
# Name, smallest and largest value, names of the values from the smallest on. In cron Sunday is 0 and 7.
_FIELDS = (
    ("minute", 0, 59, ()), ("hour", 0, 23, ()), ("day of the month", 1, 31, ()), ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)  # fmt: skip
# Minutes that divide an hour, hours that divide a day, a day and a week: what cron can do evenly.
_EVEN_MINUTES = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, 1440, 10080)


def parse_every(text: str) -> int:
    """Seconds of `30s`, `15m`, `1h` or `1d`.

    Raises:
        ScoringError: it is none of these.
    """
    match = re.fullmatch(r"(\d+)([smhd])", text.strip(), re.ASCII)
    if match is None or int(match[1]) == 0:
        raise ScoringError("an interval is a whole number and s, m, h or d", got=repr(text), next_step="for example 15m")
    return int(match[1]) * _UNITS_S[match[2]]


@dataclass(frozen=True)
class Cron:
    """Five fields as cron reads them: each `*`, or the values at which it holds; days of the week from 0, which is Sunday."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None

    @classmethod
    def parse(cls, text: str) -> Cron:
        """
        Raises:
            ScoringError: not five fields, or one that cron would not take.
        """
        fields = text.split()
        if len(fields) != len(_FIELDS):
            raise ScoringError(
                "cron: five fields (minute, hour, day of the month, month, day of the week)",
                got=repr(text),
                next_step='for example "15 6 * * MON-FRI"',
            )
        minutes, hours, days, months, weekdays = (_values(field, *rule) for field, rule in zip(fields, _FIELDS, strict=True))
        weekdays = tuple(sorted({day % 7 for day in weekdays}))
        impossible = (days == (31,) and set(months) <= {2, 4, 6, 9, 11}) or (set(days) <= {30, 31} and months == (2,))
        if impossible and fields[4] == "*":
            raise ScoringError("cron: the day must be in the month", got=repr(text), next_step="it would never run")
        return cls(
            " ".join(fields),
            minutes,
            hours,
            None if fields[2] == "*" else days,
            None if fields[3] == "*" else months,
            None if fields[4] == "*" else weekdays,
        )

    @classmethod
    def every(cls, interval_s: int) -> Cron:
        """
        Raises:
            ScoringError: cron cannot do it evenly; names the nearest that it can.
        """
        if interval_s < 60:
            raise ScoringError(
                "a schedule's shortest interval is a minute",
                got=f"{interval_s}s",
                next_step="let toolkit score --every run in the foreground",
            )
        minutes, seconds = divmod(interval_s, 60)
        if seconds or minutes not in _EVEN_MINUTES:
            below = max(each for each in _EVEN_MINUTES if each * 60 < interval_s)
            above = min((each for each in _EVEN_MINUTES if each * 60 > interval_s), default=None)
            raise ScoringError(
                "an interval must divide the hour or the day, or be 1d or 7d, to be even",
                got=_interval(interval_s),
                next_step=f"use {_interval(below * 60)}{'' if above is None else f' or {_interval(above * 60)}'}, or --cron",
            )
        if minutes < 60:
            return cls.parse(f"{'*' if minutes == 1 else f'*/{minutes}'} * * * *")
        if minutes < 1440:
            return cls.parse(f"0 {'*' if minutes == 60 else f'*/{minutes // 60}'} * * *")
        return cls.parse("0 0 * * *" if minutes == 1440 else "0 0 * * 1")

    def quartz(self) -> str:
        """Quartz' six fields, as Databricks takes them: seconds first, Sunday is 1 there (so days have names here), and one of the two
        kinds of days is `?`.

        Raises:
            ScoringError: both kinds of days are given, of which cron wants either.
        """
        if self.days is not None and self.weekdays is not None:
            raise ScoringError(
                "Databricks' schedule has a day of the month or one of the week", got=repr(self.text), next_step="make two schedules"
            )

        def field(values: tuple[int, ...] | None, num: int) -> str:
            # In full, for Quartz refuses some steps that cron takes.
            return "*" if values is None or len(values) == num else ",".join(map(str, values))

        weekdays = "?" if self.weekdays is None else ",".join(_DAYS[each] for each in self.weekdays)
        days = "?" if self.weekdays is not None else field(self.days, 31)
        return f"0 {field(self.minutes, 60)} {field(self.hours, 24)} {days} {field(self.months, 12)} {weekdays}"

    def calendars(self, timezone: str | None = None) -> list[str]:
        """systemd's `OnCalendar`; two where both kinds of days are given, for cron means either, and one calendar means both."""
        time_of_day = f"{_listed(self.hours, 24)}:{_listed(self.minutes, 60)}:00"
        months = "*" if self.months is None else ",".join(f"{month:02d}" for month in self.months)
        days = "*" if self.days is None else ",".join(f"{day:02d}" for day in self.days)
        weekdays = "" if self.weekdays is None else ",".join(_DAYS[day].capitalize() for day in self.weekdays) + " "
        zone = f" {timezone}" if timezone else ""
        if self.days is not None and self.weekdays is not None:
            return [f"*-{months}-{days} {time_of_day}{zone}", f"{weekdays}*-{months}-* {time_of_day}{zone}"]
        return [f"{weekdays}*-{months}-{days} {time_of_day}{zone}"]


def every(
    run: Callable[[], object],
    interval_s: float,
    *,
    failed: Callable[[UserError, int], object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Run now, and at the multiples of the interval since then, until Ctrl-C or SIGTERM.

    Runs never overlap. What a long run misses is caught up by one run directly after it; then the multiples count again.

    Args:
        failed: told of each UserError and how many runs in a row have failed by then; the loop goes on.
        clock, sleep: in seconds.

    Returns:
        How many runs there were, when it is stopped between two.

    Raises:
        KeyboardInterrupt: it is stopped during a run. Whatever else a run raises, too.
    """
    began, tick, num_runs, num_failures = clock(), 0, 0, 0
    is_running = False
    with _terminable():
        try:
            while True:
                is_running = True
                num_runs += 1
                try:
                    run()
                    num_failures = 0
                except UserError as error:
                    num_failures += 1
                    failed(error, num_failures)
                is_running = False
                passed_s = clock() - began
                if passed_s < (tick + 1) * interval_s:
                    tick += 1
                    sleep(tick * interval_s - passed_s)
                else:
                    tick = int(passed_s // interval_s)
        except KeyboardInterrupt:
            if is_running:
                raise
            return num_runs


# ---- parts


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as Ctrl-C, where nobody else handles it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(_signal: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _values(field: str, name: str, low: int, high: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """Of one field of cron, sorted."""
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if slash and (not step.isdecimal() or int(step) == 0 or not (span == "*" or dash)):
            raise _wrong(field, name, low, high, names, "a step follows * or a range: */15, 8-18/2")
        if span == "*":
            start, end = low, high - (name == "day of the week")
        else:
            start, end = (_value(each, low, names) for each in (first, last if dash else first))
        if not low <= start <= end <= high:
            raise _wrong(field, name, low, high, names, "the smaller value first" if low <= end < start <= high else "")
        found.update(range(start, end + 1, int(step) if slash else 1))
    return tuple(sorted(found))


def _value(text: str, low: int, names: tuple[str, ...]) -> int:
    """-1 where it is none."""
    if text.upper() in names:
        return low + names.index(text.upper())
    return int(text) if text.isdecimal() and text.isascii() else -1


def _wrong(field: str, name: str, low: int, high: int, names: tuple[str, ...], hint: str) -> ScoringError:
    known = f"{low} to {high}" + (f" or {names[0]} to {names[-1]}" if names else "")
    return ScoringError(f"cron: the {name} is *, {known}, lists and ranges of these", got=repr(field), next_step=hint)


def _listed(values: tuple[int, ...], num: int) -> str:
    return "*" if len(values) == num else ",".join(f"{value:02d}" for value in values)


def _interval(seconds: int) -> str:
    unit = next(unit for unit in "dhms" if seconds % _UNITS_S[unit] == 0)
    return f"{seconds // _UNITS_S[unit]}{unit}"
