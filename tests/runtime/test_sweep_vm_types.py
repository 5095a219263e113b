"""On machines of which VM types the trials of a sweep run, and which are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from periflow_ray.cluster.config.render import VM_LABEL
from periflow_ray.plan import build_plan
from periflow_ray.plan.catalogue import find_vm
from periflow_ray.runtime.ray_private import LaunchFacts
from periflow_ray.runtime.ray_train import vm_choice
from periflow_ray.runtime.sweeps import vm_types
from periflow_ray.runtime.sweeps.tuning import resources_of
from periflow_ray.runtime.sweeps.vm_types import TrialMachines, VmRequests, find_vm_name, select_labels
from periflow_ray.spec import load_template
from periflow_ray.sweeps.journal import Trial, replay

SPOT, ON_DEMAND = "aws-16gb-t4-1g-us-east-1-spot", "aws-16gb-t4-1g-us-east-1"
TEMPLATE = f"vm: [{SPOT}, {ON_DEMAND}]\nnum_devices: 1\njob_setting: {{type: custom, docker: {{command: 'true'}}}}\n"
BUNDLE = {"CPU": 3.0, "GPU": 1.0}


class RayStandIn:
    """What Ray tells of a cluster, and what is asked of its autoscaler, which needs a cloud."""

    def __init__(self) -> None:
        self.nodes = [{"Alive": True, "Labels": {VM_LABEL: "head"}, "NodeManagerAddress": "10.0.0.1"}]
        self.refused_unix_s: dict[str, float] = {}
        self.asked: tuple[str, int] | None = None
        self.num_sent = 0

    def send(self, bundle: Mapping[str, float], labels: Mapping[str, str], count: int, expire_after_s: float) -> None:
        assert bundle == BUNDLE
        assert expire_after_s > 60
        self.asked = (labels[VM_LABEL], count)
        self.num_sent += 1

    def cancel(self) -> None:
        self.asked = None


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> RayStandIn:
    stand_in = RayStandIn()
    monkeypatch.setattr(vm_choice.ray, "nodes", lambda: stand_in.nodes)
    monkeypatch.setattr(vm_types.ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "head:1"}))
    monkeypatch.setattr(
        vm_types.ray_private, "read_launches", lambda *given: LaunchFacts({}, {}, stand_in.refused_unix_s)
    )
    monkeypatch.setattr(vm_choice, "read_refusals", lambda: {SPOT: "InsufficientInstanceCapacity: none left"})
    return stand_in


@pytest.fixture
def make_requests(cluster: RayStandIn) -> Callable[[list[str]], VmRequests]:
    return lambda notes: VmRequests([SPOT, ON_DEMAND], BUNDLE, cluster, notes.append)  # type: ignore[arg-type]


def test_a_trial_may_run_on_any_of_its_vm_types(cluster: RayStandIn) -> None:
    assert select_labels([SPOT, ON_DEMAND]) == {VM_LABEL: f"in({SPOT},{ON_DEMAND})"}
    assert select_labels([SPOT]) == {VM_LABEL: SPOT}
    vms = [find_vm(SPOT), find_vm(ON_DEMAND)]
    plan = build_plan(load_template(TEMPLATE).spec, vms[0], fallback_vms=vms[1:], storage_uri="/storage")
    factory: Any = resources_of(plan, 1.0)
    assert factory._bound.arguments["bundle_label_selector"] == [{VM_LABEL: f"in({SPOT},{ON_DEMAND})"}]


def test_on_nodes_that_do_not_say_what_they_are_a_trial_takes_any(cluster: RayStandIn) -> None:
    cluster.nodes = [{"Alive": True, "Labels": {}, "NodeManagerAddress": "10.0.0.1"}]
    assert select_labels([SPOT]) is None
    assert find_vm_name("10.0.0.1") is None


def test_the_first_vm_type_is_asked_for_and_after_a_refusal_the_next(
    cluster: RayStandIn, make_requests: Callable[[list[str]], VmRequests]
) -> None:
    notes: list[str] = []
    requests = make_requests(notes)
    requests.look()
    assert cluster.asked is None
    requests.take_counts(2, {SPOT: 1})
    requests.look()
    # The machine that is busy with a trial counts, because the autoscaler takes it for a free one here.
    assert cluster.asked == (SPOT, 3)
    requests.look()
    assert (cluster.num_sent, notes) == (1, [])
    cluster.refused_unix_s = {SPOT: time.time()}
    requests.look()
    assert cluster.asked == (ON_DEMAND, 2)
    assert notes == [
        f"the provider refused {SPOT} (InsufficientInstanceCapacity: none left); asks for {ON_DEMAND} instead, at "
        "about $0.53 per hour and node"
    ]
    # They have come.
    requests.take_counts(0, {ON_DEMAND: 2, SPOT: 1})
    requests.look()
    assert cluster.asked is None
    # Later others wait: from the first one again.
    cluster.refused_unix_s = {}
    requests.take_counts(1, {ON_DEMAND: 1})
    requests.look()
    assert cluster.asked == (SPOT, 1)
    requests.close()
    assert cluster.asked is None


def test_a_driver_keeps_where_its_trials_run_and_asks_for_the_others(
    cluster: RayStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_types.ray_private, "MachineRequest", lambda name: cluster)
    # Looked for by the test itself.
    monkeypatch.setattr(vm_types, "LOOK_INTERVAL_S", None)
    vms = [find_vm(SPOT), find_vm(ON_DEMAND)]
    plan = build_plan(load_template(TEMPLATE).spec, vms[0], fallback_vms=vms[1:], storage_uri="/storage")
    several = plan.model_copy(update={"num_nodes": 2})
    cluster.nodes.append({"Alive": True, "Labels": {VM_LABEL: ON_DEMAND}, "NodeManagerAddress": "10.0.0.7"})
    running = [Trial(1, {}, 0.0, vm=SPOT), Trial(2, {}, 0.0)]
    for each, vm, count in ((plan, ON_DEMAND, 2), (several, None, 4)):
        machines = TrialMachines(each, "sweep-3", print)
        assert machines.find_vm_name("10.0.0.7") == vm
        with machines.open(BUNDLE):
            machines.take_counts(1, running)
            assert machines._requests is not None
            machines._requests.look()
            assert cluster.asked == (SPOT, count)
        assert cluster.asked is None
    # There is nothing to choose.
    machines = TrialMachines(plan.model_copy(update={"fallback_vms": ()}), "sweep-3", print)
    with machines.open(BUNDLE):
        assert machines._requests is None


def test_a_trial_costs_what_the_vm_type_costs_that_it_runs_on() -> None:
    vms = [find_vm(SPOT), find_vm(ON_DEMAND)]
    plan = build_plan(load_template(TEMPLATE).spec, vms[1], fallback_vms=vms[:1], storage_uri="/storage")
    cheap = plan.model_copy(update={"price_per_hour_usd": 1.0, "fallback_vms": (vms[1],), "vm": vms[0]})
    assert plan.usd_per_hour(None) == plan.usd_per_hour(ON_DEMAND) == plan.price_per_hour_usd
    assert (cheap.usd_per_hour(SPOT), cheap.usd_per_hour(ON_DEMAND)) == (1.0, vms[1].price_per_hour_usd)
    lines = [
        b'{"kind": "begin", "trial": 1, "time": 1.0, "job": 2, "parameters": {}, "tune": "a"}',
        b'{"kind": "place", "trial": 1, "time": 2.0, "vm": "t4"}',
    ]
    assert replay(lines)[1].vm == "t4"
