"""How much faster is a search with the toolkit on a Spark cluster than with what teams have, and from which trial length on is it not?

Every arm runs in a fresh process against one real Spark standalone cluster of this host, and fits one fixed list of parameter sets on the
same rows with the same code, one thread a trial. Rounds are interleaved. Each measurement is kept at once in
`.toolkit/bench/sweep-cluster-SIZE.jsonl`, so that a run that was interrupted goes on with --continue.

    task bench:sweep                                     # within an hour
    task bench:sweep:full                                # the whole matrix, hours
    python -m benchmarks.sweep_cluster --quick           # a few minutes: does it work?
    python -m benchmarks.sweep_cluster --only lengths --continue
    python -m benchmarks.sweep_cluster --report-only
"""

from __future__ import annotations

import argparse
import compileall
import json
import math
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from benchmarks import harness
from benchmarks.rivals import ARMS
from benchmarks.spark_standalone import SparkStandalone, kill
from benchmarks.sweep_cluster_plan import DEFAULT_SECTIONS, SECTIONS, Case, Size, plan
from benchmarks.workloads import Workload

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".toolkit" / "bench"
# A process is ended when it takes this many times as long as expected, and this much more.
PATIENCE, PATIENCE_S = 4.0, 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="few trials; the report goes to .toolkit/bench")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="the whole matrix; hours")
    parser.set_defaults(size="bench")
    parser.add_argument("--only", help=f"sections, by commas: {','.join(SECTIONS)}")
    parser.add_argument("--repeats", type=int, help="rounds of wine50, wine150, long, asha, faults")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="keep what the work file has")
    parser.add_argument("--report-only", action="store_true", help="from the work file, nothing measured")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    parser.add_argument("--master", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        print("\n" + json.dumps(ARMS[given.arm](Workload(**json.loads(given.workload)), given.master)), flush=True)
        return
    chosen_size: Size = given.size
    sections = given.only.split(",") if given.only else DEFAULT_SECTIONS[chosen_size]
    unknown = set(sections) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: one of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    work = WorkFile(WORK / f"sweep-cluster-{chosen_size}.jsonl")
    failed: list[str] = []
    if not given.report_only:
        if not given.goes_on:
            work.set_aside()
        failed = measure(plan(chosen_size, sections, given.repeats), work)
    from benchmarks.sweep_cluster_report import write_report

    for path in write_report(work.measurements(), None if chosen_size != "quick" else WORK):
        print(path)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}; the reasons are in {WORK / 'logs'}. Go on with --continue.")


