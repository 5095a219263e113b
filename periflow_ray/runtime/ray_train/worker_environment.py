"""Keeps Ray's own variables from the user's code in the workers of a group."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray

from periflow_ray.runtime.ray_private import WorkerGroupCallback
from periflow_ray.runtime.user_environment import find_foreign_variables


class UserEnvironmentCallback(WorkerGroupCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller; before others, because torch reads OMP_NUM_THREADS when it is imported."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        num_workers = Counter(worker.metadata.node_id for worker in worker_group.get_workers())
        worker_group.execute(_forget_foreign_variables, [node for node, number in num_workers.items() if number == 1])


def _forget_foreign_variables(nodes_with_one_worker: Collection[str]) -> None:
    is_alone = ray.get_runtime_context().get_node_id() in nodes_with_one_worker
    for name in find_foreign_variables(os.environ, _read_started_with(), is_alone=is_alone):
        del os.environ[name]


def _read_started_with() -> dict[str, str]:
    try:
        content = Path("/proc/self/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
