"""The places where we reach into Ray's private parts, each with its reason; `tests/engines/test_ray_patches.py` fails when they change.

What they are for: a search of 50 short trials spends most of its time on the start of processes that do nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private.node import Node
from ray.util import register_serializer

from toolkit.engines.ray_trial_actor import Shared, TrialActor, nothing

_NAME = "toolkit_trial"


# A local cluster has no use for the API server (2.3 s until it answers), the autoscaler's monitor, and, with `log_to_driver=False`, the
# log monitor: 6.4 s become 3.6, the shutdown 0.4 instead of 1.4.
UNUSED_SERVICES = ("start_api_server", "start_monitor", "start_log_monitor")


@contextmanager
def only_needed_services() -> Iterator[None]:
    """While it lasts, `ray.init` starts a head without `UNUSED_SERVICES`."""
    kept = {name: getattr(Node, name) for name in UNUSED_SERVICES}
    for name in UNUSED_SERVICES:
        setattr(Node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def register_actor(shared: Shared) -> str:
    """Make `TrialActor` known to Tune, under the name returned: `ray.tune.register_trainable` takes subclasses of Trainable only.

    A process of Tune's own kind imports ray.tune, which costs 1.8 s of CPU and 70 MB each and does nothing there; and none of the processes
    that Ray has started by then can be used, because Tune gives its actors a runtime environment of their own (2 s more).
    """
    from ray.train._internal.storage import StorageContext
    from ray.tune.execution import class_cache
    from ray.tune.experiment.trial import _TrialInfo
    from ray.tune.registry import TRAINABLE_CLASS, _global_registry

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
