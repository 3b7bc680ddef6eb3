"""What the measurements of `sweep_cluster` say: ratios, the curve, figures against targets, and the notes that go with them.

A measurement is a line of the work file (see `sweep_cluster.WorkFile`). Ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Arm, Figure
from benchmarks.sweep_cluster_plan import LENGTH_ARMS, TRIALS_AT

Measurement = Mapping[str, Any]
Values = Mapping[str, Any]

ARM_NAMES = {
    "sparktrials": "SparkTrials, defaults",
    "sparktrials_tuned": "SparkTrials, tuned",
    "mlflow_spark_study": "MlflowSparkStudy",
    "tune_tutorial": "Ray Tune as tutorials write it",
    "ours_spark": "toolkit on Spark",
    "ours_local": "toolkit, local",
    "pool": "process pool (the limit)",
    "ours_spark_profiled": "toolkit on Spark, profiled",
    "ray_init": "plain local ray.init",
}

ASHA_TARGET_AUC = 0.8621
ASHA_TARGET_ORIGIN = (
    "The target is the third best of 48 sets of another list (seed 2026), all fitted to their end on 21 November 2026, before any compared "
    "run: `ours_local` on Workload('table', 48, list_seed=2026)."
)

NO_GAIN = 1.1
"""A ratio under this is called no gain: it is within what one run differs from another."""


class Measured:
    """The measurements by section, arm, label and round; the last one of a key counts."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self.all = list({each["key"]: each for each in measurements}.values())

    def of(self, section: str, arm: str, label: str = "") -> list[Measurement]:
        found = [each for each in self.all if (each["section"], each["arm"], each["label"]) == (section, arm, label)]
        return sorted(found, key=lambda each: each["round"])

    def has(self, section: str, *arms: str) -> bool:
        return all(self.of(section, arm) for arm in arms)

    def arms(self, section: str) -> list[str]:
        present = {each["arm"] for each in self.all if each["section"] == section}
        return [arm for arm in ARM_NAMES if arm in present]

    def sections(self) -> list[str]:
        return list(dict.fromkeys(each["section"] for each in self.all))

    def median(self, section: str, arm: str, key: str, label: str = "") -> float:
        return statistics.median(each["values"][key] for each in self.of(section, arm, label))

    def ratio(self, section: str, above: str, below: str, value: Callable[[Values], float] | None = None) -> float:
        """Median over rounds of above's search wall over `value` of below (default: its search wall)."""
        value = value or _search
        denominators = {each["round"]: value(each["values"]) for each in self.of(section, below)}
        return statistics.median(
            _search(each["values"]) / denominators[each["round"]] for each in self.of(section, above) if each["round"] in denominators
        )

    def num_trials(self, section: str) -> int:
        return int(next(each for each in self.all if each["section"] == section)["workload"]["num_trials"])


def _search(values: Values) -> float:
    return float(values["search_s"])


def with_start(values: Values) -> float:
    return float(values["search_s"] + values["start_s"])


# --- figures --------------------------------------------------------------------------------------------------------------------------

# Section -> arm -> (target of the search walls' ratio, target with our start-up counted).
_WALL_TARGETS = {
    "wine50": {"sparktrials": (12.0, 4.5), "sparktrials_tuned": (9.0, 3.5)},
    "wine150": {"sparktrials": (15.0, 8.0), "sparktrials_tuned": (11.0, 6.0)},
}


