"""What every benchmark shares: interleaved arms in one run, the machine on record, results as JSON, Markdown and HTML.

A result file: `{name, date, question, machine{}, versions{}, git_commit, arms[{name, repeats[], median, unit}],
figures[{name, value, unit, target, direction, met}], notes[]}` in `benchmarks/results/DATE-NAME-MACHINE.json`.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from toolkit.core.machine import cpu_count, memory_bytes
from toolkit.engines.build import versions

RESULTS = Path(__file__).parent / "results"


@dataclass
class Arm:
    """One way to do the work. `repeats` are measured values in `unit`."""

    name: str
    unit: str
    repeats: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.repeats)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "repeats": [round(value, 4) for value in self.repeats],
            "median": round(self.median, 4),
        }


@dataclass(frozen=True)
class Figure:
    """A claim: `value` against `target`; `direction` says which side is good."""

    name: str
    value: float
    unit: str
    target: float
    direction: Literal["at_most", "at_least"]

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.direction == "at_most" else self.value >= self.target

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "value": round(self.value, 4), "met": self.met}


def interleave(runs: Mapping[str, Callable[[], Mapping[str, float]]], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Run every arm once a round, for `repeats` rounds, so that a slow minute of the machine falls on all; odd rounds go backwards."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for round_number in range(repeats):
        order = list(runs) if round_number % 2 == 0 else list(reversed(runs))
        for name in order:
            values = dict(runs[name]())
            measured[name].append(values)
            shown = ", ".join(f"{key} {plain_text(value)}" for key, value in values.items())
            print(f"round {round_number + 1}/{repeats} {name}: {shown}", file=sys.stderr, flush=True)
    return measured


def in_process(module: str, arm: str, options: Mapping[str, Any], *, cwd: Path, env: Mapping[str, str] | None = None) -> dict[str, float]:
    """`python -m MODULE --arm ARM` in a fresh Python: its own figures, and `process_s`, the wall time of the whole process from outside."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, "--arm", arm, "--options", json.dumps(options)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    process_s = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{arm}: {done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": process_s}


def arm(measured: Mapping[str, Sequence[Mapping[str, float]]], name: str, key: str, unit: str = "s") -> Arm:
    return Arm(f"{name}: {key}", unit, [values[key] for values in measured[name]])


def ratio(measured: Mapping[str, Sequence[Mapping[str, float]]], above: str, below: str, key: str, below_key: str | None = None) -> float:
    """Median over rounds of the ratio within a round."""
    pairs = zip(measured[above], measured[below], strict=True)
    return statistics.median(a[key] / b[below_key or key] for a, b in pairs)


def write(
    name: str,
    question: str,
    arms: Sequence[Arm],
    figures: Sequence[Figure],
    notes: Sequence[str],
    *,
    extra: Mapping[str, Any] | None = None,
    render: Mapping[str, Callable[[Mapping[str, Any]], str]] | None = None,
    folder: Path | None = None,
) -> Path:
    """Write the three files; the path of the JSON.

    Args:
        extra: more entries of the result, for a report of the benchmark's own.
        render: suffix (`.md`, `.html`) -> what writes it; default: `markdown` and `html` below.
        folder: default: `results/`.
    """
    result = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "question": question,
        "machine": machine(),
        "versions": {**versions(), **_rival_versions()},
        "git_commit": git_commit(),
        "arms": [each.as_dict() for each in arms],
        "figures": [each.as_dict() for each in figures],
        "notes": list(notes),
        **(extra or {}),
    }
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True, parents=True)
    for old in folder.glob(f"*-{name}-{_machine_name()}.*"):
        old.unlink()
    path = folder / f"{result['date']}-{name}-{_machine_name()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for suffix, text_of in {".md": markdown, ".html": html, **(render or {})}.items():
        path.with_suffix(suffix).write_text(text_of(result), encoding="utf-8")
    return path


def _rival_versions() -> dict[str, str]:
    """Of what only some benchmarks use, where it is installed."""
    installed = {each.name.lower(): each.version for each in importlib.metadata.distributions() if each.name}
    return {name: installed[name] for name in ("pyspark", "hyperopt") if name in installed}


