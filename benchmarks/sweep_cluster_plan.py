"""What `sweep_cluster` measures: sections, their cases in the order in which they run, and how long each will take.

Three sizes: `quick` (does it work?), `bench` (`task bench:sweep`, within an hour on 2 cores) and `full` (the whole matrix, hours).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.workloads import Workload

Size = Literal["quick", "bench", "full"]

ALL_ARMS = ("sparktrials", "sparktrials_tuned", "mlflow_spark_study", "tune_tutorial", "ours_spark", "ours_local", "pool")
LENGTHS_S = (0.0, 0.2, 1.0, 5.0, 10.0, 60.0)
LENGTH_ARMS = ("sparktrials", "sparktrials_tuned", "ours_spark")
TRIALS_AT = {2: 50, 64: 640}
"""Slots -> trials of the search that the curve is about; longer trials are measured on fewer and extrapolated."""


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        cores: of each Spark worker; empty: no Spark cluster.
        label: what differs within a section, for example the trial's length.
        kills: the first Spark worker is killed when half of the trials have ended.
        expected_s: wall seconds of the whole process, estimated for 2 cores.
    """

    section: str
    arm: str
    workload: Workload
    cores: tuple[int, ...]
    label: str = ""
    round: int = 0
    kills: bool = False

    @property
    def key(self) -> str:
        return "/".join([self.section, self.label, self.arm, str(self.round)])

    @property
    def expected_s(self) -> float:
        return _expected_s(self.arm, self.workload) + (20 if self.kills else 0)


def _case(section: str, arm: str, workload: Workload, label: str = "", round: int = 0) -> Case:
    on_spark = arm not in ("pool", "ours_local", "ray_init")
    return Case(section, arm, workload, (workload.num_slots,) if on_spark else (), label, round)


def _rounds(section: str, arms: Sequence[str], workload: Workload, repeats: int) -> list[Case]:
    """Every arm once a round, odd rounds backwards, so that a slow minute of the machine falls on all."""
    cases: list[Case] = []
    for number in range(repeats):
        order = arms if number % 2 == 0 else tuple(reversed(arms))
        cases += [_case(section, arm, workload, round=number) for arm in order]
    return cases


def _wine50(size: Size, repeats: int) -> list[Case]:
    workload = Workload("wine", {"quick": 6, "bench": 50, "full": 50}[size])
    cases = _rounds("wine50", (*ALL_ARMS, "ray_init"), workload, repeats)
    # Their ratios are far from any target, and each takes minutes.
    return [case for case in cases if size == "full" or case.round == 0 or case.arm not in ("mlflow_spark_study", "tune_tutorial")]


def _long(size: Size, repeats: int) -> list[Case]:
    return _rounds("long", ALL_ARMS, Workload("long", {"quick": 2, "bench": 10, "full": 50}[size]), repeats)


def _wine150(size: Size, repeats: int) -> list[Case]:
    arms = ("sparktrials", "sparktrials_tuned", "ours_spark", "ours_local", "pool")
    return _rounds("wine150", arms, Workload("wine", 8 if size == "quick" else 150), repeats)


def _mlflow100(size: Size, repeats: int) -> list[Case]:
    """Once, whatever `repeats`: its cost grows with the square of the trials."""
    return _rounds("mlflow100", ("mlflow_spark_study", "ours_spark"), Workload("wine", 6 if size == "quick" else 100), 1)


# Trials that are measured, by slots and length: never fewer than two waves, which is what the extrapolation needs.
_NUM_MEASURED: dict[Size, dict[int, dict[float, int]]] = {
    "quick": {2: {0.0: 6, 5.0: 4}},
    "bench": {2: {0.0: 50, 0.2: 30, 1.0: 20, 5.0: 8, 10.0: 6, 60.0: 4}},
    "full": {
        2: {0.0: 50, 0.2: 50, 1.0: 50, 5.0: 20, 10.0: 12, 60.0: 4},
        64: {0.0: 640, 0.2: 256, 1.0: 256, 5.0: 192, 10.0: 192, 60.0: 128},
    },
}


def _lengths(size: Size, repeats: int) -> list[Case]:
    return [
        _case("lengths", arm, Workload("sleep", num_trials, num_slots, sleep_s), f"{num_slots} slots, {sleep_s:g} s")
        for num_slots, by_length in _NUM_MEASURED[size].items()
        for sleep_s, num_trials in by_length.items()
        for arm in LENGTH_ARMS
    ]


