"""What a distributed training asks of the cluster, before anything slow: room for its workers, and folders that all nodes see."""

from __future__ import annotations

import shutil
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from toolkit.core.errors import ClusterError, ExperimentError
from toolkit.core.experiment import Training
from toolkit.core.secrets import without_secrets
from toolkit.engines.ray_rows import look

_PROBE_TIMEOUT_S = 60


def storage_folder(training: Training, default: Path, num_hosts: int) -> Path:
    """Where rows and checkpoints of a training lie; `default` is of this host alone.

    Raises:
        ExperimentError: several hosts and no folder that they share, or an address that is no folder's.
    """
    if training.storage_path is None:
        if num_hosts > 1:
            raise ExperimentError(
                "training.storage_path: required on several hosts, a folder that all of them see",
                got=f"none, and {num_hosts} hosts",
                next_step="name a mounted one (NFS; /Volumes/… on Databricks)",
            )
        return default
    if "://" in training.storage_path or training.storage_path.startswith("dbfs:"):
        raise ExperimentError(
            "training.storage_path: a folder that every node has mounted",
            got=without_secrets(training.storage_path),
            next_step="name it by its path (/Volumes/… on Databricks)",
        )
    return Path(training.storage_path).expanduser().absolute()


def num_hosts() -> int:
    """Of the connected Ray: several of its nodes may be on one."""
    return len({node["NodeManagerAddress"] for node in nodes()})


def nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def check_room(there: Sequence[Mapping[str, Any]], training: Training) -> None:
    """Ray Train itself would wait for CPUs that never come.

    Raises:
        ClusterError: the workers do not fit on the nodes.
    """
    room = sum(int(node["Resources"].get("CPU", 0)) // training.cpus_per_worker for node in there)
    if room < training.num_workers:
        raise ClusterError(
            "the workers of a distributed training must fit on the cluster's CPUs",
            got=f"training.num_workers={training.num_workers} with training.cpus_per_worker={training.cpus_per_worker}, "
            f"and room for {room}",
            next_step="lower one of them, or use a larger cluster",
        )


def check_nodes(there: Sequence[Mapping[str, Any]], storage: Path, files: Sequence[str], training: Training) -> None:
    """Every node looks for the files, and for one that this process writes, and writes one that this process looks for.

    Raises:
        ClusterError: a node does not see them, or `storage` cannot be written to.
    """
    probe = storage / f".probe-{uuid.uuid4().hex}"
    try:
        probe.mkdir(parents=True)
        (probe / "driver").touch()
    except OSError as error:
        raise ClusterError(
            "training.storage_path must be writable", got=f"{storage}: {error.strerror or error}", next_step="name another folder"
        ) from error
    try:
        # One a worker, for each leaves behind what a reader would have to start: an interpreter, and 1 s of imports.
        places = [there[number % len(there)] for number in range(max(len(there), training.num_workers))]
        looks = [
            ray.remote(look)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(str(probe), node["NodeID"], list(files))
            for node in places
        ]
        if len(there) == 1 and there[0]["NodeManagerHostname"] == socket.gethostname():
            return  # this process has seen it all
        for node, answer in zip(places, looks, strict=True):
            host = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                lacks = ray.get(answer, timeout=_PROBE_TIMEOUT_S)
            except (RayError, TimeoutError) as error:
                raise ClusterError(
                    "every node of the cluster must run a task", got=f"none from {host}: {first_line(error)}", next_step="see its log"
                ) from error
            if lacks is None and not (probe / node["NodeID"]).exists():
                lacks = f"what it writes to {storage} is not seen here"
            if lacks is not None:
                raise ClusterError(
                    "every node must see the rows, and training.storage_path as this host does",
                    got=f"node {host}: {lacks}",
                    next_step="name folders that all nodes have mounted",
                )
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def first_line(error: BaseException) -> str:
    """`Type: …`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(f"{type(error).__name__}: {lines[0] if lines else ''}")
