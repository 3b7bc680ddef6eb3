"""The runs of one study in MLflow: the parent, and a nested run a trial. Turns entries into calls, each of which may be repeated.

Tags make a run findable: `toolkit.study_id` and `toolkit.role` = parent; `mlflow.parentRunId` and `toolkit.trial` = number.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.study import TrialRecord, TrialState
from toolkit.engines.mlflow_spool import Entry
from toolkit.engines.mlflow_store import MlflowStore, Refused, StoredRun, Unanswered, context_tags

logger = logging.getLogger(__name__)

MAX_ERROR_BYTES = 4900
RUN_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAILED: "FAILED"}

# What MLflow's table of runs shows of every one.
CHILD_CONTEXT = ("mlflow.user", "mlflow.source.name", "mlflow.source.type")


@dataclass
class _Child:
    run_id: str
    status: str
    end_ms: int | None = None


class StudyRuns:
    """Finds or creates the experiment and the parent run. For one thread.

    Args:
        study: tags that identify it, `toolkit.study_id` among them; tags: further ones for all runs.

    Raises:
        TrackingError: the experiment was deleted.
        Unanswered, Refused: of the store.
    """

    def __init__(
        self, store: MlflowStore, *, experiment_name: str, run_name: str, study: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        self._store = store
        self._context = context_tags()
        self._tags = {**tags, **study}
        self._children: dict[int, _Child] = {}
        self._started: dict[int, float] = {}
        self._unsure: set[int] = set()
        self.experiment_id = store.experiment_id(experiment_name)
        parents = store.find_runs(self.experiment_id, {"toolkit.study_id": study["toolkit.study_id"], "toolkit.role": "parent"})
        if parents:
            self.parent_id = parents[0].run_id
        else:
            all_tags = {**self._context, **self._tags, "toolkit.role": "parent"}
            self.parent_id = store.create_run(self.experiment_id, run_name, to_ms(time.time()), all_tags)

    def send(self, entry: Entry) -> list[Entry]:
        """Send one entry; returns what must be sent next.

        Raises:
            Unanswered: send it again. Refused: MLflow will not take it, or not all of it.
        """
        data = entry.data
        if entry.kind == "started":
            self._send_started(data["number"], data["at_unix_s"])
        elif entry.kind == "ended":
            assert entry.record is not None
            self._send_ended(entry.record)
        elif entry.kind == "requeued":
            child = self._children.get(data["number"])
            if child is not None:
                self._update(child, "KILLED", to_ms(data["at_unix_s"]))
        elif entry.kind == "reconcile":
            return self._reconcile(entry.records)
        elif entry.kind == "parent":
            points = [(name, value, to_ms(data["at_unix_s"]), 0) for name, value in data["metrics"].items()]
            self._store.log(self.parent_id, data["params"], points, data["tags"])
        elif entry.kind == "artifact":
            self._store.log_artifact(self.parent_id, Path(data["path"]), data["folder"])
        else:
            self._send_finish(data["status"], to_ms(data["at_unix_s"]))
        return []

    def _send_started(self, number: int, started_unix_s: float) -> None:
        self._started[number] = started_unix_s
        child = self._child(number, started_unix_s)
        if child.status != "RUNNING":
            self._update(child, "RUNNING")

    def _send_ended(self, record: TrialRecord) -> None:
        result = record.result
        started = self._started.get(record.number) or result.started_unix_s or result.ended_unix_s or time.time()
        child = self._child(record.number, started)
        tags = {"toolkit.state": record.state.value}
        if result.host:
            tags["toolkit.host"] = result.host
        if record.num_retries:
            tags["toolkit.num_retries"] = str(record.num_retries)
        if record.error:
            tags["toolkit.error"] = _tail(record.error)
        refusal: Refused | None = None
        try:
            self._store.log(child.run_id, {name: str(value) for name, value in record.params.items()}, metric_points(record), tags)
        except Refused as error:  # the status is still worth having
            refusal = error
        self._update(child, RUN_STATUS[record.state], to_ms(result.ended_unix_s or time.time()))
        if refusal is not None:
            raise refusal

    def _send_finish(self, status: str, end_ms: int) -> None:
        for number in sorted(self._unsure):
            self._look_up(number)
        self._unsure.clear()
        for child in self._children.values():
            if child.status == "RUNNING":
                self._update(child, "KILLED", end_ms)
        self._store.update_run(self.parent_id, status, end_ms)

    def _child(self, number: int, started_unix_s: float) -> _Child:
        """The trial's nested run, created where there is none."""
        if number not in self._children and number in self._unsure:
            self._look_up(number)
        if number not in self._children:
            tags = {key: self._context[key] for key in CHILD_CONTEXT if key in self._context} | self._tags
            tags |= {"toolkit.trial": str(number), "mlflow.parentRunId": self.parent_id}
            try:
                run_id = self._store.create_run(self.experiment_id, f"trial-{number:03d}", to_ms(started_unix_s), tags)
            except Unanswered:
                self._unsure.add(number)
                raise
            self._children[number] = _Child(run_id, "RUNNING")
        return self._children[number]

    def _look_up(self, number: int) -> None:
        """Find the runs of a trial whose creation had no answer."""
        runs = self._store.find_runs(self.experiment_id, {"mlflow.parentRunId": self.parent_id, "toolkit.trial": str(number)})
        if runs:
            self._keep_one(number, runs)

    def _keep_one(self, number: int, runs: Sequence[StoredRun]) -> StoredRun:
        """The one run of a trial; a second one, made by a request that arrived after it had been given up, is deleted."""
        known = self._children.get(number)
        kept = min(runs, key=lambda run: (known is None or run.run_id != known.run_id, not run.has_params))
        for run in runs:
            if run is not kept:
                self._store.delete_run(run.run_id)
                logger.warning("trial %d had two runs in MLflow: %s deleted, %s kept", number, run.run_id, kept.run_id)
        if known is None:
            self._children[number] = _Child(kept.run_id, kept.status, kept.end_ms)
        return kept

    def _update(self, child: _Child, status: str, end_ms: int | None = None) -> None:
        self._store.update_run(child.run_id, status, end_ms)
        child.status, child.end_ms = status, end_ms

    def _reconcile(self, records: Sequence[TrialRecord]) -> list[Entry]:
        """Continue the parent run, put its nested runs in order, and name the finished trials that MLflow lacks."""
        self._store.update_run(self.parent_id, "RUNNING")
        found: dict[int, list[StoredRun]] = {}
        for run in self._store.find_runs(self.experiment_id, {"mlflow.parentRunId": self.parent_id}):
            if run.tags.get("toolkit.trial", "").isdigit():
                found.setdefault(int(run.tags["toolkit.trial"]), []).append(run)
        known = {record.number for record in records}
        finished = {record.number: record for record in records if record.state.is_finished}
        for number, runs in found.items():
            kept = self._keep_one(number, runs)
            if number in finished:
                continue
            if kept.has_params:
                # MLflow has its end, which the journal, restored from an older copy, has lost: the trial will be made anew, perhaps with
                # other parameters, and MLflow never changes a parameter.
                self._store.log(kept.run_id, {}, [], {"toolkit.note": "deleted on resume: the study's journal had lost this trial"})
                self._store.delete_run(kept.run_id)
                del self._children[number]
            elif number not in known and kept.status == "RUNNING":
                note = "started by a process that was lost before the study recorded the trial"
                self._store.log(kept.run_id, {}, [], {"toolkit.note": note})
                self._update(self._children[number], "KILLED", to_ms(time.time()))
        missing = [Entry("ended", record=record) for record in finished.values() if not self._is_sent(record)]
        logger.info("resumed: %d of %d finished trials are in MLflow already", len(finished) - len(missing), len(finished))
        return missing

    def _is_sent(self, record: TrialRecord) -> bool:
        child = self._children.get(record.number)
        if child is None or child.status != RUN_STATUS[record.state]:
            return False
        # An interrupted attempt is KILLED as well, but at another time.
        return not record.result.ended_unix_s or child.end_ms == to_ms(record.result.ended_unix_s)


