"""A cluster's end: nothing of it stays in the account, and where something does, it is said, with the reason."""

from __future__ import annotations

import pytest
from support.provider_stand_in import ProviderStandIn, make_machine

from periflow_ray.cluster import lifecycle
from periflow_ray.cluster.lifecycle import take_down
from periflow_ray.cluster.providers.provider import ProviderError, Resource

VOLUME = Resource("volume", "vol-1", "available")
GROUP = Resource("security group", "sg-1")
ROLE = Resource("role", "periflow-ray-mine-head")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_REMOVE_POLL_S", 0.01)
    monkeypatch.setattr(lifecycle, "_LATE_S", 0.01)


@pytest.fixture
def account() -> ProviderStandIn:
    """An account with one cluster, ``mine``."""
    account = ProviderStandIn()
    account.machines["mine"] = [make_machine("i-1"), make_machine("i-2", "aws-16gb-t4-1g-us-east-1")]
    account.resources["mine"] = [VOLUME, GROUP, ROLE]
    return account


def end(account: ProviderStandIn, timeout_s: float = 30.0) -> tuple[dict[Resource, str], list[str]]:
    told: list[str] = []
    return take_down(account, "mine", told.append, timeout_s=timeout_s), told


def test_everything_of_a_cluster_is_removed_in_the_provider_s_order_and_told_once(account: ProviderStandIn) -> None:
    left, told = end(account)
    assert left == {}
    assert account.removed == ["i-1", "i-2", "vol-1", "sg-1", "periflow-ray-mine-head"]
    assert told == [
        "removing instance i-1 (running)",
        "removing instance i-2 (running)",
        "removing volume vol-1 (available)",
        "removing security group sg-1",
        "removing role periflow-ray-mine-head",
    ]


def test_another_cluster_in_the_account_stays(account: ProviderStandIn) -> None:
    account.machines["theirs"] = [make_machine("i-7")]
    account.resources["theirs"] = [Resource("security group", "sg-7")]
    assert end(account)[0] == {}
    assert [each.id for each in account.list_resources("theirs")] == ["i-7", "sg-7"]


def test_what_machines_still_use_is_tried_again_until_they_are_gone(account: ProviderStandIn) -> None:
    account.num_listings_to_end = 3
    account.users = {"vol-1": {"i-2"}, "sg-1": {"i-1", "i-2"}}
    left, told = end(account)
    assert left == {}
    assert account.removed == ["i-1", "i-2", "periflow-ray-mine-head", "vol-1", "sg-1"]
    assert len(told) == len(set(told)) == 5


def test_what_stays_is_given_back_with_the_reason(account: ProviderStandIn) -> None:
    account.refusals["sg-1"] = "DependencyViolation: resource sg-1 has a dependent object"
    left, _ = end(account, timeout_s=0.1)
    assert left == {GROUP: "DependencyViolation: resource sg-1 has a dependent object"}
    assert account.removed == ["i-1", "i-2", "vol-1", "periflow-ray-mine-head"]


def test_a_machine_that_does_not_end_in_time_is_left(account: ProviderStandIn) -> None:
    account.num_listings_to_end = 1_000_000
    left, _ = end(account, timeout_s=0.1)
    assert {resource.id: reason for resource, reason in left.items()} == {
        "i-1": "it is still there",
        "i-2": "it is still there",
    }


def test_a_machine_that_was_being_launched_shows_up_late_and_is_removed_too(account: ProviderStandIn) -> None:
    account.late = [make_machine("i-3", "aws-16gb-t4-1g-us-east-1", state="pending")]
    assert end(account)[0] == {}
    assert account.removed[-1] == "i-3"
    assert account.list_resources("mine") == []


def test_what_somebody_else_has_removed_meanwhile_is_no_error(account: ProviderStandIn) -> None:
    class Shared(ProviderStandIn):
        def remove(self, resource: Resource) -> None:
            for own in self.resources.values():
                own[:] = [each for each in own if each != resource]
            super().remove(resource)

    shared = Shared()
    shared.resources["mine"] = [VOLUME, GROUP]
    assert end(shared)[0] == {}
    assert shared.removed == []


def test_of_a_cluster_that_is_not_there_nothing_is_removed() -> None:
    account = ProviderStandIn()
    assert end(account) == ({}, [])
    assert account.num_listings == 1


def test_an_account_that_cannot_be_listed_is_an_error_and_not_an_empty_one(account: ProviderStandIn) -> None:
    account.failure = ProviderError("AWS refused listing: UnauthorizedOperation", "UnauthorizedOperation")
    with pytest.raises(ProviderError, match="UnauthorizedOperation"):
        end(account)
