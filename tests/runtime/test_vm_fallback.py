"""In which order a job asks for its VM types when the cloud has none of one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from periflow_ray import TorchTrainer, torch_trainer
from periflow_ray.cluster.config.render import VM_LABEL
from periflow_ray.errors import PlanError, UsageError
from periflow_ray.runtime.ray_private import LaunchFacts, PlacementGroupFacts
from periflow_ray.runtime.ray_train import vm_choice
from periflow_ray.runtime.ray_train.vm_choice import ROUND_S, FallbackOrder, VmChoice, has_labels

FIRST, SECOND, THIRD = "t4-spot", "t4", "a10g"


@pytest.fixture
def order() -> FallbackOrder:
    """A job that has just asked for its first choice, at second 1000."""
    order = FallbackOrder([FIRST, SECOND, THIRD])
    assert order.start(1000.0) == FIRST
    return order


def refuse(order: FallbackOrder, now_unix_s: float) -> str | None:
    """The provider refuses what is asked for, now."""
    return order.take_refusals({order.vm_name: float(int(now_unix_s))}, now_unix_s)


def test_without_a_refusal_the_first_choice_is_waited_for(order: FallbackOrder) -> None:
    assert order.take_refusals({}, 1000.5) is None
    assert order.take_refusals({}, 100_000.0) is None
    assert order.vm_name == FIRST


def test_after_each_refusal_the_next_one_is_asked_for(order: FallbackOrder) -> None:
    assert refuse(order, 1002.0) == SECOND
    assert order.start(1003.0) == SECOND
    assert refuse(order, 1004.0) == THIRD
    assert order.start(1005.0) == THIRD


def test_one_refusal_is_one_step_however_often_it_is_seen(order: FallbackOrder) -> None:
    seen = {FIRST: 1002.0}
    assert order.take_refusals(seen, 1002.5) == SECOND
    # The group that waited is being given up.
    assert order.take_refusals({**seen, SECOND: 1002.0}, 1002.6) is None
    assert order.start(1003.0) == SECOND
    assert order.take_refusals(seen, 1003.5) is None


def test_when_there_is_none_of_the_last_one_the_first_is_asked_for_again_after_a_pause(order: FallbackOrder) -> None:
    refuse(order, 1002.0)
    order.start(1003.0)
    refuse(order, 1004.0)
    order.start(1005.0)
    assert refuse(order, 1006.0) is None
    assert refuse(order, 1005.0 + ROUND_S - 1) is None
    assert order.vm_name == THIRD
    assert refuse(order, 1005.0 + ROUND_S) == FIRST
    assert order.start(1100.0) == FIRST
    # And so on from there.
    assert refuse(order, 1101.0) == SECOND


def test_a_group_that_follows_one_that_ran_starts_with_the_first_choice(order: FallbackOrder) -> None:
    refuse(order, 1002.0)
    assert order.start(1003.0) == SECOND
    # It has its machines, runs for an hour, and loses one.
    assert order.start(4600.0) == FIRST


def test_refusals_from_before_the_question_are_no_answer_to_it(order: FallbackOrder) -> None:
    assert order.take_refusals({FIRST: 999.0}, 1001.0) is None
    refuse(order, 1002.0)
    order.start(1003.0)
    # Of another job, which asked for it a minute ago.
    assert order.take_refusals({SECOND: 950.0, FIRST: 1004.0, THIRD: 1004.0}, 1005.0) is None
    assert order.vm_name == SECOND


def test_a_refusal_within_the_second_of_the_question_counts() -> None:
    # Ray gives the time of a refusal in whole seconds.
    order = FallbackOrder([FIRST, SECOND])
    order.start(1000.9)
    assert order.take_refusals({FIRST: 1000.0}, 1001.2) == SECOND


def test_a_job_with_one_vm_type_waits_for_it(order: FallbackOrder) -> None:
    only = FallbackOrder([FIRST])
    assert only.start(1000.0) == FIRST
    assert refuse(only, 1001.0) is None
    assert only.vm_name == FIRST


class RayStandIn:
    """What Ray tells a job's controller of a cluster, and what that asks of it; the autoscaler needs a cloud."""

    def __init__(self) -> None:
        self.labels: list[dict[str, str] | None] = [{VM_LABEL: "head"}]
        self.dead_labels: list[dict[str, str]] = []
        self.groups: list[PlacementGroupFacts] = []
        self.refused_unix_s: dict[str, float] = {}
        self.notes: list[str] = []

    def nodes(self) -> list[dict[str, Any]]:
        alive = [{"Alive": True, "Labels": labels} for labels in self.labels]
        return alive + [{"Alive": False, "Labels": labels} for labels in self.dead_labels]

    def wait_for_group(self) -> None:
        self.groups = [
            PlacementGroupFacts(b"1" * 18, "controller", "job", is_pending=True, is_rescheduling=False, held={})
        ]

    def remove_group(self, group: object) -> None:
        self.groups = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> RayStandIn:
    stand_in = RayStandIn()
    monkeypatch.setattr(vm_choice.ray, "nodes", stand_in.nodes)
    monkeypatch.setattr(vm_choice.ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "head:1"}))
    monkeypatch.setattr(vm_choice.ray.util, "remove_placement_group", stand_in.remove_group)
    monkeypatch.setattr(vm_choice, "read_own_groups", lambda: stand_in.groups)
    monkeypatch.setattr(
        vm_choice.ray_private, "read_launches", lambda *given: LaunchFacts({}, {}, stand_in.refused_unix_s)
    )
    reason = "InsufficientInstanceCapacity: none left"
    monkeypatch.setattr(vm_choice, "read_refusals", lambda: {"aws-16gb-t4-1g-us-east-1-spot": reason})
    # Looked for by the tests themselves.
    monkeypatch.setattr(vm_choice, "LOOK_INTERVAL_S", None)
    return stand_in