def figures(measured: Measured) -> list[Figure]:
    found: list[Figure] = []
    for section, targets in _WALL_TARGETS.items():
        for rival, (plain, counted) in targets.items():
            if measured.has(section, rival, "ours_spark"):
                name = f"{ARM_NAMES[rival]} over ours, {measured.num_trials(section)} wine trials, MLflow on (ours)"
                found.append(Figure(f"{name}: search wall", measured.ratio(section, rival, "ours_spark"), "ratio", plain, "at_least"))
                value = measured.ratio(section, rival, "ours_spark", with_start)
                found.append(Figure(f"{name}: with the start of Ray on Spark", value, "ratio", counted, "at_least"))
    if measured.has("mlflow100", "mlflow_spark_study", "ours_spark"):
        name = f"MlflowSparkStudy over ours, {measured.num_trials('mlflow100')} wine trials, once: with the start of Ray on Spark"
        value = measured.ratio("mlflow100", "mlflow_spark_study", "ours_spark", with_start)
        found.append(Figure(name, value, "ratio", 12.0, "at_least"))
    if measured.has("wine50", "ours_spark", "ray_init"):
        value = _start_ratio(measured, "ours_spark")
        found.append(Figure("Ray on Spark ready, one worker, over a local ray.init", value, "ratio", 2.2, "at_most"))
    if measured.has("launches", "ours_spark", "sparktrials"):
        ours = measured.median("launches", "ours_spark", "launches_a_second")
        theirs = measured.median("launches", "sparktrials", "launches_a_second")
        num_slots = measured.of("launches", "ours_spark")[0]["workload"]["num_slots"]
        found.append(Figure(f"launches a second, no-op trials, {num_slots} slots", ours, "launches/s", 12.0, "at_least"))
        found.append(Figure(f"launches a second over SparkTrials', {num_slots} slots", ours / theirs, "ratio", 10.0, "at_least"))
    calls = tracking_calls_a_trial(measured)
    if calls is not None:
        found.append(Figure("tracking calls a trial", calls, "calls", 3.0, "at_most"))
    ratios = asha_ratios(measured)
    if ratios:
        found.append(Figure("time to the target, without ASHA over with", statistics.median(ratios), "ratio", 3.0, "at_least"))
    return found


def _start_ratio(measured: Measured, arm: str) -> float:
    yardstick = {each["round"]: each["values"]["start_s"] for each in measured.of("wine50", "ray_init")}
    return statistics.median(
        each["values"]["start_s"] / yardstick[each["round"]] for each in measured.of("wine50", arm) if each["round"] in yardstick
    )


def tracking_calls_a_trial(measured: Measured) -> float | None:
    """Calls that one more trial costs: what a study costs once cancels out between two lengths of it."""
    if not measured.has("wine50", "ours_spark") or not measured.has("wine150", "ours_spark"):
        return None
    calls = [measured.median(section, "ours_spark", "tracking_calls") for section in ("wine50", "wine150")]
    trials = [measured.num_trials(section) for section in ("wine50", "wine150")]
    return (calls[1] - calls[0]) / (trials[1] - trials[0])


# --- ASHA -----------------------------------------------------------------------------------------------------------------------------


def time_to(measurement: Measurement, target: float) -> float | None:
    """Seconds from the start of the search to the end of the first trial whose validation value reaches `target`; None: none does."""
    ends = [fit[4] for fit in measurement["fits"] if fit[1] >= target]
    return min(ends) - measurement["began_unix_s"] if ends else None


def asha_ratios(measured: Measured) -> list[float]:
    """One ratio a round in which both reach the target."""
    with_it = {each["round"]: time_to(each, ASHA_TARGET_AUC) for each in measured.of("asha", "ours_spark", "ASHA")}
    without = {each["round"]: time_to(each, ASHA_TARGET_AUC) for each in measured.of("asha", "ours_spark", "none")}
    pairs = [(without[number], with_it.get(number)) for number in without]
    return [none_s / asha_s for none_s, asha_s in pairs if none_s is not None and asha_s is not None]


# --- the curve ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurvePoint:
    """One trial length with one number of slots, for a search of `num_trials`. `extrapolated`: from `num_measured` trials, by arm."""

    num_slots: int
    sleep_s: float
    num_trials: int
    walls_s: Mapping[str, float]
    start_s: float
    num_measured: Mapping[str, int]

    @property
    def extrapolated(self) -> bool:
        return any(num < self.num_trials for num in self.num_measured.values())

    def gain(self, rival: str, counting_start: bool) -> float:
        return self.walls_s[rival] / (self.walls_s["ours_spark"] + (self.start_s if counting_start else 0.0))


def curve(measured: Measured) -> list[CurvePoint]:
    groups: dict[tuple[int, float], dict[str, Measurement]] = {}
    # The launches are the curve's point of no length at 64 slots, where the section `lengths` did not measure it.
    for section in ("launches", "lengths"):
        for each in measured.all:
            if each["section"] == section and each["arm"] in LENGTH_ARMS:
                groups.setdefault((each["workload"]["num_slots"], each["workload"]["sleep_s"]), {})[each["arm"]] = each
    points = []
    for (num_slots, sleep_s), by_arm in sorted(groups.items()):
        if set(by_arm) == set(LENGTH_ARMS) and num_slots in TRIALS_AT:
            num_trials = TRIALS_AT[num_slots]
            points.append(
                CurvePoint(
                    num_slots,
                    sleep_s,
                    num_trials,
                    {arm: wall_of(each, num_trials) for arm, each in by_arm.items()},
                    by_arm["ours_spark"]["values"]["start_s"],
                    {arm: each["workload"]["num_trials"] for arm, each in by_arm.items()},
                )
            )
    return points


