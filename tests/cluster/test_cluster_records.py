"""What the storage root knows of clusters: records and accounts come back as they were written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from periflow_ray.cluster.records import (
    ClusterAccount,
    ClusterRecord,
    MachineUse,
    cluster_key,
    find_cluster,
    list_clusters,
    read_account,
    read_cluster,
    write_account,
    write_cluster,
)
from periflow_ray.errors import DamagedDocumentError, DocumentError, NotFoundError
from periflow_ray.store.root import StorageRoot

RECORD = ClusterRecord(
    name="mine",
    cloud="aws",
    region="us-east-1",
    vm_names=["aws-16gb-t4-1g-us-east-1", "aws-16gb-t4-1g-us-east-1-spot"],
    max_num_nodes=4,
    idle_timeout_minutes=10,
    created_by="kim",
    created_on="laptop",
    created_unix_s=1_767_225_600.0,
    status="running",
    head_address="203.0.113.4",
    autostop_s=1800.0,
    max_cost_usd=25.5,
)


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


def test_a_record_comes_back_as_it_was_written(root: StorageRoot) -> None:
    write_cluster(root, RECORD)
    assert read_cluster(root, "mine") == RECORD
    ended = dataclasses.replace(RECORD, status="ended", head_address=None, ended_unix_s=1_767_229_200.0)
    write_cluster(root, ended)
    assert find_cluster(root, "mine") == ended


def test_a_cluster_that_is_not_there_is_an_error_that_says_where_to_look(root: StorageRoot) -> None:
    assert find_cluster(root, "mine") is None
    with pytest.raises(NotFoundError) as caught:
        read_cluster(root, "mine")
    assert str(caught.value) == (
        f"there is no cluster 'mine' in storage root '{root.uri}'. List them: periflow-ray cluster list"
    )


def test_clusters_are_listed_with_the_newest_first(root: StorageRoot) -> None:
    for name, created_unix_s in (("first", 1.0), ("third", 3.0), ("second", 2.0)):
        write_cluster(root, dataclasses.replace(RECORD, name=name, created_unix_s=created_unix_s))
    assert [record.name for record in list_clusters(root)] == ["third", "second", "first"]


def test_a_damaged_record_is_told_and_hides_no_other_one(root: StorageRoot) -> None:
    write_cluster(root, RECORD)
    root.write_bytes(cluster_key("cut", "cluster.json"), b'{"name": "cut", "cloud"')
    problems: list[DocumentError] = []
    assert list_clusters(root, problems.append) == [RECORD]
    assert len(problems) == 1
    assert "clusters/cut/cluster.json" in str(problems[0])
    # Not taken for a name that is free: its machines may be running.
    with pytest.raises(DamagedDocumentError):
        find_cluster(root, "cut")


def test_an_account_that_nobody_has_written_is_none_of_a_cluster_s(root: StorageRoot) -> None:
    write_cluster(root, RECORD)
    assert read_account(root, "mine") is None
    # A folder of an account alone, as a head writes it after its cluster's record was deleted, is no cluster.
    write_account(root, "lost", ClusterAccount(1.0))
    assert [record.name for record in list_clusters(root)] == ["mine"]


def test_an_account_comes_back_and_sums_what_each_machine_has_cost(root: StorageRoot) -> None:
    account = ClusterAccount(
        seen_unix_s=9000.0,
        machines={
            "i-1": MachineUse("head", 1800.0, 9000.0, 0.096),
            "i-2": MachineUse("aws-16gb-t4-1g-us-east-1", 3600.0, 5400.0, 0.526),
        },
        waits=["aws-16gb-t4-1g-us-east-1: the provider refused it: VcpuLimitExceeded: no more"],
        ended_because="it has cost $0.46, and --max-cost is $0.40",
    )
    write_account(root, "mine", account)
    read = read_account(root, "mine")
    assert read == account
    assert read is not None
    assert read.cost_usd == pytest.approx(2 * 0.096 + 0.5 * 0.526)


def test_a_machine_that_was_launched_after_it_was_seen_costs_nothing() -> None:
    # Clocks of a head and its provider differ.
    assert MachineUse("head", 100.0, 99.0, 3600.0).cost_usd == 0.0


def test_a_damaged_account_is_an_error_and_not_a_cost_of_nothing(root: StorageRoot) -> None:
    root.write_bytes(cluster_key("mine", "account.json"), b'{"machines": {}}')
    with pytest.raises(DamagedDocumentError):
        read_account(root, "mine")
