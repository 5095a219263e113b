"""How many workers an elastic job runs with: as many as the cluster has room for, within its bounds."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.util.placement_group import PlacementGroup

from periflow_ray.cluster.config.render import VM_LABEL
from periflow_ray.loops import BackgroundLoop
from periflow_ray.runtime import ray_private
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.ray_private import FixedScalingPolicy, NoopDecision, ResizeDecision, ScalingDecision
from periflow_ray.runtime.ray_train.own_groups import read_own_groups
from periflow_ray.runtime.ray_train.vm_choice import VmChoice, read_vm_name

# Machines that come back seldom come at once; a group that starts without them has to start again for each.
SETTLE_S = 5.0
# Room for more workers must stay so long before a running group is ended for it.
GROW_AFTER_S = 15.0
# A machine that is lost while a group starts on it.
GIVE_UP_AFTER_S = 8.0
LOOK_INTERVAL_S = 1.0
_POLL_S = 0.25
_CONNECT_TIMEOUT_S = 2.0


class FixedPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Runs in Ray Train's controller: always the number of workers that the job wants.

    Ray's own policy tells the same to an actor that keeps requests to the autoscaler, and that one imports Ray Data and
    wakes a hundred times a second. A pending placement group is request enough for a group that never grows.
    """

    def __init__(self, scaling_config: ray.train.ScalingConfig, vm_choice: VmChoice) -> None:
        super().__init__(scaling_config)
        self._vm_choice = vm_choice

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """The labels of the nodes for the next worker group; None for any nodes."""
        return self._vm_choice.take_group()

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start no such actor."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start all workers."""
        return ResizeDecision(self.scaling_config.num_workers, ray_private.resources_per_worker(self.scaling_config))

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Leave the group as it is."""
        return NoopDecision()


class ElasticPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Runs in Ray Train's controller.

    A new group takes what there is. A running one is never resized here: the monitor is told that there is room for
    more, lets the ranks save, and ends the group; the new one is larger. Ray's own elastic policy would end it without
    a save, and counts no fractions of a CPU.

    Args:
        min_num_workers: fewer do not start.
    """

    def __init__(
        self,
        scaling_config: ray.train.ScalingConfig,
        min_num_workers: int,
        vm_choice: VmChoice,
        monitor: MonitorClient,
    ) -> None:
        super().__init__(scaling_config)
        self.scaling_config: ray.train.ScalingConfig = scaling_config
        self._min_num_workers = min_num_workers
        self._vm_choice = vm_choice
        self._monitor = monitor
        self._possible_since_s: float | None = None
        self._room_since_s: float | None = None
        self._next_look_s = 0.0

    def after_controller_start(self, train_run_context: Any) -> None:
        """Also begin to look after groups that cannot start."""
        self._want(self._vm_choice.find_wanted())
        super().after_controller_start(train_run_context)
        # It lasts as long as this controller's process.
        BackgroundLoop("lost-groups", LostGroups().look, LOOK_INTERVAL_S).start()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with all workers if there is room, with fewer when no more room has come for a while."""
        vm_name = self._vm_choice.find_wanted()
        ray_private.request_resources(self, is_new=self._want(vm_name))
        num_possible = self._count_possible_workers(vm_name)
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
        return ResizeDecision(num_possible, ray_private.resources_per_worker(self.scaling_config))

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Leave the group as it is; tell the monitor of room for a larger one."""
        ray_private.request_resources(self)
        now_s = time.monotonic()
        if worker_group_state.num_workers >= self.scaling_config.num_workers or now_s < self._next_look_s:
            return NoopDecision()
        self._next_look_s = now_s + 1.0
        num_possible = self._count_possible_workers(self._vm_choice.running)
        if num_possible <= worker_group_state.num_workers:
            self._room_since_s = None
        elif self._room_since_s is None:
            self._room_since_s = now_s
        elif now_s - self._room_since_s >= GROW_AFTER_S:
            self._room_since_s = None
            self._monitor.grow(num_possible)
        return NoopDecision()

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """The labels of the nodes for the next worker group; None for any nodes."""
        return self._vm_choice.take_group()

    def _want(self, vm_name: str | None) -> bool:
        """Ask the autoscaler for nodes of this VM type from now on; returns whether that is another one."""
        labels = None if vm_name is None else {VM_LABEL: vm_name}
        if labels == self.scaling_config.label_selector:
            return False
        self.scaling_config = dataclasses.replace(self.scaling_config, label_selector=labels)
        return True

    def _count_possible_workers(self, vm_name: str | None) -> int:
        """Workers that fit on the machines of a VM type that stay, if this controller's own group made room."""
        try:
            leaving = set(ray_private.read_draining_nodes())
            free = ray_private.read_free_resources()
            held = _read_held_resources()
            # Ray takes seconds to see a lost machine, and would wait for it with a group that was to start there.
            nodes = [node for node in ray.nodes() if node["Alive"]]
            leaving |= {node["NodeID"] for node in nodes if not _is_reachable(node)}
            others = {node["NodeID"] for node in nodes if vm_name is not None and read_vm_name(node) != vm_name}
        except (ray.exceptions.RayError, RuntimeError, OSError):  # The next look may find Ray's head again.
            return 0
        needed = ray_private.resources_per_worker(self.scaling_config)
        per_node = [
            _count_fitting(_add(resources, held.get(node, {})), needed)
            for node, resources in free.items()
            if node not in leaving | others
        ]
        if self.scaling_config.placement_strategy == "STRICT_SPREAD":
            per_node = [min(1, num_workers) for num_workers in per_node]
        return min(sum(per_node), int(self.scaling_config.num_workers))


def _is_reachable(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


class LostGroups:
    """Removes this controller's placement groups that lost a machine and have not found another one for a while.

    Ray Train waits without end for workers whose machine died while they started.
    """

    def __init__(self) -> None:
        self._lost_since_s: dict[bytes, float] = {}

    def look(self) -> None:
        """Look once."""
        try:
            groups = read_own_groups()
            lost = {group.group_id for group in groups if group.is_rescheduling}
            now_s = time.monotonic()
            self._lost_since_s = {group_id: self._lost_since_s.get(group_id, now_s) for group_id in lost}
            for group_id, since_s in self._lost_since_s.items():
                if now_s - since_s > GIVE_UP_AFTER_S:
                    ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(group_id)))
        except (ray.exceptions.RayError, RuntimeError, OSError):  # The next look may find Ray's head again.
            return


def _read_held_resources() -> dict[str, dict[str, float]]:
    """Ray's node id in hex -> what this controller's placement groups hold there."""
    held: dict[str, dict[str, float]] = {}
    for group in read_own_groups():
        for node, resources in group.held.items():
            held[node] = _add(held.get(node, {}), resources)
    return held


def _add(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {*one, *other}}


def _count_fitting(resources: Mapping[str, float], needed: Mapping[str, float]) -> int:
    # Ray counts in steps of 1/10,000, and so must we: 0.9 / 0.3 is less than 3.
    shares = [
        round(resources.get(name, 0.0) * 10_000) // round(amount * 10_000) for name, amount in needed.items() if amount
    ]
    return min(shares, default=0)