def machine() -> dict[str, Any]:
    return {
        "cores": cpu_count(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _machine_name() -> str:
    return f"{cpu_count()}cores"


def git_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()


def markdown(result: Mapping[str, Any]) -> str:
    lines = [
        f"# {result['name']}, {result['date']}",
        "",
        result["question"],
        "",
        f"{result['machine']['cores']} cores ({result['machine']['processor']}), {result['machine']['memory_gib']} GiB; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "",
        "| figure | value | target | met |",
        "|---|---|---|---|",
        *(
            f"| {f['name']} | {number_text(f['value'], f['unit'])} | {target_text(f)} | {'yes' if f['met'] else '**no**'} |"
            for f in result["figures"]
        ),
        "",
        "| arm | median | repeats |",
        "|---|---|---|",
        *(f"| {a['name']} | {number_text(a['median'], a['unit'])} | {', '.join(map(plain_text, a['repeats']))} |" for a in result["arms"]),
        "",
        *(f"- {note}" for note in result["notes"]),
        "",
    ]
    return "\n".join(lines)


def plain_text(value: float) -> str:
    """Two decimals, or two digits of what is less than 0.1."""
    return f"{value:.2g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"


def number_text(value: float, unit: str) -> str:
    return f"{plain_text(value)} {unit}".removesuffix("ratio").rstrip()


def target_text(figure: Mapping[str, Any]) -> str:
    return f"{'≤' if figure['direction'] == 'at_most' else '≥'} {figure['target']:g}"


_STYLE = """
:root{color-scheme:light dark;
--fg:#1c2430;--muted:#5d6776;--bg:#f6f7f9;--card:#fff;--line:#dfe3e8;--bar:#3b6fd4;--good:#1b7f4b;--bad:#b3261e}
@media(prefers-color-scheme:dark){
:root{--fg:#e6e9ee;--muted:#9aa4b2;--bg:#12161c;--card:#1b212a;--line:#303845;--bar:#6f9bf2;--good:#5ecf95;--bad:#ff8a80}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);margin:0 auto;max-width:960px;padding:1em}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 20px;margin:16px 0;overflow-x:auto}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.1rem;margin:.2em 0 .6em}p{margin:.4em 0}.muted{color:var(--muted);font-size:.9rem}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.yes{color:var(--good);font-weight:600}.no{color:var(--bad);font-weight:600}
.bar{background:var(--bar);height:12px;border-radius:3px;min-width:2px}
"""


def html(result: Mapping[str, Any]) -> str:
    """A page that stands alone: figures against targets, and a bar an arm, scaled within its unit."""
    longest: dict[str, float] = {}
    for each in result["arms"]:
        longest[each["unit"]] = max(longest.get(each["unit"], 0.0), each["median"])
    figures = "".join(
        f"<tr><td>{escape(f['name'])}</td><td class=n>{number_text(f['value'], f['unit'])}</td><td class=n>{target_text(f)}</td>"
        f"<td class={'yes' if f['met'] else 'no'}>{'met' if f['met'] else 'missed'}</td></tr>"
        for f in result["figures"]
    )
    arms = "".join(
        f"<tr><td>{escape(a['name'])}</td><td class=n>{number_text(a['median'], a['unit'])}</td><td style='width:40%'>"
        f"<div class=bar style='width:{100 * a['median'] / (longest[a['unit']] or 1):.1f}%'></div></td></tr>"
        for a in result["arms"]
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
    where = f"{result['machine']['cores']} cores ({escape(result['machine']['processor'])}), {result['machine']['memory_gib']} GiB"
    used = ", ".join(f"{escape(name)} {escape(version)}" for name, version in result["versions"].items())
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(result['name'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(result['name'])}</h1><p>{escape(result['question'])}</p><p class=muted>{result['date']} · {where} · {used}</p>"
        f"<section><h2>Figures</h2><table><tr><th>figure<th>value<th>target<th></tr>{figures}</table></section>"
        f"<section><h2>Arms, medians</h2><table>{arms}</table></section><section><h2>Notes</h2><ul>{notes}</ul></section></body></html>\n"
    )
