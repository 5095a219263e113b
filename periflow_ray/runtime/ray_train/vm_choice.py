"""On the nodes of which VM type a worker group runs, where the cluster's nodes say by a label what they are.

Ray's autoscaler asks its provider for the same VM type again and again, whatever the answer. So a group that waits for
a type which the provider has refused is given up here, and the next one waits for the next type.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from periflow_ray.cluster.config.render import VM_LABEL
from periflow_ray.cluster.providers.prices import vm_usd_per_hour
from periflow_ray.loops import BackgroundLoop
from periflow_ray.plan.catalogue import load_catalogue
from periflow_ray.runtime import ray_private
from periflow_ray.runtime.launches import TIMEOUT_S, read_refusals
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.ray_train.own_groups import read_own_groups

LOOK_INTERVAL_S = 1.0
# When the provider had none of them, it is asked for the first one again after this time.
ROUND_S = 60.0


class VmChoice:
    """Of Ray Train's controller; a policy of it asks.

    Args:
        vm_names: the VM types that the job may run on, the first choice first; none for any node.
    """

    def __init__(self, vm_names: Sequence[str], monitor: MonitorClient) -> None:
        self._order = FallbackOrder(vm_names)
        self._monitor = monitor
        self._waits_for_room = False
        self._is_on_labelled_nodes = False
        self._loop: BackgroundLoop | None = None

    def find_wanted(self) -> str | None:
        """On nodes of which VM type there is to be room, for a group that starts as soon as there is; None for any."""
        if not self._has_choice():
            return None
        self._choose()
        self._waits_for_room = True
        return self._order.vm_name

    @property
    def running(self) -> str | None:
        """The VM type of the group that runs; None for any. Asks nobody: a group is not ended for a lost answer."""
        return self._order.vm_name if self._is_on_labelled_nodes else None

    def take_group(self) -> dict[str, str] | None:
        """The labels of the nodes for the group that starts now; None for any nodes."""
        if not self._has_choice():
            return None
        self._choose()
        self._waits_for_room = False
        return {VM_LABEL: self._order.vm_name}

    def _has_choice(self) -> bool:
        # The head has the label as long as there is a cluster.
        self._is_on_labelled_nodes = self._is_on_labelled_nodes or (bool(self._order.vm_names) and has_labels())
        return self._is_on_labelled_nodes

    def _choose(self) -> None:
        """Choose for a new group; for one that is waited for already only if what it waits for was refused."""
        if not self._waits_for_room or self._order.is_falling_back:
            self._order.start(time.time())
        if self._loop is None and len(self._order.vm_names) > 1:
            # It lasts as long as this controller's process.
            self._loop = BackgroundLoop("vm-choice", self._look, LOOK_INTERVAL_S)
            self._loop.start()

    def _look(self) -> None:
        """Give up a wait for what the provider has refused."""
        pending = [group for group in read_own_groups() if group.is_pending]
        if not pending and not self._waits_for_room:
            return
        gcs_address = ray.get_runtime_context().gcs_address
        facts = ray_private.read_launches(gcs_address, TIMEOUT_S)
        refused = self._order.vm_name
        following = self._order.take_refusals(facts.refused_unix_s, time.time())
        if following is None:
            return
        self._monitor.note(describe_fallback(refused, following))
        for group in pending:
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.group_id)))


class FallbackOrder:
    """Which of several VM types is asked for: the next one after each refusal, the first one for each new group."""

    def __init__(self, vm_names: Sequence[str]) -> None:
        self.vm_names = tuple(vm_names)
        self._index = 0
        self._is_falling_back = False
        self._asked_unix_s = 0.0

    @property
    def vm_name(self) -> str:
        """The one that is asked for now."""
        return self.vm_names[self._index]

    @property
    def is_falling_back(self) -> bool:
        """Whether it is another one than the last start asked for."""
        return self._is_falling_back

    def start(self, now_unix_s: float) -> str:
        """The VM type for a group that starts now: the first one, unless the group before was given up."""
        if not self._is_falling_back:
            self._index = 0
        self._is_falling_back = False
        self._asked_unix_s = now_unix_s
        return self.vm_name

    def take_refusals(self, refused_unix_s: Mapping[str, float], now_unix_s: float) -> str | None:
        """The VM type to ask for next; None to go on waiting for the one that is asked for now.

        Args:
            refused_unix_s: when the provider last refused each VM type, in whole seconds.
        """
        refused = refused_unix_s.get(self.vm_name, 0.0)
        if self._is_falling_back or refused < int(self._asked_unix_s):
            return None
        is_last = self._index == len(self.vm_names) - 1
        if is_last and now_unix_s - self._asked_unix_s < ROUND_S:
            return None
        self._index = 0 if is_last else self._index + 1
        self._is_falling_back = True
        return self.vm_name


def has_labels() -> bool:
    """Whether the cluster's nodes say of which VM type they are; those of ``cluster_configs/`` do, the head first."""
    return any(read_vm_name(node) is not None for node in ray.nodes() if node["Alive"])


def read_vm_name(node: Mapping[str, Any]) -> str | None:
    """Of which VM type a node is, by its own label; None if it does not say so."""
    return (node.get("Labels") or {}).get(VM_LABEL)


def describe_fallback(refused: str, following: str) -> str:
    """The sentence for users about the VM type that is asked for instead of a refused one."""
    reason = read_refusals().get(refused)
    because = f" ({reason})" if reason else ""
    return f"the provider refused {refused}{because}; asks for {following} instead, {_describe_price(following)}"


def _describe_price(vm_name: str) -> str:
    vm = load_catalogue().get(vm_name)
    usd = 0.0 if vm is None else vm_usd_per_hour(vm)
    return f"at about ${usd:.2f} per hour and node" if usd else "whose price is not known"
