"""What is in an experiment's table, before anything is trained on it: columns, their relation to the label, and what could leak it.

`explore(experiment)` is the Python API and what `toolkit explore` calls.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from toolkit.core.errors import DataError, ExperimentError
from toolkit.core.experiment import Experiment
from toolkit.reports.destination import destination
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.core.data import DataContext
    from toolkit.core.exploration import Exploration, Finding
    from toolkit.core.exploration_labels import Division, LabelGroups
    from toolkit.engines.table_source import TableSource
    from toolkit.engines.tables import Fetched

MAX_CELLS = 50_000_000
"""Rows × columns that are read into this process: a table of doubles then takes 0.4 GB, and all work on it below 3 GB. What is larger is
counted by Spark."""
TOLD_OF_A_KIND = 3


class Progress(Protocol):
    """Who watches: `toolkit.cli.progress.Progress`, or anything like it."""

    def phase(self, text: str) -> None: ...


class _Unwatched:
    def phase(self, text: str) -> None: ...


@dataclass(frozen=True)
class ExploreResult:
    """What was found, and the report of it. `kind` and `location` as in `core.data.DataSource`."""

    experiment: Experiment
    exploration: Exploration
    kind: str
    location: str
    wall_s: float
    started_unix_s: float
    report_path: str

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints. Names and units are a contract: see docs/cli.md."""
        return {
            "experiment": self.experiment.name,
            "data": {"kind": self.kind, "location": self.location},
            **self.exploration.as_json(),
            "wall_s": round(self.wall_s, 3),
            "report_path": self.report_path,
        }

    def _repr_html_(self) -> str:
        """The headline, for a notebook; the whole report is at `report_path`."""
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self.rows())
        return f"<table>{cells}</table>"

    def rows(self) -> list[tuple[str, str]]:
        """The headline: names and values."""
        found = self.exploration
        unlabelled = [f"{found.num_unlabelled:,} rows without one"] if found.num_unlabelled else []
        labelled = sum(found.group_counts)
        shares = [f"{name} {count / labelled:.1%}" for name, count in zip(found.groups, found.group_counts, strict=True)]
        missing = sorted((column for column in found.columns if column.num_missing), key=lambda column: -column.num_missing)
        engine = "pandas, exact" if found.engine == "pandas" else "Spark; some numbers are approximate, the report says which"
        return [
            ("table", f"{found.num_rows:,} rows × {found.num_columns} columns, {found.num_features} features"),
            ("label", f"{found.label}: {', '.join([*shares[:6], *(['…'] if len(shares) > 6 else []), *unlabelled])}"),
            *([("positive", found.positive)] if found.positive else []),
            ("missing", ", ".join(f"{column.name} {column.missing_share:.1%}" for column in missing[:5]) or "nothing"),
            ("duplicates", f"{found.duplicates.num_rows:,} rows ({found.duplicates.share:.1%})"),
            ("strongest", ", ".join(f"{column.name} {column.strength:.3f}" for column in found.predictors[:4]) or "none"),
            *(("suspect", text) for text in _told(found.suspects)),
            *(("remark", text) for text in _told(found.remarks)),
            ("split", found.split.description if found.split else found.split_note),
            ("data", f"{self.location} ({self.kind})"),
            ("made by", f"{engine}; {self.wall_s:.1f} s"),
            ("report", self.report_path),
        ]


