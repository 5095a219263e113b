"""Clusters by their names: the Jobs API at the other end of a tunnel that this process opens, and that ends with it."""

from __future__ import annotations

from collections.abc import Sequence

from periflow_ray.cluster.records import ClusterRecord, find_cluster, list_clusters, read_account, read_cluster
from periflow_ray.cluster.secrets import find_secrets
from periflow_ray.cluster.ssh import Tunnel
from periflow_ray.errors import ClusterError, NotFoundError, UsageError
from periflow_ray.ray_jobs import RayJobs, connect
from periflow_ray.store.root import StorageRoot

_SCHEME = "cluster:"
_tunnels: dict[tuple[str, str, str | None], Tunnel] = {}


def connect_by_address(root: StorageRoot, address: str) -> RayJobs:
    """The Jobs API at a URL, or that of a cluster by its name, with or without ``cluster:`` before it.

    Raises:
        UsageError: it is neither.
        ClusterError: the cluster is not up, or cannot be reached.
    """
    if "://" in address:
        return connect(address)
    return connect_to_cluster(root, address.removeprefix(_SCHEME))


def connect_to_cluster(root: StorageRoot, name: str) -> RayJobs:
    """The Jobs API of a cluster of this storage root.

    Raises:
        UsageError: there is none of that name.
        ClusterError: it is not up, or cannot be reached.
    """
    try:
        record = read_cluster(root, name)
    except NotFoundError:
        raise UsageError(
            f"'{name}' is neither the address of a Ray cluster (http://HOST:8265) nor the name of a cluster of storage "
            f"root '{root.uri}'. List those: periflow-ray cluster list"
        ) from None
    why_down = _why_down(root, record)
    if why_down is not None:
        raise ClusterError(
            f"cluster '{name}' is not up ({why_down}). Bring it up: periflow-ray cluster up --name {name}"
        )
    secrets = find_secrets(root.uri, name)
    key = (root.uri, name, record.head_address)
    tunnel = _tunnels.get(key)
    if tunnel is None or not tunnel.is_open:
        tunnel = _tunnels[key] = Tunnel(record, secrets)
    return connect(tunnel.address, secrets.token_path, reference=f"{_SCHEME}{name}")


def require_vms(root: StorageRoot, address: str, vm_names: Sequence[str]) -> None:
    """Refuse VM types that a cluster does not have, if its address is the name of one: a job would wait for ever.

    Raises:
        UsageError: it lacks one of them.
    """
    if "://" in address:
        return
    record = find_cluster(root, address.removeprefix(_SCHEME))
    lacking = [] if record is None else [name for name in vm_names if name not in record.vm_names]
    if record is not None and lacking:
        raise UsageError(
            f"cluster '{record.name}' has no {', '.join(lacking)}; it has {', '.join(record.vm_names)}. Take one of "
            "these (--vm), or make a cluster that has all of them: periflow-ray cluster up --vm ..."
        )


def find_running_cluster(root: StorageRoot, vm_names: Sequence[str]) -> ClusterRecord | None:
    """The newest cluster that is up and has all these VM types."""
    for record in list_clusters(root, on_unreadable=lambda err: None):
        if set(vm_names) <= set(record.vm_names) and _why_down(root, record) is None:
            return record
    return None


def _why_down(root: StorageRoot, record: ClusterRecord) -> str | None:
    """Why a cluster does not run, as far as the storage root knows; None if it does."""
    if record.status != "running":
        return record.status
    account = read_account(root, record.name)
    return None if account is None or account.ended_because is None else f"ended by itself: {account.ended_because}"
