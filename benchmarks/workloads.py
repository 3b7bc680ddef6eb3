"""What the arms of `sweep_cluster` fit: the same parameter sets on the same rows with the same code, whoever runs them.

Executors import this module in every trial of SparkTrials, so its own imports are Python's. Names here end in `_s` for seconds and in
`_unix_s` for seconds since the epoch.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.core.data import SplitData, TrialData
    from toolkit.core.experiment import Experiment
    from toolkit.core.trial import Trainer

Kind = Literal["wine", "long", "sleep", "table"]

TABLE_ROWS, TABLE_COLUMNS = 1_000_000, 28
# A trial of the large table then takes 5 to 30 s on one thread.
TABLE_ROUNDS = 100
ASHA_GRACE_ROUNDS = 3


@dataclass(frozen=True)
class Workload:
    """One search.

    Attributes:
        kind: `wine`: fits of a tenth of a second; `long`: the same rows, fits of about 5 s; `sleep`: `sleep_s` of nothing; `table`: the
            generated table of 1,000,000 x 28.
        num_slots: trials at once, 1 thread each.
        replay: one fixed list of parameter sets in place of each arm's own sampler.
        asha: with the scheduler (ours only).
        list_seed: which list of parameter sets (`table` only).
        num_rows: of the generated table.
        progress: a file on this host that gets a line for each start and end of a sleeping trial.
    """

    kind: Kind
    num_trials: int
    num_slots: int = 2
    sleep_s: float = 0.0
    replay: bool = True
    asha: bool = False
    list_seed: int = 1
    num_rows: int = TABLE_ROWS
    progress: str = ""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def points(self) -> list[dict[str, Any]]:
        """The parameter sets, by trial number."""
        if self.kind == "sleep":
            return [{"x": number / self.num_trials} for number in range(self.num_trials)]
        if self.kind == "table":
            return table_points(self.num_trials, self.list_seed)
        from benchmarks.sweep_local import experiment

        return [dict(point) for point in experiment(self.num_trials, long_fits=self.kind == "long").points_to_evaluate]

    def experiment(self) -> Experiment:
        """The search as the toolkit's user would write it."""
        from dataclasses import replace

        if self.kind == "sleep":
            chosen = _sleeping_experiment(self)
        elif self.kind == "table":
            chosen = _table_experiment(self)
        else:
            from benchmarks import sweep_local

            chosen = sweep_local.experiment(self.num_trials, long_fits=self.kind == "long")
        points = tuple(self.points()) if self.replay else ()
        sweep = replace(chosen.sweep, num_trials=self.num_trials, concurrency=self.num_slots)
        return replace(chosen, points_to_evaluate=points, sweep=sweep)

    def split(self) -> SplitData:
        from benchmarks.sweep_local import split_of

        return split_of(self.experiment())

    def objective(self) -> Objective:
        """What rivals send to their processes, without the data."""
        if self.kind == "sleep":
            return Objective(self.points(), None, self.sleep_s, self.progress)
        from toolkit.engines.build import make_trainer

        return Objective(self.points(), make_trainer(self.experiment(), "honest"))


@dataclass(frozen=True)
class Objective:
    """A rival's objective function: `fit` runs in whatever process the rival starts."""

    points: list[dict[str, Any]]
    make_trainer: Callable[[], Trainer] | None
    sleep_s: float = 0.0
    progress: str = ""

    def fit(self, number: int, data: TrialData | None, params: Mapping[str, Any] | None = None) -> list[float]:
        """Fit one configuration: `params`, else the `number`-th of the list.

        Returns:
            [number, validation value, fit_wall_s, started_unix_s, ended_unix_s].

        Raises:
            RuntimeError: the fit failed, with its traceback.
        """
        params = self.points[number] if params is None else params
        if self.make_trainer is None:
            began_unix_s, began = time.time(), time.perf_counter()
            sleep(self.sleep_s, self.progress)
            return [number, params["x"], time.perf_counter() - began, began_unix_s, time.time()]
        assert data is not None
        from toolkit.core.study import Proposal
        from toolkit.core.trial import run_trial

        result = run_trial(self.make_trainer(), Proposal(number, params), data, 1, _never_stop)
        if result.error is not None:
            raise RuntimeError(result.error)
        return [number, result.values[0], result.fit_wall_s, result.started_unix_s, result.ended_unix_s]


def _never_stop(step: int, so_far: Any) -> bool:
    return False


# --- trials that cost nothing but their time ------------------------------------------------------------------------------------------


