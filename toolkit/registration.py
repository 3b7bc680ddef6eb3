"""A logged model becomes a version of its registered model: the last step of `train --register` and `sweep --register`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import UserError
from toolkit.core.experiment import Experiment
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.core.registry import RegisteredVersion


def check_registrable(experiment: Experiment) -> None:
    """Before hours of work for it.

    Raises:
        UserError: a model without portable form.
    """
    if experiment.model.kind not in ("xgboost", "sklearn"):
        raise UserError(
            "--register: a model of XGBoost or scikit-learn",
            got=experiment.model.kind,
            next_step="leave --register out: only these have the portable form that promotion and scoring read",
        )


def register(
    experiment: Experiment,
    spec: Mapping[str, Any],
    *,
    model_uri: str,
    run_id: str,
    tracking_uri: str | None,
    settings: Settings,
    source: str | None,
) -> RegisteredVersion:
    """Register once: the same run and model give the same version. It becomes the challenger.

    Args:
        spec: of the portable model. source: see `train.train`.

    Raises:
        RegistryError: the registry cannot be reached or refuses; the model stays logged.
    """
    from toolkit.core.registry import EXPERIMENT_SOURCE_TAG, RegisteredVersion, registration_tags
    from toolkit.engines.mlflow_registry import Registry

    tags = registration_tags(spec) | ({EXPERIMENT_SOURCE_TAG: source} if source else {})
    registry = Registry.open(settings.registry_uri, tracking_uri, create=True)
    version = registry.create_version(experiment.registered_name, model_uri, run_id=run_id, description=_description(spec), tags=tags)
    return RegisteredVersion(version.name, version.version)


def _description(spec: Mapping[str, Any]) -> str:
    test = ", ".join(f"{name} {value:.4g}" for name, value in list(spec["metrics"]["test"].items())[:3] if value is not None)
    origin = f"study {spec['study']}" if spec["study"] else "no study"
    what = spec["objective"] or spec["estimator"]
    return f"{spec['experiment']}: {what}, {origin}, {spec['protocol']} protocol. Test: {test}. Data {spec['data']['sha256'][:12]}."
