"""Keeps Ray's own variables from the user's code in the workers of a group, and gives it back its threads."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray

from periflow_ray.runtime.ray_private import WorkerGroupCallback
from periflow_ray.runtime.user_environment import find_foreign_variables


class UserEnvironmentCallback(WorkerGroupCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller; before its other callbacks, which set variables of their own."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        num_workers = Counter(worker.metadata.node_id for worker in worker_group.get_workers())
        worker_group.execute(_forget_foreign_variables, [node for node, number in num_workers.items() if number == 1])


def _forget_foreign_variables(nodes_with_one_worker: Collection[str]) -> None:
    is_alone = ray.get_runtime_context().get_node_id() in nodes_with_one_worker
    foreign = find_foreign_variables(os.environ, _read_started_with(), is_alone=is_alone)
    for name in foreign:
        del os.environ[name]
    if "OMP_NUM_THREADS" in foreign and "torch" in sys.modules:
        # Ray Train has imported it in a function job's worker, and it has read the variable.
        torch = sys.modules["torch"]
        torch.set_num_threads(_count_processors(are_cores=torch.backends.mkl.is_available()))


def _count_processors(*, are_cores: bool) -> int:
    """What torch takes as many threads for as it has by itself: MKL counts cores, OpenMP counts their threads."""
    processors = os.sched_getaffinity(0)
    return len({_core_of(processor) for processor in processors}) if are_cores else len(processors)


def _core_of(processor: int) -> object:
    topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology")
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return processor


def _read_started_with() -> dict[str, str]:
    try:
        content = Path("/proc/self/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