def sleep(sleep_s: float, progress: str) -> None:
    if progress:
        _note(progress, "start")
    time.sleep(sleep_s)
    if progress:
        _note(progress, "end")


def _note(path: str, event: str) -> None:
    line = f"{event} {time.time():.3f} {os.getpid()}\n".encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line)  # One call: whole lines, whoever else writes.
    finally:
        os.close(file)


def sleeping_fit(params: Mapping[str, Any], train: Any, validation: Any, report: Callable[..., None]) -> None:
    """The same as a `Custom` model of ours."""
    sleep(params["sleep_s"], params["progress"])
    report(1, {"score": params["x"]})


def few_rows() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"a": range(40), "y": [number % 2 for number in range(40)]})


def _sleeping_experiment(workload: Workload) -> Experiment:
    from toolkit.core.experiment import Dataset, Experiment, Metric, Sweep
    from toolkit.core.model import Custom
    from toolkit.core.space import Float

    return Experiment(
        name="sleep",
        dataset=Dataset(load=few_rows, label="y"),
        model=Custom(fit=sleeping_fit),
        space={"x": Float(0.0, 1.0), "sleep_s": workload.sleep_s, "progress": workload.progress},
        metric=Metric("score", "maximize"),
        sweep=Sweep(seed=1),
    )


# --- a table large enough for early stopping to matter --------------------------------------------------------------------------------


def table_points(num_trials: int, seed: int) -> list[dict[str, Any]]:
    """Parameter sets from a wide space, most of them poor: what a first search of a new table looks like."""
    import numpy as np

    draws = np.random.Generator(np.random.PCG64(seed)).random((num_trials, 5))
    return [
        {
            "max_depth": int(2 + u[0] * 7),
            "learning_rate": float(math.exp(math.log(0.003) + u[1] * math.log(0.5 / 0.003))),
            "subsample": float(0.3 + 0.7 * u[2]),
            "colsample_bytree": float(0.2 + 0.8 * u[3]),
            "min_child_weight": float(math.exp(u[4] * math.log(300))),
        }
        for u in draws
    ]


def load_table(num_rows: int) -> pd.DataFrame:
    """`num_rows` x 28 float32 columns and a binary label that depends on them in a smooth, a ragged and a random way."""
    import numpy as np
    import pandas as pd

    random = np.random.Generator(np.random.PCG64(28))
    x = random.standard_normal((num_rows, TABLE_COLUMNS), dtype=np.float32)
    smooth = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) * x[:, 3] + 0.7 * x[:, 4] ** 2 - 0.5 * x[:, 5] * x[:, 6] * x[:, 7]
    ragged = np.where((x[:, 8] > 0) ^ (x[:, 9] > 0.5) ^ (x[:, 10] > -0.5), 0.8, -0.8) + 0.2 * x[:, 11:20].sum(axis=1)
    noise = random.standard_normal(num_rows, dtype=np.float32) * 1.2
    table = pd.DataFrame(x, columns=[f"x{number:02d}" for number in range(TABLE_COLUMNS)])
    table["y"] = (smooth + ragged + noise > 0.7).astype(np.int8)
    return table


@dataclass(frozen=True)
class LoadTable:
    num_rows: int

    def __call__(self) -> pd.DataFrame:
        return load_table(self.num_rows)


def _table_experiment(workload: Workload) -> Experiment:
    from toolkit.core.experiment import Asha, Dataset, Experiment, Metric, Split, Sweep
    from toolkit.core.model import XGBoost
    from toolkit.core.space import Float, Int

    return Experiment(
        name="table",
        dataset=Dataset(load=LoadTable(workload.num_rows), label="y"),
        split=Split(by="random", test=0.1, validation=0.2, seed=28, keep_duplicates_together=False),
        model=XGBoost(num_boost_round=TABLE_ROUNDS, early_stopping_rounds=20),
        space={
            "max_depth": Int(2, 8),
            "learning_rate": Float(0.003, 0.5, log=True),
            "subsample": Float(0.3, 1.0),
            "colsample_bytree": Float(0.2, 1.0),
            "min_child_weight": Float(1.0, 300.0, log=True),
        },
        metric=Metric("auc", "maximize"),
        sweep=Sweep(
            seed=28,
            scheduler=Asha(grace_period=ASHA_GRACE_ROUNDS, reduction_factor=3) if workload.asha else None,
            report_every=ASHA_GRACE_ROUNDS,
        ),
    )
