"""Tracking of one study in MLflow: a parent run, and a nested run a trial. Never blocks the search, never fails it.

The search's thread only puts entries into a queue. One background thread imports MLflow, connects, and sends them in order, at most three
calls a trial: create_run, log_batch (one more for every 1,000 metric points), update_run. While the server does not answer,
the entries stay in the queue and in the spool, a JSON-lines file; each entry can be sent twice without harm:

- a `create_run` without an answer is looked up by its tags before it is repeated, and looked up again at the end, for a late one;
- a batch has timestamps that follow from the record alone, and MLflow's databases keep one of two equal points.

The study's journal is the truth. `reconcile` compares MLflow with it and sends the difference, so that trial entries of a dead
process need not be read back from its spool: only what no journal knows (the parent's parameters, artifacts) is.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import TrackingError
from toolkit.core.secrets import without_secrets
from toolkit.core.study import Proposal, TrialRecord
from toolkit.engines.mlflow_spool import Entry, Spool

if TYPE_CHECKING:
    from toolkit.core.model_spec import ModelPackage
    from toolkit.engines.mlflow_runs import StudyRuns
    from toolkit.engines.mlflow_store import MlflowStore

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 10.0
LONGEST_CLOSE_S = 60.0
MODEL_TIMEOUT_S = 120.0


class MlflowTracker:
    """A `core.study.Listener` that keeps a study in MLflow. Methods may be called from any thread.

    Args:
        tracking_uri: None: MLflow's own default, `sqlite:///mlflow.db` in the working directory.
        experiment_name: MLflow's experiment, created where there is none.
        study_name, study_id: the id, not the name, identifies the parent run (tag `toolkit.study_id`).
        spool: file for what could not be sent; exists only while there is something.
        run_name: of the parent run.
        tags: for the parent run and every nested one.

    Attributes:
        parent_run_id, tracking_uri: empty until connected; the URI is shown without credentials.
        num_sent, num_refused: entries that MLflow took, and that it will never take (logged as warnings).
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None,
        experiment_name: str,
        study_name: str,
        study_id: str,
        spool: Path,
        run_name: str,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.experiment_name = experiment_name
        self.parent_run_id = ""
        self.tracking_uri = ""
        self.num_sent = 0
        self.num_refused = 0
        self._uri = tracking_uri
        self._study = {"toolkit.study_id": study_id, "toolkit.study": study_name}
        self._spool = Spool(spool)
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._store: MlflowStore | None = None
        self._runs: StudyRuns | None = None
        self._queue: deque[Entry] = deque()
        self._in_flight: Entry | None = None
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_withdrawn = False
        self._deadline = math.inf
        self._is_embedded = False
        self._imported = threading.Event()
        self._connected = threading.Event()
        self._failure: TrackingError | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-tracking", daemon=True)

    # --- connecting -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to import MLflow and to connect, in the background. Returns at once."""
        if self._thread.ident is None:
            self._thread.start()

    def connect(self, timeout_s: float = 15.0) -> None:
        """Wait until the experiment and the parent run are there. Calls `start` if nobody has.

        `timeout_s` bounds the conversation with a server; the import of MLflow and the making of an embedded database, both work on this
        machine, are not counted.

        Raises:
            TrackingError: the server does not answer or refuses, the URI's scheme is unknown, or the experiment was deleted.
        """
        self.start()
        self._imported.wait()
        if not self._connected.wait(None if self._is_embedded else timeout_s):
            raise _unreachable(self.tracking_uri, f"no answer in {timeout_s:g} s")
        if self._failure is not None:
            raise self._failure

    def _connect(self) -> None:
        try:
            from toolkit.engines import mlflow_runs, mlflow_store
        except Exception as error:
            self._failure = TrackingError("MLflow: importable here", got=f"{type(error).__name__}: {error}", next_step="run toolkit doctor")
            self._imported.set()
            self._connected.set()
            return
        try:
            uri = self._uri or mlflow_store.default_tracking_uri()
            self.tracking_uri = without_secrets(uri)
            self._is_embedded = uri.startswith("sqlite:")
            self._imported.set()
            if self._is_withdrawn:
                return
            self._store = mlflow_store.MlflowStore(uri)
            self._runs = mlflow_runs.StudyRuns(
                self._store, experiment_name=self.experiment_name, run_name=self._run_name, study=self._study, tags=self._tags
            )
            self.parent_run_id = self._runs.parent_id
        except TrackingError as error:
            self._failure = error
        except mlflow_store.Unanswered as error:
            self._failure = _unreachable(self.tracking_uri, str(error))
        except mlflow_store.Refused as error:
            self._failure = TrackingError(
                "MLflow's tracking server refuses",
                got=f"{self.tracking_uri}: {error}",
                next_step="check the URI, the experiment's name and your permissions",
            )
        except Exception as error:
            logger.debug("connecting to MLflow", exc_info=True)
            self._failure = TrackingError("MLflow: usable here", got=f"{type(error).__name__}: {mlflow_store.brief(error)}")
        finally:
            self._imported.set()
            self._connected.set()

    # --- what the search tells --------------------------------------------------------------------------------------------------

    def trial_started(self, proposal: Proposal, started_unix_s: float) -> None:
        self._put(Entry("started", {"number": proposal.number, "at_unix_s": started_unix_s}))

    def trial_ended(self, record: TrialRecord) -> None:
        self._put(Entry("ended", record=record))

    def trial_requeued(self, number: int) -> None:
        self._put(Entry("requeued", {"number": number, "at_unix_s": time.time()}))

    def reconcile(self, records: Sequence[TrialRecord]) -> None:
        """Bring MLflow to what a resumed study knows: call once, with all its records, before the first trial of this process.

        Finished trials that MLflow lacks or has in another state are sent; nested runs of unfinished trials are continued by their next
        attempt; what else an earlier process left (the parent's parameters, artifacts) is read from the spool and sent.
        """
        self._put(Entry("reconcile", records=tuple(records)))

    def set_parent(
        self,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Parameters (each once), tags and metrics of the parent run."""
        data: dict[str, Any] = {"params": {name: str(value) for name, value in (params or {}).items()}}
        data |= {"tags": {name: str(value) for name, value in (tags or {}).items()}, "metrics": dict(metrics or {})}
        self._put(Entry("parent", {**data, "at_unix_s": time.time()}))

    def log_artifact(self, local_path: Path, artifact_path: str = "") -> None:
        """A file for the parent run, in the folder `artifact_path` of its artifacts. It must stay where it is until it is sent."""
        self._put(Entry("artifact", {"path": str(local_path.resolve()), "folder": artifact_path}))

    def finish(self, status: Literal["FINISHED", "KILLED", "FAILED"], end_unix_s: float) -> None:
        """End the parent run. Nested runs that are still RUNNING then have no process: they are set KILLED."""
        self._put(Entry("finish", {"status": status, "at_unix_s": end_unix_s}))

    def log_model(self, package: ModelPackage, *, name: str = "model", timeout_s: float = MODEL_TIMEOUT_S) -> str:
        """Log a model of the parent run; waits for the upload.

        Returns:
            `models:/m-…`, the model's URI; `runs:/<parent_run_id>/<name>` names the newest one of this name.

        Raises:
            TrackingError: not connected, no answer within `timeout_s`, or refused.
        """
        self.connect()
        store, runs = self._store, self._runs
        assert store is not None and runs is not None
        answer: list[str | Exception] = []

        def log() -> None:
            try:
                from toolkit.engines import mlflow_models

                answer.append(mlflow_models.log_model(store, runs.experiment_id, runs.parent_id, package, name))
            except Exception as error:
                answer.append(error)

        # In a thread of its own: MLflow's upload retries for minutes, and offers no way to bound it but the environment.
        thread = threading.Thread(target=log, name="mlflow-log-model", daemon=True)
        thread.start()
        thread.join(timeout_s)
        result = answer[0] if answer else TimeoutError(f"no answer in {timeout_s:g} s")
        if isinstance(result, Exception):
            from toolkit.engines.mlflow_store import brief

            raise TrackingError(
                "MLflow: the model must be stored",
                got=f"{self.tracking_uri}: {brief(result)}",
                next_step="run the command again with --resume",
            ) from result
        return result

    # --- figures and the end ----------------------------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """With credentials, where it has some; for other stores on the same server. Connected only."""
        assert self._store is not None
        return self._store.uri

    @property
    def num_calls(self) -> int:
        """Calls of the tracking store so far; with a server: REST requests, uploads not counted."""
        return self._store.num_calls if self._store else 0

    @property
    def _num_answers(self) -> int:
        """Grows while MLflow takes what is sent, uploads included."""
        return self.num_sent + (self._store.num_answers if self._store else 0)

    @property
    def num_unsent(self) -> int:
        """Entries that MLflow does not have yet."""
        with self._changed:
            return len(self._queue) + (self._in_flight is not None)

    def close(self, timeout_s: float = 10.0) -> int:
        """Wait until all is sent: `timeout_s` without an answer, LONGEST_CLOSE_S while MLflow answers. What remains goes to the spool.

        Returns:
            the number of entries not sent.
        """
        began = time.monotonic()
        with self._changed:
            self._is_closing = True
            self._deadline = began + timeout_s
            self._changed.notify_all()
        while self._thread.is_alive() and (left_s := self._deadline - time.monotonic()) > 0:
            before = self._num_answers
            self._thread.join(min(left_s, 0.5))
            if self._num_answers > before:
                with self._changed:
                    self._deadline = max(self._deadline, min(began + LONGEST_CLOSE_S, time.monotonic() + timeout_s))
        unsent = self.num_unsent
        if unsent:
            self._write_spool()
            logger.warning("%d entries are not in MLflow yet: they wait in %s; --resume sends them", unsent, self._spool.path)
        return unsent

    def withdraw(self, timeout_s: float = 10.0) -> None:
        """Nothing was begun: the parent run, if it was made already, is deleted. Instead of `close`, and only for a new study."""
        with self._changed:
            self._is_withdrawn = self._is_closing = True
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # --- the background thread --------------------------------------------------------------------------------------------------

    def _put(self, entry: Entry) -> None:
        with self._changed:
            self._queue.append(entry)
            self._changed.notify_all()

    def _work(self) -> None:
        self._connect()
        runs = self._runs
        if runs is None:
            return
        from toolkit.engines.mlflow_store import Refused, Unanswered

        self._send_all(runs)
        if self._is_withdrawn:
            assert self._store is not None
            try:
                self._store.delete_run(runs.parent_id)
            except (Refused, Unanswered) as error:
                logger.warning("MLflow keeps an empty run of this study, %s: %s", runs.parent_id, error)

    def _send_all(self, runs: StudyRuns) -> None:
        from toolkit.engines.mlflow_store import Refused, Unanswered

        pause_s = FIRST_RETRY_S
        while (entry := self._next()) is not None:
            try:
                self._follow(runs.send(entry), entry)
            except Unanswered as error:
                if pause_s == FIRST_RETRY_S:
                    logger.warning("MLflow does not answer (%s): the search goes on, entries wait in %s", error, self._spool.path)
                self._give_back(entry)
                self._write_spool()
                if not self._pause(pause_s):
                    return
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)
                continue
            except Refused as error:
                self._refused(entry, error)
            except Exception as error:
                self._refused(entry, error)
                logger.exception("tracking entry %s", entry.kind)
            else:
                self.num_sent += 1
            if pause_s > FIRST_RETRY_S:
                logger.warning("MLflow answers again: %d entries to send", self.num_unsent - 1)
            pause_s = FIRST_RETRY_S
            with self._changed:
                self._in_flight = None

    def _next(self) -> Entry | None:
        """The next entry, awaited; None when closed and empty, or past the deadline."""
        with self._changed:
            if not self._queue:
                self._spool.remove()
            self._changed.wait_for(lambda: self._queue or self._is_closing)
            if not self._queue or time.monotonic() > self._deadline:
                return None
            self._in_flight = self._queue.popleft()
            return self._in_flight

    def _follow(self, entries: list[Entry], sent: Entry) -> None:
        """Queue before all others what an entry made necessary, and what only the spool of an earlier process knows."""
        if sent.kind == "reconcile":
            entries = self._spool.take_leftovers() + entries
        with self._changed:
            self._queue.extendleft(reversed(entries))

    def _give_back(self, entry: Entry) -> None:
        with self._changed:
            self._queue.appendleft(entry)
            self._in_flight = None

    def _pause(self, pause_s: float) -> bool:
        """Wait before the next attempt, less when `close` waits too. False past its deadline."""
        with self._changed:
            if self._is_closing:
                self._changed.wait(min(pause_s, FIRST_RETRY_S))
            else:
                self._changed.wait_for(lambda: self._is_closing, pause_s)
            return time.monotonic() < self._deadline

    def _write_spool(self) -> None:
        with self._changed:
            waiting = [self._in_flight, *self._queue] if self._in_flight else list(self._queue)
        self._spool.append(waiting)

    def _refused(self, entry: Entry, error: Exception) -> None:
        self.num_refused += 1
        logger.warning("MLflow refuses an entry (%s): %s", entry.title, error)


def _unreachable(uri: str, reason: str) -> TrackingError:
    return TrackingError(
        "MLflow's tracking server must answer",
        got=f"{uri} ({reason})",
        next_step="start it, or correct --tracking-uri or MLFLOW_TRACKING_URI",
    )