def explore(
    experiment: Experiment,
    *,
    data: Path | None = None,
    report: Path | None = None,
    spark_master: str | None = None,
    spark_conf: Mapping[str, str] | None = None,
    source: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> ExploreResult:
    """Look at the experiment's table, and write the report.

    Up to MAX_CELLS the table is read and all numbers are exact. A larger one, or any with `spark_master`, stays where it is: Spark counts,
    in the active session or in one that is started for it (default: on this machine).

    Args:
        data: file or folder in place of the experiment's own source.
        report: where the HTML goes; default `TOOLKIT_HOME/reports/EXPERIMENT-explore.html`.
        spark_master, spark_conf: of a session that is started here.
        source: how the experiment was named, for the commands that the report ends with.

    Raises:
        UserError: whatever the user can act on; nothing is written then.
    """
    settings = settings or Settings.read()
    path = destination(report, settings.home / "reports" / f"{experiment.name}-explore.html")
    exploring = _Exploring(experiment, source or experiment.name, settings, progress or _Unwatched())
    return exploring.execute(data, path, spark_master, spark_conf or {})


class _Exploring:
    """One call of `explore`."""

    def __init__(self, experiment: Experiment, name: str, settings: Settings, progress: Progress) -> None:
        self.experiment = experiment
        self.name = name
        self.app_name = f"toolkit explore {experiment.name}"
        self.settings = settings
        self.progress = progress
        self.began, self.began_unix_s = time.perf_counter(), time.time()

    def execute(self, data: Path | None, report: Path, master: str | None, conf: Mapping[str, str]) -> ExploreResult:
        from toolkit.core.data import DataContext
        from toolkit.engines import spark_session, spark_source, table_source

        context = DataContext(data=data, data_dir=self.settings.data_dir, cache_dir=self.settings.home / "cache")
        with ExitStack() as stack:
            if master or conf:
                self.progress.phase("connecting to Spark")
                spark_source.open_session(stack, master, conf, self.settings, self.app_name)
            elif self.settings.on_databricks:
                spark_session.has_executors(open_one=True)  # joins the platform's session where this process has not yet
            self.progress.phase("looking for the data")
            source = table_source.find(self.experiment, context)
            if master or conf or self._is_large(source):
                exploration = self._by_spark(source, stack)
            else:
                self.progress.phase("reading data")
                exploration = self._by_pandas(source.fetch(self.experiment, context), context)
        result = ExploreResult(
            experiment=self.experiment,
            exploration=exploration,
            kind=source.kind,
            location=source.location,
            wall_s=time.perf_counter() - self.began,
            started_unix_s=self.began_unix_s,
            report_path=str(report),
        )
        return self._publish(result, report)

    def _is_large(self, source: TableSource) -> bool:
        from toolkit.engines import spark_session, spark_source

        size = source.size()
        if size is None and (source.is_spark or source.is_delta):
            session = spark_session.active_session()
            if session is None:
                return False  # reading it says what is missing
            frame = spark_source.frame_of(source, session, self.experiment.dataset.not_features)
            size = (spark_source.count_rows(frame, source.location), len(frame.columns))
        return size is not None and size[0] * size[1] > MAX_CELLS

    def _by_pandas(self, fetched: Fetched, context: DataContext) -> Exploration:
        from toolkit.core.exploration_frame import explore_frame

        self.progress.phase("exploring")
        return explore_frame(
            fetched.frame, self.experiment.dataset, self.experiment.model.task, lambda groups: self._division(fetched, context, groups)
        )

    def _division(self, fetched: Fetched, context: DataContext, groups: LabelGroups) -> Division:
        """The split as a sweep draws it. A table that cannot be trained on yet is explored all the same: the report says why."""
        from toolkit.core.exploration_labels import Division, split_figures
        from toolkit.engines.sklearn_splits import split
        from toolkit.engines.tables import encode_fetched, fetch_holdout

        if fetched.frame.size > MAX_CELLS:
            return Division(note=f"The split is not drawn for more than {MAX_CELLS:,} cells.")
        how = self.experiment.split
        try:
            loaded = encode_fetched(self.experiment, fetched, fetch_holdout(self.experiment, context))
            parts = split(loaded, how, "honest")
        except (DataError, ExperimentError) as error:
            return Division(note="The split could not be drawn: training would refuse the table.", obstacle=str(error))
        return Division(split_figures(loaded, parts, groups, by_group=how.by == "group" or loaded.task == "ranking"))

    def _by_spark(self, source: TableSource, stack: ExitStack) -> Exploration:
        from toolkit.core.exploration_labels import Division
        from toolkit.engines import spark_source

        session = spark_source.open_session(stack, None, {}, self.settings, self.app_name)
        frame = spark_source.frame_of(source, session, self.experiment.dataset.not_features)
        from toolkit.engines.spark_exploration import explore_table

        self.progress.phase("counting rows")
        size = source.size()
        num_rows = size[0] if size else spark_source.count_rows(frame, source.location)
        return explore_table(
            frame,
            self.experiment.dataset,
            self.experiment.model.task,
            num_rows=num_rows,
            name=source.location,
            division=Division(note="The split is not drawn where Spark counts: it is made of rows that are read."),
            tell=self.progress.phase,
        )

    def _publish(self, result: ExploreResult, path: Path) -> ExploreResult:
        from toolkit.engines.build import versions
        from toolkit.engines.git import git_state
        from toolkit.reports.explore_report import render_exploration

        self.progress.phase("writing the report")
        page = render_exploration(
            result.exploration,
            self.experiment,
            kind=result.kind,
            location=result.location,
            source=self.name,
            started_unix_s=result.started_unix_s,
            git_commit=git_state().commit or "",
            versions=versions(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
        return replace(result, wall_s=time.perf_counter() - self.began)


def _told(findings: Sequence[Finding]) -> list[str]:
    """The first of each kind; how many more there are."""
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    told = []
    for kind, found in by_kind.items():
        told += [finding.what for finding in found[:TOLD_OF_A_KIND]]
        if len(found) > TOLD_OF_A_KIND:
            told.append(f"{len(found) - TOLD_OF_A_KIND} more such columns ({kind.replace('_', ' ')})")
    return told
