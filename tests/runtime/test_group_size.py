"""How many workers Ray Train is told to start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import ray.train

from periflow_ray.cluster.config.render import VM_LABEL
from periflow_ray.runtime.ray_private import NoopDecision, ResizeDecision, ScalingDecision
from periflow_ray.runtime.ray_train import group_size, vm_choice
from periflow_ray.runtime.ray_train.group_size import ElasticPolicy, FixedPolicy
from periflow_ray.runtime.ray_train.vm_choice import VmChoice

WaitUntil = Callable[[Callable[[], bool]], None]
SPOT, ON_DEMAND = "aws-16gb-t4-1g-us-east-1-spot", "aws-16gb-t4-1g-us-east-1"


def test_a_fixed_job_starts_all_its_workers_and_needs_nobody_for_that():
    config = ray.train.ScalingConfig(num_workers=3, resources_per_worker={"CPU": 0.5})
    policy = FixedPolicy(config, VmChoice([], None))  # type: ignore[arg-type]
    # Without a cluster: what asked one for anything would fail.
    policy.after_controller_start(None)
    assert policy.make_decision_for_non_running_worker_group() == ResizeDecision(3, {"CPU": 0.5})
    assert policy.make_decision_for_running_worker_group(None, None) == NoopDecision()
    asyncio.run(policy.before_controller_shutdown())
    policy.before_controller_abort()


class ClusterStandIn:
    """Nodes by the VM types that they name, each with room for one worker; the autoscaler needs a cloud."""

    def __init__(self) -> None:
        self.vm_names = ["head"]
        self.asked: list[object] = []

    def nodes(self) -> list[dict[str, object]]:
        return [{"NodeID": f"n{i}", "Alive": True, "Labels": {VM_LABEL: name}} for i, name in enumerate(self.vm_names)]

    def read_free_resources(self) -> dict[str, dict[str, float]]:
        return {f"n{i}": {"CPU": 1.0, "GPU": float(name != "head")} for i, name in enumerate(self.vm_names)}

    def request_resources(self, policy: ElasticPolicy, *, is_new: bool) -> None:
        if is_new:
            self.asked.append(policy.scaling_config.label_selector)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ClusterStandIn:
    stand_in = ClusterStandIn()
    monkeypatch.setattr(vm_choice.ray, "nodes", stand_in.nodes)
    for name in ("read_free_resources", "request_resources"):
        monkeypatch.setattr(group_size.ray_private, name, getattr(stand_in, name))
    monkeypatch.setattr(group_size.ray_private, "read_draining_nodes", dict)
    monkeypatch.setattr(group_size, "_is_reachable", lambda node: True)
    monkeypatch.setattr(group_size, "_read_held_resources", dict)
    monkeypatch.setattr(group_size, "SETTLE_S", 0.05)
    monkeypatch.setattr(group_size, "_POLL_S", 0.01)
    return stand_in


def test_an_elastic_job_counts_the_room_on_nodes_of_its_vm_type_alone(
    cluster: ClusterStandIn, wait_until: WaitUntil
) -> None:
    config = ray.train.ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 1})
    choice = VmChoice([SPOT, ON_DEMAND], None)  # type: ignore[arg-type]
    policy = ElasticPolicy(config, 1, choice, None)  # type: ignore[arg-type]
    decide = policy.make_decision_for_non_running_worker_group
    # Two of another type.
    cluster.vm_names += [ON_DEMAND, ON_DEMAND]
    end_s = time.monotonic() + 3 * group_size.SETTLE_S
    while time.monotonic() < end_s:
        assert decide() == NoopDecision()
    assert cluster.asked == [{VM_LABEL: SPOT}]
    # The cloud has none: the job wants the other type, and has room for all its workers at once.
    choice._order.take_refusals({SPOT: time.time()}, time.time())
    assert decide() == ResizeDecision(2, {"CPU": 1, "GPU": 1})
    assert cluster.asked == [{VM_LABEL: SPOT}, {VM_LABEL: ON_DEMAND}]
    assert policy.on_controller_start_worker_group(scaling_config=config, num_workers=2) == {VM_LABEL: ON_DEMAND}
    # Both are lost, and one of the first choice comes.
    cluster.vm_names = ["head", ON_DEMAND, SPOT]
    decisions: list[ScalingDecision] = []

    def starts() -> bool:
        decisions.append(decide())
        return decisions[-1] != NoopDecision()

    wait_until(starts)
    assert decisions[-1] == ResizeDecision(1, {"CPU": 1, "GPU": 1})
    assert policy.on_controller_start_worker_group(scaling_config=config, num_workers=1) == {VM_LABEL: SPOT}
    assert choice._loop is not None
    assert choice._loop.close()
