"""`toolkit/engines/ray_patches.py` was written against these lines of Ray: when they change, read them again before the hash is renewed."""

import hashlib
import inspect

import pytest
import ray
from ray._private.node import Node
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment.trial import _get_trainable_kwargs
from ray.tune.registry import register_trainable

from toolkit.engines import ray_patches
from toolkit.engines.ray_patches import UNUSED_SERVICES, only_needed_services

READ = [
    (ray_patches._tunes_own_reuse or TuneController._maybe_reuse_cached_actor, "c045f0ddd48f"),
    (Node.start_head_processes, "c8877a0a14ce"),
    (Node.start_ray_processes, "819715425b5c"),
    (_ActorClassCache.get, "9164951bf277"),
    (TuneController._schedule_trial_actor, "9fdb928d04f7"),
    (TuneController._schedule_trial_reset, "fc4a257d83d3"),
    (TuneController._schedule_trial_train, "03c40bf04624"),
    (_get_trainable_kwargs, "a7a1a216e061"),
    (register_trainable, "7704d3a7bba8"),
]


@pytest.mark.parametrize(("function", "sha256"), READ, ids=[function.__qualname__ for function, _ in READ])
def test_what_was_read_is_what_runs(function, sha256):
    assert hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12] == sha256, (
        f"{function.__qualname__} in ray {ray.__version__}"
    )


def test_services_are_left_out_only_while_it_lasts():
    kept = [getattr(Node, name) for name in UNUSED_SERVICES]
    with only_needed_services():
        assert all(getattr(Node, name) is not method for name, method in zip(UNUSED_SERVICES, kept, strict=True))
    assert [getattr(Node, name) for name in UNUSED_SERVICES] == kept
