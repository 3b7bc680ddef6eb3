"""The places where we reach into Ray Tune's private parts, each with its reason; `tests/engines/test_ray_patches.py` fails when they change.

Without them a trial process imports ray.tune, which costs 1.8 s of CPU and 70 MB a process and does nothing there; and none of the processes that
Ray has started by then can be used, because Tune gives its actors a runtime environment of their own (2 s more).
"""

from __future__ import annotations

from ray.train._internal.storage import StorageContext
from ray.tune.execution import class_cache
from ray.tune.experiment.trial import _TrialInfo
from ray.tune.registry import TRAINABLE_CLASS, _global_registry
from ray.util import register_serializer

from toolkit.engines.ray_trial_actor import Shared, TrialActor, nothing

_NAME = "toolkit_trial"


def register_actor(shared: Shared) -> str:
    """Make `TrialActor` known to Tune, under the name returned: `ray.tune.register_trainable` takes subclasses of Trainable only."""
    _travel_as_none(StorageContext)
    _travel_as_none(_TrialInfo)
    # PyTorch Lightning's PL_DISABLE_FORK: an environment variable is a runtime environment, and that a process of its own.
    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    _global_registry.register(TRAINABLE_CLASS, _NAME, type("TrialActor", (TrialActor,), {"shared": shared}))
    return _NAME


def _travel_as_none(cls: type) -> None:
    """Tune sends it to every trial process, where nobody asks for it, and unpickling it there would import ray.tune."""
    register_serializer(cls, serializer=nothing, deserializer=nothing)

