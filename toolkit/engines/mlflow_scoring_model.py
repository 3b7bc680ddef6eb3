"""A version of a registered model, fetched and described for those who score with it; and MLflow's own ways for models without a spec."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from toolkit.core.errors import RegistryError, ScoringError
from toolkit.core.registry import SPEC_SHA256_TAG, ModelVersion
from toolkit.core.scoring import Feature, ModelKind, ScoringModel
from toolkit.engines import portable_model
from toolkit.engines.mlflow_registry import Registry
from toolkit.engines.mlflow_registry_files import MODEL_FILE
from toolkit.engines.mlflow_store import brief


def fetch(registry: Registry, version: ModelVersion, folder: Path) -> ScoringModel:
    """Download a version to `folder`, which is made, and say what a scorer needs to know of it.

    Raises:
        RegistryError: it is gone, or its portable model is not the one that was registered.
        ScoringError: it has neither a portable model nor a signature with named columns, or is of no flavour that predicts.
    """
    path = registry.download(version, folder)
    described: dict[str, Any] = {
        "name": version.name,
        "version": version.version,
        "folder": path,
        "created_unix_s": version.created_unix_s,
    }
    if SPEC_SHA256_TAG in version.tags or any((path / each / portable_model.FOLDER).is_dir() for each in (".", "data")):
        return _portable(version, path, described)
    try:
        mlmodel = Model.load(str(path / MODEL_FILE))
    except (MlflowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ScoringError(f"{version.uri}: a readable {MODEL_FILE}", got=brief(error), next_step="log it again") from error
    kind: ModelKind = "sparkml" if "spark" in mlmodel.flavors else "pyfunc"
    if kind == "pyfunc" and "python_function" not in mlmodel.flavors:
        raise ScoringError(
            f"{version.uri}: a model with MLflow's python_function flavour", got=", ".join(mlmodel.flavors) or "none", next_step="log it so"
        )
    names = mlmodel.signature.inputs.input_names() if mlmodel.signature and mlmodel.signature.inputs else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ScoringError(
            f"{version.uri}: a model with a signature, whose inputs name its columns",
            got="none",
            next_step="log it with signature=mlflow.models.infer_signature(features)",
        )
    return ScoringModel(kind=kind, sha256=_sha256_of(path), features=tuple(Feature(name) for name in names), **described)


def _portable(version: ModelVersion, path: Path, described: Mapping[str, Any]) -> ScoringModel:
    try:
        model = portable_model.load(path)
    except portable_model.PortableModelError as error:
        raise RegistryError(f"{version.uri}: as it was registered", got=error, next_step="restore it, or use another version") from error
    found = hashlib.sha256((model.folder / portable_model.SPEC_FILE).read_bytes()).hexdigest()
    sealed = version.tags.get(SPEC_SHA256_TAG)
    if sealed != found:
        raise RegistryError(
            f"{version.uri}: its {portable_model.SPEC_FILE} and its tag {SPEC_SHA256_TAG} must agree",
            got=f"{found[:12]!r} and {'no such tag' if sealed is None else repr(sealed[:12])}",
            next_step="restore it, or train and register it again",
        )
    features = tuple(
        Feature(each["name"], None if each.get("categories") is None else tuple(each["categories"])) for each in model.spec["features"]
    )
    payload = (model.folder / model.spec["model_file"]).read_bytes()
    return ScoringModel(
        kind="portable", sha256=model.spec["model_sha256"], features=features, spec=model.spec, payload=payload, **described
    )


def _sha256_of(folder: Path) -> str:
    """Of all files, with their names."""
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def input_types(model: ScoringModel) -> dict[str, str]:
    """Spark's type, as DDL, of every column whose type the model's signature tells; MLflow refuses many others."""
    inputs = Model.load(str(model.folder / MODEL_FILE)).signature.inputs
    named = zip(inputs.input_names(), inputs.as_spark_schema().fields, strict=True)
    return {name: field.dataType.simpleString() for name, field in named if field.dataType.simpleString() not in ("void", "variant")}


def spark_pipeline(model: ScoringModel) -> Any:
    """The `PipelineModel` of Spark ML; the session must be active."""
    from toolkit.engines.mlflow_spark import spark_flavor

    return spark_flavor().load_model(str(model.folder))


def spark_function(session: Any, model: ScoringModel, result_type: str | None = None) -> Any:
    """MLflow's own function for Spark, in this environment. `result_type`: None: as the signature tells, else double."""
    return mlflow.pyfunc.spark_udf(session, str(model.folder), result_type=result_type, env_manager="local")


def result_type(model: ScoringModel) -> str:
    """What MLflow's function gives for a row: `double`, or `array<double>` or `string` where the signature says so."""
    signature = Model.load(str(model.folder / MODEL_FILE)).signature
    outputs = signature.outputs if signature else None
    if outputs is None:
        return "double"
    if outputs.is_tensor_spec():
        shape = outputs.inputs[0].shape
        return "array<double>" if len(shape) > 1 and shape[1] != 1 else "double"
    if len(outputs.inputs) > 1:
        return "array<double>"
    return "string" if str(getattr(outputs.inputs[0], "type", "")) in ("DataType.string", "string") else "double"