def _launches(size: Size, repeats: int) -> list[Case]:
    num_slots = 8 if size == "quick" else 64
    many = Workload("sleep", {"quick": 40, "bench": 640, "full": 1000}[size], num_slots)
    few = Workload("sleep", {"quick": 16, "bench": 128, "full": 192}[size], num_slots)
    return [
        _case("launches", "sparktrials", few),
        _case("launches", "sparktrials_tuned", few),
        _case("launches", "ours_spark", many),
        _case("launches", "ours_spark_profiled", many),
    ]


def _asha(size: Size, repeats: int) -> list[Case]:
    """Both arms are ours: with the scheduler and without."""
    workload = Workload("table", 6, num_rows=20_000) if size == "quick" else Workload("table", 48)
    cases = []
    for number in range(repeats):
        for with_asha in (False, True) if number % 2 == 0 else (True, False):
            # Every round is another list; the target (see `sweep_cluster_figures`) comes from a list that is none of them.
            chosen = dataclasses.replace(workload, asha=with_asha, list_seed=1 + number)
            cases.append(_case("asha", "ours_spark", chosen, "ASHA" if with_asha else "none", number))
    return cases


def _faults(size: Size, repeats: int) -> list[Case]:
    workload = Workload("sleep", 8 if size == "quick" else 20, sleep_s=2.0 if size == "quick" else 5.0)
    return [
        Case("faults", arm, workload, (1, 1), "a worker dies" if kills else "undisturbed", number, kills)
        for number in range(repeats)
        for arm in ("sparktrials_tuned", "ours_spark")
        for kills in (False, True)
    ]


def _quality(size: Size, repeats: int) -> list[Case]:
    workload = Workload("wine", 6 if size == "quick" else 50, replay=False)
    return _rounds("quality", ("sparktrials", "mlflow_spark_study", "tune_tutorial", "ours_spark"), workload, 1)


SECTIONS: dict[str, Callable[[Size, int], list[Case]]] = {
    "wine50": _wine50,
    "wine150": _wine150,
    "long": _long,
    "mlflow100": _mlflow100,
    "lengths": _lengths,
    "launches": _launches,
    "asha": _asha,
    "faults": _faults,
    "quality": _quality,
}
# What fits into an hour.
DEFAULT_SECTIONS: dict[Size, tuple[str, ...]] = {
    "quick": tuple(SECTIONS),
    "bench": ("wine50", "wine150", "lengths", "launches", "asha"),
    "full": tuple(SECTIONS),
}


def plan(size: Size, sections: Sequence[str], repeats: int | None) -> list[Case]:
    """`repeats`: rounds of the sections that have them; None: three in `full` and, where it fits into the hour, in `bench`."""

    def rounds(section: str) -> int:
        return repeats or (3 if size == "full" or (size == "bench" and section == "wine50") else 1)

    return [case for section in sections for case in SECTIONS[section](size, rounds(section))]


# Seconds: before the search (imports, session, executor, Ray, a server), and of a slot for a trial beyond its fit; measured on 2 cores.
_FIXED_S: dict[str, float] = {
    "sparktrials": 15, "sparktrials_tuned": 15, "mlflow_spark_study": 50, "tune_tutorial": 50, "ours_spark": 30, "ours_spark_profiled": 35,
    "ours_local": 18, "pool": 6, "ray_init": 7,
}  # fmt: skip
_EACH_S: dict[str, float] = {
    "sparktrials": 2.4, "sparktrials_tuned": 2.3, "mlflow_spark_study": 12.5, "tune_tutorial": 4.0, "ours_spark": 0.03,
    "ours_spark_profiled": 0.06, "ours_local": 0.03, "pool": 0.01, "ray_init": 0,
}  # fmt: skip
# Beside a sleeping trial SparkTrials imports hyperopt only.
_EACH_SLEEPING_S = {"sparktrials": 1.9, "sparktrials_tuned": 1.6}
_FIT_S = {"wine": 0.15, "long": 5.0, "table": 12.0}


def _expected_s(arm: str, workload: Workload) -> float:
    fit_s = workload.sleep_s if workload.kind == "sleep" else _FIT_S[workload.kind] * workload.num_rows / 1_000_000
    if arm == "ray_init":
        return _FIXED_S[arm]
    if workload.asha:
        fit_s /= 4
    each_s = _EACH_SLEEPING_S.get(arm, _EACH_S[arm]) if workload.kind == "sleep" else _EACH_S[arm]
    # Two cores start no more processes a second because there are more slots.
    each_s = max(fit_s + each_s, each_s * workload.num_slots / 2)
    starting_s = workload.num_slots * 0.4 if arm.startswith("ours") and workload.num_slots > 2 else 0.0
    return _FIXED_S[arm] + starting_s + each_s * workload.num_trials / workload.num_slots
