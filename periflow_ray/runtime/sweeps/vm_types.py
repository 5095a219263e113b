"""On the machines of which VM types the trials of a sweep run, where the template has several."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import ray

from periflow_ray.cluster.config.render import VM_LABEL
from periflow_ray.loops import BackgroundLoop
from periflow_ray.plan import JobPlan
from periflow_ray.runtime import ray_private
from periflow_ray.runtime.launches import TIMEOUT_S
from periflow_ray.runtime.ray_train.vm_choice import FallbackOrder, describe_fallback, has_labels, read_vm_name
from periflow_ray.sweeps.journal import Trial

LOOK_INTERVAL_S = 2.0
# A request is sent again before that; it ends by itself when its driver is killed.
_REQUEST_LASTS_S = 180.0
_SEND_AGAIN_S = 60.0


def select_labels(vm_names: Sequence[str]) -> dict[str, str] | None:
    """The labels of the nodes that a trial may run on: of any of its VM types, because a machine that is there is best.

    Returns:
        A selector as Ray has it; None for any node, where the cluster's nodes do not say of which VM type they are.
    """
    if not vm_names or not has_labels():
        return None
    return {VM_LABEL: vm_names[0] if len(vm_names) == 1 else f"in({','.join(vm_names)})"}


def find_vm_name(node_ip: str) -> str | None:
    """Of which VM type a node is, where it says so."""
    nodes = (node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == node_ip)
    return next((name for name in map(read_vm_name, nodes) if name is not None), None)


class TrialMachines:
    """The machines of a sweep's trials: those that are asked for while it is open, and of which VM type each is.

    Args:
        plan: of the sweep's template.
        name: of the request for machines, in the whole cluster.
        note: takes a sentence that the user should read.
    """

    def __init__(self, plan: JobPlan, name: str, note: Callable[[str], None]) -> None:
        self._plan = plan
        self._name = name
        self._note = note
        self._requests: VmRequests | None = None
        self._vm_by_ip: dict[str, str | None] = {}

    @contextlib.contextmanager
    def open(self, bundle: Mapping[str, float]) -> Iterator[None]:
        """Where there is a choice of VM types, see that the first one that is to be had is asked for.

        Args:
            bundle: what a node of a trial asks Ray for.
        """
        plan = self._plan
        if plan.vm.is_local or not plan.fallback_vms or not has_labels():
            yield
            return
        request = ray_private.MachineRequest(self._name)
        self._requests = VmRequests(plan.vm_names, bundle, request, self._note)
        self._requests.start()
        try:
            yield
        finally:
            self._requests.close()

    def take_counts(self, num_waiting: int, running: Iterable[Trial]) -> None:
        """How many trials wait for machines now, and which ones run."""
        if self._requests is not None:
            num_nodes = self._plan.num_nodes
            counts = Counter(trial.vm for trial in running if trial.vm is not None)
            self._requests.take_counts(
                num_waiting * num_nodes, {vm: number * num_nodes for vm, number in counts.items()}
            )

    def find_vm_name(self, node_ip: str | None) -> str | None:
        """Of which VM type the node with a trial's agent is, where it says so.

        None for a trial on several nodes: its agent needs no room, and may be on another machine.
        """
        if self._plan.vm.is_local or self._plan.num_nodes > 1 or node_ip is None:
            return None
        if node_ip not in self._vm_by_ip:
            self._vm_by_ip[node_ip] = find_vm_name(node_ip)
        return self._vm_by_ip[node_ip]


class VmRequests:
    """Asks the autoscaler for machines for trials that wait: of the first VM type, of the next one if it is refused.

    By itself it would ask for the type that fits best, and again and again for that one.

    Args:
        vm_names: two or more, the first choice first.
        bundle: what a trial asks Ray for.
        note: takes a sentence that the user should read.
    """

    def __init__(
        self,
        vm_names: Sequence[str],
        bundle: Mapping[str, float],
        request: ray_private.MachineRequest,
        note: Callable[[str], None],
    ) -> None:
        self._order = FallbackOrder(vm_names)
        self._bundle = bundle
        self._request = request
        self._note = note
        self._num_waiting = 0
        self._num_running: Mapping[str, int] = {}
        self._sent: tuple[str, int] | None = None
        self._sent_s = 0.0
        self._loop = BackgroundLoop("vm-types", self.look, LOOK_INTERVAL_S)

    def start(self) -> None:
        self._loop.start()

    def close(self) -> None:
        """Ask for nothing any more."""
        self._loop.close()
        if self._sent is not None:
            self._request.cancel()

    def take_counts(self, num_waiting: int, num_running: Mapping[str, int]) -> None:
        """How many trials wait for a machine now, and how many run on each VM type."""
        self._num_waiting, self._num_running = num_waiting, num_running

    def look(self) -> None:
        """Ask for what is wanted now."""
        if not self._num_waiting:
            if self._sent is not None:
                self._sent = None
                self._request.cancel()
            return
        if self._sent is None:
            self._order.start(time.time())
        self._fall_back()
        # The autoscaler takes machines that are busy for free ones here.
        count = self._num_waiting + self._num_running.get(self._order.vm_name, 0)
        wanted = (self._order.vm_name, count)
        if wanted != self._sent or time.monotonic() - self._sent_s > _SEND_AGAIN_S:
            self._request.send(self._bundle, {VM_LABEL: self._order.vm_name}, count, _REQUEST_LASTS_S)
            self._sent, self._sent_s = wanted, time.monotonic()

    def _fall_back(self) -> None:
        facts = ray_private.read_launches(ray.get_runtime_context().gcs_address, TIMEOUT_S)
        refused, now_unix_s = self._order.vm_name, time.time()
        following = self._order.take_refusals(facts.refused_unix_s, now_unix_s)
        if following is not None:
            self._note(describe_fallback(refused, following))
            self._order.start(now_unix_s)
