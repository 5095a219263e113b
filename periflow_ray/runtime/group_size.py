"""How many workers an elastic job runs with: as many as the cluster has room for, within its bounds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.core.generated import gcs_pb2
from ray.train.v2._internal.execution.scaling_policy import (
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

# Machines that come back seldom come at once; a group that starts without them has to start again for each.
SETTLE_S = 5.0
# Room for more workers must stay so long before a running group is ended for it.
GROW_AFTER_S = 15.0
_POLL_S = 0.25


class ElasticPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Runs in Ray Train's controller.

    A new group takes what there is. A running one is never resized here: the monitor is told that there is room for
    more, lets the ranks save, and ends the group; the new one is larger. Ray's own elastic policy would end it without
    a save, and counts no fractions of a CPU.

    Args:
        min_num_workers: fewer do not start.
    """

    def __init__(self, scaling_config: ray.train.ScalingConfig, min_num_workers: int, monitor: Any) -> None:
        super().__init__(scaling_config)
        self._min_num_workers = min_num_workers
        self._monitor = monitor
        self._possible_since_s: float | None = None
        self._room_since_s: float | None = None
        self._next_look_s = 0.0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with all workers if there is room, with fewer when no more room has come for a while."""
        self._maybe_send_resource_request()
        num_possible = self._count_possible_workers()
        now_s = time.monotonic()
        if num_possible < self._min_num_workers:
            self._possible_since_s = None
        elif self._possible_since_s is None:
            self._possible_since_s = now_s
        is_settled = self._possible_since_s is not None and now_s - self._possible_since_s >= SETTLE_S
        if num_possible < self.scaling_config.num_workers and not is_settled:
            # The controller asks again at once.
            time.sleep(_POLL_S)
            return NoopDecision()
        self._possible_since_s = self._room_since_s = None
        return ResizeDecision(num_possible, self.scaling_config._resources_per_worker_not_none)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Leave the group as it is; tell the monitor of room for a larger one."""
        self._maybe_send_resource_request()
        now_s = time.monotonic()
        if worker_group_state.num_workers >= self.scaling_config.num_workers or now_s < self._next_look_s:
            return NoopDecision()
        self._next_look_s = now_s + 1.0
        num_possible = self._count_possible_workers()
        if num_possible <= worker_group_state.num_workers:
            self._room_since_s = None
        elif self._room_since_s is None:
            self._room_since_s = now_s
        elif now_s - self._room_since_s >= GROW_AFTER_S:
            self._room_since_s = None
            self._monitor.grow.remote(num_possible)
        return NoopDecision()

    def _count_possible_workers(self) -> int:
        """Workers that fit on the machines that stay, if this controller's own group made room."""
        state = ray._private.state.state
        try:
            leaving = set(state.get_draining_nodes() or {})
            free = state.available_resources_per_node()
            held = _read_held_resources(ray.get_runtime_context().get_actor_id())
        except (ray.exceptions.RayError, RuntimeError, OSError):  # The next look may find Ray's head again.
            return 0
        needed = self.scaling_config._resources_per_worker_not_none
        per_node = [
            _count_fitting(_add(resources, held.get(node, {})), needed)
            for node, resources in free.items()
            if node not in leaving
        ]
        if self.scaling_config.placement_strategy == "STRICT_SPREAD":
            per_node = [min(1, num_workers) for num_workers in per_node]
        return min(sum(per_node), int(self.scaling_config.num_workers))


def _read_held_resources(actor_id: str) -> dict[str, dict[str, float]]:
    """Ray's node id in hex -> what the placement groups that an actor made hold there."""
    held: dict[str, dict[str, float]] = {}
    for packed in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(packed)
        if group.creator_actor_id.hex() != actor_id or group.state == gcs_pb2.PlacementGroupTableData.REMOVED:
            continue
        for bundle in group.bundles:
            node = bundle.node_id.hex()
            held[node] = _add(held.get(node, {}), dict(bundle.unit_resources))
    return held


def _add(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {*one, *other}}


def _count_fitting(resources: Mapping[str, float], needed: Mapping[str, float]) -> int:
    # Ray counts in steps of 1/10,000, and so must we: 0.9 / 0.3 is less than 3.
    shares = [
        round(resources.get(name, 0.0) * 10_000) // round(amount * 10_000) for name, amount in needed.items() if amount
    ]
    return min(shares, default=0)
