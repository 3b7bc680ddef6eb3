"""What a promotion answers: the contract of `toolkit promote --json`, and what its report is drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from toolkit.core.gates import GateResult, Status


@dataclass(frozen=True)
class HoldoutSummary:
    """The rows that both models were judged on. `kind`, `location` and `sha256` as in `core.data.DataSource`; `description` in words."""

    kind: str
    location: str
    sha256: str
    num_rows: int
    description: str


@dataclass(frozen=True)
class JudgedModel:
    """One of the two.

    Attributes:
        figures: on the hold-out, by metric; empty where there were none.
        predict_s_per_million_rows: on this machine; None where it did not predict.
        spec: of the portable model; empty where it could not be read.
    """

    version: int
    figures: Mapping[str, float]
    threshold: float | None
    model_mib: float | None
    predict_s_per_million_rows: float | None
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class PromotionResult:
    """One call of `promote`.

    Attributes:
        version: the challenger's; with two registries, in the one that it is promoted in.
        champion: None on a first promotion.
        is_promoted: it is champion now. was_champion: it was before, and nothing was judged.
        notices: what is worth saying and refuses nothing.
        recovered: what became of an earlier promotion that had been interrupted; empty without one.
    """

    experiment: str
    model: str
    version: int
    is_promoted: bool
    was_champion: bool
    gates: tuple[GateResult, ...]
    challenger: JudgedModel | None
    champion: JudgedModel | None
    holdout: HoldoutSummary | None
    notices: tuple[str, ...]
    recovered: str
    by: str
    run_id: str
    mlflow_experiment: str
    tracking_uri: str
    registry_uri: str
    report_path: str
    started_unix_s: float
    wall_s: float

    @property
    def failed(self) -> tuple[GateResult, ...]:
        return tuple(gate for gate in self.gates if gate.status is Status.FAILED)

    @property
    def overridden(self) -> tuple[GateResult, ...]:
        return tuple(gate for gate in self.gates if gate.status is Status.OVERRIDDEN)

    @property
    def refusals(self) -> list[tuple[str, str]]:
        """(gate, reason) of those that failed; others that failed for the same reason are named in it."""
        by_reason: dict[str, list[str]] = {}
        for gate in self.failed:
            by_reason.setdefault(gate.reason, []).append(gate.name)
        return [(first, reason + (f" (so too {', '.join(others)})" if others else "")) for reason, (first, *others) in by_reason.items()]

    @property
    def verdict(self) -> str:
        """One sentence."""
        name = f"version {self.version} of {self.model}"
        if self.was_champion:
            return f"{name} is champion already"
        if self.failed:
            say = "says" if len(self.failed) == 1 else "say"
            return f"{name} is not promoted: {len(self.failed)} of {len(self.gates)} gates {say} no"
        replaced = f"in place of version {self.champion.version}" if self.champion else "the first one"
        by = f"; overridden: {', '.join(gate.name for gate in self.overridden)}" if self.overridden else ""
        return f"{name} {'is champion now' if self.is_promoted else 'may become champion'}, {replaced}{by}"

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints. Names and units are a contract: see docs/cli.md."""
        return {
            "experiment": self.experiment,
            "model": self.model,
            "version": self.version,
            "champion_before": self.champion.version if self.champion else None,
            "is_promoted": self.is_promoted,
            "was_champion": self.was_champion,
            "verdict": self.verdict,
            "gates": [gate.as_json() for gate in self.gates],
            "metrics": {
                who: dict(model.figures) if model else None for who, model in (("challenger", self.challenger), ("champion", self.champion))
            },
            "holdout": asdict(self.holdout) if self.holdout else None,
            "notices": list(self.notices),
            "recovered": self.recovered,
            "by": self.by,
            "run_id": self.run_id,
            "mlflow_experiment": self.mlflow_experiment,
            "tracking_uri": self.tracking_uri,
            "registry_uri": self.registry_uri,
            "report_path": self.report_path,
            "wall_s": round(self.wall_s, 3),
        }

    def _repr_html_(self) -> str:
        """The verdict and the gates, for a notebook; the whole report is at `report_path`."""
        rows = "".join(
            f"<tr><td>{gate.status.value}</td><th>{escape(gate.name)}</th><td>{escape(gate.reason)}</td></tr>" for gate in self.gates
        )
        return f"<p><strong>{escape(self.verdict)}</strong></p><table>{rows}</table><p>{escape(self.report_path)}</p>"


def decision(result: PromotionResult) -> dict[str, Any]:
    """What was decided and why, for tags and the audit record: strict JSON, without slices."""
    kept = ("gate", "status", "reason", "observed", "champion", "limit", "bound", "override_reason")
    whole = strict(result.as_json())
    return {
        "decision": "do not promote" if result.failed else "promote",
        "version": result.version,
        "champion_before": whole["champion_before"],
        "run_id": result.run_id,
        "holdout": whole["holdout"],
        "gates": [{key: gate[key] for key in kept if gate[key] not in (None, "")} for gate in whole["gates"]],
        "metrics": whole["metrics"],
    }


def strict(value: Any) -> Any:
    """`value` with None for numbers that JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
