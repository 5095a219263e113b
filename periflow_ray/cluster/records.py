"""What is known of a cluster, in the storage root: its record, its resolved YAML, and its account.

The record and the YAML are written by whoever runs ``cluster up`` or ``cluster down``, the account by the cluster's own
head. None of them has a secret, so that any machine with access to the storage root and the cloud can end the cluster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from periflow_ray.cluster.config.spec import can_be_name
from periflow_ray.errors import NotFoundError
from periflow_ray.store.documents import OnUnreadable, read_document, read_each, write_document
from periflow_ray.store.root import StorageRoot

ClusterStatus = Literal["creating", "running", "ending", "ended"]
HEAD = "head"


@dataclass(frozen=True)
class ClusterRecord:
    """A cluster as it was asked for, and how far its making or its end has come. Times in Unix seconds.

    Args:
        vm_names: the workers' VM types.
        created_on: the machine that has the cluster's key and token.
        status: of the last ``cluster up`` or ``cluster down``; a head that ended its cluster says so in the account.
        head_address: by which this and other machines reach the head; None until it has one.
        autostop_s: the head ends the cluster when no job has run for so long; None for never.
        max_cost_usd: the head ends the cluster when it has cost so much; None for no limit.
        packages: what its nodes have by ``--pip``.
    """

    name: str
    cloud: Literal["aws", "azure"]
    region: str
    vm_names: list[str]
    max_num_nodes: int
    idle_timeout_minutes: int
    created_by: str
    created_on: str
    created_unix_s: float
    status: ClusterStatus
    head_address: str | None = None
    autostop_s: float | None = None
    max_cost_usd: float | None = None
    packages: list[str] = field(default_factory=list)
    ended_unix_s: float | None = None


@dataclass(frozen=True)
class MachineUse:
    """One machine of a cluster for as long as the account has seen it. Times in Unix seconds."""

    vm_name: str
    launched_unix_s: float
    seen_unix_s: float
    usd_per_hour: float

    @property
    def cost_usd(self) -> float:
        """What it has cost until it was last seen."""
        return max(0.0, self.seen_unix_s - self.launched_unix_s) / 3600 * self.usd_per_hour


@dataclass(frozen=True)
class ClusterAccount:
    """What a cluster has cost, by its machines' ids at the provider, and why its head ended it, if it did.

    Args:
        waits: what the cluster waits for, and why, in sentences; of the moment ``seen_unix_s``.
    """

    seen_unix_s: float
    machines: Mapping[str, MachineUse] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    ended_because: str | None = None

    @property
    def cost_usd(self) -> float:
        """What all machines have cost until they were last seen."""
        return sum(machine.cost_usd for machine in self.machines.values())


@dataclass(frozen=True)
class About:
    """Which cluster a head belongs to, in a file on it; ``storage`` is the URI of its storage root."""

    name: str
    storage: str


def cluster_key(name: str, *parts: str) -> str:
    """The key of something that belongs to a cluster."""
    return "/".join(("clusters", name, *parts))


def write_cluster(root: StorageRoot, record: ClusterRecord) -> None:
    """Create or replace a cluster's record."""
    write_document(root, cluster_key(record.name, "cluster.json"), record)


def read_cluster(root: StorageRoot, name: str) -> ClusterRecord:
    """One cluster.

    Raises:
        NotFoundError: the storage root has none of that name.
        DocumentError: its record cannot be read.
    """
    with contextlib.suppress(NotFoundError):
        if can_be_name(name):
            return read_document(root, cluster_key(name, "cluster.json"), ClusterRecord)
    raise NotFoundError(
        f"there is no cluster '{name}' in storage root '{root.uri}'. List them: periflow-ray cluster list"
    )


def find_cluster(root: StorageRoot, name: str) -> ClusterRecord | None:
    """One cluster, or None."""
    try:
        return read_cluster(root, name)
    except NotFoundError:
        return None


def list_clusters(root: StorageRoot, on_unreadable: OnUnreadable | None = None) -> list[ClusterRecord]:
    """Every cluster of the storage root, also those that have ended, the newest first."""
    records = read_each(lambda name: read_cluster(root, name), root.list_names("clusters"), on_unreadable)
    return sorted(records, key=lambda record: -record.created_unix_s)


def write_account(root: StorageRoot, name: str, account: ClusterAccount) -> None:
    """Create or replace a cluster's account."""
    write_document(root, cluster_key(name, "account.json"), account)


def read_account(root: StorageRoot, name: str) -> ClusterAccount | None:
    """A cluster's account; None before its head has written one."""
    try:
        return read_document(root, cluster_key(name, "account.json"), ClusterAccount)
    except NotFoundError:
        return None
