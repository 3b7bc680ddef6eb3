"""Tables that grow, scored by a real registered model with one of the engines, and what is to be found on disk afterwards."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.engines.promote_fixtures import Shop, rows
from toolkit import read_scores
from toolkit.core.scoring import RowRules
from toolkit.core.scoring_result import ScoreResult
from toolkit.engines import portable_model
from toolkit.score import score

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
CONF = {
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.session.timeZone": "America/New_York",
    "spark.driver.extraJavaOptions": "-Dderby.stream.error.file=/dev/null",
}
"""The session's time zone is nobody's business: times are UTC."""


def table(begin: int, end: int, **changed: Any) -> pa.Table:
    """Rows with the keys `begin` to `end`, an hour apart from BEGIN on, with gaps; `changed`: columns instead of these, None to drop one."""
    frame = rows()[begin:end].reset_index(drop=True).drop(columns="y")
    frame.loc[frame.id % 7 == 0, "a"] = np.nan
    columns: dict[str, Any] = {name: pa.array(frame[name], from_pandas=True) for name in ("id", "a", "b", "c", "region")}
    columns["at"] = pa.array([BEGIN + datetime.timedelta(hours=number) for number in range(begin, end)], pa.timestamp("us", "UTC"))
    columns["note"] = pa.array([f"row {number}" if number % 3 else None for number in range(begin, end)], pa.string())
    columns |= {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in changed.items() if value is not None}
    return pa.table({name: value for name, value in columns.items() if name not in changed or changed[name] is not None})


def hour(number: int) -> str:
    """Of the row with this key."""
    return (BEGIN + datetime.timedelta(hours=number)).isoformat()


@dataclasses.dataclass
class Place:
    """An input and an output; `model` is the shop's name of what is registered as `name`."""

    session: Any
    shop: Shop
    folder: Path
    engine: str
    source: str = "delta"
    target: str = "delta"
    name: str = "scored"
    model: str = "good"
    num_writes: int = 0

    @property
    def input(self) -> Path:
        return self.folder / "in put"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def add(self, more: pa.Table, **options: Any) -> None:
        if self.source == "delta":
            deltalake.write_deltalake(self.input, more, mode="append", **options)
            return
        self.input.mkdir(exist_ok=True)
        self.num_writes += 1
        path = self.input / f"{self.num_writes}.{self.source}"
        if self.source == "parquet":
            pq.write_table(more, path)
        else:
            more.to_pandas().to_csv(path, index=False)

    def score(self, **options: Any) -> ScoreResult:
        rules = {name.name: options.pop(name.name) for name in dataclasses.fields(RowRules) if name.name in options}
        return score(
            options.pop("model", self.name), input=options.pop("input", f"{self.source}:{self.input}"), output=f"{self.target}:{self.output}",
            engine=options.pop("engine", self.engine), rules=RowRules(**rules), tracking_uri=self.shop.uri, **options,
        )  # fmt: skip

    def scores(self) -> pd.DataFrame:
        return read_scores(self.output).sort_values("id", ignore_index=True)

    def quarantined(self) -> pd.DataFrame:
        return read_scores(f"{self.output}_quarantine")

    def audit(self) -> pd.DataFrame:
        return pq.read_table(f"{self.output}_audit").to_pandas().sort_values("batch_id", ignore_index=True)

    @property
    def version(self) -> int:
        """The champion."""
        return self.shop.aliases(self.name)["champion"]

    @cached_property
    def portable(self) -> Any:
        return portable_model.load(self.shop.model(self.model).folder)

    def predict(self, frame: pd.DataFrame) -> Any:
        """As in the training process."""
        return self.portable.predict(frame)

    def assert_scored(self, keys: Any, found: pd.DataFrame | None = None) -> pd.DataFrame:
        """Exactly the rows with these keys are in the output, each once and with the prediction that training would give."""
        found = self.scores() if found is None else found
        assert found.id.tolist() == list(keys)
        prediction = np.stack(found.prediction) if found.prediction.dtype == object else found.prediction
        np.testing.assert_allclose(prediction, self.predict(found), rtol=0, atol=1e-6)
        return found

    def everything(self) -> Mapping[str, tuple[int, int]]:
        """Size and time of every file below the folder, leases aside."""
        paths = (path for path in self.folder.rglob("*") if path.is_file() and "leases" not in path.parts)
        return {str(path.relative_to(self.folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