class WorkFile:
    """One JSON object a measurement: `{key, section, label, arm, round, workload{}, values{}, fits[], unix_s, load}`; a `remark` added by
    hand (what else the machine did) goes into the report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set_aside(self) -> None:
        if self.path.exists():
            self.path.replace(self.path.with_suffix(f".{time.strftime('%Y%m%d-%H%M%S')}.jsonl"))

    def measurements(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def append(self, measurement: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(measurement) + "\n")
            file.flush()
            os.fsync(file.fileno())


# --- measuring ------------------------------------------------------------------------------------------------------------------------


def measure(cases: Sequence[Case], work: WorkFile) -> list[str]:
    """Run what the work file does not have. Returns the keys of what failed; the others go on, for hours may hang on them."""
    done = {measurement["key"] for measurement in work.measurements()}
    open_cases = [case for case in cases if case.key not in done]
    _show_plan(open_cases, len(cases) - len(open_cases))
    _prepare()
    failed: list[str] = []
    clusters = _Clusters()
    try:
        for number, case in enumerate(open_cases, 1):
            print(f"[{number}/{len(open_cases)}] {case.key} (about {case.expected_s:.0f} s) …", file=sys.stderr, flush=True)
            try:
                measurement = _measured(case, clusters)
            except (ArmFailed, AssertionError) as error:
                failed.append(case.key)
                print(f"    failed: {error}", file=sys.stderr, flush=True)
                continue
            work.append(measurement)
            shown = ", ".join(f"{name} {value:.2f}" for name, value in measurement["values"].items() if isinstance(value, float))
            print(f"    {shown}", file=sys.stderr, flush=True)
    finally:
        clusters.stop()
    return failed


def _show_plan(cases: Sequence[Case], num_done: int) -> None:
    print(f"{len(cases)} measurements, {num_done} kept from before:", file=sys.stderr)
    for section in dict.fromkeys(case.section for case in cases):
        chosen = [case for case in cases if case.section == section]
        print(f"  {section:10} {len(chosen):3} runs, about {sum(case.expected_s for case in chosen) / 60:5.1f} min", file=sys.stderr)
    print(f"  in all about {sum(case.expected_s for case in cases) / 60:.0f} min", file=sys.stderr, flush=True)


def _prepare() -> None:
    """What must be the same for all arms: bytecode, modules, data.

    SparkTrials imports everything anew in every trial. Without cached bytecode (a fresh environment made by uv has none, and
    PYTHONDONTWRITEBYTECODE keeps it so) that takes three times as long, which no cluster of a user would show.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Packages carry templates and files for other Pythons, which do not compile: what matters is imported, and does.
    for folder in (sysconfig.get_path("purelib"), str(ROOT / "toolkit"), str(ROOT / "benchmarks")):
        compileall.compile_dir(folder, quiet=2, workers=os.cpu_count() or 1)
    os.environ["PYTHONPATH"] = str(ROOT)
    # As in an activated environment: stock Ray on Spark looks for `ray` there.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYSPARK_PYTHON"] = sys.executable
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "TOOLKIT_HOME", "SPARK_HOME"):
        os.environ.pop(name, None)
    if "TOOLKIT_DATA_DIR" not in os.environ:
        # Fetched once, not by every arm in its empty folder.
        from benchmarks.sweep_local import split_of

        os.environ["TOOLKIT_HOME"] = str(ROOT / ".toolkit")
        split_of(Workload("wine", 2).experiment())
        del os.environ["TOOLKIT_HOME"]
        cached = ROOT / ".toolkit" / "cache" / "wine-quality"
        if cached.is_dir():
            os.environ["TOOLKIT_DATA_DIR"] = str(cached)


class _Clusters:
    """The Spark cluster that the next case needs: kept while it is the same, ended when a worker of it was killed."""

    def __init__(self) -> None:
        self._cluster: SparkStandalone | None = None
        self._cores: tuple[int, ...] = ()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, cores: tuple[int, ...]) -> SparkStandalone | None:
        if not cores:
            return None
        if self._cluster is None or self._cores != cores:
            self.stop()
            self._folder = tempfile.TemporaryDirectory(prefix="bench-spark-", ignore_cleanup_errors=True)
            self._cluster = SparkStandalone(Path(self._folder.name)).__enter__()
            for each in cores:
                self._cluster.start_worker(each)
            self._cores = cores
        return self._cluster

    def stop(self) -> None:
        if self._cluster is not None and self._folder is not None:
            self._cluster.__exit__()
            self._folder.cleanup()
        self._cluster = None


class ArmFailed(Exception):
    pass