def wall_of(measurement: Measurement, num_trials: int) -> float:
    """The wall of a search of `num_trials`, from one of fewer: its first wave of `num_slots` trials, and for each further wave what the
    measured ones took on average, and the time between the last trial's end and the search's.

    From one of more: when that many had ended, and the same time at the end.
    """
    num_slots = measurement["workload"]["num_slots"]
    ends = sorted(fit[4] - measurement["began_unix_s"] for fit in measurement["fits"])
    closing_s = max(0.0, measurement["values"]["search_s"] - ends[-1])
    if len(ends) >= num_trials:
        return float(ends[num_trials - 1] + closing_s)
    num_waves = len(ends) // num_slots
    assert num_waves >= 2, f"{len(ends)} trials on {num_slots} slots: two waves are the least"
    each_wave_s = (ends[num_waves * num_slots - 1] - ends[num_slots - 1]) / (num_waves - 1)
    return float(ends[num_slots - 1] + each_wave_s * (num_trials / num_slots - 1) + closing_s)


def no_gain_from_s(points: Sequence[CurvePoint], rival: str) -> float | None:
    """The trial length from which on the gain, start-up counted, is under `NO_GAIN`; between measured lengths on a straight line over the
    logarithm of the length. None: it is not, at any measured length."""
    previous: tuple[float, float] | None = None
    for point in sorted(points, key=lambda each: each.sleep_s):
        gain = point.gain(rival, counting_start=True)
        if gain < NO_GAIN:
            if previous is None or previous[0] <= 0:
                return point.sleep_s
            share = (previous[1] - NO_GAIN) / (previous[1] - gain)
            return math.exp(math.log(previous[0]) + share * math.log(point.sleep_s / previous[0]))
        previous = (point.sleep_s, gain)
    return None


def sentence(points: Sequence[CurvePoint]) -> str:
    """When it helps, by how much, and when it does not: for all numbers of slots measured, in plain words."""
    sentences = []
    for num_slots in sorted({point.num_slots for point in points}):
        chosen = sorted((point for point in points if point.num_slots == num_slots), key=lambda each: each.sleep_s)
        gains = ", ".join(f"{point.gain('sparktrials_tuned', True):.1f}× at {point.sleep_s:g} s a trial" for point in chosen)
        limit_s = no_gain_from_s(chosen, "sparktrials_tuned")
        end = (
            f"From about {_rounded(limit_s)} s a trial on it does not help: the gain is under {NO_GAIN:g}×."
            if limit_s is not None
            else f"At {chosen[-1].sleep_s:g} s a trial, the longest measured, it still helps."
            if len(chosen) > 1
            else "Other lengths were not measured there."
        )
        sentences.append(
            f"A search of {chosen[0].num_trials} trials on {num_slots} slots, with the start of Ray counted, against a well-tuned "
            f"SparkTrials: {gains}. {end}"
        )
    return " ".join(sentences)


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 2 else f"{seconds:.1f}"


# --- tables and notes -----------------------------------------------------------------------------------------------------------------


def comparison(measured: Measured, section: str) -> list[dict[str, Any]]:
    """A row an arm: walls, start, fits, overhead, best value, and the ratios to ours, medians over rounds."""
    rows = []
    for arm in measured.arms(section):
        if arm == "ray_init":
            continue
        row: dict[str, Any] = {"arm": arm, "rounds": len(measured.of(section, arm)), "num_trials": measured.num_trials(section)}
        for key in ("search_s", "start_s", "fit_s", "overhead_s", "best", "process_s"):
            row[key] = measured.median(section, arm, key)
        if measured.has(section, "ours_spark"):
            row["ratio"] = measured.ratio(section, arm, "ours_spark")
            row["ratio_with_start"] = statistics.median(
                with_start(each["values"]) / with_start(ours["values"])
                for each in measured.of(section, arm)
                for ours in measured.of(section, "ours_spark")
                if each["round"] == ours["round"]
            )
        rows.append(row)
    return sorted(rows, key=lambda row: row["search_s"] + row["start_s"])


