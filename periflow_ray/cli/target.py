"""Where a command runs a job: on the embedded cluster of this machine, or on the one at an address."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from periflow_ray.cli.output import talk_console

if TYPE_CHECKING:
    from periflow_ray.ray_jobs import RayJobs
    from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class Target:
    """The embedded cluster, or the one at ``address``; neither is only good for a dry run."""

    is_local: bool
    devices_per_node: int | None
    address: str | None


def connect_target(root: StorageRoot, is_local: bool, address: str | None) -> RayJobs:
    """The Jobs API of the embedded cluster, which is started if need be, or of the one at an address or of a name.

    Raises:
        UsageError: the address is neither a URL nor the name of a cluster.
        ClusterError: it did not start, or nothing answers.
    """
    if is_local:
        from periflow_ray.submit.local_cluster import ensure_local_cluster

        return ensure_local_cluster(_talk)
    from periflow_ray.submit.clusters import connect_by_address

    assert address is not None
    cluster = connect_by_address(root, address)
    cluster.check()
    return cluster


def driver_options(is_local: bool) -> dict[str, Any]:
    """How the target's driver is started: its Python, and where this shell's variables are put for it."""
    if not is_local:
        return {"python": "python", "cloud_environment_dir": None}
    from periflow_ray.submit.local_cluster import LocalClusterDir, hold_local_cluster

    # The embedded cluster runs this very Python; a remote one has its own.
    return {
        "python": sys.executable,
        "cloud_environment_dir": LocalClusterDir().cloud_environment_dir,
        "hold_cluster": lambda: hold_local_cluster(_talk),
    }


def _talk(text: str) -> None:
    talk_console().print(text, soft_wrap=True)


def count_gpus() -> int:
    """GPUs of this machine that jobs may use."""
    try:
        num_gpus = len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return num_gpus if visible is None else min(num_gpus, len([part for part in visible.split(",") if part.strip()]))
