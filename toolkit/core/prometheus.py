"""A run's figures as Prometheus text, for the textfile collector of node-exporter: gauges of the last run, in one file a job.

Pushed nowhere: the collector reads FILE.prom at its own pace, so the file is always whole, and its temporary name never ends in .prom.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "toolkit_score"
LAST_SUCCESS = f"{PREFIX}_last_success_timestamp_seconds"
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Gauge:
    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def series(self) -> str:
        """The name with its labels, sorted."""
        assert all(map(_NAME.fullmatch, (self.name, *self.labels))), self
        labels = ",".join(f'{name}="{_escaped(self.labels[name], quotes=True)}"' for name in sorted(self.labels))
        return f"{self.name}{{{labels}}}" if labels else self.name


def exposition(gauges: Sequence[Gauge]) -> str:
    """Prometheus' text format; gauges of one name stand together, with the help of the first."""
    lines = []
    for name in dict.fromkeys(gauge.name for gauge in gauges):
        family = [gauge for gauge in gauges if gauge.name == name]
        lines += [f"# HELP {name} {_escaped(family[0].help)}", f"# TYPE {name} gauge"]
        lines += [f"{gauge.series} {_number(gauge.value)}" for gauge in family]
    return "".join(f"{line}\n" for line in lines)


def score_gauges(
    *,
    model: str,
    output: str,
    succeeded: bool,
    ended_unix_s: float,
    wall_s: float,
    former: str = "",
    num_scored_rows: int | None = None,
    num_quarantined_rows: int | None = None,
    model_version: int | None = None,
    model_age_s: float | None = None,
) -> list[Gauge]:
    """Of one run of `toolkit score`. What a failed run does not know is left out.

    The version is a value and no label, so that a promotion does not end one series and begin another.

    Args:
        output: as it may be shown.
        former: the text that is replaced: where this run failed, its last success stays the last one.
    """
    labels = {"model": model, "output": output}

    def gauge(name: str, text: str, value: float | None, **more: str) -> list[Gauge]:
        return [] if value is None else [Gauge(f"{PREFIX}_{name}", text, value, {**labels, **more})]

    rows = (num_scored_rows, num_quarantined_rows)
    num_rows = None if None in rows else sum(number or 0 for number in rows)
    bad_share = None if num_rows is None else (num_quarantined_rows or 0) / (num_rows or 1)
    last_success = Gauge(LAST_SUCCESS, "When a run last ended well, seconds since 1970.", ended_unix_s, labels)
    return [
        *gauge("success", "Whether the last run ended well, 1 or 0.", float(succeeded)),
        *_last_success(last_success, succeeded, former),
        *gauge("last_run_timestamp_seconds", "When the last run ended, seconds since 1970.", ended_unix_s),
        *gauge("seconds", "How long the last run took.", wall_s),
        *gauge("rows", "Rows of the last run.", num_scored_rows, state="scored"),
        *gauge("rows", "Rows of the last run.", num_quarantined_rows, state="quarantined"),
        *gauge("bad_share", "Quarantined rows of the last run, 0 to 1.", bad_share),
        *gauge("model_version", "The registered version that scored.", model_version),
        *gauge("model_age_seconds", "Seconds since that version was registered.", model_age_s),
    ]


def read_text(path: Path) -> str:
    """Nothing where there is no file, or none that can be read: it is written anew then."""
    with contextlib.suppress(OSError, UnicodeError):
        return path.read_text(encoding="utf-8")
    return ""


def write_text(path: Path, text: str) -> None:
    """The whole file or nothing, readable by everyone: the collector runs as another user.

    Raises:
        OSError: it cannot be written there.
    """
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _last_success(this_run: Gauge, succeeded: bool, former: str) -> list[Gauge]:
    if succeeded:
        return [this_run]
    start = f"{this_run.series} "
    for line in former.splitlines():
        if line.startswith(start):
            with contextlib.suppress(ValueError):
                return [Gauge(this_run.name, this_run.help, float(line.removeprefix(start)), this_run.labels)]
    return []


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))