def largest_difference(measured: Measured, section: str) -> float:
    """Of a parameter set's validation value between any two measurements of the section: 0 where all arms fitted the same."""
    by_number: dict[int, list[float]] = {}
    for each in measured.all:
        if each["section"] == section and each["workload"]["replay"]:
            for fit in each["fits"]:
                by_number.setdefault(fit[0], []).append(fit[1])
    return max((max(values) - min(values) for values in by_number.values()), default=0.0)


def harness_arms(measured: Measured) -> list[Arm]:
    arms = []
    for each in measured.all:
        prefix = ", ".join(part for part in (each["section"], each["label"], ARM_NAMES.get(each["arm"], each["arm"])) if part)
        for key, unit in (
            ("search_s", "s"), ("start_s", "s"), ("overhead_s", "s"), ("launches_a_second", "launches/s"), ("lost_slot_s", "slot-s"),
        ):  # fmt: skip
            wanted = {"launches_a_second": each["section"] == "launches", "lost_slot_s": each["section"] == "faults"}.get(key, True)
            if wanted and key in each["values"]:
                name = f"{prefix}: {key}"
                arm = next((arm for arm in arms if arm.name == name), None)
                if arm is None:
                    arms.append(arm := Arm(name, unit))
                arm.repeats.append(float(each["values"][key]))
    return arms


def notes(measured: Measured) -> list[str]:
    """What a reader must know to judge the figures."""
    loads = [each["load"] for each in measured.all]
    found = [
        "Ratios are medians of the ratios within a round. Overhead is search wall - sum of fits / slots. The Spark session, its executor "
        "and the MLflow server were up before any clock began; bytecode was cached for all.",
        "Every arm fitted one fixed list of parameter sets, each once (checked): one thread a trial, the toolkit's own XGBoost code in "
        "every arm. Largest difference of a set's validation value between arms: "
        + ", ".join(
            f"{largest_difference(measured, name):.1g} ({name})" for name in measured.sections() if name in ("wine50", "wine150", "long")
        )
        + ".",
        "SparkTrials runs without MLflow, as the open-source package ships it; it imports hyperopt, XGBoost and the objective anew in each "
        "trial, about 0.2 s of which are the toolkit's own modules. MlflowSparkStudy has one partition a slot (n_jobs = slots), the most "
        "favourable choice; its server shares the two cores. Its TPE sampler does its work, and its answer is replaced.",
        "search_s of ours is the wall of the runner, with MLflow on; start_s is the start of Ray on Spark, or of local Ray.",
        "Everything runs on one host: no arm pays for a network.",
        f"Load average when measurements began: median {statistics.median(loads):.1f}, highest {max(loads):.1f}. They follow each other. "
        "Much over the number of cores means that the host had other work, and that ratios are worth less.",
    ]
    if measured.has("wine50", "tune_tutorial", "ray_init"):
        found.append(f"Stock Ray on Spark was ready after {_start_ratio(measured, 'tune_tutorial'):.1f} times a local ray.init.")
    if curve(measured):
        found.append(
            "The curve's trials sleep: slots are logical cores, of which the 2 real ones start the processes. With 64 slots that start is "
            "the larger part of a short search for all arms; a cluster with 64 real cores starts 32 times as many at once."
        )
    if measured.of("launches", "ours_spark"):
        found.append("Launches a second are those of the second half of a search, when its processes are up, for all arms alike.")
    by_label = {label: measured.of("asha", "ours_spark", label) for label in ("ASHA", "none")}
    if all(by_label.values()):
        found.append(f"{ASHA_TARGET_ORIGIN} Each round is another list again.")
        for label, searches in by_label.items():
            times = [time_to(each, ASHA_TARGET_AUC) for each in searches]
            shown = ", ".join("not reached" if seconds is None else f"{seconds:.0f} s" for seconds in times)
            walls = ", ".join(f"{_search(each['values']):.0f} s" for each in searches)
            best = ", ".join(f"{each['values']['best']:.4f}" for each in searches)
            found.append(
                f"By round, {label}: {shown} to a validation AUC of {ASHA_TARGET_AUC}; the whole search {walls}; best value {best}."
            )
    found += [f"{each['key']}: {each['remark']}" for each in measured.all if "remark" in each]
    return found
