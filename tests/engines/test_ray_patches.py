"""`toolkit/engines/ray_patches.py` was written against these lines of Ray: when they change, read them again before the hash is renewed."""

import contextlib
import hashlib
import inspect

import pytest
import ray
from ray import cloudpickle
from ray._private import services
from ray._private.node import Node
from ray._private.worker import listen_error_messages
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.autoscaler._private.spark import spark_job_server
from ray.autoscaler._private.spark.node_provider import SparkNodeProvider
from ray.autoscaler._private.spark.spark_job_server import SparkJobServer, SparkJobServerRequestHandler
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError
from ray.train._internal.storage import StorageContext
from ray.tune.execution import class_cache
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment.trial import _get_trainable_kwargs
from ray.tune.registry import _global_registry, _Registry, get_trainable_cls, register_trainable, validate_trainable
from ray.util.spark import cluster_init

from toolkit.core.errors import ClusterError
from toolkit.core.experiment import Sweep
from toolkit.engines.ray_patches import UNUSED_SERVICES, check_version, only_needed_services, trials_of, without_obituaries
from toolkit.engines.ray_trial_actor import Shared

READ = [
    (RayActorManager._actor_task_failed, "acbe35f64073"),
    (TuneController._maybe_reuse_cached_actor, "c045f0ddd48f"),
    (TuneController._maybe_add_actors, "dda4565e2ec3"),
    (TuneController._cleanup_trials, "6cfdc9304152"),
    (RayActorManager.cleanup, "9e3ec1d4d8dd"),
    (TuneController._on_trial_reset, "0c9d60ed2113"),
    (TuneController._actor_started, "c88c6e965abe"),
    (Node.start_head_processes, "c8877a0a14ce"),
    (Node.start_ray_processes, "819715425b5c"),
    (_ActorClassCache.get, "9164951bf277"),
    (TuneController._schedule_trial_actor, "9fdb928d04f7"),
    (TuneController._schedule_trial_reset, "fc4a257d83d3"),
    (TuneController._schedule_trial_train, "03c40bf04624"),
    (_get_trainable_kwargs, "a7a1a216e061"),
    (register_trainable, "7704d3a7bba8"),
    (get_trainable_cls, "d2e1fadd3046"),
    (validate_trainable, "5116bae65b06"),
    (_Registry, "1f025903133e"),
    (listen_error_messages, "e5c992a94ead"),
]

# What `ray_on_spark` and `ray_spark_node` are put together from. Here too, for it needs no Spark to be looked at.
READ_ON_SPARK = [
    (SparkJobServer.__init__, "ebf8d248d928"),
    (SparkJobServer.register_node, "9bb17999f960"),
    (SparkJobServer.check_node_id_availability, "dfeffa0c2ebe"),
    (SparkJobServer.mark_node_running, "bec5241416fe"),
    (SparkJobServer.mark_node_terminated, "fcbb46d51c91"),
    (SparkJobServer.terminate_node, "f7b6e67edc41"),
    (SparkJobServer.query_nodes, "061067b370e6"),
    (SparkJobServer.shutdown, "32700dcd7407"),
    (SparkJobServerRequestHandler.handle_POST, "f8be14f5fc98"),
    (SparkJobServerRequestHandler.setup, "70400c9bb36b"),
    (spark_job_server._start_ray_worker_nodes, "f22e45e44bc3"),
    (SparkNodeProvider.__init__, "216ef83f9893"),
    (SparkNodeProvider.create_node_with_resources_and_labels, "5a9c0be10aa0"),
    (SparkNodeProvider._create_node_with_resources_and_labels, "db56a88a88bf"),
    (SparkNodeProvider.terminate_node, "d08e17f24ccf"),
    (cluster_init.AutoscalingCluster.__init__, "0fb271570d75"),
    (cluster_init.AutoscalingCluster._generate_config, "502168455b25"),
    (cluster_init._create_hook_entry, "feaf4391d1d5"),
    (Node.__init__, "3866c68ee18a"),
    (Node.dead_processes, "c0613a8cbb94"),
    (Node.kill_all_processes, "01f80cfd21fa"),
    (services.resolve_ip_for_localhost, "936d4337b539"),
]


@pytest.mark.parametrize(("function", "sha256"), READ + READ_ON_SPARK, ids=lambda value: getattr(value, "__qualname__", ""))
def test_what_was_read_is_what_runs(function, sha256):
    assert hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12] == sha256, (
        f"{function.__qualname__} in ray {ray.__version__}"
    )


def test_services_are_left_out_only_while_it_lasts():
    kept = [getattr(Node, name) for name in UNUSED_SERVICES]
    with only_needed_services():
        assert all(getattr(Node, name) is not method for name, method in zip(UNUSED_SERVICES, kept, strict=True))
    assert [getattr(Node, name) for name in UNUSED_SERVICES] == kept


def test_obituaries_are_left_out_only_while_it_lasts():
    with without_obituaries():
        assert ray._private.worker.listen_error_messages is not listen_error_messages
    assert ray._private.worker.listen_error_messages is listen_error_messages


SHARED = Shared(make_trainer=None, sweep=Sweep(), data=None)


def test_tune_is_what_it_was_after_a_search():
    """The user may have searches of their own in the same process."""

    def state():
        classes = [dict(vars(owner)) for owner in (TuneController, RayActorManager)]
        variables = class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE
        return classes, set(vars(_global_registry)), variables, StorageContext in cloudpickle.CloudPickler.dispatch

    before = state()
    with trials_of(SHARED) as name:
        during = state()
        assert get_trainable_cls(name).shared is SHARED
    assert all(now != was for now, was in zip(during, before, strict=True))
    assert state() == before


def test_a_process_that_ray_s_memory_monitor_ends_has_died():
    heard = []

    class Task:
        class _tracked_actor:
            actor_id = 1
            _on_error = None

        _on_error = staticmethod(lambda actor, exception: heard.append(exception))

    class Manager:
        _cleanup_actor = staticmethod(lambda tracked_actor: None)

        def __init__(self):
            self._failed_actor_ids = set()

    for error in (OutOfMemoryError("Task was killed\ndue to the node running low on memory"), ActorDiedError()):
        with pytest.raises(RuntimeError) if isinstance(error, OutOfMemoryError) else contextlib.nullcontext():
            RayActorManager._actor_task_failed(Manager(), Task, error)
        heard.clear()
        with trials_of(SHARED):
            RayActorManager._actor_task_failed(Manager(), Task, error)
        assert isinstance(heard[0], RayActorError)
        assert "OutOfMemoryError: Task was killed due to" in str(heard[0]) or heard[0] is error


def test_another_ray_is_refused(monkeypatch):
    check_version()
    monkeypatch.setattr(ray, "__version__", "2.37.0")
    with pytest.raises(ClusterError, match=r"^the toolkit needs Ray 2.60, got 2.37.0; install"):
        check_version()


def test_ray_answers_the_job_server_s_calls_by_these_names():
    """`ray_on_spark` puts its own in the place of one, which is called by keywords."""
    names = set(inspect.signature(spark_job_server._start_ray_worker_nodes).parameters)
    assert {"spark_job_group_id", "ray_head_ip", "ray_head_port", "node_id"} <= names
