"""Where ``--address`` leads: to a URL, or to a cluster of the storage root by its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from periflow_ray.cluster.records import ClusterRecord, cluster_key, write_cluster
from periflow_ray.cluster.secrets import DIR_VARIABLE
from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.clusters import connect_by_address, find_running_cluster

T4 = "aws-16gb-t4-1g-us-east-1"
RECORD = ClusterRecord(
    name="mine",
    cloud="aws",
    region="us-east-1",
    vm_names=[T4, f"{T4}-spot"],
    max_num_nodes=2,
    idle_timeout_minutes=10,
    created_by="kim",
    created_on="kims-laptop",
    created_unix_s=1.0,
    status="running",
    head_address="203.0.113.4",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorageRoot:
    monkeypatch.setenv(DIR_VARIABLE, str(tmp_path / "clusters"))
    return StorageRoot(str(tmp_path / "storage"))


def test_a_url_is_taken_as_it_is(root: StorageRoot) -> None:
    jobs = connect_by_address(root, "http://127.0.0.1:8265/")
    assert (jobs.address, jobs.reference) == ("http://127.0.0.1:8265", "http://127.0.0.1:8265")


def test_what_is_neither_a_url_nor_a_cluster_is_refused(root: StorageRoot) -> None:
    with pytest.raises(UsageError) as caught:
        connect_by_address(root, "mine")
    assert str(caught.value) == (
        "'mine' is neither the address of a Ray cluster (http://HOST:8265) nor the name of a cluster of storage root "
        f"'{root.uri}'. List those: periflow-ray cluster list"
    )


@pytest.mark.parametrize("address", ["mine", "cluster:mine"])
@pytest.mark.parametrize("status", ["creating", "ending", "ended"])
def test_a_cluster_that_is_not_up_is_told_how_to_come_up(root: StorageRoot, address: str, status: str) -> None:
    write_cluster(root, dataclasses.replace(RECORD, status=status))  # type: ignore[arg-type]
    with pytest.raises(ClusterError) as caught:
        connect_by_address(root, address)
    assert str(caught.value) == (
        f"cluster 'mine' is not up ({status}). Bring it up: periflow-ray cluster up --name mine"
    )


def test_a_cluster_whose_key_is_elsewhere_is_not_reached(root: StorageRoot) -> None:
    write_cluster(root, RECORD)
    with pytest.raises(ClusterError, match="does not have the key of cluster 'mine', which was made on 'kims-laptop'"):
        connect_by_address(root, "mine")


def test_a_job_runs_on_the_newest_cluster_that_is_up_and_has_its_vm_type(root: StorageRoot) -> None:
    assert find_running_cluster(root, T4) is None
    write_cluster(root, RECORD)
    write_cluster(root, dataclasses.replace(RECORD, name="newer", created_unix_s=2.0))
    write_cluster(root, dataclasses.replace(RECORD, name="ended", created_unix_s=3.0, status="ended"))
    write_cluster(root, dataclasses.replace(RECORD, name="other", created_unix_s=4.0, vm_names=["a10g"]))
    # One that cannot be read is in nobody's way.
    root.write_bytes(cluster_key("cut", "cluster.json"), b"{")
    found = find_running_cluster(root, T4)
    assert found is not None
    assert found.name == "newer"
    assert find_running_cluster(root, "v100") is None
