"""What lies in the folder of a logged model, seen without fetching the model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.core.registry import MODEL_KIND_TAG, SPEC_SHA256_TAG
from toolkit.engines.portable_model import FOLDER, SPEC_FILE

MODEL_FILE = "MLmodel"


@dataclass(frozen=True)
class ModelFiles:
    """Attributes:
    names: at the top of the folder.
    portable_names: in the portable model's folder; empty without one.
    spec: the bytes of its `spec.json`; None without one.
    """

    names: frozenset[str]
    portable_names: frozenset[str]
    spec: bytes | None

    @property
    def spec_sha256(self) -> str | None:
        return None if self.spec is None else hashlib.sha256(self.spec).hexdigest()

    def problem(self, tags: Mapping[str, str]) -> str:
        """Why the version with these tags cannot be used; empty where nothing is wrong."""
        if MODEL_FILE not in self.names:
            return f"no {MODEL_FILE} there"
        if not self.portable_names and not {SPEC_SHA256_TAG, MODEL_KIND_TAG} & set(tags):
            return ""
        if self.spec is None:
            return f"no {FOLDER}/{SPEC_FILE} there"
        if tags.get(SPEC_SHA256_TAG, self.spec_sha256) != self.spec_sha256:
            return f"{FOLDER}/{SPEC_FILE} is not the one that was registered"
        try:
            model_file = json.loads(self.spec)["model_file"]
        except (ValueError, KeyError, TypeError):
            return f"{FOLDER}/{SPEC_FILE} does not name the model's file"
        return "" if model_file in self.portable_names else f"no {FOLDER}/{model_file} there"


def look(repository: Any) -> ModelFiles:
    """`repository`: MLflow's artifact repository of the folder; raises what it raises."""

    def names(folder: str | None) -> frozenset[str]:
        return frozenset(PurePosixPath(file.path).name for file in repository.list_artifacts(folder))

    top = names(None)
    folder = FOLDER if FOLDER in top else f"data/{FOLDER}" if "data" in top and FOLDER in names("data") else None
    portable_names = names(folder) if folder else frozenset[str]()
    if SPEC_FILE not in portable_names:
        return ModelFiles(top, portable_names, None)
    with tempfile.TemporaryDirectory(prefix="toolkit-model-") as scratch:
        spec = Path(repository.download_artifacts(f"{folder}/{SPEC_FILE}", scratch)).read_bytes()
    return ModelFiles(top, portable_names, spec)