def start(choice: VmChoice) -> dict[str, str] | None:
    return choice.take_group()


def test_a_group_that_waits_for_what_is_refused_is_given_up_and_the_next_waits_for_the_next_type(
    cluster: RayStandIn,
) -> None:
    spot, on_demand = "aws-16gb-t4-1g-us-east-1-spot", "aws-16gb-t4-1g-us-east-1"
    choice = VmChoice([spot, on_demand], cluster)  # type: ignore[arg-type]
    assert start(choice) == {VM_LABEL: spot}
    cluster.wait_for_group()
    choice._look()
    assert cluster.notes == []
    cluster.refused_unix_s = {spot: time.time()}
    choice._look()
    assert cluster.groups == []
    assert cluster.notes == [
        f"the provider refused {spot} (InsufficientInstanceCapacity: none left); asks for {on_demand} instead, at "
        "about $0.53 per hour and node"
    ]
    # Ray Train takes its time until it starts another one.
    for _ in range(3):
        choice._look()
    assert start(choice) == {VM_LABEL: on_demand}
    # That one gets its machines and loses them later.
    choice._look()
    assert start(choice) == {VM_LABEL: spot}
    assert len(cluster.notes) == 1
    assert choice._loop is not None
    assert choice._loop.close()


def test_on_nodes_that_do_not_say_what_they_are_a_job_takes_any(cluster: RayStandIn) -> None:
    cluster.labels = [None, {"ray.io/node-id": "1"}]
    cluster.dead_labels = [{VM_LABEL: "head"}]
    assert not has_labels()
    assert start(VmChoice([FIRST], cluster)) is None  # type: ignore[arg-type]
    cluster.labels.append({VM_LABEL: "head"})
    assert has_labels()
    assert start(VmChoice([FIRST], cluster)) == {VM_LABEL: FIRST}  # type: ignore[arg-type]
    assert start(VmChoice([], cluster)) is None  # type: ignore[arg-type]


def test_a_job_that_waits_for_room_waits_for_room_on_nodes_of_one_type(cluster: RayStandIn) -> None:
    choice = VmChoice([FIRST, SECOND], cluster)  # type: ignore[arg-type]
    assert [choice.find_wanted(), choice.find_wanted()] == [FIRST, FIRST]
    cluster.refused_unix_s = {FIRST: time.time()}
    choice._look()
    assert len(cluster.notes) == 1
    assert [choice.find_wanted(), choice.find_wanted()] == [SECOND, SECOND]
    choice._look()
    # There is room.
    assert start(choice) == {VM_LABEL: SECOND}
    assert choice.running == SECOND
    choice._look()
    # Later its machines are lost.
    assert choice.find_wanted() == FIRST
    assert len(cluster.notes) == 1
    assert choice._loop is not None
    assert choice._loop.close()


def test_what_is_refused_between_room_and_start_leaves_the_fallback_as_it_was(cluster: RayStandIn) -> None:
    choice = VmChoice([FIRST, SECOND, THIRD], cluster)  # type: ignore[arg-type]
    assert choice.find_wanted() == FIRST
    cluster.refused_unix_s = {FIRST: time.time()}
    choice._look()
    assert start(choice) == {VM_LABEL: SECOND}
    cluster.wait_for_group()
    cluster.refused_unix_s = {SECOND: time.time()}
    choice._look()
    assert cluster.groups == []
    assert start(choice) == {VM_LABEL: THIRD}
    assert choice._loop is not None
    assert choice._loop.close()


def test_a_group_that_runs_is_on_its_type_whether_or_not_ray_answers(
    cluster: RayStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = VmChoice([FIRST], cluster)  # type: ignore[arg-type]
    assert choice.running is None
    start(choice)

    def fail() -> None:
        raise RuntimeError("the head does not answer")

    monkeypatch.setattr(vm_choice.ray, "nodes", fail)
    assert choice.running == FIRST


def test_a_function_job_with_a_vm_type_needs_nodes_that_say_theirs(
    cluster: RayStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_trainer, "ensure_ray", lambda: None)
    cluster.labels = [None]
    spot = "aws-16gb-t4-1g-us-east-1-spot"
    with pytest.raises(UsageError, match="do not say of which VM type they are"):
        TorchTrainer(print, storage=str(tmp_path), vm=spot).fit()
    with pytest.raises(PlanError, match=f"Did you mean '{spot}'"):
        TorchTrainer(print, storage=str(tmp_path), vm=[spot, f"{spot}s"])


def test_a_rank_on_a_vm_asks_for_a_gpu_too() -> None:
    spot = "aws-16gb-t4-1g-us-east-1-spot"
    assert TorchTrainer(print, vm=spot)._choose_resources() == {"CPU": 1, "GPU": 1}
    given = TorchTrainer(print, vm=spot, use_gpu=False, resources_per_device={"CPU": 2})
    assert given._choose_resources() == {"CPU": 2}
