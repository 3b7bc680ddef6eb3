"""Which parameters `toolkit train` fits: those of a finished study's best trial, or of a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import ExperimentError, StudyError, UserError
from toolkit.core.experiment import Experiment, Protocol, check_fingerprint
from toolkit.core.space import check_point
from toolkit.settings import Settings

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class ChosenParams:
    """`source` in words; `study` where they come from one, with the rounds that it found best."""

    source: str
    params: Mapping[str, Any] = field(default_factory=dict)
    study: str | None = None
    best_iteration: int | None = None


def final_params(experiment: Experiment, protocol: Protocol, wanted: str, data_sha256: str | None, settings: Settings) -> ChosenParams:
    """The parameters of the model for use.

    Args:
        wanted: `best` (of the newest finished study of this experiment and protocol), `best:STUDY`, or a JSON or YAML file. Without a space
            `best` is the model as the experiment has it.
        data_sha256: of the rows that will be fitted; None where that is not known yet.

    Raises:
        StudyError: no such study, none finished, or one of another experiment.
        ExperimentError: the file holds a name or a value that the space does not.
        UserError: the file cannot be read.
    """
    if experiment.space is None and wanted == "best":
        return ChosenParams("the experiment")
    if wanted == "best" or wanted.startswith("best:"):
        _, _, study = wanted.partition(":")
        return _best(experiment, protocol, study or None, data_sha256, settings)
    return ChosenParams(wanted, _from_file(experiment, Path(wanted).expanduser()))


def _best(experiment: Experiment, protocol: Protocol, study: str | None, data_sha256: str | None, settings: Settings) -> ChosenParams:
    from toolkit.core.study import best_record
    from toolkit.engines.optuna_study import Journal, OptunaStudy
    from toolkit.engines.study_store import finished_study

    folder = finished_study(settings.home, study or f"{experiment.name}-{protocol}", settings.state_uri, is_exact=study is not None)
    found = OptunaStudy(folder.name, experiment, Journal(folder.journal))
    was: Mapping[str, str] = found.attributes.get("fingerprint", {})
    now = experiment.fingerprint(protocol)
    # What the parameters mean must be the same; on other rows they may be fitted again, that is what a retraining does.
    binding = ("protocol", "space", "model", "metric")
    check_fingerprint(folder.name, _only(was, binding), _only(now, binding))
    if data_sha256 is not None and was.get("data.sha256") != data_sha256:
        _logger.warning("study %s searched other rows than those that are fitted now", folder.name)
    best = best_record(found.records(), experiment.metrics[0].direction)
    if best is None:
        raise StudyError(f"study {folder.name!r} has no completed trial", next_step="run toolkit sweep again")
    params = found.params(best.number)
    return ChosenParams(f"trial {best.number} of study {folder.name}", params, folder.name, best.result.best_iteration)


def _only(fingerprint: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {path: value for path, value in fingerprint.items() if path.split(".")[0].split("[")[0] in names}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(map(repr, twice))} twice")
    return dict(pairs)


def _from_file(experiment: Experiment, path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError("--params: best, best:STUDY or a JSON or YAML file", got=f"{path}: {reason}") from error
    import yaml

    try:
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        point = yaml.safe_load(text) if is_yaml else json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError("--params: the file must be JSON, or YAML by its ending", got=f"{path}: {error}") from error
    if not isinstance(point, dict):
        raise UserError("--params: the file must hold names and values", got=f"{path} with a {type(point).__name__}")
    if experiment.space is None:
        raise ExperimentError("--params: the experiment has no space", got=str(path), next_step="set model.params instead")
    return check_point(experiment.space, point, f"--params {path.name}")