def metric_points(record: TrialRecord) -> list[tuple[str, float, int, int]]:
    """A trial's metrics as MLflow keeps them: (name, value, timestamp in ms, step).

    Every point follows from the record alone: the history is spread between start and end by its steps. A metric's final value, the one at
    the best iteration, stands at the last step and is the latest, so that MLflow shows and sorts by it.
    """
    result = record.result
    start_ms, end_ms = to_ms(result.started_unix_s), to_ms(result.ended_unix_s or result.started_unix_s)
    last_step = max((int(point[0]) for history in result.history.values() for point in history), default=0)
    points: list[tuple[str, float, int, int]] = []
    finals = dict(result.metrics)
    for name, history in result.history.items():
        for step, value in history:
            points.append((name, float(value), start_ms + int((end_ms - start_ms) * step / (last_step + 1)), int(step)))
        if history and name in finals and finals[name] != history[-1][1]:
            points.append((name, float(finals[name]), max(end_ms, points[-1][2] + 1), int(history[-1][0])))
        if history:
            finals.pop(name, None)
    finals |= {"fit_wall_s": result.fit_wall_s, "fit_cpu_s": result.fit_cpu_s}
    if result.best_iteration is not None:
        finals["best_iteration"] = result.best_iteration
    return points + [(name, float(value), end_ms, 0) for name, value in finals.items()]


def _tail(error: str) -> str:
    """The end of a traceback, where the reason stands, within MLflow's limit for tags."""
    raw = error.encode()
    return error if len(raw) <= MAX_ERROR_BYTES else "…" + raw[-MAX_ERROR_BYTES:].decode(errors="ignore")


def to_ms(unix_s: float) -> int:
    return round(unix_s * 1000)
