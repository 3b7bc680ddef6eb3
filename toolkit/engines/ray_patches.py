"""The places where we reach into Ray's private parts, each with its reason; `tests/engines/test_ray_patches.py` fails when they change.

What they are for: a search of 50 short trials spends most of its time on the start of processes that do nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import deregister_serializer, register_serializer

from toolkit.core.errors import ClusterError
from toolkit.engines.ray_spark_node import no_dashboard
from toolkit.engines.ray_trial_actor import Shared, TrialActor, nothing

_NAME = "toolkit_trial"
_VERSION = "2.60"


def check_version() -> None:
    """Raises:
    ClusterError: another Ray than what was read; an installation without its dependencies' versions (`--no-deps`) gets here.
    """
    if ray.__version__.rpartition(".")[0] != _VERSION:
        raise ClusterError(f"the toolkit needs Ray {_VERSION}", got=ray.__version__, next_step=f'install "ray[tune]=={_VERSION}.*"')


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name`; what an instance did not have itself, it has not afterwards."""
    own = name in vars(owner)
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, kept)
        else:
            delattr(owner, name)


# A local cluster has no use for the API server (2.3 s until it answers), the autoscaler's monitor, and, with `log_to_driver=False`, the
# log monitor: 6.4 s become 3.6, the shutdown 0.4 instead of 1.4.
UNUSED_SERVICES = ("start_api_server", "start_monitor", "start_log_monitor")


@contextmanager
def only_needed_services(dashboard: bool = False, monitor: bool = False) -> Iterator[None]:
    """While it lasts, a head starts without `UNUSED_SERVICES`, but for those that are asked for, and with the agent of a minimal Ray."""
    asked_for = {"start_api_server": dashboard, "start_monitor": monitor, "start_log_monitor": dashboard}
    with ExitStack() as stack:
        for name in UNUSED_SERVICES:
            if not asked_for[name]:
                stack.enter_context(_replaced(Node, name, lambda self, **options: None))
        if not dashboard:
            stack.enter_context(_replaced(ray._private.utils, "get_dashboard_dependency_error", no_dashboard))
        yield


@contextmanager
def without_obituaries() -> Iterator[None]:
    """While it lasts, a driver that connects does not subscribe to what the cluster says of processes that died: pages of a raylet's log,
    on standard output. That a worker was lost we say in one line, and how a trial ended is in its record."""
    with _replaced(ray._private.worker, "listen_error_messages", lambda worker, threads_stopped: None):
        yield


def reread_authentication() -> None:
    """Ray reads its mode and token once a process, but gives those of the environment to what it starts: an earlier Ray's would not fit."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def dead_head_processes() -> list[str]:
    """Parts of the head that this process has started with `ray.init`, and that have died since."""
    node = ray._private.worker._global_node
    return [str(kind) for kind, _ in node.dead_processes()] if node is not None else []


@contextmanager
def trials_of(shared: Shared) -> Iterator[str]:
    """While it lasts, Tune knows `TrialActor` under the name that is given, and runs its trials as described below; afterwards Tune is what
    it was, for the user may have searches of their own in the same process.

    `ray.tune.register_trainable` takes subclasses of Trainable only. A process of Tune's own kind imports ray.tune, which costs 1.8 s of
    CPU and 70 MB each and does nothing there; and none of the processes that Ray has started by then can be used, because Tune gives its
    actors a runtime environment of their own (2 s more).
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.train._internal.storage import StorageContext
    from ray.tune.execution import class_cache
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment.trial import _TrialInfo
    from ray.tune.registry import _global_registry

    actor_class = type("TrialActor", (TrialActor,), {"shared": shared})
    contains, get = _global_registry.contains, _global_registry.get
    # Tune looks a trainable up three to five times a trial, in the head's key-value store: 2 ms each.
    replacements: list[tuple[Any, str, Any]] = [
        (_global_registry, "contains", lambda category, key: key == _NAME or contains(category, key)),
        (_global_registry, "get", lambda category, key: actor_class if key == _NAME else get(category, key)),
        # PyTorch Lightning's PL_DISABLE_FORK: an environment variable is a runtime environment, and that a process of its own.
        (class_cache, "DEFAULT_ENV_VARS", {}),
        (class_cache, "ENV_VARS_TO_PROPAGATE", set()),
        (TuneController, "_maybe_reuse_cached_actor", _reuse_only_what_is_free(TuneController._maybe_reuse_cached_actor)),
        (TuneController, "_schedule_trial_reset", _reset_without_waiting),
        (TuneController, "_maybe_add_actors", _start_what_was_reset(TuneController._maybe_add_actors)),
        (TuneController, "_cleanup_trials", _end_at_once),
        (RayActorManager, "_actor_task_failed", _any_death_is_one(RayActorManager._actor_task_failed)),
    ]
    with ExitStack() as stack:
        for owner, name, value in replacements:
            stack.enter_context(_replaced(owner, name, value))
        for cls in (StorageContext, _TrialInfo):
            # Tune sends it to every trial process, where nobody asks for it, and unpickling it there would import ray.tune.
            register_serializer(cls, serializer=nothing, deserializer=nothing)
            stack.callback(deregister_serializer, cls)
        yield _NAME


def _reuse_only_what_is_free(tunes_own: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Do not end a process that is starting, in favour of one that has just become free.

    Tune gives the free one to the trial that waits for the starting one, and ends that. With trials shorter than a process takes to start,
    the next trial asks for another process, which meets the same end: one slot does all the work, as long as the search lasts. Here the
    free process takes the next trial. Only when there is no next one, Tune's way is right: the waiting trial may never get its own.
    """

    def maybe_reuse(controller: Any, trial: Any) -> bool:
        is_starting = trial in controller._trial_to_actor and trial not in controller._resetting_trials
        if is_starting and not controller._search_alg.is_finished():
            return False
        return tunes_own(controller, trial)

    return maybe_reuse


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


def _start_what_was_reset(tunes_own: Callable[[Any], None]) -> Callable[[Any], None]:
    """Not before Tune's own has noted for all of them that they are to start."""

    def maybe_add_actors(controller: Any) -> None:
        tunes_own(controller)
        for trial in sorted(controller._resetting_trials, key=lambda trial: int(trial.config["number"])):
            controller._on_trial_reset(trial, True)

    return maybe_add_actors


def _end_at_once(controller: Any) -> None:
    """The trials have ended, or are put back: their processes have nothing more to say. Tune asks each to stop and waits for all of them,
    seconds where there are many."""
    controller._actor_manager.cleanup()


def _any_death_is_one(rays_own: Callable[[Any, Any, Exception], None]) -> Callable[[Any, Any, Exception], None]:
    """A process that Ray's memory monitor ends (a node over 95 %) has an error of its own kind, which is no RayActorError. Tune does not
    expect it: it would end the whole search, and a resumed one would meet it again. It is a death like any other, with its retries."""

    def actor_task_failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            told = f"{type(exception).__name__}: {' '.join(str(exception).split())}"
            exception = RayActorError(error_msg=told)
        rays_own(manager, tracked_actor_task, exception)

    return actor_task_failed
