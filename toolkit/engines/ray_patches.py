"""The places where we reach into Ray's private parts, each with its reason; `tests/engines/test_ray_patches.py` fails when they change.

What they are for: a search of 50 short trials spends most of its time on the start of processes that do nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config
from ray.util import register_serializer

from toolkit.engines.ray_spark_node import no_dashboard
from toolkit.engines.ray_trial_actor import Shared, TrialActor, nothing

_NAME = "toolkit_trial"

_tunes_own_reuse: Callable[[Any, Any], bool] | None = None
_tunes_own_start: Callable[[Any], None] | None = None


# A local cluster has no use for the API server (2.3 s until it answers), the autoscaler's monitor, and, with `log_to_driver=False`, the
# log monitor: 6.4 s become 3.6, the shutdown 0.4 instead of 1.4.
UNUSED_SERVICES = ("start_api_server", "start_monitor", "start_log_monitor")


@contextmanager
def only_needed_services(dashboard: bool = False, monitor: bool = False) -> Iterator[None]:
    """While it lasts, a head starts without `UNUSED_SERVICES`, but for those that are asked for, and with the agent of a minimal Ray."""
    asked_for = {"start_api_server": dashboard, "start_monitor": monitor, "start_log_monitor": dashboard}
    kept = {name: getattr(Node, name) for name in UNUSED_SERVICES if not asked_for[name]}
    dependency_error = ray._private.utils.get_dashboard_dependency_error
    for name in kept:
        setattr(Node, name, lambda self, **options: None)
    if not dashboard:
        ray._private.utils.get_dashboard_dependency_error = no_dashboard
    try:
        yield
    finally:
        ray._private.utils.get_dashboard_dependency_error = dependency_error
        for name, method in kept.items():
            setattr(Node, name, method)


@contextmanager
def without_obituaries() -> Iterator[None]:
    """While it lasts, a driver that connects does not subscribe to what the cluster says of processes that died: pages of a raylet's log,
    on standard output. That a worker was lost we say in one line, and how a trial ended is in its record."""
    kept = ray._private.worker.listen_error_messages
    ray._private.worker.listen_error_messages = lambda worker, threads_stopped: None
    try:
        yield
    finally:
        ray._private.worker.listen_error_messages = kept


def reread_authentication() -> None:
    """Ray reads its mode and token once a process, but gives those of the environment to what it starts: an earlier Ray's would not fit."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def dead_head_processes() -> list[str]:
    """Parts of the head that this process has started with `ray.init`, and that have died since."""
    node = ray._private.worker._global_node
    return [str(kind) for kind, _ in node.dead_processes()] if node is not None else []


def register_actor(shared: Shared) -> str:
    """Make `TrialActor` known to Tune, under the name returned: `ray.tune.register_trainable` takes subclasses of Trainable only.

    A process of Tune's own kind imports ray.tune, which costs 1.8 s of CPU and 70 MB each and does nothing there; and none of the processes
    that Ray has started by then can be used, because Tune gives its actors a runtime environment of their own (2 s more).
    """
    from ray.train._internal.storage import StorageContext
    from ray.tune.execution import class_cache
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment.trial import _TrialInfo
    from ray.tune.registry import _global_registry, _Registry

    global _tunes_own_reuse, _tunes_own_start
    if _tunes_own_reuse is None or _tunes_own_start is None:
        _tunes_own_reuse = TuneController._maybe_reuse_cached_actor
        _tunes_own_start = TuneController._maybe_add_actors
    _travel_as_none(StorageContext)
    _travel_as_none(_TrialInfo)
    # PyTorch Lightning's PL_DISABLE_FORK: an environment variable is a runtime environment, and that a process of its own.
    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    TuneController._maybe_reuse_cached_actor = _reuse_only_what_is_free  # type: ignore[method-assign,assignment]
    TuneController._schedule_trial_reset = _reset_without_waiting  # type: ignore[method-assign,assignment]
    TuneController._maybe_add_actors = _start_what_was_reset  # type: ignore[method-assign,assignment]
    actor_class = type("TrialActor", (TrialActor,), {"shared": shared})
    # Tune looks a trainable up three to five times a trial, in the head's key-value store: 2 ms each.
    _global_registry.contains = lambda category, key: key == _NAME or _Registry.contains(_global_registry, category, key)  # type: ignore[method-assign]
    _global_registry.get = lambda category, key: actor_class if key == _NAME else _Registry.get(_global_registry, category, key)  # type: ignore[method-assign]
    return _NAME


def _reuse_only_what_is_free(controller: Any, trial: Any) -> bool:
    """Do not end a process that is starting, in favour of one that has just become free.

    Tune gives the free one to the trial that waits for the starting one, and ends that. With trials shorter than a process takes to start,
    the next trial asks for another process, which meets the same end: one slot does all the work, as long as the search lasts. Here the
    free process takes the next trial. Only when there is no next one, Tune's way is right: the waiting trial may never get its own.
    """
    is_starting = trial in controller._trial_to_actor and trial not in controller._resetting_trials
    if is_starting and not controller._search_alg.is_finished():
        return False
    assert _tunes_own_reuse is not None
    return _tunes_own_reuse(controller, trial)


def _reset_without_waiting(controller: Any, trial: Any, new_config: dict[str, Any], new_experiment_tag: str) -> None:
    """Tune sends a process that it reuses `reset`, waits for the answer, and sends `train` in a later step. A process takes its calls in
    their order, so both can be sent at once; after a `reset` that failed, `train` fails.

    It also means that a trial put on a process that has died since (when a node dies, all its kept processes have) fails while it runs, and
    is tried again. Tune, which then hears of the death twice, would count it as failed for good.
    """
    trial.set_experiment_tag(new_experiment_tag)
    trial.set_config(new_config)
    trial.temporary_state.ray_actor.reset.remote(new_config)
    controller._resetting_trials.add(trial)


def _start_what_was_reset(controller: Any) -> None:
    """Not before Tune's own has noted for all of them that they are to start."""
    assert _tunes_own_start is not None
    _tunes_own_start(controller)
    for trial in sorted(controller._resetting_trials, key=lambda trial: trial.config["number"]):
        controller._on_trial_reset(trial, True)


def _travel_as_none(cls: type) -> None:
    """Tune sends it to every trial process, where nobody asks for it, and unpickling it there would import ray.tune."""
    register_serializer(cls, serializer=nothing, deserializer=nothing)
