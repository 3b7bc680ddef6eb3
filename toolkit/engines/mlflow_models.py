"""Models in MLflow: a package of `core.model_spec` as a logged model of a run.

Every model is a thin pyfunc over `engines.portable_model`, whose code travels with the model, so that its requirements never name this
toolkit; XGBoost on plain numbers has MLflow's own flavour beside it, which predicts the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import mlflow.xgboost
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelOutput, LoggedModelParameter, LoggedModelStatus, LoggedModelTag
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types.schema import AnyType, ColSpec, Schema

from toolkit.core.model_spec import ModelPackage
from toolkit.engines import portable_model
from toolkit.engines.mlflow_store import MAX_PARAM_BYTES, MlflowStore, clip, mlflow_name, told

# The name under which the reader is imported beside a model: one that nobody else has.
PORTABLE_MODULE = "ray_spark_toolkit_model"


def log_model(store: MlflowStore, experiment_id: str, run_id: str, package: ModelPackage, name: str) -> str:
    """Save and upload a model. What `Model.log` does, without the process-wide URI.

    Returns:
        `models:/m-…`; `runs:/<run_id>/<name>` names the newest of this name too.

    Raises:
        Unanswered, Refused: of the store.
    """
    tags = {"toolkit.model_sha256": package.spec["model_sha256"], "toolkit.experiment": package.spec["experiment"]}

    def save(path: Path, mlmodel: Model) -> None:
        _save(package, path, path.parent, mlmodel)

    return _log(store, experiment_id, run_id, name, package.spec["params"], tags, save)


def log_spark_model(store: MlflowStore, experiment_id: str, run_id: str, model: Any, example: pd.DataFrame, name: str) -> str:
    """A fitted pipeline of Spark ML in MLflow's Spark flavour; its session must be active. Otherwise as `log_model`."""
    from toolkit.engines.mlflow_spark import spark_flavor

    def save(path: Path, mlmodel: Model) -> None:
        spark_flavor().save_model(
            model,
            str(path),
            mlflow_model=mlmodel,
            signature=ModelSignature(inputs=infer_signature(example).inputs),
            input_example=example,
            pip_requirements=_requirements("mlflow", "pyspark", "numpy", "pandas"),
        )

    return _log(store, experiment_id, run_id, name, {}, {}, save)


def _log(
    store: MlflowStore,
    experiment_id: str,
    run_id: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    save: Callable[[Path, Model], None],
) -> str:
    shown = [LoggedModelParameter(mlflow_name(key), clip(str(value), MAX_PARAM_BYTES)) for key, value in params.items()]
    marks = [LoggedModelTag(key, value) for key, value in tags.items()]
    logged = store.call("create_logged_model", experiment_id, name=name, source_run_id=run_id, tags=marks, params=shown)
    try:
        with tempfile.TemporaryDirectory(prefix="toolkit-model-") as folder:
            path = Path(folder) / "model"
            save(path, Model(artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id))
            client = mlflow.MlflowClient(tracking_uri=store.uri)
            told(lambda: client.log_model_artifacts(logged.model_id, str(path)))
        store.call("log_outputs", run_id, [LoggedModelOutput(logged.model_id, 0)])
    except Exception:
        store.call("finalize_logged_model", logged.model_id, LoggedModelStatus.FAILED)
        raise
    store.call("finalize_logged_model", logged.model_id, LoggedModelStatus.READY)
    return f"models:/{logged.model_id}"


def _save(package: ModelPackage, path: Path, scratch: Path, mlmodel: Model) -> None:
    from toolkit.engines.xgboost_model import booster_from

    portable = scratch / portable_model.FOLDER
    write_portable(package, portable)
    prediction = portable_model.load(portable).predict(package.example)
    signature = ModelSignature(inputs=_inputs(package.example), outputs=infer_signature(package.example, prediction).outputs)
    if package.is_native:
        mlflow.xgboost.save_model(
            booster_from(package.payload),
            path,
            mlflow_model=mlmodel,
            signature=signature,
            input_example=package.example,
            # Given, for else MLflow loads the model in a new process to see what it imports.
            pip_requirements=_requirements("mlflow", "xgboost", "numpy", "pandas"),
            model_format="ubj",
        )
        shutil.copytree(portable, path / portable_model.FOLDER)
        (path / "code").mkdir()
        shutil.copyfile(portable_model.__file__, path / "code" / f"{PORTABLE_MODULE}.py")
        # XGBoost's own wrapper refuses a column in which all values are missing, and nullable whole numbers with gaps.
        mlmodel.flavors["python_function"] |= {"loader_module": PORTABLE_MODULE, "data": portable_model.FOLDER, "code": "code"}
        mlmodel.save(path / "MLmodel")
        return
    module = scratch / f"{PORTABLE_MODULE}.py"
    shutil.copyfile(portable_model.__file__, module)
    library = {"xgboost": ("xgboost",), "sklearn": ("scikit-learn", "skops")}[package.spec["model_kind"]]
    mlflow.pyfunc.save_model(
        path,
        mlflow_model=mlmodel,
        loader_module=PORTABLE_MODULE,
        data_path=str(portable),
        code_paths=[str(module)],
        signature=signature,
        input_example=package.example,
        pip_requirements=_requirements("mlflow", *library, "numpy", "pandas"),
    )


def _inputs(example: pd.DataFrame) -> Schema:
    """Names without types: MLflow refuses whole numbers where it was shown fractions, and fractions (what pandas makes of whole numbers
    with gaps) where it was shown whole ones, and the batches of one table have both. The model itself refuses what is no number."""
    return Schema([ColSpec(AnyType(), name) for name in example.columns])  # type: ignore[no-untyped-call]


def write_portable(package: ModelPackage, folder: Path) -> None:
    """Write the portable model's folder, which `portable_model.load` reads."""
    folder.mkdir(parents=True)
    (folder / package.spec["model_file"]).write_bytes(package.payload)
    rows: dict[str, Any] = {"row_hashes": package.row_hashes} | ({} if package.keys is None else {"keys": package.keys})
    rows_path = folder / portable_model.TRAINING_ROWS_FILE
    with rows_path.open("wb") as file:
        np.savez(file, **rows)
    sha256 = hashlib.sha256(rows_path.read_bytes()).hexdigest()
    spec = {**package.spec, "training_rows": {**package.spec["training_rows"], "sha256": sha256}}
    (folder / portable_model.SPEC_FILE).write_text(json.dumps(spec, indent=1, allow_nan=False), encoding="utf-8")


def _requirements(*packages: str) -> list[str]:
    return [f"{package}=={importlib.metadata.version(package)}" for package in packages]
