"""The audit table of a scoring: one row a batch, written after all else of it, in a file of its own that is replaced by the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.core.scoring import BatchCounts, ScoringModel
from toolkit.core.table_names import TableName
from toolkit.engines.score_state import Plan

SCHEMA = pa.schema(
    [
        ("batch_id", pa.int64()),
        ("mode", pa.string()),
        ("engine", pa.string()),
        ("model_name", pa.string()),
        ("model_version", pa.int64()),
        ("model_sha256", pa.string()),
        ("scoring_run_id", pa.string()),
        ("scored_at_utc", pa.timestamp("us", tz="UTC")),
        ("num_input_rows", pa.int64()),
        ("num_scored_rows", pa.int64()),
        ("num_quarantined_rows", pa.int64()),
        ("quarantine_reasons", pa.string()),
        ("unseen_categories", pa.string()),
        ("source", pa.string()),
    ]
)


def audit_row(plan: Plan, model: ScoringModel, counts: BatchCounts, mode: str, engine: str) -> dict[str, Any]:
    """By the names of SCHEMA."""
    return {
        "batch_id": plan.batch_id,
        "mode": mode,
        "engine": engine,
        "model_name": plan.model,
        "model_version": plan.version,
        "model_sha256": model.sha256[:12],
        "scoring_run_id": str(plan.extra.get("run_id", "")),
        "scored_at_utc": plan.scored_at_utc,
        "num_input_rows": counts.num_input_rows,
        "num_scored_rows": counts.num_scored_rows,
        "num_quarantined_rows": counts.num_quarantined_rows,
        "quarantine_reasons": json.dumps(dict(counts.reasons)),
        "unseen_categories": json.dumps(dict(counts.unseen)),
        "source": json.dumps(dict(plan.source)),
    }


def record(session: Any, audit: TableName, row: dict[str, Any]) -> None:
    """Once for each batch, however often it is called."""
    if audit.path is not None:
        write_file(audit.path, row)
        return
    from toolkit.engines import spark_score_tables

    spark_score_tables.append_audit(session, audit, row)


def write_file(folder: Path, row: dict[str, Any]) -> None:
    """The row as a Parquet file, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"batch-{row['batch_id']:09d}.parquet"
    scratch = folder / f".{path.name}.{os.getpid()}"
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), scratch)
    os.replace(scratch, path)
