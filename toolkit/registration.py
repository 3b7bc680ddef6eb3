"""A logged model becomes a version of its registered model, the last step of `train --register` and `sweep --register`; and is read back
as that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import RegistryError, UserError
from toolkit.core.experiment import Experiment
from toolkit.settings import Settings

if TYPE_CHECKING:
    from toolkit.core.registry import ModelVersion, RegisteredVersion
    from toolkit.engines.portable_model import PortableModel


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


def registered_model(version: ModelVersion, folder: Path) -> PortableModel:
    """The portable model of a version that was downloaded to `folder`, if it is the one that was registered.

    Its spec says by what protocol it was made and on which rows, and holds the digests of all other files: whoever could change that would
    pass every gate.

    Raises:
        PortableModelError: it is none, or not as training wrote it.
        RegistryError: it is not the one that was registered.
    """
    from toolkit.core.registry import PROTOCOL_TAG, SPEC_SHA256_TAG
    from toolkit.engines import portable_model

    model = portable_model.load(folder)
    found = hashlib.sha256((model.folder / portable_model.SPEC_FILE).read_bytes()).hexdigest()
    for tag, of_file in ((SPEC_SHA256_TAG, found), (PROTOCOL_TAG, model.spec["protocol"])):
        of_version = version.tags.get(tag)
        if of_version != of_file:
            raise RegistryError(
                f"version {version.version}: its {portable_model.SPEC_FILE} and its tag {tag} must agree",
                got=f"{of_file[:12]!r} and {'no such tag' if of_version is None else repr(of_version[:12])}",
                next_step="train and register it again",
            )
    return model


def _description(spec: Mapping[str, Any]) -> str:
    test = ", ".join(f"{name} {value:.4g}" for name, value in list(spec["metrics"]["test"].items())[:3] if value is not None)
    origin = f"study {spec['study']}" if spec["study"] else "no study"
    what = spec["objective"] or spec["estimator"]
    return f"{spec['experiment']}: {what}, {origin}, {spec['protocol']} protocol. Test: {test}. Data {spec['data']['sha256'][:12]}."