def _measured(case: Case, clusters: _Clusters) -> dict[str, Any]:
    cluster = clusters.get(case.cores)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        workload = case.workload
        progress = Path(folder) / "progress"
        if case.section == "faults":
            workload = Workload(**{**workload.as_dict(), "progress": str(progress)})
        began = time.perf_counter()
        with _arm_process(case, workload, cluster.url if cluster else "", folder) as (process, log):
            killed_unix_s = _kill_at_half(case, cluster, progress, process) if case.kills else None
            try:
                process.wait(PATIENCE * case.expected_s + PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise ArmFailed(f"not done after {PATIENCE * case.expected_s + PATIENCE_S:.0f} s") from None
            process_s = time.perf_counter() - began
        text = log.read_text(errors="replace")
        if process.returncode:
            raise ArmFailed(f"exit status {process.returncode}: {text[-1500:]}")
        outcome = json.loads(next(line for line in reversed(text.splitlines()) if line.startswith('{"')))
        num_starts = progress.read_text().count("start ") if progress.exists() else None
    if case.kills:
        clusters.stop()
    values = check(case, outcome)
    values["process_s"] = process_s
    if case.section == "faults":
        values |= _lost(case, outcome, killed_unix_s)
        values["num_starts"] = num_starts
    return {
        "key": case.key, "section": case.section, "label": case.label, "arm": case.arm, "round": case.round,
        "workload": case.workload.as_dict(), "values": values, "fits": outcome["fits"], "began_unix_s": outcome["began_unix_s"],
        "profile": outcome.get("profile"), "unix_s": time.time(), "load": load, "git_commit": harness.git_commit(),
    }  # fmt: skip


@contextmanager
def _arm_process(case: Case, workload: Workload, master: str, folder: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The arm in a fresh Python, in an empty folder; its whole group is gone on every way out. What it prints goes to a log."""
    log = WORK / "logs" / f"{case.key.replace('/', '-').replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.sweep_cluster", "--arm", case.arm, "--master", master]
    command += ["--workload", json.dumps(workload.as_dict())]
    file: IO[bytes]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )  # fmt: skip
    try:
        yield process, log
    finally:
        for each, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
            if process.poll() is None:
                os.killpg(process.pid, each)
                try:
                    process.wait(patience_s)
                except subprocess.TimeoutExpired:
                    continue  # SIGKILL is next.


def _kill_at_half(case: Case, cluster: SparkStandalone | None, progress: Path, process: subprocess.Popen[bytes]) -> float | None:
    """SIGKILL to the first Spark worker when half of the trials have ended. Returns when; None: the arm ended before."""
    assert cluster is not None
    while process.poll() is None:
        if progress.exists() and progress.read_text().count("end ") >= case.workload.num_trials // 2:
            kill(cluster.workers[0])
            return time.time()
        time.sleep(0.05)
    return None


def _lost(case: Case, outcome: dict[str, Any], killed_unix_s: float | None) -> dict[str, float]:
    """Slot-seconds that were there and went into no trial that counts; after the death there is one slot."""
    assert not case.kills or killed_unix_s is not None, "the arm ended before half of its trials"
    slots_after = len(case.cores) - 1 if case.kills else len(case.cores)
    before_s = (killed_unix_s - outcome["began_unix_s"]) if killed_unix_s is not None else 0.0
    there = before_s * len(case.cores) + (outcome["search_s"] - before_s) * slots_after
    return {"lost_slot_s": there - case.workload.num_trials * case.workload.sleep_s}


def check(case: Case, outcome: dict[str, Any]) -> dict[str, Any]:
    """Every set fitted once and every value a number, or AssertionError. Returns the figures of the measurement."""
    fits, workload = outcome["fits"], case.workload
    values = {name: value for name, value in outcome.items() if name not in ("fits", "profile", "began_unix_s")}
    if case.arm == "ray_init":
        return values
    numbers = sorted(fit[0] for fit in fits)
    if workload.replay:
        assert numbers == list(range(workload.num_trials)), f"sets fitted: {numbers}"
    else:
        assert len(numbers) == workload.num_trials, f"{len(numbers)} of {workload.num_trials} trials"
    assert all(math.isfinite(fit[1]) for fit in fits), "a value is not a finite number"
    fit_s = sum(fit[2] for fit in fits)
    starts = sorted(fit[3] for fit in fits)
    half = len(starts) // 2
    return {
        **values,
        "num_completed": len(fits),
        "best": max(fit[1] for fit in fits),
        "fit_s": fit_s,
        "overhead_s": outcome["search_s"] - fit_s / workload.num_slots,
        # The second half only: in the first one processes start that later trials may reuse. From the last start of the first half on, so
        # that the pause between two waves counts.
        "launches_a_second": (len(starts) - half) / max(starts[-1] - starts[half - 1], 1e-6),
        "launches_a_second_overall": len(starts) / outcome["search_s"],
    }


if __name__ == "__main__":
    main()
