"""A cloud account in memory, as ``Provider`` describes one: what clusters have in it, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from periflow_ray.cluster.config.spec import ClusterSpec
from periflow_ray.cluster.providers.provider import Finding, Machine, Preparation, ProviderError, Resource

LAUNCHED_UNIX_S = 1_767_225_600.0


class ProviderStandIn:
    """What is there is removed in one request each; the attributes are for tests to read and to set.

    Args (all by attribute):
        machines, resources: by cluster, resources without the machines, which are listed before them.
        users: ids of those that have to be gone before the resource of an id can be removed.
        refusals: why the resource of an id is never removed.
        num_listings_to_end: how often a machine is still listed after its end was asked for.
        late: machines that show up one by one, each after a listing that found nothing any more.
        failure: raised by every listing.
    """

    def __init__(self) -> None:
        self.machines: defaultdict[str, list[Machine]] = defaultdict(list)
        self.resources: defaultdict[str, list[Resource]] = defaultdict(list)
        self.users: dict[str, set[str]] = {}
        self.refusals: dict[str, str] = {}
        self.num_listings_to_end = 0
        self.late: list[Machine] = []
        self.failure: ProviderError | None = None
        self.findings: list[Finding] = []
        self.preparations: list[Preparation] = []
        self.ended: list[str] = []
        self.removed: list[str] = []
        self.num_listings = 0
        self._ending: dict[str, int] = {}
        self._has_found_nothing = False

    def check(self, spec: ClusterSpec, *, is_new: bool) -> list[Finding]:
        return self.findings

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        self.preparations.append(preparation)

    def list_machines(self, name: str) -> list[Machine]:
        if self.failure is not None:
            raise self.failure
        return list(self.machines[name])

    def end_machines(self, name: str) -> None:
        self.ended.append(name)
        self.machines[name] = [dataclasses.replace(each, state="shutting-down") for each in self.machines[name]]

    def list_resources(self, name: str) -> list[Resource]:
        self.num_listings += 1
        machines = self.list_machines(name)
        if self._has_found_nothing and self.late:
            machines = self.machines[name] = [self.late.pop(0)]
        for machine in machines:
            if machine.id in self._ending:
                self._ending[machine.id] -= 1
                if self._ending[machine.id] < 0:
                    self.machines[name].remove(machine)
        listed = [Resource("instance", machine.id, machine.state) for machine in self.machines[name]]
        listed += self.resources[name]
        self._has_found_nothing = not listed
        return listed

    def remove(self, resource: Resource) -> None:
        there = {each.id for name in [*self.machines] for each in (*self.machines[name], *self.resources[name])}
        if resource.id not in there:
            return
        if resource.id in self.refusals:
            raise ProviderError(self.refusals[resource.id])
        if users := self.users.get(resource.id, set()) & there:
            raise ProviderError(f"DependencyViolation: {resource.id} is used by {', '.join(sorted(users))}")
        if resource.kind == "instance":
            self._ending.setdefault(resource.id, self.num_listings_to_end)
        for own in self.resources.values():
            own[:] = [each for each in own if each.id != resource.id]
        if resource.id not in self.removed:
            self.removed.append(resource.id)


def make_machine(machine_id: str = "i-1", node_type: str = "head", **given: Any) -> Machine:
    """A head that runs, or another machine."""
    machine = Machine(
        id=machine_id,
        node_type=node_type,
        instance_type="m6i.large" if node_type == "head" else "g4dn.xlarge",
        is_spot=False,
        state="running",
        setup="up-to-date",
        zone="us-east-1a",
        address="172.31.0.4",
        public_address="203.0.113.4",
        launched_unix_s=LAUNCHED_UNIX_S,
    )
    return dataclasses.replace(machine, **given)
