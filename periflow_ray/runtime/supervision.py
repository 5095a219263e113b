"""What the driver of any job does beside Ray Train: follow the attempts, and explain a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import ray.train

from periflow_ray.errors import PeriflowRayError
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor import Monitor
from periflow_ray.runtime.sandbox import Sandbox

WAIT_NOTICE_S = 10.0
MONITOR_TIMEOUT_S = 30.0
_NUM_ERROR_LINES = 6


def start_monitor(storage_uri: str, job_id: int, *, num_members: int, world_size: int) -> Any:
    """Start a job's monitor; every member may wait in it at once."""
    actor_class = ray.remote(num_cpus=0, max_concurrency=1000 + 4 * num_members)(Monitor)
    return actor_class.remote(storage_uri, job_id, num_members, world_size)


def follow_attempts(
    monitor: Any, state: StateKeeper, num_workers: int, resources_per_worker: Mapping[str, float]
) -> None:
    """Turn the monitor's phases into the job's status, and say what a job waits for; returns when the monitor ends."""
    wanted = f"{num_workers} x ({_describe(resources_per_worker)})"
    state.enter("allocating", f"asks for {wanted}")
    attempt = 0
    try:
        while True:
            started = monitor.wait_for_attempt.remote(attempt + 1)
            while not ray.wait([started], timeout=WAIT_NOTICE_S)[0]:
                if state.status == "allocating" and _is_placement_pending():
                    available = ray.available_resources()
                    free = _describe({name: available.get(name, 0) for name in resources_per_worker})
                    state.note_waiting(f"waits for {wanted}; the cluster has {free} free")
            attempt = ray.get(started)
            state.enter("preparing", f"attempt {attempt} starts on {num_workers} worker(s)", attempt)
            ray.get(monitor.wait_for_start.remote(attempt))
            state.enter("running", f"attempt {attempt} runs", attempt)
    except ray.exceptions.RayError:  # The monitor is gone, and the job with it; the main thread says how it ended.
        return


def close_monitor(monitor: Any) -> list[Failure]:
    """Let the monitor write out everything; returns the last attempt's failures, the cause first."""
    try:
        failures: list[Failure] = ray.get(monitor.attempt_failures.remote(), timeout=MONITOR_TIMEOUT_S)
        ray.get(monitor.close.remote(), timeout=MONITOR_TIMEOUT_S)
    except ray.exceptions.RayError:
        return []
    return failures


def describe_error(failures: list[Failure], error: Exception) -> str:
    """Why a job failed: the first member's diagnosis, else what Ray says."""
    if failures:
        return failures[0].describe()
    causes = getattr(error, "worker_failures", None) or {}
    for rank in sorted(causes):
        cause = causes[rank]
        if isinstance(cause, PeriflowRayError):
            return str(cause)
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return f"worker {rank} was ended by Ray because the machine's memory was full.\n{_first_lines(str(cause))}"
        if isinstance(cause, ray.exceptions.RayActorError):
            return f"worker {rank} died: {_first_lines(str(cause))}"
        return f"worker {rank}: {_first_lines(str(cause))}"
    return _first_lines(str(error))


def remove_sandboxes(storage_uri: str, job_id: int, num_nodes: int) -> None:
    """Delete what failed or killed workers left on the cluster's machines."""

    def remove() -> None:
        for node_rank in range(num_nodes):
            Sandbox(storage_uri, job_id, node_rank).remove()

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    tasks = [
        ray.remote(num_cpus=0)(remove).options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    ]
    ray.wait(tasks, num_returns=len(tasks), timeout=MONITOR_TIMEOUT_S)


def _is_placement_pending() -> bool:
    return any(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())


def _describe(resources: Mapping[str, float]) -> str:
    parts = []
    for name, amount in resources.items():
        parts.append(f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}")
    return ", ".join(parts)


def _first_lines(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][:_NUM_ERROR_LINES])
